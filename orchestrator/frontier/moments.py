"""The law of many draws that share their many points: one matrix product in place of a fit a draw. Pure numpy.

A fit needs the sums of w x^alpha and w x^alpha y only, where x = e_US / max(e_US) (those of x^(2 alpha) are the former
at twice the alpha). As functions of alpha they are smooth: each octave of alpha gets a Chebyshev polynomial through 12
nodes, which reproduces exp(-s t) on t in [1, 2] to 2e-8 for every s >= 0 (its remainder is at most
2 (s / 4)^12 exp(-s) / 12!).

Shape suffixes: N points, D draws, P octaves of alpha, J nodes of an octave.
"""

from typing import TYPE_CHECKING

import numpy as np

from orchestrator.frontier.law import (
    ALPHA_LOW,
    ROUNDING,
    Fits,
    alpha_grid,
    bounded_line,
    joined,
    reweighted,
    scaled_log,
    sum_of_squares,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

NUM_NODES = 12
NUM_BISECTIONS = 26
# Draws x points held at once where Huber's weights differ from draw to draw.
MAX_BLOCK = 2_000_000


def fit_draws(e_us_N: "Floats", e_ds_N: "Floats", weights_DN: "Floats", *, delta: float | None = None) -> Fits:
    """The law of each draw, with alpha and e_IR to about 1e-7; at least three different e_US must have a weight.

    It takes draws that have some of the points with the largest e_US: use `law.fit_rows` for few points.

    Args:
        e_us_N: upstream errors.
        e_ds_N: downstream errors.
        weights_DN: how often each draw has each point.
        delta: Huber's, in accuracy; None for the squared loss.
    """
    if not weights_DN.shape[0]:
        return joined([])
    search = _Search(e_us_N, e_ds_N)
    if delta is None:
        return search.fit(weights_DN, None)
    num_rows = max(1, MAX_BLOCK // e_us_N.size)
    blocks = [
        reweighted(search.fit, search.residuals, weights_DN[i : i + num_rows], delta)
        for i in range(0, weights_DN.shape[0], num_rows)
    ]
    return joined(blocks)


class _Search:
    """Points with the powers of x at all nodes."""

    def __init__(self, e_us_N: "Floats", e_ds_N: "Floats") -> None:
        self.scale = float(e_us_N.max())
        self.log_N, self.y_N = scaled_log(e_us_N, self.scale), e_ds_N
        self.high = float(alpha_grid(self.scale)[-1])
        # One octave more than alpha needs, for twice alpha.
        self.num_octaves = int(np.ceil(np.log2(self.high / ALPHA_LOW))) + 1
        angles_J = (np.arange(NUM_NODES) + 0.5) * np.pi / NUM_NODES
        self.alphas_PJ = ALPHA_LOW * np.exp2(np.arange(self.num_octaves))[:, None] * (1.5 - 0.5 * np.cos(angles_J))
        # Values at the nodes to coefficients of Chebyshev polynomials of -cos(angle).
        orders = np.arange(NUM_NODES)
        self.to_coefficients = np.cos(np.outer(angles_J, orders)) * (-1.0) ** orders * 2.0 / NUM_NODES
        self.to_coefficients[:, 0] /= 2.0
        powers = np.exp(np.outer(self.log_N, self.alphas_PJ.ravel()))
        self.powers = np.concatenate([powers, powers * e_ds_N[:, None]], axis=1)

    def fit(self, weights_DN: "Floats", _before: Fits | None) -> Fits:
        w_D, y_D, yy_D = weights_DN.sum(axis=1), weights_DN @ self.y_N, weights_DN @ self.y_N**2
        sums = (weights_DN @ self.powers).reshape(w_D.size, 2, self.num_octaves, NUM_NODES)
        x_DPJ, xy_DPJ = sums[:, 0, :-1], sums[:, 1, :-1]
        column = (slice(None), None, None)
        sse_DPJ = sum_of_squares(w_D[column], x_DPJ, y_D[column], sums[:, 0, 1:], xy_DPJ, yy_D[column])
        alphas = self.alphas_PJ[:-1].ravel()
        inside = alphas <= self.high
        alphas, sse_DA = alphas[inside], sse_DPJ.reshape(w_D.size, -1)[:, inside]
        good_DA = sse_DA <= (sse_DA.min(axis=1) + ROUNDING * yy_D)[:, None]
        best_D = good_DA.argmax(axis=1)
        edges = np.concatenate([[ALPHA_LOW], alphas, [self.high]])
        coefficients = sums @ self.to_coefficients
        alpha_D = self._bisect(coefficients, w_D, y_D, edges[best_D], edges[best_D + 2])
        (x_D, _), (xy_D, _) = (self._sums(coefficients, i, alpha_D) for i in (0, 1))
        xx_D, _ = self._sums(coefficients, 0, 2.0 * alpha_D)
        k_D, e_D = bounded_line(w_D, x_D, y_D, xx_D, xy_D)
        sse_D = sum_of_squares(w_D, x_D, y_D, xx_D, xy_D, yy_D)
        alpha_D = np.where(k_D > 0, alpha_D, 1.0)
        rmse_D = np.sqrt(np.maximum(sse_D, 0.0) / w_D)
        return Fits(k_D / self.scale**alpha_D, alpha_D, e_D, rmse_D, good_DA[:, -1])

    def residuals(self, fits: Fits) -> "Floats":
        k_D1 = (fits.k * self.scale**fits.alpha)[:, None]
        residual_DN: Floats = k_D1 * np.exp(fits.alpha[:, None] * self.log_N) + fits.e_ir[:, None] - self.y_N
        return residual_DN

    def _bisect(
        self, coefficients: "Floats", w_D: "Floats", y_D: "Floats", left_D: "Floats", right_D: "Floats"
    ) -> "Floats":
        """Where the slope of the sum of squares changes sign (as in `law`)."""
        for _ in range(NUM_BISECTIONS):
            alpha_D = 0.5 * (left_D + right_D)
            (x_D, dx_D), (xy_D, dxy_D) = (self._sums(coefficients, i, alpha_D) for i in (0, 1))
            xx_D, dxx_D = self._sums(coefficients, 0, 2.0 * alpha_D)
            k_D, e_D = bounded_line(w_D, x_D, y_D, xx_D, xy_D)
            uphill_D = k_D * dxx_D + e_D * dx_D - dxy_D > 0
            left_D, right_D = np.where(uphill_D, left_D, alpha_D), np.where(uphill_D, alpha_D, right_D)
        return 0.5 * (left_D + right_D)

    def _sums(self, coefficients: "Floats", which: int, alpha_D: "Floats") -> tuple["Floats", "Floats"]:
        """The sum of w x^alpha (0) or w x^alpha y (1) and its derivative by alpha."""
        octave_D = np.clip(np.floor(np.log2(alpha_D / ALPHA_LOW)).astype(np.intp), 0, self.num_octaves - 1)
        start_D = ALPHA_LOW * np.exp2(octave_D)
        rows_DJ = coefficients[np.arange(alpha_D.size), which, octave_D]
        angle_D1 = np.arccos(np.clip(2.0 * alpha_D / start_D - 3.0, -1.0 + 1e-12, 1.0 - 1e-12))[:, None]
        orders = np.arange(NUM_NODES)
        value_D = (rows_DJ * np.cos(orders * angle_D1)).sum(axis=1)
        slope_D = (rows_DJ * orders * np.sin(orders * angle_D1)).sum(axis=1) / np.sin(angle_D1[:, 0])
        return value_D, slope_D * 2.0 / start_D
