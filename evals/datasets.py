"""The images of a downstream task: in memory, or read as they are asked for.

Shape suffixes: N images of a part, B images of a batch, H and W pixels, C channels (1 or 3) or classes.
"""

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from evals.tasks import Source, Task, open_source, task
from models.data import LabelSet, Square, capped, load_images, split
from models.data.pixels import resize
from models.data.stored import refuse_untrained_classes
from models.errors import DataError

Integers = NDArray[np.int64]
Pixels = NDArray[np.uint8]
Hashes = NDArray[np.uint64]

STORED_IMAGE_SIZE: Final = 224
"""Side of stored images where they differ in size and none was asked for."""

AHEAD: Final = 2
"""Batches that are decoded while one is in use."""


class Images(Protocol):
    """One part, train or test, of a task."""

    @property
    def labels_N(self) -> Integers:  # noqa: N802 - a shape suffix
        """Indices into the task's classes."""
        ...

    def batches(self, index_N: Integers, batch_size: int) -> Iterator[Pixels]:
        """The images [B, H, W, C] of these indices, in their order, `batch_size` at a time.

        The next ones are decoded meanwhile where they are stored encoded.

        Raises:
            DataError: one cannot be read; the message names its place.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaskData:
    """Images to draw shots from and images to test on."""

    train: Images
    test: Images
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ArrayImages:
    """Images in memory, made square where that is wanted only as they are asked for: larger ones take much memory."""

    images_NHWC: Pixels
    labels_N: Integers
    square: Square | None = None

    def batches(self, index_N: Integers, batch_size: int) -> Iterator[Pixels]:
        """Copies of them."""
        for start in range(0, len(index_N), batch_size):
            images_BHWC = self.images_NHWC[index_N[start : start + batch_size]]
            yield images_BHWC if self.square is None else resize(images_BHWC, self.square)


@dataclass(frozen=True, slots=True, eq=False)
class SourceImages:
    """Images of a source, at its indices `source_index_N`, made square."""

    source: Source
    source_index_N: Integers
    labels_N: Integers
    square: Square

    def batches(self, index_N: Integers, batch_size: int) -> Iterator[Pixels]:
        """Read and decoded by threads, `AHEAD` batches before they are asked for."""
        pool = ThreadPoolExecutor(_num_threads(), thread_name_prefix="images")
        coming: deque[list[Future[Pixels]]] = deque()
        try:
            for start in range(0, len(index_N), batch_size):
                wanted = self.source_index_N[index_N[start : start + batch_size]]
                coming.append([pool.submit(self.source.image, int(i), self.square) for i in wanted])
                if len(coming) > AHEAD:
                    yield _stacked(coming.popleft())
            while coming:
                yield _stacked(coming.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def load_task(which: str | Task, square: Square | None = None, *, root: Path | None = None) -> TaskData:
    """Both parts of a task, by its name or path, or as `evals.tasks.task` gave it.

    Packaged images are in memory; all others are read image by image. A class of which a source names no
    image at all is left out.

    Args:
        which: the task.
        square: how images are made square. Where it is None, packaged images keep their size and others get their own
            if they are squares of one size, else 224 pixels.
        root: the folder of public tasks; that of $UPSHOT_DATA where it is None.

    Raises:
        UnknownNameError: no such task.
        DataError: images that are missing or unreadable, one class only, or a test class that none is trained on.
    """
    t = task(which, root) if isinstance(which, str) else which
    return _load_packaged(t, square) if t.kind == "packaged" else _load_stored(t, square)


def _load_packaged(t: Task, square: Square | None) -> TaskData:
    own = _packaged_images(t)
    train, test = (ArrayImages(part.images_NHWC, part.labels_N, square) for part in own[:2])
    return TaskData(train=train, test=test, classes=own[2])


@lru_cache(maxsize=16)
def _packaged_images(t: Task) -> tuple[ArrayImages, ArrayImages, tuple[str, ...]]:
    """(train, test, classes) at their own size.

    Kept, since decoding one takes as long as a small model takes to encode it, and all together are 100 MB.
    """
    s = load_images(t.dataset)
    train_idx, test_idx = split(s, test_share=t.test_share)
    test_idx = capped(s.labels_N, test_idx, t.num_test)
    train, test = (ArrayImages(s.images_NHWC[idx], s.labels_N[idx]) for idx in (train_idx, test_idx))
    return train, test, s.classes


def _load_stored(t: Task, square: Square | None) -> TaskData:
    source = open_source(t)
    s = source.labels
    present_C, labels_N = np.unique(s.labels_N, return_inverse=True)
    train_idx, test_idx = _parts(t, s)
    square = square or source.image_size or STORED_IMAGE_SIZE
    train, test = (SourceImages(source, idx, labels_N[idx], square) for idx in (train_idx, test_idx))
    return TaskData(train=train, test=test, classes=tuple(s.classes[label] for label in present_C))


def _parts(t: Task, s: LabelSet) -> tuple[Integers, Integers]:
    """Indices of the train part and of the test part, in the order of the source."""
    train_idx, test_idx = split(s, test_share=t.test_share)
    held_out_N = np.zeros(len(s.labels_N), dtype=np.bool_)
    held_out_N[test_idx] = True
    refuse_untrained_classes(s.name, s.classes, s.labels_N, held_out_N)
    if not len(test_idx):
        raise DataError(f"{s.name}: no class has two images, so that there is none to test on")
    return train_idx, test_idx


def pixel_hashes(images_NHWC: Pixels) -> Hashes:
    """[N]: of each image 8 bytes of a cryptographic hash of its shape and pixels; equal for equal images only.

    Of 10^6 images against 10^6 others, two different ones agree by chance once in 10^7 such comparisons.
    """
    shape = repr(images_NHWC.shape[1:]).encode()
    digests = [hashlib.blake2b(image.tobytes(), digest_size=8, key=shape).digest() for image in images_NHWC]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def duplicates(data: TaskData, batch_size: int = 256) -> Integers:
    """The test images whose pixels a training image has too, by their ascending indices; decodes every image once."""
    train, test = (
        np.concatenate([pixel_hashes(batch) for batch in part.batches(np.arange(len(part.labels_N)), batch_size)])
        for part in (data.train, data.test)
    )
    return np.flatnonzero(np.isin(test, train))


def _stacked(images: list[Future[Pixels]]) -> Pixels:
    return np.stack([image.result() for image in images])


def _num_threads() -> int:
    """One for each CPU of this process."""
    cpus = len(os.sched_getaffinity(0))
    return max(1, min(cpus, int(os.environ.get("SLURM_CPUS_PER_TASK") or cpus)))
