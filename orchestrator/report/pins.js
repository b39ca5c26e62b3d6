// Cells that the reader pins: ringed in every plot, side by side in a panel.
const MARKS = ['A', 'B', 'C', 'D', 'E', 'F', 'G', 'H'];
const pins = []; // {cell, mark}, in the order of pinning
const pinPanel = document.getElementById('pins');

// Pins a cell, or takes its pin off; what happened, in words.
function togglePin(cell) {
  const place = pins.findIndex(pin => pin.cell === cell);
  const mark = MARKS.find(one => pins.every(pin => pin.mark !== one));
  if (place < 0 && !mark) return `${MARKS.length} cells are pinned; unpin one first`;
  const said = place < 0 ? `pinned as ${mark}` : `${pins[place].mark} unpinned`;
  if (place < 0) pins.push({cell, mark});
  else pins.splice(place, 1);
  showPins();
  return said;
}

function clearPins() {
  pins.length = 0;
  showPins();
}

function showPins() {
  for (const plot of allPlots) drawMarks(plot);
  writePins();
}

function writePins() {
  if (!pinPanel) return;
  pinPanel.hidden = !pins.length;
  const tasks = allPlots.map(plot => plot.task).filter(task => shownOn(task));
  const heads = ['', 'cell', 'upstream', ...tasks].map(name => element('th', {scope: 'col'}, name));
  const table = element('table', {'aria-label': 'Accuracy and rank of the pinned cells on every task'},
    element('thead', {}, element('tr', {}, ...heads)), element('tbody', {}, ...pins.map(pin => pinRow(pin, tasks))));
  const scroll = {class: 'scroll', tabindex: '0', role: 'group', 'aria-label': 'Pinned cells, task by task'};
  pinPanel.replaceChildren(
    element('p', {class: 'pin-title'}, element('b', {}, plural(pins.length, 'pinned cell')), ': accuracy, and rank in parentheses ',
      button('Unpin all', clearPins)),
    element('div', scroll, table),
  );
}

function pinRow({cell, mark}, tasks) {
  const off = button('×', () => togglePin(cell), {class: 'unpin', 'aria-label': `Unpin ${mark}`});
  const about = element('div', {class: 'pin-cell'}, cellLink(cell), element('small', {}, axesText(cell)));
  const named = (name, text) => element('td', {'data-name': name}, text);
  return element('tr', {},
    element('th', {scope: 'row'}, element('b', {class: 'letter'}, mark), ' ', off), element('td', {}, about),
    named('upstream', upstreamText(cell)), ...tasks.map(task => named(task, placeText(shownOn(task), cell))));
}

function button(text, act, attributes = {}) {
  const made = element('button', {type: 'button', ...attributes}, text);
  made.addEventListener('click', act);
  return made;
}

function upstreamText(cell) {
  const shown = allPlots.map(plot => shownOn(plot.task)).find(one => has(one, cell));
  return shown ? shown.us[cell].toFixed(4) : '–';
}

function placeText(shown, cell) {
  if (!has(shown, cell)) return '–';
  return `${shown.ds[cell].toFixed(4)} (${rankOn(shown, cell)}/${shown.present.length})`;
}
