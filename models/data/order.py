"""In which order an epoch visits the images of a part: a function of (seed, epoch), so that a step is all to resume by.

Shapes: B images of a batch, E shards in the order of an epoch.
"""

from functools import lru_cache
from typing import Protocol

import numpy as np

from models.data.sets import IntArray

LEAST_OF_A_STREAM = 8  # images a batch takes of one stream, so that a shard is read in few goes

_WITHIN = 5  # tells the orders within shards from those of the shards, and from other draws of a seed


class Order(Protocol):
    """The images of every batch, by their position in the part that is trained on; each at most once an epoch."""

    @property
    def num_streams(self) -> int:
        """A batch holds as many images of each, one stream after the other; each reads other shards."""
        ...

    def batch(self, step: int) -> IntArray:
        """The positions of the images of a step."""
        ...


def make_order(shard_sizes: IntArray, *, batch_size: int, seed: int, most_streams: int = 1) -> Order:
    """A random order of all images where there is one shard, else one that reads shards one after the other."""
    if len(shard_sizes) == 1:
        return ShuffledOrder(int(shard_sizes[0]), batch_size, seed)
    return ShardedOrder(shard_sizes, batch_size, seed, most_streams)


def epoch_order(num_images: int, *, seed: int, epoch: int) -> IntArray:
    """The order in which an epoch visits the images: the same for every run of this seed."""
    return np.random.default_rng((seed, epoch)).permutation(num_images)


class ShuffledOrder:
    """All images in one random order, anew in every epoch."""

    def __init__(self, num_images: int, batch_size: int, seed: int) -> None:
        self.num_streams = 1
        self._num_images, self._batch_size, self._seed = num_images, batch_size, seed
        self._order = lru_cache(maxsize=1)(lambda epoch: epoch_order(num_images, seed=seed, epoch=epoch))

    def batch(self, step: int) -> IntArray:
        """The positions of the images of a step."""
        epoch, within = divmod(step, self._num_images // self._batch_size)
        return self._order(epoch)[within * self._batch_size : (within + 1) * self._batch_size]


class ShardedOrder:
    """Shards in a random order, and the images of each in a random order; several shards are read at a time.

    That sequence is cut into equal streams, and a batch takes its next images from each. How many there are depends on
    the batch and on the shards alone, so any number of ranks sees the same batches; each rank's share of a batch lies
    in few shards, other ones than those of other ranks.
    """

    def __init__(self, shard_sizes: IntArray, batch_size: int, seed: int, most_streams: int) -> None:
        self.num_streams = num_streams(batch_size, min(most_streams, int(np.count_nonzero(shard_sizes))))
        self._sizes, self._starts = shard_sizes, np.cumsum(shard_sizes) - shard_sizes
        self._num_images, self._batch_size, self._seed = int(shard_sizes.sum()), batch_size, seed
        self._shards = lru_cache(maxsize=1)(self._draw_shards)
        self._within = lru_cache(maxsize=3 * self.num_streams)(self._draw_within)

    def batch(self, step: int) -> IntArray:
        """The positions of the images of a step, stream after stream."""
        epoch, within = divmod(step, self._num_images // self._batch_size)
        each = self._batch_size // self.num_streams
        first_S = np.arange(self.num_streams) * (self._num_images // self.num_streams) + within * each
        place_B = (first_S[:, None] + np.arange(each)).ravel()  # in the sequence of the epoch
        shard_E, ends_E = self._shards(epoch)
        turn_B = np.searchsorted(ends_E, place_B, side="right")
        position_B = np.empty(len(place_B), dtype=np.int64)
        for turn in np.unique(turn_B):
            shard, here = int(shard_E[turn]), turn_B == turn
            offset = place_B[here] - (ends_E[turn] - self._sizes[shard])
            position_B[here] = self._starts[shard] + self._within(epoch, shard)[offset]
        return position_B

    def _draw_shards(self, epoch: int) -> tuple[IntArray, IntArray]:
        """(the shards in the order of an epoch, where each ends in its sequence of images)."""
        shard_E = epoch_order(len(self._sizes), seed=self._seed, epoch=epoch)
        return shard_E, np.cumsum(self._sizes[shard_E])

    def _draw_within(self, epoch: int, shard: int) -> IntArray:
        return np.random.default_rng((self._seed, epoch, _WITHIN, shard)).permutation(int(self._sizes[shard]))


def num_streams(batch_size: int, most: int) -> int:
    """The largest power of two that divides the batch, leaves a stream 8 images of it, and is not above `most`."""
    streams = 1
    while batch_size % (2 * streams) == 0 and batch_size // (2 * streams) >= LEAST_OF_A_STREAM:
        if 2 * streams > most:
            break
        streams *= 2
    return streams
