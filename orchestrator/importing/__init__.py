"""Any published table to a results table that the reducer and the report read.

One file, or several that are joined one to one on their ids. `columns` says how columns are named, `reading` what a
number is, `joining` what becomes of rows without a partner.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from models.errors import DataError, UserError
from orchestrator.bars import Tell, tell_nobody
from orchestrator.files import write_atomically
from orchestrator.importing.columns import (
    Source,
    downstream_sources,
    left_out,
    may_be_axis,
    pick_axes,
    sizes_by_task,
    split_names,
    upstream_source,
)
from orchestrator.importing.joining import CELL, accuracies, cell_ids, join_axes, join_task
from orchestrator.importing.long import split_by_task
from orchestrator.importing.measured import MEASURED, pick_measured
from orchestrator.importing.reading import Table, read_tables

Unit = Literal["fraction", "percent"]
ACCURACIES = ("upstream_accuracy", "downstream_accuracy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What became of a table's rows.

    Args:
        table: its file.
        rows: how many it has.
        only_here: cells that the table of the upstream accuracy has not; empty for that table itself.
        only_upstream: cells that only the table of the upstream accuracy has.
        left_out: columns that were not taken over.
        possible: those of them that could be axes.
    """

    table: str
    rows: int
    only_here: list[str]
    only_upstream: list[str]
    left_out: list[str]
    possible: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedTask:
    """Where a task's accuracies came from, how many cells have both, and rows without one by reason."""

    task: str
    table: str
    column: str
    num_test: int | None
    rows: int
    complete: int
    reasons: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A results table and how it came about.

    Args:
        results: a row per task and cell, sorted: cell_id, task, shots, both accuracies and numbers of test images,
            reason (why an accuracy is null), params and flops where the tables have them, and the axes.
        upstream: table and column of the upstream accuracy.
        axes: the columns of `results` that are axes.
        measured: params and flops, where they were taken over.
        unusable: those that were not, and why.
        tasks: in the order of `results`.
        tables: in the order in which they were given.
    """

    results: pl.DataFrame
    upstream: tuple[str, str]
    axes: list[str]
    measured: list[str]
    unusable: dict[str, str]
    tasks: list[ImportedTask]
    tables: list[Joined]


def import_tables(
    paths: Sequence[Path],
    *,
    ids: Sequence[str],
    upstream: str,
    downstream: Sequence[str],
    task: str | None = None,
    unit: Unit = "fraction",
    axes: Sequence[str] | None = None,
    upstream_num_test: int | None = None,
    downstream_num_test: Sequence[str] = (),
    shots: int | None = None,
    tell: Tell = tell_nobody,
) -> Imported:
    """The results table of published tables. It does not depend on the order of rows.

    Args:
        paths: CSV, TSV or parquet files, each with all id columns.
        ids: the columns that tell cells apart, as texts of comma-separated names.
        upstream: the column of the upstream accuracy, `[TABLE:]COL`; of the first table when none is named.
        downstream: the columns of downstream accuracies, as texts of comma-separated `[TASK=][TABLE:]COL`.
        task: the column that names each row's task, `[TABLE:]COL`, where a table has a row for each cell and task;
            `downstream` is one column then.
        unit: of all accuracies.
        axes: which further columns are axes, as texts of comma-separated names (see `columns.pick_axes`).
        upstream_num_test: number of upstream test images.
        downstream_num_test: `N` for all tasks, or texts of comma-separated `TASK=N`.
        shots: that the downstream accuracies were measured with.
        tell: hears how many tables are read, and how many axes and tasks are joined.

    Raises:
        DataError: a table cannot be read, is empty or malformed, or nothing of it joins.
        UnknownNameError: there is no such table, column or task.
        UserError: the columns make no sense together, or a number is below 1.
    """
    for name, number in (("--upstream-num-test", upstream_num_test), ("--shots", shots)):
        if number is not None and number < 1:
            raise UserError(f"{name}: {number} given, at least 1 makes sense")
    tables = read_tables(paths, tell)
    keys = split_names(ids, tables)
    wanted = None if axes is None else split_names(axes, tables)
    if task is None:
        above = upstream_source(upstream, tables)
        below = downstream_sources(downstream, tables, above)
    else:
        tables, above, below = split_by_task(task, tables, keys, upstream, downstream)
    sources = [above, *below]
    results_of_rows = [source.column for source in sources]
    picked = pick_axes(wanted, tables, keys, sources)
    measured, unusable = pick_measured(tables, [*keys, *results_of_rows])
    taken = [*measured, *picked]
    sizes = sizes_by_task(downstream_num_test, [source.task for source in below])
    _check_used(tables, sources, taken, keys)
    cells = cell_ids(tables, keys, results_of_rows)
    first_cells = cells[tables.index(above.table)]
    joins = [_join(table, at, above, first_cells) for table, at in zip(tables, cells, strict=True)]

    def side(source: Source) -> tuple[Source, pl.Series, pl.Series]:
        return source, cells[tables.index(source.table)], accuracies(source, percent=unit == "percent")

    first, axes_of_cells = side(above), join_axes(tables, cells, keys, taken, tell)
    axes_of_cells = axes_of_cells.with_columns(pl.col(name).cast(MEASURED[name]) for name in measured)
    rows = []
    for i, source in enumerate(sorted(below, key=lambda source: source.task)):
        tell("joining tasks", i, len(below))
        rows.append(
            join_task(first, side(source))
            .with_columns(
                task=pl.lit(source.task),
                shots=pl.lit(shots, pl.Int64),
                upstream_num_test=pl.lit(upstream_num_test, pl.Int64),
                downstream_num_test=pl.lit(sizes.get(source.task), pl.Int64),
            )
            .join(axes_of_cells, on=CELL, how="left")
            .select(CELL, "task", "shots", *_in_pairs(), "reason", *taken)
            .sort(CELL)
        )
    results = pl.concat(rows)
    _check_several(results)
    return Imported(
        results=results,
        upstream=(above.table.label, above.column),
        axes=picked,
        measured=measured,
        unusable=unusable,
        tasks=sorted((_told(source, results, sizes) for source in below), key=lambda told: told.task),
        tables=[
            Joined(
                table=table.label,
                rows=table.frame.height,
                only_here=only_here,
                only_upstream=only_upstream,
                left_out=others,
                possible=[name for name in others if may_be_axis(tables, name)],
            )
            for table, (only_here, only_upstream) in zip(tables, joins, strict=True)
            for others in [left_out(table, keys, taken, sources)]
        ],
    )


def write_results(results: pl.DataFrame, path: Path) -> None:
    """Writes a results table as parquet, whole or not at all.

    Raises:
        UserError: the name does not end in .parquet, or the file cannot be written.
    """
    if path.suffix != ".parquet":
        raise UserError(f"--output {path}: a results table is a .parquet file")
    buffer = io.BytesIO()
    results.write_parquet(buffer)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise UserError(f"--output {path}: it cannot be written: {error}") from error


def to_json(imported: Imported) -> dict[str, Any]:
    """Everything but the results themselves, ready for JSON."""
    table, column = imported.upstream
    return {
        "rows": imported.results.height,
        "cells": imported.results[CELL].n_unique(),
        "upstream": {"table": table, "column": column},
        "axes": imported.axes,
        "measured": imported.measured,
        "unusable": imported.unusable,
        "tasks": [{name: getattr(task, name) for name in ImportedTask.__slots__} for task in imported.tasks],
        "tables": [{name: getattr(joined, name) for name in Joined.__slots__} for joined in imported.tables],
    }


def _in_pairs() -> tuple[str, ...]:
    return tuple(name for side in ("upstream", "downstream") for name in (f"{side}_accuracy", f"{side}_num_test"))


def _join(table: Table, at: pl.Series, above: Source, first: pl.Series) -> tuple[list[str], list[str]]:
    """(cells of the table only, cells of the upstream's table only); `at` and `first` are their cells."""
    only_here, only_upstream = (one.filter(~one.is_in(other.implode())) for one, other in ((at, first), (first, at)))
    if only_here.len() == at.len():
        raise DataError(
            f"{table.label}: none of its {at.len():,} ids is in {above.table.label}: the ids look like "
            f"{at.sort()[0]!r} here and like {first.sort()[0]!r} there"
        )
    return only_here.sort().to_list(), only_upstream.sort().to_list()


def _check_used(tables: Sequence[Table], sources: Sequence[Source], axes: Sequence[str], ids: Sequence[str]) -> None:
    for table in tables:
        used = {source.column for source in sources if source.table is table} | set(axes) - set(ids)
        if not used & set(table.frame.columns):
            raise UserError(f"{table.label}: neither an accuracy nor an axis is taken from this table; leave it out")


def _check_several(results: pl.DataFrame) -> None:
    whole = results.drop_nulls(ACCURACIES)
    most = int(whole.group_by("task").len()["len"].max() or 0)  # type: ignore[arg-type]  # of an integer column
    if most < 2:
        found = f"only one cell, {whole[CELL][0]!r}, has" if most else "no cell has"
        raise DataError(f"{found} an upstream and a downstream accuracy; a frontier takes at least two")


def _told(source: Source, results: pl.DataFrame, sizes: dict[str, int]) -> ImportedTask:
    rows = results.filter(pl.col("task") == source.task)
    reasons = rows.drop_nulls("reason").group_by("reason").len().sort("reason")
    return ImportedTask(
        task=source.task,
        table=source.table.label,
        column=source.column,
        num_test=sizes.get(source.task),
        rows=rows.height,
        complete=rows.drop_nulls(ACCURACIES).height,
        reasons=dict(reasons.iter_rows()),
    )
