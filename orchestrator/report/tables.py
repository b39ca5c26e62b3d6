"""The report's tables as CSV, parquet and Markdown."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from orchestrator.files import write_atomically
from orchestrator.frontier import METHODS
from orchestrator.report.facts import Facts

SPECIAL = "\\|[]*`$"  # the backslash first; what makes links, pictures, emphasis, code, formulas
MARKDOWN_ROWS = 1000  # more rows are nothing to read; the note under the table counts them

FITS_SCHEMA: dict[str, type[pl.DataType]] = {
    "task": pl.String,
    "shots": pl.Int64,
    "fit": pl.String,
    "n": pl.Int64,
    "hull_vertices": pl.Int64,
    "k": pl.Float64,
    "alpha": pl.Float64,
    "alpha_low": pl.Float64,
    "alpha_high": pl.Float64,
    "e_ir": pl.Float64,
    "e_ir_low": pl.Float64,
    "e_ir_high": pl.Float64,
    "rmse": pl.Float64,
    "held_out_rmse": pl.Float64,
    "at_bound": pl.String,
    "draws_failed": pl.Int64,
    "interval_over": pl.String,
    "loss": pl.String,
    "huber_delta": pl.Float64,
    "points": pl.String,
    "identifiable": pl.Boolean,
    "verdict": pl.String,
    "spearman": pl.Float64,
    "kendall": pl.Float64,
    "conflicts": pl.Int64,
    "significant_conflicts": pl.Int64,
    "method": pl.String,
}


def write_tables(facts: Facts, folder: Path) -> list[Path]:
    """Writes every table in three formats; the paths written, in order.

    Raises:
        OSError: the folder cannot be written.
    """
    named = {
        "fits": fits_table(facts.tasks),
        "results": facts.points.join(
            facts.cells.drop("upstream", "text"), on="cell_id", how="left", maintain_order="left"
        ),
        "conflicts": facts.strongest,
        "conflict_axes": facts.differing,
        "axes": facts.changes,
        "layers": facts.layers,
        "measures": facts.measures,
        "measures_along": facts.along,
        "cells": facts.cells.drop("text"),
        **_operations_tables(facts),
        **{f"effects_{name}": frame for name, frame in facts.effects.items()},
    }
    written = []
    for name, table in named.items():
        buffer = io.BytesIO()
        table.write_parquet(buffer)
        for suffix, data in (("csv", table.write_csv()), ("parquet", buffer.getvalue()), ("md", markdown(table, name))):
            path = folder / f"{name}.{suffix}"
            write_atomically(path, data)
            written.append(path)
    return written


def _operations_tables(facts: Facts) -> dict[str, pl.DataFrame]:
    """Every attempt; and what each stage of each cell was planned to take, took and lost, by accelerator."""
    took = facts.operations
    if took is None:
        return {}
    keys = ["cell_id", "stage", "kind", "accelerator"]
    sums = took.attempts.group_by(keys).agg(
        pl.col("seconds", "hours", "lost_hours").sum(),
        *(pl.when(pl.col(name).count() > 0).then(pl.col(name).sum()).alias(name) for name in ("price", "lost_price")),
        attempts=(pl.col("attempt") > 0).sum(),
        died=(pl.col("outcome") == "died").sum(),
        waited_seconds=pl.col("waited_seconds").max(),
    )
    planned = took.planned.group_by(keys).agg(pl.col("planned_hours").sum())
    rows = planned.join(sums, on=keys, how="full", coalesce=True, nulls_equal=True)
    rows = rows.join(took.files.select("cell_id", "images_per_second", "mfu"), on="cell_id", how="left")
    cells = facts.cells.select("cell_id", *facts.varying)
    operations = rows.join(cells, on="cell_id", how="left").sort("cell_id", "stage", "accelerator")
    return {"attempts": took.attempts, "operations": operations}


def fits_table(tasks: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """One row per task, shots and fit (`FITS_SCHEMA`); a fit that could not be made is a row without numbers.

    Each fit has its own verdict; where there is no fit, it is that of the task.
    """
    rows = []
    for task in tasks:
        for name in METHODS:
            row = {**task, **(task["fits"][name] or {"identifiable": False}), "fit": name}
            row["at_bound"] = ", ".join(row.get("at_bound") or [])
            rows.append({column: row.get(column) for column in FITS_SCHEMA})
    return pl.DataFrame(rows, schema=FITS_SCHEMA)


def markdown(table: pl.DataFrame, title: str) -> str:
    """The first rows as a Markdown table, and how many more there are."""
    more = table.height - MARKDOWN_ROWS
    note = ["", f"{more:,} further rows are in {title}.csv."] if more > 0 else []
    return "\n".join([f"# {title}", "", *markdown_lines(table.head(MARKDOWN_ROWS)), *note, ""])


def markdown_lines(table: pl.DataFrame) -> list[str]:
    """The lines of a Markdown table."""
    heading = [_line(table.columns), _line("---" for _ in table.columns)]
    return heading + [_line(row) for row in table.iter_rows()]


def _line(values: Any) -> str:
    return f"| {' | '.join(_cell(value) for value in values)} |"


def _cell(value: object) -> str:
    """A value that stays in its cell and is shown as it is: no pipe, no line break, no HTML, link, code or formula."""
    if value is None:
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    for special in SPECIAL:
        text = text.replace(special, f"\\{special}")
    for special, safe in (("<", "&lt;"), ("\n", " "), ("\r", " ")):
        text = text.replace(special, safe)
    return text
