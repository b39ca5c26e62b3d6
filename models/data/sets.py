"""What an image set is, with and without its pixels.

Shapes, here and in the modules beside: N examples, T examples of the train part, H height, W width, C channels
(1 or 3) of images and classes of labels, G groups.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

IntArray: TypeAlias = NDArray[np.int64]
BoolArray: TypeAlias = NDArray[np.bool_]
PixelArray: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelSet:
    """What is known of a set without its pixels.

    `groups_N` says what may not stand on both sides of a split (a font, an icon family, a map cell); one value
    throughout where images are independent. `held_out_N` is the test part that the source itself defines.
    """

    name: str
    labels_N: IntArray
    groups_N: IntArray
    classes: tuple[str, ...]
    held_out_N: BoolArray | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageSet(LabelSet):
    """A whole set in memory."""

    images_NHWC: PixelArray


@dataclass(frozen=True, slots=True, kw_only=True)
class SetInfo:
    """Numbers and origin of a set; `num_train`, `num_test` are those of `split`, `image_size` None: sizes differ.

    `held_gb` is what a process that reads it image by image holds beside decoded images.
    """

    name: str
    num_examples: int
    num_train: int
    num_test: int
    num_classes: int
    image_size: int | None
    channels: int
    held_gb: float = 0.0
    num_groups: int = 1
    title: str = ""
    source: str = ""
    version: str = ""
    licence: str = ""
    note: str = ""
