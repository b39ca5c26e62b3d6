"""Images of a batch, read and decoded by threads while the training thread computes: Pillow lets it run meanwhile.

Shape suffixes: B images of a batch, U those of them that this process needs, N images of a part.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from models.augment import Batch, Indices, StepImages
from models.data.readers import Reader
from models.data.residence import num_ahead
from models.device import Device
from models.distributed import World

TASK_IMAGES = 8  # that a thread takes at a time


@contextmanager
def step_images(
    reader: Reader, batches: Iterable[Batch], *, world: World, device: Device
) -> Iterator[Iterator[StepImages]]:
    """The batches in turn, each with those of its images that this rank needs; the next ones are prepared meanwhile.

    What a thread raises comes out where its batch would have. No thread is left when the block ends.
    """
    pool = ThreadPoolExecutor(num_threads(), thread_name_prefix="images")
    try:
        yield _in_turn(reader, batches, world, device, pool)
    finally:
        pool.shutdown(cancel_futures=True)


def num_threads() -> int:
    """One for each CPU of this process, but for the one that trains; at least one."""
    cpus = len(os.sched_getaffinity(0))
    return max(1, min(cpus, int(os.environ.get("SLURM_CPUS_PER_TASK") or cpus)) - 1)


@dataclass(frozen=True, slots=True, eq=False)
class _Coming:
    """A step whose images are being prepared: so many, by these tasks."""

    images: StepImages
    num_images: int
    tasks: list[Future[None]]

    def finished(self) -> StepImages:
        for task in self.tasks:
            task.result()
        return self.images


def _in_turn(
    reader: Reader, batches: Iterable[Batch], world: World, device: Device, pool: ThreadPoolExecutor
) -> Iterator[StepImages]:
    coming: deque[_Coming] = deque()
    for batch in batches:
        coming.append(_begin(reader, batch, world, device, pool))
        if len(coming) > num_ahead(coming[-1].num_images):
            yield coming.popleft().finished()
    while coming:
        yield coming.popleft().finished()


def _begin(reader: Reader, batch: Batch, world: World, device: Device, pool: ThreadPoolExecutor) -> _Coming:
    place_U = needed_places(batch, world)
    held = reader.in_memory(batch.position_B[place_U]) if batch.views is None else None
    if held is not None:
        images_NHWC, label_N = map(torch.from_numpy, held)
        images = StepImages(batch=batch, images_NHWC=images_NHWC, labels_N=label_N, row_B=batch.position_B)
        return _Coming(images, len(place_U), [])
    row_B = np.full(len(batch.position_B), -1, dtype=np.int64)
    row_B[place_U] = np.arange(len(place_U))
    pinned = device.torch_device.type == "cuda"
    images = StepImages(
        batch=batch,
        images_NHWC=torch.empty((len(place_U), *reader.image_shape), dtype=torch.uint8, pin_memory=pinned),
        labels_N=torch.empty(len(place_U), dtype=torch.int64),
        row_B=row_B,
    )
    starts = range(0, len(place_U), TASK_IMAGES)
    return _Coming(images, len(place_U), [pool.submit(_read_some, reader, images, place_U, start) for start in starts])


def _read_some(reader: Reader, images: StepImages, place_U: Indices, start: int) -> None:
    images_UHWC, label_U, batch = images.images_NHWC.numpy(), images.labels_N.numpy(), images.batch
    for row in range(start, min(start + TASK_IMAGES, len(place_U))):
        place = int(place_U[row])
        label_U[row] = reader.read(int(batch.position_B[place]), place, batch.views, images_UHWC[row])


def needed_places(batch: Batch, world: World) -> Indices:
    """The places of a rank's share of a batch, then those that are mixed into them from beyond it."""
    own_P = np.array_split(np.arange(len(batch.position_B)), world.size)[world.rank]
    if batch.partner_B is None:
        return own_P
    return np.concatenate([own_P, np.setdiff1d(batch.partner_B[own_P], own_P)])
