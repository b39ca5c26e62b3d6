"""The image sets that ship with the project: `NAME.npz` and `sets.json`, in a checkout or where pip puts data files."""

import json
import os
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.data.pixels import Square, resize
from models.data.sets import ImageSet, LabelSet, PixelArray, SetInfo
from models.errors import DataError, UnknownNameError

REMEDY = "A checkout has them in studies/images; UPSHOT_IMAGES can name that folder."


def load(name: str, image_size: Square | None) -> ImageSet:
    """The whole set, resized where `image_size` is given and not its own; the last one is kept for the next cell."""
    path = _path(name)
    return _load(name, image_size, path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _load(name: str, image_size: Square | None, path: Path, _: int) -> ImageSet:
    """Cells of one job mostly have their images in common; to unpack them takes longer than all else before a step."""
    arrays = _read(path, None)
    s = _labels(name, arrays, path)
    try:
        images_NHWC = _integrate(arrays["gradients"]) if "gradients" in arrays else arrays["images"]
    except KeyError:
        raise DataError(f"{path}: not a packaged image set: without images") from None
    if len(images_NHWC) != len(s.labels_N):
        raise DataError(f"{path}: {len(images_NHWC)} images but {len(s.labels_N)} labels")
    return ImageSet(
        name=name,
        images_NHWC=images_NHWC if image_size is None else resize(images_NHWC, image_size),
        labels_N=s.labels_N,
        groups_N=s.groups_N,
        classes=s.classes,
        held_out_N=s.held_out_N,
    )


def labels(name: str) -> LabelSet:
    """The set without its pixels, which stay compressed in the file."""
    path = _path(name)
    return _labels(name, _read(path, ("labels", "groups", "classes", "held_out")), path)


def info(name: str) -> SetInfo:
    """What `sets.json` says of the set; cached, since a plan asks once per cell."""
    return _info(name, _places("images"))


def packaged_names() -> tuple[str, ...]:
    """The names of the packaged sets; DataError when there are none."""
    return tuple(_catalogue(_places("images")))


def shipped(kind: Literal["images", "studies"], name: str) -> Path:
    """The path of a file that ships with the project.

    Looked for in $UPSHOT_IMAGES (images only; folders separated as in PATH), in the checkout around the packages, and
    in `share/upshot` below the prefixes that pip installs data into.

    Raises:
        DataError: it is in none of these places; the message lists them.
    """
    return _first_file(name, _places(kind))


def _places(kind: Literal["images", "studies"]) -> tuple[Path, ...]:
    given = os.environ.get("UPSHOT_IMAGES") if kind == "images" else None
    return _places_with(kind, given, sys.prefix)


@lru_cache
def _places_with(kind: Literal["images", "studies"], given: str | None, prefix: str) -> tuple[Path, ...]:
    studies = Path(__file__).parents[2] / "studies"
    user = sysconfig.get_path("data", sysconfig.get_preferred_scheme("user"))
    # The three differ with Debian's own Python (/usr/local) and after pip install --user (~/.local).
    prefixes = dict.fromkeys((prefix, sysconfig.get_path("data"), user))
    places = [studies / "images" if kind == "images" else studies]
    places += [Path(prefix) / "share" / "upshot" / kind for prefix in prefixes]
    return (*(Path(place).expanduser() for place in (given or "").split(os.pathsep) if place), *places)


def _first_file(name: str, places: tuple[Path, ...]) -> Path:
    for place in places:
        if (place / name).is_file():
            return place / name
    listed = ", ".join(str(place) for place in places)
    raise DataError(f"{name} of this project is not there; looked in {listed}. {REMEDY}")


@lru_cache
def _catalogue(places: tuple[Path, ...]) -> dict[str, SetInfo]:
    """Name -> numbers, from each folder's `sets.json`; the first folder that lists a name describes it."""
    _first_file("sets.json", places)
    found: dict[str, SetInfo] = {}
    for path in (place / "sets.json" for place in places if (place / "sets.json").is_file()):
        try:
            here = {name: SetInfo(name=name, **fields) for name, fields in json.loads(path.read_bytes()).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not a list of image sets ({error})") from error
        found = here | found
    return found


@lru_cache
def _info(name: str, places: tuple[Path, ...]) -> SetInfo:
    known = _catalogue(places)
    if name not in known:
        where = f"among the packaged sets (a folder of images is named by its path: './{name}')"
        raise UnknownNameError("image set", name, known, where)
    _first_file(f"{name}.npz", places)  # so that a plan fails, not a job
    return known[name]


def _path(name: str) -> Path:
    info(name)
    return shipped("images", f"{name}.npz")


def _read(path: Path, names: tuple[str, ...] | None) -> dict[str, NDArray[Any]]:
    """The named arrays of the file that are there, or all of them."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as members:
            return {name: members[name] for name in members.files if names is None or name in names}
    except Exception as error:  # zip, LZMA and numpy each have their own, without a common base
        raise DataError(f"{path}: not a packaged image set ({type(error).__name__}: {error})") from error


def _labels(name: str, arrays: dict[str, NDArray[Any]], path: Path) -> LabelSet:
    missing = sorted({"labels", "groups", "classes"} - arrays.keys())
    if missing:
        raise DataError(f"{path}: not a packaged image set: without {', '.join(missing)}")
    return LabelSet(
        name=name,
        labels_N=arrays["labels"].astype(np.int64),
        groups_N=arrays["groups"].astype(np.int64),
        classes=tuple(str(label) for label in arrays["classes"]),
        held_out_N=arrays.get("held_out"),
    )


def _integrate(gradients_CNHW: PixelArray) -> PixelArray:
    """Images from their differences downwards and to the right, modulo 256; red and blue are stored minus green.

    A reversible filter as in PNG and lossless WebP: smooth images take a fifth to a third less room with it.
    """
    planes_CNHW = gradients_CNHW.cumsum(axis=2, dtype=np.uint8).cumsum(axis=3, dtype=np.uint8)
    if len(planes_CNHW) == 3:
        planes_CNHW[[0, 2]] += planes_CNHW[1]
    return np.ascontiguousarray(np.moveaxis(planes_CNHW, 0, -1))
