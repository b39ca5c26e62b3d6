"""Tasks that are paths, by the names that people read: on page and figures; the tables keep the paths. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import polars as pl

from orchestrator.names import short_names
from orchestrator.report.choices import Choices
from orchestrator.report.facts import Facts

PER_FRAME = ("task", "worst_task")
TASK_PAIRS = {"correlations": ["other"]}  # of other effects, that is a protocol


def with_short_tasks(facts: Facts) -> Facts:
    """The facts with the last part of each path, or as many as tell it apart; the same ones where no task is a path."""
    names = {task: short for task, short in short_names(facts.task_names).items() if task != short}
    if not names:
        return facts
    effects = {
        name: _renamed(frame, names, [*PER_FRAME, *TASK_PAIRS.get(name, [])]) for name, frame in facts.effects.items()
    }
    tasks = [{**task, "task": names.get(task["task"], task["task"])} for task in facts.tasks]
    return replace(
        facts,
        points=_renamed(facts.points, names),
        layers=_renamed(facts.layers, names),
        changes=_renamed(facts.changes, names),
        strongest=_renamed(facts.strongest, names),
        differing=_renamed(facts.differing, names),
        along=_renamed(facts.along, names),
        effects=effects,
        tasks=tasks,
        choices=_chosen(facts.choices, names),
    )


def _chosen(choices: Choices, names: Mapping[str, str]) -> Choices:
    renamed = [
        replace(choice, tasks=tuple(names.get(task, task) for task in choice.tasks)) for choice in choices.choices
    ]
    return replace(choices, choices=tuple(renamed))


def _renamed(frame: pl.DataFrame, names: Mapping[str, str], columns: Sequence[str] = PER_FRAME) -> pl.DataFrame:
    return frame.with_columns(pl.col(column).replace(dict(names)) for column in columns if column in frame.columns)
