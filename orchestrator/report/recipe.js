// Which two cells to mix for a chosen upstream accuracy: the arithmetic of frontier/recipe.py, on the hull's vertices.
(() => {
  'use strict';
  const [UPSTREAM, DOWNSTREAM] = [0, 1];

  function recipe(hull, upstream) {
    const right = hull.findIndex(vertex => vertex[UPSTREAM] >= upstream);
    const left = hull[right][UPSTREAM] === upstream ? right : right - 1;
    const [a, b] = [hull[left], hull[right]];
    const p = left === right ? 1 : (b[UPSTREAM] - upstream) / (b[UPSTREAM] - a[UPSTREAM]);
    return {left, right, p, downstream: p * a[DOWNSTREAM] + (1 - p) * b[DOWNSTREAM]};
  }

  // A number to three digits, with all of them in its value.
  function number(value) {
    return Object.assign(document.createElement('data'), {value: String(value), textContent: value.toFixed(3)});
  }

  // What the mix at one of the slider's steps truly reaches; nothing where the sizes of the test sets are unknown.
  function truly({min, step, value, dataset: {low, high}}) {
    if (low === undefined) return '';
    const at = Math.round((value - min) / step);
    return ` (truly ${low.split(' ')[at]} to ${high.split(' ')[at]})`;
  }

  for (const label of document.querySelectorAll('.choose')) {
    const slider = label.querySelector('input'), item = label.closest('li');
    const mix = item.querySelector('.mix'), cells = item.querySelector('template').content.children;
    const hull = JSON.parse(slider.dataset.hull);
    const cell = vertex => cells[vertex].cloneNode(true);
    label.hidden = false;
    slider.addEventListener('input', () => {
      const upstream = Number(slider.value), found = recipe(hull, upstream);
      const mixed = found.left === found.right ? ['take ', cell(found.left)]
        : ['mix ', cell(found.left), ' (p = ', number(found.p), ') with ', cell(found.right),
          ' (p = ', number(1 - found.p), ')'];
      const reached = [' for ', number(found.downstream), ` as measured${truly(slider)} at `, number(upstream), ' upstream.'];
      mix.replaceChildren(...mixed, ...reached);
    });
  }
})();
