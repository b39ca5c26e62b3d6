"""Which images of a stored set are trained on, and which are held out to measure on.

Where labels are known, as `models.data.splits` draws them. Where they are not, from every shard the same share: what is
kept of a shard is drawn when it is first asked for, so that memory grows with the shards, not with the images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from models.data.sets import IntArray
from models.data.splits import capped, split, subset
from models.data.stored import StoredSet, label_set
from models.errors import UserError
from models.recipe import Subset

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a cell trains on and what it is measured on; `classes` are the set's classes of both, ascending."""

    train: Part
    test: Part
    classes: IntArray


def draw_parts(stored: StoredSet, drawn: Subset) -> Parts:
    """A share of the train part, and what is held out of the same classes; of that no more than `MAX_TEST` images.

    Nested and fixed, as `subset` and `split`.

    Raises:
        UserError: shares that cannot be had; a share of the classes, or a number of images, where labels are not known.
    """
    return _drawn(stored, drawn) if stored.labels_N is None else _listed(stored, stored.labels_N, drawn)


def _listed(stored: StoredSet, labels_N: IntArray, drawn: Subset) -> Parts:
    train_all, test_all = split(label_set(stored))
    train = subset(labels_N, train_all, **drawn)
    classes = np.unique(labels_N[train])
    test = capped(labels_N, test_all[np.isin(labels_N[test_all], classes)], MAX_TEST)
    return Parts(train=_list(stored, train), test=_list(stored, test), classes=classes)


def _list(stored: StoredSet, idx: IntArray) -> ListedPart:
    ends = np.searchsorted(idx, np.cumsum(stored.shard_sizes), side="left")
    return ListedPart(idx, np.diff(ends, prepend=0))


def _drawn(stored: StoredSet, drawn: Subset) -> Parts:
    sizes = np.array(stored.shard_sizes, dtype=np.int64)
    held_out = np.isin(np.arange(len(sizes)), list(stored.held_out_shards))
    num_train, num_test = kept_of_shards(stored, drawn), _capped_of_shards(np.where(held_out, sizes, 0))

    def part(kept: IntArray, which: int, seed: int) -> DrawnPart:
        def draw(shard: int) -> IntArray:
            return np.sort(np.random.RandomState([seed, which, shard]).permutation(sizes[shard])[: kept[shard]])

        return DrawnPart(np.cumsum(sizes) - sizes, kept, draw)

    return Parts(
        train=part(num_train, _TRAIN, drawn["seed"]),
        test=part(num_test, _TEST, 0),
        classes=np.arange(len(stored.classes)),
    )


def kept_of_shards(stored: StoredSet, drawn: Subset) -> IntArray:
    """How many images of each shard are trained on where labels are not known: a share of each, rounded up or down.

    Raises:
        UserError: a share of the classes, or a number of images; a share that leaves no image.
    """
    if drawn["classes"] < 1 or drawn["images"] is not None:
        raise UserError(
            f"{stored.name}: `classes` and `images` need to know the class of every image: `upshot data index"
            f" '{stored.name}'` reads the shards once and writes them down"
        )
    sizes = np.array(stored.shard_sizes, dtype=np.int64)
    train = np.where(np.isin(np.arange(len(sizes)), list(stored.held_out_shards)), 0, sizes)
    rounding = np.random.RandomState([drawn["seed"], _TRAIN]).random_sample(len(sizes))
    kept: IntArray = np.minimum(np.floor(drawn["fraction"] * train + rounding).astype(np.int64), train)
    if not kept.any():
        raise UserError(f"{stored.name}: fraction {drawn['fraction']} leaves none of {train.sum():,} images")
    return kept


def _capped_of_shards(sizes: IntArray) -> IntArray:
    """The same share of every shard, about `MAX_TEST` images in all, and one at least of each."""
    share = min(1.0, MAX_TEST / sizes.sum())
    kept: IntArray = np.minimum(sizes, np.maximum(1, np.floor(share * sizes).astype(np.int64)))
    return kept
