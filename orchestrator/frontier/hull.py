"""The upper convex hull of accuracies: of one table, and of many bootstrap draws at once. Pure numpy.

Source: arXiv 2110.02095, Lemma 2.1: every point on the upper hull is the accuracy of a randomised classifier.

All accuracies are fractions in [0, 1]; `us` is upstream and `ds` downstream accuracy.
Shape suffixes: N points, V hull vertices, D bootstrap draws, S steps along the hull.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]
    Indices = NDArray[np.intp]

NUM_STEPS = 200
# Layers of the hull that the draws are searched in first; the few draws that reach below them are searched again.
NUM_LAYERS = 12
# Draws x points held at once (8 bytes each, about eight such arrays live at a time).
MAX_BLOCK = 1_000_000


def upper_hull(us_N: "Floats", ds_N: "Floats") -> "Indices":
    """Rows that are vertices of the upper convex hull, in order of increasing upstream accuracy (monotone chain).

    Points that lie on an edge are no vertices. Of equal points the first row stands for all.
    """
    order_N = np.lexsort((ds_N, us_N))
    us_N, ds_N = us_N[order_N], ds_N[order_N]
    first_N = np.ones(us_N.size, dtype=np.bool_)
    first_N[1:] = (np.diff(us_N) != 0) | (np.diff(ds_N) != 0)
    return order_N[first_N][_chain(us_N[first_N], ds_N[first_N])]


def rising_part(ds_V: "Floats") -> int:
    """How many vertices, from the left, rise: up to and with the first that reaches the best downstream accuracy."""
    return int(np.argmax(ds_V)) + 1 if ds_V.size else 0


def upper_hulls(us_DN: "Floats", ds_DN: "Floats", present_DN: "Bools") -> "Indices":
    """The vertices of each draw as columns of its row, left to right, padded with -1 on the right (gift wrapping).

    Args:
        us_DN: upstream accuracies; a single row serves all draws.
        ds_DN: downstream accuracies, likewise.
        present_DN: which points a draw has: at least one.

    Returns:
        (D, V) columns, where V is the largest number of vertices.
    """
    num_rows = max(1, MAX_BLOCK // present_DN.shape[1])
    starts = range(0, present_DN.shape[0], num_rows)
    blocks = [
        _wrap(
            us_DN if us_DN.shape[0] == 1 else us_DN[i : i + num_rows],
            ds_DN if ds_DN.shape[0] == 1 else ds_DN[i : i + num_rows],
            present_DN[i : i + num_rows],
        )
        for i in starts
    ]
    return stack_padded(blocks)


def resampled_hulls(us_N: "Floats", ds_N: "Floats", present_DN: "Bools") -> "Indices":
    """As `upper_hulls`, of one table of which each draw has some points; fast where N is large.

    Only the outer layers of the hull are searched, with the vertices of the next layer as ghosts that every draw has. A
    draw whose hull needs no ghost is right, since everything that was left out lies under the ghosts; the others are
    searched again in twice as many layers.
    """
    layers, num_layers = _Layers(us_N, ds_N), NUM_LAYERS
    todo_D = np.arange(present_DN.shape[0])
    found: list[Indices] = []
    rows: list[Indices] = []
    while todo_D.size:
        inner, ghosts = layers.first(num_layers)
        points = np.concatenate([inner, ghosts])
        has_DN = present_DN[np.ix_(todo_D, inner)]
        has_DN = np.concatenate([has_DN, np.ones((todo_D.size, ghosts.size), dtype=np.bool_)], axis=1)
        hulls_DV = upper_hulls(us_N[points][None], ds_N[points][None], has_DN)
        right_D = ~(hulls_DV >= inner.size).any(axis=1)
        found.append(np.where(hulls_DV >= 0, points[hulls_DV], -1)[right_D])
        rows.append(todo_D[right_D])
        todo_D, num_layers = todo_D[~right_D], 2 * num_layers
    return stack_padded(found)[np.argsort(np.concatenate(rows), kind="stable")]


def steps_along(us_DV: "Floats", ds_DV: "Floats", num_D: "Indices") -> tuple["Floats", "Floats"]:
    """Accuracies at 200 equal upstream steps along each hull, from its first vertex to its last.

    Args:
        us_DV: upstream accuracies of the vertices, left to right.
        ds_DV: downstream accuracies of the vertices.
        num_D: how many vertices each row has, at least one; what stands to their right is not read.

    Returns:
        us_DS and ds_DS.
    """
    rows_D1 = np.arange(num_D.size)[:, None]
    last_D1 = num_D[:, None] - 1
    us_DS = np.linspace(us_DV[:, 0], us_DV[rows_D1, last_D1][:, 0], NUM_STEPS, axis=1)
    inside_DV = np.arange(us_DV.shape[1]) <= last_D1
    left_DS = (np.where(inside_DV, us_DV, np.inf)[:, :, None] <= us_DS[:, None, :]).sum(axis=1) - 1
    left_DS = np.clip(left_DS, 0, np.maximum(last_D1 - 1, 0))
    right_DS = np.minimum(left_DS + 1, last_D1)
    low_DS, width_DS = us_DV[rows_D1, left_DS], us_DV[rows_D1, right_DS] - us_DV[rows_D1, left_DS]
    part_DS = np.divide(us_DS - low_DS, width_DS, where=width_DS > 0, out=np.zeros_like(us_DS))
    ds_DS = (1.0 - part_DS) * ds_DV[rows_D1, left_DS] + part_DS * ds_DV[rows_D1, right_DS]
    return us_DS, ds_DS


def stack_padded(blocks: "list[Indices]") -> "Indices":
    """Rows of columns below one another, padded with -1 to the widest."""
    width = max(block.shape[1] for block in blocks)
    padded = [np.pad(block, ((0, 0), (0, width - block.shape[1])), constant_values=-1) for block in blocks]
    return np.concatenate(padded)


class _Layers:
    """The layers of the upper hull, peeled as far as they are asked for."""

    def __init__(self, us_N: "Floats", ds_N: "Floats") -> None:
        # Sorted once: a layer of sorted points needs no sorting.
        order_N = np.lexsort((ds_N, us_N))
        self._us_N, self._ds_N, self._rest = us_N, ds_N, order_N
        self._peeled: list[Indices] = []

    def first(self, num_layers: int) -> "tuple[Indices, Indices]":
        """Points of the first layers, and those of the next one."""
        while len(self._peeled) <= num_layers and self._rest.size:
            layer = np.array(_chain(self._us_N[self._rest], self._ds_N[self._rest]))
            self._peeled.append(self._rest[layer])
            self._rest = np.delete(self._rest, layer)
        inner = self._peeled[:num_layers]
        ghosts = self._peeled[num_layers : num_layers + 1] or [np.empty(0, dtype=np.intp)]
        return np.concatenate(inner), ghosts[0]


def _wrap(us_DN: "Floats", ds_DN: "Floats", present_DN: "Bools") -> "Indices":
    # What is absent lies to the left of everything, so that it is never ahead.
    us_DN = np.where(present_DN, us_DN, -np.inf)
    ds_DN = np.broadcast_to(ds_DN, present_DN.shape)
    left_D1 = np.where(present_DN, us_DN, np.inf).min(axis=1, keepdims=True)
    at_D = np.where(us_DN == left_D1, ds_DN, -np.inf).argmax(axis=1)
    right_D = us_DN.max(axis=1)
    columns, num_draws, rows = [at_D], at_D.size, np.arange(at_D.size)
    while True:
        has_more_D = right_D[rows] > us_DN[np.arange(rows.size), at_D]
        if not has_more_D.all():
            rows, us_DN, ds_DN, at_D = rows[has_more_D], us_DN[has_more_D], ds_DN[has_more_D], at_D[has_more_D]
        if not rows.size:
            return np.stack(columns, axis=1)
        at_D = _next_vertex(us_DN, ds_DN, at_D)
        column = np.full(num_draws, -1)
        column[rows] = at_D
        columns.append(column)


def _next_vertex(us_DN: "Floats", ds_DN: "Floats", at_D: "Indices") -> "Indices":
    """The point ahead of each row's vertex to which the line is steepest; of points on one line, the farthest."""
    rows = np.arange(at_D.size)
    best_D: Indices
    dx_DN, dy_DN = us_DN - us_DN[rows, at_D][:, None], ds_DN - ds_DN[rows, at_D][:, None]
    slope_DN = np.divide(dy_DN, dx_DN, where=dx_DN > 0, out=np.full(dx_DN.shape, -np.inf))
    best_D = slope_DN.argmax(axis=1)
    best_D1 = best_D[:, None]
    steepest_D1 = np.take_along_axis(slope_DN, best_D1, 1)
    # Rows where another point may lie on the line up to rounding.
    bx_D1, by_D1 = np.take_along_axis(dx_DN, best_D1, 1), np.take_along_axis(dy_DN, best_D1, 1)
    slack_D1 = 1e-14 * (2.0 + abs(by_D1) / bx_D1) * (1.0 + 1.0 / bx_D1)
    shared_D = np.count_nonzero(slope_DN >= steepest_D1 - slack_D1, axis=1) > 1
    if shared_D.any():
        bx_D1, by_D1, dx_DN, dy_DN = bx_D1[shared_D], by_D1[shared_D], dx_DN[shared_D], dy_DN[shared_D]
        # As in `_is_above`: what the steepest point lies above is not on the line.
        with np.errstate(invalid="ignore"):
            above_DN = by_D1 * dx_DN - bx_D1 * dy_DN > 1e-15 * (bx_D1 + abs(by_D1) + dx_DN + abs(dy_DN))
        best_D[shared_D] = np.where(~above_DN & (dx_DN >= bx_D1), dx_DN, -np.inf).argmax(axis=1)
    return best_D


def _chain(us_N: "Floats", ds_N: "Floats") -> list[int]:
    """Vertices of points that are sorted by upstream, then downstream accuracy."""
    # A vertex tops every point on its left (rising part) or every point on its right (falling part). This leaves
    # some tens of 1,500 points for the loop.
    best_left_N = np.concatenate([[-np.inf], np.maximum.accumulate(ds_N)[:-1]])
    best_right_N = np.concatenate([np.maximum.accumulate(ds_N[::-1])[-2::-1], [-np.inf]])
    candidates = np.flatnonzero((ds_N > best_left_N) | (ds_N > best_right_N)) if ds_N.size else np.arange(0)
    points = list(zip(us_N[candidates].tolist(), ds_N[candidates].tolist(), strict=True))
    stack: list[int] = []
    for i, point in enumerate(points):
        while stack and points[stack[-1]][0] == point[0]:
            stack.pop()
        while len(stack) > 1 and not _is_above(points[stack[-2]], points[stack[-1]], point):
            stack.pop()
        stack.append(i)
    return [int(candidates[i]) for i in stack]


def _is_above(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether b lies above the line from a to c by more than rounding of accuracies near 1 can feign."""
    abx, aby, acx, acy = b[0] - a[0], b[1] - a[1], c[0] - a[0], c[1] - a[1]
    return aby * acx - abx * acy > 1e-15 * (abx + abs(aby) + acx + abs(acy))
