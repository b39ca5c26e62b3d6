"""Features of the training images in use, by layer, in memory or, where they are many, in a file.

Shape suffixes: U images in use, N the same of one layer, B images of a batch, D features.
"""

import os
import tempfile
from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from evals.fewshot import Integers

SPILL_BYTES: Final = 2**30
"""Features of one layer that take more than this go to a file in the job's folder for temporary files."""

FloatRows = npt.NDArray[np.float32]


class FeatureRows:
    """The features of some images, of which each layer holds those that are wanted of it.

    Args:
        wanted: by layer, indices of images, ascending.
    """

    def __init__(self, wanted: Mapping[int, Integers]) -> None:
        self._wanted = wanted
        self._rows: dict[int, FloatRows] = {}

    @property
    def layers(self) -> list[int]:
        """Those that something is wanted of, ascending."""
        return sorted(self._wanted)

    def take(self, index_B: Integers, features: Mapping[int, FloatRows]) -> None:
        """Keeps what is wanted of the features [B, D] by layer of the images `index_B`."""
        for layer, features_BD in features.items():
            wanted_N = self._wanted[layer]
            if layer not in self._rows:
                self._rows[layer] = _room(len(wanted_N), features_BD.shape[1])
            held_B = np.isin(index_B, wanted_N)
            self._rows[layer][np.searchsorted(wanted_N, index_B[held_B])] = features_BD[held_B]

    def of(self, layer: int, index_F: Integers) -> FloatRows:
        """The features [F, D] of these images, in their order: the very rows where they are all that there are."""
        rows, wanted_N = self._rows[layer], self._wanted[layer]
        return rows if np.array_equal(index_F, wanted_N) else rows[np.searchsorted(wanted_N, index_F)]


def _room(num_images: int, num_features: int) -> FloatRows:
    if 4 * num_images * num_features <= SPILL_BYTES:
        return np.empty((num_images, num_features), dtype=np.float32)
    with tempfile.TemporaryFile(prefix="upshot-features-") as file:  # mapped, it outlives its name and its descriptor
        # Without its room, a write to the map on a full disk would kill the process.
        os.posix_fallocate(file.fileno(), 0, 4 * num_images * num_features)
        return np.memmap(file, dtype=np.float32, mode="w+", shape=(num_images, num_features))
