"""What decoded images take of a process's memory, and whether they stay there.

A plan and the job that it makes must see that alike.
"""

from typing import Final

CHANNELS: Final = 3  # stored images are all seen in colour
RESIDENT_SHARE: Final = 0.5  # of a process's memory that its images may fill

AHEAD_IMAGES: Final = 512  # that are prepared beyond the step in work, but one step's at least
MAX_AHEAD: Final = 8  # steps
MEASURED_IMAGES: Final = 512  # of the held-out part that are measured at a time


def images_gb(num_images: float, image_size: int, channels: int = CHANNELS) -> float:
    """What decoded images take."""
    return num_images * image_size**2 * channels / 1e9


def fits_in_memory(num_images: float, image_size: int, memory_gb: float) -> bool:
    """Whether a process of so much memory keeps the images that it has decoded."""
    return images_gb(num_images, image_size) <= RESIDENT_SHARE * memory_gb


def num_ahead(num_images: int) -> int:
    """How many steps of so many images are prepared beyond the one in work."""
    return max(1, min(MAX_AHEAD, AHEAD_IMAGES // max(1, num_images)))


def upstream_gb(num_train: int, num_test: int, image_size: int, *, share: int, memory_gb: float) -> float:
    """What a process of so much memory needs for the images of a stored set, of which a step takes it a `share`.

    Where it keeps them, that is as much as makes it find that they fit.
    """
    measured = min(num_test, MEASURED_IMAGES * (2 + num_ahead(MEASURED_IMAGES)))  # while the next steps wait
    at_work_gb = images_gb(measured + share * (2 + num_ahead(share)), image_size)
    num_images = num_train + num_test
    if not fits_in_memory(num_images, image_size, memory_gb):
        return at_work_gb
    return max(at_work_gb + images_gb(num_images, image_size), images_gb(num_images, image_size) / RESIDENT_SHARE)
