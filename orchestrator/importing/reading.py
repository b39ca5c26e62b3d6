"""Published tables as they lie on disk, and their cells as text or numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from models.errors import DataError, UnknownNameError

SUFFIXES = (".csv", ".tsv", ".parquet")
MISSING = ("", "na", "n/a", "nan", "null", "none", "-", "--", "–", "—", "?")
"""What stands in a number column where there is no number, in lower case."""
NUMBER = r"^[+-]?(?:\d+(?:\.\d*)?|\.\d+|[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?)(?:[eE][+-]?\d+)?$"
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
        """
        if name not in self.frame.columns:
            raise UnknownNameError("column", name, self.frame.columns, f"in {self.label}")
        return self.frame[name]


def read_tables(paths: Sequence[Path]) -> list[Table]:
    """The tables of all files, in their order. Files with the same name are called by their paths.

    Raises:
        DataError: a file is given twice, cannot be read, is of an unknown kind, or holds no rows.
    """
    resolved = [path.resolve() for path in paths]
    twice = [path for i, path in enumerate(paths) if resolved[i] in resolved[:i]]
    if twice:
        raise DataError(f"{twice[0]}: this table is given twice")
    names = [path.name for path in paths]
    return [_read(path, path.name if names.count(path.name) == 1 else str(path)) for path in paths]


def text(series: pl.Series) -> pl.Series:
    """The values as text without surrounding space; null where there is none."""
    stripped = series.cast(pl.String).str.strip_chars()
    return stripped.set(stripped == "", None)


def numbers(series: pl.Series) -> tuple[pl.Series, pl.Series]:
    """(the values as numbers, null where there is none; which values are neither a number nor missing).

    A thousands comma is no part of a number: "1,014.45" is 1014.45.
    """
    if series.dtype.is_numeric():
        return series.cast(pl.Float64).fill_nan(None), series.is_null() & False
    words = text(series)
    is_number = words.str.contains(NUMBER).fill_null(False)
    is_missing = words.is_null() | words.str.to_lowercase().is_in(MISSING).fill_null(False)
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
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: a table is a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")
    try:
        if path.suffix == ".parquet":
            frame = pl.read_parquet(path)
        else:
            # As text: what is a number is decided by the whole column, and a bad value can be quoted.
            frame = pl.read_csv(path, separator="\t" if path.suffix == ".tsv" else ",", infer_schema=False)
        frame = frame.rename(str.strip)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: the table cannot be read: {str(error).splitlines()[0]}") from error
    rows = pl.Series("row", range(1, frame.height + 1), dtype=pl.Int64)
    if frame.width and path.suffix != ".parquet":
        blank = frame.select(pl.all_horizontal(pl.all().is_null())).to_series()
        frame, rows = frame.filter(~blank), rows.filter(~blank)
    if frame.is_empty():
        raise DataError(f"{path}: the table has no rows")
    # polars renames the second of two equal headings.
    twice = [name for name in frame.columns if f"{name}_duplicated_0" in frame.columns]
    if twice:
        raise DataError(f"{path}: two columns are called {twice[0]!r}; rename one of them")
    return Table(path, label, frame, rows)
