"""Which images of a stored set are trained on, and which are held out to measure on.

As `models.data.splits` draws them, which needs every label, or the same share of every shard: what is kept of a shard
is then drawn when it is first asked for, so that memory grows with the shards, not with the images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from models.data.sets import BoolArray, IntArray
from models.data.splits import capped, split, subset
from models.data.stored import StoredSet, label_set
from models.errors import UserError
from models.recipe import Subset

MAX_TEST = 50_000  # images to measure on: more would not tell more, and all are seen at every checkpoint
DRAWS_KEPT = 1024  # shards whose draws are remembered: 80 MB where a shard has 10,000 images

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

    def indices(self) -> IntArray:
        """Of all its images, in order: as many numbers as images."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ListedPart:
    """Images by a list of their indices, which ascend."""

    index_N: IntArray
    shard_sizes: IntArray

    def indices(self) -> IntArray:
        """Of all its images, in order."""
        return self.index_N

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

    def indices(self) -> IntArray:
        """Of all its images, in order."""
        return np.concatenate([self._first[shard] + self._drawn(shard) for shard in range(len(self.shard_sizes))])


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a cell trains on and what it is measured on; `classes` are the set's classes of both, ascending."""

    train: Part
    test: Part
    classes: IntArray


def draw_parts(stored: StoredSet, drawn: Subset) -> Parts:
    """A share of the train part, and what is held out of the same classes; of that no more than `MAX_TEST` images.

    Nested and fixed. Where `drawn_by_shard`, a fraction is the same share of every shard, whether or not the labels are
    listed by now: what a cell is trained on must not change with that. Elsewhere it is what `subset` draws.

    Raises:
        DataError: a share of the classes or a number of images, where labels are not known.
        UserError: another share that cannot be had.
    """
    if stored.drawn_by_shard and drawn["classes"] == 1 and drawn["images"] is None:
        return _drawn(stored, drawn)
    return _listed(stored, drawn)


def _listed(stored: StoredSet, drawn: Subset) -> Parts:
    listed = label_set(stored)
    labels_N, (train_all, test_all) = listed.labels_N, split(listed)
    by_shard = stored.drawn_by_shard and drawn["images"] is None
    of_classes = subset(labels_N, train_all, **(drawn | {"fraction": 1.0} if by_shard else drawn))
    train = of_classes
    if by_shard:
        train = np.intersect1d(of_classes, drawn_by_shard(stored, drawn["fraction"], drawn["seed"]).indices())
    if not len(train):
        raise UserError(f"{stored.name}: fraction {drawn['fraction']} leaves no image of the classes that are kept")
    classes = np.unique(labels_N[of_classes])
    test = capped(labels_N, test_all[np.isin(labels_N[test_all], classes)], MAX_TEST)
    return Parts(train=_list(stored, train), test=_list(stored, test), classes=classes)


def _list(stored: StoredSet, idx: IntArray) -> ListedPart:
    ends = np.searchsorted(idx, np.cumsum(stored.shard_sizes), side="left")
    return ListedPart(idx, np.diff(ends, prepend=0))


def _drawn(stored: StoredSet, drawn: Subset) -> Parts:
    num_test = _capped_of_shards(np.where(_held_out(stored), np.array(stored.shard_sizes, dtype=np.int64), 0))
    return Parts(
        train=drawn_by_shard(stored, drawn["fraction"], drawn["seed"]),
        test=_part(stored, num_test, _TEST, 0),
        classes=np.arange(len(stored.classes)),
    )


def drawn_by_shard(stored: StoredSet, fraction: float, seed: int) -> DrawnPart:
    """The same share of every shard that is trained on."""
    return _part(stored, kept_of_shards(stored, fraction, seed), _TRAIN, seed)


def _part(stored: StoredSet, kept: IntArray, which: int, seed: int) -> DrawnPart:
    """So many images of each shard."""
    sizes = np.array(stored.shard_sizes, dtype=np.int64)

    def draw(shard: int) -> IntArray:
        return np.sort(np.random.RandomState([seed, which, shard]).permutation(sizes[shard])[: kept[shard]])

    return DrawnPart(np.cumsum(sizes) - sizes, kept, draw)


def kept_of_shards(stored: StoredSet, fraction: float, seed: int) -> IntArray:
    """How many images of each shard are trained on: a share of each, rounded up or down.

    Raises:
        UserError: none.
    """
    sizes = np.where(_held_out(stored), 0, np.array(stored.shard_sizes, dtype=np.int64))
    rounding = np.random.RandomState([seed, _TRAIN]).random_sample(len(sizes))
    kept: IntArray = np.minimum(np.floor(fraction * sizes + rounding).astype(np.int64), sizes)
    if not kept.any():
        raise UserError(f"{stored.name}: fraction {fraction} leaves none of {sizes.sum():,} images")
    return kept


def _held_out(stored: StoredSet) -> BoolArray:
    """Of every shard, whether it is."""
    return np.isin(np.arange(len(stored.shard_sizes)), list(stored.held_out_shards))


def _capped_of_shards(sizes: IntArray) -> IntArray:
    """The same share of every shard, about `MAX_TEST` images in all, and one at least of each."""
    share = min(1.0, MAX_TEST / sizes.sum())
    kept: IntArray = np.minimum(sizes, np.maximum(1, np.floor(share * sizes).astype(np.int64)))
    return kept
