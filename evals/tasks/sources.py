"""Where the images of a task come from, image by image: files and tables as they are stored, or arrays of pixels.

Shape suffixes: N images, H and W pixels, C channels (1 or 3).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.data import LabelSet, Square, StoredSet, label_set
from models.data.pixels import decode, resize
from models.data.stored import described
from models.errors import DataError

Pixels = NDArray[np.uint8]


class Source(Protocol):
    """All images of a task, in the order of its layout. Several threads may ask for images."""

    @property
    def labels(self) -> LabelSet:
        """What is known of it without its pixels; raises DataError where labels are not known."""
        ...

    @property
    def image_size(self) -> int | None:
        """The side of its images; None where they are not all squares of one size."""
        ...

    def image(self, index: int, square: Square) -> Pixels:
        """uint8 [H, W, C], made square.

        Raises:
            DataError: it cannot be read; the message names its place. A test set must be whole.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Images that are stored as JPEG, PNG and the like; seen in colour.

    Args:
        stored: files, tables or shards.
        groups_N: what may not stand on both sides of a drawn split; None where images are independent.
    """

    stored: StoredSet
    groups_N: NDArray[np.int64] | None = None

    @property
    def labels(self) -> LabelSet:
        """As the stored set has them."""
        known = label_set(self.stored)
        if self.groups_N is None:
            return known
        return LabelSet(
            name=known.name,
            labels_N=known.labels_N,
            groups_N=self.groups_N,
            classes=known.classes,
            held_out_N=known.held_out_N,
        )

    @property
    def image_size(self) -> int | None:
        """Told by the headers of the first images."""
        return described(self.stored).image_size

    def image(self, index: int, square: Square) -> Pixels:
        """Read and decoded."""
        encoded, _ = self.stored.read(index)
        try:
            return decode(encoded, square)
        except DataError as error:
            raise DataError(f"{self.stored.place(index)}: {error}") from error


@dataclass(frozen=True, slots=True, eq=False)
class Arrays:
    """Images whose pixels lie in arrays.

    Args:
        labels: of all of them.
        image_size: their side.
        pixels: gives one, uint8 [H, W, C], by its index; may be called by several threads.
    """

    labels: LabelSet
    image_size: int
    pixels: Callable[[int], Pixels]

    def image(self, index: int, square: Square) -> Pixels:
        """Resized where it has another size."""
        image_HWC: Pixels = resize(self.pixels(index)[None], square)[0]
        return image_HWC


def label_set_of(
    name: str, classes: tuple[str, ...], labels_N: NDArray[np.int64], held_out_N: NDArray[np.bool_] | None
) -> LabelSet:
    """The labels of independent images."""
    alone_N = np.broadcast_to(np.int64(0), labels_N.shape)
    return LabelSet(name=name, labels_N=labels_N, groups_N=alone_N, classes=classes, held_out_N=held_out_N)
