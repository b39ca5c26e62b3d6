"""Runs to rows of the results table, by a mapping or as Upshot's own mirrors say. Pure."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from models.errors import DataError
from orchestrator.collecting.columns import Columns, Source, TaskColumn
from orchestrator.results import AXIS_SCHEMA, SCHEMA
from orchestrator.tracking.curves import COUNTS, DEFAULT_PROTOCOL, TASK_VALUES, task_prefix
from orchestrator.tracking.kept_runs import LoggedRun, Scalar

Row = dict[str, Any]
Key = tuple[str, int | None, str | None]
"""Task, shots, protocol."""

ENDED: Final = "finished"
"""W&B's state of a run that came to its end; the others may hold values of the middle of training."""
DONE: Final = "done"
DIVERGED: Final = "diverged"
ACCURACIES: Final = ("upstream_accuracy", "downstream_accuracy", "downstream_class_accuracy")
MOST: Final = 2**63 - 1
"""The highest whole number that a column of the table holds."""
METRIC: Final = re.compile(r"downstream/(?P<task>.+)/(?:(?P<shots>\d+)shot|all)(?:/(?P<protocol>[^/]+))?/\w+")
"""The names that `tracking.curves.downstream_metrics` gives."""


@dataclass(frozen=True, slots=True)
class Value:
    """A value for a column, or why there is none."""

    value: Any
    reason: str | None = None


def mapped_rows(runs: Sequence[LoggedRun], columns: Columns, *, percent: bool) -> list[Row]:
    """A row for each run and each task and shots of the mapping, null with a reason where the run lacks an accuracy.

    Raises:
        DataError: an accuracy outside [0, 1], per cents that look like fractions, or two runs that are the same cell.
    """
    if percent:
        _check_percent(runs, columns)
    keys = dict.fromkeys(
        (column.task, column.shots, column.protocol)
        for column in columns.tasks
        if column.measure == "downstream_accuracy"
    )
    rows = [_mapped_row(run, columns, key, percent) for run in runs for key in keys]
    _check_once(rows, runs, len(keys))
    return rows


def _check_percent(runs: Sequence[LoggedRun], columns: Columns) -> None:
    """Upstream and downstream accuracies must go above one per cent somewhere; a single hard task need not."""
    for name in ACCURACIES:
        sources = [column.source for column in columns.tasks if column.measure == name]
        sources += [columns.plain[name]] if name in columns.plain else []
        logged = [source for source in sources if source.place != "value"]
        found = [typed(name, source.value(run), source.key, run.state).value for run in runs for source in logged]
        most = max((value for value in found if value is not None), default=0.0)
        if 0 < most <= 1:
            raise DataError(
                f"W&B: {name} is at most {most} in all runs ({', '.join(source.key for source in logged[:3])}), which"
                " looks like a fraction and not like a per cent: leave --percent out, or, where others are per cents,"
                " bring them to one unit"
            )


def _mapped_row(run: LoggedRun, columns: Columns, key: Key, percent: bool) -> Row:
    taken = {name: _mapped(run, name, source, percent) for name, source in columns.plain.items()}
    # What is said of all shots or protocols gives way to what is said of these.
    for column in sorted(columns.tasks, key=lambda column: (column.shots is not None, column.protocol is not None)):
        if _belongs(column, key):
            taken[column.measure] = _mapped(run, column.measure, column.source, percent)
    if taken.get("cell_id", Value(None)).value is None:
        taken["cell_id"] = Value(run.run_id)
    return _row(taken, key, last_checkpoint=run.state == ENDED)


def _belongs(column: TaskColumn, key: Key) -> bool:
    """Whether a task's column is of the row; shots and protocol that it does not name do not matter."""
    task, shots, protocol = key
    exact = column.measure == "downstream_accuracy"
    same_shots = column.shots == shots or (column.shots is None and not exact)
    same_protocol = column.protocol == protocol or (column.protocol is None and not exact)
    return column.task == task and same_shots and same_protocol


def _mapped(run: LoggedRun, name: str, source: Source, percent: bool) -> Value:
    given = source.value(run)
    found = typed(name, given, source.text if source.place == "value" else source.key, f"the run is {run.state}")
    if name not in ACCURACIES or found.value is None:
        return found
    value = found.value / 100 if percent else found.value
    if not 0 <= value <= 1:
        hint = "" if percent else " Accuracies are fractions: --percent takes them for per cents."
        raise DataError(f"W&B: {name} ({source.text}) of run {run.run_id!r} is {found.value}, outside [0, 1].{hint}")
    return Value(value)


def own_rows(runs: Sequence[LoggedRun]) -> list[Row]:
    """A row for each of Upshot's runs and each task, shots and protocol that its group has.

    Each is of the last layer, the mean over the draws: W&B holds no single draws, and no other layers.
    """
    keys: dict[str | None, dict[Key, None]] = {}
    for run in runs:
        keys.setdefault(run.group, {}).update(dict.fromkeys(_keys(run.summary)))
    return [_own_row(run, key) for run in runs for key in keys[run.group]]


def is_own(run: LoggedRun) -> bool:
    """Whether the run is the mirror of a cell."""
    return run.config.get("cell_id") == run.run_id and {"family", "size"} <= run.config.keys()


def _keys(summary: Mapping[str, Scalar]) -> Iterable[Key]:
    for name in summary:
        if match := METRIC.fullmatch(name):
            yield match["task"], int(match["shots"]) if match["shots"] else None, match["protocol"] or DEFAULT_PROTOCOL


def _own_row(run: LoggedRun, key: Key) -> Row:
    outcome = str(run.summary.get("outcome", "its outcome is unknown"))
    taken = {name: typed(name, run.config.get(name), f"config {name}", outcome) for name in ("cell_id", *AXIS_SCHEMA)}
    taken |= _shown(run, {"params": "params", "flops": "flops", **COUNTS}, outcome)
    if taken["num_layers"].value is not None:
        taken["layer"] = Value(taken["num_layers"].value - 1)  # the last one
    if outcome == DIVERGED:
        # What W&B shows is of the last checkpoint before; the cell's result is that it diverged.
        taken |= {name: Value(None, "training diverged") for name in ACCURACIES[:2]}
        return _row(taken, key, last_checkpoint=True)
    taken |= _shown(run, {"upstream_accuracy": "upstream/accuracy", "upstream_loss": "upstream/loss"}, outcome)
    taken |= _shown(run, {column: f"{task_prefix(*key)}/{name}" for column, name in TASK_VALUES.items()}, outcome)
    reason = run.summary.get(f"{task_prefix(*key)}/reason")
    if taken["downstream_accuracy"].value is None and reason is not None:
        taken["downstream_accuracy"] = Value(None, str(reason))
    if outcome == DONE:  # of others the newest record is not the newest checkpoint's
        taken |= _shown(run, {name: name for name in ("step", "examples_seen")}, outcome)
    return _row(taken, key, last_checkpoint=outcome == DONE)


def _shown(run: LoggedRun, names: Mapping[str, str], outcome: str) -> dict[str, Value]:
    """By column, what the run's summary has by that name, or its configuration."""
    return {
        column: typed(column, run.summary.get(name, run.config.get(name)), name, outcome)
        for column, name in names.items()
    }


def _row(taken: Mapping[str, Value], key: Key, *, last_checkpoint: bool) -> Row:
    reasons = [taken[name].reason for name in ACCURACIES[:2] if name in taken and taken[name].value is None]
    task, shots, protocol = key
    return {
        **dict.fromkeys(SCHEMA),
        **{name: found.value for name, found in taken.items()},
        "task": task,
        "shots": shots,
        "protocol": protocol,
        "last_layer": True,
        "last_checkpoint": last_checkpoint,
        "reason": "; ".join(dict.fromkeys(reason for reason in reasons if reason)) or None,
    }


def typed(name: str, given: Scalar | None, key: str, state: str) -> Value:
    """A run's value as its column's type, or None and why; NaN and infinities, also as texts, are none."""
    if given is None:
        return Value(None, f"W&B has no {key} ({state})")
    kind = SCHEMA[name]
    if kind is pl.String:
        # Of a number that some runs hold as 12 and others as 12.0, the same text.
        return Value(str(int(given)) if isinstance(given, float) and given.is_integer() else str(given))
    if kind is pl.Boolean:
        words = {"true": True, "false": False}
        is_known = str(given).lower() in words
        return Value(words[str(given).lower()]) if is_known else Value(None, f"{key} is no true or false")
    try:
        number = float(given)
    except ValueError:
        return Value(None, f"{key} is no number ({str(given)[:40]!r})")
    if isinstance(given, bool) or not math.isfinite(number):
        return Value(None, f"{key} is {given}")
    if kind is pl.Float64:
        return Value(number)
    whole = int(given) if isinstance(given, int) else int(number)
    if abs(whole) > MOST:
        return Value(None, f"{key} is too large ({given})")
    return Value(whole) if whole == number else Value(None, f"{key} is no whole number ({given})")


def _check_once(rows: Sequence[Row], runs: Sequence[LoggedRun], num_keys: int) -> None:
    """Each cell comes from one run."""
    cells: dict[str, str] = {}
    for row, run in zip(rows[::num_keys], runs, strict=True):
        first = cells.setdefault(row["cell_id"], run.run_id)
        if first != run.run_id:
            raise DataError(
                f"W&B: runs {first!r} and {run.run_id!r} are both cell {row['cell_id']!r}; map cell_id to what tells "
                "them apart, or leave it out: then it is the run's id"
            )
