"""The results table in the kinds of columns that report and lists of pairs count on. Pure."""

import polars as pl

from orchestrator.conflicts import axes_of
from orchestrator.selection import ACCURACIES, OPTIONAL

NAMES = ("cell_id", "task", "family")


def tidied(results: pl.LazyFrame) -> pl.LazyFrame:
    """The table with accuracies as numbers, names as text, and axes that can be written as text.

    A duration is a number of seconds, and what is binary is written in hexadecimal digits. The reducer has taken the
    table, so that every conversion is possible.
    """
    schema = results.collect_schema()
    kinds: dict[str, type[pl.DataType]] = dict.fromkeys(ACCURACIES, pl.Float64)
    kinds |= {**dict.fromkeys(NAMES, pl.String), **OPTIONAL}
    axes = [name for name in axes_of(schema.to_frame()) if name not in kinds]
    return results.with_columns(
        *(pl.col(name).cast(kind) for name, kind in kinds.items() if name in schema),
        *(pl.col(name).dt.total_microseconds() / 1e6 for name in axes if schema[name] == pl.Duration),
        *(pl.col(name).bin.encode("hex") for name in axes if schema[name] == pl.Binary),
    )
