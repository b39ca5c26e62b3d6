"""Images of a task as features, batch by batch: from the model or, where they are kept, from files.

Kept features lie in FOLDER/train and FOLDER/test: `index.npy` [N], `hashes.npy` [N] and `layer_<number>.npy` [N, D] of
the same N images. They are float32, as they come from the model, so whatever is fitted to them has the same numbers.

Shape suffixes: N images, B images of a batch, D features.
"""

import shutil
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
        if rows_N is not None:
            return _read(there, rows_N, layers, self.batch_size)
        return _keeping(there, self._encoded(images, index_N, layers), len(index_N))

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


def _keeping(folder: Path, batches: Iterator[Batch], num_images: int) -> Iterator[Batch]:
    """The batches, which lie in the folder once the last was taken; what was there before goes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    draft.mkdir()
    try:
        files: dict[str, np.memmap[Any, Any]] = {}
        start = 0
        for batch in batches:
            end = start + len(batch.index_B)
            columns: dict[str, npt.NDArray[Any]] = {"index": batch.index_B, "hashes": batch.hashes_B}
            columns |= {_layer_name(layer): features_BD for layer, features_BD in batch.features.items()}
            for name, values in columns.items():
                if name not in files:
                    shape = (num_images, *values.shape[1:])
                    files[name] = np.lib.format.open_memmap(draft / f"{name}.npy", "w+", values.dtype, shape)
                files[name][start:end] = values
            start = end
            yield batch
        for file in files.values():
            file.flush()
        shutil.rmtree(folder, ignore_errors=True)
        draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _kept_rows(folder: Path, index_N: Integers, layers: Sequence[int]) -> Integers | None:
    """Where the images stand in the files; None where not all of them, or not all layers, are kept."""
    if not all((folder / f"{_layer_name(layer)}.npy").exists() for layer in layers):
        return None
    kept_N = _array(folder, "index")
    if not np.isin(index_N, kept_N).all():
        return None
    order_N = np.argsort(kept_N)
    return np.asarray(order_N[np.searchsorted(kept_N, index_N, sorter=order_N)])


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
