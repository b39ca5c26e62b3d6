"""Which two cells to mix, and how, for any point on the hull. Pure numpy.

Source: arXiv 2110.02095, Lemma 2.1: a classifier that asks the left cell with probability p, and the right one
otherwise, has the accuracy p a_left + (1 - p) a_right on both axes.

Shape suffixes: N points, D draws, V vertices.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from models.errors import UserError
from orchestrator.frontier.bootstrap import noisy, resamples
from orchestrator.frontier.hull import resampled_hulls, upper_hull

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from orchestrator.frontier.bootstrap import NumTest

    Floats = NDArray[np.float64]
    Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Row `left` with probability `p_left`, row `right` otherwise, and the accuracies that this reaches.

    On a vertex both rows are the same cell and `p_left` is 1. `low` and `high` bound the downstream accuracy at 95 %;
    `source` says over what: evaluation noise of the two cells where the sizes of the test sets are known, and else the
    models, drawn with replacement. `num_failed` of `num_draws` draws have no hull at this upstream accuracy.
    """

    left: int
    right: int
    p_left: float
    upstream: float
    downstream: float
    low: float | None
    high: float | None
    source: str
    num_draws: int
    num_failed: int


def find_recipe(
    us_N: "Floats",
    ds_N: "Floats",
    upstream: float,
    *,
    sizes: "NumTest | None" = None,
    draws: int = 200,
    seed: int = 0,
) -> Recipe:
    """The recipe of the hull's point at an upstream accuracy.

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
    if sizes is None:
        heights_D, source = _resampled_heights(us_N, ds_N, upstream, draws, seed), "models"
    else:
        pair = np.array([left, right])
        draws_D2 = noisy(np.tile(ds_N[pair], (draws, 1)), sizes.ds_N[pair], np.random.default_rng([seed, 2]))
        # On a vertex there is one cell, and one noise.
        heights_D, source = p_left * draws_D2[:, 0] + (1.0 - p_left) * draws_D2[:, 1], "evaluation noise"
    low, high = np.percentile(heights_D, [2.5, 97.5]).tolist() if heights_D.size else (None, None)
    return Recipe(
        left=left,
        right=right,
        p_left=p_left,
        upstream=upstream,
        downstream=downstream,
        low=low,
        high=high,
        source=source,
        num_draws=draws,
        num_failed=draws - heights_D.size,
    )


def _resampled_heights(us_N: "Floats", ds_N: "Floats", upstream: float, draws: int, seed: int) -> "Floats":
    """The height of each draw's hull, of the draws that reach there."""
    hulls_DV = resampled_hulls(us_N, ds_N, resamples(us_N.size, draws, seed) > 0)
    heights = [
        float(np.interp(upstream, us_N[hull_V], ds_N[hull_V]))
        for row_V in hulls_DV
        for hull_V in [row_V[row_V >= 0]]
        if us_N[hull_V[0]] <= upstream <= us_N[hull_V[-1]]
    ]
    return np.array(heights)
