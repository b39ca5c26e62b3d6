"""Images of a part, decoded, as they are asked for.

Shapes: N images of the part, P of a piece of a batch, H and W pixels, C channels or classes.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from models.data import pixels
from models.data.augmentations import Views
from models.data.corrupt import Corrupt
from models.data.parts import Part
from models.data.sets import IntArray, PixelArray
from models.data.stored import StoredSet
from models.errors import DataError

_UNREAD = -1  # no label


class Reader(Protocol):
    """Images by their position in a part. Several threads may ask at once."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        ...

    def __len__(self) -> int: ...

    def in_memory(self, position_P: IntArray) -> tuple[PixelArray, IntArray] | None:
        """All images of the part and their labels, where memory holds those of these positions as they are seen."""
        ...

    def read(self, position: int, place: int, views: Views | None, image_HWC: PixelArray) -> int:
        """The label, after `image_HWC` holds the image as it is seen at a place of a batch.

        Raises:
            DataError: it cannot be read, nor can what would stand for it, or too many cannot.
        """
        ...


class ArrayReader:
    """Images that are in memory, of any size."""

    def __init__(self, images_NHWC: PixelArray, labels_N: IntArray, image_size: int) -> None:
        self._images_NHWC, self._labels_N, self._image_size = images_NHWC, labels_N, image_size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return self._image_size, self._image_size, self._images_NHWC.shape[3]

    def __len__(self) -> int:
        return len(self._labels_N)

    def in_memory(self, position_P: IntArray) -> None:
        """None: these images are read to be changed."""

    def read(self, position: int, place: int, views: Views | None, image_HWC: PixelArray) -> int:
        """The label, after `image_HWC` holds the image."""
        views = views or Views()
        seen_HWC = pixels.view(self._images_NHWC[position], self._image_size, views.box(place))
        image_HWC[:] = views.changed(seen_HWC, place)
        return int(self._labels_N[position])


class StoredReader:
    """Images of a stored set; a corrupt one is counted, and the next readable one of its shard stands for it.

    Where none of its shard can be read, that is one of the next shard that has some.

    Args:
        stored: the set.
        part: the part of it.
        image_size: of the squares that are made of its images.
        label_C: by the set's classes, the label to give.
        corrupt: what counts corrupt images.
        keep: whether memory holds all images of the part: each is then decoded once, unless it is cropped.
    """

    def __init__(
        self, stored: StoredSet, part: Part, *, image_size: int, label_C: IntArray, corrupt: Corrupt, keep: bool
    ) -> None:
        self._stored, self._part, self._label_C, self._corrupt = stored, part, label_C, corrupt
        self._image_size = image_size
        self._ends = np.cumsum(part.shard_sizes)
        self._kept_labels_N = np.full(len(self) if keep else 0, _UNREAD, dtype=np.int64)
        self._kept_NHWC = np.empty((len(self._kept_labels_N), *self.image_shape), dtype=np.uint8)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return self._image_size, self._image_size, 3

    def __len__(self) -> int:
        return int(self._ends[-1])

    def in_memory(self, position_P: IntArray) -> tuple[PixelArray, IntArray] | None:
        """All images and labels, where those of these positions were kept."""
        if not len(self._kept_labels_N) or (self._kept_labels_N[position_P] == _UNREAD).any():
            return None
        return self._kept_NHWC, self._kept_labels_N

    def read(self, position: int, place: int, views: Views | None, image_HWC: PixelArray) -> int:
        """The label, after `image_HWC` holds the image."""
        views = views or Views()
        self._corrupt.saw(1)
        for candidate in self._candidates(position):
            try:
                label = self._read(candidate, place, views, image_HWC)
            except DataError as error:
                self._corrupt.note(self._part.index(candidate), error)
                continue
            image_HWC[:] = views.changed(image_HWC, place)
            return label
        named = self._stored.place(self._part.index(position))
        raise DataError(f"{named}: cannot be read, nor can any other image")

    def _candidates(self, position: int) -> Iterator[int]:
        """The position, those after it in its shard and those before it, then those of the next shards.

        Not the ones known to be corrupt. In the next shards too it begins as far from the first image, so that not one
        image stands for all of a shard.
        """
        sizes, own = self._part.shard_sizes, int(np.searchsorted(self._ends, position, side="right"))
        within = position - int(self._ends[own] - sizes[own])
        for shard in (*range(own, len(sizes)), *range(own)):
            size = int(sizes[shard])
            for more in range(size):
                candidate = int(self._ends[shard]) - size + (within + more) % size
                if not len(self._corrupt) or self._part.index(candidate) not in self._corrupt:
                    yield candidate

    def _read(self, position: int, place: int, views: Views, image_HWC: PixelArray) -> int:
        """The label, after `image_HWC` holds the image before its operations; memory has it or gets it."""
        box = views.box(place)
        keep = box is None and len(self._kept_labels_N) > 0
        if keep and self._kept_labels_N[position] != _UNREAD:
            image_HWC[:] = self._kept_NHWC[position]
            return int(self._kept_labels_N[position])
        index = self._part.index(position)
        encoded, stored_label = self._stored.read(index)
        try:
            image_HWC[:] = pixels.decode(encoded, self._image_size, box)
        except DataError as error:
            raise DataError(f"{self._stored.place(index)}: {error}") from error
        label = int(self._label_C[stored_label])
        if keep:
            self._kept_NHWC[position] = image_HWC
            self._kept_labels_N[position] = label  # last: it tells other threads that the image is there
        return label
