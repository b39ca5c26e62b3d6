"""Newton's method for the losses of linear probes, its steps by preconditioned conjugate gradients.

A loss of linear scores with penalty / 2 * |W|^2 has a Hessian that is like curvature * X^T X / N + penalty, which a
rotation to the principal axes of the features makes diagonal. Features of networks are so alike that without this
preconditioner a method of first order takes thousands of passes at small penalties, and may not arrive. Steps are cut
short as in Nocedal and Wright, Numerical Optimization, section 7.1.

Shape suffixes: B examples of a chunk, D features, E = D + 1 with a feature of 1 at the end, C classes, R axes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import torch

MAX_STEPS: Final = 100
MAX_HALVINGS: Final = 30
MIN_CURVATURE: Final = 1e-12
DECREASE: Final = 1e-4
"""Of the loss, as a share of what its slope promises: a step with less is halved."""

ROUNDING: Final = 1e-13
"""Of a loss, as a share of it."""

EMPTY: Final = 1e-12
"""Axes with less than this share of the largest variance are no axes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Axes:
    """Principal axes of standardised features, and their variances."""

    axes_DR: torch.Tensor
    variances_R: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Point:
    """A loss at some weights: its gradient, the mean of p (1 - p), and what multiplies by its Hessian there."""

    loss: float
    gradient_EC: torch.Tensor
    curvature: float
    times_hessian: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Minimum:
    """Where the method stopped, converged or not."""

    weights_EC: torch.Tensor
    loss: float
    largest_gradient: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Preconditioner:
    """Divides by curvature * X^T X / N + penalty, and the biases by the curvature."""

    axes: Axes
    curvature: float
    penalty: float

    def __call__(self, gradient_EC: torch.Tensor) -> torch.Tensor:
        """A gradient divided so."""
        # What lies outside the axes meets the penalty alone.
        inverse_R = 1 / (self.curvature * self.axes.variances_R + self.penalty) - 1 / self.penalty
        along_RC = self.axes.axes_DR.T @ gradient_EC[:-1]
        out_EC = torch.empty_like(gradient_EC)
        out_EC[:-1] = gradient_EC[:-1] / self.penalty + self.axes.axes_DR @ (inverse_R[:, None] * along_RC)
        out_EC[-1] = gradient_EC[-1] / self.curvature
        return out_EC


def principal_axes(chunks: Callable[[], Iterable[torch.Tensor]]) -> Axes:
    """Of features [B, E] of mean 0, whose last one, that of the biases, is left out; from the smaller Gram matrix."""
    parts = [(len(x_BE), x_BE.shape[1] - 1) for x_BE in chunks()]
    num, dim = sum(rows for rows, _ in parts), parts[0][1]
    if num < dim:
        x_ND = torch.cat([x_BE[:, :-1] for x_BE in chunks()])
        variances_R, left_NR = torch.linalg.eigh(x_ND @ x_ND.T / num)
        kept_R = variances_R > EMPTY * variances_R[-1]
        variances_R = variances_R[kept_R]
        return Axes(axes_DR=x_ND.T @ left_NR[:, kept_R] / (num * variances_R).sqrt(), variances_R=variances_R)
    gram_DD = torch.zeros(dim, dim, dtype=torch.float64)
    for x_BE in chunks():
        gram_DD.addmm_(x_BE[:, :-1].T, x_BE[:, :-1], alpha=1 / num)
    variances_R, axes_DR = torch.linalg.eigh(gram_DD)
    return Axes(axes_DR=axes_DR, variances_R=variances_R.clamp(min=0))


class _Objective:
    """Counts its passes over the images."""

    def __init__(self, at: Callable[[torch.Tensor], Point], max_passes: int) -> None:
        self._at, self.passes_left = at, max_passes

    def at(self, weights_EC: torch.Tensor) -> Point:
        self.passes_left -= 1
        return self._at(weights_EC)


def minimise(
    at: Callable[[torch.Tensor], Point],
    start_EC: torch.Tensor,
    axes: Axes,
    *,
    penalty: float,
    goal: float,
    max_passes: int,
) -> Minimum:
    """The minimum of a convex loss, or where it stopped: after `max_passes`, or where no step lowers the loss.

    Args:
        at: the loss at weights.
        start_EC: the weights to begin with.
        axes: of the features.
        penalty: of all weights but the biases.
        goal: no entry of the gradient is larger at a minimum.
        max_passes: over the images, of gradients and of products with the Hessian.
    """
    objective = _Objective(at, max_passes)
    weights_EC, here = start_EC, objective.at(start_EC)
    for _ in range(MAX_STEPS):
        if float(here.gradient_EC.abs().max()) <= goal or objective.passes_left <= 0:
            break
        precondition = Preconditioner(axes=axes, curvature=max(here.curvature, MIN_CURVATURE), penalty=penalty)
        step_EC = _newton_step(objective, here, precondition)
        found = _shortened(objective, weights_EC, here, step_EC)
        if found is None:
            break
        weights_EC, here = found
    return Minimum(weights_EC=weights_EC, loss=here.loss, largest_gradient=float(here.gradient_EC.abs().max()))


def _newton_step(objective: _Objective, here: Point, precondition: Preconditioner) -> torch.Tensor:
    """About the solution of H step = -gradient: the better, the smaller the gradient is."""
    step_EC, rest_EC = torch.zeros_like(here.gradient_EC), -here.gradient_EC
    enough = float(rest_EC.norm()) * min(0.1, float(rest_EC.norm()) ** 0.5)
    direction_EC = precondition(rest_EC)
    decrease = float((rest_EC * direction_EC).sum())
    while float(rest_EC.norm()) > enough and objective.passes_left > 0:
        objective.passes_left -= 1
        product_EC = here.times_hessian(direction_EC)
        bend = float((direction_EC * product_EC).sum())
        if not bend > 0:  # rounding: the Hessian is positive
            break
        step_EC = step_EC + decrease / bend * direction_EC
        rest_EC = rest_EC - decrease / bend * product_EC
        toward_EC = precondition(rest_EC)
        before, decrease = decrease, float((rest_EC * toward_EC).sum())
        direction_EC = toward_EC + decrease / before * direction_EC
    return step_EC


def _shortened(
    objective: _Objective, weights_EC: torch.Tensor, here: Point, step_EC: torch.Tensor
) -> tuple[torch.Tensor, Point] | None:
    """Where a step leads that is halved until the loss falls by enough; None where it does not."""
    slope = float((here.gradient_EC * step_EC).sum())
    share = 1.0
    for _ in range(MAX_HALVINGS):
        reached_EC = weights_EC + share * step_EC
        there = objective.at(reached_EC)
        if there.loss <= here.loss + DECREASE * share * slope + ROUNDING * abs(here.loss):
            return reached_EC, there
        share /= 2
    return None
