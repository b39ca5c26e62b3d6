// The upper hull, step for step as orchestrator/frontier/hull.py finds it: the same vertices of the same numbers.
function upperHull(us, ds, present) {
  const sorted = [...present].sort((a, b) => us[a] - us[b] || ds[a] - ds[b] || a - b);
  const order = sorted.filter((cell, i) => !i || us[cell] !== us[sorted[i - 1]] || ds[cell] !== ds[sorted[i - 1]]);
  // A vertex tops every point on its left or every point on its right.
  const tops = new Set();
  for (const way of [order, [...order].reverse()]) {
    let best = -Infinity;
    for (const cell of way) {
      if (ds[cell] > best) tops.add(cell);
      best = Math.max(best, ds[cell]);
    }
  }
  const stack = [];
  for (const cell of order.filter(one => tops.has(one))) {
    while (stack.length && us[stack.at(-1)] === us[cell]) stack.pop();
    while (stack.length > 1 && !isAbove(us, ds, stack.at(-2), stack.at(-1), cell)) stack.pop();
    stack.push(cell);
  }
  return stack;
}

// Whether b lies above the line from a to c by more than rounding can feign.
function isAbove(us, ds, a, b, c) {
  const abx = us[b] - us[a], aby = ds[b] - ds[a], acx = us[c] - us[a], acy = ds[c] - ds[a];
  return aby * acx - abx * acy > 1e-15 * (abx + Math.abs(aby) + acx + Math.abs(acy));
}
