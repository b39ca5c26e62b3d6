// What is drawn when: nothing before it comes near, everything before it is printed.
const allPlots = [...document.querySelectorAll('figure[data-kind="frontier"]')].map(makePlot);
const charts = [...document.querySelectorAll('figure[data-kind]:not([data-kind="frontier"])')];
const near = new Set();
const plotOf = new Map(allPlots.map(plot => [plot.figure, plot]));
const PAPER_DENSITY = 3;
// Pages upon pages of raw numbers, which the tables beside the page hold too: the vertices of every hull, the strongest
// conflicts of every task, the section of each of up to 200 cells, all cells. What the reader has opened is printed.
const FOLDED_ON_PAPER = '.vertices, .cell-section, .long';
const unfolded = []; // for paper alone
let asked = false;

const observer = new IntersectionObserver(entries => {
  for (const {target, isIntersecting} of entries) near[isIntersecting ? 'add' : 'delete'](target);
  drawNear();
}, {rootMargin: '300px'});

// Draws what is near and not as it has to be.
function drawNear() {
  for (const figure of near) {
    const plot = plotOf.get(figure);
    if (!plot) drawChart(figure);
    else if (plot.stale) drawPlot(plot);
  }
  document.documentElement.dataset.drawn = 'near';
}

function drawSoon() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    drawNear();
  });
}

function redrawPlots() {
  for (const plot of allPlots) plot.stale = true;
  drawSoon();
}

function recolour() {
  forgetLook();
  writeLegend();
  fresh.clear();
  redrawPlots();
}

function chooseShots(shots) {
  state.shots = shots;
  const key = String(shots ?? 'none');
  for (const part of document.querySelectorAll('[data-shots]')) part.hidden = part.dataset.shots !== key;
  fresh.clear();
  rechoose({});
}

// Everything, on white, as sharp as a printer likes. Nothing here waits for a timer, so that all is there in time.
function drawForPaper() {
  const seen = theme();
  forPaper = true;
  unfolded.push(...document.querySelectorAll(`details:not([open], ${FOLDED_ON_PAPER})`));
  for (const part of unfolded) part.open = true;
  document.documentElement.dataset.theme = 'light';
  forgetLook();
  writeLegend();
  for (const plot of allPlots) drawPlot(plot, PAPER_DENSITY);
  if (seen !== 'light') fresh.clear();
  for (const figure of charts) if (figure.checkVisibility()) drawChart(figure);
}

function backToScreen() {
  forPaper = false;
  for (const part of unfolded.splice(0)) part.open = false;
  applyTheme(chosenTheme());
  recolour();
}

for (const input of document.querySelectorAll('#shots input')) {
  input.addEventListener('change', () => chooseShots(Number(input.value)));
}
const shotsControl = document.getElementById('shots');
if (shotsControl) shotsControl.hidden = false;
makeThemeButton();
makeControls();
allPlots.forEach(listen);
chooseShots(state.shots);
for (const figure of [...plotOf.keys(), ...charts]) observer.observe(figure);
addEventListener('beforeprint', drawForPaper);
addEventListener('afterprint', backToScreen);
let width = window.innerWidth;
addEventListener('resize', () => {
  if (width === window.innerWidth) return; // a phone's address bar comes and goes
  width = window.innerWidth;
  redrawPlots();
});
