"""What a layout on disk is."""

import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from evals.tasks.sources import Source
from evals.tasks.task import Definition
from models.errors import DataError, UserError

BROKEN: Final = (
    FileNotFoundError,
    NotADirectoryError,
    PermissionError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    pl.exceptions.PolarsError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What readers raise of files that are malformed, cut short or not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A form in which the images of a task lie on disk.

    Attributes:
        name: what it is called.
        folders: the names under which its publisher's archive or torchvision unpacks it; looked for below the root and
            below ROOT/TASK. ROOT/TASK itself may hold it too.
        marks: files or folders that must be there; they tell it from the others.
        is_there: what tells it where `marks` cannot; None otherwise.
        read: gives its images. It may raise what broken files raise: `open` names the folder.
    """

    name: str
    folders: tuple[str, ...] = ()
    marks: tuple[str, ...]
    is_there: Callable[[Path], bool] | None = None
    read: Callable[[Path, Definition], Source]

    def places(self, root: Path, task: str) -> Iterator[Path]:
        """The folders in which it may lie, in the order in which they are looked at."""
        yield root / task
        for folder in self.folders:
            yield root / folder
            yield root / task / folder

    def holds(self, folder: Path) -> bool:
        """Whether it lies there; raises DataError where that may not be looked at."""
        try:
            if self.is_there is not None:
                return folder.is_dir() and self.is_there(folder)
            return all((folder / mark).exists() for mark in self.marks)
        except PermissionError as error:
            raise DataError(f"{error.filename}: may not be read: ask its owner for the right to") from error

    def open(self, folder: Path, definition: Definition) -> Source:
        """Its images.

        Raises:
            DataError: files of it are missing or malformed, or it has other classes than the task.
        """
        try:
            source = self.read(folder, definition)
        except UserError:
            raise
        except BROKEN as error:
            raise DataError(
                f"{folder}: looks like {self.name}, but cannot be read as that ({type(error).__name__}: {error})"
            ) from error
        classes = source.labels.classes
        if len(classes) != definition.num_classes:
            raise DataError(
                f"{folder}: has {len(classes)} classes ({', '.join(classes[:3])}, ...), task {definition.name!r} has"
                f" {definition.num_classes}; read as: {self.name}"
            )
        outside_N = (source.labels.labels_N < 0) | (source.labels.labels_N >= len(classes))
        if outside_N.any():
            raise DataError(
                f"{folder}: {int(outside_N.sum())} labels are none of 0 to {len(classes) - 1}, such as"
                f" {int(source.labels.labels_N[outside_N][0])}; read as: {self.name}"
            )
        return source
