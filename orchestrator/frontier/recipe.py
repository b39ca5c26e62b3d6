"""Which two cells to mix, and how, for any point on the hull. Pure numpy.

Source: arXiv 2110.02095, Lemma 2.1: a classifier that asks the left cell with probability p, and the right one
otherwise, has the accuracy p a_left + (1 - p) a_right on both axes.

Shape suffixes: N points, V vertices, D draws, C cells that may come to lie on a hull, R recipes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from models.errors import UserError
from orchestrator.frontier.hull import upper_hull, upper_hulls
from orchestrator.frontier.noise import NumTest, denoised, noisy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Indices = NDArray[np.intp]

NUM_DRAWS = 200
FAR_SIGMAS = 5.0
MOST_STEPS, DECIMALS = 100, 4
STEPS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01)


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


def round_steps(low: float, high: float) -> list[float]:
    """At most 101 round upstream accuracies from `low` to `high`, in equal steps."""
    step = next((step for step in STEPS if high - low <= MOST_STEPS * step), STEPS[-1])
    values = (round(place * step, DECIMALS) for place in range(math.floor(low / step), math.ceil(high / step) + 1))
    return [value for value in values if low <= value <= high]


def find_recipe(
    us_N: "Floats", ds_N: "Floats", upstream: float, *, sizes: NumTest | None = None, seed: int = 0
) -> Recipe:
    """As `find_recipes`, of a single point."""
    return find_recipes(us_N, ds_N, [upstream], sizes=sizes, seed=seed)[0]


def find_recipes(
    us_N: "Floats", ds_N: "Floats", upstream_R: Sequence[float], *, sizes: NumTest | None = None, seed: int = 0
) -> list[Recipe]:
    """The recipes of the hull's points at upstream accuracies; the same draws are behind the intervals of all.

    Args:
        us_N: upstream accuracies.
        ds_N: downstream accuracies.
        upstream_R: where.
        sizes: of the test sets; None where one of them is unknown.
        seed: of the draws behind the intervals.

    Raises:
        UserError: the hull does not reach one of these upstream accuracies; the message says its range.
    """
    hull_V = upper_hull(us_N, ds_N)
    recipes = [_on_hull(us_N, ds_N, hull_V, upstream) for upstream in upstream_R]
    if sizes is None:
        return recipes
    lucks_2R = np.percentile(_luck(us_N, ds_N, sizes, upstream_R, seed), [97.5, 2.5], axis=0)
    measured_R = np.array([recipe.downstream for recipe in recipes])
    bounds_R2 = np.clip(measured_R - lucks_2R, 0.0, 1.0).T.tolist()
    return [replace(recipe, low=low, high=high) for recipe, (low, high) in zip(recipes, bounds_R2, strict=True)]


def _on_hull(us_N: "Floats", ds_N: "Floats", hull_V: "Indices", upstream: float) -> Recipe:
    """The recipe of one point, without its interval."""
    corners_V = us_N[hull_V]
    if not hull_V.size or not corners_V[0] <= upstream <= corners_V[-1]:
        reach = f"from {corners_V[0]:.6g} to {corners_V[-1]:.6g}" if hull_V.size else "nowhere: it has no cell"
        raise UserError(f"upstream={upstream:g}: the hull does not reach there; it reaches {reach}")
    at = int(np.searchsorted(corners_V, upstream))
    left, right = int(hull_V[at if corners_V[at] == upstream else at - 1]), int(hull_V[at])
    p_left = 1.0 if left == right else float((us_N[right] - upstream) / (us_N[right] - us_N[left]))
    downstream = p_left * float(ds_N[left]) + (1.0 - p_left) * float(ds_N[right])
    return Recipe(left=left, right=right, p_left=p_left, upstream=upstream, downstream=downstream, low=None, high=None)


def _luck(us_N: "Floats", ds_N: "Floats", sizes: NumTest, upstream_R: Sequence[float], seed: int) -> "Floats":
    """How far recipes that are found after measuring once more lie above what their cells have downstream (D x R).

    Where a draw's hull does not reach, its nearest end stands for it.
    """
    clean_N = denoised(us_N, ds_N, sizes)
    at_C = _may_be_on_hull(us_N, clean_N, sizes)
    us_C, clean_C, rng = us_N[at_C], clean_N[at_C], np.random.default_rng([seed, 2])
    us_DC = noisy(np.tile(us_C, (NUM_DRAWS, 1)), sizes.us_N[at_C], rng)
    ds_DC = noisy(np.tile(clean_C, (NUM_DRAWS, 1)), sizes.ds_N[at_C], rng)
    hulls_DV = upper_hulls(us_DC, ds_DC, np.ones(us_DC.shape, dtype=np.bool_))
    lucks = []
    for us_C, lucky_C, hull_V in zip(us_DC, ds_DC - clean_C, hulls_DV, strict=True):
        vertices = hull_V[hull_V >= 0]
        lucks.append(np.interp(upstream_R, us_C[vertices], lucky_C[vertices]))
    return np.stack(lucks)


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
