"""The upstream data of a cell, and what a model is worth on its held-out part.

Shape suffixes: B batch, N examples, H and W pixels, C channels or classes.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from models.augment import Batch, StepImages, draw_batch
from models.data import ImageSet, is_folder, load_images, open_stored, split, subset
from models.data.corrupt import MAX_CORRUPT, Corrupt
from models.data.order import Order, make_order
from models.data.parts import Part, draw_parts
from models.data.pixels import resize
from models.data.readers import ArrayReader, Reader, StoredReader
from models.data.residence import MEASURED_IMAGES, fits_in_memory
from models.data.sets import IntArray, PixelArray
from models.data.stored import StoredSet
from models.device import Device
from models.distributed import World
from models.feed import step_images
from models.memory import own_memory_gb
from models.recipe import Recipe, num_steps

NO_LABEL = -100  # what torch's cross-entropy leaves out


@dataclass(frozen=True, slots=True, eq=False)
class Resident:
    """Images in memory as a model sees them: uint8 [N, H, W, C]."""

    images_NHWC: torch.Tensor
    labels_N: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels_N)


@dataclass(frozen=True, slots=True, eq=False)
class UpstreamData:
    """Images to train on and held-out images of the same classes, whose labels are numbered from 0.

    `order` is that of the images to train on; `corrupt` counts what could not be read.
    """

    train: Resident | Reader
    test: Resident | Reader
    num_classes: int
    order: Order
    corrupt: Corrupt


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """The held-out images alone, and the names of the classes, by the label that the model knows them by."""

    images: Resident | Reader
    classes: tuple[str, ...]


def load_upstream(recipe: Recipe, *, max_corrupt: float = MAX_CORRUPT) -> UpstreamData:
    """The recipe's share of the upstream images, labels renumbered over the classes that were kept.

    Packaged sets are in memory. Other images stay where they lie until a batch wants them, and in memory from then on
    where it holds them all.

    Raises:
        UserError: the images or the shares of them cannot be had.
    """
    return _stored(recipe, max_corrupt) if is_folder(recipe.dataset) else _packaged(recipe)


def _packaged(recipe: Recipe) -> UpstreamData:
    """Of these no image is corrupt."""
    images, kept, test, classes = _drawn(recipe)
    labels = np.searchsorted(classes, images.labels_N[kept])
    train: Resident | Reader
    if not recipe.crop and recipe.augreg == "none":
        pixels_NHWC = resize(images.images_NHWC[kept], recipe.image_size)
        train = Resident(torch.from_numpy(pixels_NHWC), torch.from_numpy(labels))
    else:
        train = ArrayReader(images.images_NHWC[kept], labels, recipe.image_size)
    return UpstreamData(
        train=train,
        test=_resident(recipe, images, test, classes),
        num_classes=len(classes),
        order=_order(recipe, np.array([len(kept)]), 1),
        corrupt=Corrupt(recipe.dataset, len(kept), 0.0),
    )


def _drawn(recipe: Recipe) -> tuple[ImageSet, IntArray, IntArray, IntArray]:
    """A packaged set, the indices to train on and those held out of the same classes, and these classes, ascending."""
    images = load_images(recipe.dataset)
    train_all, test_all = split(images)
    kept = subset(images.labels_N, train_all, **recipe.subset)
    classes = np.unique(images.labels_N[kept])
    return images, kept, test_all[np.isin(images.labels_N[test_all], classes)], classes


def _resident(recipe: Recipe, images: ImageSet, idx: IntArray, classes: IntArray) -> Resident:
    return Resident(
        torch.from_numpy(resize(images.images_NHWC[idx], recipe.image_size)),
        torch.from_numpy(np.searchsorted(classes, images.labels_N[idx])),
    )


def _stored(recipe: Recipe, max_corrupt: float) -> UpstreamData:
    stored = open_stored(recipe.dataset)
    drawn = draw_parts(stored, recipe.subset)
    num_images = int(drawn.train.shard_sizes.sum() + drawn.test.shard_sizes.sum())
    corrupt = Corrupt(recipe.dataset, num_images, max_corrupt)
    keep = fits_in_memory(num_images, recipe.image_size, own_memory_gb())
    return UpstreamData(
        train=_reader(recipe, stored, drawn.train, drawn.classes, corrupt, keep=keep),
        test=_reader(recipe, stored, drawn.test, drawn.classes, corrupt, keep=keep),
        num_classes=len(drawn.classes),
        order=_order(recipe, drawn.train.shard_sizes, stored.most_open),
        corrupt=corrupt,
    )


def _reader(
    recipe: Recipe, stored: StoredSet, part: Part, classes: IntArray, corrupt: Corrupt, *, keep: bool
) -> StoredReader:
    label_C = np.searchsorted(classes, np.arange(len(stored.classes)))
    return StoredReader(stored, part, image_size=recipe.image_size, label_C=label_C, corrupt=corrupt, keep=keep)


def _order(recipe: Recipe, shard_sizes: IntArray, most_open: int) -> Order:
    _, batch_size = num_steps(int(shard_sizes.sum()), batch_size=recipe.batch_size, epochs=recipe.epochs)
    return make_order(shard_sizes, batch_size=batch_size, seed=recipe.seed, most_streams=most_open)


@contextmanager
def training_images(
    data: UpstreamData, recipe: Recipe, steps: range, *, world: World, device: Device
) -> Iterator[Iterator[StepImages]]:
    """The images of each step in turn; they depend on the recipe and the step alone."""
    order = data.order
    batches = (draw_batch(order.batch(step), recipe, step, num_streams=order.num_streams) for step in steps)
    with _images(data.train, batches, world, device) as images:
        yield images


@contextmanager
def _images(
    part: Resident | Reader, batches: Iterable[Batch], world: World, device: Device
) -> Iterator[Iterator[StepImages]]:
    if isinstance(part, Resident):
        yield (
            StepImages(batch=batch, images_NHWC=part.images_NHWC, labels_N=part.labels_N, row_B=batch.position_B)
            for batch in batches
        )
    else:
        with step_images(part, batches, world=world, device=device) as images:
            yield images


@torch.no_grad()  # torch-xla makes no views in inference mode
def measure_upstream(model: torch.nn.Module, data: UpstreamData, device: Device) -> tuple[float, float]:
    """(top-1 accuracy, mean cross-entropy) on the held-out upstream images of the classes that were trained."""
    training = model.training
    model.eval()
    correct, losses, num_test = [], [], len(data.test)
    starts = range(0, num_test, MEASURED_IMAGES)
    batches = (Batch(position_B=np.arange(start, min(start + MEASURED_IMAGES, num_test))) for start in starts)
    with _images(data.test, batches, World.alone(), device) as batches_of_test:
        for images in batches_of_test:
            place_B = torch.arange(len(images))
            y_B = device.put(device.filled(images.labels(place_B.numpy()), MEASURED_IMAGES, NO_LABEL))
            logits_BC = model(images.inputs(device.filled(place_B, MEASURED_IMAGES).numpy(), device)).float()
            correct.append((logits_BC.argmax(1) == y_B).sum())
            losses.append(functional.cross_entropy(logits_BC, y_B, reduction="sum"))
            device.end_step()
    model.train(training)
    loss = 0.0
    for of_batch in losses:
        loss += float(of_batch)
    return sum(map(int, correct)) / num_test, loss / num_test


def load_held_out(recipe: Recipe, *, max_corrupt: float = MAX_CORRUPT) -> HeldOut:
    """The images that `measure_upstream` measures on, without those to train on; stored ones are not kept in memory.

    Raises:
        UserError: as `load_upstream`.
    """
    if not is_folder(recipe.dataset):
        images, _, test, classes = _drawn(recipe)
        return HeldOut(_resident(recipe, images, test, classes), tuple(images.classes[label] for label in classes))
    stored = open_stored(recipe.dataset)
    drawn = draw_parts(stored, recipe.subset)
    corrupt = Corrupt(recipe.dataset, int(drawn.test.shard_sizes.sum()), max_corrupt)
    reader = _reader(recipe, stored, drawn.test, drawn.classes, corrupt, keep=False)
    return HeldOut(reader, tuple(stored.classes[label] for label in drawn.classes))


def held_out_batches(held_out: HeldOut, batch_size: int) -> Iterator[tuple[PixelArray, IntArray]]:
    """(images [B, H, W, C], labels [B]) of the held-out part, in its order; the next ones are decoded meanwhile.

    Raises:
        DataError: too many images cannot be read.
    """
    num_images = len(held_out.images)
    starts = range(0, num_images, batch_size)
    batches = (Batch(position_B=np.arange(start, min(start + batch_size, num_images))) for start in starts)
    with _images(held_out.images, batches, World.alone(), Device(torch.device("cpu"))) as coming:
        for images in coming:
            row_B = images.row_B
            yield images.images_NHWC.numpy()[row_B], images.labels_N.numpy()[row_B]
