"""The panels as compact JSON: every different column is there once, however many panels show it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from orchestrator.report.panels import Panel

SCALE = 10_000
"""Fractional numbers are stored as whole ten-thousandths: shorter, and as exact as any test set."""


class Columns:
    """Columns by content; adding one that is there gives its number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def add(self, column: pl.Series) -> int:
        """The number of the column."""
        return self._numbers.setdefault(_packed(column), len(self._numbers))

    def to_json(self) -> str:
        """The list of all columns."""
        return f"[{','.join(self._numbers)}]"


def pack(
    panels: Sequence[Panel], specs: Mapping[str, Any], plots: Mapping[str, Any], *, shots: int | None, canvas_from: int
) -> str:
    """The page's data: specifications by theme and chart, panels, plots, columns. Safe inside a script element.

    Args:
        panels: those that Vega draws.
        specs: by theme, then by kind.
        plots: what the page's own plots hold (`plot_data`).
        shots: which the page shows first.
        canvas_from: from how many points on a chart is drawn on a canvas.
    """
    columns = Columns()
    listed = [
        {
            "kind": panel.kind,
            "name": panel.name,
            "shots": panel.shots,
            "title": panel.title,
            "note": panel.note,
            "tables": {
                name: {column.name: columns.add(column) for column in table} for name, table in panel.tables.items()
            },
        }
        for panel in panels
    ]
    about = _json(
        {"shots": shots, "scale": SCALE, "canvas": canvas_from, "specs": specs, "plots": plots, "panels": listed}
    )
    return f'{about[:-1]},"columns":{columns.to_json()}}}'


def _packed(column: pl.Series) -> str:
    """`{"n": whole ten-thousandths}`, `{"same": value, "len": n}`, or a plain list."""
    if column.dtype.is_float():
        scaled = (column * SCALE).round().cast(pl.Int64).to_list()
        return _json({"n": scaled})
    values = column.to_list()
    if len(values) > 1 and len(set(values)) == 1:
        return _json({"same": values[0], "len": len(values)})
    return _json(values)


def _json(value: object) -> str:
    # "<" could end the script element that holds this, or open a comment in it.
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
