"""Columns that results tables have under their own names, `params` and `flops`: taken over if they make sense. Pure."""

from collections.abc import Sequence

import polars as pl

from orchestrator.importing.reading import Table, numbers

MEASURED: dict[str, type[pl.DataType]] = {"params": pl.Int64, "flops": pl.Float64}


def pick_measured(tables: Sequence[Table], used: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(those that are taken over, why others are not); none that is an id or an accuracy."""
    present = [name for name in MEASURED if name not in used and any(name in table.frame.columns for table in tables)]
    wrong = {name: why for name in present for why in [_why_not(tables, name)] if why is not None}
    return [name for name in present if name not in wrong], wrong


def _why_not(tables: Sequence[Table], name: str) -> str | None:
    """The first value that is no positive number, or no whole one."""
    needed = "whole number above 0" if MEASURED[name].is_integer() else "number above 0"
    for table in tables:
        if name not in table.frame.columns:
            continue
        if not table.is_plain(name):
            return f"{table.label}: it is of type {table.frame.schema[name]}"
        values, is_text = numbers(table.frame[name])
        is_number = values.is_finite() & (values > 0)
        if MEASURED[name].is_integer():
            is_number &= values % 1 == 0
        wrong = is_text | ~is_number.fill_null(True)
        if wrong.any():
            value = table.frame[name].filter(wrong)[0]
            return f"{table.label}, row {table.rows.filter(wrong)[0]}: {value!r} is no {needed}"
    return None
