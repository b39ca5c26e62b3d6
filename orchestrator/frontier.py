"""The saturation frontier: upper hull, law, intervals, verdict. Pure numpy.

Source: arXiv 2110.02095 (Lemma 2.1 for the hull, section 2 for the law). The loss, optimiser and bounds of the
paper's fit are not published. Chosen here: plain least squares, solved by variable projection, with the bounds below.

All accuracies are fractions in [0, 1]; error is 1 - accuracy.
`us` is upstream and `ds` downstream accuracy.
Shape suffixes: N points, V hull vertices, D bootstrap draws, A values of alpha.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]
    Indices = NDArray[np.intp]

Method = Literal["hull", "rising", "all"]
METHODS: tuple[Method, ...] = get_args(Method)
Bound = Literal["k_low", "alpha_low", "alpha_high", "e_ir_low"]

ALPHA_LOW, ALPHA_HIGH = 0.01, 100.0
# k = k_scaled / max(e_US)^alpha must stay a finite float, so tiny errors lower the upper bound of alpha.
MAX_LOG10_K = 290.0
# Neighbours on the grid differ by 3.7 %: the bracket that bisection starts from.
NUM_ALPHAS = 256
NUM_BISECTIONS = 40
# exp(alpha * LOG_OF_ZERO) is 0 for every allowed alpha, and 0 * LOG_OF_ZERO is 0 where 0 * -inf would be NaN.
LOG_OF_ZERO = -1e5
# Sums of squares that differ by less than this part of sum(e_DS^2) are equal up to rounding.
ROUNDING = 1e-14
# Draws x points held at once by the bootstrap (8 bytes each, about six such arrays live at a time).
MAX_BLOCK = 2_000_000

MIN_POINTS = 3
MIN_VERTICES = 4
MAX_WIDTH = 0.1
NARROW = 0.02
MAX_FAILED = 0.1
TRAIN_QUANTILE = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """e_DS = k e_US^alpha + e_IR, its root mean square residual, and the bounds that it rests on.

    Where k is 0, alpha is 1 by convention. Where every alpha from some value to the upper bound fits equally well up to
    rounding, alpha is the smallest of them and `at_bound` holds "alpha_high".
    """

    k: float
    alpha: float
    e_ir: float
    rmse: float
    at_bound: tuple[Bound, ...] = ()

    def predict(self, us_N: "Floats") -> "Floats":
        """Downstream accuracy at the given upstream accuracies."""
        e_ds_N: Floats = self.k * (1.0 - us_N) ** self.alpha + self.e_ir
        return 1.0 - e_ds_N


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """95 % percentile interval over bootstrap draws; the bounds are None where no draw could be fitted.

    A draw that any large alpha fits equally well counts with the upper bound: an `alpha_high` of 100 says "no limit".
    """

    e_ir_low: float | None
    e_ir_high: float | None
    alpha_low: float | None
    alpha_high: float | None
    num_draws: int
    num_failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A law, how sure it is, and how well it foresees the cells with the highest upstream accuracy."""

    law: Law
    interval: Interval
    held_out_rmse: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """Hull vertices (V rows of the points), the fit of each method, and what the data can say about saturation."""

    hull: "Indices"
    fits: dict[Method, Fit | None]
    identifiable: bool
    verdict: str


@dataclass(frozen=True, slots=True)
class _Fits:
    """One fit per draw (each field has D values); `unbounded`: the largest alpha fits as well, up to rounding."""

    k: "Floats"
    alpha: "Floats"
    e_ir: "Floats"
    rmse: "Floats"
    unbounded: "Bools"


def find_frontier(us_N: "Floats", ds_N: "Floats", *, draws: int = 200, seed: int = 0) -> Frontier:
    """The hull, the three fits with their intervals, and the verdict on the hull fit. Any number of points will do."""
    hull_V = upper_hull(us_N, ds_N)
    fits: dict[Method, Fit | None] = {m: _fit(us_N, ds_N, m, draws=draws, seed=seed) for m in METHODS}
    best = float(1.0 - ds_N.max()) if ds_N.size else 1.0
    identifiable, sentence = verdict(fits["hull"], num_vertices=hull_V.size, min_e_ds=best)
    return Frontier(hull=hull_V, fits=fits, identifiable=identifiable, verdict=sentence)


def upper_hull(us_N: "Floats", ds_N: "Floats") -> "Indices":
    """Rows that are vertices of the upper convex hull, in order of increasing upstream accuracy (monotone chain).

    Points that lie on an edge are no vertices. Of equal points the first row stands for all.
    """
    order_N = np.lexsort((ds_N, us_N))
    us_N, ds_N = us_N[order_N], ds_N[order_N]
    first_N = np.ones(us_N.size, dtype=np.bool_)
    first_N[1:] = (np.diff(us_N) != 0) | (np.diff(ds_N) != 0)
    return order_N[first_N][_chain(us_N[first_N], ds_N[first_N])]


def rising_part(ds_V: "Floats") -> int:
    """How many vertices, from the left, rise: up to and with the first that reaches the best downstream accuracy."""
    return int(np.argmax(ds_V)) + 1 if ds_V.size else 0


def fit_law(us_N: "Floats", ds_N: "Floats") -> Law | None:
    """The law by least squares, or None where fewer than three different upstream accuracies leave it open."""
    e_us_N, e_ds_N, weights_1N = 1.0 - us_N, 1.0 - ds_N, np.ones((1, us_N.size))
    if _num_distinct(us_N, weights_1N)[0] < MIN_POINTS:
        return None
    fits = _fit_weighted(e_us_N, e_ds_N, weights_1N)
    k, alpha, e_ir = float(fits.k[0]), float(fits.alpha[0]), float(fits.e_ir[0])
    hits: dict[Bound, bool] = {
        "k_low": k == 0,
        "alpha_low": k > 0 and alpha < ALPHA_LOW * 1.000001,
        "alpha_high": k > 0 and bool(fits.unbounded[0]),
        "e_ir_low": e_ir == 0,
    }
    bounds = tuple(bound for bound, hit in hits.items() if hit)
    return Law(k=k, alpha=alpha, e_ir=e_ir, rmse=float(fits.rmse[0]), at_bound=bounds)


def bootstrap(us_N: "Floats", ds_N: "Floats", method: Method, *, draws: int = 200, seed: int = 0) -> Interval:
    """95 % percentile interval of e_IR and alpha over models drawn with replacement.

    The hull is found again for each draw. A draw with fewer than three different upstream accuracies among its
    points (or vertices) cannot be fitted: it is counted in `num_failed`.

    It says how much the fit leans on single models. It does not cover what no model of the study reached: the hull of a
    sample lies below the frontier of all models that could have been trained.
    """
    picks_DN = np.random.default_rng(seed).integers(0, us_N.size, (draws, us_N.size))
    weights_DN = _draw_weights(us_N, ds_N, method, picks_DN)
    weights_DN = weights_DN[_num_distinct(us_N, weights_DN) >= MIN_POINTS]
    num_failed = draws - weights_DN.shape[0]
    if num_failed == draws:
        return Interval(
            e_ir_low=None, e_ir_high=None, alpha_low=None, alpha_high=None, num_draws=draws, num_failed=draws
        )
    used_N = weights_DN.any(axis=0)
    e_us_N, e_ds_N, weights_DN = 1.0 - us_N[used_N], 1.0 - ds_N[used_N], weights_DN[:, used_N]
    num_blocks = -(-weights_DN.size // MAX_BLOCK)
    fits = [_fit_weighted(e_us_N, e_ds_N, block) for block in np.array_split(weights_DN, num_blocks) if block.size]
    alphas = [np.where(f.unbounded & (f.k > 0), ALPHA_HIGH, f.alpha) for f in fits]
    e_low, e_high = np.percentile(np.concatenate([f.e_ir for f in fits]), [2.5, 97.5]).tolist()
    a_low, a_high = np.percentile(np.concatenate(alphas), [2.5, 97.5]).tolist()
    return Interval(
        e_ir_low=e_low, e_ir_high=e_high, alpha_low=a_low, alpha_high=a_high, num_draws=draws, num_failed=num_failed
    )


def held_out_rmse(us_N: "Floats", ds_N: "Floats", method: Method) -> float | None:
    """Error of the law fitted up to the 80 % quantile of upstream accuracy on what lies beyond it.

    Each method is asked for its own points: "all" for every cell beyond, "hull" and "rising" for those vertices of the
    hull of all cells that lie beyond. None where the lower part cannot be fitted or nothing lies beyond.
    """
    lower_N = us_N <= np.quantile(us_N, TRAIN_QUANTILE)
    us, ds = us_N[lower_N], ds_N[lower_N]
    train = _select(us, ds, method)
    test = _select(us_N, ds_N, method)
    test = test[~lower_N[test]]
    law = fit_law(us[train], ds[train])
    if law is None or not test.size:
        return None
    return float(np.sqrt(np.mean((law.predict(us_N[test]) - ds_N[test]) ** 2)))


def verdict(fit: Fit | None, *, num_vertices: int, min_e_ds: float) -> tuple[bool, str]:
    """Whether the data identify the saturation value, and one plain sentence that says it or why not."""
    reasons = _vertex_reasons(fit, num_vertices)
    if fit is not None:
        reasons += _bound_reasons(fit.law) + _interval_reasons(fit, min_e_ds)
    if fit is None or reasons:
        return False, f"not identifiable: {'; '.join(reasons)}"
    low, high = fit.interval.e_ir_low, fit.interval.e_ir_high
    assert low is not None
    assert high is not None
    digits = 2 if high - low >= NARROW else 3
    value, bottom, top = (f"{1.0 - e:.{digits}f}" for e in (fit.law.e_ir, high, low))
    reached = f"; the best cell, {1.0 - min_e_ds:.{digits}f}, is there already" if high >= min_e_ds else ""
    return True, f"saturates at {value} [{bottom}, {top}]{reached}"


def _fit(us_N: "Floats", ds_N: "Floats", method: Method, *, draws: int, seed: int) -> Fit | None:
    rows = _select(us_N, ds_N, method)
    law = fit_law(us_N[rows], ds_N[rows])
    if law is None:
        return None
    interval = bootstrap(us_N, ds_N, method, draws=draws, seed=seed)
    return Fit(law=law, interval=interval, held_out_rmse=held_out_rmse(us_N, ds_N, method))


def _select(us_N: "Floats", ds_N: "Floats", method: Method) -> "Indices":
    if method == "all":
        return np.arange(us_N.size)
    hull_V = upper_hull(us_N, ds_N)
    return hull_V if method == "hull" else hull_V[: rising_part(ds_N[hull_V])]


def _chain(us_N: "Floats", ds_N: "Floats") -> list[int]:
    """Vertices of points that are sorted by upstream, then downstream accuracy."""
    # A vertex tops every point on its left (rising part) or every point on its right (falling part). This leaves
    # some tens of 1,500 points for the loop, and makes a bootstrap of hulls cheap.
    best_left_N = np.concatenate([[-np.inf], np.maximum.accumulate(ds_N)[:-1]])
    best_right_N = np.concatenate([np.maximum.accumulate(ds_N[::-1])[-2::-1], [-np.inf]])
    candidates = np.flatnonzero((ds_N > best_left_N) | (ds_N > best_right_N)) if ds_N.size else np.arange(0)
    points = list(zip(us_N[candidates].tolist(), ds_N[candidates].tolist(), strict=True))
    stack: list[int] = []
    for i, point in enumerate(points):
        while stack and points[stack[-1]][0] == point[0]:
            stack.pop()
        while len(stack) > 1 and not _is_above(points[stack[-2]], points[stack[-1]], point):
            stack.pop()
        stack.append(i)
    return [int(candidates[i]) for i in stack]


def _is_above(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether b lies above the line from a to c by more than rounding of accuracies near 1 can feign."""
    abx, aby, acx, acy = b[0] - a[0], b[1] - a[1], c[0] - a[0], c[1] - a[1]
    return aby * acx - abx * acy > 1e-15 * (abx + abs(aby) + acx + abs(acy))


def _draw_weights(us_N: "Floats", ds_N: "Floats", method: Method, picks_DN: "NDArray[np.int64]") -> "Floats":
    """How often each point counts in the fit of each draw."""
    if method == "all":
        return np.stack([np.bincount(picks_N, minlength=us_N.size) for picks_N in picks_DN]).astype(np.float64)
    weights_DN = np.zeros(picks_DN.shape)
    order_N = np.lexsort((ds_N, us_N))
    sorted_us_N, sorted_ds_N = us_N[order_N], ds_N[order_N]
    for weights_N, picks_N in zip(weights_DN, picks_DN, strict=True):
        drawn = np.flatnonzero(np.bincount(picks_N, minlength=us_N.size)[order_N])
        vertices = drawn[_chain(sorted_us_N[drawn], sorted_ds_N[drawn])]
        if method == "rising":
            vertices = vertices[: rising_part(sorted_ds_N[vertices])]
        weights_N[order_N[vertices]] = 1.0
    return weights_DN


def _num_distinct(us_N: "Floats", weights_DN: "Floats") -> "NDArray[np.int64]":
    """Number of different upstream accuracies among the points with a weight, for each draw."""
    if not us_N.size:
        return np.zeros(weights_DN.shape[0], dtype=np.int64)
    order_N = np.argsort(us_N, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(us_N[order_N]) != 0]))
    counts: NDArray[np.int64] = np.logical_or.reduceat(weights_DN[:, order_N] > 0, starts, axis=1).sum(axis=1)
    return counts


def _fit_weighted(e_us_N: "Floats", e_ds_N: "Floats", weights_DN: "Floats") -> _Fits:
    """The weighted least-squares law of each row of weights: a grid over log alpha, then bisection on the slope.

    At least three different e_US must have a weight. e_US is divided by its largest value, so that k cannot run away
    with alpha while searching.
    """
    scale = float(e_us_N.max())
    positive_N = e_us_N > 0
    log_N = np.log(e_us_N / scale, where=positive_N, out=np.full(e_us_N.size, LOG_OF_ZERO))
    high = min(ALPHA_HIGH, MAX_LOG10_K / max(-np.log10(scale), 1e-9))
    alphas_A = np.geomspace(ALPHA_LOW, high, NUM_ALPHAS)
    sse_DA, slack_D = _grid_sse(log_N, e_ds_N, weights_DN, alphas_A)
    good_DA = sse_DA <= (sse_DA.min(axis=1) + slack_D)[:, None]
    best_D = good_DA.argmax(axis=1)
    left_D, right_D = alphas_A[np.maximum(best_D - 1, 0)], alphas_A[np.minimum(best_D + 1, NUM_ALPHAS - 1)]
    alpha_D = _bisect(log_N, e_ds_N, weights_DN, left_D, right_D)
    x_DN = np.exp(alpha_D[:, None] * log_N)
    k_D, e_ir_D = _bounded_line(x_DN, e_ds_N, weights_DN)
    residual_DN = k_D[:, None] * x_DN + e_ir_D[:, None] - e_ds_N
    rmse_D = np.sqrt(_dot(weights_DN, residual_DN**2) / weights_DN.sum(axis=1))
    alpha_D = np.where(k_D > 0, alpha_D, 1.0)
    return _Fits(k_D / scale**alpha_D, alpha_D, e_ir_D, rmse_D, good_DA[:, -1])


def _grid_sse(log_N: "Floats", y_N: "Floats", weights_DN: "Floats", alphas_A: "Floats") -> tuple["Floats", "Floats"]:
    """Least sum of squares for each draw and alpha, and the part of it that is rounding.

    Only weighted sums are needed, so one matrix product serves all draws; `_bounded_line` explains the bounds.
    """
    x_AN = np.exp(alphas_A[:, None] * log_N)
    w_D1 = weights_DN.sum(axis=1, keepdims=True)
    y_D1, yy_D1 = (weights_DN @ y_N)[:, None] / w_D1, (weights_DN @ y_N**2)[:, None]
    x_DA, xx_DA, xy_DA = weights_DN @ x_AN.T / w_D1, weights_DN @ (x_AN**2).T, weights_DN @ (x_AN * y_N).T
    var_DA, cov_DA = np.maximum(xx_DA - w_D1 * x_DA**2, 0.0), xy_DA - w_D1 * x_DA * y_D1
    k_DA = np.divide(cov_DA, var_DA, where=var_DA > 0, out=np.zeros_like(var_DA))
    free_DA = yy_D1 - w_D1 * y_D1**2 - np.maximum(k_DA, 0.0) * cov_DA
    floored_DA = yy_D1 - np.divide(xy_DA**2, xx_DA, where=xx_DA > 0, out=np.zeros_like(xx_DA))
    return np.where(y_D1 - np.maximum(k_DA, 0.0) * x_DA < 0, floored_DA, free_DA), ROUNDING * yy_D1[:, 0]


def _bisect(log_N: "Floats", y_N: "Floats", weights_DN: "Floats", left_D: "Floats", right_D: "Floats") -> "Floats":
    """Alpha where the slope of the sum of squares changes sign, for each draw, or the end that it falls towards.

    The slope, unlike the sum of squares itself, fixes alpha to full precision. By the envelope theorem it needs no
    derivative of k and e_IR, on the bounds too.
    """
    for _ in range(NUM_BISECTIONS):
        alpha_D = 0.5 * (left_D + right_D)
        x_DN = np.exp(alpha_D[:, None] * log_N)
        k_D, e_ir_D = _bounded_line(x_DN, y_N, weights_DN)
        residual_DN = k_D[:, None] * x_DN + e_ir_D[:, None] - y_N
        uphill_D = _dot(weights_DN * residual_DN, x_DN * log_N) > 0
        left_D, right_D = np.where(uphill_D, left_D, alpha_D), np.where(uphill_D, alpha_D, right_D)
    return 0.5 * (left_D + right_D)


def _bounded_line(x_DN: "Floats", y_N: "Floats", weights_DN: "Floats") -> tuple["Floats", "Floats"]:
    """Exact weighted least squares of y = k x + e for each draw with k >= 0 and 0 <= e <= 1; x >= 0 and 0 <= y <= 1.

    Where the free k is negative, k = 0 and e = mean(y) is best, and allowed. Otherwise e <= mean(y) <= 1, so only
    e >= 0 can bind, and then k = sum(xy) / sum(xx) >= 0 is allowed.
    """
    w_D = weights_DN.sum(axis=1)
    x_D, y_D = _dot(weights_DN, x_DN) / w_D, weights_DN @ y_N / w_D
    weighted_DN, centred_DN = weights_DN * x_DN, x_DN - x_D[:, None]
    var_D, cov_D = _dot(weights_DN, centred_DN**2), _dot(weights_DN * centred_DN, y_N - y_D[:, None])
    k_D = np.maximum(np.divide(cov_D, var_D, where=var_D > 0, out=np.zeros_like(var_D)), 0.0)
    e_D = y_D - k_D * x_D
    xx_D, xy_D = _dot(weighted_DN, x_DN), weighted_DN @ y_N
    floored_k_D = np.divide(xy_D, xx_D, where=xx_D > 0, out=np.zeros_like(xx_D))
    return np.where(e_D < 0, floored_k_D, k_D), np.maximum(e_D, 0.0)


def _dot(a_DN: "Floats", b_DN: "Floats") -> "Floats":
    sums_D: Floats = np.einsum("dn,dn->d", a_DN, b_DN)
    return sums_D


def _vertex_reasons(fit: Fit | None, num_vertices: int) -> list[str]:
    if num_vertices >= MIN_VERTICES and fit is not None:
        return []
    hull = f"the hull has {num_vertices} {'vertex' if num_vertices == 1 else 'vertices'}"
    return [f"{hull}, no more than the law has parameters" if fit is not None else hull]


def _bound_reasons(law: Law) -> list[str]:
    """Bounds of alpha and k only: e_IR = 0 is told by its interval."""
    phrases: dict[Bound, str] = {
        "k_low": "the frontier does not rise with upstream accuracy",
        "alpha_low": f"alpha is on its lower bound ({law.alpha:.3g})",
        "alpha_high": f"alpha has no upper limit (from {law.alpha:.3g} up all fit equally well)",
    }
    return [phrases[bound] for bound in law.at_bound if bound in phrases]


def _interval_reasons(fit: Fit, min_e_ds: float) -> list[str]:
    """What the bootstrap says against e_IR.

    An interval that reaches min(e_DS) cannot tell where the frontier ends, unless it is narrow: then the plateau itself
    has been seen.
    """
    low, high, failed = fit.interval.e_ir_low, fit.interval.e_ir_high, fit.interval.num_failed
    reasons = []
    if failed > MAX_FAILED * fit.interval.num_draws:
        reasons.append(f"{failed} of {fit.interval.num_draws} bootstrap draws could not be fitted")
    if low is None or high is None:
        return reasons
    if high - low > MAX_WIDTH:
        reasons.append(f"the interval of e_IR is {high - low:.2f} wide")
    if low <= 0:
        reasons.append("e_IR is not separated from 0")
    if high >= min_e_ds and high - low > NARROW:
        reasons.append("e_IR is not separated from the lowest downstream error")
    if not low - 1e-9 <= fit.law.e_ir <= high + 1e-9:
        reasons.append("e_IR lies outside its own bootstrap interval")
    return reasons
