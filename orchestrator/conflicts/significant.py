"""Significant conflicts and the strongest ones, exact without looking at every pair. Pure numpy.

Shape suffixes: N cells, M cells of one group, L blocks of cells, K conflicting pairs.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.conflicts.counts import count_from

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from orchestrator.conflicts.noise import Noise

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

# Each group costs a pass over all cells; of more groups than this, blocks are compared.
MAX_GROUPS = 16
BLOCK_CELLS = 128


@dataclass(frozen=True, slots=True)
class Pairs:
    """K conflicting pairs: row `ahead` is better upstream, row `behind` better downstream; z in standard errors.

    z is NaN on a side without noise. `strength` is the smaller z, or the smaller difference where a z is NaN.
    """

    ahead: "Ints"
    behind: "Ints"
    us_gain: "Floats"
    ds_loss: "Floats"
    us_z: "Floats"
    ds_z: "Floats"

    @property
    def strength(self) -> "Floats":
        """How strong each pair is."""
        z_K = np.minimum(self.us_z, self.ds_z)
        strength_K: Floats = np.where(np.isnan(z_K), np.minimum(self.us_gain, self.ds_loss), z_K)
        return strength_K

    def take(self, rows: "Ints") -> "Pairs":
        """Some of the pairs."""
        return Pairs(*(getattr(self, name)[rows] for name in self.__slots__))


def count_significant(us_N: "Floats", ds_N: "Floats", us_noise: "Noise", ds_noise: "Noise") -> int:
    """Conflicts in which both differences exceed their noise.

    Exact, but for differences that equal their noise up to rounding. O(G n log n) for G groups of cells with equal
    test-set sizes; with more than 16 groups blocks of cells are compared, and pairs only where a block does not settle
    it.
    """
    group_N = us_noise.group_N * (ds_noise.group_N.max(initial=0) + 1) + ds_noise.group_N
    groups = np.unique(group_N)
    if groups.size > MAX_GROUPS:
        return _count_by_blocks(_Blocks(us_N, ds_N, us_noise, ds_noise))
    return sum(_count_behind(us_N, ds_N, us_noise, ds_noise, np.flatnonzero(group_N == group)) for group in groups)


def strongest(us_N: "Floats", ds_N: "Floats", us_noise: "Noise | None", ds_noise: "Noise | None", limit: int) -> Pairs:
    """The `limit` strongest conflicts, strongest first, equal ones by row.

    Blocks of cells are taken in the order of the strongest pair that they can hold, until none can hold a stronger one.
    """
    blocks = _Blocks(us_N, ds_N, us_noise, ds_noise)
    bound_LL = blocks.strength_bound
    kept = blocks.pairs(0, np.arange(0))
    for flat in np.argsort(-bound_LL, axis=None, kind="stable"):
        ahead, behind = divmod(int(flat), bound_LL.shape[0])
        if bound_LL[ahead, behind] <= 0 or (kept.ahead.size == limit and bound_LL[ahead, behind] < kept.strength.min()):
            break
        kept = _top(kept, blocks.pairs(ahead, blocks.rows[behind]), limit)
    return kept


def _top(kept: Pairs, more: Pairs, limit: int) -> Pairs:
    both = Pairs(*(np.concatenate([getattr(kept, name), getattr(more, name)]) for name in Pairs.__slots__))
    return both.take(np.lexsort((both.behind, both.ahead, -both.strength))[:limit])


def _count_behind(us_N: "Floats", ds_N: "Floats", us_noise: "Noise", ds_noise: "Noise", member_M: "Ints") -> int:
    """Significant conflicts of every cell with the members of one group that are behind it upstream.

    Within a group, those that are significantly lower than a cell are all below one bound, since
    (a - b)^2 - z^2 (var(a) + var(b)) is convex in b and not positive at b = a; where var(b) is constant, near 0 and 1,
    it falls towards a.
    """
    rising_M, falling_M = member_M[np.argsort(us_N[member_M])], member_M[np.argsort(-ds_N[member_M])]
    num_lower_N = _num_beyond(us_N, us_noise, rising_M, 1.0)
    num_higher_N = _num_beyond(ds_N, ds_noise, falling_M, -1.0)
    place_N = np.zeros(us_N.size, dtype=np.int64)
    place_N[falling_M] = np.arange(falling_M.size)
    return int((num_lower_N - count_from(place_N[rising_M], num_lower_N, num_higher_N)).sum())


def _num_beyond(accuracy_N: "Floats", noise: "Noise", order_M: "Ints", sign: float) -> "Ints":
    """For every cell, how many of the first members are significantly lower (`sign` 1) or higher (-1): bisection."""
    low_N = np.zeros(accuracy_N.size, dtype=np.int64)
    high_N = np.full(accuracy_N.size, order_M.size, dtype=np.int64)
    for _ in range(int(order_M.size).bit_length()):
        middle_N = (low_N + high_N) // 2
        member_N = order_M[np.minimum(middle_N, order_M.size - 1)]
        gap_N = sign * (accuracy_N - accuracy_N[member_N])
        error_N = np.sqrt(noise.variance_N + noise.variance_N[member_N])
        beyond_N = (gap_N > noise.num_errors * error_N) & (middle_N < high_N)
        low_N, high_N = np.where(beyond_N, middle_N + 1, low_N), np.where(beyond_N, high_N, middle_N)
    return low_N


def _count_by_blocks(blocks: "_Blocks") -> int:
    sure_LL, possible_LL = blocks.settled
    size_L = np.array([rows.size for rows in blocks.rows])
    total = int(size_L @ sure_LL @ size_L)
    for ahead, open_L in enumerate(possible_LL & ~sure_LL):
        if open_L.any():
            pairs = blocks.pairs(ahead, np.concatenate([blocks.rows[i] for i in np.flatnonzero(open_L)]))
            total += int(((pairs.us_z > blocks.us.num_errors) & (pairs.ds_z > blocks.ds.num_errors)).sum())
    return total


@dataclass(frozen=True, slots=True)
class _Side:
    """One side of the cells, and for each block the range of its accuracies and variances."""

    accuracy_N: "Floats"
    variance_N: "Floats"
    num_errors: float
    low_L: "Floats"
    high_L: "Floats"
    low_variance_L: "Floats"
    high_variance_L: "Floats"


class _Blocks:
    """Cells that lie near one another in both accuracies, with what each pair of blocks can hold."""

    def __init__(self, us_N: "Floats", ds_N: "Floats", us_noise: "Noise | None", ds_noise: "Noise | None") -> None:
        self.rows = list(_near(us_N, ds_N))
        self.us, self.ds = (self._side(accuracy_N, noise) for accuracy_N, noise in ((us_N, us_noise), (ds_N, ds_noise)))

    def _side(self, accuracy_N: "Floats", noise: "Noise | None") -> _Side:
        variance_N = np.full(accuracy_N.size, np.nan) if noise is None else noise.variance_N
        ends = [
            np.array([end(values_N[rows]) for rows in self.rows])
            for values_N in (accuracy_N, variance_N)
            for end in (np.min, np.max)
        ]
        return _Side(accuracy_N, variance_N, np.nan if noise is None else noise.num_errors, *ends)

    @cached_property
    def strength_bound(self) -> "Floats":
        """No pair with `ahead` in the block of a row and `behind` in that of a column is stronger; 0 for none."""
        us_gap_LL, ds_gap_LL = _largest_gaps(self.us, self.ds)
        us_z_LL, ds_z_LL = (
            _in_errors(gap_LL, side.low_variance_L[:, None] + side.low_variance_L)
            for gap_LL, side in ((us_gap_LL, self.us), (ds_gap_LL, self.ds))
        )
        z_LL = np.minimum(us_z_LL, ds_z_LL)
        bound_LL = np.where(np.isnan(z_LL), np.minimum(us_gap_LL, ds_gap_LL), z_LL)
        bound: Floats = np.where((us_gap_LL > 0) & (ds_gap_LL > 0), bound_LL, 0.0)
        return bound

    @property
    def settled(self) -> "tuple[Bools, Bools]":
        """Pairs of blocks of which every pair of cells is significant, and those that may hold such a pair."""
        sure_LL, possible_LL = np.array(True), np.array(True)
        smallest = _smallest_gaps(self.us, self.ds)
        for side, small_LL, large_LL in zip((self.us, self.ds), smallest, _largest_gaps(self.us, self.ds), strict=True):
            low_LL, high_LL = (v_L[:, None] + v_L for v_L in (side.low_variance_L, side.high_variance_L))
            # In standard errors like the pairs themselves, so that rounding falls the same way.
            sure_LL = sure_LL & (small_LL > 0) & (_in_errors(small_LL, high_LL) > side.num_errors)
            possible_LL = possible_LL & (large_LL > 0) & (_in_errors(large_LL, low_LL) > side.num_errors)
        return sure_LL, possible_LL

    def pairs(self, ahead: int, behind_B: "Ints") -> Pairs:
        """The conflicting pairs with `ahead` in that block and `behind` among these rows."""
        ahead_A = self.rows[ahead] if self.rows else np.arange(0)
        us_N, ds_N = self.us.accuracy_N, self.ds.accuracy_N
        gain_AB, loss_AB = us_N[ahead_A, None] - us_N[behind_B], ds_N[behind_B] - ds_N[ahead_A, None]
        row_K, column_K = np.nonzero((gain_AB > 0) & (loss_AB > 0))
        ahead_K, behind_K = ahead_A[row_K], behind_B[column_K]
        gain_K, loss_K = gain_AB[row_K, column_K], loss_AB[row_K, column_K]
        us_z_K, ds_z_K = (
            _in_errors(gap_K, side.variance_N[ahead_K] + side.variance_N[behind_K])
            for gap_K, side in ((gain_K, self.us), (loss_K, self.ds))
        )
        return Pairs(ahead_K, behind_K, gain_K, loss_K, us_z_K, ds_z_K)


def _near(us_N: "Floats", ds_N: "Floats") -> "Iterator[Ints]":
    """Rows in blocks: slices of equal size by upstream accuracy, and each of them by downstream accuracy."""
    num_blocks = -(-us_N.size // BLOCK_CELLS)
    num_slices = max(1, round(num_blocks**0.5))
    for rows in np.array_split(np.argsort(us_N, kind="stable"), num_slices):
        by_ds = rows[np.argsort(ds_N[rows], kind="stable")]
        yield from (part for part in np.array_split(by_ds, max(1, round(num_blocks / num_slices))) if part.size)


def _largest_gaps(us: _Side, ds: _Side) -> "tuple[Floats, Floats]":
    return us.high_L[:, None] - us.low_L, ds.high_L - ds.low_L[:, None]


def _smallest_gaps(us: _Side, ds: _Side) -> "tuple[Floats, Floats]":
    return us.low_L[:, None] - us.high_L, ds.low_L - ds.high_L[:, None]


def _in_errors(gap: "Floats", variance: "Floats") -> "Floats":
    """A difference in its standard errors; NaN without noise."""
    errors: Floats = gap / np.sqrt(variance)
    return errors
