"""Folders of class folders: `CLASS/*.png`, or `train/` and `val/` (or `test/`) above the classes."""

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from models.data import pixels
from models.data.sets import BoolArray, ImageSet, IntArray, LabelSet, PixelArray, SetInfo
from models.data.splits import split
from models.errors import DataError

FILE_BYTES = 300  # that a path takes
TRIED = 5  # first images of a class, some of which may be corrupt
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(slots=True, kw_only=True, eq=False)
class FolderSet:
    """The files of a folder, as a `models.data.stored.StoredSet`."""

    name: str
    classes: tuple[str, ...]
    shard_sizes: tuple[int]
    most_open: int = 1
    drawn_by_shard: bool = False
    labels_N: IntArray | None
    held_out_N: BoolArray | None
    held_out_shards: frozenset[int] = frozenset()
    paths: list[Path]
    label_N: IntArray

    @property
    def held_gb(self) -> float:
        """What all paths take."""
        return FILE_BYTES * len(self.paths) / 1e9

    def read(self, index: int) -> tuple[bytes, int]:
        """(the file's bytes, its label); raises DataError where it is gone or may not be read."""
        try:
            return self.paths[index].read_bytes(), int(self.label_N[index])
        except (
            FileNotFoundError,
            IsADirectoryError,
            PermissionError,
        ) as error:  # others are the file system's, which may recover
            raise DataError(f"{self.place(index)}: cannot be read ({error.strerror})") from error

    def place(self, index: int) -> str:
        """The file's path."""
        return str(self.paths[index])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Files:
    classes: tuple[str, ...]
    paths: list[Path]
    labels_N: IntArray
    held_out_N: BoolArray | None = None


def load(folder: str, square: pixels.Square | None) -> ImageSet:
    """All images of the folder; gray if the first image of every class is gray."""
    files = _scan(folder)
    read = partial(pixels.read, mode=_headers(files)[1], square=square)
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
        images = list(pool.map(read, files.paths))
    s = _label_set(folder, files)
    return ImageSet(
        name=folder,
        images_NHWC=_stack(files.paths, images),
        labels_N=s.labels_N,
        groups_N=s.groups_N,
        classes=s.classes,
        held_out_N=s.held_out_N,
    )


def open_set(folder: str) -> FolderSet:
    """The folder's images, each read when it is asked for."""
    files = _scan(folder)
    return FolderSet(
        name=folder,
        classes=files.classes,
        shard_sizes=(len(files.paths),),
        labels_N=files.labels_N,
        held_out_N=files.held_out_N,
        paths=files.paths,
        label_N=files.labels_N,
    )


def labels(folder: str) -> LabelSet:
    """The folder's labels, from the names of its files alone."""
    return _label_set(folder, _scan(folder))


def info(folder: str) -> SetInfo:
    """The folder's numbers; cached until an entry of the folder itself is added, removed or renamed."""
    root = Path(folder).expanduser()
    return _info(folder, root.stat().st_mtime_ns if root.is_dir() else 0)


@lru_cache
def _info(folder: str, changed_ns: int) -> SetInfo:  # noqa: ARG001 - a part of the cache's key
    files = _scan(folder)
    sizes, mode = _headers(files)
    train_idx, test_idx = split(_label_set(folder, files))
    width, height = sizes[0]
    return SetInfo(
        name=folder,
        num_examples=len(files.paths),
        num_train=len(train_idx),
        num_test=len(test_idx),
        num_classes=len(files.classes),
        image_size=width if width == height and len(set(sizes)) == 1 else None,
        channels=1 if mode == "L" else 3,
        held_gb=FILE_BYTES * len(files.paths) / 1e9,
        title=Path(folder).name,
        source=folder,
    )


def _label_set(folder: str, files: _Files) -> LabelSet:
    return LabelSet(
        name=folder,
        labels_N=files.labels_N,
        groups_N=np.zeros(len(files.paths), dtype=np.int64),
        classes=files.classes,
        held_out_N=files.held_out_N,
    )


def _scan(folder: str) -> _Files:
    """The image files of a folder in order of their names; raises DataError on a folder of another form."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"{root}: {'a file, not a folder of images' if root.exists() else 'no such folder of images'}")
    held_out = next((root / part for part in ("val", "test") if (root / part).is_dir()), None)
    if held_out is None or not (root / "train").is_dir():
        return _scan_classes(root)
    train, test = _scan_classes(root / "train"), _scan_classes(held_out)
    if train.classes != test.classes:
        odd = ", ".join(sorted(set(train.classes) ^ set(test.classes))[:5])
        raise DataError(f"{root / 'train'} and {held_out} must have the same classes; only one of them has {odd}")
    return _Files(
        classes=train.classes,
        paths=train.paths + test.paths,
        labels_N=np.concatenate([train.labels_N, test.labels_N]),
        held_out_N=np.repeat([False, True], [len(train.paths), len(test.paths)]),
    )


def _scan_classes(root: Path) -> _Files:
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    if len(folders) < 2:
        raise DataError(f"{root}: has {len(folders)} class folders, needs 2 or more: {root}/CLASS/*.png")
    files = [_image_files(folder) for folder in folders]
    return _Files(
        classes=tuple(folder.name for folder in folders),
        paths=[path for paths in files for path in paths],
        labels_N=np.repeat(np.arange(len(files)), [len(paths) for paths in files]),
    )


def _image_files(folder: Path) -> list[Path]:
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not paths:
        nested = any(path.is_dir() for path in folder.iterdir())
        hint = " Above class folders there may be train/ and val/ (or test/), nothing else." if nested else ""
        raise DataError(f"{folder}: a class folder without images ({', '.join(SUFFIXES)}).{hint}")
    return paths


def _headers(files: _Files) -> tuple[list[tuple[int, int]], pixels.Mode]:
    """(width, height) of every class's first image, and the mode of the whole set: gray if all of these are gray."""
    firsts = [int(first) for first in np.unique(files.labels_N, return_index=True)[1]]
    of_classes = (files.paths[first:end] for first, end in itertools.pairwise([*firsts, len(files.paths)]))
    sizes, modes = zip(*(_first_header(paths) for paths in of_classes), strict=True)
    return list(sizes), "RGB" if "RGB" in modes else "L"


def _first_header(paths: Sequence[Path]) -> tuple[tuple[int, int], pixels.Mode]:
    """Of the first image of a class; where it is corrupt, of one of the next few."""
    *others, last = paths[:TRIED]
    for path in others:
        with suppress(DataError):
            return pixels.header(path)
    return pixels.header(last)


def _stack(paths: list[Path], images: list[PixelArray]) -> PixelArray:
    height, width, _ = images[0].shape
    for path, image_HWC in zip(paths, images, strict=True):
        if image_HWC.shape != (width, width, image_HWC.shape[2]):
            size = f"{image_HWC.shape[1]} x {image_HWC.shape[0]}"
            raise DataError(
                f"{path} is {size}, {paths[0]} {width} x {height}: give image_size, for squares of one size"
            )
    return np.stack(images)
