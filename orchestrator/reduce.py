"""The results table to frontier, correlations and conflicts of every task and number of shots. Pure.

`selection` says which rows count and what is dropped. Accuracies are fractions in [0, 1].
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl

from models.errors import UserError
from orchestrator.answer import Settings, answer_task, method_text
from orchestrator.bars import Tell, tell_nobody
from orchestrator.effects import effects_of
from orchestrator.frontier import Loss, Points
from orchestrator.kept import answer_key
from orchestrator.pairs import pairs_of
from orchestrator.selection import select_cells

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, MutableMapping

# Cells x draws, of all tasks, below which processes take longer to start than they save; what else there is to do for a
# task counts as so many draws.
MUCH_WORK, OTHER_WORK = 30_000_000, 150


def reduce_study(
    results: pl.DataFrame | pl.LazyFrame,
    *,
    protocol: str | None = None,
    seed: int = 0,
    draws: int = 200,
    loss: Loss = "squared",
    points: Points = "vertices",
    at: float | None = None,
    workers: int = 1,
    kept: "MutableMapping[str, Any] | None" = None,
    tell: Tell = tell_nobody,
) -> dict[str, Any]:
    """`{"protocol": ..., "tasks": [...], "conflicts": {...}, "effects": {...}}`, ready for JSON.

    The protocol is that of all values (null where the table does not say); only `effects` compares it with others.
    Tasks are one object per task and shots, sorted; conflicts are those of `pairs_of`, effects those of `effects_of`.
    The keys of a task: task, shots, n, hull_vertices, hull (cell_id, upstream, downstream), fits (hull, rising, all:
    null, or the law with its intervals, errors and verdict), identifiable, verdict, reason (why it is not identifiable,
    in a few words; null where it is), reasons (all of them, in technical words), more_cells (how many would tell, see
    `more_cells_object`; null where it is told already, where that cannot be simulated, and below the largest number of
    shots), held_out (the error of every model and the best one, on the cells with the highest upstream accuracy),
    recipe (null with a recipe_reason where the hull does not reach), recipes_along (upstream: round accuracies along
    the hull; downstream_low, downstream_high: what a recipe truly reaches there, null where test-set sizes are
    unknown), spearman, kendall, conflicts, conflict_share (of all pairs; null where there is none),
    significant_conflicts (null where noise is unknown), significant_against (whose noise, in words), dropped (rows by
    reason), method. The order of the rows does not matter. A task with too few cells has null fits and a verdict that
    says so.

    Args:
        results: the results table, or an imported one (see `selection.REQUIRED` and `OPTIONAL`).
        protocol: which rows count; when it is not given the only one's, or ridge's where there are several.
        seed: of the bootstrap over cells, and of the permutations behind the effects.
        draws: of the bootstrap.
        loss: of the laws: squared, or Huber's.
        points: what the laws of hull and rising part are fitted to: the vertices, or 200 equal upstream steps.
        at: the upstream accuracy of the recipes; None for the best vertex of each hull.
        workers: at most this many processes, where there is enough to do; they change no number. With more than one, a
            script must be guarded by `if __name__ == "__main__"`, as `multiprocessing` demands.
        kept: answers of an earlier reduction (`orchestrator.kept`), which stand for tasks whose cells, settings and
            code are the same; afterwards it holds those of this reduction.
        tell: hears how many of the tasks that had to be answered are.

    Raises:
        DataError: the table is empty, lacks a column, has no row of the protocol (or of several but not of ridge, where
            none is given), holds a value that makes no sense (an accuracy outside [0, 1], an
            infinite axis, half a shot), or holds a cell twice or with two values of an axis.
        UserError: fewer than one draw, an unknown loss or kind of points, or no hull that reaches `at`.
    """
    settings = Settings(seed=seed, draws=draws, loss=loss, points=points, at=at)
    selection = select_cells(results, protocol)
    parts = selection.cells.partition_by("task", "shots", as_dict=True)
    groups = [parts.get(key, selection.cells.clear()) for key in selection.dropped]
    kept = {} if kept is None else kept
    method = method_text(selection.protocol, settings)
    asked = [replace(settings, asks_more=shots == selection.most_shots) for _, shots in selection.dropped]
    keys = [answer_key(group, how) for group, how in zip(groups, asked, strict=True)]
    by_key = dict(zip(keys, zip(groups, asked, strict=True), strict=True))
    new = {key: group for key, group in by_key.items() if key not in kept}
    with _answering(new.values(), workers) as made:
        tell("comparing cells", 0, 2)
        effects = effects_of(results, selection.cells, selection.protocol, seed=seed)
        tell("comparing cells", 1, 2)
        pairs = pairs_of(selection.cells)
        answers = {key: kept[key] for key in by_key if key in kept}
        for i, (key, answer) in enumerate(zip(new, made, strict=True)):
            tell("fitting tasks", i, len(new))
            answers[key] = answer
    kept.clear()
    kept.update(answers)
    tasks = [
        {"task": task, "shots": shots, **answers[key], "dropped": dropped, "method": method}
        for ((task, shots), dropped), key in zip(selection.dropped.items(), keys, strict=True)
    ]
    if at is not None and all(task["recipe"] is None for task in tasks):
        reasons: dict[str, list[str]] = {}
        for task in tasks:
            reasons.setdefault(task["recipe_reason"], []).append(task["task"])
        raise UserError("; ".join(f"{', '.join(dict.fromkeys(names))}: {text}" for text, names in reasons.items()))
    return {"protocol": selection.protocol, "tasks": tasks, "conflicts": pairs, "effects": effects}


@contextmanager
def _answering(
    groups: "Collection[tuple[pl.DataFrame, Settings]]", workers: int
) -> "Iterator[Iterator[dict[str, Any]]]":
    """The groups' answers in order, which other processes make meanwhile where there is enough to do."""
    work = sum((how.draws + OTHER_WORK) * group.height for group, how in groups)
    workers = min(workers, len(groups))
    if workers <= 1 or work < MUCH_WORK:
        yield (answer_task(group, how) for group, how in groups)
        return
    # Spawned, since a process that has run polars must not be forked.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        with _one_thread_each():
            made = pool.map(answer_task, *zip(*groups, strict=True))
        yield made


@contextmanager
def _one_thread_each() -> "Iterator[None]":
    """Processes that start meanwhile leave the other cores to each other."""
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS")}
    os.environ.update(dict.fromkeys(before, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
