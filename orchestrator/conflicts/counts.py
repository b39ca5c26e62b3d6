"""Exact counts of pairs and rank correlations in O(n log n). Pure numpy.

Shape suffixes: N cells, M values, Q queries.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]


Z_95 = 1.959963984540054
MIN_PAIRS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PairCounts:
    """How the n (n - 1) / 2 pairs of cells fall: `tied` is equal upstream, downstream, or both."""

    conflicts: int
    concordant: int
    tied: int
    tied_upstream: int
    tied_downstream: int


def count_pairs(us_N: "Floats", ds_N: "Floats") -> PairCounts:
    """Exact counts of conflicting, concordant and tied pairs in O(n log n)."""
    num_pairs = us_N.size * (us_N.size - 1) // 2
    tied_us, tied_ds = _num_tied(us_N[:, None]), _num_tied(ds_N[:, None])
    tied = tied_us + tied_ds - _num_tied(np.column_stack([us_N, ds_N]))
    rank_N = np.unique(ds_N, return_inverse=True)[1].astype(np.int64)
    # Among equal upstream accuracies downstream is sorted too, so that ties are no conflicts.
    rank_N = rank_N[np.lexsort((ds_N, us_N))]
    conflicts = int(count_from(rank_N, np.arange(rank_N.size), rank_N + 1).sum())
    return PairCounts(
        conflicts=conflicts,
        concordant=num_pairs - conflicts - tied,
        tied=tied,
        tied_upstream=tied_us,
        tied_downstream=tied_ds,
    )


def count_from(value_M: "Ints", prefix_Q: "Ints", floor_Q: "Ints") -> "Ints":
    """For each query, how many of the first `prefix` values are at least `floor`, in O((M + Q) log M).

    A wavelet matrix (Claude, Navarro and Ordonez 2015): bit by bit, values with a 0 move before those with a 1, in
    order, and every query follows the digits of its floor. Where its floor has a 0, all its values with a 1 are above.

    Args:
        value_M: whole numbers from 0 to M - 1.
        prefix_Q: from 0 to M.
        floor_Q: from 0 to M.
    """
    count_Q, start_Q, end_Q = np.zeros_like(prefix_Q), np.zeros_like(prefix_Q), prefix_Q
    for bit in reversed(range(int(value_M.size).bit_length())):
        is_one_M = (value_M >> bit) & 1 == 1
        ones_before = np.concatenate([[0], np.cumsum(is_one_M)])
        num_zeros = value_M.size - ones_before[-1]
        start_ones_Q, end_ones_Q = ones_before[start_Q], ones_before[end_Q]
        follows_one_Q = (floor_Q >> bit) & 1 == 1
        count_Q = count_Q + np.where(follows_one_Q, 0, end_ones_Q - start_ones_Q)
        start_Q = np.where(follows_one_Q, num_zeros + start_ones_Q, start_Q - start_ones_Q)
        end_Q = np.where(follows_one_Q, num_zeros + end_ones_Q, end_Q - end_ones_Q)
        value_M = np.concatenate([value_M[~is_one_M], value_M[is_one_M]])
    counts_Q: Ints = count_Q + end_Q - start_Q
    return counts_Q


def spearman(us_N: "Floats", ds_N: "Floats") -> float | None:
    """Rank correlation with mean ranks for ties; None where either side is constant."""
    a_N, b_N = centred_ranks(us_N), centred_ranks(ds_N)
    norm = float(np.sqrt((a_N @ a_N) * (b_N @ b_N)))
    return float(a_N @ b_N) / norm if norm > 0 else None


def rank_interval(spearman_rank: float | None, num: int) -> tuple[float | None, float | None]:
    """The 95 % interval of a Spearman correlation of `num` pairs; (None, None) without one, or with under four pairs.

    Fisher's transformation with the standard error of Bonett and Wright (2000, Psychometrika 65, 23-28). It takes the
    pairs for independent draws; the cells of a grid are not quite that.
    """
    if spearman_rank is None or num < MIN_PAIRS:
        return None, None
    # A perfect order has no finite transform. It is taken as half the smallest step of Spearman's away from it.
    most = 1 - 6 / (num**3 - num)
    z = np.arctanh(np.clip(spearman_rank, -most, most))
    half = Z_95 * np.sqrt((1 + spearman_rank**2 / 2) / (num - 3))
    # That step must not put a perfect order outside its own interval.
    return float(min(np.tanh(z - half), spearman_rank)), float(max(np.tanh(z + half), spearman_rank))


def kendall(us_N: "Floats", ds_N: "Floats") -> float | None:
    """Kendall's tau-b; None where either side is constant."""
    counts, num_pairs = count_pairs(us_N, ds_N), us_N.size * (us_N.size - 1) // 2
    untied = (num_pairs - counts.tied_upstream) * (num_pairs - counts.tied_downstream)
    return (counts.concordant - counts.conflicts) / untied**0.5 if untied else None


def centred_ranks(values_N: "Floats") -> "Floats":
    """Ranks, the mean rank for ties, minus their mean."""
    _, group_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    ranks_N: Floats = mean_rank[group_N] - (values_N.size + 1) / 2
    return ranks_N


def log_factorials(largest: int) -> "Floats":
    """Logarithms of 0!, 1!, ... `largest`!"""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, largest + 1)))])


def _num_tied(values_NK: "Floats") -> int:
    order_N = np.lexsort(values_NK.T)
    differs = (np.diff(values_NK[order_N], axis=0) != 0).any(axis=1)
    counts = np.diff(np.concatenate([[0], np.flatnonzero(differs) + 1, [values_NK.shape[0]]]))
    return int((counts * (counts - 1) // 2).sum())
