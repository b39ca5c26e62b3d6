"""What the page looks like and how it behaves: its style sheet and its script."""

CSS = """
:root{color-scheme:light dark;--bg:#fff;--ink:#1b1b1b;--muted:#5c5c5c;--line:#dcdcdc;--panel:#fafaf8;--bar:#cfe3f1;
--accent:#0060a0;--f0:#0072B2;--f1:#D55E00;--f2:#009E73;--f3:#CC79A7;--f4:#E69F00;--f5:#56B4E9;--f6:#6b6b6b}
@media(prefers-color-scheme:dark){:root{--bg:#151718;--ink:#ececec;--muted:#a9a9a9;--line:#383c3e;--panel:#1c1f20;
--bar:#1f4560;--accent:#7cc0ef;--f0:#56B4E9;--f1:#E69F00;--f2:#2fbf95;--f3:#CC79A7;--f4:#F0E442;--f5:#D55E00;--f6:#a0a0a0}}
*{box-sizing:border-box}
html{scroll-padding-top:5rem;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif}
main,header,footer{max-width:74rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:1.75rem}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .25rem}
h2{font-size:1.3rem;margin:2.5rem 0 .5rem;padding-top:.75rem;border-top:1px solid var(--line)}
section:first-of-type h2{border:0;margin-top:1rem}
h3{font-size:1rem;margin:1.5rem 0 .5rem}
p{max-width:46rem;margin:.5rem 0}
a{color:var(--accent)}
nav{display:flex;flex-wrap:wrap;gap:.15rem 1rem;font-size:.9rem;margin:.75rem 0}
code,pre{font:.85em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--panel);
border:1px solid var(--line);padding:.6rem .8rem;margin:.75rem 0 .25rem}
small,.note,.by{color:var(--muted);font-size:.85rem}
.unsure{color:var(--muted)}
.empty{color:var(--muted);font-style:italic}
.answers{padding:0;margin:1rem 0;list-style:none}
.answers li{padding:.3rem 0;border-bottom:1px solid var(--line);overflow-wrap:anywhere}
#shots{position:sticky;top:0;z-index:5;background:var(--bg);border:solid var(--line);border-width:0 0 1px;margin:0;
padding:.5rem 0;display:flex;flex-wrap:wrap;align-items:center;gap:.25rem .5rem;font-size:.95rem}
#shots[hidden]{display:none}
#shots label{border:1px solid var(--line);border-radius:1rem;padding:.1rem .75rem;cursor:pointer}
#shots label:has(:checked){background:var(--accent);border-color:var(--accent);color:var(--bg)}
#shots label:has(:focus-visible){outline:2px solid var(--accent);outline-offset:2px}
#shots input{position:absolute;opacity:0;pointer-events:none}
.option{font-size:.9rem}
.legend{display:flex;flex-wrap:wrap;gap:.25rem 1.1rem;font-size:.9rem;align-items:center}
.legend span{display:inline-flex;align-items:center;gap:.35rem}
.symbol{width:.75rem;height:.75rem;display:inline-block;background:var(--muted)}
.shape0{border-radius:50%}.shape2{clip-path:polygon(50% 0,100% 100%,0 100%)}
.shape3{clip-path:polygon(50% 0,100% 50%,50% 100%,0 50%)}
.shape4{clip-path:polygon(35% 0,65% 0,65% 35%,100% 35%,100% 65%,65% 65%,65% 100%,35% 100%,35% 65%,0 65%,0 35%,35% 35%)}
.shape5{clip-path:polygon(0 0,100% 0,50% 100%)}.shape6{clip-path:polygon(0 0,100% 50%,0 100%)}
.small{width:.4rem;height:.4rem}.large{width:.85rem;height:.85rem}
.family0{background:var(--f0)}.family1{background:var(--f1)}.family2{background:var(--f2)}.family3{background:var(--f3)}
.family4{background:var(--f4)}.family5{background:var(--f5)}.family6{background:var(--f6)}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr));gap:1rem;margin:1rem 0}
figure{margin:0;min-width:0;display:flex;flex-direction:column}
.charts figure{border:1px solid var(--line);border-radius:6px;padding:.6rem .7rem .3rem;background:var(--panel)}
figcaption{flex:1}
figcaption h3{margin:0;overflow-wrap:anywhere}
figcaption .note{margin:.1rem 0 .3rem;line-height:1.35}
.plot{min-height:13rem;width:100%}
.wide .plot{overflow-x:auto;min-height:0}
.plot .vega-embed{width:100%;display:block}
.caption{color:var(--muted);font-size:.85rem;margin:.9rem 0 0}
.scroll{overflow-x:auto;margin:.25rem 0 .75rem;max-width:100%}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;vertical-align:top;padding:.25rem .9rem .25rem 0;border-bottom:1px solid var(--line)}
thead th{vertical-align:bottom;font-weight:600}
tbody th{font-weight:500;white-space:nowrap}
.verdict{width:12.5rem;line-height:1.35;overflow-wrap:anywhere}.cell{min-width:12rem;line-height:1.35}
.line{white-space:nowrap}
.number{text-align:right;white-space:nowrap}
thead .number{white-space:normal}
.bar{display:inline-block;min-width:7rem;padding:0 .3rem;
background:linear-gradient(var(--bar),var(--bar)) no-repeat right/0 100%}
details{margin:.75rem 0}summary{cursor:pointer}
.files{columns:20rem;font-size:.9rem}
footer{color:var(--muted);font-size:.85rem;padding:1rem 1.25rem 3rem}
#vg-tooltip-element{font-size:12px!important;max-width:22rem}
#vg-tooltip-element td.value{max-width:17rem!important;white-space:normal!important;overflow-wrap:anywhere}
@media print{#shots,nav{display:none}}
"""

SCRIPT = """
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
"""
