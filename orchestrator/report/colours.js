// Colours and shapes of the points, by any axis of the study.
const NAMED = 7; // colours and shapes in the style sheet; an ordered axis with more values has a scale
const MOST_NAMES = NAMED * NAMED; // pairs of a colour and a shape
// From low to high, with contrast to the page at both ends (parts of the map "plasma", whose lightness is monotonic).
const RAMPS = {
  light: [[13, 8, 135], [106, 0, 168], [177, 42, 144], [222, 90, 92]],
  dark: [[190, 60, 150], [225, 100, 98], [252, 166, 54], [240, 249, 33]],
};
const probe = document.createElement('i');
let currentLook = null;

// The colour that a name of the style sheet stands for now.
function ink(name) {
  if (!probe.isConnected) document.body.append(probe);
  probe.hidden = true;
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}

function ramp(part) {
  const stops = RAMPS[theme()], at = part * (stops.length - 1), left = Math.min(Math.floor(at), stops.length - 2);
  const mixed = stops[left].map((low, i) => Math.round(low + (stops[left + 1][i] - low) * (at - left)));
  return `rgb(${mixed.join(' ')})`;
}

// The axes that points can be coloured by.
function colourAxes() {
  return axes.filter(axis => axis.varies && (axis.ordered || axis.values.length <= MOST_NAMES));
}

// How values of the chosen axis look: one for each, and one for cells without any.
function look() {
  currentLook ??= makeLook(colourAxes().find(axis => axis.name === state.colour));
  return currentLook;
}

function forgetLook() {
  currentLook = null;
}

function makeLook(axis) {
  const none = {colour: ink('--muted'), shape: 0, hollow: true};
  if (!axis) return {axis: null, scaled: false, none: {colour: ink('--f0'), shape: 0}, values: []};
  const last = Math.max(1, axis.values.length - 1), scaled = axis.ordered && axis.values.length > NAMED;
  const values = axis.values.map((_, i) => ({
    colour: axis.ordered ? ramp(i / last) : ink(`--f${i % NAMED}`),
    shape: scaled ? 0 : (i + Math.floor(i / NAMED)) % NAMED,
  }));
  return {axis, scaled, none, values};
}

function lookOf(cell) {
  const {axis, values, none} = look();
  return axis ? values[axis.of[cell]] ?? none : none;
}

// The radius of a point: its area grows with the logarithm of the parameters, as in the figures.
const sizes = (() => {
  const known = cells.params.filter(number => number > 0);
  const low = Math.log(Math.min(...known)), high = Math.log(Math.max(...known));
  const shrink = Math.min(1, Math.sqrt(200 / Math.max(1, cells.ids.length)));
  return cells.params.map(number => {
    const part = number > 0 && high > low ? (Math.log(number) - low) / (high - low) : 0.2;
    return Math.sqrt((20 + 90 * part) * shrink / Math.PI);
  });
})();

// One point's outline, of about the area of a circle with this radius.
function outline(context, shape, x, y, r) {
  const side = r * 0.89, tall = r * 1.25, arm = r * 0.4;
  const corners = [
    null,
    [[-side, -side], [side, -side], [side, side], [-side, side]],
    [[0, -tall], [tall, tall * 0.8], [-tall, tall * 0.8]],
    [[0, -tall], [tall, 0], [0, tall], [-tall, 0]],
    [[-arm, -tall], [arm, -tall], [arm, -arm], [tall, -arm], [tall, arm], [arm, arm],
      [arm, tall], [-arm, tall], [-arm, arm], [-tall, arm], [-tall, -arm], [-arm, -arm]],
    [[0, tall], [tall, -tall * 0.8], [-tall, -tall * 0.8]],
    [[tall, 0], [-tall * 0.8, tall], [-tall * 0.8, -tall]],
  ][shape];
  context.beginPath();
  if (!corners) context.arc(x, y, r, 0, 2 * Math.PI);
  else corners.forEach(([dx, dy], i) => i ? context.lineTo(x + dx, y + dy) : context.moveTo(x + dx, y + dy));
  context.closePath();
}
