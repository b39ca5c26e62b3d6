"""Tasks that are paths, by the names that people read: on page and figures; the tables keep the paths. Pure."""

from collections.abc import Mapping
from dataclasses import replace

import polars as pl

from orchestrator.names import short_names
from orchestrator.report.facts import Facts

PER_FRAME = ("task", "worst_task")
TASK_PAIRS = "correlations"  # the only effects whose `other` is a task


def with_short_tasks(facts: Facts) -> Facts:
    """The facts with the last part of each path, or as many as tell it apart; the same ones where no task is a path."""
    names = {task: short for task, short in short_names(facts.task_names).items() if task != short}
    if not names:
        return facts
    effects = {name: _renamed(frame, names, name == TASK_PAIRS) for name, frame in facts.effects.items()}
    frames = {name: _renamed(getattr(facts, name), names) for name in ("points", "layers", "changes", "strongest")}
    tasks = [{**task, "task": names.get(task["task"], task["task"])} for task in facts.tasks]
    return replace(facts, **frames, effects=effects, tasks=tasks)


def _renamed(frame: pl.DataFrame, names: Mapping[str, str], with_other: bool = False) -> pl.DataFrame:
    columns = [name for name in (*PER_FRAME, *(["other"] if with_other else [])) if name in frame.columns]
    return frame.with_columns(pl.col(column).replace(dict(names)) for column in columns)
