"""The few-shot probe: closed-form ridge regression on frozen features, with lambda chosen without test labels.

Shape suffixes: N examples, D features, E = D + 1 with the bias feature, C classes, R values of lambda.

The probe is that of arXiv 2110.02095 as its authors' public code has it (big_vision `fewshot_lsr.py`, scenic
`fewshot_utils.py`): standardise by the shots, append a large bias feature, solve one-vs-rest targets of -1 and +1. It
differs where that code misleads: lambda comes from leave-one-out errors on the shots, never from test accuracy, and a
class with too few images is an error, never fewer shots.

Draws depend on the task and the draw only, so every cell and checkpoint sees the same images, and they are nested:
the images of 5 shots are among those of 10. Differences between shot counts are then not those of luck.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from models.errors import UserError

Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.floating]
Integers = npt.NDArray[np.int64]

LAMBDAS: Final = tuple(2.0**power for power in range(-10, 20))
FIXED_LAMBDA: Final = 2.0**10
"""What big_vision uses; for comparison with published numbers."""

BIAS: Final = 100.0
"""Value of the bias feature in both public codes: so large that lambda hardly shrinks the bias."""

CONSTANT_SPREAD: Final = 1e-6
"""A feature whose standard deviation is below this share of its size is constant: the rest is float32 rounding."""

TIE: Final = 1e-9
"""Leave-one-out errors closer than this share of the smallest are equal: the rest is float64 rounding."""


class FewShotError(UserError):
    """A class of a task has fewer training images than the shots that were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ridge:
    """A fitted probe."""

    mean_D: Floats
    inverse_std_D: Floats
    """0 for a constant feature, whose weight is 0 just as it would be after a division by 1."""
    weights_EC: Floats
    """On the standardised features; the last row belongs to the bias feature."""
    regularisation: float
    loo_errors_R: Floats
    """Mean squared leave-one-out error at each lambda that could be chosen."""

    def predict(self, features_ND: Features) -> Integers:
        """The class with the highest score, the first of equals."""
        scores_NC = _design(features_ND, self.mean_D, self.inverse_std_D) @ self.weights_EC
        return np.asarray(scores_NC.argmax(axis=1), dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProbeResult:
    """How well a probe does on test images, or why that is not known: then every number is None."""

    accuracy: float | None = None
    class_accuracy: float | None = None
    """Mean over the classes that have test images."""
    regularisation: float | None = None
    predictions_N: Integers | None = None
    reason: str | None = None


def draw_shots(task: str, labels_N: Integers, *, classes: Sequence[str], shots: int, draw: int) -> Integers:
    """Indices of `shots` training images of every class, class by class; those of fewer shots come first in each.

    Raises:
        FewShotError: a class has fewer images.
    """
    counts_C = np.bincount(labels_N, minlength=len(classes))
    assert len(counts_C) == len(classes), f"{task}: labels up to {len(counts_C) - 1}, but {len(classes)} classes"
    _check_counts(task, counts_C, classes, shots)
    keys_N = _random_keys(task, draw, len(labels_N))
    order_N = np.lexsort((keys_N, labels_N))
    starts_C = np.cumsum(counts_C) - counts_C
    return np.asarray(order_N[(starts_C[:, None] + np.arange(shots)).ravel()], dtype=np.int64)


def fit_ridge(
    features_ND: Features, labels_N: Integers, *, num_classes: int, lambdas: Sequence[float] = LAMBDAS
) -> Ridge:
    """The probe with the smallest leave-one-out squared error on the shots; the smallest lambda on ties.

    The error is exact for the standardised features: it is that of refitting without each example in turn, over all
    one-vs-rest targets. It sees no test image.

    Args:
        features_ND: finite features of the shots.
        labels_N: their classes, from 0 to `num_classes` - 1.
        num_classes: how many classes can be predicted.
        lambdas: positive and ascending; a single one is used as it is.
    """
    mean_D, inverse_std_D = _standardisation(features_ND)
    x_NE = _design(features_ND, mean_D, inverse_std_D)
    y_NC = np.where(labels_N[:, None] == np.arange(num_classes), 1.0, -1.0)
    path = _dual_path if len(x_NE) <= x_NE.shape[1] else _primal_path
    left_EK, right_KC, eigenvalues_K, loo_errors_R = path(x_NE, y_NC, np.asarray(lambdas))
    best = int(np.argmax(loo_errors_R <= loo_errors_R.min() * (1 + TIE)))
    return Ridge(
        mean_D=mean_D,
        inverse_std_D=inverse_std_D,
        weights_EC=left_EK @ (right_KC / (eigenvalues_K + lambdas[best])[:, None]),
        regularisation=float(lambdas[best]),
        loo_errors_R=loo_errors_R,
    )


def probe(
    shots_ND: Features,
    labels_N: Integers,
    test_ND: Features,
    test_labels_N: Integers,
    *,
    num_classes: int,
    lambdas: Sequence[float] = LAMBDAS,
) -> ProbeResult:
    """A ridge fitted to the shots and judged on the test images; test labels are used for nothing else."""
    reason = _non_finite("shots", shots_ND) or _non_finite("test images", test_ND)
    if reason is None and len(test_labels_N) == 0:
        reason = "the task has no test images"
    if reason is not None:
        return ProbeResult(reason=reason)
    ridge = fit_ridge(shots_ND, labels_N, num_classes=num_classes, lambdas=lambdas)
    predictions_N = ridge.predict(test_ND)
    correct_N = predictions_N == test_labels_N
    counts_C = np.bincount(test_labels_N, minlength=num_classes)
    hits_C = np.bincount(test_labels_N[correct_N], minlength=num_classes)
    return ProbeResult(
        accuracy=float(correct_N.mean()),
        class_accuracy=float(np.mean(hits_C[counts_C > 0] / counts_C[counts_C > 0])),
        regularisation=ridge.regularisation,
        predictions_N=predictions_N,
    )


def _check_counts(task: str, counts_C: Integers, classes: Sequence[str], shots: int) -> None:
    short = np.flatnonzero(counts_C < shots)
    if len(short) == 0:
        return
    worst = int(short[np.argmin(counts_C[short])])
    others = f" (and {len(short) - 1} more classes have too few)" if len(short) > 1 else ""
    raise FewShotError(
        f"task {task!r}: class {classes[worst]!r} has {counts_C[worst]} training images{others}, {shots} shots need "
        f"{shots} in every class. Ask for at most {counts_C.min()} shots or leave the task out."
    )


def _random_keys(task: str, draw: int, count: int) -> npt.NDArray[np.uint64]:
    # NumPy keeps the raw stream of a bit generator for ever (NEP 19), but not what `Generator` makes of it.
    seed = int.from_bytes(hashlib.sha256(f"{task}\0{draw}".encode()).digest()[:16], "big")
    return np.asarray(np.random.PCG64(seed).random_raw(count), dtype=np.uint64)


def _standardisation(features_ND: Features) -> tuple[Floats, Floats]:
    x_ND = features_ND.astype(np.float64)
    mean_D, std_D = x_ND.mean(axis=0), x_ND.std(axis=0)
    varies_D = std_D > CONSTANT_SPREAD * np.abs(x_ND).max(axis=0)
    return mean_D, np.divide(1.0, std_D, out=np.zeros_like(std_D), where=varies_D)


def _design(features_ND: Features, mean_D: Floats, inverse_std_D: Floats) -> Floats:
    x_NE = np.empty((len(features_ND), len(mean_D) + 1))
    np.subtract(features_ND, mean_D, out=x_NE[:, :-1])
    x_NE[:, :-1] *= inverse_std_D
    x_NE[:, -1] = BIAS
    return x_NE


# Both paths return (left, right, eigenvalues, errors) with weights(lambda) = left @ (right / (eigenvalues + lambda)).
# One eigendecomposition of the smaller Gram matrix serves every lambda. With G = X X' + lambda I and H = X (X'X +
# lambda I)^-1 X', leaving example i out leaves the residual (G^-1 y)_i / (G^-1)_ii = (y - H y)_i / (1 - H_ii).


def _dual_path(x_NE: Floats, y_NC: Floats, lambdas_R: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    eigenvalues_N, u_NN = np.linalg.eigh(x_NE @ x_NE.T)
    eigenvalues_N = np.maximum(eigenvalues_N, 0.0)  # rounding makes zeros negative
    right_NC = u_NN.T @ y_NC
    inverse_NR = 1.0 / (eigenvalues_N[:, None] + lambdas_R)
    diagonal_NR = np.square(u_NN) @ inverse_NR
    errors = [
        _mean_squared_ratio(u_NN @ (right_NC * inverse_N[:, None]), diagonal_N)
        for inverse_N, diagonal_N in zip(inverse_NR.T, diagonal_NR.T, strict=True)
    ]
    return x_NE.T @ u_NN, right_NC, eigenvalues_N, np.array(errors)


def _primal_path(x_NE: Floats, y_NC: Floats, lambdas_R: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    eigenvalues_E, v_EE = np.linalg.eigh(x_NE.T @ x_NE)
    eigenvalues_E = np.maximum(eigenvalues_E, 0.0)
    projected_NE = x_NE @ v_EE
    right_EC = projected_NE.T @ y_NC
    inverse_ER = 1.0 / (eigenvalues_E[:, None] + lambdas_R)
    held_out_NR = 1.0 - np.square(projected_NE) @ inverse_ER
    errors = [
        _mean_squared_ratio(y_NC - projected_NE @ (right_EC * inverse_E[:, None]), held_out_N)
        for inverse_E, held_out_N in zip(inverse_ER.T, held_out_NR.T, strict=True)
    ]
    return v_EE, right_EC, eigenvalues_E, np.array(errors)


def _mean_squared_ratio(numerator_NC: Floats, denominator_N: Floats) -> float:
    # The same as mean((numerator / denominator)^2), without two more arrays of N x C.
    squares_N = np.einsum("nc,nc->n", numerator_NC, numerator_NC)
    return float(np.sum(squares_N / np.square(denominator_N)) / numerator_NC.size)


def _non_finite(what: str, features_ND: Features) -> str | None:
    bad = len(features_ND) - int(np.isfinite(features_ND).all(axis=1).sum())
    return f"{bad} of {len(features_ND)} {what} have features that are not finite" if bad else None
