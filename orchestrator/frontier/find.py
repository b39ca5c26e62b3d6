"""Everything about one task's frontier: hull, fits, intervals, verdict, held-out error. Pure numpy."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.frontier.bootstrap import bootstrap
from orchestrator.frontier.choices import METHODS, Choice, Method, Points, fit_points, vertices_of
from orchestrator.frontier.held_out import HeldOut, hold_out
from orchestrator.frontier.hull import upper_hull
from orchestrator.frontier.law import MIN_POINTS, Loss, fit_law
from orchestrator.frontier.noise import NumTest
from orchestrator.frontier.samples import draw_samples
from orchestrator.frontier.verdict import Fit, Seen, Verdict, verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Indices = NDArray[np.intp]

WHAT: dict[Method, str] = {"hull": "the hull", "rising": "the rising part", "all": "the cloud of all cells"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """Hull vertices (V rows of the points), the fit of each method, and what the data can say about saturation.

    The verdict is that of the hull fit; every fit has its own.
    """

    hull: "Indices"
    fits: dict[Method, Fit | None]
    said: Verdict
    held_out: HeldOut


def find_frontier(
    us_N: "Floats",
    ds_N: "Floats",
    *,
    sizes: NumTest | None = None,
    points: Points = "vertices",
    loss: Loss = "squared",
    draws: int = 200,
    seed: int = 0,
) -> Frontier:
    """The hull, the three fits with their intervals, the verdict, and the held-out errors.

    Any number of points will do, and their order does not matter: only which of equal points stands for all does.

    Args:
        us_N: upstream accuracies, fractions in [0, 1].
        ds_N: downstream accuracies, likewise.
        sizes: of the test sets; None where one of them is unknown.
        points: what the laws of hull and rising part are fitted to.
        loss: of all three laws.
        draws: of each bootstrap.
        seed: of the draws.
    """
    hull_V = upper_hull(us_N, ds_N)
    keys = (ds_N, us_N) if sizes is None else (sizes.ds_N, sizes.us_N, ds_N, us_N)
    order_N = np.lexsort(keys)
    us_N, ds_N = us_N[order_N], ds_N[order_N]
    if sizes is not None:
        sizes = NumTest(us_N=sizes.us_N[order_N], ds_N=sizes.ds_N[order_N])
    samples = draw_samples(us_N, ds_N, sizes, draws=draws, seed=seed) if us_N.size >= MIN_POINTS else None
    held_out = hold_out(us_N, ds_N, points=points, loss=loss)
    us_V, ds_V = (side_N[upper_hull(us_N, ds_N)] for side_N in (us_N, ds_N))
    fits: dict[Method, Fit | None] = {}
    said: dict[Method, Verdict] = {}
    for method in METHODS:
        choice = Choice(method=method, points=points, loss=loss)
        law = fit_law(*fit_points(us_N, ds_N, choice), loss=loss)
        fit = None
        if law is not None:
            interval = bootstrap(us_N, ds_N, choice, law, sizes=sizes, samples=samples, draws=draws, seed=seed)
            fit = Fit(law=law, interval=interval, held_out_rmse=held_out.own_rmse(method))
        num = vertices_of(us_N, ds_N, method).size
        seen = Seen(num_cells=us_N.size, num_points=num, us_V=us_V, ds_V=ds_V, what=WHAT[method])
        said[method] = verdict(fit, seen, better=held_out.better_than(method))
        fits[method] = fit and replace(fit, said=said[method])
    return Frontier(hull=hull_V, fits=fits, said=said["hull"], held_out=held_out)
