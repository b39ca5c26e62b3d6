"""Ridge regression on one-vs-rest targets, with the lambda whose leave-one-out error is smallest.

Shape suffixes: N examples, E features with the bias feature, K eigenvalues, C classes, R values of lambda.

X [N, E] is the design, Y [N, C] the targets of -1 and +1. With the eigenvectors u_k and eigenvalues m_k of X X', the
energies e_k = |u_k' Y|^2 and the filters g_k = lambda / (m_k + lambda), refitting without each example in turn leaves
the residuals r_n / (1 - h_n), where

    r = Y - X W = sum_k g_k u_k u_k' Y + (what of Y lies outside all u_k),   h_n = (X (X'X + lambda I)^-1 X')_nn,
    S = sum_n |r_n|^2 = sum_k g_k^2 e_k + rest.

One decomposition of the smaller of X X' and X'X serves every lambda, one product gives the h_n of all of them, and S
costs nothing. The r_n take a product of N x K x C for each lambda, so they are worked out only where a lower bound of
the error sum_n w_n |r_n|^2, w_n = (1 - h_n)^-2, leaves room for a minimum: with v = min_n w_n, and s_n the residuals of
a lambda' that has been worked out,

    sum_n w_n |r_n|^2 = v S + sum_n (w_n - v) |r_n|^2
                     >= v S + (sqrt(sum_n (w_n - v) |s_n|^2) - sqrt(max_n (w_n - v) sum_k (g_k - g'_k)^2 e_k))^2

by the triangle inequality (0 where the bracket is negative). Of thirty lambdas, five or so are left.

With more examples than features the products are done in float32, which is twice as fast, and their rounding is
bounded; what that leaves undecided is done again in float64. So the choice is that of working out everything in
float64. `benchmarks/fewshot.py` shows what each of this saves.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Reals = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.int64]

TIE: Final = 1e-9
"""Errors closer than this share of the smallest are equal: the rest is float64 rounding."""

FLOAT32_ROUNDING: Final = 32 * 2.0**-24
"""Of an entry of a product, as a share of the norms of its row and column; 10 * 2^-24 was the most seen at E = 769."""

SLACK: Final = 1e-5
"""By how much of the largest that an error can be a lower bound is lowered, for its own rounding."""

TINY: Final = 1e-300


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Dual:
    """X X' = U M U', for N <= E. The eigenvectors are a basis of all targets: no rest is left, and nothing cancels."""

    x_NE: Floats
    u_NN: Floats
    eigenvalues_K: Floats
    right_KC: Floats
    energies_K: Floats
    rest: float = 0.0
    rest_rounding: float = 0.0
    rounding: float = 0.0

    def weights(self, regularisation: float) -> Floats:
        return self.x_NE.T @ (self.u_NN @ (self.right_KC / (self.eigenvalues_K + regularisation)[:, None]))

    def held_out(self, lambdas_R: Floats) -> Floats:
        return np.square(self.u_NN) @ _filters(self, lambdas_R).T

    def squares(self, regularisation: float) -> Floats:
        filter_K = regularisation / (self.eigenvalues_K + regularisation)
        return _row_squares(self.u_NN @ (self.right_KC * filter_K[:, None]))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Primal:
    """X'X = V M V', for N > E."""

    x_NE: Floats
    v_EE: Floats
    labels_N: Integers
    eigenvalues_K: Floats
    right_KC: Floats
    energies_K: Floats
    rest: float
    rest_rounding: float
    projected_NE: Reals
    """X V, in the precision in which errors are worked out."""
    rounding: float = 0.0
    """Of an entry of `projected_NE`, where that is float32."""

    def weights(self, regularisation: float) -> Floats:
        return self.v_EE @ (self.right_KC / (self.eigenvalues_K + regularisation)[:, None])

    def held_out(self, lambdas_R: Floats) -> Floats:
        inverse_RE = (1.0 / (self.eigenvalues_K + lambdas_R[:, None])).astype(self.projected_NE.dtype)
        return 1.0 - (np.square(self.projected_NE) @ inverse_RE.T).astype(np.float64)

    def squares(self, regularisation: float) -> Floats:
        right_EC = self.right_KC / (self.eigenvalues_K + regularisation)[:, None]
        residuals_NC = self.projected_NE @ right_EC.astype(self.projected_NE.dtype)
        residuals_NC += 1.0
        residuals_NC[np.arange(len(residuals_NC)), self.labels_N] -= 2.0
        return _row_squares(residuals_NC)


_Decomposition = _Dual | _Primal


def fit_weights(x_NE: Floats, labels_N: Integers, num_classes: int, lambdas_R: Floats) -> tuple[Floats, int]:
    """(weights [E, C], which lambda): that of the smallest leave-one-out error, the first of equals.

    A single lambda is used as it is, with no decomposition.
    """
    if len(lambdas_R) == 1:
        return _solve(x_NE, labels_N, num_classes, float(lambdas_R[0])), 0
    decomposition = _decompose(x_NE, labels_N, num_classes, float(lambdas_R.min()))
    best = _best_lambda(decomposition, lambdas_R)
    return decomposition.weights(float(lambdas_R[best])), best


def leave_one_out_errors(x_NE: Floats, labels_N: Integers, num_classes: int, lambdas_R: Floats) -> Floats:
    """Mean squared leave-one-out error at each lambda over all one-vs-rest targets, all in float64."""
    decomposition = _decompose(x_NE, labels_N, num_classes, float(lambdas_R.min()))
    return _exact_errors(decomposition, lambdas_R) / (len(x_NE) * num_classes)


def _solve(x_NE: Floats, labels_N: Integers, num_classes: int, regularisation: float) -> Floats:
    if len(x_NE) > x_NE.shape[1]:
        gram_EE = x_NE.T @ x_NE
        gram_EE.flat[:: len(gram_EE) + 1] += regularisation
        return np.asarray(np.linalg.solve(gram_EE, _times_targets(x_NE, labels_N, num_classes)), dtype=np.float64)
    gram_NN = x_NE @ x_NE.T
    gram_NN.flat[:: len(gram_NN) + 1] += regularisation
    return x_NE.T @ np.linalg.solve(gram_NN, np.where(labels_N[:, None] == np.arange(num_classes), 1.0, -1.0))


def _decompose(x_NE: Floats, labels_N: Integers, num_classes: int, smallest_lambda: float) -> _Decomposition:
    if len(x_NE) <= x_NE.shape[1]:
        eigenvalues_N, u_NN = _eigh(x_NE @ x_NE.T)
        right_NC = _times_targets(u_NN, labels_N, num_classes)
        energies_N = _row_squares(right_NC)
        return _Dual(x_NE=x_NE, u_NN=u_NN, eigenvalues_K=eigenvalues_N, right_KC=right_NC, energies_K=energies_N)
    eigenvalues_E, v_EE = _eigh(x_NE.T @ x_NE)
    right_EC = v_EE.T @ _times_targets(x_NE, labels_N, num_classes)
    # u_k = X v_k / sqrt(m_k). Where m_k is nothing beside every lambda, g_k is 1, as it is for the rest.
    counts_E = eigenvalues_E > 1e-8 * smallest_lambda
    energies_E = np.divide(_row_squares(right_EC), eigenvalues_E, out=np.zeros_like(eigenvalues_E), where=counts_E)
    return _Primal(
        x_NE=x_NE,
        v_EE=v_EE,
        labels_N=labels_N,
        eigenvalues_K=eigenvalues_E,
        right_KC=right_EC,
        energies_K=energies_E,
        rest=max(0.0, len(x_NE) * num_classes - float(energies_E.sum())),
        rest_rounding=1e-12 * len(x_NE) * num_classes,
        projected_NE=np.empty((0, len(v_EE))),
    )


def _in_float64(d: _Decomposition) -> _Decomposition:
    return d if isinstance(d, _Dual) else replace(d, projected_NE=d.x_NE @ d.v_EE)


def _in_float32(d: _Decomposition) -> _Decomposition:
    if isinstance(d, _Dual):
        return d  # its products are small beside its decomposition
    projected_NE = d.x_NE.astype(np.float32) @ d.v_EE.astype(np.float32)
    # The bias feature is an eigenvector of its own, and takes no part in the other entries of a row.
    largest = float(np.sqrt(_row_squares(d.x_NE[:, :-1]).max()))
    return replace(d, projected_NE=projected_NE, rounding=FLOAT32_ROUNDING * largest)


def _best_lambda(d: _Decomposition, lambdas_R: Floats) -> int:
    low_R, high_R = _bracket_errors(_in_float32(d), lambdas_R)
    close_R = np.flatnonzero(low_R <= high_R.min() * (1 + TIE))
    if len(close_R) == 1:
        return int(close_R[0])
    errors_R = _exact_errors(d, lambdas_R[close_R])
    return int(close_R[np.argmax(errors_R <= errors_R.min() * (1 + TIE))])


def _exact_errors(d: _Decomposition, lambdas_R: Floats) -> Floats:
    exact = _in_float64(d)
    weights_RN = np.square(1.0 / exact.held_out(lambdas_R)).T
    pairs = zip(weights_RN, lambdas_R, strict=True)
    return np.array([weights_N @ exact.squares(float(regularisation)) for weights_N, regularisation in pairs])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Bounds:
    """What is known of the errors at every lambda before any residual is worked out."""

    filters_RK: Floats
    energies_K: Floats
    weights_RN: Floats
    sums_R: Floats
    floor_R: Floats
    spread_R: Floats
    margin_R: Floats

    def below(self, squares_N: Floats | None = None, r: int = 0) -> Floats:
        """Lower bounds of every error, from the residuals at lambda number `r` where there are some."""
        bound_R = self.floor_R * self.sums_R
        if squares_N is not None:
            above_R = np.maximum(self.weights_RN @ squares_N - self.floor_R * squares_N.sum(), 0.0)
            change_R = self.spread_R * (np.square(self.filters_RK - self.filters_RK[r]) @ self.energies_K)
            bound_R = bound_R + np.square(np.maximum(np.sqrt(above_R) - np.sqrt(change_R), 0.0))
        return np.maximum(bound_R - self.margin_R, 0.0)


def _bracket_errors(d: _Decomposition, lambdas_R: Floats) -> tuple[Floats, Floats]:
    """(lower, upper bounds) of the errors: narrow where they may be the smallest, elsewhere up to infinity."""
    held_out_RN = d.held_out(lambdas_R).T
    share_R = _leverage_rounding(d, lambdas_R) / np.maximum(held_out_RN.min(axis=1), TINY)
    unknown_R = share_R > 0.1  # too near to interpolation for float32
    bounds = _bounds(d, lambdas_R, np.where(unknown_R[:, None], 1.0, held_out_RN), share_R)
    low_R, high_R = np.where(unknown_R, 0.0, bounds.below()), np.full(len(lambdas_R), np.inf)
    guess_R = bounds.weights_RN.mean(axis=1) * bounds.sums_R
    while (open_R := ~unknown_R & np.isinf(high_R) & (low_R <= high_R.min() * (1 + TIE))).any():
        r = int(np.argmin(np.where(open_R, guess_R, np.inf)))
        squares_N = d.squares(float(lambdas_R[r]))
        low_R = np.where(
            unknown_R, 0.0, np.where(np.isinf(high_R), np.maximum(low_R, bounds.below(squares_N, r)), low_R)
        )
        error = bounds.weights_RN[r] @ squares_N
        rounding = _residual_rounding(d, float(lambdas_R[r])) * np.sqrt(bounds.weights_RN[r].max())
        root_rounding = share_R[r] + rounding / max(np.sqrt(error), TINY)
        low_R[r], high_R[r] = error * max(0.0, 1 - root_rounding) ** 2, error * (1 + root_rounding) ** 2
    return low_R, high_R


def _bounds(d: _Decomposition, lambdas_R: Floats, held_out_RN: Floats, share_R: Floats) -> _Bounds:
    filters_RK = _filters(d, lambdas_R)
    weights_RN = np.square(1.0 / held_out_RN)
    sums_R = np.square(filters_RK) @ d.energies_K + d.rest
    return _Bounds(
        filters_RK=filters_RK,
        energies_K=d.energies_K,
        weights_RN=weights_RN,
        sums_R=sums_R,
        floor_R=weights_RN.min(axis=1),
        spread_R=np.ptp(weights_RN, axis=1),
        margin_R=weights_RN.max(axis=1) * ((SLACK + 4 * share_R) * sums_R + d.rest_rounding),
    )


# Rounding of the float32 products: with p_n a row of X V and f_k = 1 / (m_k + lambda), the change of
# h_n = sum_k p_nk^2 f_k is 2 sum_k p_nk dp_nk f_k. As the signs of the dp are unrelated, that is about
# 2 max|dp| (sum_k p_nk^2 f_k^2)^(1/2) <= 2 max|dp| (max_k f_k)^(1/2), since h_n <= 1. Likewise that of p_n' (f right)
# is about max|dp| |f right|; the sum over k rounds no worse.


def _leverage_rounding(d: _Decomposition, lambdas_R: Floats) -> Floats:
    return np.asarray(2 * d.rounding / np.sqrt(d.eigenvalues_K.min() + lambdas_R), dtype=np.float64)


def _residual_rounding(d: _Decomposition, regularisation: float) -> float:
    """Of the root of the sum of squares over all examples and classes."""
    if d.rounding == 0.0:
        return 0.0
    size = np.sqrt(np.sum(np.square(d.right_KC / (d.eigenvalues_K + regularisation)[:, None])))
    return float(d.rounding * np.sqrt(len(d.x_NE)) * size)


def _filters(d: _Decomposition, lambdas_R: Floats) -> Floats:
    return np.asarray(lambdas_R[:, None] / (d.eigenvalues_K + lambdas_R[:, None]), dtype=np.float64)


def _times_targets(x_NE: Floats, labels_N: Integers, num_classes: int) -> Floats:
    """X'Y, [E, C]: from the sum over each class, with no product."""
    sums_CE = np.zeros((num_classes, x_NE.shape[1]))
    order_N = np.argsort(labels_N, kind="stable")
    ends_C = np.cumsum(np.bincount(labels_N, minlength=num_classes))
    in_order = bool((labels_N[1:] >= labels_N[:-1]).all())
    for c, (start, end) in enumerate(zip([0, *ends_C[:-1]], ends_C, strict=True)):
        (x_NE[start:end] if in_order else x_NE[order_N[start:end]]).sum(axis=0, out=sums_CE[c])
    return np.asarray(2.0 * sums_CE - sums_CE.sum(axis=0), dtype=np.float64).T


def _eigh(gram: Floats) -> tuple[Floats, Floats]:
    eigenvalues, vectors = np.linalg.eigh(gram)
    return np.maximum(eigenvalues, 0.0), vectors  # rounding makes zeros negative


def _row_squares(x_NC: Reals) -> Floats:
    return np.asarray(np.einsum("nc,nc->n", x_NC, x_NC), dtype=np.float64)
