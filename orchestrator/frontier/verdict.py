"""Whether the data identify where a frontier saturates, in one plain sentence."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.frontier.law import ALPHA_HIGH, ALPHA_LOW, Bound, Law

if TYPE_CHECKING:
    from orchestrator.frontier.bootstrap import Interval

MIN_VERTICES = 4
MAX_WIDTH = 0.1
NARROW = 0.02
# Three digits print less as 0.
ZERO = 0.0005
MAX_FAILED = 0.1
# Of fewer draws, the 2.5 % and 97.5 % quantiles are little more than the two outermost draws.
MIN_DRAWS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A law, how sure it is, how well it foresees what lies beyond, and whether the data identify it."""

    law: Law
    interval: "Interval"
    held_out_rmse: float | None
    identifiable: bool = False
    verdict: str = ""


def verdict(
    fit: Fit | None,
    *,
    num_vertices: int,
    min_e_ds: float,
    best_us: float,
    better: str = "",
    what: str = "the hull",
) -> tuple[bool, str]:
    """Whether the data identify the saturation value, and one plain sentence that says it or why not.

    Args:
        fit: None where there is none.
        num_vertices: how many points carry the fit: vertices of the hull or of its rising part, or cells.
        min_e_ds: the lowest downstream error of any cell.
        best_us: the highest upstream accuracy of any cell.
        better: which model foresees held-out cells better, in words (`HeldOut.better_than`).
        what: whose vertices these are.
    """
    reasons = _vertex_reasons(fit, num_vertices, what)
    if fit is not None:
        reasons += _bound_reasons(fit.law) + _interval_reasons(fit, min_e_ds)
    if fit is None or reasons:
        return False, f"not identifiable: {'; '.join(reasons)}"
    return True, "; ".join(filter(None, [_saturation(fit, min_e_ds, best_us), better]))


def _saturation(fit: Fit, min_e_ds: float, best_us: float) -> str:
    """The saturation value with its interval, and what it takes for granted."""
    low, high = fit.interval.e_ir_low, fit.interval.e_ir_high
    assert low is not None
    assert high is not None
    digits = 2 if high - low >= NARROW else 3
    value, bottom, top = (f"{1.0 - e:.{digits}f}" for e in (fit.law.e_ir, high, low))
    condition = f" if the law holds beyond the best upstream accuracy seen ({best_us:.3f})" if best_us < 1.0 else ""
    reached = f"; the best cell, {1.0 - min_e_ds:.{digits}f}, is there already" if high >= min_e_ds else ""
    return f"saturates at {value} [{bottom}, {top}]{condition}{reached}"


def _vertex_reasons(fit: Fit | None, num_vertices: int, what: str) -> list[str]:
    if not num_vertices:
        return ["no cell has both accuracies"]
    if num_vertices >= MIN_VERTICES and fit is not None:
        return []
    hull = f"{what} has {num_vertices} {'vertex' if num_vertices == 1 else 'vertices'}"
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
    """What the draws say against e_IR and alpha.

    An interval that reaches min(e_DS) cannot tell where the frontier ends, unless it is narrow: then the plateau itself
    has been seen.
    """
    interval = fit.interval
    low, high, a_low, a_high = interval.e_ir_low, interval.e_ir_high, interval.alpha_low, interval.alpha_high
    reasons = []
    if interval.num_draws < MIN_DRAWS:
        reasons.append(f"{interval.num_draws} bootstrap draws are too few for a 95 % interval ({MIN_DRAWS} are enough)")
    if interval.num_failed > MAX_FAILED * interval.num_draws:
        reasons.append(f"{interval.num_failed} of {interval.num_draws} bootstrap draws could not be fitted")
    if low is None or high is None or a_low is None or a_high is None:
        return reasons
    if high - low > MAX_WIDTH:
        reasons.append(f"the interval of e_IR is {high - low:.2f} wide")
    if a_low <= ALPHA_LOW and a_high >= ALPHA_HIGH:
        reasons.append("the interval of alpha holds every value that is allowed")
    if low < ZERO:
        reasons.append("e_IR is not separated from 0")
    if high >= min_e_ds and high - low > NARROW:
        reasons.append("e_IR is not separated from the lowest downstream error")
    if not low - 1e-9 <= fit.law.e_ir <= high + 1e-9:
        reasons.append("e_IR lies outside its own bootstrap interval")
    if "alpha_high" not in fit.law.at_bound and not a_low * (1 - 1e-9) <= fit.law.alpha <= a_high * (1 + 1e-9):
        reasons.append("alpha lies outside its own bootstrap interval")
    return reasons
