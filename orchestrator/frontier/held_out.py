"""How well each fit foresees the cells with the highest upstream accuracy, beside simpler rivals. Pure numpy.

Every model sees the cells up to the 80 % quantile of upstream accuracy, and all predict the same points beyond it. A
law that the lower cells do not determine (it rests on a bound of alpha or k, or on no more points than it has
parameters) is listed with its error, but cannot win: its error is luck. On fewer than three points nothing wins.

Shape suffixes: N points, T training points, B points beyond.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.frontier.choices import METHODS, Choice, fit_points, vertices_of
from orchestrator.frontier.law import MIN_POINTS, Law, Loss, fit_law

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from orchestrator.frontier.choices import Method, Points

    Floats = NDArray[np.float64]
    Indices = NDArray[np.intp]

TRAIN_QUANTILE = 0.8
# Accuracies of 0 and 1 have no logit.
LOGIT_EDGE = 1e-4
MODEL_NAMES = {
    "hull": "hull fit",
    "rising": "rising fit",
    "all": "all-cells fit",
    "line": "line of logits",
    "constant": "constant",
    "monotone": "monotone regression",
}
"""The law fitted to hull, rising part and all; a straight line in logit space, a constant, a monotone regression."""
MODELS = tuple(MODEL_NAMES)
MIN_HELD_OUT = 3
DEGENERATE = {"k_low", "alpha_low", "alpha_high"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """Root mean square error of every model (`MODELS`) on the same points; None where it could not be fitted.

    The best model is none of the degenerate ones, and None on fewer than `MIN_HELD_OUT` points.
    """

    num_points: int
    rmse: dict[str, float | None]
    degenerate: tuple[str, ...]
    best_model: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Errors on all cells beyond, and on those vertices of the hull of all cells that lie beyond.

    The rivals are fitted to all lower cells for the former, and to the vertices of their hull for the latter.
    """

    cells: Contest
    frontier: Contest

    def own_rmse(self, method: "Method") -> float | None:
        """A method's error on its own kind of points: all cells beyond for "all", vertices beyond for the others."""
        return (self.cells if method == "all" else self.frontier).rmse[method]

    def better_than(self, method: "Method") -> str:
        """Which model predicts better, in words; nothing where none does.

        Asked are a method's own points, or all cells beyond where too few vertices lie there.
        """
        on_cells = method == "all" or self.frontier.best_model is None
        contest, points = (self.cells, "cells") if on_cells else (self.frontier, "vertices")
        own, best = contest.rmse[method], contest.best_model
        least = None if best is None else contest.rmse[best]
        if best is None or least is None or (own is not None and own <= least):
            return ""
        against = "" if own is None else f" against {own:.4f}"
        return f"on held-out {points} the {MODEL_NAMES[best]} predicts better (error {least:.4f}{against})"


def hold_out(us_N: "Floats", ds_N: "Floats", *, points: "Points" = "vertices", loss: Loss = "squared") -> HeldOut:
    """The errors of every model beyond the 80 % quantile of upstream accuracy; any number of points will do."""
    lower_N = us_N <= np.quantile(us_N, TRAIN_QUANTILE) if us_N.size else np.zeros(0, dtype=np.bool_)
    us_T, ds_T = us_N[lower_N], ds_N[lower_N]
    choices = [Choice(method=method, points=points, loss=loss) for method in METHODS]
    laws = [fit_law(*fit_points(us_T, ds_T, choice), loss=loss) for choice in choices]
    predictors = [None if law is None else law.predict for law in laws]
    degenerate = tuple(
        method
        for method, law in zip(METHODS, laws, strict=True)
        if law is not None and _is_degenerate(law, vertices_of(us_T, ds_T, method).size)
    )
    beyond = np.flatnonzero(~lower_N)
    corners = vertices_of(us_N, ds_N, "hull")
    lower_corners = vertices_of(us_T, ds_T, "hull")
    contests = [
        _contest([*predictors, *_rivals(us_T[train], ds_T[train])], degenerate, us_N[test], ds_N[test])
        for train, test in ((np.arange(us_T.size), beyond), (lower_corners, corners[~lower_N[corners]]))
    ]
    return HeldOut(cells=contests[0], frontier=contests[1])


def monotone(us_T: "Floats", ds_T: "Floats") -> Callable[["Floats"], "Floats"]:
    """The least-squares regression that never falls (pool adjacent violators): linear between points, flat outside."""
    us, inverse = np.unique(us_T, return_inverse=True)
    weights = np.bincount(inverse).astype(np.float64)
    means = np.bincount(inverse, weights=ds_T) / weights
    pools: list[tuple[float, float, int]] = []  # mean, weight, number of points
    for mean, weight in zip(means.tolist(), weights.tolist(), strict=True):
        pool = (mean, weight, 1)
        while pools and pools[-1][0] >= pool[0]:
            before = pools.pop()
            total = before[1] + pool[1]
            pool = ((before[0] * before[1] + pool[0] * pool[1]) / total, total, before[2] + pool[2])
        pools.append(pool)
    levels = np.repeat([pool[0] for pool in pools], [pool[2] for pool in pools])
    return lambda us_B: np.interp(us_B, us, levels)


def line(us_T: "Floats", ds_T: "Floats") -> Callable[["Floats"], "Floats"]:
    """The straight line of downstream logit on upstream logit, by least squares; flat where all upstream ones agree."""
    x_T, y_T = _logit(us_T), _logit(ds_T)
    centred_T = x_T - x_T.mean()
    spread = float(centred_T @ centred_T)
    slope = float(centred_T @ y_T) / spread if spread > 0 else 0.0
    start = float(y_T.mean()) - slope * float(x_T.mean())
    # The logistic function as a hyperbolic tangent, which does not overflow where exp would.
    return lambda us_B: 0.5 + 0.5 * np.tanh(0.5 * (start + slope * _logit(us_B)))


def _rivals(us_T: "Floats", ds_T: "Floats") -> list[Callable[["Floats"], "Floats"] | None]:
    """Line, constant, monotone; None where there is too little to fit."""
    if not us_T.size:
        return [None, None, None]
    mean = float(ds_T.mean())
    return [
        line(us_T, ds_T),
        lambda us_B: np.full(us_B.shape, mean),
        monotone(us_T, ds_T),
    ]


def _is_degenerate(law: Law, num_points: int) -> bool:
    return num_points <= MIN_POINTS or not DEGENERATE.isdisjoint(law.at_bound)


def _contest(
    predictors: list[Callable[["Floats"], "Floats"] | None],
    degenerate: tuple[str, ...],
    us_B: "Floats",
    ds_B: "Floats",
) -> Contest:
    rmse = {
        name: float(np.sqrt(np.mean((predict(us_B) - ds_B) ** 2))) if predict is not None and us_B.size else None
        for name, predict in zip(MODELS, predictors, strict=True)
    }
    known = [
        (error, MODELS.index(name)) for name, error in rmse.items() if error is not None and name not in degenerate
    ]
    best = MODELS[min(known)[1]] if known and us_B.size >= MIN_HELD_OUT else None
    return Contest(num_points=us_B.size, rmse=rmse, degenerate=degenerate, best_model=best)


def _logit(accuracy_N: "Floats") -> "Floats":
    inside_N = np.clip(accuracy_N, LOGIT_EDGE, 1.0 - LOGIT_EDGE)
    odds_N: Floats = np.log(inside_N / (1.0 - inside_N))
    return odds_N
