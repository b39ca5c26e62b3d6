"""The two sides of a comparison: studies, or results tables that belong to none."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from models.errors import UserError
from orchestrator.columns import tidied
from orchestrator.names import short_names
from orchestrator.reduce import reduce_study
from orchestrator.reduce_command import is_table
from orchestrator.results import read_results
from orchestrator.selection import select_cells
from orchestrator.session import open_submitted

TaskKey = tuple[str, int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One study, reduced.

    Args:
        name: the study's, or that of the table's file.
        source: where it is.
        upstream: the upstream data set; None where a table does not say.
        protocol: whose values these are; None where a table does not say.
        cells: one row per task, shots and cell (`selection.Selection.cells`).
        tasks: the reducer's objects by task and shots.
    """

    name: str
    source: Path
    upstream: str | None
    protocol: str | None
    cells: pl.DataFrame
    tasks: dict[TaskKey, dict[str, Any]]

    def at(self, key: TaskKey) -> pl.DataFrame:
        """The cells of one task and number of shots."""
        task, shots = key
        return self.cells.filter(pl.col("task") == task, pl.col("shots").eq_missing(pl.lit(shots, pl.Int64)))


def open_sides(sources: Sequence[Path], runs: Path, **options: Any) -> tuple[Side, Side]:
    """Both sides, with names that tell them apart.

    Args:
        sources: two study files, study folders or results tables (parquet).
        runs: where study folders are kept.
        options: of `reduce_study`.

    Raises:
        UserError: not two of them, the same one twice, or one that cannot be opened.
        DataError: results that cannot be reduced.
    """
    if len(sources) != 2:
        named = ", ".join(map(str, sources))
        raise UserError(f"report takes one study or table, or two to compare them; {len(sources)} given: {named}")
    a, b = (_open(source, runs, options) for source in sources)
    if a.source == b.source:
        raise UserError(f"{sources[0]} and {sources[1]} are the same: {a.source}; a comparison needs two")
    if a.name == b.name:
        names = short_names([str(side.source.with_suffix("")) for side in (a, b)])
        a, b = (replace(side, name=names[str(side.source.with_suffix(""))]) for side in (a, b))
    return a, b


def _open(source: Path, runs: Path, options: dict[str, Any]) -> Side:
    if is_table(source):
        results = read_results(source).collect()
        if results.is_empty():
            raise UserError(f"{source}: the table has no rows, so there is nothing to compare")
        reduced = reduce_study(results, **options)
        return _side(source.stem, source.resolve(), None, results, reduced)
    session = open_submitted(source, runs)
    results = session.collect().collect()
    if results.is_empty():
        raise UserError(f"{source}: no checkpoint of this study has been judged yet, so there is nothing to compare")
    reduced = session.reduce(results, session.observe().states, **options)
    study = session.file.study
    return _side(study.name, session.store.root.resolve(), str(study.upstream.dataset), results, reduced)


def _side(name: str, source: Path, upstream: str | None, results: pl.DataFrame, reduced: dict[str, Any]) -> Side:
    selection = select_cells(tidied(results.lazy()), reduced["protocol"])
    return Side(
        name=name,
        source=source,
        upstream=upstream,
        protocol=selection.protocol,
        cells=selection.cells,
        tasks={(task["task"], task["shots"]): task for task in reduced["tasks"]},
    )
