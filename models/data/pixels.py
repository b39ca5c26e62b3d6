"""Image files to arrays, and arrays to another size; only this module and `augmentations` meet Pillow."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from models.data.sets import PixelArray
from models.errors import DataError

Mode = Literal["L", "RGB"]
Box: TypeAlias = tuple[int, int, int, int]
"""Left, top, right, bottom; the pixels right and bottom are not in it."""

Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]

GRAY_MODES = ("1", "L", "LA")
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
MAX_16_BITS = 2**16 - 1
ORIENTATION = 0x0112  # EXIF's tag


@dataclass(frozen=True, slots=True, kw_only=True)
class CentreCrop:
    """Another way to make an image square than the models of a study have: that of a published model.

    Attributes:
        image_size: side of the square, in pixels.
        share: side of the square as a share of the short side that the image is resized to; published as `crop_pct`.
        interpolation: how it is resized, always antialiased.
        keeps_shape: whether the short side is resized and the long one follows; else both are, whatever their ratio.
    """

    image_size: int
    share: float
    interpolation: Interpolation
    keeps_shape: bool = True


Square: TypeAlias = int | CentreCrop
"""How images are made square: a number of pixels is our own way, short side to that size and the centre."""


def side(square: Square) -> int:
    """Pixels."""
    return square if isinstance(square, int) else square.image_size


def header(path: Path) -> tuple[tuple[int, int], Mode]:
    """((width, height), mode) of an image file, whose pixels stay undecoded; DataError when it is none."""
    with _explained(f"{path}: "), Image.open(path) as image:
        return image.size, _mode(image)


def read(path: Path, mode: Mode, square: Square | None) -> PixelArray:
    """uint8 [H, W, C] of an image file, upright as its EXIF says, and square where `square` is given.

    Raises:
        DataError: not an image, torn, of more than 16 bits a channel, or coloured where `mode` is gray.
    """
    with _explained(f"{path}: "), Image.open(path) as file:
        if mode == "L" and file.mode not in GRAY_MODES and file.mode not in DEEP_MODES:
            raise DataError(
                f"{path}: is in colour, the first image of every class is gray: convert the one or the others"
            )
        return _array(_squared(_upright(file, mode), square))


def decode(encoded: bytes, square: Square, box: Callable[[int, int], Box] | None = None) -> PixelArray:
    """uint8 [H, W, 3], square, of an encoded image, as `read` sees it; of several pictures the first.

    `box` gives the part to see for the width and the height; without it the centre is seen.

    Raises:
        DataError: not an image, torn, or of more than 16 bits a channel.
    """
    with _explained(), Image.open(BytesIO(encoded)) as file:
        return _array(_seen(_upright(file, "RGB"), square, box))


def view(image_HWC: PixelArray, square: Square, box: Callable[[int, int], Box] | None = None) -> PixelArray:
    """The same of an image that is decoded."""
    return _array(_seen(_image(image_HWC), square, box))


def header_of(encoded: bytes, place: str) -> tuple[tuple[int, int], Mode]:
    """The same as `header` of an encoded image; the message of a DataError begins with `place`."""
    with _explained(f"{place}: "), Image.open(BytesIO(encoded)) as image:
        return image.size, _mode(image)


def resize(images_NHWC: PixelArray, square: Square) -> PixelArray:
    """The images at another size; themselves where they have it and nothing is cut off."""
    whole = isinstance(square, int) or square.share == 1
    if whole and images_NHWC.shape[1:3] == (side(square), side(square)):
        return images_NHWC
    return np.stack([view(image_HWC, square) for image_HWC in images_NHWC])


@contextmanager
def _explained(place: str = "") -> Iterator[None]:
    """Names the image in whatever Pillow's many readers may raise of broken bytes."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"{place}not a readable image ({error or type(error).__name__})") from error


def _upright(file: Image.Image, mode: Mode) -> Image.Image:
    """The image as it should be seen, in 8 bits a channel."""
    file.load()
    image = file if _orientation(file) == 1 else ImageOps.exif_transpose(file)
    if image.mode in DEEP_MODES:
        image = _in_8_bits(image)
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def _mode(image: Image.Image) -> Mode:
    return "L" if image.mode in GRAY_MODES + DEEP_MODES else "RGB"


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # as many kinds as EXIF can be broken; the pixels are what matters
        return 1


def _in_8_bits(image: Image.Image) -> Image.Image:
    """The upper 8 of 16 bits, as Pillow takes them of coloured images; it would clip gray ones without a word."""
    deep_HW = np.asarray(image)
    if deep_HW.dtype.kind == "f" or deep_HW.min() < 0 or deep_HW.max() > MAX_16_BITS:
        raise ValueError(f"more than 16 bits a channel, mode {image.mode}: convert it to 8")
    return Image.fromarray((deep_HW >> 8).astype(np.uint8))


def _squared(image: Image.Image, square: Square | None) -> Image.Image:
    """Short side to the size, bilinear (antialiased, as Pillow does), and the centre; or as a `CentreCrop` says."""
    if square is None:
        return image
    if isinstance(square, CentreCrop):
        return _centre(image, square)
    if image.size == (square, square):
        return image
    return ImageOps.fit(image, (square, square), method=Image.Resampling.BILINEAR)


def _centre(image: Image.Image, crop: CentreCrop) -> Image.Image:
    """Pixel by pixel what timm's `transforms_imagenet_eval` gives."""
    short = math.floor(crop.image_size / crop.share)
    least = min(image.size)
    width, height = (int(short * length / least) if crop.keeps_shape else short for length in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling[crop.interpolation.upper()])
    left, top = (_first_pixel(length - crop.image_size) for length in (width, height))
    return image.crop((left, top, left + crop.image_size, top + crop.image_size))  # beyond the image: black


def _first_pixel(more: int) -> int:
    """Where a centre begins that is so many pixels smaller than the image, or larger."""
    return round(more / 2) if more >= 0 else -(-more // 2)


def _seen(image: Image.Image, square: Square, box: Callable[[int, int], Box] | None) -> Image.Image:
    if box is None:
        return _squared(image, square)
    return image.resize((side(square), side(square)), Image.Resampling.BILINEAR, box=box(*image.size))


def _image(image_HWC: PixelArray) -> Image.Image:
    return Image.fromarray(image_HWC[..., 0] if image_HWC.shape[2] == 1 else image_HWC)


def _array(image: Image.Image) -> PixelArray:
    pixels = np.array(image, dtype=np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels
