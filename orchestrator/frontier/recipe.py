"""Which two cells to mix, and how, for any point on the hull. Pure numpy.

Source: arXiv 2110.02095, Lemma 2.1: a classifier that asks the left cell with probability p, and the right one
otherwise, has the accuracy p a_left + (1 - p) a_right on both axes.

Shape suffixes: N points, V vertices, D draws, C cells that may come to lie on a hull.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from models.errors import UserError
from orchestrator.frontier.hull import upper_hull
from orchestrator.frontier.noise import NumTest, denoised, noisy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Indices = NDArray[np.intp]

NUM_DRAWS = 200
FAR_SIGMAS = 5.0
ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Row `left` with probability `p_left`, row `right` otherwise, and the accuracies that this reaches.

    On a vertex both rows are the same cell and `p_left` is 1. `downstream` is as measured; `low` and `high` bound at
    95 % what the mix truly has downstream. Cells on the hull were lucky, too, so that the interval mostly lies below
    what was measured. They are None where the sizes of the test sets are unknown.
    """

    left: int
    right: int
    p_left: float
    upstream: float
    downstream: float
    low: float | None
    high: float | None


def find_recipe(
    us_N: "Floats", ds_N: "Floats", upstream: float, *, sizes: NumTest | None = None, seed: int = 0
) -> Recipe:
    """The recipe of the hull's point at an upstream accuracy.

    Args:
        us_N: upstream accuracies.
        ds_N: downstream accuracies.
        upstream: where.
        sizes: of the test sets; None where one of them is unknown.
        seed: of the draws behind the interval.

    Raises:
        UserError: the hull does not reach this upstream accuracy; the message says its range.
    """
    hull_V = upper_hull(us_N, ds_N)
    corners_V = us_N[hull_V]
    if not hull_V.size or not corners_V[0] <= upstream <= corners_V[-1]:
        reach = f"from {corners_V[0]:.6g} to {corners_V[-1]:.6g}" if hull_V.size else "nowhere: it has no cell"
        raise UserError(f"upstream={upstream:g}: the hull does not reach there; it reaches {reach}")
    at = int(np.searchsorted(corners_V, upstream))
    left, right = int(hull_V[at if corners_V[at] == upstream else at - 1]), int(hull_V[at])
    p_left = 1.0 if left == right else float((us_N[right] - upstream) / (us_N[right] - us_N[left]))
    downstream = p_left * float(ds_N[left]) + (1.0 - p_left) * float(ds_N[right])
    low, high = None, None
    if sizes is not None:
        luck_D = _luck(us_N, ds_N, sizes, upstream, seed)
        low, high = np.clip(downstream - np.percentile(luck_D, [97.5, 2.5]), 0.0, 1.0).tolist()
    return Recipe(
        left=left,
        right=right,
        p_left=p_left,
        upstream=upstream,
        downstream=downstream,
        low=low,
        high=high,
    )


def _luck(us_N: "Floats", ds_N: "Floats", sizes: NumTest, upstream: float, seed: int) -> "Floats":
    """How far recipes that are found after measuring once more lie above what their cells have downstream."""
    clean_N = denoised(us_N, ds_N, sizes)
    at_C = _may_be_on_hull(us_N, clean_N, sizes)
    us_C, clean_C, rng = us_N[at_C], clean_N[at_C], np.random.default_rng([seed, 2])
    us_DC = noisy(np.tile(us_C, (NUM_DRAWS, 1)), sizes.us_N[at_C], rng)
    ds_DC = noisy(np.tile(clean_C, (NUM_DRAWS, 1)), sizes.ds_N[at_C], rng)
    left_D, right_D, part_D = _edges(us_DC, ds_DC, upstream)
    rows, lucky_DC = np.arange(NUM_DRAWS), ds_DC - clean_C
    luck_D: Floats = part_D * lucky_DC[rows, left_D] + (1.0 - part_D) * lucky_DC[rows, right_D]
    return luck_D


def _edges(us_DC: "Floats", ds_DC: "Floats", upstream: float) -> "tuple[Indices, Indices, Floats]":
    """The hull's edge above an upstream accuracy, or its nearest end, for each draw: left, right, and the left's part.

    A point that lies above the line through both takes the place of the one on its side, until there is none.
    """
    rows = np.arange(us_DC.shape[0])
    at_D = np.clip(upstream, us_DC.min(axis=1), us_DC.max(axis=1))
    is_left_DC = us_DC <= at_D[:, None]
    left_D = np.where(is_left_DC, ds_DC, -np.inf).argmax(axis=1)
    right_D = np.where(us_DC >= at_D[:, None], ds_DC, -np.inf).argmax(axis=1)
    while True:
        width_D = us_DC[rows, right_D] - us_DC[rows, left_D]
        rise_D = ds_DC[rows, right_D] - ds_DC[rows, left_D]
        slope_D = np.divide(rise_D, width_D, where=width_D > 0, out=np.zeros_like(width_D))
        above_DC = ds_DC - slope_D[:, None] * us_DC
        best_D = above_DC.argmax(axis=1)
        moves_D = (above_DC[rows, best_D] > above_DC[rows, left_D] + ROUNDING) & (width_D > 0)
        if not moves_D.any():
            break
        on_left_D = is_left_DC[rows, best_D]
        left_D = np.where(moves_D & on_left_D, best_D, left_D)
        right_D = np.where(moves_D & ~on_left_D, best_D, right_D)
    part_D = np.divide(us_DC[rows, right_D] - at_D, width_D, where=width_D > 0, out=np.ones_like(width_D))
    return left_D, right_D, part_D


def _may_be_on_hull(us_N: "Floats", ds_N: "Floats", sizes: NumTest) -> "NDArray[np.intp]":
    """The cells that noise can lift to the hull: the others lie below it by more than noise makes up."""
    hull_V = upper_hull(us_N, ds_N)
    us_sigma_N, ds_sigma_N = (
        np.sqrt(np.maximum(side_N * (1.0 - side_N), 1e-12) / num_N)
        for side_N, num_N in ((us_N, sizes.us_N), (ds_N, sizes.ds_N))
    )
    lowest_N = np.minimum(
        *(np.interp(us_N + way * FAR_SIGMAS * us_sigma_N, us_N[hull_V], ds_N[hull_V]) for way in (-1.0, 1.0))
    )
    at_ends_N = (us_N <= us_N[hull_V[0]] + FAR_SIGMAS * us_sigma_N) | (
        us_N >= us_N[hull_V[-1]] - FAR_SIGMAS * us_sigma_N
    )
    return np.flatnonzero((ds_N + FAR_SIGMAS * ds_sigma_N >= lowest_N) | at_ends_N)
