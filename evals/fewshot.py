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
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from evals.leave_one_out import fit_weights
from models.errors import UserError

Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.floating]
Integers = npt.NDArray[np.int64]

LAMBDAS: Final = tuple(2.0**power for power in range(-10, 20))
FIXED_LAMBDA: Final = 2.0**10
"""What big_vision uses; for comparison with published numbers."""

BIAS: Final = 100.0
"""Value of the bias feature in both public codes: so large that lambda hardly shrinks the bias."""

CHECKED: Final = 2**14
"""Images whose features are looked at together, so that memory is bounded where they are in a file."""

CONSTANT_SPREAD: Final = 1e-6
"""A feature whose standard deviation is below this share of its size is constant: the rest is float32 rounding."""

PUBLISHED_STD_OFFSET: Final = 1e-5
"""What big_vision and scenic add to the standard deviation of every feature."""


class FewShotError(UserError):
    """A class of a task has fewer training images than the shots that were asked for."""


class ProbeError(UserError):
    """No probe can be fitted to these training images: the text is the reason why there is no number."""


class LinearProbe(Protocol):
    """A fitted probe whose scores are linear in the features."""

    def linear(self) -> tuple[Floats, Floats]:
        """(weights [D, C], bias [C]) of the scores, on the features as they are."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ridge:
    """A fitted probe."""

    mean_D: Floats
    inverse_std_D: Floats
    """0 for a constant feature, whose weight is 0 just as it would be after a division by 1."""
    weights_EC: Floats
    """On the standardised features; the last row belongs to the bias feature."""
    regularisation: float

    def predict(self, features_ND: Features) -> Integers:
        """The class with the highest score, the first of equals."""
        scores_NC = _design(features_ND, self.mean_D, self.inverse_std_D) @ self.weights_EC
        return np.asarray(scores_NC.argmax(axis=1), dtype=np.int64)

    def linear(self) -> tuple[Floats, Floats]:
        """(weights [D, C], bias [C]) with the standardisation folded in."""
        weights_DC = self.inverse_std_D[:, None] * self.weights_EC[:-1]
        return weights_DC, BIAS * self.weights_EC[-1] - self.mean_D @ weights_DC


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stacked:
    """Probes that predict together, with one product for a batch."""

    weights_DP: Floats
    """[D, P x C], probe by probe, on the features as they are."""
    bias_PC: Floats

    def predict(self, features_BD: Features) -> Integers:
        """Each probe's class for every image, [P, B]: the highest score, the first of equals.

        The scores are those of `Ridge.predict` but for float64 rounding: they differ by about 1e-13 of the largest
        term, so a prediction can differ only where two scores are as good as equal.
        """
        num_probes, num_classes = self.bias_PC.shape
        scores_BP = features_BD.astype(np.float64) @ self.weights_DP
        scores_BPC = scores_BP.reshape(len(features_BD), num_probes, num_classes) + self.bias_PC
        return np.ascontiguousarray(scores_BPC.argmax(axis=2).T, dtype=np.int64)


def draw_shots(task: str, labels_N: Integers, *, classes: Sequence[str], shots: int, draw: int) -> Integers:
    """Indices of `shots` training images of every class, class by class; those of fewer shots come first in each.

    Raises:
        FewShotError: a class has fewer images.
    """
    return _first_of_each(
        task, np.lexsort((_random_keys(task, draw, len(labels_N)), labels_N)), labels_N, classes, shots
    )


def first_shots(task: str, labels_N: Integers, *, classes: Sequence[str], shots: int) -> Integers:
    """Indices of the first `shots` training images of every class as stored, class by class: the draw of scenic.

    There is one such draw. It depends on the order in which a set is stored.

    Raises:
        FewShotError: a class has fewer images.
    """
    return _first_of_each(task, np.argsort(labels_N, kind="stable"), labels_N, classes, shots)


def fit_ridge(
    features_ND: Features,
    labels_N: Integers,
    *,
    num_classes: int,
    lambdas: Sequence[float] = LAMBDAS,
    std_offset: float | None = None,
) -> Ridge:
    """The probe with the smallest leave-one-out squared error on the shots; the smallest lambda on ties.

    The error is exact for the standardised features: it is that of refitting without each example in turn, over all
    one-vs-rest targets. It sees no test image.

    Args:
        features_ND: finite features of the shots.
        labels_N: their classes, from 0 to `num_classes` - 1.
        num_classes: how many classes can be predicted.
        lambdas: positive and ascending; a single one is used as it is.
        std_offset: what the published codes add to every standard deviation (`PUBLISHED_STD_OFFSET`). Without it,
            constant features weigh nothing and the others are divided by their standard deviation alone.

    Raises:
        ProbeError: features that are not finite, or a class without shots.
    """
    check_training(features_ND, labels_N, num_classes, "shots")
    x_NE, mean_D, inverse_std_D = _standardised(features_ND, std_offset)
    weights_EC, best = fit_weights(x_NE, labels_N, num_classes, np.asarray(lambdas, dtype=np.float64))
    return Ridge(mean_D=mean_D, inverse_std_D=inverse_std_D, weights_EC=weights_EC, regularisation=float(lambdas[best]))


def stack(probes: Sequence[LinearProbe]) -> Stacked:
    """Many probes with the same number of classes as one."""
    weights, bias = zip(*(probe.linear() for probe in probes), strict=True)
    return Stacked(weights_DP=np.concatenate(weights, axis=1), bias_PC=np.stack(bias))


def check_training(features_ND: Features, labels_N: Integers, num_classes: int, what: str = "training images") -> None:
    """Raises ProbeError where a probe would give a number anyway.

    That is where features are not finite or do not tell one image from another, or a class has no image.
    """
    bad = sum(_num_non_finite(features_ND[start : start + CHECKED]) for start in range(0, len(features_ND), CHECKED))
    if bad:
        raise ProbeError(f"{bad} of {len(features_ND)} {what} have features that are not finite")
    if are_constant(features_ND):
        raise ProbeError(f"the features are the same for all {len(features_ND)} {what}")
    empty_C = np.flatnonzero(np.bincount(labels_N, minlength=num_classes) == 0)
    if len(empty_C):
        raise ProbeError(f"{len(empty_C)} of {num_classes} classes have no {what} (the first is number {empty_C[0]})")


def are_constant(features_ND: Features) -> bool:
    """Whether every feature is the same for all images, but for float32 rounding."""
    chunks = [features_ND[start : start + CHECKED] for start in range(0, len(features_ND), CHECKED)]
    lowest_D = np.min([chunk.min(axis=0) for chunk in chunks], axis=0).astype(np.float64)
    highest_D = np.max([chunk.max(axis=0) for chunk in chunks], axis=0).astype(np.float64)
    # A standard deviation is half of the spread at most.
    return bool((highest_D - lowest_D <= 2 * CONSTANT_SPREAD * np.maximum(highest_D, -lowest_D)).all())


def _first_of_each(
    task: str, order_N: npt.NDArray[np.intp], labels_N: Integers, classes: Sequence[str], shots: int
) -> Integers:
    """The first `shots` indices of each class in an order that is class by class."""
    counts_C = np.bincount(labels_N, minlength=len(classes))
    assert len(counts_C) == len(classes), f"{task}: labels up to {len(counts_C) - 1}, but {len(classes)} classes"
    _check_counts(task, counts_C, classes, shots)
    starts_C = np.cumsum(counts_C) - counts_C
    return np.asarray(order_N[(starts_C[:, None] + np.arange(shots)).ravel()], dtype=np.int64)


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


def _standardised(features_ND: Features, std_offset: float | None) -> tuple[Floats, Floats, Floats]:
    """(design [N, E], mean, inverse standard deviation); the design is the only array of N x D that is made."""
    mean_D = features_ND.mean(axis=0, dtype=np.float64)
    x_NE = np.empty((len(features_ND), len(mean_D) + 1))
    x_ND = x_NE[:, :-1]
    np.subtract(features_ND, mean_D, out=x_ND)
    x_NE[:, -1] = BIAS
    std_D = np.sqrt(np.einsum("nd,nd->d", x_ND, x_ND) / len(x_ND))
    if std_offset is not None:
        inverse_std_D = 1.0 / (std_D + std_offset)
    else:
        varies_D = std_D > CONSTANT_SPREAD * np.maximum(features_ND.max(axis=0), -features_ND.min(axis=0))
        inverse_std_D = np.divide(1.0, std_D, out=np.zeros_like(std_D), where=varies_D)
    x_ND *= inverse_std_D
    return x_NE, mean_D, inverse_std_D


def _design(features_ND: Features, mean_D: Floats, inverse_std_D: Floats) -> Floats:
    x_NE = np.empty((len(features_ND), len(mean_D) + 1))
    np.subtract(features_ND, mean_D, out=x_NE[:, :-1])
    x_NE[:, :-1] *= inverse_std_D
    x_NE[:, -1] = BIAS
    return x_NE


def _num_non_finite(features_ND: Features) -> int:
    return len(features_ND) - int(np.isfinite(features_ND).all(axis=1).sum())
