"""Which training images each probe of a protocol is fitted to.

Shape suffixes: N training images of a task, F images that a probe is fitted to, C classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from evals.fewshot import FewShotError, Integers, draw_shots, first_shots
from evals.protocol import Protocol
from evals.tasks import vtab_split
from evals.tasks.draws import fixed_order
from models.errors import DataError

CHOOSING_SHARE: Final = 10
"""One in so many of all training images, of each class, chooses the penalty of a probe on all of them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """One probe of a protocol on every layer that it looks at.

    `index_F` are the training images that it is fitted to in the end. Where some of them are set apart to choose by
    before, these are `chooses_F`. A task that cannot give them gives a `reason` in their place.
    """

    protocol: Protocol
    shots: int | None
    draw: int
    index_F: Integers
    chooses_F: npt.NDArray[np.bool_] | None = None
    reason: str | None = None


def fits_of(task: str, labels_N: Integers, classes: Sequence[str], protocol: Protocol) -> Iterator[Fit]:
    """A protocol's probes, in the order of `Protocol.combinations`; the same ones in every checkpoint."""
    for shots, draw in protocol.combinations():
        try:
            index_F, chooses_F = _training_images(task, labels_N, classes, protocol, shots, draw)
        except (FewShotError, DataError) as error:
            none = np.zeros(0, dtype=np.int64)
            yield Fit(protocol=protocol, shots=shots, draw=draw, index_F=none, reason=str(error))
        else:
            yield Fit(protocol=protocol, shots=shots, draw=draw, index_F=index_F, chooses_F=chooses_F)


def _training_images(
    task: str, labels_N: Integers, classes: Sequence[str], protocol: Protocol, shots: int | None, draw: int
) -> tuple[Integers, npt.NDArray[np.bool_] | None]:
    if shots is not None:
        if protocol.method.fixed_draw:
            return first_shots(task, labels_N, classes=classes, shots=shots), None
        return draw_shots(task, labels_N, classes=classes, shots=shots, draw=draw), None
    if protocol.method.training == "vtab1k":
        fit, choose = vtab_split(task, labels_N)
        return np.concatenate([fit, choose]), np.repeat([False, True], [len(fit), len(choose)])
    _refuse_missing_classes(task, labels_N, classes)
    return np.arange(len(labels_N)), _one_in_ten(task, labels_N)


def _refuse_missing_classes(task: str, labels_N: Integers, classes: Sequence[str]) -> None:
    missing = np.flatnonzero(np.bincount(labels_N, minlength=len(classes)) == 0)
    if len(missing):
        others = f" (nor have {len(missing) - 1} more classes)" if len(missing) > 1 else ""
        raise DataError(f"task {task!r}: class {classes[missing[0]]!r} has no training image{others}")


def _one_in_ten(task: str, labels_N: Integers) -> npt.NDArray[np.bool_]:
    """Every tenth image of each class in a random order, from the first on; none of a class of one image."""
    shuffled_N = fixed_order(f"one in ten\0{task}", len(labels_N))
    order_N = shuffled_N[np.argsort(labels_N[shuffled_N], kind="stable")]
    size_C = np.bincount(labels_N)
    sorted_N = labels_N[order_N]
    rank_N = np.arange(len(labels_N)) - (np.cumsum(size_C) - size_C)[sorted_N]
    chooses_N = np.zeros(len(labels_N), dtype=np.bool_)
    chooses_N[order_N] = (rank_N % CHOOSING_SHARE == 0) & (size_C[sorted_N] > 1)
    return chooses_N
