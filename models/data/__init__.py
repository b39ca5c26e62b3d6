"""Images to train and to probe on: packaged sets, and what lies on disk: folders, tar shards, tables.

`sets` has the types; `packaged`, `folders`, `shards` and `hugging_face` are the sources, of which the last two are read
image by image (`stored`); `splits` has what is drawn from them. Nothing here imports torch: plans are made on login
nodes.
"""

import os
from functools import cache, lru_cache

import numpy as np

from models.data import folders, hugging_face, packaged, shards
from models.data.packaged import packaged_names, shipped
from models.data.parts import drawn_by_shard, kept_of_shards
from models.data.pixels import CentreCrop, Square, side
from models.data.sets import ImageSet, IntArray, LabelSet, SetInfo
from models.data.splits import SplitRule, capped, kept_classes, split, split_rule, subset, subset_size
from models.data.stored import StoredSet, label_set
from models.errors import DataError, UserError

__all__ = [
    "CentreCrop",
    "ImageSet",
    "LabelSet",
    "SetInfo",
    "SplitRule",
    "Square",
    "StoredSet",
    "capped",
    "describe",
    "is_folder",
    "is_streamed",
    "kept",
    "label_set",
    "load_images",
    "load_labels",
    "open_stored",
    "packaged_names",
    "shipped",
    "split",
    "split_rule",
    "subset",
]


def load_images(dataset: str, image_size: Square | None = None) -> ImageSet:
    """The images of a packaged set ("icons") or of a folder of class folders ("./photos"), in memory.

    A folder holds `CLASS/*.png` (or jpg, jpeg, webp, bmp), or `train/` and `val/` (or `test/`) above the classes.
    With `image_size` the short side is resized to it (bilinear) and the centre is cut out, or as a `CentreCrop` says.

    Raises:
        DataError: images that are missing, unreadable, or of different sizes while `image_size` is None.
        UnknownNameError: a packaged name that does not exist.
        UserError: an image size below 1.
    """
    if image_size is not None and side(image_size) < 1:
        raise UserError(f"image_size must be 1 or more, not {side(image_size)}")
    if is_streamed(dataset):
        raise DataError(f"{dataset}: tar shards and tables are read image by image, not loaded whole")
    return folders.load(dataset, image_size) if is_folder(dataset) else packaged.load(dataset, image_size)


def load_labels(dataset: str) -> LabelSet:
    """The same set without its pixels; raises what `load_images` raises, but for images that cannot be decoded.

    Of tar shards and tables too; DataError where the labels of shards were not listed by `upshot data index`.
    """
    if is_streamed(dataset):
        return label_set(open_stored(dataset))
    return folders.labels(dataset) if is_folder(dataset) else packaged.labels(dataset)


def open_stored(dataset: str) -> StoredSet:
    """What lies on disk, tar shards, tables or class folders, to be read image by image.

    Raises:
        DataError: the path is of none of these, or what lies there is malformed.
    """
    if shards.is_shards(dataset):
        return shards.open_set(dataset)
    return hugging_face.open_set(dataset) if hugging_face.is_hugging_face(dataset) else folders.open_set(dataset)


def describe(dataset: str) -> SetInfo:
    """The numbers and the origin of a set, cached; decodes no image (of a folder: one file header per class).

    Raises:
        DataError, UnknownNameError: as `load_images`, but for images that cannot be decoded.
    """
    if not is_folder(dataset):
        return packaged.info(dataset)
    if shards.is_shards(dataset):
        return shards.info(dataset)
    return hugging_face.info(dataset) if hugging_face.is_hugging_face(dataset) else folders.info(dataset)


@cache
def kept(dataset: str, *, fraction: float, classes: float, images: int | None, seed: int) -> tuple[int, int]:
    """(training images, classes) that `subset` keeps of the set's train part; cached, since a plan asks once per cell.

    Reads the labels, where not all is kept; of tar shards only for a share of the classes or a number of images.

    Raises:
        UserError: that cannot be drawn.
        DataError: as `load_labels`.
    """
    if images is None and fraction == classes == 1:
        info = describe(dataset)
        return info.num_train, info.num_classes
    if images is not None or not (is_folder(dataset) and shards.is_shards(dataset)):
        return subset_size(_train_sizes(dataset), fraction=fraction, classes=classes, images=images, seed=seed)
    if classes == 1:
        return int(kept_of_shards(_shards(dataset), fraction, seed).sum()), len(_shards(dataset).classes)
    kept_C = kept_classes(_train_sizes(dataset), classes=classes, seed=seed)
    num_images = int(_drawn_sizes(dataset, fraction, seed)[kept_C].sum())
    if not num_images:
        raise UserError(f"{dataset}: fraction {fraction} leaves no image of the classes that are kept")
    return num_images, len(kept_C)


@lru_cache
def _shards(dataset: str) -> shards.ShardSet:
    return shards.open_set(dataset)


@lru_cache
def _drawn_sizes(dataset: str, fraction: float, seed: int) -> IntArray:
    """How many images of each class there are in a share of every shard."""
    labels_N = label_set(_shards(dataset)).labels_N
    return np.bincount(
        labels_N[drawn_by_shard(_shards(dataset), fraction, seed).indices()], minlength=labels_N.max() + 1
    )


@lru_cache
def _train_sizes(dataset: str) -> IntArray:
    """How many images of each class there are to train on."""
    s = load_labels(dataset)
    return np.bincount(s.labels_N[split(s)[0]])


def is_folder(dataset: str) -> bool:
    """Whether the name is a path: it holds a path separator or begins with a dot or a tilde."""
    return "/" in dataset or os.sep in dataset or dataset.startswith((".", "~"))


def is_streamed(dataset: str) -> bool:
    """Whether the name is that of tar shards or tables, whose images are read one by one."""
    return is_folder(dataset) and (shards.is_shards(dataset) or hugging_face.is_hugging_face(dataset))
