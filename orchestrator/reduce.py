"""The results table to frontier, correlations and conflicts of every task and number of shots. Pure.

A cell counts with its last checkpoint, last layer, and the mean over its draws. A row without both accuracies is
dropped and counted by reason. Accuracies are fractions in [0, 1].
"""

import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from models.errors import DataError, UserError
from orchestrator import conflicts
from orchestrator.answer import Settings, answer_task, method_text
from orchestrator.effects import effects_of
from orchestrator.frontier import Loss, Points
from orchestrator.kept import answer_key

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

    TaskKey = tuple[str, int | None]

REQUIRED = ("cell_id", "task", "upstream_accuracy", "downstream_accuracy")
# Columns that imported tables may lack; a missing one is read as null everywhere.
OPTIONAL: dict[str, type[pl.DataType]] = {
    "shots": pl.Int64,
    "draw": pl.Int64,
    "protocol": pl.String,
    "last_checkpoint": pl.Boolean,
    "last_layer": pl.Boolean,
    "upstream_num_test": pl.Int64,
    "downstream_num_test": pl.Int64,
    "reason": pl.String,
}
CELL = ("task", "shots", "cell_id")
ACCURACIES = ("upstream_accuracy", "downstream_accuracy")
DEFAULT_PROTOCOL = "ridge"
# Cells x draws, of all tasks, below which processes take longer to start than they save.
MANY_DRAWS = 30_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What the reducer looks at.

    Args:
        cells: one row per task, shots and cell: task, shots, cell_id, upstream, downstream, upstream_num_test,
            downstream_num_test, the axes (`conflicts.axes_of`), params; best downstream accuracy first within a task.
        dropped: rows without a value, by reason, for each task and shots; every task and shots of the table is a key.
        protocol: the probe that the values come from; None where the table does not say.
    """

    cells: pl.DataFrame
    dropped: "dict[TaskKey, dict[str, int]]"
    protocol: str | None


def reduce_study(
    results: pl.DataFrame | pl.LazyFrame,
    *,
    seed: int = 0,
    draws: int = 200,
    loss: Loss = "squared",
    points: Points = "vertices",
    at: float | None = None,
    workers: int = 1,
    kept: "MutableMapping[str, Any] | None" = None,
) -> dict[str, Any]:
    """`{"tasks": [...], "effects": {...}}`, ready for JSON: one object per task and shots, sorted; `effects_of`.

    The keys of a task: task, shots, n, hull_vertices, hull (cell_id, upstream, downstream), fits (hull, rising, all:
    null, or the law with its intervals, errors and verdict), identifiable, verdict, held_out (the error of every model
    and the best one, on the cells with the highest upstream accuracy), recipe (null with a recipe_reason where the hull
    does not reach), spearman, kendall, conflicts, conflict_share (of all pairs; null where there is none),
    significant_conflicts (null where noise is unknown), significant_against (whose noise, in words), dropped (rows by
    reason), method. The order of the rows does not matter. A task with too few cells has null fits and a verdict that
    says so.

    Args:
        results: the results table, or an imported one (see `REQUIRED` and `OPTIONAL`).
        seed: of the bootstrap over cells, and of the permutations behind the effects.
        draws: of the bootstrap.
        loss: of the laws: squared, or Huber's.
        points: what the laws of hull and rising part are fitted to: the vertices, or 200 equal upstream steps.
        at: the upstream accuracy of the recipes; None for the best vertex of each hull.
        workers: at most this many processes, where there is enough to do; they change no number. With more than one, a
            script must be guarded by `if __name__ == "__main__"`, as `multiprocessing` demands.
        kept: answers of an earlier reduction (`orchestrator.kept`), which stand for tasks whose cells, settings and
            code are the same; afterwards it holds those of this reduction.

    Raises:
        DataError: the table is empty, lacks a column, holds an accuracy outside [0, 1], or holds a cell twice.
        UserError: fewer than one draw, an unknown loss or kind of points, or no hull that reaches `at`.
    """
    settings = Settings(seed=seed, draws=draws, loss=loss, points=points, at=at)
    selection = select_cells(results)
    groups = {
        (task, shots): group
        for (task, shots), group in selection.cells.partition_by("task", "shots", as_dict=True).items()
    }
    nothing = selection.cells.clear()
    method = method_text(selection.protocol, settings)
    answers = _known_answers([groups.get(key, nothing) for key in selection.dropped], settings, workers, kept)
    tasks = [
        {"task": task, "shots": shots, **answer, "dropped": dropped, "method": method}
        for ((task, shots), dropped), answer in zip(selection.dropped.items(), answers, strict=True)
    ]
    if at is not None and all(task["recipe"] is None for task in tasks):
        raise UserError("; ".join(f"{task['task']}: {task['recipe_reason']}" for task in tasks))
    return {"tasks": tasks, "effects": effects_of(results, selection.cells, selection.protocol, seed=seed)}


def _known_answers(
    groups: list[pl.DataFrame], settings: Settings, workers: int, kept: "MutableMapping[str, Any] | None"
) -> list[dict[str, Any]]:
    """Answers of an earlier reduction where nothing has changed, and new ones for the rest."""
    if kept is None:
        return _answers(groups, settings, workers)
    keys = [answer_key(group, settings) for group in groups]
    new = {key: group for key, group in zip(keys, groups, strict=True) if key not in kept}
    made = dict(zip(new, _answers(list(new.values()), settings, workers), strict=True))
    found = {key: made.get(key) or kept[key] for key in keys}
    kept.clear()
    kept.update(found)
    return [found[key] for key in keys]


def _answers(groups: list[pl.DataFrame], settings: Settings, workers: int) -> list[dict[str, Any]]:
    work = settings.draws * sum(group.height for group in groups)
    if min(workers, len(groups)) <= 1 or work < MANY_DRAWS:
        return [answer_task(group, settings) for group in groups]
    # Spawned, since a process that has run polars must not be forked.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(groups)), mp_context=context) as pool:
        return list(pool.map(answer_task, groups, repeat(settings)))


def controlled_conflicts(results: pl.DataFrame | pl.LazyFrame) -> pl.DataFrame:
    """What raising one axis did to both accuracies, over pairs of cells that differ on that axis only.

    Returns:
        A row per task, shots, axis and pair of values (`conflicts.CONTROLLED_SCHEMA`); empty where no axis is known.

    Raises:
        DataError: as `reduce_study`.
    """
    return conflicts.controlled_pairs(select_cells(results).cells)


def strongest_conflicts(results: pl.DataFrame | pl.LazyFrame, limit: int = 20) -> pl.DataFrame:
    """The strongest conflicts of each task and shots, at most `limit` of each, and how many are not listed.

    Returns:
        A row per conflict (`conflicts.STRONGEST_SCHEMA`), strongest first within a task.

    Raises:
        DataError: as `reduce_study`.
        UserError: a limit below 1.
    """
    if limit < 1:
        raise UserError(f"limit: {limit} given, at least 1 conflict must be listed")
    return conflicts.strongest_pairs(select_cells(results).cells, limit)


def select_cells(results: pl.DataFrame | pl.LazyFrame) -> Selection:
    """One value per task, shots and cell, and what had to be left out.

    Of a lazy table only the rows of last checkpoints and last layers come into memory.

    Raises:
        DataError: as `reduce_study`.
    """
    table, protocol = _choose_protocol(_complete(results.lazy()))
    _check_range(table)
    _check_test_sizes(table)
    has_values = pl.all_horizontal(pl.col(ACCURACIES).is_not_null())
    kept = table.filter(has_values)
    _check_unique(kept)
    return Selection(cells=_mean_over_draws(kept), dropped=_count_dropped(table, has_values), protocol=protocol)


def _complete(results: pl.LazyFrame) -> pl.DataFrame:
    """The rows of last checkpoints and last layers, with every optional column, and NaN as null."""
    columns = results.collect_schema().names()
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise DataError(f"results: no column {', '.join(missing)} (needed: {', '.join(REQUIRED)})")
    if not results.select(pl.len()).collect().item():
        raise DataError("results: the table is empty, so there is nothing to reduce")
    absent = {name: kind for name, kind in OPTIONAL.items() if name not in columns}
    try:
        last = [
            pl.col(name).cast(pl.Boolean).fill_null(True)
            for name in ("last_checkpoint", "last_layer")
            if name in columns
        ]
        lazy = (results.filter(*last) if last else results).with_columns(
            pl.col("cell_id", "task").cast(pl.String), pl.col(ACCURACIES).cast(pl.Float64).fill_nan(None)
        )
        table = (
            lazy.with_columns(pl.lit(None, kind).alias(name) for name, kind in absent.items())
            .with_columns(pl.col(name).cast(kind) for name, kind in OPTIONAL.items())
            .collect(engine="streaming")
        )
    except pl.exceptions.PolarsError as error:
        raise DataError(f"results: a column holds values of a wrong kind: {error}") from error
    if table.is_empty():
        raise DataError(
            "results: no row is of a last checkpoint and a last layer (columns last_checkpoint, last_layer)"
        )
    for name in ("cell_id", "task"):
        if table[name].has_nulls():
            raise DataError(f"results: {table[name].null_count()} rows have no {name}")
    return table


def _choose_protocol(table: pl.DataFrame) -> tuple[pl.DataFrame, str | None]:
    """Rows of one protocol: the only one, or ridge where there are several."""
    known = table["protocol"].unique().sort().to_list()
    if len(known) == 1:
        return table, known[0]
    if DEFAULT_PROTOCOL not in known:
        raise DataError(f"results: protocol {DEFAULT_PROTOCOL!r} is not among {known}; keep the rows of one of them")
    return table.filter(pl.col("protocol") == DEFAULT_PROTOCOL), DEFAULT_PROTOCOL


def _check_range(table: pl.DataFrame) -> None:
    for name in ACCURACIES:
        outside = table.filter(~pl.col(name).is_between(0.0, 1.0))
        if not outside.is_empty():
            row = outside.row(0, named=True)
            raise DataError(
                f"results: {name} {row[name]} of cell {row['cell_id']!r}, task {row['task']!r} is outside [0, 1] "
                f"({outside.height} such rows). Accuracies are fractions: import per cents with --percent."
            )


def _check_test_sizes(table: pl.DataFrame) -> None:
    for name in ("upstream_num_test", "downstream_num_test"):
        wrong = table.filter(pl.col(name) < 1)
        if not wrong.is_empty():
            row = wrong.row(0, named=True)
            raise DataError(
                f"results: {name} {row[name]} of cell {row['cell_id']!r}, task {row['task']!r}: at least 1 test image "
                "is needed; leave it empty where it is unknown"
            )


def _check_unique(kept: pl.DataFrame) -> None:
    """Each draw of a cell is there once, and all agree on the cell's upstream accuracy."""
    upstream = pl.col("upstream_accuracy")
    agree = kept.group_by(CELL).agg(same=upstream.min() == upstream.max())["same"].all()
    if agree and not kept.select(*CELL, "draw").is_duplicated().any():
        return
    groups = kept.group_by("task", "shots", "cell_id", maintain_order=True).agg(
        repeats=pl.struct("draw").is_duplicated().sum(), upstreams=pl.col("upstream_accuracy").n_unique()
    )
    repeated = groups.filter((pl.col("repeats") > 0) | (pl.col("upstreams") > 1))
    row = repeated.row(0, named=True)
    what = "rows of the same draw" if row["repeats"] else "different upstream accuracies"
    shots = "" if row["shots"] is None else f", {row['shots']} shots"
    raise DataError(
        f"results: cell {row['cell_id']!r} has {row['repeats'] or row['upstreams']} {what} for task "
        f"{row['task']!r}{shots} ({repeated.height} such cells); each cell counts once"
    )


def _mean_over_draws(kept: pl.DataFrame) -> pl.DataFrame:
    """One row per task, shots and cell.

    Sorted, so that means and bootstrap draws do not depend on the order of the rows.
    """
    extra = [*conflicts.axes_of(kept), *(["params"] if "params" in kept.columns else [])]
    return (
        _in_order(kept, (*CELL, "draw"))
        .group_by(CELL, maintain_order=True)
        .agg(
            upstream=pl.col("upstream_accuracy").first(),
            downstream=pl.col("downstream_accuracy").mean(),
            upstream_num_test=pl.col("upstream_num_test").first(),
            downstream_num_test=pl.col("downstream_num_test").first(),
            **{name: pl.col(name).first() for name in extra},
        )
        .sort("task", "shots", "downstream", "upstream", "cell_id", descending=[False, False, True, True, False])
    )


def _in_order(table: pl.DataFrame, names: "Sequence[str]") -> pl.DataFrame:
    """The rows sorted by some columns, nulls first: by one number, since millions of rows by several columns take long.

    The names in a column, and its numbers, are few.
    """
    place = np.zeros(table.height, dtype=np.int64)
    for name in names:
        values = table[name].drop_nulls().unique().sort()
        if values.dtype == pl.String:
            codes = table[name].cast(pl.Enum(values)).to_physical()
        else:
            codes = values.search_sorted(table[name])
        place = place * (values.len() + 1) + np.where(table[name].is_null(), 0, codes.fill_null(0).to_numpy() + 1)
    return table[np.argsort(place, kind="stable")]


def _count_dropped(table: pl.DataFrame, has_values: pl.Expr) -> "dict[TaskKey, dict[str, int]]":
    upstream, downstream = (pl.col(name) for name in ACCURACIES)
    reason = (
        pl.when(pl.col("reason").is_not_null())
        .then("reason")
        .when(upstream.is_null() & downstream.is_null())
        .then(pl.lit("no upstream and no downstream accuracy"))
        .when(upstream.is_null())
        .then(pl.lit("no upstream accuracy"))
        .otherwise(pl.lit("no downstream accuracy"))
    )
    counts: dict[TaskKey, Counter[str]] = {
        key: Counter() for key in table.select("task", "shots").unique().sort("task", "shots").iter_rows()
    }
    for task, shots, why in table.filter(~has_values).select("task", "shots", reason.alias("why")).iter_rows():
        counts[task, shots][why] += 1
    return {key: dict(sorted(counter.items())) for key, counter in counts.items()}
