"""The images of a downstream task, in memory.

Shapes: N examples, H height, W width, C channels (1 or 3).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evals.tasks import Task, task
from models.data import Square, capped, describe, is_folder, load_images, split

FOLDER_IMAGE_SIZE: Final = 224
"""Side of a folder's images where they differ in size and none was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaskData:
    """Images to draw shots from and images to test on; pixels are uint8, labels int64 indices into `classes`."""

    train_images_NHWC: NDArray[np.uint8]
    train_labels_N: NDArray[np.int64]
    test_images_NHWC: NDArray[np.uint8]
    test_labels_N: NDArray[np.int64]
    classes: tuple[str, ...]


def load_task(which: str | Task, image_size: Square | None = None) -> TaskData:
    """Both parts of a task, by its name or as `evals.tasks.task` gave it; resized where `image_size` is given.

    Raises:
        UnknownNameError: no such task.
        DataError: images that are missing or unreadable.
    """
    t = task(which) if isinstance(which, str) else which
    if not is_folder(t.dataset):
        return _load_packaged(t, image_size)
    return _load(t, image_size or describe(t.dataset).image_size or FOLDER_IMAGE_SIZE)


@lru_cache(maxsize=16)
def _load_packaged(t: Task, image_size: Square | None) -> TaskData:
    """Kept, since decoding one takes as long as a small model takes to encode it, and all together are 100 MB."""
    return _load(t, image_size)


def _load(t: Task, image_size: Square | None) -> TaskData:
    s = load_images(t.dataset, image_size)
    train_idx, test_idx = split(s, test_share=t.test_share)
    test_idx = capped(s.labels_N, test_idx, t.num_test)
    return TaskData(
        train_images_NHWC=s.images_NHWC[train_idx],
        train_labels_N=s.labels_N[train_idx],
        test_images_NHWC=s.images_NHWC[test_idx],
        test_labels_N=s.labels_N[test_idx],
        classes=s.classes,
    )
