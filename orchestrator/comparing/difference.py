"""Which of two frontiers lies higher where, with intervals. Pure numpy.

The frontier of a study is the upper hull of its cells (arXiv 2110.02095, Lemma 2.1). The hull of a sample lies below
that of all models that could have been trained, the more so the fewer cells there are, so that neither the difference
of two hulls nor a percentile bootstrap of it says which frontier is higher. As for the laws (`frontier.bootstrap`), a
quarter of each study's cells is drawn without replacement (Politis and Romano 1994): how far the hulls of these samples
lie from that of all cells says how far that of all cells lies from the truth. The rate was chosen by experiment, on
four kinds of losses below three pairs of laws and between 20 and 500 cells a study; docs/comparing.md is the check on
fresh ones. Evaluation noise is in it where the sizes of the test sets are known (`frontier.samples`).

The band holds the whole difference with 95 %: the intervals of single places are widened until 95 % of the drawn curves
lie within them everywhere. So no region is called significant only because there were many places to look at.

Shape suffixes: N cells, S steps of upstream accuracy, D draws.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.frontier import NumTest, upper_hull
from orchestrator.frontier.samples import draw_samples

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

RATE = 0.4
"""The distance of a hull of n cells from the frontier shrinks as n^-RATE."""
NUM_STEPS = 101
MIN_CELLS = 12
"""With fewer cells, samples of them have too few to have a hull of their own."""
REACH = 0.9
"""Places are judged that the hulls of so many of the samples reach, of both studies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """The accuracies of one study's cells, and the sizes of the test sets; None where one of them is unknown."""

    us_N: "Floats"
    ds_N: "Floats"
    sizes: NumTest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Where one frontier lies above the other: by how much on average, and the 95 % interval of that average."""

    low: float
    high: float
    mean: float
    mean_low: float
    mean_high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first frontier less the second at equal steps of upstream accuracy, both within what all cells reach.

    Args:
        us_S: upstream accuracies.
        measured_S: difference of the two hulls.
        value_S: the same, corrected for what samples of cells miss; NaN where too few samples reach.
        low_S: bottom of the band that holds the true difference everywhere with 95 %; NaN as `value_S`.
        high_S: its top.
        mean: over the judged range, with its 95 % interval `mean_low` to `mean_high`.
        regions: where the band leaves out 0, from left to right.
        over_noise: evaluation noise of both studies is in it.
    """

    us_S: "Floats"
    measured_S: "Floats"
    value_S: "Floats"
    low_S: "Floats"
    high_S: "Floats"
    mean: float
    mean_low: float
    mean_high: float
    regions: tuple[Region, ...]
    over_noise: bool

    @property
    def judged(self) -> "Bools":
        """The steps that have a band."""
        return np.isfinite(self.low_S)


def find_difference(a: Cells, b: Cells, *, draws: int = 200, seed: int = 0) -> Difference | str:
    """How much higher the frontier of `a` lies than that of `b`; or why that cannot be told.

    Args:
        a: one study's cells.
        b: the other's.
        draws: samples of each study's cells.
        seed: of the samples; those of the two studies are independent.
    """
    few = min(a.us_N.size, b.us_N.size)
    if few < MIN_CELLS:
        return f"one study has {few} cell{'' if few == 1 else 's'} here, and {MIN_CELLS} are needed for an interval"
    low, high = max(a.us_N.min(), b.us_N.min()), min(a.us_N.max(), b.us_N.max())
    if not low < high:
        return "the two have no range of upstream accuracy in common"
    us_S = np.linspace(low, high, NUM_STEPS)
    # Which of the two gets which draws is up to the cells: to swap the studies is to turn the sign of the difference.
    first = sorted((a, b), key=_content)[0] is a
    a_DS, a_reach_S = _errors(a, us_S, draws, 2 * seed + (not first))
    b_DS, b_reach_S = _errors(b, us_S, draws, 2 * seed + first)
    reached = np.flatnonzero(np.minimum(a_reach_S, b_reach_S) >= REACH)
    if reached.size < 2:
        return "the range of upstream accuracy that the two have in common is too short"
    judged_S = slice(reached[0], reached[-1] + 1)
    measured_S = hull_at(a, us_S) - hull_at(b, us_S)
    drawn_DS = (measured_S + a_DS - b_DS)[:, judged_S]
    value_S, low_S, high_S = np.full((3, NUM_STEPS), np.nan)
    value_S[judged_S], low_S[judged_S], high_S[judged_S] = _band(drawn_DS)
    mean, mean_low, mean_high = _mean(drawn_DS)
    return Difference(
        us_S=us_S,
        measured_S=measured_S,
        value_S=value_S,
        low_S=low_S,
        high_S=high_S,
        mean=mean,
        mean_low=mean_low,
        mean_high=mean_high,
        regions=_regions(us_S[judged_S], drawn_DS, low_S[judged_S], high_S[judged_S]),
        over_noise=a.sizes is not None and b.sizes is not None,
    )


def hull_at(cells: Cells, us_S: "Floats") -> "Floats":
    """The upper hull's downstream accuracy at upstream accuracies that it reaches."""
    rows = upper_hull(cells.us_N, cells.ds_N)
    return np.interp(us_S, cells.us_N[rows], cells.ds_N[rows])


def _content(cells: Cells) -> bytes:
    return cells.us_N.tobytes() + cells.ds_N.tobytes()


def _errors(cells: Cells, us_S: "Floats", draws: int, seed: int) -> "tuple[Floats, Floats]":
    """How far the frontier may lie above the hull of all cells, by each sample; and the share of samples that reach."""
    samples = draw_samples(cells.us_N, cells.ds_N, cells.sizes, draws=draws, seed=seed)
    centre_S = hull_at(Cells(us_N=cells.us_N, ds_N=samples.centre_N), us_S)
    hulls_DS, reach_S = np.empty((draws, us_S.size)), np.zeros(us_S.size)
    corners = samples.corners
    for draw, used_V in enumerate(corners.used_DV):
        us_V, ds_V = corners.us_DV[draw, used_V], corners.ds_DV[draw, used_V]
        hulls_DS[draw] = np.interp(us_S, us_V, ds_V)
        reach_S += (us_V[0] <= us_S) & (us_S <= us_V[-1])
    wider = 1.0 / ((cells.us_N.size / samples.num_models) ** RATE - 1.0)
    return wider * (centre_S - hulls_DS), reach_S / draws


def _band(drawn_DS: "Floats") -> "tuple[Floats, Floats, Floats]":
    """The middle of the drawn curves, and the band that holds 95 % of them as a whole."""
    bottom_S, middle_S, top_S = np.percentile(drawn_DS, [2.5, 50.0, 97.5], axis=0)
    down_S, up_S = (np.maximum(side_S, 1e-12) for side_S in (middle_S - bottom_S, top_S - middle_S))
    farthest_D = np.maximum((drawn_DS - middle_S) / up_S, (middle_S - drawn_DS) / down_S).max(axis=1)
    factor = max(1.0, float(np.quantile(farthest_D, 0.95)))
    return middle_S, middle_S - factor * down_S, middle_S + factor * up_S


def _mean(drawn_DS: "Floats") -> tuple[float, float, float]:
    low, middle, high = np.percentile(drawn_DS.mean(axis=1), [2.5, 50.0, 97.5]).tolist()
    return middle, low, high


def _regions(us_S: "Floats", drawn_DS: "Floats", low_S: "Floats", high_S: "Floats") -> tuple[Region, ...]:
    sign_S = np.where(low_S > 0, 1, np.where(high_S < 0, -1, 0))
    edges = np.flatnonzero(np.diff(sign_S)) + 1
    found = []
    for steps in np.split(np.arange(us_S.size), edges):
        if sign_S[steps[0]]:
            mean, low, high = _mean(drawn_DS[:, steps])
            found.append(
                Region(low=float(us_S[steps[0]]), high=float(us_S[steps[-1]]), mean=mean, mean_low=low, mean_high=high)
            )
    return tuple(found)


def difference_of_values(a: tuple[float, float, float], b: tuple[float, float, float]) -> tuple[float, float, float]:
    """The difference of two independent estimates and its 95 % interval, from theirs: (value, low, high) each.

    Source: Zou and Donner, Statistics in Medicine 27 (2008), the method of variance estimates recovery.
    """
    (value_a, low_a, high_a), (value_b, low_b, high_b) = a, b
    difference = value_a - value_b
    down = np.hypot(value_a - low_a, high_b - value_b)
    up = np.hypot(high_a - value_a, value_b - low_b)
    return difference, float(difference - down), float(difference + up)
