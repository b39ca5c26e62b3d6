"""Hulls of many samples of the models, and of their evaluation noise where it is known. Pure numpy.

Shape suffixes: N points, D draws, M points of a draw, V vertices of a draw.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.frontier.hull import resampled_hulls, upper_hulls
from orchestrator.frontier.noise import NumTest, denoised, noisy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]
    Indices = NDArray[np.intp]

PART, MIN_MODELS = 4, 10
"""A sample has one in so many of the models, but at least ten, or half where there are fewer than twenty."""
NUM_CACHED = 2


@dataclass(frozen=True, slots=True)
class Corners:
    """The vertices of each draw's hull, left to right; where `used_DV` is false they are padding."""

    us_DV: "Floats"
    ds_DV: "Floats"
    used_DV: "Bools"


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Hulls of samples without replacement.

    Args:
        num_models: in a sample.
        centre_N: the downstream accuracies that were sampled: without evaluation noise where that is known.
        corners: of the hulls of the samples, measured once more with that noise.
        over_noise: whether it is known.
    """

    num_models: int
    centre_N: "Floats"
    corners: Corners
    over_noise: bool


def draw_samples(us_N: "Floats", ds_N: "Floats", sizes: NumTest | None, *, draws: int, seed: int) -> Samples:
    """The samples of a table; they follow the order of its points.

    Args:
        us_N: upstream accuracies; at least one.
        ds_N: downstream accuracies.
        sizes: of the test sets; None where one of them is unknown.
        draws: how many.
        seed: of the draws.
    """
    num_models = max(-(-us_N.size // PART), min(MIN_MODELS, us_N.size // 2))
    picks_DM = _subsamples(us_N.size, num_models, draws, seed)
    if sizes is None:
        corners = corners_of(us_N[None], ds_N[None], resampled_hulls(us_N, ds_N, _present(picks_DM, us_N.size)))
        return Samples(num_models=num_models, centre_N=ds_N, corners=corners, over_noise=False)
    centre_N = denoised(us_N, ds_N, sizes)
    rng = np.random.default_rng([seed, 1])
    us_DM = noisy(us_N[picks_DM], sizes.us_N[picks_DM], rng)
    ds_DM = noisy(centre_N[picks_DM], sizes.ds_N[picks_DM], rng)
    corners = corners_of(us_DM, ds_DM, upper_hulls(us_DM, ds_DM, np.ones(us_DM.shape, dtype=np.bool_)))
    return Samples(num_models=num_models, centre_N=centre_N, corners=corners, over_noise=True)


def corners_of(us_DN: "Floats", ds_DN: "Floats", hulls_DV: "Indices") -> Corners:
    """The accuracies of each draw's vertices, out of its own points, or of a single row for all draws."""
    columns_DV = np.maximum(hulls_DV, 0)
    if us_DN.shape[0] == 1:
        return Corners(us_DN[0][columns_DV], ds_DN[0][columns_DV], hulls_DV >= 0)
    us_DV, ds_DV = (np.take_along_axis(side_DN, columns_DV, axis=1) for side_DN in (us_DN, ds_DN))
    return Corners(us_DV, ds_DV, hulls_DV >= 0)


# Every task of a study has much the same number of cells, and the draws depend on that number only.
@lru_cache(maxsize=NUM_CACHED)
def resamples(num_points: int, draws: int, seed: int) -> "Floats":
    """How often each of N points is in each draw with replacement (D, N); not to be written to."""
    picks_DN = np.random.default_rng(seed).integers(0, num_points, (draws, num_points))
    flat = (picks_DN + np.arange(draws)[:, None] * num_points).ravel()
    counts_DN = np.bincount(flat, minlength=draws * num_points).reshape(draws, num_points).astype(np.float64)
    counts_DN.setflags(write=False)
    return counts_DN


@lru_cache(maxsize=NUM_CACHED)
def _subsamples(num_points: int, num_models: int, draws: int, seed: int) -> "Indices":
    keys_DN = np.random.default_rng(seed).random((draws, num_points))
    # A copy, so that the cache does not hold all N columns.
    picks_DM = np.sort(np.argpartition(keys_DN, num_models - 1, axis=1)[:, :num_models], axis=1)
    picks_DM.setflags(write=False)
    return picks_DM


def _present(picks_DM: "Indices", num_points: int) -> "Bools":
    present_DN = np.zeros((picks_DM.shape[0], num_points), dtype=np.bool_)
    np.put_along_axis(present_DN, picks_DM, values=True, axis=1)
    return present_DN
