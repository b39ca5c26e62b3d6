"""On which axes the conflicting pairs differ: exact counts without looking at every pair. Pure numpy and polars.

A pair that differs on an axis is one that does not agree on it, and the pairs that agree lie within the groups of one
value. Accuracies that are raised by a step for each group make every pair across groups concordant, so that one count
over all cells finds the conflicts within groups. The frames called `cells` are those of `orchestrator.conflicts`.

Shape suffix: N cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from orchestrator.conflicts.axes import DEPENDENT, axes_of, comparable
from orchestrator.conflicts.counts import count_pairs
from orchestrator.conflicts.noise import Noise, noise_of
from orchestrator.conflicts.significant import count_significant

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

# More than any difference of two accuracies and its noise: 1.96 standard errors with one test image are 1.4.
STEP = 10.0
DIFFERING_SCHEMA: dict[str, type[pl.DataType]] = {
    "task": pl.String,
    "shots": pl.Int64,
    "axis": pl.String,
    "pairs": pl.Int64,
    "conflicts": pl.Int64,
    "significant": pl.Int64,
    "alone_pairs": pl.Int64,
    "alone_conflicts": pl.Int64,
    "alone_significant": pl.Int64,
    "all_pairs": pl.Int64,
    "all_conflicts": pl.Int64,
    "all_significant": pl.Int64,
}


@dataclass(frozen=True, slots=True)
class _Counts:
    """Pairs of cells, how many are conflicts, and how many of these are significant; None where noise is unknown."""

    pairs: int
    conflicts: int
    significant: int | None

    def __sub__(self, other: "_Counts") -> "_Counts":
        if self.significant is None or other.significant is None:
            return _Counts(self.pairs - other.pairs, self.conflicts - other.conflicts, None)
        significant = self.significant - other.significant
        return _Counts(self.pairs - other.pairs, self.conflicts - other.conflicts, significant)


def conflicts_by_axis(cells: pl.DataFrame) -> pl.DataFrame:
    """For every task, shots and axis: the pairs that differ on it, and those that differ on nothing else.

    `DIFFERING_SCHEMA`: `pairs`, `conflicts` and `significant` (null where the noise is unknown) are of pairs that
    differ on the axis, perhaps among others; with `alone_` of pairs that differ on it only; with `all_` of all pairs
    of the task. Cells in which an axis of an imported table is unknown are in no pair; axes that do not vary have no
    row. What depends on an axis (`DEPENDENT`: a patch size on the family) may be unset on one side of a pair.
    """
    known = axes_of(cells)
    ordered = comparable(cells, known).sort("task", "shots", "cell_id")
    # A patch size that differs only by being unset tells nothing beyond the family.
    dependent = {axis for axes in DEPENDENT.values() for axis in axes}
    values = {axis: ordered[axis].drop_nulls() if axis in dependent else ordered[axis] for axis in known}
    varying = [axis for axis in known if values[axis].n_unique() > 1]
    rows = [
        {"task": group["task"][0], "shots": group["shots"][0], **row}
        for group in ordered.partition_by("task", "shots", maintain_order=True)
        for row in _of_task(group, varying)
    ]
    return pl.DataFrame(rows, schema=DIFFERING_SCHEMA)


def _of_task(group: pl.DataFrame, axes: Sequence[str]) -> list[dict[str, Any]]:
    cells = _Cells(group, axes)
    everything = cells.within(cells.group_of([]))
    return [
        {"axis": axis}
        | _named("", everything - cells.within(cells.group_of([axis])))
        | _named("alone_", cells.alone(axis))
        | _named("all_", everything)
        for axis in axes
    ]


def _named(prefix: str, counts: _Counts) -> dict[str, int | None]:
    return {f"{prefix}{name}": getattr(counts, name) for name in _Counts.__slots__}


class _Cells:
    """One task's cells, with each axis as numbers (0 where it is not set)."""

    def __init__(self, group: pl.DataFrame, axes: Sequence[str]) -> None:
        self.us_N, self.ds_N = group["upstream"].to_numpy(), group["downstream"].to_numpy()
        self.us_rank_N, self.ds_rank_N = _ranks(self.us_N), _ranks(self.ds_N)
        self.us_noise, self.ds_noise = (noise_of(group, side, axes_of(group)) for side in ("upstream", "downstream"))
        self.place = {axis: group[axis].rank("dense").fill_null(0).to_numpy().astype(np.int64) for axis in axes}

    def group_of(self, axes: Sequence[str]) -> "Ints":
        """The number of each cell's group: cells that agree on these axes."""
        group_N = np.zeros(self.us_N.size, dtype=np.int64)
        for axis in axes:
            joint_N = group_N * (self.place[axis].max(initial=0) + 1) + self.place[axis]
            group_N = np.unique(joint_N, return_inverse=True)[1].astype(np.int64)
        return group_N

    def within(self, group_N: "Ints", rows: "Bools | None" = None) -> _Counts:
        """Counts of the pairs within the groups, among some of the cells."""
        rows = np.ones(group_N.size, dtype=np.bool_) if rows is None else rows
        sizes = np.bincount(group_N[rows]).astype(np.int64)
        # Ranks, which stay exact whatever is added to them.
        ranks = (_raised(rank_N[rows], group_N[rows], rows.size) for rank_N in (self.us_rank_N, self.ds_rank_N))
        conflicts = count_pairs(*ranks).conflicts
        return _Counts(int((sizes * (sizes - 1) // 2).sum()), conflicts, self._significant(group_N, rows))

    def alone(self, axis: str) -> _Counts:
        """Counts of the pairs that differ on this axis only."""
        loose = [other for other in DEPENDENT.get(axis, ()) if other in self.place]
        others = [other for other in self.place if other not in (axis, *loose)]
        return self._alike(others, loose) - self._alike([*others, axis], loose)

    def _alike(self, axes: Sequence[str], loose: Sequence[str]) -> _Counts:
        """Counts of the pairs that agree on the axes, and on a loose one where both have a value of it."""
        counts = self.within(self.group_of(axes))
        assert len(loose) <= 1, "of several loose axes, pairs that differ on two would be taken off twice"
        for axis in loose:
            is_set_N = self.place[axis] > 0
            apart = self.within(self.group_of(axes), is_set_N) - self.within(self.group_of([*axes, axis]), is_set_N)
            counts = counts - apart
        return counts

    def _significant(self, group_N: "Ints", rows: "Bools") -> int | None:
        if self.us_noise is None or self.ds_noise is None:
            return None
        us_N, ds_N = (_raised(side_N[rows], group_N[rows], STEP) for side_N in (self.us_N, self.ds_N))
        return count_significant(us_N, ds_N, _of_rows(self.us_noise, rows), _of_rows(self.ds_noise, rows))


def _ranks(values_N: "Floats") -> "Floats":
    return np.unique(values_N, return_inverse=True)[1].astype(np.float64)


def _raised(values_N: "Floats", group_N: "Ints", step: float) -> "Floats":
    """Values below `step`, raised so that those of a later group are higher."""
    raised_N: Floats = values_N + step * group_N
    return raised_N


def _of_rows(noise: Noise, rows: "Bools") -> Noise:
    return replace(noise, variance_N=noise.variance_N[rows], group_N=noise.group_N[rows])
