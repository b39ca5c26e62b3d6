"""Image files to arrays, and arrays to another size: the only module that meets Pillow."""

from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from models.data.sets import PixelArray
from models.errors import DataError

Mode = Literal["L", "RGB"]

GRAY_MODES = ("1", "L", "LA")
DEEP_MODES = ("I", "F")  # first letters: Pillow would clip these to 8 bits without a word


def header(path: Path) -> tuple[tuple[int, int], Mode]:
    """((width, height), mode) of an image file, whose pixels stay undecoded; DataError when it is none."""
    try:
        with Image.open(path) as image:
            return image.size, "L" if image.mode in GRAY_MODES else "RGB"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({error})") from error


def read(path: Path, mode: Mode, image_size: int | None) -> PixelArray:
    """uint8 [H, W, C] of an image file, upright as its EXIF says, and square where `image_size` is given.

    Raises:
        DataError: not an image, torn, of more than 8 bits a channel, or coloured where `mode` is gray.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith(DEEP_MODES):
                raise DataError(f"{path}: has more than 8 bits a channel (mode {image.mode}): convert it to 8")
            if mode == "L" and image.mode not in GRAY_MODES:
                raise DataError(
                    f"{path}: is in colour, the first image of every class is gray: convert the one or the others"
                )
            if "transparency" in image.info:
                image = image.convert("RGBA")
            return _array(_square(image.convert(mode), image_size))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a readable image ({error})") from error


def header_of(encoded: bytes, place: str) -> tuple[tuple[int, int], Mode]:
    """The same as `header` of an encoded image; the message of a DataError begins with `place`."""
    try:
        with Image.open(BytesIO(encoded)) as image:
            return image.size, "L" if image.mode in GRAY_MODES else "RGB"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{place}: not a readable image ({error})") from error


def resize(images_NHWC: PixelArray, image_size: int) -> PixelArray:
    """The images at another size; themselves where they have it."""
    if images_NHWC.shape[1:3] == (image_size, image_size):
        return images_NHWC
    gray = images_NHWC.shape[3] == 1
    images = (Image.fromarray(image_HWC[..., 0] if gray else image_HWC) for image_HWC in images_NHWC)
    return np.stack([_array(_square(image, image_size)) for image in images])


def _square(image: Image.Image, image_size: int | None) -> Image.Image:
    """Short side to `image_size`, bilinear (antialiased, as Pillow does), and the centre."""
    if image_size is None or image.size == (image_size, image_size):
        return image
    return ImageOps.fit(image, (image_size, image_size), method=Image.Resampling.BILINEAR)


def _array(image: Image.Image) -> PixelArray:
    pixels = np.array(image, dtype=np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels
