"""Published tables as they lie on disk, and their cells as text or numbers."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from models.errors import DataError, UnknownNameError
from orchestrator.bars import Tell, tell_nobody
from orchestrator.results import check_columns

SEPARATORS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*SEPARATORS, ".parquet")
MISSING = ("", "na", "n/a", "nan", "null", "-", "--", "–", "—", "?")
"""What stands where there is no value, in lower case."""
NO_NUMBER = (*MISSING, "none")
"""What stands in a column of numbers where there is none; among names `none` may be one (no augmentation)."""
NUMBER = r"^[+-]?(?:\d+(?:\.\d*)?|\.\d+|[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?)(?:[eE][+-]?\d+)?$"
QUOTED = 60  # letters of a bad row
WHOLE = r"^[+-]?[\d,]{1,18}$"


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """One file: how messages call it, its columns as they were read, and for each row its number below the header."""

    path: Path
    label: str
    frame: pl.DataFrame
    rows: pl.Series

    def column(self, name: str) -> pl.Series:
        """One column.

        Raises:
            UnknownNameError: the table has no such column.
            DataError: it holds lists, bytes or the like.
        """
        if name not in self.frame.columns:
            raise UnknownNameError("column", name, self.frame.columns, f"in {self.label}")
        if not self.is_plain(name):
            kind = self.frame.schema[name]
            raise DataError(f"{self.label}: column {name!r} is of type {kind}; texts or numbers are needed")
        return self.frame[name]

    def is_plain(self, name: str) -> bool:
        """Whether the values of a column can be written as texts: not lists, structures or bytes."""
        kind = self.frame.schema[name]
        return not (kind.is_nested() or kind in (pl.Binary, pl.Object))


def read_tables(paths: Sequence[Path], tell: Tell = tell_nobody) -> list[Table]:
    """The tables of all files, in their order. Files with the same name are called by their paths.

    `tell` hears how many are read.

    Raises:
        DataError: a file is given twice, cannot be read, is of an unknown kind, or holds no rows.
    """
    resolved = [path.resolve() for path in paths]
    twice = [path for i, path in enumerate(paths) if resolved[i] in resolved[:i]]
    if twice:
        raise DataError(f"{twice[0]}: this table is given twice")
    names = [path.name for path in paths]
    tables = []
    for i, path in enumerate(paths):
        tell("reading tables", i, len(paths))
        tables.append(_read(path, path.name if names.count(path.name) == 1 else str(path)))
    return tables


def text(series: pl.Series) -> pl.Series:
    """The values as text without surrounding space; null where there is none."""
    stripped = series.cast(pl.String).str.strip_chars()
    return stripped.set(stripped == "", None)


def known(series: pl.Series) -> pl.Series:
    """As `text`, but null for every word that says that there is no value (`MISSING`)."""
    words = text(series)
    return words.set(words.str.to_lowercase().is_in(MISSING).fill_null(False), None)


def numbers(series: pl.Series) -> tuple[pl.Series, pl.Series]:
    """(the values as numbers, null where there is none; which values are neither a number nor missing).

    A thousands comma is no part of a number: "1,014.45" is 1014.45.
    """
    if series.dtype.is_numeric():
        return series.cast(pl.Float64).fill_nan(None), series.is_null() & False
    words = text(series)
    is_number = words.str.contains(NUMBER).fill_null(False)
    is_missing = words.is_null() | words.str.to_lowercase().is_in(NO_NUMBER).fill_null(False)
    values = words.set(~is_number, None).str.replace_all(",", "").cast(pl.Float64)
    return values, ~is_number & ~is_missing


def typed(words: pl.Series) -> pl.Series:
    """Text as whole numbers or fractional ones where every value is such a number, otherwise as it is."""
    values, is_text = numbers(words)
    if is_text.any() or values.is_null().all():
        return words
    known = words.filter(values.is_not_null())
    return values.cast(pl.Int64) if known.str.contains(WHOLE).all() else values


def _read(path: Path, label: str) -> Table:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: a table is a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")
    try:
        frame, rows = _read_parquet(path) if suffix == ".parquet" else _read_text(path, SEPARATORS[suffix])
    except (pl.exceptions.PolarsError, csv.Error, OSError) as error:
        raise DataError(f"{path}: the table cannot be read: {str(error).splitlines()[0]}") from error
    if frame.is_empty():
        raise DataError(f"{path}: the table has no rows")
    return Table(path, label, frame, rows)


def _read_parquet(path: Path) -> tuple[pl.DataFrame, pl.Series]:
    frame = pl.read_parquet(path)
    frame.columns = _headings(path, frame.columns)
    return frame, pl.Series("row", range(1, frame.height + 1), dtype=pl.Int64)


def _read_text(path: Path, separator: str) -> tuple[pl.DataFrame, pl.Series]:
    """All columns as text: what is a number is decided by the whole column, and a bad value can be quoted."""
    lines = csv.reader(io.StringIO(_utf8(path), newline=""), delimiter=separator, strict=True)
    header = next((fields for fields in lines if any(fields)), [])
    _check_separator(path, header, separator)
    numbered = [(row, fields) for row, fields in enumerate(lines, start=1) if any(field.strip() for field in fields)]
    for row, fields in numbered:
        if len(fields) != len(header):
            raise DataError(
                f"{path}: row {row} has {len(fields)} fields and the heading {len(header)}: "
                f"{separator.join(fields)[:QUOTED]!r}. A field that holds a {separator!r} stands in double quotes"
            )
    columns = list(zip(*(fields for _, fields in numbered), strict=True)) or [()] * len(header)
    # A column without heading and values comes of lines that end in a separator.
    used = [(name, values) for name, values in zip(header, columns, strict=True) if name.strip() or any(values)]
    names = _headings(path, [name for name, _ in used])
    series = {name: pl.Series(values, dtype=pl.String) for name, (_, values) in zip(names, used, strict=True)}
    frame = pl.DataFrame({name: column.set(column == "", None) for name, column in series.items()})
    return frame, pl.Series("row", [row for row, _ in numbered], dtype=pl.Int64)


def _utf8(path: Path) -> str:
    data = path.read_bytes()
    try:
        words = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}: line {line} is not UTF-8; save the table as UTF-8 text") from error
    if "\0" in words:
        raise DataError(f"{path}: this is not UTF-8 text; save the table as UTF-8 text")
    return words


def _check_separator(path: Path, header: Sequence[str], separator: str) -> None:
    if len(header) != 1:
        return
    for other, how in (
        (",", "call it .csv"),
        ("\t", "call it .tsv"),
        (";", "separate them by commas, with decimal points, not commas"),
    ):
        if other != separator and other in header[0]:
            raise DataError(f"{path}: the heading {header[0]!r} is one column, separated by {other!r}? Then {how}")


def _headings(path: Path, headings: Sequence[str]) -> list[str]:
    """Without surrounding space, and each once."""
    names = [heading.strip() for heading in headings]
    for place, name in enumerate(names):
        first = names.index(name)
        if first < place:
            space = "" if headings[first] == headings[place] else ", but for the space around it"
            raise DataError(
                f"{path}: two columns are called {name!r}{space} (the {first + 1}. and the {place + 1}.); "
                "rename one of them"
            )
    check_columns(path, names)
    return names
