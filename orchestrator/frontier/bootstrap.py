"""Intervals of alpha and e_IR over models and over evaluation noise. Pure numpy.

All points: models are drawn with replacement, and the interval is the percentile one. The models' noise is in it.

Hull and rising part: the hull of a sample lies below the frontier of all models that could have been trained, and the
hull of a resample lies below that of the sample, so that percentile intervals miss the truth on the far side, nearly
always. So a quarter of the models is drawn without replacement (Politis and Romano 1994). How far the fits of these
samples lie from that of all models says how far that of all models lies from the truth: twice as far, were the error
of a fit to shrink as n^-0.29. The interval is reflected at the estimate, with alpha on a logarithmic scale. The rate is
that at which intervals covered, by experiment, between 100 and 2,000 models with four kinds of losses below five laws;
docs/coverage.md is the check on fresh ones.

Evaluation noise, where the sizes of both test sets are known: the samples are taken from accuracies without it
(`noise.denoised`) and measured once more with it.

Shape suffixes: N points, D draws, V vertices of a draw.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from orchestrator.frontier.choices import Choice, fit_points
from orchestrator.frontier.hull import resampled_hulls, steps_along
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
from orchestrator.frontier.samples import Corners, Samples, corners_of, draw_samples, resamples

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from orchestrator.frontier.noise import NumTest

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

Source = Literal["models", "models and evaluation noise"]

RATE = 0.2925
"""The error of a fit to n models shrinks as n^-RATE: of samples of a quarter, deviations count twice."""
FEW_POINTS = 64


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
    sizes: "NumTest | None" = None,
    samples: Samples | None = None,
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
        samples: what `draw_samples` makes of all this, where it is there already.
        draws: how many.
        seed: of the draws.
    """
    if choice.method == "all":
        return percentile_bootstrap(us_N, ds_N, choice, delta=law.huber_delta, draws=draws, seed=seed)
    samples = samples or draw_samples(us_N, ds_N, sizes, draws=draws, seed=seed)
    source: Source = "models and evaluation noise" if samples.over_noise else "models"
    centre = fit_law(*fit_points(us_N, samples.centre_N, choice), loss=choice.loss) if samples.over_noise else law
    if centre is None:
        return _nothing(draws, source)
    values_2D = _fitted(samples.corners, choice, law.huber_delta)
    wider = 1.0 / ((us_N.size / samples.num_models) ** RATE - 1.0)
    return _reflected(law, wider * (values_2D - np.array([[centre.e_ir], [np.log(_alpha(centre))]])), source)


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
        corners = corners_of(us_N[None], ds_N[None], resampled_hulls(us_N, ds_N, counts_DN > 0))
        fits, _ = _fit_hulls(corners, choice, delta)
    if not fits.k.size:
        return _nothing(draws, "models")
    e_ir, alpha = (np.percentile(values, [2.5, 97.5]).tolist() for values in (fits.e_ir, _alphas(fits)))
    return Interval(
        e_ir_low=e_ir[0],
        e_ir_high=e_ir[1],
        alpha_low=alpha[0],
        alpha_high=alpha[1],
        num_draws=draws,
        num_failed=draws - fits.k.size,
    )


def _fitted(corners: Corners, choice: Choice, delta: float | None) -> "Floats":
    """e_IR and log alpha of each draw, two rows; NaN for what cannot be fitted."""
    fits, can_D = _fit_hulls(corners, choice, delta)
    values_2D = np.full((2, can_D.size), np.nan)
    values_2D[:, can_D] = fits.e_ir, np.log(_alphas(fits))
    return values_2D


def _fit_hulls(corners: Corners, choice: Choice, delta: float | None) -> tuple[Fits, "Bools"]:
    """One fit for each draw that can be fitted, and which those are."""
    us_DV, ds_DV, used_DV = corners.us_DV, corners.ds_DV, corners.used_DV
    if choice.method == "rising":
        best_D = np.where(used_DV, ds_DV, -1.0).argmax(axis=1)
        used_DV = used_DV & (np.arange(used_DV.shape[1]) <= best_D[:, None])
    if choice.points == "dense":
        us_DV, ds_DV = steps_along(us_DV, ds_DV, used_DV.sum(axis=1))
        used_DV = np.ones(us_DV.shape, dtype=np.bool_)
    weights_DV = used_DV.astype(np.float64)
    can_D = num_distinct(us_DV, weights_DV) >= MIN_POINTS
    return fit_rows(1.0 - us_DV[can_D], 1.0 - ds_DV[can_D], weights_DV[can_D], delta=delta), can_D


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


def _reflected(law: Law, deviation_2D: "Floats", source: Source) -> Interval:
    """How far e_IR and log alpha of draws lie from their centre, said about the estimate, within the law's bounds."""
    num_draws = deviation_2D.shape[1]
    deviation_2D = deviation_2D[:, np.isfinite(deviation_2D).all(axis=0)]
    if not deviation_2D.size:
        return _nothing(num_draws, source)
    (e_low, e_high), (a_low, a_high) = np.percentile(deviation_2D, [97.5, 2.5], axis=1).T
    e_bounds = np.clip([law.e_ir - e_low, law.e_ir - e_high], 0.0, 1.0).tolist()
    a_bounds = np.clip(_alpha(law) * np.exp([-a_low, -a_high]), ALPHA_LOW, ALPHA_HIGH).tolist()
    return Interval(
        e_ir_low=e_bounds[0],
        e_ir_high=e_bounds[1],
        alpha_low=a_bounds[0],
        alpha_high=a_bounds[1],
        num_draws=num_draws,
        num_failed=num_draws - deviation_2D.shape[1],
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
