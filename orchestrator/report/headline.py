"""The study in one paragraph of numbers, and one sentence for each task. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from orchestrator.more_cells import more_cells_text
from orchestrator.report.facts import Facts
from orchestrator.report.panels import shots_text
from orchestrator.report.words import count, listed, si

STATUSES = ("done", "diverged", "failed", "blocked", "running", "pending", "unknown", "new")


def paragraph(facts: Facts) -> str:
    """The study in numbers."""
    if facts.cells.is_empty():
        return "The study has no cells."
    return " ".join(filter(None, [_cells(facts), _states(facts), _models(facts), _judged(facts), _effort(facts)]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one task says at one number of shots: about what, the verdict; the best cell, and what more would tell."""

    about: str
    shots: int | None
    verdict: str
    best: str


def answers(facts: Facts) -> list[Answer]:
    """The answer of every task and number of shots."""
    best = best_cells(facts)
    return [
        Answer(
            about=", ".join(filter(None, [task["task"], shots_text(task["shots"])])),
            shots=task["shots"],
            verdict=task["verdict"],
            best=_best(task, best.get((task["task"], task["shots"]))),
        )
        for task in facts.tasks
    ]


def best_cells(facts: Facts) -> dict[tuple[str, int | None], dict[str, Any]]:
    """The best cell of every task and number of shots: `cell_id`, `downstream`, `upstream`."""
    top = facts.points.group_by("task", "shots").agg(pl.all().sort_by("downstream", "cell_id").last())
    return {(row["task"], row["shots"]): row for row in top.iter_rows(named=True)}


def has_text(cell: Mapping[str, Any]) -> str:
    """What a cell has: `0.819 at 0.295 upstream`."""
    return f"{cell['downstream']:.3f} at {cell['upstream']:.3f} upstream"


def _best(task: Mapping[str, Any], best: Mapping[str, Any] | None) -> str:
    more = more_cells_text(task)
    parts = [f"best cell: {has_text(best)}" if best else "", more]
    return f"({'; '.join(filter(None, parts))})" if any(parts) else ""


def _cells(facts: Facts) -> str:
    names = listed(list(facts.families))
    families = (
        f" of {names}" if len(facts.families) == 1 else f" of {len(facts.families)} families ({names})" if names else ""
    )
    axes = [axis for axis in facts.varying if axis != "family"]
    varying = f" over {listed(axes)}" if axes else ""
    return f"{count(facts.cells.height, 'cell')}{families}{varying}."


def _states(facts: Facts) -> str:
    if not facts.num_states:
        return "The results were imported."
    counts = dict(facts.cells["status"].drop_nulls().value_counts().iter_rows())
    known = [name for name in STATUSES if name in counts]
    return f"{listed([f'{counts[name]:,} {name}' for name in known])}." if known else ""


def _models(facts: Facts) -> str:
    parts = []
    if facts.params is not None:
        low, high = facts.params
        parts.append(f"from {si(low)} to {si(high)} parameters" if low != high else f"{si(low)} parameters each")
    upstream = facts.cells["upstream"].drop_nulls().to_list()
    if upstream:
        parts.append(f"upstream accuracy from {min(upstream):.3f} to {max(upstream):.3f}")
    text = ", ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _judged(facts: Facts) -> str:
    if not facts.tasks:
        return "No checkpoint has been judged downstream yet."
    shots = [str(shots) for shots in facts.shots if shots is not None]
    how = f" with {listed(shots)} image{'s' if shots != ['1'] else ''} a class" if shots else ""
    draws = f", {count(facts.num_draws, 'draw')} each" if shots and facts.num_draws else ""
    return f"Judged on {count(len(facts.task_names), 'task')}{how}{draws}."


def _effort(facts: Facts) -> str:
    seconds = facts.job_seconds
    return f"{seconds / 3600:.2f} job-hours." if facts.num_states and seconds else ""
