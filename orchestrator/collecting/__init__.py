"""A results table from the runs that W&B holds, of Upshot's own studies and, by a mapping, of anybody's."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from models.errors import DataError, UserError
from orchestrator.collecting.columns import find_columns, read_columns
from orchestrator.collecting.rows import ACCURACIES, Row, is_own, mapped_rows, own_rows
from orchestrator.results import SCHEMA, read_results
from orchestrator.tracking.reading import ReadRuns

__all__ = ["Collected", "collect_runs", "project_of", "read_columns"]

KEY = ("task", "protocol", "shots", "step")
ORDER = ("cell_id", "step", "task", "protocol", "shots", "draw", "layer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """A results table and how it came about.

    Args:
        results: of `orchestrator.results.SCHEMA`, sorted as a study's own.
        studies: those whose own results table, logged as an artifact, was taken.
        reasons: why rows have no upstream or downstream accuracy, and how many.
        unfinished: runs that have not ended well, by state: their rows are of no last checkpoint.
        left_out: runs that gave no row, by reason.
        empty: columns that were asked for and have no value in some rows, and in how many.
    """

    results: pl.DataFrame
    studies: list[str]
    reasons: dict[str, int]
    unfinished: dict[str, int]
    left_out: dict[str, int]
    empty: dict[str, int]


def project_of(text: str) -> tuple[str, str]:
    """The entity and project of `wandb:ENTITY/PROJECT`.

    Raises:
        UserError: it is written otherwise.
    """
    kind, _, path = text.partition(":")
    parts = path.split("/")
    if kind != "wandb" or len(parts) != 2 or not all(parts):
        raise UserError(f"--from {text}: write it as wandb:ENTITY/PROJECT, for example wandb:my-team/upshot")
    return parts[0], parts[1]


def collect_runs(read: ReadRuns, columns: Mapping[str, str], *, percent: bool = False) -> Collected:
    """The results table of what was read: by the columns where there are some, else as Upshot mirrors its cells.

    Upshot's own: a study's results table is taken where it was logged, and of its runs those of cells that are not in
    it, or have been judged further since.

    Args:
        read: the runs.
        columns: THEIRS by OURS (`collecting.columns`); none for Upshot's own runs.
        percent: whether the runs' accuracies are per cents.

    Raises:
        UserError: no run has what is needed, or a column that is unknown.
        DataError: an accuracy outside [0, 1], two runs of one cell, a damaged table.
    """
    if columns:
        mapping = find_columns(columns, read.runs)
        rows = mapped_rows(read.runs, mapping, percent=percent)
        unfinished = Counter(run.state for run in read.runs if run.state != "finished")
        table = _table(rows)
        empty = {name: table[name].null_count() for name in columns if name in SCHEMA and name not in ACCURACIES}
        return _collected(table, unfinished=unfinished, empty={name: num for name, num in empty.items() if num})
    if percent:
        raise UserError("--percent: Upshot's own runs hold fractions; it belongs to --column")
    return _own(read)


def _own(read: ReadRuns) -> Collected:
    tables = {group: _read_table(path) for group, path in read.tables.items()}
    there = {group: _judged(table) for group, table in tables.items()}
    own = [run for run in read.runs if is_own(run)]
    if not own and not tables:
        raise UserError(
            f"none of the {len(read.runs):,} runs is a cell of Upshot's; for runs that others logged tell which of "
            "their values is what: --column upstream_accuracy=val/acc1 --column downstream_accuracy:pets:5=pets_5shot"
        )
    rows_of: dict[str, list[Row]] = {run.run_id: [] for run in own}
    for row in own_rows(own):
        rows_of[row["cell_id"]].append(row)
    wanted = [run for run in own if not _is_in(rows_of[run.run_id], there.get(run.group or "", {}).get(run.run_id))]
    rows = [row for run in wanted for row in rows_of[run.run_id]]
    newer = [run.run_id for run in wanted if rows_of[run.run_id]]
    tables = {group: table.filter(~pl.col("cell_id").is_in(newer)) for group, table in tables.items()}
    with_rows = {row["cell_id"] for row in rows}
    left_out = {
        "no cell of Upshot's": len(read.runs) - len(own),
        "no downstream metric in their group": sum(run.run_id not in with_rows for run in wanted),
    }
    if not rows and not tables:
        raise UserError(f"none of the {len(own):,} cells has a downstream metric yet: nothing to collect")
    outcomes = [str(run.summary.get("outcome", "unknown")) for run in wanted if run.run_id in with_rows]
    return _collected(
        pl.concat([_table(rows), *tables.values()]).sort(ORDER, nulls_last=False),
        studies=sorted(tables),
        unfinished=Counter(outcome for outcome in outcomes if outcome not in ("done", "diverged")),
        left_out={why: number for why, number in left_out.items() if number},
    )


def _judged(table: pl.DataFrame) -> dict[str, set[tuple[Any, ...]]]:
    """By cell, (task, protocol, shots, step) of the rows that the study logged."""
    keys: dict[str, set[tuple[Any, ...]]] = {}
    for cell_id, *key in table.select("cell_id", *KEY).unique().iter_rows():
        keys.setdefault(cell_id, set()).add(tuple(key))
    return keys


def _is_in(rows: Sequence[Row], logged: set[tuple[Any, ...]] | None) -> bool:
    """Whether a table has the cell, and all that its run has come to since."""
    measured = {tuple(row[name] for name in KEY) for row in rows if row["downstream_accuracy"] is not None}
    return logged is not None and measured <= logged


def _read_table(path: Path) -> pl.DataFrame:
    table = read_results(path)
    names = table.collect_schema().names()
    if not {"cell_id", "task", *ACCURACIES[:2]} <= set(names):
        raise DataError(f"{path}: the results table that the study logged has other columns: {', '.join(names)}")
    absent = [pl.lit(None, kind).alias(name) for name, kind in SCHEMA.items() if name not in names]
    return table.with_columns(absent).select(pl.col(name).cast(kind) for name, kind in SCHEMA.items()).collect()


def _table(rows: Sequence[Row]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA).sort(ORDER, nulls_last=False)


def _collected(
    table: pl.DataFrame,
    *,
    studies: Sequence[str] = (),
    unfinished: Mapping[str, int],
    left_out: Mapping[str, int] | None = None,
    empty: Mapping[str, int] | None = None,
) -> Collected:
    without = table.filter(pl.any_horizontal(pl.col(ACCURACIES[:2]).is_null()))
    reasons = without.group_by(pl.col("reason").fill_null("no reason is told")).len().sort("len", descending=True)
    return Collected(
        results=table,
        studies=list(studies),
        reasons=dict(reasons.iter_rows()),
        unfinished=dict(unfinished),
        left_out=dict(left_out or {}),
        empty=dict(empty or {}),
    )
