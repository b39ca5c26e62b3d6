// Which two cells to mix for a chosen upstream accuracy: the arithmetic of frontier/recipe.py, on the hull's vertices.
(() => {
  'use strict';
  const [CELL, UPSTREAM, DOWNSTREAM, AXES] = [0, 1, 2, 3];

  function recipe(hull, upstream) {
    const at = hull.findIndex(vertex => vertex[UPSTREAM] >= upstream);
    const right = hull[at], left = right[UPSTREAM] === upstream ? right : hull[at - 1];
    const p = left === right ? 1 : (right[UPSTREAM] - upstream) / (right[UPSTREAM] - left[UPSTREAM]);
    return {left, right, p, downstream: p * left[DOWNSTREAM] + (1 - p) * right[DOWNSTREAM]};
  }

  function link(vertex) {
    const anchor = document.createElement('a');
    anchor.href = `#cell-${vertex[CELL]}`;
    anchor.title = vertex[AXES];
    anchor.append(Object.assign(document.createElement('code'), {textContent: vertex[CELL]}));
    return anchor;
  }

  // A number to three digits, with all of them in its value.
  function number(value) {
    return Object.assign(document.createElement('data'), {value: String(value), textContent: value.toFixed(3)});
  }

  for (const label of document.querySelectorAll('.choose')) {
    const slider = label.querySelector('input'), mix = label.parentElement.querySelector('.mix');
    const hull = JSON.parse(slider.dataset.hull);
    label.hidden = false;
    slider.addEventListener('input', () => {
      const upstream = Number(slider.value), found = recipe(hull, upstream);
      const cells = found.left === found.right ? ['take ', link(found.left)]
        : ['mix ', link(found.left), ' (p = ', number(found.p), ') with ', link(found.right),
          ' (p = ', number(1 - found.p), ')'];
      mix.replaceChildren(...cells, ' for ', number(found.downstream), ' at ', number(upstream), ' upstream.');
    });
  }
})();
