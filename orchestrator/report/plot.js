// One plot of downstream against upstream accuracy: axes and band below, points on a canvas, hull and law above.
const MARGIN = {left: 46, right: 10, top: 10, bottom: 36};
const PAD = 8; // pixels between the outermost point and the frame
const CROWD = 200; // cells from which points become fainter

function svg(tag, attributes = {}, ...inside) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...inside);
  return made;
}

// Round numbers between two ends, about this many, with the decimals that they need.
function ticks(low, high, about) {
  const raw = (high - low) / about, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(times => times * power).find(one => one >= raw * 0.999);
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const values = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) values.push(i * step);
  return values.map(value => ({value, text: value.toFixed(decimals)}));
}

// A scale from accuracies to pixels with room at both ends.
function scale(low, high, from, to) {
  if (!(high > low)) [low, high] = [low - 0.05, high + 0.05];
  const room = (high - low) * PAD / (Math.abs(to - from) - 2 * PAD);
  [low, high] = [low - room, high + room];
  const at = value => from + (value - low) / (high - low) * (to - from);
  return {at, low, high};
}

function makePlot(figure) {
  const holder = figure.querySelector('.plot');
  const canvas = element('canvas', {'aria-hidden': 'true'});
  const under = svg('svg', {'aria-hidden': 'true'}), over = svg('svg', {'aria-hidden': 'true'});
  holder.append(under, canvas, over);
  for (const [name, value] of Object.entries({
    tabindex: '0', role: 'application', 'aria-roledescription': 'plot', 'aria-describedby': 'plot-keys',
  })) holder.setAttribute(name, value);
  const vertices = element('details', {class: 'vertices'}, element('summary'), element('ol'));
  vertices.addEventListener('toggle', () => {
    if (!vertices.open) return;
    if (plot.stale) drawPlot(plot);
    listVertices(plot);
  });
  figure.append(vertices);
  const plot = {
    figure, holder, canvas, under, over, vertices, task: figure.dataset.name, stale: true, near: false, at: null,
  };
  return plot;
}

// Draws a plot as large as its place, its points with so many pixels for one of the page.
function drawPlot(plot, density = window.devicePixelRatio || 1) {
  const shown = shownOn(plot.task), box = plot.holder;
  plot.stale = false;
  plot.shown = shown;
  plot.width = box.clientWidth;
  plot.height = box.clientHeight;
  writeNote(plot);
  plot.under.replaceChildren();
  plot.over.replaceChildren();
  plot.canvas.width = plot.canvas.height = 0;
  if (!shown?.present.length || !plot.width) return;
  for (const layer of [plot.under, plot.over]) layer.setAttribute('viewBox', `0 0 ${plot.width} ${plot.height}`);
  setScales(plot);
  drawAxes(plot);
  drawBand(plot);
  drawPoints(plot, density);
  drawLines(plot);
  drawMarks(plot);
  if (plot.vertices.open) listVertices(plot);
}

function lawParts(shown) {
  return Object.entries(shown.answer?.law ?? {}).filter(([part]) => part !== 'beyond' || state.beyond);
}

function setScales(plot) {
  const {shown, width, height} = plot, [left, right] = upstreamSpan();
  const ys = [...(shown.answer?.band ?? []), ...lawParts(shown).flatMap(([, curve]) => curve[1])];
  let low = Math.min(...ys), high = Math.max(...ys);
  for (const cell of shown.present) {
    low = Math.min(low, shown.ds[cell]);
    high = Math.max(high, shown.ds[cell]);
  }
  plot.x = scale(left, state.beyond ? 1 : right, MARGIN.left, width - MARGIN.right);
  plot.y = scale(low, high, height - MARGIN.bottom, MARGIN.top);
}

function drawAxes(plot) {
  const {under, x, y, width, height} = plot;
  const bottom = height - MARGIN.bottom, right = width - MARGIN.right;
  for (const {value, text} of ticks(x.low, x.high, Math.max(2, width / 60))) {
    under.append(
      svg('line', {class: 'grid', x1: x.at(value), x2: x.at(value), y1: MARGIN.top, y2: bottom}),
      svg('text', {x: x.at(value), y: bottom + 13, 'text-anchor': 'middle'}, text),
    );
  }
  for (const {value, text} of ticks(y.low, y.high, Math.max(2, height / 40))) {
    under.append(
      svg('line', {class: 'grid', x1: MARGIN.left, x2: right, y1: y.at(value), y2: y.at(value)}),
      svg('text', {x: MARGIN.left - 6, y: y.at(value) + 3.5, 'text-anchor': 'end'}, text),
    );
  }
  const middle = (MARGIN.top + bottom) / 2;
  under.append(
    svg('path', {class: 'axis', d: `M${MARGIN.left} ${MARGIN.top}V${bottom}H${right}`}),
    svg('text', {x: (MARGIN.left + right) / 2, y: height - 6, 'text-anchor': 'middle'}, 'upstream accuracy'),
    svg('text', {transform: `translate(10 ${middle}) rotate(-90)`, 'text-anchor': 'middle'}, 'downstream accuracy'),
  );
}

// The interval of the saturation value, and the value.
function drawBand({under, shown, x, y, width}) {
  if (!shown.answer?.band) return;
  const [value, low, high] = shown.answer.band, right = width - MARGIN.right;
  const top = y.at(high), tall = Math.max(1, y.at(low) - top);
  under.append(
    svg('rect', {class: 'band', x: MARGIN.left, width: right - MARGIN.left, y: top, height: tall}),
    svg('line', {class: 'saturation', x1: MARGIN.left, x2: right, y1: y.at(value), y2: y.at(value)}),
  );
}

function drawPoints(plot, density) {
  const {canvas, shown, x, y, width, height} = plot, context = canvas.getContext('2d');
  canvas.width = Math.round(width * density);
  canvas.height = Math.round(height * density);
  context.scale(density, density);
  const crowded = cells.ids.length > CROWD, muted = ink('--muted');
  // By id, which is a hash: in the order of families the last one would cover the others.
  const order = [...shown.present].sort((a, b) => a - b);
  for (const matching of [false, true]) {
    context.globalAlpha = !matching ? 0.15 : crowded ? 0.6 : 0.85;
    for (const cell of order) {
      if (isMatching(cell) !== matching) continue;
      const {colour, shape, hollow} = lookOf(cell);
      outline(context, matching ? shape : 0, x.at(shown.us[cell]), y.at(shown.ds[cell]), sizes[cell]);
      if (hollow && matching) {
        context.strokeStyle = colour;
        context.stroke();
      } else {
        context.fillStyle = matching ? colour : muted;
        context.fill();
      }
    }
  }
}

function path(us, ds, {x, y}) {
  return us.map((u, i) => `${i ? 'L' : 'M'}${x.at(u).toFixed(2)} ${y.at(ds[i]).toFixed(2)}`).join('');
}

function drawLines(plot) {
  const {over, shown, x, y} = plot, {us, ds, hull} = shown;
  over.append(svg('path', {class: 'hull', d: path(hull.map(cell => us[cell]), hull.map(cell => ds[cell]), plot)}));
  for (const cell of hull) over.append(svg('circle', {class: 'vertex', cx: x.at(us[cell]), cy: y.at(ds[cell]), r: 2}));
  for (const [part, curve] of lawParts(shown)) over.append(svg('path', {class: `law ${part}`, d: path(...curve, plot)}));
}

// Rings round the pinned cells and the one that is pointed at.
function drawMarks(plot) {
  const {over, shown, x, y} = plot;
  for (const old of over.querySelectorAll('.mark')) old.remove();
  if (!shown?.present.length || !x) return;
  const ring = (cell, name, text) => {
    const at = {x: x.at(shown.us[cell]), y: y.at(shown.ds[cell])}, radius = sizes[cell] + 4;
    // Above the point, or below it where the frame's top is near.
    const place = at.y < MARGIN.top + 18 ? at.y + radius + 12 : at.y - radius - 3;
    over.append(svg('g', {class: `mark ${name}`},
      svg('circle', {cx: at.x, cy: at.y, r: radius}),
      ...(text ? [svg('text', {x: at.x, y: place, 'text-anchor': 'middle'}, text)] : []),
    ));
  };
  for (const {cell, mark} of pins) if (has(shown, cell)) ring(cell, 'pinned', mark);
  if (plot.at !== null && has(shown, plot.at)) ring(plot.at, 'pointed', '');
}

function has(shown, cell) {
  return shown !== null && shown.us[cell] === shown.us[cell] && shown.ds[cell] === shown.ds[cell];
}

function writeNote(plot) {
  const {figure, holder, vertices, shown, task} = plot, note = figure.querySelector('.note');
  const points = shown ? plural(shown.present.length, 'cell') : '';
  note.textContent = !shown ? 'no values at this choice' : shown.answer?.note ?? points;
  vertices.hidden = !shown?.present.length;
  vertices.querySelector('summary').textContent = shown ? `Hull: ${plural(shown.hull.length, 'vertex', 'vertices')}` : '';
  holder.setAttribute('aria-label', `${task}: downstream against upstream accuracy. ${points}. ${note.textContent}`);
}

function plural(count, one, many = `${one}s`) {
  return `${count.toLocaleString('en')} ${count === 1 ? one : many}`;
}

// The vertices of the hull as text, each a link where the page tells more of the cell.
function listVertices({vertices, shown}) {
  if (!shown) return;
  const items = shown.hull.map(cell => element('li', {}, cellLink(cell), element('small', {},
    ` ${shown.us[cell].toFixed(4)} upstream, ${shown.ds[cell].toFixed(4)} downstream; ${axesText(cell)}`)));
  vertices.querySelector('ol').replaceChildren(...items);
}
