"""Which of a run's values fills which column of the results table. Pure.

A column is written OURS=THEIRS. OURS is a column of the table, or MEASURE:TASK[:SHOTS[:PROTOCOL]] for what each task
has. THEIRS is a key of a run's config or summary, `config:KEY` or `summary:KEY` where both have it, or `value:V`, the
same for all runs. {task} and {shots} in both stand for whatever fits: one such column maps any number of tasks.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Final, Literal

from models.errors import DataError, UnknownNameError, UserError
from orchestrator.results import AXIS_SCHEMA, SCHEMA
from orchestrator.tracking.kept_runs import LoggedRun, Scalar

TASK_MEASURES: Final = ("downstream_accuracy", "downstream_class_accuracy", "downstream_num_test")
"""Columns of which each task and shots has its own."""
COMPUTED: Final = ("task", "shots", "protocol", "draw", "layer", "last_layer", "last_checkpoint", "reason")
"""Columns that follow from the others and from the run's state."""
PLAIN: Final = tuple(name for name in SCHEMA if name not in (*TASK_MEASURES, *COMPUTED))
PLACES: Final = ("config", "summary", "value")
PLACEHOLDERS: Final = {"{task}": "(?P<task>.+?)", "{shots}": r"(?P<shots>[1-9]\d*)"}
NEAREST: Final = 5

Place = Literal["config", "summary", "value", "any"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value stands, "any" as long as that was not looked for; `text` is how the user wrote it."""

    place: Place
    key: str
    text: str

    def value(self, run: LoggedRun) -> Scalar | None:
        """The run's value; None where it has none."""
        if self.place == "value":
            return self.key
        return (run.config if self.place == "config" else run.summary).get(self.key)


@dataclass(frozen=True, slots=True)
class TaskColumn:
    """One measure of one task; None for shots and protocol that were not given."""

    measure: str
    task: str
    shots: int | None
    protocol: str | None
    source: Source


@dataclass(frozen=True, slots=True)
class Columns:
    """A mapping: of columns that a run has once, and of those that each task has."""

    plain: dict[str, Source]
    tasks: list[TaskColumn]


def read_columns(texts: Iterable[str], file: Path | None = None) -> dict[str, str]:
    """THEIRS by OURS, of a TOML file of OURS = "THEIRS" and of texts OURS=THEIRS, which go before the file.

    Raises:
        UserError: a text without =, a column that is given twice.
        DataError: the file cannot be read, or holds anything but texts.
    """
    given: dict[str, str] = {}
    for text in texts:
        ours, equals, theirs = (part.strip() for part in text.partition("="))
        if not (ours and equals and theirs):
            raise UserError(f"--column {text}: write it as OURS=THEIRS, for example upstream_accuracy=val/acc1")
        if ours in given:
            raise UserError(f"--column {text}: {ours} is given twice")
        given[ours] = theirs
    return {**(_read_file(file) if file else {}), **given}


def _read_file(path: Path) -> dict[str, str]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{path}: the columns cannot be read: {error}") from error
    wrong = next((key for key, value in table.items() if not isinstance(value, str) or not value), None)
    if wrong is not None:
        raise DataError(
            f'{path}: {wrong}: {table[wrong]!r} given; write each column as OURS = "THEIRS", quoted where OURS has a '
            'colon; a constant as "value:50000"'
        )
    return table


def find_columns(given: Mapping[str, str], runs: Sequence[LoggedRun]) -> Columns:
    """The mapping, with {task} and {shots} spelled out for the keys that the runs have.

    Raises:
        UnknownNameError: no such column in the results table.
        UserError: a key that no run has (the nearest known ones are told), shots that are no number, or no upstream or
            downstream accuracy.
    """
    keys = _Keys.of(runs)
    plain: dict[str, Source] = {}
    tasks: list[TaskColumn] = []
    for ours, theirs in given.items():
        measure, *rest = ours.split(":")
        source = _source(theirs)
        if measure in TASK_MEASURES:
            tasks += _task_columns(ours, measure, rest, source, keys)
        elif ours in PLAIN:
            plain[ours] = keys.placed(ours, source)
        else:
            known = [*PLAIN, *(f"{name}:TASK:SHOTS" for name in TASK_MEASURES)]
            why = f"in a mapping {theirs!r}" if ours not in COMPUTED else f"(it follows from the others, {theirs!r})"
            raise UnknownNameError("column", ours, known, why)
    if "upstream_accuracy" not in plain or not any(column.measure == "downstream_accuracy" for column in tasks):
        raise UserError(
            "the columns need an upstream_accuracy and a downstream_accuracy:TASK, for example --column "
            "upstream_accuracy=val/acc1 --column downstream_accuracy:pets:5=pets_5shot"
        )
    # What is something else already is no task, where a placeholder fits more keys than it was meant for.
    taken = {(source.place, source.key) for source in plain.values()}
    tasks = [c for c in tasks if not (_is_pattern(c.source.text) and (c.source.place, c.source.key) in taken)]
    _check_tasks(tasks)
    return Columns(plain, _without_repeats(tasks))


def _is_pattern(text: str) -> bool:
    return any(placeholder in text for placeholder in PLACEHOLDERS)


def _check_tasks(tasks: Sequence[TaskColumn]) -> None:
    """A number of images, or an accuracy by class, belongs to an accuracy."""
    known = {(column.task, column.shots) for column in tasks if column.measure == "downstream_accuracy"}
    for column in [column for column in tasks if not _is_pattern(column.source.text)]:
        if not any(column.task == task and column.shots in (None, shots) for task, shots in known):
            named = f"{column.task}:{column.shots}" if column.shots else column.task
            raise UserError(
                f"column {column.measure}:{named}: there is no downstream_accuracy of it; those that there are:"
                f" {', '.join(sorted(f'{task}:{shots}' if shots else task for task, shots in known))}"
            )


def _source(text: str) -> Source:
    place, colon, key = text.partition(":")
    for name in PLACES:
        if colon and place == name:
            return Source(name, key, text)
    return Source("any", text, text)


def _task_columns(ours: str, measure: str, rest: list[str], source: Source, keys: "_Keys") -> list[TaskColumn]:
    """One column, or as many as the runs' keys fit the placeholders."""
    if not 1 <= len(rest) <= 3 or not rest[0]:
        raise UserError(f"column {ours}: write it as {measure}:TASK, {measure}:TASK:SHOTS or with :PROTOCOL behind")
    task, shots, protocol = (*rest, "", "")[:3]
    if not _is_pattern(source.key):
        if _is_pattern(ours):
            raise UserError(f"column {ours}={source.text}: a {{task}} or {{shots}} stands on both sides or on neither")
        return [TaskColumn(measure, task, _shots(shots, ours), protocol or None, keys.placed(ours, source))]
    found = []
    pattern = _pattern(source.key, ours)
    for place, key in keys.of_place(source.place):
        if match := pattern.fullmatch(key):
            values = {"{task}": match.groupdict().get("task", ""), "{shots}": match.groupdict().get("shots", "")}
            filled_task, filled_shots = (values.get(text, text) for text in (task, shots))
            exact = Source(place, key, source.text)
            found.append(TaskColumn(measure, filled_task, _shots(filled_shots, ours), protocol or None, exact))
    if not found:
        raise UserError(f"column {ours}: no run has a key like {source.text!r}.{keys.near(source.key)}")
    return found


def _pattern(text: str, ours: str) -> re.Pattern[str]:
    for placeholder in PLACEHOLDERS:
        if text.count(placeholder) > 1 or (placeholder in text) != (placeholder in ours.split(":")):
            raise UserError(f"column {ours}={text}: {placeholder} stands once on both sides, in OURS between colons")
    if "{task}{shots}" in text or "{shots}{task}" in text:
        raise UserError(
            f"column {ours}={text}: where a task ends and its shots begin cannot be told; write a column for each task"
        )
    parts = re.split(r"(\{task\}|\{shots\})", text)
    return re.compile("".join(PLACEHOLDERS.get(part) or re.escape(part) for part in parts))


def _shots(text: str, ours: str) -> int | None:
    if text and (not text.isdecimal() or int(text) < 1):
        raise UserError(f"column {ours}: {text!r} shots given, a whole number from 1 up needed")
    return int(text) if text else None


def _without_repeats(tasks: list[TaskColumn]) -> list[TaskColumn]:
    seen: dict[tuple[str, str, int | None, str | None], TaskColumn] = {}
    for column in tasks:
        key = (column.measure, column.task, column.shots, column.protocol)
        if key in seen:
            both = f"{seen[key].source.key!r} and {column.source.key!r}"
            raise UserError(f"columns: {both} are both {column.measure} of task {column.task!r}, {column.shots} shots")
        seen[key] = column
    return tasks


@dataclass(frozen=True, slots=True)
class _Keys:
    """The keys that runs have, in config and in summary."""

    config: frozenset[str]
    summary: frozenset[str]

    @classmethod
    def of(cls, runs: Sequence[LoggedRun]) -> "_Keys":
        return cls(
            frozenset(key for run in runs for key in run.config), frozenset(key for run in runs for key in run.summary)
        )

    def of_place(self, place: Place) -> list[tuple[Place, str]]:
        """Keys that may be meant, in order; one that both have is the summary's."""
        found: dict[str, Place] = {}
        if place in ("config", "any"):
            found |= dict.fromkeys(self.config, "config")
        if place in ("summary", "any"):
            found |= dict.fromkeys(self.summary, "summary")
        return [(found[key], key) for key in sorted(found)]

    def placed(self, ours: str, source: Source) -> Source:
        """The source with its place, the same for all runs: one that lacks a value takes none from elsewhere."""
        has = {"config": source.key in self.config, "summary": source.key in self.summary, "value": True}
        order: list[Place] = ["config", "summary"] if _is_axis(ours) else ["summary", "config"]
        for place in order if source.place == "any" else [source.place]:
            if has[place]:
                return Source(place, source.key, source.text)
        where = "config or summary" if source.place == "any" else source.place
        raise UserError(f"column {ours}: no run has {source.key!r} in its {where}.{self.near(source.key)}")

    def near(self, key: str) -> str:
        """' The nearest: a, b', of the keys that runs have."""
        by_lower = {name.lower(): name for name in sorted(self.config | self.summary) if not name.startswith("_")}
        near = get_close_matches(key.lower(), by_lower, n=NEAREST, cutoff=0.4)
        named = [by_lower[name] for name in near] or [*by_lower.values()][:NEAREST]
        return f" {'The nearest' if near else 'They have, for example'}: {', '.join(named)}" if named else ""


def _is_axis(name: str) -> bool:
    """Whether a column is looked for in the config first."""
    return name in AXIS_SCHEMA or name == "cell_id"
