"""The logistic probe: multinomial logistic regression on frozen features, with the penalty chosen without test labels.

Shape suffixes: N examples, B examples of a chunk, D features, C classes.

What is minimised is mean cross-entropy + penalty / 2 * |W|^2 over standardised features, with free biases: what
scikit-learn's `LogisticRegression` minimises with its C = 1 / (penalty * N). Newton's method in float64 (see
`evals.newton`) passes over the features chunk by chunk, so they may be an `np.memmap`: it then takes memory for some
ten copies of the weights, a few matrices [D, D] and a few times `CHUNK_BYTES`. Features that take no more than
`CACHED_BYTES` are standardised once and kept, with the probabilities of their classes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch

from evals.fewshot import CONSTANT_SPREAD, Features, Floats, Integers, ProbeError, check_training
from evals.newton import Axes, Point, minimise, principal_axes

PENALTIES: Final = tuple(10.0**power for power in range(-5, 2))

FOLDS: Final = 5

DEFAULT_C: Final = 1.0
"""scikit-learn's, for where nothing can be held out: the penalty is then 1 / (C N)."""

CACHED_BYTES: Final = 2**28
CHUNK_BYTES: Final = 2**26
ROWS: Final = 2**13
"""Images whose means and standard deviations are taken together."""

GRADIENT: Final = 1e-6
"""A fit has converged when no entry of the gradient is larger. It goes on to a hundredth of the penalty, where it gets
so far: the weights are off by the gradient over the penalty at most. scikit-learn stops at 1e-4."""

MAX_PASSES: Final = 10_000
"""Over the training images, of one fit."""

Chunk = tuple[torch.Tensor, torch.Tensor]
"""(x_BE, labels_B)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Logistic:
    """A fitted probe; its scores are log-probabilities but for a constant of each image."""

    weights_DC: Floats
    """On the features as they are: the standardisation is folded in."""
    bias_C: Floats
    regularisation: float
    """The penalty."""
    loss: float
    """The minimum that was reached: mean cross-entropy of the training images and the penalty's share."""

    def linear(self) -> tuple[Floats, Floats]:
        """(weights [D, C], bias [C]) of the scores."""
        return self.weights_DC, self.bias_C

    def predict(self, features_ND: Features) -> Integers:
        """The most probable class, the first of equals."""
        return np.asarray(
            (features_ND.astype(np.float64) @ self.weights_DC + self.bias_C).argmax(axis=1), dtype=np.int64
        )


def fit_logistic(
    features_ND: Features,
    labels_N: Integers,
    *,
    num_classes: int,
    penalties: Sequence[float] = PENALTIES,
    held_out: Integers | None = None,
) -> Logistic:
    """The probe with the penalty whose held-out cross-entropy is smallest (the largest penalty on ties), fitted to all.

    Held out are the images `held_out`, once, or else each of up to `FOLDS` stratified folds in turn: the i-th image of
    a class is of fold i modulo their number, which is at most the number of images of the smallest class. A class of
    one image is in no fold. Where every class has one image, nothing can be held out, and the penalty is scikit-learn's
    default, 1 / N. The features are standardised by all training images, as they are for the final fit.

    Args:
        features_ND: finite, in memory or an `np.memmap`.
        labels_N: their classes, from 0 to `num_classes` - 1.
        num_classes: how many classes can be predicted.
        penalties: a single one is used as it is.
        held_out: indices of training images on which the penalty is chosen.

    Raises:
        ProbeError: features that are not finite, a class without images (its bias has no minimum), or a fit that does
            not converge.
    """
    check_training(features_ND, labels_N, num_classes)
    examples = _Examples.of(features_ND, labels_N, num_classes)
    penalty = _choose(examples, sorted(penalties, reverse=True), held_out)
    weights_EC, loss = _minimise(examples, np.arange(len(labels_N)), penalty)
    weights_DC = examples.inverse_std_D[:, None] * weights_EC[:-1].numpy()
    bias_C = weights_EC[-1].numpy() - examples.mean_D @ weights_DC
    return Logistic(weights_DC=weights_DC, bias_C=bias_C, regularisation=penalty, loss=loss)


def folds(labels_N: Integers) -> Integers:
    """The fold of every image, -1 where it is in none; fewer than 2 folds cannot be."""
    order_N = np.argsort(labels_N, kind="stable")
    counts_C = np.bincount(labels_N)
    several_C = counts_C >= 2
    num_folds = min(FOLDS, int(counts_C[several_C].min(initial=FOLDS)))
    rank_N = np.empty_like(labels_N)
    rank_N[order_N] = np.arange(len(labels_N)) - (np.cumsum(counts_C) - counts_C)[labels_N[order_N]]
    return np.where(several_C[labels_N], rank_N % num_folds, -1)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Examples:
    """Training images, standardised as they are read; E is D + 1, for a feature of 1."""

    features_ND: Features
    labels_N: Integers
    num_classes: int
    mean_D: Floats
    inverse_std_D: Floats

    @classmethod
    def of(cls, features_ND: Features, labels_N: Integers, num_classes: int) -> "_Examples":
        mean_D, inverse_std_D = _standardisation(features_ND)
        return cls(
            features_ND=features_ND,
            labels_N=labels_N,
            num_classes=num_classes,
            mean_D=mean_D,
            inverse_std_D=inverse_std_D,
        )

    @cached_property
    def axes(self) -> Axes:
        """Of all training images: those of a fold's are so like them that they serve it as well."""
        return principal_axes(lambda: (x_BE for x_BE, _ in _chunks(self, np.arange(len(self.labels_N)))))

    @property
    def num_weights(self) -> tuple[int, int]:
        return len(self.mean_D) + 1, self.num_classes

    def chunk(self, index_B: Integers) -> Chunk:
        x_BE = np.ones((len(index_B), len(self.mean_D) + 1))
        np.subtract(self.features_ND[index_B], self.mean_D, out=x_BE[:, :-1])
        x_BE[:, :-1] *= self.inverse_std_D
        return torch.from_numpy(x_BE), torch.from_numpy(self.labels_N[index_B])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Chunks:
    """Some of the training images, read anew in every pass."""

    examples: _Examples
    index_N: Integers

    def __iter__(self) -> Iterator[Chunk]:
        rows = max(1, CHUNK_BYTES // (8 * (len(self.examples.mean_D) + 1 + 2 * self.examples.num_classes)))
        for start in range(0, len(self.index_N), rows):
            yield self.examples.chunk(self.index_N[start : start + rows])


def _standardisation(features_ND: Features) -> tuple[Floats, Floats]:
    """(mean, inverse standard deviation or 0), as for the ridge: see `evals.fewshot`."""
    starts = range(0, len(features_ND), ROWS)
    mean_D = sum(features_ND[s : s + ROWS].sum(axis=0, dtype=np.float64) for s in starts) / len(features_ND)
    squares_D, largest_D = np.zeros_like(mean_D), np.zeros_like(mean_D)
    for start in starts:
        x_BD = features_ND[start : start + ROWS].astype(np.float64)
        np.maximum(largest_D, np.abs(x_BD).max(axis=0), out=largest_D)
        squares_D += np.square(x_BD - mean_D).sum(axis=0)
    std_D = np.sqrt(squares_D / len(features_ND))
    varies_D = std_D > CONSTANT_SPREAD * largest_D
    return mean_D, np.divide(1.0, std_D, out=np.zeros_like(std_D), where=varies_D)


def _choose(examples: _Examples, penalties: Sequence[float], held_out: Integers | None) -> float:
    """The penalty; `penalties` descend."""
    if len(penalties) == 1:
        return penalties[0]
    everyone_N = np.arange(len(examples.labels_N))
    if held_out is not None:
        parts = [(np.setdiff1d(everyone_N, held_out), held_out)]
    else:
        fold_N = folds(examples.labels_N)
        parts = [(everyone_N[fold_N != f], everyone_N[fold_N == f]) for f in range(int(fold_N.max()) + 1)]
    if not parts:
        return 1.0 / (DEFAULT_C * len(examples.labels_N))
    losses_P = np.zeros(len(penalties))
    for train_N, judged_N in parts:
        losses_P += _held_out_losses(examples, penalties, train_N, judged_N)
    return penalties[int(np.argmin(losses_P))]


def _held_out_losses(examples: _Examples, penalties: Sequence[float], train_N: Integers, judged_N: Integers) -> Floats:
    """Summed cross-entropy of the images that are held out; each fit starts where that of a larger penalty ended."""
    missing_C = np.bincount(examples.labels_N[train_N], minlength=examples.num_classes) == 0
    if missing_C.any():
        num = int(missing_C.sum())
        raise ProbeError(f"{num} of {examples.num_classes} classes have no training image that is not held out")
    judged = _chunks(examples, judged_N)
    weights_EC, losses = None, []
    for penalty in penalties:
        weights_EC, _ = _minimise(examples, train_N, penalty, weights_EC)
        losses.append(sum(float(_cross_entropy(chunk, weights_EC)[0]) for chunk in judged))
    return np.array(losses)


def _minimise(
    examples: _Examples, index_N: Integers, penalty: float, start_EC: torch.Tensor | None = None
) -> tuple[torch.Tensor, float]:
    """(weights, loss) at the minimum over these images; the last row of weights are the biases."""
    start_EC = torch.zeros(examples.num_weights, dtype=torch.float64) if start_EC is None else start_EC
    found = minimise(
        _MeanLoss(chunks=_chunks(examples, index_N), num=len(index_N), penalty=penalty).at,
        start_EC,
        examples.axes,
        penalty=penalty,
        goal=min(GRADIENT, penalty / 100),
        max_passes=MAX_PASSES,
    )
    if found.largest_gradient > GRADIENT:
        raise ProbeError(f"logistic regression did not converge at penalty {penalty:g}")
    return found.weights_EC, found.loss


def _chunks(examples: _Examples, index_N: Integers) -> Iterable[Chunk]:
    """In memory where that is small."""
    chunks = _Chunks(examples=examples, index_N=index_N)
    num_columns = len(examples.mean_D) + 1 + examples.num_classes
    return list(chunks) if len(index_N) * num_columns * 8 <= CACHED_BYTES else chunks


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _MeanLoss:
    """What is minimised, over `num` images."""

    chunks: Iterable[Chunk]
    num: int
    penalty: float

    def at(self, weights_EC: torch.Tensor) -> Point:
        loss, spread, gradient_EC = 0.0, 0.0, torch.zeros_like(weights_EC)
        kept: list[torch.Tensor] | None = [] if isinstance(self.chunks, list) else None
        for x_BE, labels_B in self.chunks:
            chunk_loss, probabilities_BC = _cross_entropy((x_BE, labels_B), weights_EC)
            loss += float(chunk_loss) / self.num
            spread += float((probabilities_BC * (1 - probabilities_BC)).mean()) * len(labels_B) / self.num
            gradient_EC.addmm_(x_BE.T, _residuals(probabilities_BC, labels_B), alpha=1 / self.num)
            if kept is not None:
                kept.append(probabilities_BC)
        gradient_EC[:-1] += self.penalty * weights_EC[:-1]
        return Point(
            loss=loss + self.penalty / 2 * float(weights_EC[:-1].square().sum()),
            gradient_EC=gradient_EC,
            curvature=spread,
            times_hessian=lambda step_EC: self._times_hessian(step_EC, weights_EC, kept),
        )

    def _times_hessian(
        self, step_EC: torch.Tensor, weights_EC: torch.Tensor, kept: list[torch.Tensor] | None
    ) -> torch.Tensor:
        product_EC = torch.zeros_like(step_EC)
        for i, (x_BE, labels_B) in enumerate(self.chunks):
            p_BC = kept[i] if kept is not None else _cross_entropy((x_BE, labels_B), weights_EC)[1]
            weighted_BC = p_BC * (x_BE @ step_EC)
            weighted_BC.sub_(p_BC * weighted_BC.sum(dim=1, keepdim=True))
            product_EC.addmm_(x_BE.T, weighted_BC, alpha=1 / self.num)
        product_EC[:-1] += self.penalty * step_EC[:-1]
        return product_EC


def _cross_entropy(chunk: Chunk, weights_EC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum over the images, probabilities [B, C])."""
    x_BE, labels_B = chunk
    scores_BC = x_BE @ weights_EC
    normalisers_B = torch.logsumexp(scores_BC, dim=1)
    loss = (normalisers_B - scores_BC.gather(1, labels_B[:, None])[:, 0]).sum()
    return loss, scores_BC.sub_(normalisers_B[:, None]).exp_()


def _residuals(probabilities_BC: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Derivatives of the cross-entropy by the scores."""
    residuals_BC = probabilities_BC.clone()
    residuals_BC[torch.arange(len(labels_B)), labels_B] -= 1.0
    return residuals_BC
