"""Which images of a stored set are trained on, and which are held out to measure on.

Where labels are known, as `models.data.splits` draws them. Where they are not, from every shard the same share: what is
kept of a shard is drawn when it is first asked for, so that memory grows with the shards, not with the images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from models.data.sets import IntArray, LabelSet
from models.data.splits import TEST_SHARE, capped, split, subset
from models.data.stored import StoredSet
from models.errors import UserError

MAX_TEST = 50_000  # images to measure on: more would not tell more, and all are seen at every checkpoint
DRAWS_KEPT = 1024  # shards whose draws are remembered: some MB

_TEST, _TRAIN = 0, 1  # these tell the draws of one shard from each other


class Part(Protocol):
    """Images of a stored set, numbered by position from 0, shard after shard."""

    @property
    def shard_sizes(self) -> IntArray:
        """How many of each shard, in order; one number where any image is as near as any other."""
        ...

    def index(self, position: int) -> int:
        """The image's index in the stored set."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ListedPart:
    """Images by a list of their indices, which ascend."""

    index_N: IntArray
    shard_sizes: IntArray

    def index(self, position: int) -> int:
        """The image's index in the stored set."""
        return int(self.index_N[position])


class DrawnPart:
    """Images of which only the number is known, shard by shard.

    Args:
        first: the index of each shard's first image in the stored set.
        shard_sizes: how many of each shard belong to the part.
        draw: which, as ascending numbers within the shard.
    """

    def __init__(self, first: IntArray, shard_sizes: IntArray, draw: Callable[[int], IntArray]) -> None:
        self.shard_sizes = shard_sizes
        self._first, self._ends = first, np.cumsum(shard_sizes)
        self._drawn = lru_cache(maxsize=DRAWS_KEPT)(draw)

    def index(self, position: int) -> int:
        """The image's index in the stored set."""
        shard = int(np.searchsorted(self._ends, position, side="right"))
        within = position - int(self._ends[shard] - self.shard_sizes[shard])
        return int(self._first[shard] + self._drawn(shard)[within])


def parts(stored: StoredSet, *, fraction: float, classes: float, seed: int) -> tuple[Part, Part]:
    """(a share of the train part, what is held out of the same classes); nested and fixed, as `subset` and `split`.

    Of the test part no more than `MAX_TEST` images are taken.

    Raises:
        UserError: shares that cannot be had; a share of the classes where the labels are not known.
    """
    if stored.labels_N is not None:
        return _listed(stored, stored.labels_N, fraction, classes, seed)
    if classes < 1:
        raise UserError(
            f"{stored.name}: a share of the classes ({classes}) needs to know the class of every image: run"
            f" `upshot data index {stored.name}` once, which reads the set and writes them down"
        )
    return _drawn(stored, fraction, seed)


def _listed(stored: StoredSet, labels_N: IntArray, fraction: float, classes: float, seed: int) -> tuple[Part, Part]:
    groups_N = np.zeros(len(labels_N), dtype=np.int64)
    train_all, test_all = split(
        LabelSet(
            name=stored.name,
            labels_N=labels_N,
            groups_N=groups_N,
            classes=stored.classes,
            held_out_N=stored.held_out_N,
        )
    )
    train = subset(labels_N, train_all, fraction=fraction, classes=classes, seed=seed)
    test = capped(labels_N, test_all[np.isin(labels_N[test_all], np.unique(labels_N[train]))], MAX_TEST)
    ends = np.cumsum(stored.shard_sizes)
    return tuple(  # type: ignore[return-value]  # two of them
        ListedPart(idx, np.diff(np.searchsorted(idx, ends, side="left"), prepend=0)) for idx in (train, test)
    )


def _drawn(stored: StoredSet, fraction: float, seed: int) -> tuple[Part, Part]:
    sizes = np.array(stored.shard_sizes, dtype=np.int64)
    first = np.cumsum(sizes) - sizes
    num_train, num_test = shard_split(stored.shard_sizes, stored.held_out_shards)
    kept = np.floor(fraction * num_train + np.random.RandomState([seed, _TRAIN]).random_sample(len(sizes)))
    kept = np.minimum(kept.astype(np.int64), num_train)
    if not kept.any():
        raise UserError(f"{stored.name}: fraction {fraction} leaves none of {num_train.sum():,} images")

    def test(shard: int) -> IntArray:
        return np.sort(_permuted(int(sizes[shard]), _TEST, shard)[: num_test[shard]])

    def train(shard: int) -> IntArray:
        rest = _permuted(int(sizes[shard]), _TEST, shard)[num_test[shard] : num_test[shard] + num_train[shard]]
        return np.sort(rest[_permuted(len(rest), _TRAIN, shard, seed)[: kept[shard]]])

    return DrawnPart(first, kept, train), DrawnPart(first, num_test, test)


def shard_split(shard_sizes: tuple[int, ...], held_out_shards: frozenset[int]) -> tuple[IntArray, IntArray]:
    """How many images of each shard may be trained on and how many are held out, where labels are not known.

    Held out is what the source holds out, else a tenth of every shard, and no more than `MAX_TEST` in all.
    """
    sizes = np.array(shard_sizes, dtype=np.int64)
    apart = np.isin(np.arange(len(sizes)), list(held_out_shards))
    source = np.where(apart, sizes, 0) if apart.any() else sizes
    share = min(1.0 if apart.any() else TEST_SHARE, MAX_TEST / max(1, source.sum()))
    rounding = np.random.RandomState([_TEST]).random_sample(len(sizes))
    num_test = np.minimum(np.floor(share * source + rounding).astype(np.int64), source)
    if not num_test.any():
        num_test[np.argmax(source)] = 1
    return np.where(apart, 0, sizes - num_test), num_test


def _permuted(num: int, *key: int) -> IntArray:
    return np.random.RandomState(list(key)).permutation(num)
