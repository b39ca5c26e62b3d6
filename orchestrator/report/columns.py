"""The results table in the kinds of columns that the report counts on. Pure."""

import polars as pl

from orchestrator.conflicts import axes_of
from orchestrator.reduce import ACCURACIES, OPTIONAL

NAMES = ("cell_id", "task", "family")


def tidied(results: pl.DataFrame) -> pl.DataFrame:
    """The table with accuracies as numbers, names as text, and axes that can be written to a text file.

    A duration is a number of seconds, and what is binary is written in hexadecimal digits. The reducer has taken the
    table, so that every conversion is possible.
    """
    kinds: dict[str, type[pl.DataType]] = dict.fromkeys(ACCURACIES, pl.Float64)
    kinds |= {**dict.fromkeys(NAMES, pl.String), **OPTIONAL}
    known = [pl.col(name).cast(kind) for name, kind in kinds.items() if name in results.columns]
    axes = results.select(axes_of(results)).drop("family", strict=False)
    durations = [(pl.col(name).dt.total_microseconds() / 1e6) for name in axes.select(pl.selectors.duration()).columns]
    binaries = [pl.col(name).bin.encode("hex") for name in axes.select(pl.selectors.binary()).columns]
    return results.with_columns(*known, *durations, *binaries)
