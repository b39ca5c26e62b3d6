"""The results table to frontier, correlations and conflicts of every task and number of shots. Pure.

`selection` says which rows count and what is dropped. Accuracies are fractions in [0, 1].
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from typing import TYPE_CHECKING, Any

import polars as pl

from models.errors import UserError
from orchestrator import conflicts
from orchestrator.answer import Settings, answer_task, method_text
from orchestrator.effects import effects_of
from orchestrator.frontier import Loss, Points
from orchestrator.kept import answer_key
from orchestrator.selection import Selection, select_cells

if TYPE_CHECKING:
    from collections.abc import MutableMapping

__all__ = ["Selection", "controlled_conflicts", "reduce_study", "select_cells", "strongest_conflicts"]

# Cells x draws, of all tasks, below which processes take longer to start than they save.
MANY_DRAWS = 30_000_000


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
        results: the results table, or an imported one (see `selection.REQUIRED` and `OPTIONAL`).
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
        DataError: the table is empty, lacks a column, holds a value that makes no sense (an accuracy outside [0, 1], an
            infinite axis, half a shot), or holds a cell twice or with two values of an axis.
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
