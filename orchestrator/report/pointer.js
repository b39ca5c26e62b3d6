// Pointing at cells with mouse, finger and keyboard.
const REACH = 30; // pixels from a point within which it is meant
const LEAP = 0.1; // of all points, by Page Up and Page Down
const tip = element('div', {id: 'tip', role: 'tooltip', hidden: ''});
const live = element('p', {class: 'unseen', 'aria-live': 'polite', id: 'said'});
document.body.append(tip, live);

function listen(plot) {
  const {holder} = plot;
  holder.addEventListener('pointermove', event => event.pointerType !== 'touch' && point(plot, event));
  holder.addEventListener('pointerleave', event => event.pointerType !== 'touch' && unpoint(plot));
  holder.addEventListener('click', event => {
    point(plot, event);
    if (plot.at === null) return;
    say(plot, togglePin(plot.at));
    drawMarks(plot);
  });
  holder.addEventListener('keydown', event => walk(plot, event));
  holder.addEventListener('focus', () => plot.stale && drawPlot(plot));
  holder.addEventListener('blur', () => unpoint(plot));
}

// The cell that is nearest to a place of a plot, among those that the filter shows; null where none is near.
function nearest({shown, x, y}, atX, atY) {
  let best = null, least = REACH ** 2;
  for (const cell of shown?.present ?? []) {
    if (!isMatching(cell)) continue;
    const distance = (x.at(shown.us[cell]) - atX) ** 2 + (y.at(shown.ds[cell]) - atY) ** 2;
    if (distance < least) [best, least] = [cell, distance];
  }
  return best;
}

function point(plot, event) {
  const box = plot.holder.getBoundingClientRect(), times = plot.width / box.width;
  show(plot, nearest(plot, (event.clientX - box.left) * times, (event.clientY - box.top) * times));
}

function unpoint(plot) {
  if (plot.at !== null) show(plot, null);
}

// Rings a cell of a plot, and tells of it beside it.
function show(plot, cell) {
  plot.at = cell;
  drawMarks(plot);
  tip.hidden = cell === null;
  if (cell === null) return;
  const {shown} = plot, terms = [['axes', axesText(cell)]];
  if (cells.params[cell] !== null) terms.push(['parameters', cells.params[cell].toLocaleString('en')]);
  terms.push(['upstream', shown.us[cell].toFixed(4)], [plot.task, shown.ds[cell].toFixed(4)]);
  tip.replaceChildren(element('b', {}, cells.ids[cell]), element('dl', {}, ...terms.flatMap(([name, value]) =>
    [element('dt', {}, name), element('dd', {}, value)])));
  placeTip(plot, cell);
}

// Beside the point, and within the window.
function placeTip({holder, width, shown, x, y}, cell) {
  const box = holder.getBoundingClientRect(), times = box.width / width;
  const atX = box.left + x.at(shown.us[cell]) * times, atY = box.top + y.at(shown.ds[cell]) * times;
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = `${Math.max(8, Math.min(atX + 14, room))}px`;
  const below = atY + 16, above = atY - tip.offsetHeight - 16;
  tip.style.top = `${below + tip.offsetHeight < window.innerHeight || above < 8 ? below : above}px`;
}

// Arrow keys walk the points in the order of upstream accuracy, Enter pins.
function walk(plot, event) {
  const order = (plot.shown?.present ?? []).filter(isMatching), last = order.length - 1;
  if (last < 0) return;
  const place = order.indexOf(plot.at), leap = Math.max(1, Math.round(order.length * LEAP));
  const steps = {ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: leap, PageDown: -leap};
  if (event.key === 'Enter' || event.key === ' ') {
    if (place >= 0) say(plot, togglePin(plot.at));
  } else if (event.key === 'Home' || event.key === 'End') {
    show(plot, order[event.key === 'Home' ? 0 : last]);
    say(plot, '');
  } else if (event.key in steps && !event.ctrlKey && !event.metaKey && !event.altKey) {
    show(plot, order[place < 0 ? 0 : Math.max(0, Math.min(last, place + steps[event.key]))]);
    say(plot, '');
  } else return;
  event.preventDefault();
}

// Tells those who do not see the plot which cell is pointed at, and what was done to it.
function say({shown, at, task}, done) {
  const place = shown.present.filter(isMatching).indexOf(at) + 1, pin = pins.find(one => one.cell === at);
  live.textContent = [
    done,
    `${place} of ${shown.present.filter(isMatching).length}: upstream ${shown.us[at].toFixed(4)}`,
    `${task} ${shown.ds[at].toFixed(4)}`,
    axesText(at),
    `cell ${cells.ids[at]}`,
    pin && !done ? `pinned as ${pin.mark}` : '',
  ].filter(Boolean).join(', ');
}

document.addEventListener('keydown', event => {
  if (event.key !== 'Escape') return;
  for (const plot of allPlots) unpoint(plot);
  if (pins.length) {
    clearPins();
    live.textContent = 'all cells unpinned';
  }
});
addEventListener('scroll', () => {
  for (const plot of allPlots) if (plot.at !== null) placeTip(plot, plot.at);
}, {passive: true});
