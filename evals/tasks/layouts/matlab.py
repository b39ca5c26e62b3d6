"""Annotations and images in MATLAB files, which scipy reads."""

from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from evals.tasks.sources import Arrays, Encoded, label_set_of
from evals.tasks.task import Definition
from models.data.listed import Listed, file_set
from models.errors import DataError

SVHN_SIDE: Final = 32


def load_mat(path: Path) -> Any:
    """The variables of a MATLAB file by name; raises DataError without scipy."""
    try:
        scipy_io = import_module("scipy.io")
    except ImportError as error:
        raise DataError(
            f"{path}: MATLAB files are read by scipy, which is not installed: pip install scipy; tables or class"
            " folders need none"
        ) from error
    try:
        return scipy_io.loadmat(path, squeeze_me=True)
    except (ValueError, TypeError, scipy_io.matlab.MatReadError) as error:
        raise DataError(f"{path}: is no MATLAB file, or is cut short ({error})") from error


def read_cars(folder: Path, _: Definition) -> Encoded:
    """Annotations with `fname` and `class`, counted from 1; of the test beside devkit/ or in it."""
    names = load_mat(folder / "devkit" / "cars_meta.mat")["class_names"]
    labelled = "cars_test_annos_withlabels.mat"
    tested = next((p / labelled for p in (folder, folder / "devkit") if (p / labelled).is_file()), None)
    if tested is None:
        raise DataError(f"{folder}: {labelled} is not there: the classes of the test images are in it")

    def part(annotations: Path, images: str) -> list[Listed]:
        rows = np.atleast_1d(load_mat(annotations)["annotations"])
        return [Listed(folder / images / str(row["fname"]), int(row["class"]) - 1) for row in rows]

    train = part(folder / "devkit" / "cars_train_annos.mat", "cars_train")
    return Encoded(file_set(str(folder), tuple(map(str, names)), train, part(tested, "cars_test")))


def read_flowers(folder: Path, definition: Definition) -> Encoded:
    """`imagelabels.mat` and `setid.mat`, both counted from 1."""
    labels, ids = load_mat(folder / "imagelabels.mat")["labels"], load_mat(folder / "setid.mat")

    def part(*names: str) -> list[Listed]:
        numbers = np.concatenate([np.atleast_1d(ids[name]) for name in names])
        return [Listed(folder / "jpg" / f"image_{n:05}.jpg", int(labels[n - 1]) - 1) for n in numbers]

    classes = tuple(str(number + 1) for number in range(definition.num_classes))
    return Encoded(file_set(str(folder), classes, part("trnid", "valid"), part("tstid")))


def read_svhn(folder: Path, _: Definition) -> Arrays:
    """`X` [H, W, C, N] and `y`, in which 10 stands for the digit 0."""
    train, test = (load_mat(folder / f"{name}_32x32.mat") for name in ("train", "test"))
    parts = [np.moveaxis(found["X"], -1, 0) for found in (train, test)]
    labels_N = np.concatenate([train["y"], test["y"]]).astype(np.int64) % 10
    num_train = len(parts[0])
    known = label_set_of(str(folder), tuple("0123456789"), labels_N, np.arange(len(labels_N)) >= num_train)
    return Arrays(known, SVHN_SIDE, lambda index: parts[0][index] if index < num_train else parts[1][index - num_train])
