"""Whether the data identify where a frontier saturates, in one plain sentence.

Shape suffix: V vertices of the hull.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from orchestrator.frontier.law import ALPHA_HIGH, ALPHA_LOW, Bound, Law

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from orchestrator.frontier.bootstrap import Interval

    Floats = NDArray[np.float64]

MIN_VERTICES = 4
MAX_WIDTH = 0.1
NARROW = 0.02
# Three digits print less as 0.
ZERO = 0.0005
MAX_FAILED = 0.1
# Of fewer draws, the 2.5 % and 97.5 % quantiles are little more than the two outermost draws.
MIN_DRAWS = 40
# How much of the upstream range says whether the frontier still rises at its end.
LAST_PART = 0.2
# A frontier that loses again so much of what it rose does not rise with upstream accuracy.
FALLS = 0.5

Reason = Literal[
    "no cells",
    "too few cells",
    "does not rise",
    "too few draws",
    "still rising",
    "end not seen",
    "bend not seen",
    "unstable fit",
]
"""Why a saturation value is not identifiable, in the order in which one of several reasons leads:

no cell has both accuracies; too few carry the law; downstream accuracy does not rise with upstream accuracy; the
bootstrap has too few draws for an interval; the frontier still rises at its end, or its end lies anywhere in too wide
an interval; how it bends (alpha) is open; the draws cannot be fitted, or contradict the fit.
"""
REASONS: tuple[Reason, ...] = get_args(Reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a saturation value is identified, one sentence that says it or why not, and the reasons.

    `reason` is the leading one in two or three words (None where the value is identified), `reasons` are all of them in
    technical words.
    """

    identifiable: bool = False
    verdict: str = ""
    reason: Reason | None = None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A law, how sure it is, how well it foresees what lies beyond, and whether the data identify it."""

    law: Law
    interval: "Interval"
    held_out_rmse: float | None
    said: Verdict = Verdict()


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a fit was made of.

    Args:
        num_cells: with both accuracies.
        num_points: of these cells that carry the fit: vertices of the hull or of its rising part, or all.
        us_V: upstream accuracies of the hull's vertices, ascending.
        ds_V: downstream accuracies of the hull's vertices.
        what: carries the fit, in words.
    """

    num_cells: int
    num_points: int
    us_V: "Floats"
    ds_V: "Floats"
    what: str = "the hull"

    @property
    def best_ds(self) -> float:
        """The best downstream accuracy of any cell."""
        return float(self.ds_V.max())

    @property
    def falls(self) -> bool:
        """Whether the frontier loses much of what it rose before its upstream end."""
        return self.best_ds - float(self.ds_V[-1]) > FALLS * (self.best_ds - float(self.ds_V[0]))

    @property
    def still_rises(self) -> bool:
        """Whether the frontier, were it to go on as over the last fifth of its upstream range, gained much to the end.

        A hull bends down only, so that this is as far as it can lead.
        """
        first, last = float(self.us_V[0]), float(self.us_V[-1])
        before = last - LAST_PART * (last - first)
        gain = float(self.ds_V[-1] - np.interp(before, self.us_V, self.ds_V))
        return last > before and gain / (last - before) * (1.0 - last) > MAX_WIDTH


def verdict(fit: Fit | None, seen: Seen, *, better: str = "") -> Verdict:
    """Whether the data identify the saturation value, and one plain sentence that says it or why not.

    Args:
        fit: None where there is none.
        seen: what it was made of.
        better: which model foresees held-out cells better, in words (`HeldOut.better_than`).
    """
    doubts = _few_cells(fit, seen)
    if fit is not None:
        doubts += _on_bounds(fit.law) + _in_doubt(fit, 1.0 - seen.best_ds)
    if fit is not None and not doubts:
        return Verdict(identifiable=True, verdict="; ".join(filter(None, [_saturation(fit, seen), better])))
    reason = _leading([kind for kind, _ in doubts], seen)
    return Verdict(
        verdict=f"not identifiable: {_plainly(reason, fit, seen)}", reason=reason, reasons=tuple(s for _, s in doubts)
    )


def _saturation(fit: Fit, seen: Seen) -> str:
    """The saturation value with its interval, and what it takes for granted."""
    low, high = fit.interval.e_ir_low, fit.interval.e_ir_high
    assert low is not None
    assert high is not None
    digits = 2 if high - low >= NARROW else 3
    value, bottom, top = (f"{1.0 - e:.{digits}f}" for e in (fit.law.e_ir, high, low))
    best_us = float(seen.us_V[-1])
    condition = f" if the law holds beyond the best upstream accuracy seen ({best_us:.3f})" if best_us < 1.0 else ""
    is_there = high >= 1.0 - seen.best_ds
    reached = f"; the best cell, {seen.best_ds:.{digits}f}, is there already" if is_there else ""
    return f"saturates at {value} [{bottom}, {top}]{condition}{reached}"


def _leading(kinds: list[Reason], seen: Seen) -> Reason:
    """The reason that explains the others."""
    first = min(kinds, key=REASONS.index)
    if first in REASONS[:3]:
        return first
    if seen.falls:
        return "does not rise"
    return "still rising" if first == "end not seen" and seen.still_rises else first


def _plainly(reason: Reason, fit: Fit | None, seen: Seen) -> str:
    """A reason as a person would give it."""
    cells = f"{'this' if seen.num_cells == 1 else 'these'} {_cells(seen.num_cells)}"
    match reason:
        case "no cells":
            return "no cell has both accuracies"
        case "too few cells":
            return _too_few(seen)
        case "does not rise":
            return (
                "downstream accuracy does not rise with upstream accuracy here, so there is no frontier to extrapolate"
            )
        case "still rising":
            return f"still rising at the best cell ({seen.best_ds:.2f}), no sign of a plateau yet: {_range(fit)}"
        case "end not seen":
            best = f", and the best cell has {seen.best_ds:.2f}"
            return f"where it saturates cannot be told from {cells}: {_range(fit)}{best}"
        case "bend not seen":
            return f"how it bends, and so where it ends, cannot be told from {cells}"
        case "too few draws":
            return _draws(fit)
        case "unstable fit":
            return f"parts of {cells} lead to other answers than all of them"


def _range(fit: Fit | None) -> str:
    """`its 95 % interval is 0.60 to 0.79`: that of the saturation value, or the value where the draws agree on one."""
    assert fit is not None
    assert fit.interval.e_ir_low is not None
    assert fit.interval.e_ir_high is not None
    return interval_text(1.0 - fit.interval.e_ir_high, 1.0 - fit.interval.e_ir_low)


def interval_text(low: float, high: float, whose: str = "its") -> str:
    """What is known of a saturation value that is not identified, from the ends of its interval."""
    ends = f"{low:.2f}", f"{high:.2f}"
    return f"the fits end at {ends[0]}" if len({*ends}) == 1 else f"{whose} 95 % interval is {ends[0]} to {ends[1]}"


def _too_few(seen: Seen) -> str:
    if seen.num_points >= MIN_VERTICES:
        return f"{_cells(seen.num_cells)} have too few different upstream accuracies to see how it bends"
    if seen.num_points == seen.num_cells:
        return f"{_cells(seen.num_cells)} {'is' if seen.num_cells == 1 else 'are'} too few to see how it bends"
    are = "lies" if seen.num_points == 1 else "lie"
    return f"only {seen.num_points} of {_cells(seen.num_cells)} {are} on {seen.what}, too few to see how it bends"


def _cells(number: int) -> str:
    return f"{number:,} cell{'' if number == 1 else 's'}"


def _draws(fit: Fit | None) -> str:
    assert fit is not None
    return f"{fit.interval.num_draws} bootstrap draws are too few for a 95 % interval ({MIN_DRAWS} are enough)"


def _few_cells(fit: Fit | None, seen: Seen) -> list[tuple[Reason, str]]:
    if not seen.num_cells:
        return [("no cells", "no cell has both accuracies")]
    if seen.num_points >= MIN_VERTICES and fit is not None:
        return []
    vertices = f"{seen.what} has {seen.num_points} {'vertex' if seen.num_points == 1 else 'vertices'}"
    return [("too few cells", f"{vertices}, no more than the law has parameters" if fit is not None else vertices)]


def _on_bounds(law: Law) -> list[tuple[Reason, str]]:
    """Bounds of alpha and k only: e_IR = 0 is told by its interval."""
    phrases: dict[Bound, tuple[Reason, str]] = {
        "k_low": ("does not rise", "the frontier does not rise with upstream accuracy"),
        "alpha_low": ("bend not seen", f"alpha is on its lower bound ({law.alpha:.3g})"),
        "alpha_high": (
            "bend not seen",
            f"alpha has no upper limit (from {law.alpha:.3g} up all fit equally well)",
        ),
    }
    return [phrases[bound] for bound in law.at_bound if bound in phrases]


def _in_doubt(fit: Fit, min_e_ds: float) -> list[tuple[Reason, str]]:
    """What the draws say against e_IR and alpha.

    An interval that reaches min(e_DS) cannot tell where the frontier ends, unless it is narrow: then the plateau itself
    has been seen.
    """
    interval = fit.interval
    low, high, a_low, a_high = interval.e_ir_low, interval.e_ir_high, interval.alpha_low, interval.alpha_high
    doubts: list[tuple[Reason, str]] = []
    if interval.num_draws < MIN_DRAWS:
        doubts.append(("too few draws", _draws(fit)))
    if interval.num_failed > MAX_FAILED * interval.num_draws:
        failed = f"{interval.num_failed} of {interval.num_draws} bootstrap draws could not be fitted"
        doubts.append(("unstable fit", failed))
    if low is None or high is None or a_low is None or a_high is None:
        return doubts
    if high - low > MAX_WIDTH:
        doubts.append(("end not seen", f"the interval of e_IR is {high - low:.2f} wide"))
    if a_low <= ALPHA_LOW and a_high >= ALPHA_HIGH:
        doubts.append(("bend not seen", "the interval of alpha holds every value that is allowed"))
    if low < ZERO:
        doubts.append(("end not seen", "e_IR is not separated from 0"))
    if high >= min_e_ds and high - low > NARROW:
        doubts.append(("end not seen", "e_IR is not separated from the lowest downstream error"))
    if not low - 1e-9 <= fit.law.e_ir <= high + 1e-9:
        doubts.append(("unstable fit", "e_IR lies outside its own bootstrap interval"))
    if "alpha_high" not in fit.law.at_bound and not a_low * (1 - 1e-9) <= fit.law.alpha <= a_high * (1 + 1e-9):
        doubts.append(("unstable fit", "alpha lies outside its own bootstrap interval"))
    return doubts
