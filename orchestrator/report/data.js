// The page's data, unpacked as it is asked for, and what the reader has chosen.
const page = JSON.parse(document.getElementById('data').textContent);
const {plots} = page;
const cells = plots.cells;
const axes = cells.axes.map(axis => ({...axis, of: wholes(axis.of)}));
const state = {
  shots: page.shots,
  layer: null,
  protocol: 0, // of plots.protocols
  colour: 'family',
  beyond: false,
  words: '',
  hidden: new Map(), // axis: the values that the legend has off
};
const shownTasks = new Map();
const unpacked = new WeakMap(), upstreams = [];

// Whole numbers of two bytes in base64, the lower byte first as every browser's machine has it.
function wholes(text) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new Uint16Array(bytes.buffer);
}

function fractions(numbers) {
  return Float64Array.from(numbers, number => number === plots.nothing ? NaN : number / plots.scale);
}

// The values at the chosen protocol, shots and layer; undefined where there are none.
function chosen() {
  const option = plots.protocols[state.protocol];
  const shots = option?.follows ? state.shots : option?.shots;
  return plots.choices.find(choice => choice.protocol === option.protocol && choice.layer === state.layer &&
    (choice.shots === shots || (option.follows && choice.shots === null)));
}

// Whether what is shown is what the reducer looked at, so that its law and interval belong to it.
function isReduced() {
  return state.protocol === 0 && state.layer === null;
}

function forgetShown() {
  shownTasks.clear();
}

// The points of a task: accuracies by cell, the cells that have both in upstream order, the hull, the reducer's answer.
function shownOn(task) {
  if (!shownTasks.has(task)) shownTasks.set(task, gathered(task));
  return shownTasks.get(task);
}

function gathered(task) {
  const choice = chosen(), row = choice ? choice.tasks.indexOf(plots.tasks.indexOf(task)) : -1;
  if (row < 0) return null;
  const count = cells.ids.length;
  if (!unpacked.has(choice)) unpacked.set(choice, wholes(choice.values));
  const number = choice.upstreams[row];
  upstreams[number] ??= fractions(wholes(plots.upstreams[number]));
  const us = upstreams[number], ds = fractions(unpacked.get(choice).subarray(row * count, (row + 1) * count));
  const present = [];
  for (let cell = 0; cell < count; cell++) if (us[cell] === us[cell] && ds[cell] === ds[cell]) present.push(cell);
  const answer = isReduced() ? plots.answers.find(one => one.task === task && one.shots === choice.shots) : undefined;
  const hull = answer ? answer.hull : upperHull(us, ds, present);
  present.sort((a, b) => us[a] - us[b] || ds[a] - ds[b] || a - b);
  return {us, ds, present, hull, answer};
}

// The lowest and highest upstream accuracy of the choice: all plots have the same horizontal axis.
function upstreamSpan() {
  let low = Infinity, high = -Infinity;
  for (const task of chosen()?.tasks ?? []) {
    const {us, present} = shownOn(plots.tasks[task]);
    if (!present.length) continue;
    low = Math.min(low, us[present[0]]);
    high = Math.max(high, us[present[present.length - 1]]);
  }
  return [low, high];
}

// An axis's value of a cell in words; null where it has none.
function valueOf(axis, cell) {
  return axis.values[axis.of[cell]] ?? null;
}

// A cell in words: its model, then the axes in which cells differ.
function axesText(cell) {
  const model = [], others = [];
  for (const axis of axes) {
    const value = valueOf(axis, cell);
    if (value === null) continue;
    if (axis.name === 'family' || axis.name === 'size') model.push(value);
    else others.push(`${axis.name} ${value}`);
  }
  return [...(model.length ? [model.join(' ')] : []), ...others].join(', ');
}

// Where a cell stands on a task, the best being 1.
function rankOn(shown, cell) {
  return 1 + shown.present.reduce((sum, other) => sum + (shown.ds[other] > shown.ds[cell]), 0);
}

// An element with attributes, and text or other elements inside; what data say is text, and never markup.
function element(tag, attributes = {}, ...inside) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...inside);
  return made;
}

// The id of a cell, as a link where the page has a part about it.
function cellLink(cell) {
  const id = cells.ids[cell], anchor = `cell-${encodeURIComponent(id)}`;
  const name = element('code', {}, id);
  return document.getElementById(anchor) ? element('a', {href: `#${anchor}`}, name) : name;
}
