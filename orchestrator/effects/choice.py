"""Choosing a cell: the best of each task, the regret of one cell for all tasks, tasks that rank cells alike. Pure.

All accuracies are fractions in [0, 1]. Shape suffixes: N cells, T tasks.
"""

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from orchestrator.conflicts.counts import centred_ranks, rank_interval, spearman

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

BEST_CELLS_SCHEMA: dict[str, type[pl.DataType]] = {
    "task": pl.String,
    "shots": pl.Int64,
    "cell_id": pl.String,
    "upstream": pl.Float64,
    "downstream": pl.Float64,
    "equally_good": pl.Int64,
    "cells": pl.Int64,
    "upstream_rank": pl.Int64,
    "highest_upstream": pl.Int64,
    "lost_by_upstream": pl.Float64,
}
REGRET_SCHEMA: dict[str, type[pl.DataType]] = {
    "shots": pl.Int64,
    "cell_id": pl.String,
    "mean_regret": pl.Float64,
    "worst_regret": pl.Float64,
    "worst_task": pl.String,
    "mean_rank": pl.Int64,
    "worst_rank": pl.Int64,
    "tasks": pl.Int64,
    "complete_cells": pl.Int64,
    "incomplete_cells": pl.Int64,
    "not_listed": pl.Int64,
}
CORRELATIONS_SCHEMA: dict[str, type[pl.DataType]] = {
    "shots": pl.Int64,
    "task": pl.String,
    "other": pl.String,
    "n": pl.Int64,
    "spearman": pl.Float64,
    "spearman_low": pl.Float64,
    "spearman_high": pl.Float64,
}


def best_cells(cells: pl.DataFrame) -> pl.DataFrame:
    """The best cell of every task and shots: `BEST_CELLS_SCHEMA`.

    Of equally good cells the first by id stands for all, `equally_good` counts the others. `upstream_rank` is its place
    by upstream accuracy (1 is the highest; equal ones share the better place). `lost_by_upstream` is the accuracy that
    would be lost by taking the cell with the highest upstream accuracy instead: the mean over the `highest_upstream`
    cells that share it.
    """
    ranked = cells.with_columns(upstream_rank=pl.col("upstream").rank("min", descending=True).over("task", "shots"))
    best = (
        ranked.sort("task", "shots", "downstream", "cell_id", descending=[False, False, True, False])
        .group_by("task", "shots", maintain_order=True)
        .agg(
            pl.col("cell_id", "upstream", "downstream", "upstream_rank").first(),
            equally_good=(pl.col("downstream") == pl.col("downstream").max()).sum() - 1,
            cells=pl.len(),
            highest_upstream=(pl.col("upstream_rank") == 1).sum(),
            lost_by_upstream=pl.col("downstream").max()
            - pl.col("downstream").filter(pl.col("upstream_rank") == 1).mean(),
        )
    )
    return best.select(pl.col(name).cast(kind) for name, kind in BEST_CELLS_SCHEMA.items())


def regrets(cells: pl.DataFrame, limit: int) -> pl.DataFrame:
    """What using one cell for all tasks of a number of shots would cost: `REGRET_SCHEMA`, least mean regret first.

    A cell's regret on a task is the best accuracy there minus its own, among the cells that have all tasks; the others
    are counted in `incomplete_cells`. Listed are the `limit` cells with the least mean regret, and the one with the
    least worst regret; `not_listed` counts the rest. Where no cell has all tasks, one row without a cell says so.
    Shots with fewer than two tasks have no row.
    """
    frames = [pl.DataFrame(schema=REGRET_SCHEMA)]
    for group in cells.partition_by("shots", maintain_order=True):
        names, table = _by_task(group)
        if len(names) > 1:
            frames.append(_regrets(table.drop_nulls(), names, group["shots"][0], table.height, limit))
    return pl.concat(frames).sort("shots", "mean_rank", "cell_id")


def correlations(cells: pl.DataFrame) -> pl.DataFrame:
    """Rank correlation of every two tasks of a number of shots, over the cells that have both: `CORRELATIONS_SCHEMA`.

    Spearman's, with mean ranks for ties and its 95 % interval (`conflicts.rank_interval`); null where either task is
    constant.
    """
    rows = []
    for group in cells.partition_by("shots", maintain_order=True):
        names, table = _by_task(group)
        values = {name: table[str(i)].to_numpy() for i, name in enumerate(names)}
        whole = (
            {name: _unit(centred_ranks(values[name])) for name in names}
            if not table.null_count().sum_horizontal()[0]
            else {}
        )
        for task, other in combinations(names, 2):
            both_N = ~(np.isnan(values[task]) | np.isnan(values[other]))
            value = (
                _product(whole[task], whole[other]) if whole else spearman(values[task][both_N], values[other][both_N])
            )
            num = int(both_N.sum())
            rows.append((group["shots"][0], task, other, num, value, *rank_interval(value, num)))
    return pl.DataFrame(rows, schema=CORRELATIONS_SCHEMA, orient="row").sort("shots", "task", "other")


def _by_task(group: pl.DataFrame) -> tuple[list[str], pl.DataFrame]:
    """Tasks of one number of shots, and a row for each cell: cell_id, then a column for each task by number.

    By number, since a task may be called anything.
    """
    names = group["task"].unique().sort()
    numbered = group.select(
        "cell_id", "downstream", number=pl.col("task").replace_strict(names, range(len(names)), return_dtype=pl.Int64)
    )
    table = numbered.pivot("number", index="cell_id", values="downstream").sort("cell_id")
    return names.to_list(), table.select("cell_id", *map(str, range(len(names))))


def _regrets(complete: pl.DataFrame, names: list[str], shots: int | None, num_cells: int, limit: int) -> pl.DataFrame:
    counts = {
        "shots": pl.lit(shots, pl.Int64),
        "tasks": pl.lit(len(names)),
        "complete_cells": pl.lit(complete.height),
        "incomplete_cells": pl.lit(num_cells - complete.height),
    }
    if complete.is_empty():
        nothing = pl.DataFrame([dict.fromkeys(REGRET_SCHEMA)], schema=REGRET_SCHEMA)
        return nothing.with_columns(**counts, not_listed=pl.lit(0)).cast(dict(REGRET_SCHEMA.items()))
    accuracy_NT = complete.drop("cell_id").to_numpy()
    regret_NT = accuracy_NT.max(axis=0) - accuracy_NT
    mean = complete.select(
        "cell_id",
        mean_regret=pl.Series(regret_NT.mean(axis=1)),
        worst_regret=pl.Series(regret_NT.max(axis=1)),
        worst_task=pl.Series(names).gather(regret_NT.argmax(axis=1)),
    )
    ranked = (
        mean.sort("worst_regret", "mean_regret", "cell_id")
        .with_row_index("worst_rank", offset=1)
        .sort("mean_regret", "worst_regret", "cell_id")
        .with_row_index("mean_rank", offset=1)
    )
    listed = ranked.filter((pl.col("mean_rank") <= limit) | (pl.col("worst_rank") == 1))
    counted = listed.with_columns(**counts, not_listed=pl.lit(ranked.height - listed.height))
    return counted.select(pl.col(name).cast(kind) for name, kind in REGRET_SCHEMA.items())


def _unit(values_N: "Floats") -> "Floats":
    norm = np.sqrt(values_N @ values_N)
    unit_N: Floats = values_N / norm if norm > 0 else values_N * np.nan
    return unit_N


def _product(a_N: "Floats", b_N: "Floats") -> float | None:
    value = float(a_N @ b_N)
    return None if np.isnan(value) else value
