"""Inception crops and RandAugment: another view of an image for every time that it is seen.

Draws are uniform on [0, 1) and come from outside, so a view is a function of them. Shapes: B images of a batch, K
draws, L operations one after the other.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from models.data.pixels import Box
from models.data.sets import PixelArray

Draws: TypeAlias = NDArray[np.float64]
Operation: TypeAlias = Callable[[Image.Image, float, Draws], Image.Image]

CROP_TRIES: Final = 10
DRAWS_OF_A_CROP: Final = 2 * CROP_TRIES + 2
DRAWS_OF_AN_OPERATION: Final = 4  # which one, in which direction, where (x, y)
GRAY: Final = 128  # what is seen where nothing is


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Views:
    """How the images of a batch are seen: a part of each where it is cropped, then changed by some operations.

    `least_area` is the smallest share of an image that a crop may be; `magnitude` is that of the operations.
    """

    crop_BK: Draws | None = None
    least_area: float = 1.0
    operations_BLK: Draws | None = None
    magnitude: float = 0.0

    def box(self, place: int) -> Callable[[int, int], Box] | None:
        """What gives the part of the image at a place of the batch, for its width and height; None for all of it."""
        if self.crop_BK is None:
            return None
        draws_K = self.crop_BK[place]
        return lambda width, height: crop_box(width, height, self.least_area, draws_K)

    def changed(self, image_HWC: PixelArray, place: int) -> PixelArray:
        """The image at a place of the batch after its operations."""
        if self.operations_BLK is None:
            return image_HWC
        return rand_augmented(image_HWC, self.operations_BLK[place], self.magnitude)


def crop_box(width: int, height: int, least_area: float, draws_K: Draws) -> Box:
    """An inception crop (Szegedy et al., arXiv 1409.4842, section 6): a random part of a random area and shape.

    Its area is from `least_area` of the image's to all of it, its width over its height from 3/4 to 4/3, as often below
    1 as above. Where no such part fits, it is the whole image.
    """
    for area_draw, shape_draw in draws_K[:-2].reshape(CROP_TRIES, 2):
        area = width * height * (least_area + (1 - least_area) * area_draw)
        shape = math.exp(math.log(4 / 3) * (2 * shape_draw - 1))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draws_K[-2] * (width - w + 1)), int(draws_K[-1] * (height - h + 1))
            return left, top, left + w, top + h
    return 0, 0, width, height


def rand_augmented(image_HWC: PixelArray, draws_LK: Draws, magnitude: float) -> PixelArray:
    """The image after one operation for each row of draws: RandAugment (arXiv 1909.13719).

    At a magnitude of 10 they are in full strength; AugReg (arXiv 2106.10270) goes up to 20. Shifts and holes are those
    of images of 224 pixels, and grow with the image.
    """
    gray = image_HWC.shape[2] == 1
    image = Image.fromarray(image_HWC[..., 0] if gray else image_HWC)
    for draws_K in draws_LK:
        operation = OPERATIONS[int(draws_K[0] * len(OPERATIONS))]
        image = operation(image, magnitude / 10, draws_K)
    pixels = np.asarray(image)
    return pixels[..., None] if gray else pixels


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    """From nearly nothing left of it to nearly three times as much."""
    return lambda image, strength, _: kind(image).enhance(0.1 + 1.8 * strength)


def _signed(draws_K: Draws) -> float:
    return -1.0 if draws_K[1] < 0.5 else 1.0


def _rotated(image: Image.Image, strength: float, draws_K: Draws) -> Image.Image:
    return image.rotate(30 * strength * _signed(draws_K), Image.Resampling.NEAREST, fillcolor=_fill(image))


def _moved(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=_fill(image))


def _sheared_x(image: Image.Image, strength: float, draws_K: Draws) -> Image.Image:
    return _moved(image, (1, 0.3 * strength * _signed(draws_K), 0, 0, 1, 0))


def _sheared_y(image: Image.Image, strength: float, draws_K: Draws) -> Image.Image:
    return _moved(image, (1, 0, 0, 0.3 * strength * _signed(draws_K), 1, 0))


def _shifted_x(image: Image.Image, strength: float, draws_K: Draws) -> Image.Image:
    return _moved(image, (1, 0, 100 / 224 * image.width * strength * _signed(draws_K), 0, 1, 0))


def _shifted_y(image: Image.Image, strength: float, draws_K: Draws) -> Image.Image:
    return _moved(image, (1, 0, 0, 0, 1, 100 / 224 * image.height * strength * _signed(draws_K)))


def _cut_out(image: Image.Image, strength: float, draws_K: Draws) -> Image.Image:
    """A gray square around a random point, which may lie at the edge."""
    x, y = (int(draw * side) for draw, side in zip(draws_K[2:4], image.size, strict=True))
    reach = int(40 / 224 * image.width * strength)
    image = image.copy()
    if reach:
        box = (x - reach, y - reach, x + reach - 1, y + reach - 1)
        ImageDraw.Draw(image).rectangle(box, fill=_fill(image))
    return image


def _posterized(image: Image.Image, strength: float, _: Draws) -> Image.Image:
    """With as few bits a channel, one at least."""
    return ImageOps.posterize(image, min(8, max(1, int(4 * strength))))


def _solarized(image: Image.Image, strength: float, _: Draws) -> Image.Image:
    """Inverted above a threshold; wholly at a magnitude of 0."""
    return ImageOps.solarize(image, int(256 * strength))


def _dark_brightened(image: Image.Image, strength: float, _: Draws) -> Image.Image:
    """What is darker than the middle is made brighter."""
    more = int(110 * strength)
    return image.point([min(255, value + more) if value < 128 else value for value in range(256)] * len(_bands(image)))


def _bands(image: Image.Image) -> tuple[str, ...]:
    return image.getbands()


def _fill(image: Image.Image) -> int | tuple[int, ...]:
    bands = len(_bands(image))
    return GRAY if bands == 1 else (GRAY,) * bands


OPERATIONS: Final[tuple[Operation, ...]] = (
    lambda image, _, __: ImageOps.autocontrast(image),
    lambda image, _, __: ImageOps.equalize(image),
    lambda image, _, __: ImageOps.invert(image),
    _rotated,
    _posterized,
    _solarized,
    _enhanced(ImageEnhance.Color),
    _enhanced(ImageEnhance.Contrast),
    _enhanced(ImageEnhance.Brightness),
    _enhanced(ImageEnhance.Sharpness),
    _sheared_x,
    _sheared_y,
    _shifted_x,
    _shifted_y,
    _cut_out,
    _dark_brightened,
)
