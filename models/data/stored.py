"""Sets whose images stay where they lie, encoded, until they are asked for.

What readers of folders, of tar shards and of tables have in common.
"""

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Lock
from typing import Generic, Protocol, TypeVar

import numpy as np

from models.data.pixels import Mode, header_of
from models.data.sets import BoolArray, IntArray, LabelSet, SetInfo
from models.data.splits import split
from models.errors import DataError

K = TypeVar("K")
V = TypeVar("V")

SAMPLED = 16  # images whose headers tell the size of all
LISTED = 5  # names in a message


class StoredSet(Protocol):
    """Encoded images by index, from 0 to the sum of `shard_sizes`."""

    @property
    def name(self) -> str:
        """As the study has it."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names."""
        ...

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Examples by shard, in the order of their indices.

        One number where any image is as near as any other (a folder of files). Images of one shard are best read
        together.
        """
        ...

    @property
    def most_open(self) -> int:
        """How many shards are kept open: of more than these in turn, each would be opened anew for every image."""
        ...

    @property
    def held_gb(self) -> float:
        """What a process holds at most of it: what is open, and where each image lies."""
        ...

    @property
    def drawn_by_shard(self) -> bool:
        """Whether a fraction of it is the same share of every shard: that needs no label."""
        ...

    @property
    def labels_N(self) -> IntArray | None:
        """Of every example, or None where a label is known only once its image is read.

        Sets of hundreds of millions may have no index of them.
        """
        ...

    @property
    def held_out_N(self) -> BoolArray | None:
        """The test part where the source defines one and `labels_N` is known; `models.data.split` takes it."""
        ...

    @property
    def held_out_shards(self) -> frozenset[int]:
        """The shards that are kept for tests.

        Empty only where `labels_N` is known and the source defines no test part: then `models.data.split` draws it.
        """
        ...

    def read(self, index: int) -> tuple[bytes, int]:
        """(the image as it was stored: JPEG, PNG, WebP; its label). May be called by several threads at once.

        Raises:
            DataError: it cannot be read, or its label is none of `classes`; the message has its `place`.
        """
        ...

    def place(self, index: int) -> str:
        """Where an example lies, as a user would look for it: `photos/cat/3.jpg`, `train-00017.tar: 000123.jpg`."""
        ...


def label_set(s: StoredSet) -> LabelSet:
    """What `models.data.split` and `subset` take.

    Raises:
        DataError: the labels are not known before the images are read.
    """
    if s.labels_N is None:
        raise DataError(f"{s.name}: the labels are known only once the images are read; `upshot data index` lists them")
    alone_N = np.broadcast_to(np.int64(0), s.labels_N.shape)  # one group, in no memory
    return LabelSet(name=s.name, labels_N=s.labels_N, groups_N=alone_N, classes=s.classes, held_out_N=s.held_out_N)


class Recent(Generic[K, V]):
    """The values that were last asked for, at most `most`; each is made once, even if threads ask at the same time.

    A DataError is kept as a value is, so that a broken file is not read again for each of its images.
    """

    def __init__(self, make: Callable[[K], V], most: int) -> None:
        self._make = make
        self._most = most
        self._lock = Lock()
        self._values: OrderedDict[K, Future[V]] = OrderedDict()

    def __call__(self, key: K) -> V:
        """The value of the key; raises what making it raised."""
        with self._lock:
            future = self._values.get(key)
            if future is not None:
                self._values.move_to_end(key)
        return (future or self._made(key)).result()

    def _made(self, key: K) -> Future[V]:
        with self._lock:
            future = self._values.get(key)
            if future is not None:
                return future
            future = self._values[key] = Future()
            if len(self._values) > self._most:
                self._values.popitem(last=False)
        try:
            future.set_result(self._make(key))
        except BaseException as error:
            if not isinstance(error, DataError):  # the file system may answer the next time
                with self._lock:
                    self._values.pop(key, None)
            future.set_exception(error)
        return future


def refuse_untrained_classes(name: str, classes: tuple[str, ...], labels_N: IntArray, held_out_N: BoolArray) -> None:
    """Raises DataError where an image is held out of a class that none is trained on, or all are of one class."""
    size_C = np.bincount(labels_N[~held_out_N], minlength=len(classes))
    odd = np.unique(labels_N[held_out_N])
    odd = odd[size_C[odd] == 0]
    if len(odd):
        listed = ", ".join(classes[label] for label in odd[:LISTED]) + (", ..." if len(odd) > LISTED else "")
        raise DataError(
            f"{name}: the held-out part has {len(odd)} classes that the train part has not: {listed}. Both need"
            " the same: shuffle the images before they are written to several files"
        )
    if np.count_nonzero(size_C) < 2:
        raise DataError(f"{name}: the train part has one class only, needs 2 or more")


def _headers(s: StoredSet, num: int) -> list[tuple[tuple[int, int], Mode]]:
    """((width, height), mode) of the readable ones of the first images; DataError where none is."""
    found, corrupt = [], []
    for index in range(num):
        try:
            found.append(header_of(s.read(index)[0], s.place(index)))
        except DataError as error:
            corrupt.append(error)
    if not found:
        raise corrupt[0]
    return found


def described(s: StoredSet) -> SetInfo:
    """The numbers of the set; looks at the headers of its first images, which tell the size where all are alike."""
    num, num_test, num_classes = sum(s.shard_sizes), sum(s.shard_sizes[i] for i in s.held_out_shards), len(s.classes)
    if not s.drawn_by_shard:  # labels are known, and a class may be named of which there is no image
        labelled = label_set(s)
        train_idx, test_idx = split(labelled)
        num_test, num_classes = len(test_idx), len(np.unique(labelled.labels_N[train_idx]))
    headers = _headers(s, min(num, SAMPLED))
    (width, height), same_size = headers[0][0], len({size for size, _ in headers}) == 1
    return SetInfo(
        name=s.name,
        num_examples=num,
        num_train=num - num_test,
        num_test=num_test,
        num_classes=num_classes,
        image_size=width if width == height and same_size else None,
        channels=1 if all(mode == "L" for _, mode in headers) else 3,
        held_gb=s.held_gb,
        title=Path(s.name).name,
        source=s.name,
    )
