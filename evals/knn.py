"""The nearest-neighbour probe: cosine similarity, votes weighted as in DINO, with k chosen without test labels.

Shape suffixes: N training images, B images of a batch, M training images of a chunk, D features, C classes, K
neighbours.

As in DINO (arXiv 2104.14294, section 3 and its public code) features are divided by their length and each of the k
nearest training images votes for its class with exp(similarity / 0.07). There k is tuned by test accuracy; here it
comes from leaving out training images one at a time. Nothing is standardised: the cosine is that of the features as
they are.

Similarities are float32 products. Of equal similarities the earlier training image is the nearer, of classes with equal
votes the first wins. The order of test images and their batches do not matter, but for similarities or votes that are
equal within float32 rounding (1e-6).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from evals.fewshot import Features, Integers, check_training

KS: Final = (1, 3, 5, 10, 20)

TEMPERATURE: Final = 0.07

MAX_QUERIES: Final = 10_000
"""So many training images at most are left out in turn, spread evenly over the set: all of 1.3 million would cost more
than a thousand times as much, and the error of an accuracy over 10,000 images is half a per cent."""

QUERIES: Final = 256
CHUNK: Final = 2**13
"""Images that are compared together: of those to be classified, and of those for training."""

SMALLEST_LENGTH: Final = 1e-30

Singles = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KNN:
    """A fitted probe: it refers to its training features, which may be an `np.memmap`, and holds no copy."""

    features_ND: Features
    inverse_length_N: Singles
    labels_N: Integers
    num_classes: int
    k: int
    loo_accuracy_K: npt.NDArray[np.float64]
    """Of each k that could be chosen."""

    @property
    def regularisation(self) -> float:
        """The k."""
        return float(self.k)

    def predict(self, features_BD: Features) -> Integers:
        """The class with most votes, the first of equals. Memory is bounded for any N (0.3 GB seen at D = 1024)."""
        starts = range(0, len(features_BD), QUERIES)
        parts = [self._predict(features_BD[start : start + QUERIES]) for start in starts]
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts])

    def _predict(self, features_BD: Features) -> Integers:
        similarities_BK, index_BK = _neighbours(
            self.features_ND, self.inverse_length_N, features_BD, min(self.k, len(self.labels_N))
        )
        return _vote(similarities_BK, self.labels_N[index_BK], self.num_classes)


def fit_knn(features_ND: Features, labels_N: Integers, *, num_classes: int, ks: Sequence[int] = KS) -> KNN:
    """The probe with the k of the highest leave-one-out accuracy on the training images, the smallest on ties.

    Args:
        features_ND: finite, in memory or an `np.memmap`.
        labels_N: their classes, from 0 to `num_classes` - 1.
        num_classes: how many classes can be predicted.
        ks: a single one is used as it is. Where there are fewer training images than k, all of them vote.

    Raises:
        ProbeError: features that are not finite, or a class without images.
    """
    check_training(features_ND, labels_N, num_classes)
    ks = sorted(ks)
    inverse_length_N = _inverse_lengths(features_ND)
    accuracy_K = np.full(1, np.nan)
    if len(ks) > 1:
        accuracy_K = _leave_one_out(features_ND, inverse_length_N, labels_N, num_classes, ks)
    return KNN(
        features_ND=features_ND,
        inverse_length_N=inverse_length_N,
        labels_N=labels_N,
        num_classes=num_classes,
        k=ks[int(np.argmax(accuracy_K))],
        loo_accuracy_K=accuracy_K,
    )


def _leave_one_out(
    features_ND: Features, inverse_length_N: Singles, labels_N: Integers, num_classes: int, ks: Sequence[int]
) -> npt.NDArray[np.float64]:
    num = len(labels_N)
    queries_N = np.unique(np.linspace(0, num - 1, min(num, MAX_QUERIES)).astype(np.int64))
    hits_K = np.zeros(len(ks))
    for start in range(0, len(queries_N), QUERIES):
        index_B = queries_N[start : start + QUERIES]
        similarities_BK, found_BK = _neighbours(
            features_ND, inverse_length_N, features_ND[index_B], min(max(ks) + 1, num)
        )
        # An image is its own nearest neighbour, if not the first of several copies.
        others_BK = np.argsort(found_BK == index_B[:, None], axis=1, kind="stable")[:, :-1]
        similarities_BK = np.take_along_axis(similarities_BK, others_BK, axis=1)
        labels_BK = labels_N[np.take_along_axis(found_BK, others_BK, axis=1)]
        votes = [_vote(similarities_BK[:, :k], labels_BK[:, :k], num_classes) for k in ks]
        hits_K += [(vote_B == labels_N[index_B]).sum() for vote_B in votes]
    return hits_K / len(queries_N)


def _neighbours(
    features_ND: Features, inverse_length_N: Singles, queries_BD: Features, k: int
) -> tuple[Singles, Integers]:
    """(similarities, indices) of the k nearest training images, the nearest first."""
    unit_BD = (queries_BD * _inverse_lengths(queries_BD)[:, None]).astype(np.float32)
    best_BK = np.empty((len(unit_BD), 0), dtype=np.int64)
    for start in range(0, len(features_ND), CHUNK):
        similarities_BM = unit_BD @ features_ND[start : start + CHUNK].astype(np.float32, copy=False).T
        similarities_BM *= inverse_length_N[start : start + CHUNK]
        best_BK = _largest(np.concatenate([best_BK, _largest(_keys(similarities_BM, start), k)], axis=1), k)
    best_BK = np.sort(best_BK, axis=1)[:, ::-1]
    return _similarities(best_BK), 0xFFFFFFFF - (best_BK & 0xFFFFFFFF)


def _largest(keys_BM: Integers, k: int) -> Integers:
    return np.partition(keys_BM, -k, axis=1)[:, -k:] if keys_BM.shape[1] > k else keys_BM


# One integer orders by similarity and then by index: above, the bits of a float32 (those of negative numbers turned
# round, so that they order as integers do), below, the index counted down.


def _keys(similarities_BM: Singles, start: int) -> Integers:
    similarities_BM += 0.0  # -0 becomes 0
    bits_BM = similarities_BM.view(np.int32)
    ordered_BM = (bits_BM ^ ((bits_BM >> 31) & 0x7FFFFFFF)).astype(np.int64)
    index_M = np.arange(start, start + similarities_BM.shape[1], dtype=np.int64)
    return np.asarray((ordered_BM << 32) | (0xFFFFFFFF - index_M), dtype=np.int64)


def _similarities(keys_BK: Integers) -> Singles:
    ordered_BK = (keys_BK >> 32).astype(np.int32)
    bits_BK = np.asarray(ordered_BK ^ ((ordered_BK >> 31) & 0x7FFFFFFF), dtype=np.int32)
    return bits_BK.view(np.float32)


def _vote(similarities_BK: Singles, labels_BK: Integers, num_classes: int) -> Integers:
    weights_BK = np.exp((similarities_BK.astype(np.float64) - 1) / TEMPERATURE)
    votes_BC = np.zeros((len(labels_BK), num_classes))
    np.add.at(votes_BC, (np.arange(len(labels_BK))[:, None], labels_BK), weights_BK)
    return np.asarray(votes_BC.argmax(axis=1), dtype=np.int64)


def _inverse_lengths(features_ND: Features) -> Singles:
    """0 for a feature vector of (almost) 0, which is then equally far from everything."""
    lengths = [_lengths(features_ND[start : start + CHUNK]) for start in range(0, len(features_ND), CHUNK)]
    length_N = np.concatenate(lengths) if lengths else np.zeros(0)
    inverse_N = np.divide(1.0, length_N, out=np.zeros_like(length_N), where=length_N > SMALLEST_LENGTH)
    return inverse_N.astype(np.float32)


def _lengths(features_BD: Features) -> npt.NDArray[np.float64]:
    x_BD = features_BD.astype(np.float64)
    return np.asarray(np.sqrt(np.einsum("bd,bd->b", x_BD, x_BD)), dtype=np.float64)
