"""Hugging Face datasets on disk: parquet files as on the hub, and what `save_to_disk` writes (Arrow streams)."""

import json
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.data import part_files
from models.data.columns import Columns, find_columns
from models.data.sets import BoolArray, IntArray, SetInfo
from models.data.stored import Recent, described, refuse_untrained_classes
from models.errors import DataError

DICT, STATE = "dataset_dict.json", "state.json"
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
ROOM_BYTES = 2**31  # for the row groups that were read last
MOST_OPEN = 256
THREADS = 8  # they wait for the disk


class _Table(Protocol):
    """One file: rows in chunks that are read as one."""

    path: Path
    schema: pa.Schema
    chunk_sizes: tuple[int, ...]
    chunk_bytes: int

    def column(self, name: str) -> pa.ChunkedArray: ...

    def chunk(self, number: int, name: str) -> pa.ChunkedArray: ...


class _Parquet:
    """A parquet file; it is open only while it is read, since there may be more of them than a process may open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _explained(path):
            self._metadata = pq.read_metadata(path)
            self.schema = self._metadata.schema.to_arrow_schema()
        groups = [self._metadata.row_group(number) for number in range(self._metadata.num_row_groups)]
        self.chunk_sizes = tuple(group.num_rows for group in groups)
        self.chunk_bytes = max((group.total_byte_size for group in groups), default=0)

    def column(self, name: str) -> pa.ChunkedArray:
        with self._opened() as file:
            return file.read([name], use_threads=False)[name]

    def chunk(self, number: int, name: str) -> pa.ChunkedArray:
        with self._opened() as file:
            return file.read_row_group(number, [name], use_threads=False)[name]

    @contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        with _explained(self.path), pq.ParquetFile(self.path, metadata=self._metadata) as file:
            yield file


class _Stream:
    """An Arrow stream, mapped to memory: any row is as near as any other."""

    chunk_bytes = 0

    def __init__(self, path: Path) -> None:
        self.path = path
        table = self._mapped()
        self.schema = table.schema
        self.chunk_sizes: tuple[int, ...] = (table.num_rows,)

    def column(self, name: str) -> pa.ChunkedArray:
        return self._mapped()[name]

    def chunk(self, number: int, name: str) -> pa.ChunkedArray:  # noqa: ARG002 - there is one
        return self._mapped()[name]

    def _mapped(self) -> pa.Table:
        """Its rows; the file stays mapped while they are in use.

        A reader takes the end of a file for the end of the stream, so one that was cut between two batches would
        just be shorter.
        """
        with _explained(self.path), pa.memory_map(str(self.path)) as file:
            if file.size() < len(END_OF_STREAM) or file.read_at(len(END_OF_STREAM), file.size() - 8) != END_OF_STREAM:
                raise DataError(f"{self.path}: is cut short: the mark at the end of an Arrow stream is missing")
            return pa.ipc.open_stream(file).read_all()


class TableSet:
    """The examples of tables, as a `models.data.stored.StoredSet`; a shard is a row group, or a whole Arrow stream.

    Args:
        name: as the study has it.
        train: the tables to train on.
        held_out: those that the source sets apart.
    """

    def __init__(self, name: str, train: list[_Table], held_out: list[_Table]) -> None:
        self.name = name
        self._tables = [*train, *held_out]
        self._columns = self._agreed_columns()
        chunks = [(table, number) for table in self._tables for number in range(len(table.chunk_sizes))]
        self.shard_sizes = tuple(table.chunk_sizes[number] for table, number in chunks)
        if not sum(self.shard_sizes):
            raise DataError(f"{name}: its tables have no rows")
        num_train = sum(len(table.chunk_sizes) for table in train)
        self.held_out_shards = frozenset(range(num_train, len(chunks)))
        self._chunks = chunks
        self._ends = list(accumulate(self.shard_sizes))
        largest = max(table.chunk_bytes for table in self._tables)
        self.most_open = max(1, min(MOST_OPEN, ROOM_BYTES // max(1, largest)))
        self.held_gb = min(self.most_open, len(chunks)) * largest / 1e9
        self._images = Recent(self._read_images, self.most_open)
        self.drawn_by_shard = False

    @property
    def classes(self) -> tuple[str, ...]:
        """As the features name them; else the names that stand in the column, sorted, or its numbers."""
        return self._labels[0]

    @property
    def labels_N(self) -> IntArray:
        """From the label column, which is read when they are first asked for."""
        return self._labels[1]

    @cached_property
    def held_out_N(self) -> BoolArray | None:
        """The rows of the held-out tables, where there are some."""
        if not self.held_out_shards:
            return None
        held_out_S = np.isin(np.arange(len(self.shard_sizes)), list(self.held_out_shards))
        return np.repeat(held_out_S, self.shard_sizes)

    def read(self, index: int) -> tuple[bytes, int]:
        """(image, label): see `StoredSet.read`."""
        shard, row = self._locate(index)
        found = self._images(shard)[row].as_py()
        image, path = (found.get("bytes"), found.get("path")) if isinstance(found, dict) else (found, None)
        if not image:
            hint = f", only the path {path}: save the set with its images embedded" if path else ""
            raise DataError(f"{self.place(index)} has no image in column {self._columns.image!r}{hint}")
        return image, int(self.labels_N[index])

    def place(self, index: int) -> str:
        """`train-00000-of-00005.parquet: row 17`, counted from 0 in the file."""
        shard, row = self._locate(index)
        table, number = self._chunks[shard]
        return f"{table.path}: row {sum(table.chunk_sizes[:number]) + row}"

    def _locate(self, index: int) -> tuple[int, int]:
        """(shard, row in it)."""
        shard = bisect_right(self._ends, index)
        return shard, index - self._ends[shard] + self.shard_sizes[shard]

    def _read_images(self, shard: int) -> pa.ChunkedArray:
        table, number = self._chunks[shard]
        return table.chunk(number, self._columns.image)

    def _agreed_columns(self) -> Columns:
        first = find_columns(self._tables[0].schema, str(self._tables[0].path))
        for table in self._tables[1:]:
            found = find_columns(table.schema, str(table.path))
            if found != first:
                odd = sorted(set(found.names or ()) ^ set(first.names or ()))[:5]
                what = f"only one of them has {', '.join(odd)}" if odd else f"{found[:2]} is not {first[:2]}"
                raise DataError(
                    f"{table.path} and {self._tables[0].path} must have the same columns and classes: {what}"
                )
        return first

    @cached_property
    def _labels(self) -> tuple[tuple[str, ...], IntArray]:
        with ThreadPoolExecutor(THREADS) as pool:
            parts = list(pool.map(self._label_column, self._tables))
        odd = next((table for table, part in zip(self._tables, parts, strict=True) if part.type != parts[0].type), None)
        if odd:
            raise DataError(f"{odd.path}: labels are names in some files and numbers in others")
        column = pa.chunked_array([chunk for part in parts for chunk in part.chunks])
        names = self._columns.names
        if pa.types.is_integer(column.type):
            labels_N = column.to_numpy().astype(np.int64)
            names = names or self._numerals(labels_N)
        else:
            names = names or tuple(sorted(pc.unique(column).to_pylist()))
            labels_N = pc.index_in(column, pa.array(names)).fill_null(-1).to_numpy().astype(np.int64)
        self._refuse_labels(labels_N, len(names))
        held_out_N = self.held_out_N
        none_N = np.zeros(len(labels_N), dtype=np.bool_)
        refuse_untrained_classes(self.name, names, labels_N, none_N if held_out_N is None else held_out_N)
        return names, labels_N

    def _numerals(self, labels_N: IntArray) -> tuple[str, ...]:
        """Names of classes that have numbers only; raises DataError where these are no numbers of classes."""
        largest = int(labels_N.max(initial=0))
        if largest >= len(labels_N):
            raise DataError(
                f"{self.place(int(labels_N.argmax()))}: column {self._columns.label!r} holds {largest}, but there are"
                f" {len(labels_N)} rows only, so these are no numbers of classes: name the right column 'label'"
            )
        return tuple(map(str, range(largest + 1)))

    def _label_column(self, table: _Table) -> pa.ChunkedArray:
        """The labels of one file: int64, or text."""
        column = table.column(self._columns.label)
        if column.null_count:
            row = pc.index(pc.is_null(column), True).as_py()
            raise DataError(f"{table.path}: row {row} has no label in column {self._columns.label!r}")
        return column.cast(pa.int64() if pa.types.is_integer(column.type) else pa.string())

    def _refuse_labels(self, labels_N: IntArray, num_classes: int) -> None:
        odd_N = (labels_N < 0) | (labels_N >= num_classes)
        if odd_N.any():
            index = int(odd_N.argmax())
            hint = " (is this an unlabelled part?)" if labels_N[index] == -1 else ""
            raise DataError(
                f"{self.place(index)}: its label in column {self._columns.label!r} is {labels_N[index]}{hint}, but"
                f" there are {num_classes} classes, numbered from 0"
            )


def open_set(dataset: str) -> TableSet:
    """The tables of a folder, or of a pattern of parquet files.

    Raises:
        DataError: files that are missing, cut short, or of different columns; no column for images or labels.
    """
    train, held_out = part_files.parted(_files(dataset), dataset)
    with ThreadPoolExecutor(THREADS) as pool:
        tables = list(pool.map(_table, [*train, *held_out]))
    return TableSet(dataset, tables[: len(train)], tables[len(train) :])


def open_parts(dataset: str, train: frozenset[str], held_out: str) -> TableSet:
    """The same, with the parts ("train", "val", "test") that are asked for in place of the first that can be held out.

    Tables of other parts are left out. Where no name tells a part, none is held out.

    Raises:
        DataError: what `open_set` raises, or one of the two is not there.
    """
    files = sorted(_files(dataset))
    parts = [part_files.part(path) for path in files]
    if not any(parts):
        return open_set(dataset)
    chosen = [
        [path for path, part in zip(files, parts, strict=True) if part in wanted] for wanted in (train, {held_out})
    ]
    if not all(chosen):
        raise DataError(
            f"{dataset}: has {', '.join(sorted({str(part) for part in parts}))}, but train and {held_out} are needed"
        )
    with ThreadPoolExecutor(THREADS) as pool:
        tables = list(pool.map(_table, [*chosen[0], *chosen[1]]))
    return TableSet(dataset, tables[: len(chosen[0])], tables[len(chosen[0]) :])


def info(dataset: str) -> SetInfo:
    """The numbers of the set; cached until one of its files changes."""
    return _info(dataset, tuple(path.stat().st_mtime_ns for path in _files(dataset)))


@lru_cache
def _info(dataset: str, changed_ns: tuple[int, ...]) -> SetInfo:  # noqa: ARG001 - a part of the cache's key
    return described(open_set(dataset))


def is_hugging_face(dataset: str) -> bool:
    """Whether a path is that of tables."""
    path = Path(dataset).expanduser()
    if path.is_dir():
        return any((path / name).is_file() for name in (DICT, STATE)) or bool(part_files.files_in(path, (".parquet",)))
    return dataset.endswith(".parquet")


def _files(dataset: str) -> list[Path]:
    """All tables of the set, in no order that matters; there are some."""
    path = Path(dataset).expanduser()
    if not path.is_dir():
        return part_files.matching(dataset)
    if (path / DICT).is_file():
        return [file for split in _read_json(path / DICT, "splits") for file in _saved(path / str(split))]
    if (path / STATE).is_file():
        return _saved(path)
    found = part_files.files_in(path, (".parquet",))
    part_files.refuse_gaps(found)
    return found


def _saved(folder: Path) -> list[Path]:
    files = [folder / str(entry["filename"]) for entry in _read_json(folder / STATE, "_data_files")]
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise DataError(f"{missing[0]}: is not there, but {folder / STATE} lists it ({len(missing)} such files)")
    return files


def _read_json(path: Path, key: str) -> list[Any]:
    try:
        found = json.loads(path.read_bytes())[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is not what save_to_disk writes ({type(error).__name__}: {error})") from error
    return list(found)


def _table(path: Path) -> _Table:
    return _Parquet(path) if path.suffix == ".parquet" else _Stream(path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Names the file in what pyarrow raises of broken bytes; what the file system raises goes on as it is."""
    try:
        yield
    except (FileNotFoundError, PermissionError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"{path}: is damaged or cut short ({error})") from error
