// What the reader chooses above the plots: colour, protocol, layer, filter; and the legend, whose entries filter too.
const controls = document.getElementById('plot-controls');
let matching = null;

// Whether the filter and the legend show a cell.
function isMatching(cell) {
  matching ??= match();
  return matching[cell] === 1;
}

// Words that all must be found: `axis=value` exactly, anything else within the id or the axes.
function match() {
  const words = state.words.toLowerCase().split(/\s+/).filter(Boolean);
  return Uint8Array.from(cells.ids, (id, cell) => {
    for (const [name, values] of state.hidden) {
      if (values.has(valueOf(axes.find(axis => axis.name === name), cell))) return 0;
    }
    if (!words.length) return 1;
    const text = `${id} ${axesText(cell)}`.toLowerCase();
    return Number(words.every(word => isAxisValue(word, cell) ?? text.includes(word)));
  });
}

// Whether a cell has the value of `axis=value`; null where the word is no such thing.
function isAxisValue(word, cell) {
  const axis = axes.find(one => word.startsWith(`${one.name.toLowerCase()}=`));
  return axis ? valueOf(axis, cell)?.toLowerCase() === word.slice(axis.name.length + 1) : null;
}

function makeControls() {
  if (!controls) return;
  const coloured = colourAxes();
  if (!coloured.some(axis => axis.name === state.colour)) state.colour = coloured[0]?.name ?? '';
  if (coloured.length) addSelect('colour', 'Colour by', coloured.map(axis => axis.name), state.colour, name => {
    state.colour = name;
    forgetLook();
    state.hidden.clear();
    refilter();
  });
  if (plots.protocols.length > 1) {
    const labels = plots.protocols.map(option => option.label);
    addSelect('protocol', 'Protocol', labels, labels[0], (_, place) => rechoose({protocol: place}));
  }
  if (plots.layers.length) {
    const layers = [null, ...plots.layers];
    const labels = layers.map(layer => layer === null ? "each cell's last" : String(layer));
    addSelect('layer', 'Layer', labels, labels[0], (_, place) => rechoose({layer: layers[place]}));
  }
  addFilter();
  const beyond = element('input', {type: 'checkbox', id: 'beyond'});
  beyond.addEventListener('change', () => {
    state.beyond = beyond.checked;
    redrawPlots();
  });
  controls.append(element('label', {class: 'check'}, beyond, ' up to upstream accuracy 1'));
  controls.hidden = false;
  writeLegend();
  writeChoice();
}

function addSelect(id, name, labels, first, choose) {
  const select = element('select', {id}, ...labels.map(label => element('option', {}, label)));
  select.selectedIndex = labels.indexOf(first);
  select.addEventListener('change', () => choose(labels[select.selectedIndex], select.selectedIndex));
  controls.append(element('label', {}, `${name} `, select));
}

function addFilter() {
  const example = colourAxes()[0], hint = example ? `${example.name}=${example.values[0]}` : 'part of an id';
  const input = element('input', {type: 'search', id: 'filter', placeholder: hint, autocomplete: 'off', spellcheck: 'false'});
  input.addEventListener('input', () => {
    state.words = input.value;
    refilter();
  });
  controls.append(element('label', {}, 'Filter ', input));
}

function refilter() {
  matching = null;
  writeLegend();
  writeChoice();
  redrawPlots();
}

function rechoose(choice) {
  Object.assign(state, choice);
  forgetShown();
  writeChoice();
  redrawPlots();
  if (pins.length) writePins();
}

// What is shown, how many cells the filter leaves, and whose law it is.
function writeChoice() {
  const note = document.getElementById('plot-choice');
  if (!note) return;
  const left = cells.ids.filter((_, cell) => isMatching(cell)).length, parts = [];
  if (left < cells.ids.length) parts.push(`${left.toLocaleString('en')} of ${plural(cells.ids.length, 'cell')} match the filter; hulls and ranks stay those of all.`);
  if (!isReduced()) {
    const layer = state.layer === null ? "each cell's last layer" : `layer ${state.layer}`;
    parts.push(`Shown is ${plots.protocols[state.protocol].label} at ${layer}, with its hull. Law, interval and verdict ` +
      `belong to ${plots.protocols[0].label} at each cell's last layer, and are not drawn here.`);
  }
  note.textContent = parts.join(' ');
}

// The values of the colour's axis: shape and colour, name, and a switch.
function writeLegend() {
  const legend = document.getElementById('plot-legend'), {axis, scaled, values, none} = look();
  if (!legend) return;
  legend.setAttribute('aria-label', axis ? `Colours and shapes by ${axis.name}` : 'Sizes');
  const entries = !axis ? [] : scaled ? [scaleBar(axis, values)] : axis.values.map((value, i) => entry(axis, value, value, values[i]));
  if (axis && axis.of.includes(plots.nothing)) entries.push(entry(axis, null, 'not set', none));
  legend.replaceChildren(...entries, ...sizeLegend());
}

function entry(axis, value, text, {colour, shape, hollow}) {
  const symbol = element('i', {class: `symbol shape${shape} ${hollow ? 'hollow' : ''}`});
  symbol.style.setProperty('--symbol', colour);
  const off = state.hidden.get(axis.name)?.has(value) ?? false;
  const made = button('', () => {
    const hidden = state.hidden.get(axis.name) ?? new Set();
    if (!hidden.delete(value)) hidden.add(value);
    state.hidden.set(axis.name, hidden);
    const place = [...made.parentElement.children].indexOf(made);
    refilter();
    document.getElementById('plot-legend').children[place].focus();
  }, {'aria-pressed': String(!off), class: 'entry'});
  made.append(symbol, text);
  return made;
}

// The colours of an axis with many ordered values, with the lowest, a middle and the highest one.
function scaleBar(axis, values) {
  const bar = element('i', {class: 'ramp'}), named = axis.values;
  bar.style.background = `linear-gradient(to right, ${[0, 0.25, 0.5, 0.75, 1].map(ramp).join(',')})`;
  const middle = named[Math.floor(values.length / 2)];
  return element('span', {class: 'scalebar'}, `${axis.name} ${named[0]} `, bar, ` ${named.at(-1)} (middle: ${middle})`);
}

function sizeLegend() {
  const known = cells.params.filter(number => number !== null);
  if (!known.length) return [];
  const [low, high] = [known.reduce((a, b) => Math.min(a, b)), known.reduce((a, b) => Math.max(a, b))];
  const symbol = size => element('i', {class: `symbol shape0 ${size}`});
  if (low === high) return [];
  return [element('span', {}, symbol('small'), prefixed(low), symbol('large'), `${prefixed(high)} parameters`)];
}

function prefixed(number) {
  return new Intl.NumberFormat('en', {notation: 'compact', maximumSignificantDigits: 3}).format(number);
}
