"""The law of the frontier, e_DS = k e_US^alpha + e_IR, by variable projection. Pure numpy.

Source: arXiv 2110.02095, section 2. The loss, optimiser and bounds of the paper's fit are not published. Chosen here:
squared or Huber loss on downstream error, and the bounds below. For a fixed alpha, k and e_IR are a bounded linear
least-squares problem with a closed form, so that only alpha is searched: on a grid, then by bisection on the slope.

Errors are 1 - accuracy, in [0, 1].
Shape suffixes: N points, D rows (one fit each), V points of a row, A values of alpha.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

Loss = Literal["squared", "huber"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
Bound = Literal["k_low", "alpha_low", "alpha_high", "e_ir_low"]

ALPHA_LOW, ALPHA_HIGH = 0.01, 100.0
# k = k_scaled / max(e_US)^alpha must stay a finite float, so tiny errors lower the upper bound of alpha.
MAX_LOG10_K = 290.0
# Neighbours on the grid differ by 7.5 %: the bracket that bisection starts from.
NUM_ALPHAS = 128
NUM_BISECTIONS = 34
# exp(alpha * LOG_OF_ZERO) is 0 for every allowed alpha, and 0 * LOG_OF_ZERO is 0 where 0 * -inf would be NaN.
LOG_OF_ZERO = -1e5
# Sums of squares that differ by less than this part of sum(e_DS^2) are equal up to rounding.
ROUNDING = 1e-14
# Rows x alphas x points held at once.
MAX_BLOCK = 2_000_000

MIN_POINTS = 3
# 1.345 standard deviations make Huber's estimate 95 % efficient under normal noise (Holland and Welsch 1977); 1.4826
# median absolute residuals are one standard deviation of such noise (Huber 1981).
HUBER_SIGMAS, MAD_SIGMA = 1.345, 1.4826
NUM_REWEIGHTINGS, MOVED = 200, 1e-7
# How far alpha may move in one such step.
STEP = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """e_DS = k e_US^alpha + e_IR, its root mean square residual, and the bounds that it rests on.

    Where k is 0, alpha is 1 by convention. Where every alpha from some value to the upper bound fits equally well up to
    rounding, alpha is the smallest of them and `at_bound` holds "alpha_high". `huber_delta` is where Huber's loss turns
    from squared to absolute, in accuracy; None for the squared loss.
    """

    k: float
    alpha: float
    e_ir: float
    rmse: float
    at_bound: tuple[Bound, ...] = ()
    huber_delta: float | None = None

    def predict(self, us_N: "Floats") -> "Floats":
        """Downstream accuracy at the given upstream accuracies."""
        e_ds_N: Floats = self.k * (1.0 - us_N) ** self.alpha + self.e_ir
        return 1.0 - e_ds_N


@dataclass(frozen=True, slots=True)
class Fits:
    """One fit per row (each field has D values); `unbounded`: the largest alpha fits as well, up to rounding."""

    k: "Floats"
    alpha: "Floats"
    e_ir: "Floats"
    rmse: "Floats"
    unbounded: "Bools"


def fit_law(us_N: "Floats", ds_N: "Floats", *, loss: Loss = "squared") -> Law | None:
    """The law, or None where fewer than three different upstream accuracies leave it open.

    Huber's loss is squared up to delta and absolute beyond: delta is 1.345 x 1.4826 times the median absolute residual
    of the least-squares law, which the search starts from (sources at `HUBER_SIGMAS`). Where half of the points lie on
    that law up to rounding, delta is 0 and the least-squares law stays.
    """
    e_us_DV, e_ds_DV, weights_DV = (1.0 - us_N)[None], (1.0 - ds_N)[None], np.ones((1, us_N.size))
    if num_distinct(e_us_DV, weights_DV)[0] < MIN_POINTS:
        return None
    fits, delta = fit_rows(e_us_DV, e_ds_DV, weights_DV), None
    if loss == "huber":
        delta = _huber_delta(fits, e_us_DV[0], e_ds_DV[0])
        fits = fit_rows(e_us_DV, e_ds_DV, weights_DV, delta=delta)
    k, alpha, e_ir = float(fits.k[0]), float(fits.alpha[0]), float(fits.e_ir[0])
    hits: dict[Bound, bool] = {
        "k_low": k == 0,
        "alpha_low": k > 0 and alpha < ALPHA_LOW * 1.000001,
        "alpha_high": k > 0 and bool(fits.unbounded[0]),
        "e_ir_low": e_ir == 0,
    }
    bounds = tuple(bound for bound, hit in hits.items() if hit)
    return Law(k=k, alpha=alpha, e_ir=e_ir, rmse=float(fits.rmse[0]), at_bound=bounds, huber_delta=delta)


def num_distinct(us_DV: "Floats", weights_DV: "Floats") -> "NDArray[np.int64]":
    """Number of different upstream accuracies among the points with a weight, for each row."""
    if not us_DV.shape[1]:
        return np.zeros(us_DV.shape[0], dtype=np.int64)
    sorted_DV = np.sort(np.where(weights_DV > 0, us_DV, np.inf), axis=1)
    differs_DV = (sorted_DV[:, 1:] > sorted_DV[:, :-1]) & np.isfinite(sorted_DV[:, 1:])
    counts: NDArray[np.int64] = differs_DV.sum(axis=1) + np.isfinite(sorted_DV[:, 0])
    return counts


def fit_rows(e_us_DV: "Floats", e_ds_DV: "Floats", weights_DV: "Floats", *, delta: float | None = None) -> Fits:
    """The weighted law of each row; at least three different e_US of a row must have a weight.

    Args:
        e_us_DV: upstream errors.
        e_ds_DV: downstream errors.
        weights_DV: how often a point counts; 0 for none.
        delta: Huber's, in accuracy; None for the squared loss.
    """
    num_rows = max(1, MAX_BLOCK // (NUM_ALPHAS * max(1, e_us_DV.shape[1])))
    blocks = [
        _fit_block(e_us_DV[i : i + num_rows], e_ds_DV[i : i + num_rows], weights_DV[i : i + num_rows], delta)
        for i in range(0, e_us_DV.shape[0], num_rows)
    ]
    return joined(blocks)


def joined(blocks: "list[Fits]") -> Fits:
    """The fits of several blocks of rows, or of none, as one."""
    if not blocks:
        nothing = np.empty(0)
        return Fits(nothing, nothing, nothing, nothing, np.empty(0, dtype=np.bool_))
    return Fits(*(np.concatenate([getattr(fits, name) for fits in blocks]) for name in Fits.__slots__))


def reweighted(
    fit: "Callable[[Floats, Fits | None], Fits]",
    residuals: "Callable[[Fits], Floats]",
    weights_DV: "Floats",
    delta: float,
) -> Fits:
    """The law of each row under Huber's loss, by iteratively reweighted least squares from the least-squares law.

    Each step fits the weights delta / |residual| beyond delta, which never raises the loss (Huber 1981, section 7.8).
    It ends where no alpha or e_IR moves any more, or after 200 steps. The root mean square residual is that of all
    points as they count.

    Args:
        fit: the least-squares fit for given weights, near an earlier one where there is one.
        residuals: of fits, like the weights.
        weights_DV: how often a point counts.
        delta: in accuracy.
    """
    fits = fit(weights_DV, None)
    for _ in range(NUM_REWEIGHTINGS if delta > 0 else 0):
        before, size_DV = fits, abs(residuals(fits))
        fits = fit(weights_DV * np.divide(delta, size_DV, where=size_DV > delta, out=np.ones_like(size_DV)), before)
        moved_D = abs(fits.e_ir - before.e_ir) + abs(fits.alpha / before.alpha - 1.0)
        if moved_D.max() < MOVED:
            break
    rmse_D = np.sqrt(_dot(weights_DV, residuals(fits) ** 2) / weights_DV.sum(axis=1))
    return replace(fits, rmse=rmse_D)


def bounded_line(
    w_D: "Floats", x_D: "Floats", y_D: "Floats", xx_D: "Floats", xy_D: "Floats"
) -> tuple["Floats", "Floats"]:
    """Exact least squares of y = k x + e with k >= 0 and 0 <= e <= 1, from weighted sums; x >= 0 and 0 <= y <= 1.

    Where the free k is negative, k = 0 and e = mean(y) is best, and allowed. Otherwise e <= mean(y) <= 1, so only
    e >= 0 can bind, and then k = sum(xy) / sum(xx) >= 0 is allowed.

    Args:
        w_D: the sum of the weights, of any shape.
        x_D: the sum of x; and so on.
        y_D: that of y.
        xx_D: that of x^2.
        xy_D: that of x y.
    """
    var_D, cov_D = np.maximum(xx_D - x_D**2 / w_D, 0.0), xy_D - x_D * y_D / w_D
    k_D = np.maximum(np.divide(cov_D, var_D, where=var_D > 0, out=np.zeros_like(var_D)), 0.0)
    e_D: Floats = (y_D - k_D * x_D) / w_D
    floored_D = np.divide(xy_D, xx_D, where=xx_D > 0, out=np.zeros_like(xx_D))
    return np.where(e_D < 0, floored_D, k_D), np.maximum(e_D, 0.0)


def sum_of_squares(
    w_D: "Floats", x_D: "Floats", y_D: "Floats", xx_D: "Floats", xy_D: "Floats", yy_D: "Floats"
) -> "Floats":
    """The least sum of squares that `bounded_line` reaches."""
    k_D, e_D = bounded_line(w_D, x_D, y_D, xx_D, xy_D)
    cov_D = xy_D - x_D * y_D / w_D
    sse_D: Floats = np.where(e_D > 0, yy_D - y_D**2 / w_D - k_D * cov_D, yy_D - k_D * xy_D)
    return sse_D


def alpha_grid(scale: float) -> "Floats":
    """The values of alpha that are tried first, for upstream errors of which the largest is `scale`."""
    high = min(ALPHA_HIGH, MAX_LOG10_K / max(-np.log10(scale), 1e-9))
    return np.geomspace(ALPHA_LOW, high, NUM_ALPHAS)


def scaled_log(e_us_DV: "Floats", scale_D1: "Floats | float") -> "Floats":
    """log(e_US / scale): the basis in which k cannot run away with alpha while searching."""
    positive_DV = e_us_DV > 0
    log_DV: Floats = np.log(e_us_DV / scale_D1, where=positive_DV, out=np.full(e_us_DV.shape, LOG_OF_ZERO))
    return log_DV


def _fit_block(e_us_DV: "Floats", e_ds_DV: "Floats", weights_DV: "Floats", delta: float | None) -> Fits:
    scale_D = np.where(weights_DV > 0, e_us_DV, 0.0).max(axis=1)
    log_DV = scaled_log(np.where(weights_DV > 0, e_us_DV, scale_D[:, None]), scale_D[:, None])

    def fit(weights_DV: "Floats", before: Fits | None) -> Fits:
        # One grid for all rows: that of the smallest scale, which only errors below 0.001 shorten.
        alphas_A = alpha_grid(float(scale_D.min()))
        if before is None:
            left_D, right_D, unbounded_D = _search(log_DV, e_ds_DV, weights_DV, alphas_A)
        else:
            left_D, right_D = (np.clip(before.alpha * by, alphas_A[0], alphas_A[-1]) for by in (1.0 / STEP, STEP))
            unbounded_D = before.unbounded
        return _least_squares(log_DV, e_ds_DV, weights_DV, scale_D, (left_D, right_D), unbounded_D)

    def residuals(fits: Fits) -> "Floats":
        k_D1 = (fits.k * scale_D**fits.alpha)[:, None]
        residual_DV: Floats = k_D1 * np.exp(fits.alpha[:, None] * log_DV) + fits.e_ir[:, None] - e_ds_DV
        return residual_DV

    return fit(weights_DV, None) if delta is None else reweighted(fit, residuals, weights_DV, delta)


def _search(
    log_DV: "Floats", y_DV: "Floats", weights_DV: "Floats", alphas_A: "Floats"
) -> tuple["Floats", "Floats", "Bools"]:
    """The alphas between which each row's best one lies, and whether the largest fits as well."""
    sse_DA, slack_D = _grid(log_DV, y_DV, weights_DV, alphas_A)
    good_DA = sse_DA <= (sse_DA.min(axis=1) + slack_D)[:, None]
    best_D = good_DA.argmax(axis=1)
    left_D, right_D = alphas_A[np.maximum(best_D - 1, 0)], alphas_A[np.minimum(best_D + 1, NUM_ALPHAS - 1)]
    return left_D, right_D, good_DA[:, -1]


def _least_squares(
    log_DV: "Floats",
    y_DV: "Floats",
    weights_DV: "Floats",
    scale_D: "Floats",
    between: tuple["Floats", "Floats"],
    unbounded_D: "Bools",
) -> Fits:
    alpha_D = _bisect(log_DV, y_DV, weights_DV, *between)
    x_DV = np.exp(alpha_D[:, None] * log_DV)
    k_D, e_ir_D = _centred_line(x_DV, y_DV, weights_DV)
    residual_DV = k_D[:, None] * x_DV + e_ir_D[:, None] - y_DV
    rmse_D = np.sqrt(_dot(weights_DV, residual_DV**2) / weights_DV.sum(axis=1))
    alpha_D = np.where(k_D > 0, alpha_D, 1.0)
    return Fits(k_D / scale_D**alpha_D, alpha_D, e_ir_D, rmse_D, unbounded_D)


def _grid(log_DV: "Floats", y_DV: "Floats", weights_DV: "Floats", alphas_A: "Floats") -> tuple["Floats", "Floats"]:
    """Least sum of squares for each row and alpha, and the part of it that is rounding."""
    x_DAV = np.exp(alphas_A[:, None] * log_DV[:, None, :])
    wy_DV = weights_DV * y_DV
    sums = np.stack([weights_DV, wy_DV], axis=2)
    x_DA2 = x_DAV @ sums
    w_D1, y_D1, yy_D1 = weights_DV.sum(axis=1)[:, None], wy_DV.sum(axis=1)[:, None], _dot(wy_DV, y_DV)[:, None]
    x_DAV *= x_DAV
    xx_DA = (x_DAV @ weights_DV[:, :, None])[:, :, 0]
    return sum_of_squares(w_D1, x_DA2[:, :, 0], y_D1, xx_DA, x_DA2[:, :, 1], yy_D1), ROUNDING * yy_D1[:, 0]


def _bisect(log_DV: "Floats", y_DV: "Floats", weights_DV: "Floats", left_D: "Floats", right_D: "Floats") -> "Floats":
    """Alpha where the slope of the sum of squares changes sign, for each row, or the end that it falls towards.

    The slope, unlike the sum of squares itself, fixes alpha to full precision. By the envelope theorem it needs no
    derivative of k and e_IR, on the bounds too.
    """
    for _ in range(NUM_BISECTIONS):
        alpha_D = 0.5 * (left_D + right_D)
        x_DV = np.exp(alpha_D[:, None] * log_DV)
        k_D, e_ir_D = _centred_line(x_DV, y_DV, weights_DV)
        residual_DV = k_D[:, None] * x_DV + e_ir_D[:, None] - y_DV
        uphill_D = _dot(weights_DV * residual_DV, x_DV * log_DV) > 0
        left_D, right_D = np.where(uphill_D, left_D, alpha_D), np.where(uphill_D, alpha_D, right_D)
    return 0.5 * (left_D + right_D)


def _centred_line(x_DV: "Floats", y_DV: "Floats", weights_DV: "Floats") -> tuple["Floats", "Floats"]:
    """`bounded_line` with centred sums, which keep the last digits."""
    w_D = weights_DV.sum(axis=1)
    x_D, y_D = _dot(weights_DV, x_DV) / w_D, _dot(weights_DV, y_DV) / w_D
    weighted_DV, centred_DV = weights_DV * x_DV, x_DV - x_D[:, None]
    var_D, cov_D = _dot(weights_DV, centred_DV**2), _dot(weights_DV * centred_DV, y_DV - y_D[:, None])
    k_D = np.maximum(np.divide(cov_D, var_D, where=var_D > 0, out=np.zeros_like(var_D)), 0.0)
    e_D = y_D - k_D * x_D
    xx_D, xy_D = _dot(weighted_DV, x_DV), _dot(weighted_DV, y_DV)
    floored_k_D = np.divide(xy_D, xx_D, where=xx_D > 0, out=np.zeros_like(xx_D))
    return np.where(e_D < 0, floored_k_D, k_D), np.maximum(e_D, 0.0)


def _huber_delta(fits: Fits, e_us_N: "Floats", e_ds_N: "Floats") -> float:
    residual_N = fits.k[0] * e_us_N ** fits.alpha[0] + fits.e_ir[0] - e_ds_N
    delta = HUBER_SIGMAS * MAD_SIGMA * float(np.median(abs(residual_N)))
    return delta if delta > 1e-9 else 0.0


def _dot(a_DV: "Floats", b_DV: "Floats") -> "Floats":
    sums_D: Floats = np.einsum("dv,dv->d", a_DV, b_DV)
    return sums_D
