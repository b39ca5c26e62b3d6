"""Image files to arrays, and arrays to another size; only this module and `augmentations` meet Pillow."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

GRAY_MODES = ("1", "L", "LA")
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
MAX_16_BITS = 2**16 - 1
ORIENTATION = 0x0112  # EXIF's tag


def header(path: Path) -> tuple[tuple[int, int], Mode]:
    """((width, height), mode) of an image file, whose pixels stay undecoded; DataError when it is none."""
    with _explained(f"{path}: "), Image.open(path) as image:
        return image.size, _mode(image)


def read(path: Path, mode: Mode, image_size: int | None) -> PixelArray:
    """uint8 [H, W, C] of an image file, upright as its EXIF says, and square where `image_size` is given.

    Raises:
        DataError: not an image, torn, of more than 16 bits a channel, or coloured where `mode` is gray.
    """
    with _explained(f"{path}: "), Image.open(path) as file:
        if mode == "L" and file.mode not in GRAY_MODES and file.mode not in DEEP_MODES:
            raise DataError(
                f"{path}: is in colour, the first image of every class is gray: convert the one or the others"
            )
        return _array(_square(_upright(file, mode), image_size))


def decode(encoded: bytes, image_size: int, box: Callable[[int, int], Box] | None = None) -> PixelArray:
    """uint8 [image_size, image_size, 3] of an encoded image, as `read` sees it; of several pictures the first.

    `box` gives the part to see for the width and the height; without it the centre is seen.

    Raises:
        DataError: not an image, torn, or of more than 16 bits a channel.
    """
    with _explained(), Image.open(BytesIO(encoded)) as file:
        return _array(_seen(_upright(file, "RGB"), image_size, box))


def view(image_HWC: PixelArray, image_size: int, box: Callable[[int, int], Box] | None = None) -> PixelArray:
    """The same of an image that is decoded."""
    return _array(_seen(_image(image_HWC), image_size, box))


def header_of(encoded: bytes, place: str) -> tuple[tuple[int, int], Mode]:
    """The same as `header` of an encoded image; the message of a DataError begins with `place`."""
    with _explained(f"{place}: "), Image.open(BytesIO(encoded)) as image:
        return image.size, _mode(image)


def resize(images_NHWC: PixelArray, image_size: int) -> PixelArray:
    """The images at another size; themselves where they have it."""
    if images_NHWC.shape[1:3] == (image_size, image_size):
        return images_NHWC
    return np.stack([view(image_HWC, image_size) for image_HWC in images_NHWC])


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


def _square(image: Image.Image, image_size: int | None) -> Image.Image:
    """Short side to `image_size`, bilinear (antialiased, as Pillow does), and the centre."""
    if image_size is None or image.size == (image_size, image_size):
        return image
    return ImageOps.fit(image, (image_size, image_size), method=Image.Resampling.BILINEAR)


def _seen(image: Image.Image, image_size: int, box: Callable[[int, int], Box] | None) -> Image.Image:
    if box is None:
        return _square(image, image_size)
    return image.resize((image_size, image_size), Image.Resampling.BILINEAR, box=box(*image.size))


def _image(image_HWC: PixelArray) -> Image.Image:
    return Image.fromarray(image_HWC[..., 0] if image_HWC.shape[2] == 1 else image_HWC)


def _array(image: Image.Image) -> PixelArray:
    pixels = np.array(image, dtype=np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels
