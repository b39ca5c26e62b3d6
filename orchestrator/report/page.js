(() => {
'use strict';
const page = JSON.parse(document.getElementById('data').textContent);
const dark = matchMedia('(prefers-color-scheme: dark)');
const beyond = document.getElementById('beyond');
const figures = [...document.querySelectorAll('figure[data-kind]')];
const views = new Map();
let shots = page.shots, round = 0;

const column = number => {
  const packed = page.columns[number];
  if (Array.isArray(packed)) return packed;
  if (packed.n) return packed.n.map(value => value === null ? null : value / page.scale);
  return Array(packed.len).fill(packed.same);
};
const rows = table => {
  const names = Object.keys(table), columns = names.map(name => column(table[name]));
  const all = (columns[0] || []).map((_, i) => Object.fromEntries(names.map((name, j) => [name, columns[j][i]])));
  return all.filter(row => row.downstream !== null && row.upstream !== null && row.accuracy !== null);
};
const panelOf = figure => page.panels.find(panel => panel.kind === figure.dataset.kind &&
  panel.name === figure.dataset.name && (panel.shots === shots ||
  (panel.shots === null && (panel.name === 'upstream' || panel.kind === 'measures'))));

async function draw(figure) {
  const panel = panelOf(figure), plot = figure.querySelector('.plot'), note = figure.querySelector('.note');
  note.textContent = panel ? panel.note : 'no values at this number of shots';
  views.get(figure)?.finalize();
  views.delete(figure);
  plot.replaceChildren();
  if (!panel) return;
  const specs = page.specs[dark.matches ? 'dark' : 'light'];
  const spec = structuredClone(specs[panel.kind]);
  spec.datasets = Object.fromEntries(Object.entries(panel.tables).map(([name, table]) => [name, rows(table)]));
  if (spec.datasets.law && !beyond?.checked) spec.datasets.law = spec.datasets.law.filter(row => row.part !== 'beyond');
  // Vega warns of scales without values.
  if (spec.layer) spec.layer = spec.layer.filter(layer => spec.datasets[(layer.data ?? spec.data).name]?.length);
  spec.description = `${figure.dataset.name}: ${panel.title}. ${panel.note}`;
  const size = Math.max(0, ...Object.values(spec.datasets).map(data => data.length));
  const result = await vegaEmbed(plot, spec, {
    actions: false,
    renderer: size > page.canvas ? 'canvas' : 'svg',
    tooltip: {theme: dark.matches ? 'dark' : 'light'},
  });
  views.set(figure, result);
}

// One chart after the other, so that the page can be read and scrolled meanwhile; a new choice ends an older round.
async function drawAll() {
  const mine = ++round;
  for (const figure of figures) {
    await new Promise(resume => setTimeout(resume));
    if (mine !== round) return;
    await draw(figure);
  }
  document.documentElement.dataset.drawn = 'yes';
}

function choose(chosen) {
  shots = chosen;
  const key = String(chosen ?? 'none');
  for (const part of document.querySelectorAll('[data-shots]')) part.hidden = part.dataset.shots !== key;
  drawAll();
}
for (const input of document.querySelectorAll('#shots input')) {
  input.addEventListener('change', () => choose(Number(input.value)));
}
const control = document.getElementById('shots');
if (control) control.hidden = false;
beyond?.addEventListener('change', drawAll);
dark.addEventListener('change', drawAll);
choose(shots);
})();
