"""The report's tables as CSV, parquet, Markdown and LaTeX."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from orchestrator.files import write_atomically
from orchestrator.frontier import METHODS
from orchestrator.report.facts import Facts
from orchestrator.report.latex import latex

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


SUMMARY_SCHEMA: dict[str, type[pl.DataType]] = {
    "task": pl.String,
    "shots": pl.Int64,
    "cells": pl.Int64,
    "vertices": pl.Int64,
    "best": pl.Float64,
    "saturation": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "spearman": pl.Float64,
    "conflicts": pl.Float64,
    "significant": pl.Float64,
}
CAPTIONS = {
    "summary": "Saturation values with 95 % intervals where the data identify them, and shares of conflicting pairs.",
    "fits": "Fits of the law to the hull, to its rising part and to all cells.",
    "results": "Upstream and downstream accuracy of every cell.",
    "conflicts": "The strongest conflicts: pairs of cells of which one is better upstream and worse downstream.",
    "conflict_axes": "The axes in which cells of conflicting pairs differ.",
    "measures_along": "How each measure goes with upstream accuracy, and with downstream accuracy beyond it.",
    "attempts": "Every attempt, with its hours.",
    "operations": "What each stage of each cell was planned to take, took and lost, by accelerator.",
    "axes": "What raising one axis does, all else equal.",
    "layers": "Mean accuracy of the probe at every layer.",
    "measures": "Measures of each cell's last checkpoint on the held-out upstream images.",
    "cells": "All cells.",
    "effects_axes": "Whether an axis adds information once upstream accuracy is known.",
    "effects_directions": "Directions of both accuracies from the lowest to the highest value of an axis.",
    "effects_best_cells": "The best cell of every task, and what the best cell upstream loses there.",
    "effects_regret": "What a single cell for all tasks loses.",
    "effects_correlations": "Rank correlation of every two tasks.",
    "effects_layers": "The best layer, its gain over the last one, and its drift with upstream accuracy.",
    "effects_coverage": "Hyper-parameter settings by family and size.",
    "effects_best_of_k": "Expected best accuracy of k random settings.",
    "effects_protocols": "Rank correlation and mean difference of protocols.",
}


def write_tables(facts: Facts, folder: Path) -> list[Path]:
    """Writes every table in four formats; the paths written, in order.

    Raises:
        OSError: the folder cannot be written.
    """
    named = {
        "summary": summary_table(facts.tasks),
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
    return [path for name, table in named.items() for path in write_table(table, name, CAPTIONS[name], folder)]


def write_table(table: pl.DataFrame, name: str, caption: str, folder: Path) -> list[Path]:
    """Writes one table in four formats; the paths written.

    Raises:
        OSError: the folder cannot be written.
    """
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    formats: dict[str, str | bytes] = {
        "csv": table.write_csv(),
        "parquet": buffer.getvalue(),
        "md": markdown(table, name),
        "tex": latex(table, name, caption),
    }
    for suffix, data in formats.items():
        write_atomically(folder / f"{name}.{suffix}", data)
    return [folder / f"{name}.{suffix}" for suffix in formats]


def summary_table(tasks: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """One row per task and shots (`SUMMARY_SCHEMA`), short enough for a paper: accuracies and shares to four digits.

    What the data do not identify is null.
    """
    rows = []
    for task in tasks:
        fit = task["fits"]["hull"] if task["identifiable"] else None
        pairs = task["n"] * (task["n"] - 1) // 2
        significant = task["significant_conflicts"]
        row = {
            "task": task["task"],
            "shots": task["shots"],
            "cells": task["n"],
            "vertices": task["hull_vertices"],
            "best": max((vertex["downstream"] for vertex in task["hull"]), default=None),
            "spearman": task["spearman"],
            "conflicts": task["conflict_share"],
            "significant": None if significant is None or not pairs else significant / pairs,
        }
        if fit is not None:
            row |= {"saturation": 1 - fit["e_ir"], "low": 1 - fit["e_ir_high"], "high": 1 - fit["e_ir_low"]}
        rows.append(row)
    return pl.DataFrame(rows, schema=SUMMARY_SCHEMA).with_columns(pl.selectors.float().round(4))


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
