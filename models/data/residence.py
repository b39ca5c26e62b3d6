"""Whether decoded images stay in memory: a plan and the job that it makes must see that alike."""

from typing import Final

CHANNELS: Final = 3  # stored images are all seen in colour
RESIDENT_SHARE: Final = 0.5  # of a process's memory that its images may fill


def images_gb(num_images: float, image_size: int, channels: int = CHANNELS) -> float:
    """What decoded images take."""
    return num_images * image_size**2 * channels / 1e9


def fits_in_memory(num_images: float, image_size: int, memory_gb: float) -> bool:
    """Whether a process of so much memory keeps the images that it has decoded."""
    return images_gb(num_images, image_size) <= RESIDENT_SHARE * memory_gb
