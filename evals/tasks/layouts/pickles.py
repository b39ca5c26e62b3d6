"""CIFAR's pickles, through an unpickler that makes arrays and plain values only: a pickle can run any code."""

import pickle
from pathlib import Path
from typing import Any, Final

import numpy as np

from evals.tasks.sources import Arrays, label_set_of
from evals.tasks.task import Definition
from models.errors import DataError

_reconstruct: Final = np.empty(0).__reduce__()[0]
ARRAYS: Final[dict[tuple[str, str], Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # as numpy 1 calls it
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
SIDE: Final = 32


class ArrayUnpickler(pickle.Unpickler):
    """Admits numpy arrays and refuses every other class and function."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        """What makes an array; raises DataError for all else."""
        if (module_name, global_name) not in ARRAYS:
            raise DataError(f"the pickle asks for {module_name}.{global_name}: only numpy arrays are read")
        return ARRAYS[module_name, global_name]


def read_arrays(path: Path) -> dict[str, Any]:
    """The dictionary of a file of CIFAR; raises DataError where it holds anything but arrays and plain values."""
    with path.open("rb") as file:
        try:
            found = ArrayUnpickler(file, encoding="latin1").load()
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        except (pickle.UnpicklingError, AttributeError, MemoryError) as error:
            raise DataError(f"{path}: is no pickle of CIFAR, or is cut short ({error})") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: holds a {type(found).__name__}, no dictionary")
    return {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}


def read_cifar10(folder: Path, _: Definition) -> Arrays:
    """Five batches to train on, `test_batch` for the test."""
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    return _cifar(folder, names, "labels", read_arrays(folder / "batches.meta")["label_names"])


def read_cifar100(folder: Path, _: Definition) -> Arrays:
    """`train` and `test`, with the 100 fine classes."""
    return _cifar(folder, ["train", "test"], "fine_labels", read_arrays(folder / "meta")["fine_label_names"])


def _cifar(folder: Path, names: list[str], labels: str, classes: list[str]) -> Arrays:
    """The last file is for the test."""
    found = [read_arrays(folder / name) for name in names]
    for name, f in zip(names, found, strict=True):
        if len(f["data"]) != len(f[labels]):
            raise DataError(f"{folder / name}: has {len(f['data'])} images and {len(f[labels])} labels")
    # Rows are planes of red, green and blue.
    images_NHWC = np.concatenate([f["data"] for f in found]).reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    labels_N = np.concatenate([np.asarray(f[labels], dtype=np.int64) for f in found])
    held_out_N = np.arange(len(labels_N)) >= len(labels_N) - len(found[-1][labels])
    known = label_set_of(str(folder), tuple(map(str, classes)), labels_N, held_out_N)
    return Arrays(known, SIDE, images_NHWC.astype(np.uint8, copy=False).__getitem__)
