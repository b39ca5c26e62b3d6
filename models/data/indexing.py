"""Reads every header of tar shards once and writes down what they hold: see `models.data.shard_index`."""

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.data.samples import Sample, open_shard
from models.data.shard_index import (
    CLASSES_KEY,
    LABELS,
    SCHEMA,
    SIZES,
    THREADS,
    UNLABELLED,
    Labels,
    class_number,
    indexed_classes,
    known_labels,
    listed_sizes,
    name_in,
    refuse_other_classes,
    told_classes,
)
from models.data.shards import found_shards
from models.errors import DataError

SAVE_SHARE = 20  # saving takes one part in this many of the time, at most
SAVE_AFTER_S = 30.0
NAMED = 5  # shards in a message

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSummary:
    """What an index knows once it is whole."""

    folder: Path
    num_shards: int
    num_read: int
    num_examples: int
    classes: tuple[str, ...]


def write_index(dataset: str, output: Path | None = None, progress: Progress | None = None) -> IndexSummary:
    """Writes `sizes.json` and `labels.parquet` beside the shards, or into `output`; reads only shards not yet in them.

    What was read is saved from time to time, so that a run that was killed is gone on with.

    Raises:
        DataError: shards that cannot be used, all of which are read first and named; what was read is kept.
    """
    shards_folder, shards = found_shards(dataset)
    folder = (output or shards_folder).expanduser().absolute()
    shards = [shard.absolute() for shard in shards]
    index = _Index(folder, told_classes(shards_folder))
    todo = [shard for shard in shards if shard not in index.labels]
    num_done, broken = 0, []
    if progress and todo:
        progress(num_done, len(todo))
    try:
        for shard, found in _read(todo):
            try:
                index.add(shard, found)
            except DataError as error:
                broken.append(str(error))
            num_done += 1
            if progress:
                progress(num_done, len(todo))
            index.save_at_times()
    finally:
        if todo:
            index.save()
    if broken:
        more = f"\nand {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        raise DataError(
            f"{len(broken)} of {len(shards)} shards cannot be used, the others are in the index:\n"
            + "\n".join(broken[:NAMED])
            + more
        )
    return IndexSummary(
        folder=folder,
        num_shards=len(shards),
        num_read=len(todo),
        num_examples=sum(len(index.labels[shard]) for shard in shards),
        classes=index.classes,
    )


def _read(shards: list[Path]) -> Iterator[tuple[Path, tuple[Sample, ...] | DataError]]:
    """The examples of every shard, or why it cannot be used; in order."""
    pool = ThreadPoolExecutor(THREADS)
    try:
        yield from zip(shards, pool.map(_samples_in, shards), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _samples_in(shard: Path) -> tuple[Sample, ...] | DataError:
    try:
        return open_shard(shard).samples
    except DataError as error:
        return error


class _Index:
    """What is known so far. Names of classes get numbers as they come, and their final order when they are saved."""

    def __init__(self, folder: Path, told: tuple[str, ...] | None) -> None:
        self._folder = folder
        self._told = told
        self._sizes = listed_sizes(folder)
        self.labels = known_labels(folder)
        indexed = indexed_classes(folder) or ()
        refuse_other_classes(folder, told, indexed)
        self._kind: type[int | str] | None = None if not indexed else int if indexed == _numerals(len(indexed)) else str
        self._numbers = {name: number for number, name in enumerate(told or (indexed if self._kind is str else ()))}
        self._num_classes = len(indexed)
        self._saved_at, self._save_s = time.monotonic(), 0.0

    def add(self, shard: Path, found: tuple[Sample, ...] | DataError) -> None:
        """Takes a shard in; raises DataError where that cannot be done."""
        if isinstance(found, DataError):
            raise found
        size = self._sizes.get(shard, len(found))
        if size != len(found):
            raise DataError(
                f"{shard}: holds {len(found)} examples, not {size} as {self._folder / SIZES} says: fetch it again, or"
                " remove its line there"
            )
        if all(sample.label is None for sample in found):
            self.labels[shard] = np.full(size, UNLABELLED, dtype=np.int32)
        else:
            self.labels[shard] = np.array([self._number(shard, sample) for sample in found], dtype=np.int32)
        self._sizes[shard] = size

    def _number(self, shard: Path, sample: Sample) -> int:
        label = sample.label
        try:
            if label is None or self._told:
                return class_number(label, self._numbers)
            self._kind = self._kind or type(label)
            if not isinstance(label, self._kind) or (isinstance(label, int) and label < 0):
                raise ValueError(f"has the label {label!r}: all should be names of classes, or all numbers from 0 on")
        except ValueError as error:
            raise DataError(f"{shard}: {sample.image.name}: {error}") from error
        number = label if isinstance(label, int) else self._numbers.setdefault(label, len(self._numbers))
        self._num_classes = max(self._num_classes, number + 1)
        return number

    @property
    def classes(self) -> tuple[str, ...]:
        """By their final numbers."""
        if self._told:
            return self._told
        return tuple(sorted(self._numbers)) if self._kind is str else _numerals(self._num_classes)

    def save_at_times(self) -> None:
        """Saves what is new, so seldom that it takes little of the time."""
        if time.monotonic() - self._saved_at > max(SAVE_AFTER_S, SAVE_SHARE * self._save_s):
            self.save()

    def save(self) -> None:
        """Writes both files, each as a whole; labels first, since a shard in `sizes.json` alone is read again."""
        start = time.monotonic()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _replace(self._folder / LABELS, lambda draft: pq.write_table(self._table(), draft, compression="zstd"))
            sizes = {name_in(self._folder, shard): size for shard, size in sorted(self._sizes.items())}
            _replace(self._folder / SIZES, lambda draft: draft.write_text(json.dumps(sizes, indent=0) + "\n"))
        except OSError as error:
            raise DataError(
                f"{self._folder}: cannot be written to ({error}): name another folder by --output"
            ) from error
        self._saved_at = time.monotonic()
        self._save_s = self._saved_at - start

    def _table(self) -> pa.Table:
        shards = sorted(self.labels)
        names = [name_in(self._folder, shard) for shard in shards]
        code_N = np.repeat(np.arange(len(shards), dtype=np.int32), [len(self.labels[shard]) for shard in shards])
        label_N = np.concatenate([self.labels[shard] for shard in shards]) if shards else np.empty(0, np.int32)
        columns = [
            pa.DictionaryArray.from_arrays(code_N, pa.array(names, pa.string())),
            pa.array(self._ordered(label_N)),
        ]
        metadata = {CLASSES_KEY: json.dumps(self.classes).encode()}
        return pa.table(columns, schema=SCHEMA.with_metadata(metadata))

    def _ordered(self, label_N: Labels) -> Labels:
        """Labels by the final numbers of their classes, where these came as names."""
        if self._told or self._kind is not str:
            return label_N
        final = {name: number for number, name in enumerate(self.classes)}
        number_C = np.array([*(final[name] for name in self._numbers), UNLABELLED], dtype=np.int32)  # -1 is the last
        return number_C[label_N]


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.draft")
    try:
        write(draft)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _numerals(num: int) -> tuple[str, ...]:
    return tuple(map(str, range(num)))
