"""Image files by a list: a CSV of paths and labels, or what a publisher's own lists say.

Shape suffixes: N images.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from models.data.folders import FolderSet
from models.data.sets import BoolArray, IntArray, SetInfo
from models.data.stored import described, refuse_untrained_classes
from models.errors import DataError, did_you_mean

COLUMNS = ("path", "label")
PARTS = ("train", "test")


class Listed(NamedTuple):
    """An image file and the number of its class."""

    path: Path
    label: int


def file_set(name: str, classes: tuple[str, ...], train: Sequence[Listed], test: Sequence[Listed] | None) -> FolderSet:
    """The files of lists as a stored set: those to train on, then those held out, each in the order of its list.

    Args:
        name: what messages call it.
        classes: their names, by number.
        train: the files to train on.
        test: those held out; None where nothing says which these are, an error where there are none.

    Raises:
        DataError: files that are not there, no file at all, or a held-out class that none is trained on.
    """
    found = scanned_set(name, classes, train, test)
    _refuse_missing(name, found.paths)
    return found


def scanned_set(
    name: str, classes: tuple[str, ...], train: Sequence[Listed], test: Sequence[Listed] | None
) -> FolderSet:
    """The same of files that were seen when their folders were listed, and need not be looked for."""
    files = [*train, *(test or ())]
    if not train or test == []:
        raise DataError(f"{name}: lists no image {'to train on' if not train else 'to test on'}")
    labels_N = np.array([file.label for file in files], dtype=np.int64)
    held_out_N = None if test is None else np.repeat([False, True], [len(train), len(test)])
    return _set(name, classes, [file.path for file in files], labels_N, held_out_N)


def _set(
    name: str, classes: tuple[str, ...], paths: list[Path], labels_N: IntArray, held_out_N: BoolArray | None
) -> FolderSet:
    none_N = np.zeros(len(labels_N), dtype=np.bool_)
    refuse_untrained_classes(name, classes, labels_N, none_N if held_out_N is None else held_out_N)
    return FolderSet(
        name=name,
        classes=classes,
        shard_sizes=(len(paths),),
        labels_N=labels_N,
        held_out_N=held_out_N,
        paths=paths,
        label_N=labels_N,
    )


def is_csv(name: str) -> bool:
    """Whether a path is that of a list of images."""
    return name.lower().endswith(".csv")


def open_csv(csv: str) -> FolderSet:
    """The images of a CSV with the columns `path`, `label` and, if it says which are for the test, `split`.

    Paths are seen from the folder of the CSV. Classes are sorted by name; images keep the order of the rows.

    Raises:
        DataError: a column or a file that is missing, an empty cell, a path that stands there twice, a split that is
            neither "train" nor "test", one class only, or a class that is in the test part only.
    """
    path = Path(csv).expanduser()
    table = _read(path)
    _refuse_cells(path, table)
    classes = tuple(sorted(table["label"].unique()))
    label_of = {label: number for number, label in enumerate(classes)}
    held_out_N = (table["split"] == "test").to_numpy() if "split" in table.columns else None
    if held_out_N is not None and (held_out_N.all() or not held_out_N.any()):
        lacking = "train" if held_out_N.all() else "test"
        raise DataError(f"{csv}: lists no image to {lacking} on: split says {table['split'][0]!r} of every one")
    paths = [path.parent / name for name in table["path"]]
    labels_N = np.array([label_of[label] for label in table["label"]], dtype=np.int64)
    found = _set(csv, classes, paths, labels_N, held_out_N)
    _refuse_missing(csv, paths)
    return found


def info(csv: str) -> SetInfo:
    """The numbers of a CSV's images; cached until the file changes."""
    path = Path(csv).expanduser()
    return _info(csv, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache
def _info(csv: str, changed_ns: int) -> SetInfo:  # noqa: ARG001 - a part of the cache's key
    return described(open_csv(csv))


def _read(path: Path) -> pl.DataFrame:
    """All columns as text."""
    try:
        table = pl.read_csv(path, infer_schema=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such CSV of images") from error
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path}: cannot be read as a CSV ({error})") from error
    for column in COLUMNS:
        if column not in table.columns:
            near = did_you_mean(column, table.columns)
            raise DataError(
                f"{path}: has no column {column!r} (it has: {', '.join(table.columns)}); needed are path, label and, if"
                f" you like, split.{near}"
            )
    if not len(table):
        raise DataError(f"{path}: has no rows")
    return table


def _refuse_cells(path: Path, table: pl.DataFrame) -> None:
    for column in [name for name in (*COLUMNS, "split") if name in table.columns]:
        empty = table[column].is_null() | (table[column] == "")
        if empty.any():
            raise DataError(f"{path}: line {_line(empty)} has no {column}")
    twice = table["path"].is_duplicated()
    if twice.any():
        first = table["path"][int(twice.arg_true()[0])]
        lines = ", ".join(str(row + 2) for row in (table["path"] == first).arg_true()[:5])
        raise DataError(f"{path}: {first} stands there more than once (lines {lines})")
    if "split" in table.columns and (odd := ~table["split"].is_in(PARTS)).any():
        line = _line(odd)
        raise DataError(f"{path}: line {line} has split {table['split'][line - 2]!r} (known: {', '.join(PARTS)})")


def _line(wrong: pl.Series) -> int:
    """The first line of the file, whose header is line 1, for which this is true."""
    return int(wrong.arg_true()[0]) + 2


def _refuse_missing(name: str, paths: list[Path]) -> None:
    """Each folder is listed once: to ask for files one by one takes minutes on some disks."""
    there = {folder: _names(folder) for folder in {path.parent for path in paths}}
    missing = [path for path in paths if path.name not in there[path.parent]]
    if missing:
        raise DataError(f"{name}: {missing[0]} is not there ({len(missing)} of {len(paths)} listed files are missing)")


def _names(folder: Path) -> frozenset[str]:
    try:
        return frozenset(entry.name for entry in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
