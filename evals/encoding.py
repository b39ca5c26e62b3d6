"""Images of a task as features, batch by batch: from the model or, where they are kept, from files.

Kept features lie in FOLDER/train and FOLDER/test: `index.npy` [N], `labels.npy` [N], `hashes.npy` [N] and
`layer_<number>.npy` [N, D] of the same N images. They are float32, as they come from the model, so whatever is fitted
to them has the same numbers. They count while the task's images are those that were encoded: all labels, and the pixels
of `LOOKED_AT` images, are compared; features of other images are made anew.

Shape suffixes: N images, B images of a batch, D features.
"""

import contextlib
import errno
import os
import shutil
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import numpy.typing as npt
from torch import nn

from evals.datasets import Hashes, Images, Pixels, pixel_hashes
from evals.feature_rows import FloatRows
from evals.features import encode
from evals.fewshot import Integers
from evals.protocol import Layers
from models.errors import DataError
from models.inputs import ToInput, to_input

Part = Literal["train", "test"]

LEFT_S: Final = 7 * 86400.0
"""So long after a draft of kept features was begun nobody writes to it any more: no job runs longer."""

LOOKED_AT: Final = 64
"""Images, spread evenly over those in use, the last of them too: where one came or went the later ones have moved."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some images of a part: which, the hashes of their pixels, and features [B, D] by layer."""

    index_B: Integers
    hashes_B: Hashes
    features: Mapping[int, FloatRows]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoder:
    """What turns images into features: a model, which is asked for when it is needed, or `folder`, where it has them.

    Where there is a `folder`, what the model was asked for is kept there.
    """

    model: Callable[[], nn.Module]
    num_layers: int
    batch_size: int
    to_input: ToInput = to_input
    folder: Path | None = None

    def batches(self, part: Part, images: Images, index_N: Integers, layers: Sequence[int]) -> Iterator[Batch]:
        """The images `index_N`, ascending, in turn; each passes through the model once at most.

        Raises:
            DataError: an image that cannot be read, or kept features that are damaged.
        """
        if self.folder is None:
            return self._encoded(images, index_N, layers)
        there = self.folder / part
        rows_N = _kept_rows(there, index_N, layers)
        if rows_N is not None and _are_of(there, rows_N, images, index_N, self.batch_size):
            return _read(there, rows_N, layers, self.batch_size)
        return _keeping(there, self._encoded(images, index_N, layers), images.labels_N[index_N])

    def _encoded(self, images: Images, index_N: Integers, layers: Sequence[int]) -> Iterator[Batch]:
        waiting: deque[Pixels] = deque()  # itertools.tee would hold 57 batches

        def noted() -> Iterator[Pixels]:
            for images_BHWC in images.batches(index_N, self.batch_size):
                waiting.append(images_BHWC)
                yield images_BHWC

        which: Layers = "last" if list(layers) == [self.num_layers - 1] else "all"
        start = 0
        for features in encode(self.model(), noted(), batch_size=self.batch_size, layers=which, to_input=self.to_input):
            hashes_B = pixel_hashes(waiting.popleft())
            assert which == "last" or len(features) == self.num_layers, f"{len(features)} layers, not {self.num_layers}"
            index_B = index_N[start : start + len(hashes_B)]
            start += len(hashes_B)
            yield Batch(index_B, hashes_B, dict(zip(layers, features, strict=True)))


def _keeping(folder: Path, batches: Iterator[Batch], labels_N: Integers) -> Iterator[Batch]:
    """The batches, which lie in the folder once the last was taken; what was there before goes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    draft.mkdir()
    _remove_leftovers(folder, draft.stat().st_mtime)
    try:
        with contextlib.ExitStack() as opened:
            files: dict[str, BinaryIO] = {}
            start = 0
            for batch in batches:
                end = start + len(batch.index_B)
                for name, values in _columns(batch, labels_N[start:end]).items():
                    if name not in files:
                        files[name] = opened.enter_context((draft / f"{name}.npy").open("wb"))
                        _write_header(files[name], values, len(labels_N))
                    files[name].write(np.ascontiguousarray(values).data)
                start = end
                yield batch
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        _replace(folder, draft)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _columns(batch: Batch, labels_B: Integers) -> dict[str, npt.NDArray[Any]]:
    found: dict[str, npt.NDArray[Any]] = {"index": batch.index_B, "labels": labels_B, "hashes": batch.hashes_B}
    return found | {_layer_name(layer): features_BD for layer, features_BD in batch.features.items()}


def _write_header(file: BinaryIO, values: npt.NDArray[Any], num_images: int) -> None:
    # Not a memory map: on a full disk that kills the process, where a write is an error that tells.
    shape = (num_images, *values.shape[1:])
    descr = np.lib.format.dtype_to_descr(values.dtype)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})


def _replace(folder: Path, draft: Path) -> None:
    """Puts the draft there: whoever is killed meanwhile leaves a whole folder, or none."""
    old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(old)
    try:
        draft.replace(folder)
    except OSError as error:  # another job was faster: its features are as good
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_leftovers(folder: Path, now: float) -> None:
    """Removes what jobs left that were killed; `now` is by the clock of the file system."""
    for left in folder.parent.glob(f".{folder.name}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if left.stat().st_mtime < now - LEFT_S:
                shutil.rmtree(left, ignore_errors=True)


def _kept_rows(folder: Path, index_N: Integers, layers: Sequence[int]) -> Integers | None:
    """Where the images stand in the files; None where not all of them, or not all layers, are kept."""
    names = ["index", "labels", "hashes", *(_layer_name(layer) for layer in layers)]
    if not all((folder / f"{name}.npy").exists() for name in names):
        return None
    kept_N = _array(folder, "index")
    if not np.isin(index_N, kept_N).all():
        return None
    order_N = np.argsort(kept_N)
    return np.asarray(order_N[np.searchsorted(kept_N, index_N, sorter=order_N)])


def _are_of(folder: Path, rows_N: Integers, images: Images, index_N: Integers, batch_size: int) -> bool:
    """Whether kept features are of these images, as far as labels and some pixels tell."""
    if not np.array_equal(_array(folder, "labels")[rows_N], images.labels_N[index_N]):
        return False
    some = np.unique(np.linspace(0, max(0, len(index_N) - 1), LOOKED_AT).astype(np.int64))[: len(index_N)]
    hashes = [pixel_hashes(images_BHWC) for images_BHWC in images.batches(index_N[some], batch_size)]
    return not hashes or np.array_equal(_array(folder, "hashes")[rows_N[some]], np.concatenate(hashes))


def _read(folder: Path, rows_N: Integers, layers: Sequence[int], batch_size: int) -> Iterator[Batch]:
    index_N, hashes_N = _array(folder, "index"), _array(folder, "hashes")
    features = {layer: _array(folder, _layer_name(layer)) for layer in layers}
    for start in range(0, len(rows_N), batch_size):
        rows_B = rows_N[start : start + batch_size]
        yield Batch(index_N[rows_B], hashes_N[rows_B], {layer: rows_ND[rows_B] for layer, rows_ND in features.items()})


def _array(folder: Path, name: str) -> npt.NDArray[Any]:
    path = folder / f"{name}.npy"
    try:
        found: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        mend = f"delete {folder}, and they are made anew"
        raise DataError(f"{path}: kept features are damaged ({mend}): {error}") from error
    return found


def _layer_name(layer: int) -> str:
    return f"layer_{layer:03}"
