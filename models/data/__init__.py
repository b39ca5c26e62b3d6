"""Images to train and to probe on: packaged sets and folders of class folders, their splits and nested subsets.

`sets` has the types, `packaged` and `folders` the two sources, `splits` what is drawn from them. Nothing here imports
torch: plans are made on login nodes.
"""

import os

from models.data import folders, packaged
from models.data.packaged import packaged_names, shipped
from models.data.sets import ImageSet, LabelSet, SetInfo
from models.data.splits import SplitRule, capped, split, split_rule, subset
from models.data.stored import StoredSet
from models.errors import UserError

__all__ = [
    "ImageSet",
    "LabelSet",
    "SetInfo",
    "SplitRule",
    "capped",
    "describe",
    "is_folder",
    "load_images",
    "load_labels",
    "open_stored",
    "packaged_names",
    "shipped",
    "split",
    "split_rule",
    "subset",
]


def load_images(dataset: str, image_size: int | None = None) -> ImageSet:
    """The images of a packaged set ("icons") or of a folder of class folders ("./photos"), in memory.

    A folder holds `CLASS/*.png` (or jpg, jpeg, webp, bmp), or `train/` and `val/` (or `test/`) above the classes.
    With `image_size` the short side is resized to it (bilinear) and the centre is cut out.

    Raises:
        DataError: images that are missing, unreadable, or of different sizes while `image_size` is None.
        UnknownNameError: a packaged name that does not exist.
        UserError: an image size below 1.
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"image_size must be 1 or more, not {image_size}")
    return folders.load(dataset, image_size) if is_folder(dataset) else packaged.load(dataset, image_size)


def load_labels(dataset: str) -> LabelSet:
    """The same set without its pixels; raises what `load_images` raises, but for images that cannot be decoded."""
    return folders.labels(dataset) if is_folder(dataset) else packaged.labels(dataset)


def open_stored(dataset: str) -> StoredSet:
    """The images of a folder, encoded as they lie there, each read when it is asked for.

    Raises:
        DataError: no folder of images.
    """
    return folders.open_stored(dataset)


def describe(dataset: str) -> SetInfo:
    """The numbers and the origin of a set, cached; decodes no image (of a folder: one file header per class).

    Raises:
        DataError, UnknownNameError: as `load_images`, but for images that cannot be decoded.
    """
    return folders.info(dataset) if is_folder(dataset) else packaged.info(dataset)


def is_folder(dataset: str) -> bool:
    """Whether the name is that of a folder: it holds a path separator or begins with a dot or a tilde."""
    return "/" in dataset or os.sep in dataset or dataset.startswith((".", "~"))
