"""What is kept beside tar shards, so that nobody reads all of their headers again: `sizes.json`, `labels.parquet`.

`sizes.json` is WebDataset's own: shard to number of examples. `labels.parquet` has a row for each example, in order
(label -1 where the shards have none), and the names of the classes in its metadata. Shards are named relative to the
folder of the index where they lie below it, else by their whole path: the index may lie elsewhere.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.data.samples import RawLabel
from models.errors import DataError

SIZES = "sizes.json"
LABELS = "labels.parquet"
CLASS_FILES = ("classes.txt", "classnames.txt", "classes.json")
CLASSES_KEY = b"classes"
SCHEMA = pa.schema([("shard", pa.dictionary(pa.int32(), pa.string())), ("label", pa.int32())])
UNLABELLED = -1
THREADS = 8  # they wait for the disk

Json = Any  # what a file of somebody else may hold
Labels = NDArray[np.int32]


def name_in(folder: Path, shard: Path) -> str:
    """How an index in `folder` names a shard."""
    return shard.relative_to(folder).as_posix() if shard.is_relative_to(folder) else str(shard)


# --- sizes ------------------------------------------------------------------------------------------------------------


def listed_sizes(folder: Path) -> dict[Path, int]:
    """Examples by shard, as `sizes.json` of the folder tells; empty where there is none.

    Raises:
        DataError: it is malformed.
    """
    path = folder / SIZES
    if not path.is_file():
        return {}
    sizes = _read_json(path)
    if not isinstance(sizes, dict) or not all(type(size) is int and size > 0 for size in sizes.values()):
        raise DataError(f'{path}: should be {{"SHARD.tar": number of examples, ...}}')
    return {folder / name: size for name, size in sizes.items()}  # an absolute name stays what it is


def known_sizes(folder: Path, shards: list[Path]) -> dict[Path, int]:
    """Examples by shard as far as files tell: `sizes.json` of `folder` or of the shard's folder, or img2dataset's.

    Raises:
        DataError: a file that is there is malformed.
    """
    told: dict[Path, int] = {}
    for place in {shard.parent for shard in shards} | {folder}:
        told |= listed_sizes(place)
    found = {shard: told[shard] for shard in shards if shard in told}
    return found | _stats_sizes([shard for shard in shards if shard not in found])


def _stats_sizes(shards: list[Path]) -> dict[Path, int]:
    """From `00017_stats.json` beside `00017.tar`, which img2dataset writes."""
    there = {path for folder in {shard.parent for shard in shards} for path in folder.glob("*_stats.json")}
    stats = {shard: shard.with_name(f"{shard.stem}_stats.json") for shard in shards}
    told = {shard: path for shard, path in stats.items() if path in there}
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(told, pool.map(_successes, told.values()), strict=True))


def _successes(path: Path) -> int:
    stats = _read_json(path)
    number = stats.get("successes") if isinstance(stats, dict) else None
    if type(number) is not int:
        raise DataError(f"{path}: has no number 'successes'")
    return number


# --- classes and labels -----------------------------------------------------------------------------------------------


def class_names(folder: Path) -> tuple[str, ...] | None:
    """The classes by number: those that a file of the folder lists, else those of its index, else None.

    Raises:
        DataError: the file is malformed, or tells other classes than the index.
    """
    told, indexed = told_classes(folder), indexed_classes(folder)
    refuse_other_classes(folder, told, indexed)
    return told or indexed


def refuse_other_classes(folder: Path, told: tuple[str, ...] | None, indexed: tuple[str, ...] | None) -> None:
    """Raises DataError where the index of `folder` numbers other classes than a list tells."""
    numbered = indexed == tuple(map(str, range(len(indexed or ()))))  # numbers may get names afterwards
    if told and indexed and told != indexed and (not numbered or len(told) < len(indexed)):
        raise DataError(
            f"{folder}: its list of classes and {LABELS} differ: remove {LABELS} and run `upshot data index`"
        )


def told_classes(folder: Path) -> tuple[str, ...] | None:
    """What `classes.txt`, `classnames.txt` or `classes.json` of the folder lists."""
    path = next((folder / name for name in CLASS_FILES if (folder / name).is_file()), None)
    if path is None:
        return None
    lines = _read_json(path) if path.suffix == ".json" else path.read_text(encoding="utf-8").split("\n")
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise DataError(f'{path}: should be a list of names: ["cat", "dog"]')
    names = tuple(name for line in lines if (name := line.strip()))
    if len(set(names)) < max(2, len(names)):
        twice = next((repr(name) for name in names if names.count(name) > 1), None)
        raise DataError(f"{path}: {f'lists {twice} twice' if twice else 'lists fewer than 2 classes'}")
    return names


def indexed_classes(folder: Path) -> tuple[str, ...] | None:
    """What `labels.parquet` of the folder has in its metadata; None where it is not there, or has no labels."""
    if not (folder / LABELS).is_file():
        return None
    with _readable(folder / LABELS):
        names = json.loads((pq.read_schema(folder / LABELS).metadata or {})[CLASSES_KEY])
        return tuple(map(str, names)) or None


def class_number(label: RawLabel, numbers: dict[str, int]) -> int:
    """The number of a label, which is a number or a name of `numbers`; raises ValueError with the reason."""
    if label is None:
        raise ValueError("has no label (.cls, or .json with 'label')")
    if isinstance(label, int) and not 0 <= label < len(numbers):
        raise ValueError(f"has the label {label}, but there are {len(numbers)} classes, numbered from 0")
    if isinstance(label, str) and label not in numbers:
        raise ValueError(f"has the label {label!r}, which is none of the {len(numbers)} classes")
    return label if isinstance(label, int) else numbers[label]


def known_labels(folder: Path) -> dict[Path, Labels]:
    """The labels of every shard that the index lists, in the order of its examples.

    Raises:
        DataError: the index cannot be read.
    """
    path = folder / LABELS
    if not path.is_file():
        return {}
    with _readable(path):
        table = pq.read_table(path, read_dictionary=["shard"]).cast(SCHEMA).unify_dictionaries().combine_chunks()
        if not table.num_rows:
            return {}
        shard_N = table["shard"].chunk(0)
        names, code_N = shard_N.dictionary.to_pylist(), shard_N.indices.to_numpy()
        starts = np.flatnonzero(np.diff(code_N, prepend=-1))
        parts = np.split(table["label"].to_numpy(), starts[1:])
    return {folder / names[code_N[start]]: part_N for start, part_N in zip(starts, parts, strict=True)}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: is not what `upshot data index` writes ({error}): remove it and run that again"
        ) from error


def _read_json(path: Path) -> Json:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: no JSON ({error})") from error
