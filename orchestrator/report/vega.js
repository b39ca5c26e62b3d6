// The other charts, which Vega draws: its script is not even read before one of them comes near.
const drawnViews = new Map(), fresh = new Set();

function column(number) {
  const packed = page.columns[number];
  if (Array.isArray(packed)) return packed;
  if (packed.n) return packed.n.map(value => value === null ? null : value / page.scale);
  return Array(packed.len).fill(packed.same);
}

function rowsOf(table) {
  const names = Object.keys(table), columns = names.map(name => column(table[name]));
  const all = (columns[0] || []).map((_, i) => Object.fromEntries(names.map((name, j) => [name, columns[j][i]])));
  return all.filter(row => row.downstream !== null && row.upstream !== null && row.accuracy !== null);
}

function panelOf(figure) {
  return page.panels.find(panel => panel.kind === figure.dataset.kind && panel.name === figure.dataset.name &&
    (panel.shots === state.shots || (panel.shots === null && (panel.name === 'upstream' || panel.kind === 'measures'))));
}

function loadVega() {
  const holder = document.getElementById('vega');
  if (window.vegaEmbed || !holder) return;
  document.head.append(element('script', {}, holder.textContent));
}

// Draws a chart as it now has to be; of several wishes at once the last one stands.
async function drawChart(figure) {
  if (fresh.has(figure)) return;
  fresh.add(figure);
  loadVega();
  const panel = panelOf(figure), plot = figure.querySelector('.plot'), note = figure.querySelector('.note');
  note.textContent = panel ? panel.note : 'no values at this number of shots';
  drawnViews.get(figure)?.finalize();
  drawnViews.delete(figure);
  plot.replaceChildren();
  if (!panel) return;
  const place = plot.appendChild(element('div'));
  const made = await vegaEmbed(place, specOf(panel, figure), {
    actions: false,
    renderer: isLarge(panel) ? 'canvas' : 'svg',
    tooltip: {theme: theme()},
  });
  if (place.isConnected) drawnViews.set(figure, made);
  else made.finalize();
}

function specOf(panel, figure) {
  const spec = structuredClone(page.specs[theme()][panel.kind]);
  spec.datasets = Object.fromEntries(Object.entries(panel.tables).map(([name, table]) => [name, rowsOf(table)]));
  // Vega warns of scales without values.
  if (spec.layer) spec.layer = spec.layer.filter(layer => spec.datasets[(layer.data ?? spec.data).name]?.length);
  spec.description = `${figure.dataset.name}: ${panel.title}. ${panel.note}`;
  return spec;
}

// SVG is sharper and can be read aloud, a canvas copes with more.
function isLarge(panel) {
  return Object.values(panel.tables).some(table => column(Object.values(table)[0] ?? -1)?.length > page.canvas);
}
