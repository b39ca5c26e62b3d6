"""Images in array files: smallNORB's binary matrices, dSprites' npz, PatchCamelyon's HDF5.

Shape suffixes: N images, H and W pixels, P bytes of packed bits.
"""

import zipfile
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from evals.tasks.sources import Arrays, Pixels, label_set_of
from evals.tasks.task import Definition
from models.errors import DataError

NORB_PARTS: Final = ("5x46789x9x18x6x2x96x96-training", "5x01235x9x18x6x2x96x96-testing")
NORB_TYPES: Final[dict[int, np.dtype[Any]]] = {0x1E3D4C55: np.dtype(np.uint8), 0x1E3D4C54: np.dtype("<i4")}
NORB_SIDE: Final = 96
NORB_ELEVATION, NORB_AZIMUTH = 1, 2

DSPRITES_FILE: Final = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
DSPRITES_SIDE: Final = 64
DSPRITES_ORIENTATION, DSPRITES_X = 3, 4
DSPRITES_VALUES: Final = {DSPRITES_ORIENTATION: 40, DSPRITES_X: 32}
BLOCK: Final = 4096  # images that are unpacked at a time

PCAM_PARTS: Final = ("train", "valid", "test")
PCAM_SIDE: Final = 96


# --- smallNORB --------------------------------------------------------------------------------------------------------


def read_smallnorb(folder: Path, definition: Definition) -> Arrays:
    """The first of each pair of pictures; elevations 0 to 8, azimuths 0, 2, ... 34 as 18 classes."""
    images = [_norb(folder / f"smallnorb-{part}-dat.mat") for part in NORB_PARTS]
    infos = np.concatenate([_norb(folder / f"smallnorb-{part}-info.mat") for part in NORB_PARTS])
    azimuth = definition.name == "smallnorb_azimuth"
    labels_N = (infos[:, NORB_AZIMUTH] // 2 if azimuth else infos[:, NORB_ELEVATION]).astype(np.int64)
    num_train = len(images[0])
    classes = tuple(f"{20 * n} degrees" if azimuth else f"{30 + 5 * n} degrees" for n in range(definition.num_classes))

    def pixels(index: int) -> Pixels:
        part, row = (0, index) if index < num_train else (1, index - num_train)
        return np.asarray(images[part][row, 0])[..., None]

    known = label_set_of(str(folder), classes, labels_N, np.arange(len(labels_N)) >= num_train)
    return Arrays(known, NORB_SIDE, pixels)


def _norb(path: Path) -> NDArray[Any]:
    """A matrix, mapped to memory: a number for its type, that of its dimensions, three of them at least, the values."""
    start = np.fromfile(path, "<i4", 8)
    if len(start) < 5 or int(start[0]) not in NORB_TYPES:
        raise DataError(f"{path}: is no matrix of smallNORB (is it still compressed?)")
    dtype, num_dimensions = NORB_TYPES[int(start[0])], int(start[1])
    shape = tuple(int(size) for size in start[2 : 2 + num_dimensions])
    return np.memmap(path, dtype=dtype, mode="r", offset=4 * (2 + max(3, num_dimensions)), shape=shape)


# --- dSprites ---------------------------------------------------------------------------------------------------------


def read_dsprites(folder: Path, definition: Definition) -> Arrays:
    """40 orientations, or 32 horizontal positions, in 16 classes of neighbours; the test part is drawn.

    Kept with a bit a pixel: 380 MB for the 737,280 images.
    """
    latent = DSPRITES_ORIENTATION if definition.name == "dsprites_orientation" else DSPRITES_X
    with zipfile.ZipFile(folder / DSPRITES_FILE) as file:
        with file.open("latents_classes.npy") as member:
            values_N = npy.read_array(member, allow_pickle=False)[:, latent]
        with file.open("imgs.npy") as member:
            packed_NP = _packed(member)
    labels_N = (values_N // (DSPRITES_VALUES[latent] / definition.num_classes)).astype(np.int64)
    classes = tuple(str(number) for number in range(definition.num_classes))

    def pixels(index: int) -> Pixels:
        return np.unpackbits(packed_NP[index]).reshape(DSPRITES_SIDE, DSPRITES_SIDE, 1) * np.uint8(255)

    return Arrays(label_set_of(str(folder), classes, labels_N, None), DSPRITES_SIDE, pixels)


def _packed(member: IO[bytes]) -> NDArray[np.uint8]:
    """[N, P] of images [N, 64, 64] of zeros and ones, which are never in memory whole (3 GB)."""
    npy.read_magic(member)
    shape, _, dtype = npy.read_array_header_1_0(member)
    if tuple(shape[1:]) != (DSPRITES_SIDE, DSPRITES_SIDE) or dtype != np.uint8:
        raise DataError(f"{DSPRITES_FILE}: images of {dtype} {list(shape)}, uint8 [N, 64, 64] expected")
    row = DSPRITES_SIDE**2
    packed_NP = np.empty((shape[0], row // 8), dtype=np.uint8)
    for start in range(0, shape[0], BLOCK):
        num = min(BLOCK, shape[0] - start)
        block = np.frombuffer(member.read(num * row), dtype=np.uint8).reshape(num, row)
        packed_NP[start : start + num] = np.packbits(block, axis=1)
    return packed_NP


# --- PatchCamelyon ----------------------------------------------------------------------------------------------------


def read_pcam(folder: Path, _: Definition) -> Arrays:
    """`x` [N, H, W, C] and `y` [N, 1, 1, 1] of each part; images stay in the files. Needs h5py."""
    try:
        h5py = import_module("h5py")
    except ImportError as error:
        raise DataError(
            f"{folder}: its .h5 files are read by h5py, which is not installed: pip install h5py; tables or class"
            " folders need none"
        ) from error

    def opened(part: str, what: str) -> Any:
        path = folder / f"camelyonpatch_level_2_split_{part}_{what}.h5"
        try:
            return h5py.File(path, "r")[what]
        except (OSError, KeyError) as error:
            raise DataError(f"{path}: is missing, no HDF5 file of PatchCamelyon, or cut short ({error})") from error

    images = [opened(part, "x") for part in PCAM_PARTS]
    labels_N = np.concatenate([np.asarray(opened(part, "y")).reshape(-1) for part in PCAM_PARTS]).astype(np.int64)
    ends = np.cumsum([len(part) for part in images])

    def pixels(index: int) -> Pixels:
        part = int(np.searchsorted(ends, index, side="right"))
        return np.asarray(images[part][index - int(ends[part]) + len(images[part])], dtype=np.uint8)

    known = label_set_of(str(folder), ("no tumour", "tumour"), labels_N, np.arange(len(labels_N)) >= ends[1])
    return Arrays(known, PCAM_SIDE, pixels)
