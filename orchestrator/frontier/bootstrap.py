"""Intervals of alpha and e_IR over models and over evaluation noise. Pure numpy.

All points: models are drawn with replacement, and the interval is the percentile one. The models' noise is in it.

Hull and rising part: the hull of a sample lies below the frontier of all models that could have been trained, and the
hull of a resample lies below that of the sample, so that percentile intervals miss the truth on the far side, nearly
always. So smaller samples are drawn without replacement (Politis and Romano 1994), a part of the models so small that
its hull is as far from the sample's as the sample's is from the frontier, and the interval is reflected at the estimate
(the basic interval; on log alpha). For the rising part of n models, n^0.72 do this; the full hull also has the
falling tail, whose error hardly shrinks with more models, and takes a tenth. Both were chosen by experiment, between
100 and 5,000 models, on the kind of synthetic studies that benchmarks/coverage.py makes; a check on fresh ones is not
done. Below nominal so far: measured cells, and all cells where they lie below the law.

Evaluation noise, where the sizes of both test sets are known: each draw adds normal noise of binomial variance to both
accuracies. What the measured accuracies have of it already is first taken out of the spread around the all-points law.

Shape suffixes: N points, D draws, M points of a draw, V vertices of a draw.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from orchestrator.frontier.choices import Choice, Method, fit_points
from orchestrator.frontier.hull import resampled_hulls, steps_along, upper_hulls
from orchestrator.frontier.law import (
    ALPHA_HIGH,
    ALPHA_LOW,
    MIN_POINTS,
    Fits,
    Law,
    fit_law,
    fit_rows,
    num_distinct,
)
from orchestrator.frontier.moments import fit_draws

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]
    Indices = NDArray[np.intp]

Source = Literal["models", "models and evaluation noise"]

HULL_PART, RISING_POWER = 0.1, 0.72
MIN_MODELS = 20
FEW_POINTS = 64
NUM_CACHED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class NumTest:
    """Numbers of test images (N each) behind the accuracies of every point."""

    us_N: "NDArray[np.int64]"
    ds_N: "NDArray[np.int64]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """95 % interval over draws; the bounds are None where no draw could be fitted.

    A draw that any large alpha fits equally well counts with the upper bound: an `alpha_high` of 100 says "no limit".
    """

    e_ir_low: float | None
    e_ir_high: float | None
    alpha_low: float | None
    alpha_high: float | None
    num_draws: int
    num_failed: int
    source: Source = "models"


def bootstrap(
    us_N: "Floats",
    ds_N: "Floats",
    choice: Choice,
    law: Law,
    *,
    sizes: NumTest | None = None,
    clean_N: "Floats | None" = None,
    draws: int = 200,
    seed: int = 0,
) -> Interval:
    """The reported 95 % interval of a law: percentile for "all", reflected for "hull" and "rising".

    A draw with fewer than three different upstream accuracies among its points (or vertices) cannot be fitted: it is
    counted in `num_failed`.

    Args:
        us_N: upstream accuracies; the draws follow the order of the points.
        ds_N: downstream accuracies.
        choice: of the points and the loss.
        law: the estimate, fitted to all N points under this choice.
        sizes: of the test sets; None where one of them is unknown.
        clean_N: what `denoised` makes of all this, where it is known already.
        draws: how many.
        seed: of the draws.
    """
    if choice.method == "all":
        return percentile_bootstrap(us_N, ds_N, choice, delta=law.huber_delta, draws=draws, seed=seed)
    picks_DM = _subsamples(us_N.size, _num_models(us_N.size, choice.method), draws, seed)
    centre = law
    if sizes is None:
        hulls_DV = resampled_hulls(us_N, ds_N, _present(picks_DM, us_N.size))
        us_DV, ds_DV = _corners(us_N[None], hulls_DV), _corners(ds_N[None], hulls_DV)
    else:
        clean_N = denoised(us_N, ds_N, sizes) if clean_N is None else clean_N
        centre = fit_law(*fit_points(us_N, clean_N, choice), loss=choice.loss) or law
        rng = np.random.default_rng([seed, 1])
        us_DM = noisy(us_N[picks_DM], sizes.us_N[picks_DM], rng)
        ds_DM = noisy(clean_N[picks_DM], sizes.ds_N[picks_DM], rng)
        hulls_DV = upper_hulls(us_DM, ds_DM, np.ones(us_DM.shape, dtype=np.bool_))
        us_DV, ds_DV = _corners(us_DM, hulls_DV), _corners(ds_DM, hulls_DV)
    fits = _fit_hulls(us_DV, ds_DV, hulls_DV >= 0, choice, law.huber_delta)
    source: Source = "models" if sizes is None else "models and evaluation noise"
    return _reflected(law, centre, fits, draws, source)


def percentile_bootstrap(
    us_N: "Floats",
    ds_N: "Floats",
    choice: Choice,
    *,
    delta: float | None = None,
    draws: int = 200,
    seed: int = 0,
) -> Interval:
    """The plain 95 % percentile interval over models drawn with replacement; the hull is found again in each draw.

    Args:
        us_N: upstream accuracies; the draws follow the order of the points.
        ds_N: downstream accuracies.
        choice: of the points and the loss.
        delta: Huber's, in accuracy; None for the squared loss.
        draws: how many.
        seed: of the draws.
    """
    counts_DN = resamples(us_N.size, draws, seed)
    if choice.method == "all":
        fits = _fit_all(us_N, ds_N, counts_DN, delta)
    else:
        hulls_DV = resampled_hulls(us_N, ds_N, counts_DN > 0)
        corners = _corners(us_N[None], hulls_DV), _corners(ds_N[None], hulls_DV)
        fits = _fit_hulls(*corners, hulls_DV >= 0, choice, delta)
    if not fits.k.size:
        return _nothing(draws, "models")
    e_low, e_high, a_low, a_high = _percentiles(fits)
    return Interval(
        e_ir_low=e_low,
        e_ir_high=e_high,
        alpha_low=a_low,
        alpha_high=a_high,
        num_draws=draws,
        num_failed=draws - fits.k.size,
    )


def denoised(us_N: "Floats", ds_N: "Floats", sizes: NumTest) -> "Floats":
    """Downstream accuracies drawn towards the all-points law until their spread lacks the evaluation noise.

    The noise of a residual is the binomial variance downstream plus the squared slope of the law times that upstream.
    Where the residuals vary no more than that, all differences are noise.
    """
    law = fit_law(us_N, ds_N)
    if law is None:
        return ds_N
    fitted_N = law.predict(us_N)
    slope_N = law.k * law.alpha * np.maximum(1.0 - us_N, 1e-6) ** (law.alpha - 1.0)
    noise_N = ds_N * (1.0 - ds_N) / sizes.ds_N + slope_N**2 * us_N * (1.0 - us_N) / sizes.us_N
    residual_N = ds_N - fitted_N
    spread = float(residual_N.var())
    share = np.sqrt(max(0.0, 1.0 - float(noise_N.mean()) / spread)) if spread > 0 else 0.0
    mean = residual_N.mean()
    clean_N: Floats = np.clip(fitted_N + mean + share * (residual_N - mean), 0.0, 1.0)
    return clean_N


def _num_models(num_points: int, method: Method) -> int:
    """Models in a draw: the method's part, but at least 20, or half where there are fewer than 40."""
    part = int(np.ceil(HULL_PART * num_points if method == "hull" else num_points**RISING_POWER))
    return max(1, part, min(MIN_MODELS, num_points // 2))


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


def noisy(accuracy_DM: "Floats", num_DM: "NDArray[np.int64]", rng: np.random.Generator) -> "Floats":
    """Accuracies with normal noise of binomial variance, kept in [0, 1]."""
    # Seven digits are more than enough for noise, and drawn twice as fast.
    noise_DM = rng.standard_normal(accuracy_DM.shape, dtype=np.float32) * np.sqrt(
        accuracy_DM * (1.0 - accuracy_DM) / num_DM
    )
    noisy_DM: Floats = np.clip(accuracy_DM + noise_DM, 0.0, 1.0)
    return noisy_DM


def _corners(side_DN: "Floats", hulls_DV: "Indices") -> "Floats":
    """The accuracies of each draw's vertices; of a single row for all draws, too. What pads is any number."""
    if side_DN.shape[0] == 1:
        side_DN = np.broadcast_to(side_DN, (hulls_DV.shape[0], side_DN.shape[1]))
    return np.take_along_axis(side_DN, np.maximum(hulls_DV, 0), axis=1)


def _fit_hulls(us_DV: "Floats", ds_DV: "Floats", used_DV: "Bools", choice: Choice, delta: float | None) -> Fits:
    """One fit for each draw that can be fitted."""
    if choice.method == "rising":
        best_D = np.where(used_DV, ds_DV, -1.0).argmax(axis=1)
        used_DV = used_DV & (np.arange(used_DV.shape[1]) <= best_D[:, None])
    if choice.points == "dense":
        us_DV, ds_DV = steps_along(us_DV, ds_DV, used_DV.sum(axis=1))
        used_DV = np.ones(us_DV.shape, dtype=np.bool_)
    weights_DV = used_DV.astype(np.float64)
    can_D = num_distinct(us_DV, weights_DV) >= MIN_POINTS
    return fit_rows(1.0 - us_DV[can_D], 1.0 - ds_DV[can_D], weights_DV[can_D], delta=delta)


def _fit_all(us_N: "Floats", ds_N: "Floats", counts_DN: "Floats", delta: float | None) -> Fits:
    """One fit for each draw that can be fitted."""
    values, common = np.unique(us_N, return_counts=True)
    # A draw of only the two commonest upstream accuracies has a chance below 2^-N where they are not half of all.
    if us_N.size <= FEW_POINTS or np.sort(common)[-2:].sum() * 2 > us_N.size:
        of_value = np.searchsorted(values, us_N)[:, None] == np.arange(values.size)
        can_D = ((counts_DN @ of_value) > 0).sum(axis=1) >= MIN_POINTS
        counts_DN = counts_DN[can_D]
    if us_N.size > FEW_POINTS:
        return fit_draws(1.0 - us_N, 1.0 - ds_N, counts_DN, delta=delta)
    e_us_DN, e_ds_DN = (np.broadcast_to(1.0 - side_N, counts_DN.shape) for side_N in (us_N, ds_N))
    return fit_rows(e_us_DN, e_ds_DN, counts_DN, delta=delta)


def _alphas(fits: Fits) -> "Floats":
    return np.where(fits.unbounded & (fits.k > 0), ALPHA_HIGH, fits.alpha)


def _percentiles(fits: Fits) -> tuple[float, float, float, float]:
    """Of e_IR and of alpha; there must be a fit."""
    e_low, e_high = np.percentile(fits.e_ir, [2.5, 97.5]).tolist()
    a_low, a_high = np.percentile(_alphas(fits), [2.5, 97.5]).tolist()
    return e_low, e_high, a_low, a_high


def _reflected(law: Law, centre: Law, fits: Fits, draws: int, source: Source) -> Interval:
    """What the draws say about their centre, said about the estimate, within the bounds of the law."""
    if not fits.k.size:
        return _nothing(draws, source)
    e_low, e_high, a_low, a_high = _percentiles(fits)
    e_sum, a_product = law.e_ir + centre.e_ir, _alpha(law) * _alpha(centre)
    e_bounds = np.clip([e_sum - e_high, e_sum - e_low], 0.0, 1.0).tolist()
    a_bounds = np.clip([a_product / a_high, a_product / a_low], ALPHA_LOW, ALPHA_HIGH).tolist()
    return Interval(
        e_ir_low=e_bounds[0],
        e_ir_high=e_bounds[1],
        alpha_low=a_bounds[0],
        alpha_high=a_bounds[1],
        num_draws=draws,
        num_failed=draws - fits.k.size,
        source=source,
    )


def _nothing(draws: int, source: Source) -> Interval:
    return Interval(
        e_ir_low=None,
        e_ir_high=None,
        alpha_low=None,
        alpha_high=None,
        num_draws=draws,
        num_failed=draws,
        source=source,
    )


def _alpha(law: Law) -> float:
    return ALPHA_HIGH if "alpha_high" in law.at_bound else law.alpha
