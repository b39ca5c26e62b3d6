"""What W&B's history is told of a cell, in its order: a journal that only grows, its n-th line is W&B's step n.

W&B's history cannot be rewritten, so what it was told must be kept. The journal is made from the cell's files alone:
training and checkpoint records, and a line for each checkpoint that has been judged.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from orchestrator.files import append_record, read_records
from orchestrator.tracking.curves import (
    CURVES,
    EVALUATION,
    Curve,
    Metrics,
    current_points,
    downstream_metrics,
    is_number,
    upstream_metrics,
)

JOURNAL: Final = "wandb.ndjson"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line: what `event` (train, checkpoint or evaluation) said of a step, by the names that W&B shows."""

    event: str
    step: int
    examples_seen: int
    time: float
    values: dict[str, float]


def read_journal(cell_dir: Path) -> list[Row]:
    """The lines so far. A torn one was never told: it is left out, and does not count."""
    return [Row(**record) for record in read_records(cell_dir / JOURNAL).records if set(record) == set(Row.__slots__)]


def advance(cell_dir: Path, curve: Curve, wanted: frozenset[str] = frozenset()) -> list[Row]:
    """All lines of the journal, after what the cell's files have new was appended; one call at a time for a cell.

    Args:
        cell_dir: the cell's folder.
        curve: its training and checkpoint records.
        wanted: the names of the evaluation files that a checkpoint must have before it gets a line.

    Raises:
        DataError: an evaluation's file cannot be read.
        OSError: the journal cannot be written.
    """
    rows = read_journal(cell_dir)
    new = new_rows(cell_dir, rows, curve, wanted)
    for row in new:
        append_record(cell_dir / JOURNAL, asdict(row))
    return rows + new


def new_rows(cell_dir: Path, rows: Sequence[Row], curve: Curve, wanted: frozenset[str]) -> list[Row]:
    """What the cell's files have that the journal's `rows` have not, in the order in which it is to be told.

    Nothing comes twice: of a step that a resumed attempt repeats, and of a metric of a checkpoint that was judged
    again, the first told stays. Before it is told, the later record counts.

    Raises:
        DataError: an evaluation's file cannot be read.
    """
    told = {(row.event, row.step) for row in rows}
    # By step: an attempt that died may have gone further than the one that repeats its steps has come so far.
    points = sorted(current_points(curve.points, told), key=lambda point: (point.step, point.index))
    new = [Row(event=p.event, step=p.step, examples_seen=p.examples_seen, time=p.time, values=p.values) for p in points]
    return new + _new_evaluations(cell_dir, rows, curve, wanted)


def digest(rows: Iterable[Row]) -> str:
    """What tells two journals apart."""
    return hashlib.sha256("\n".join(map(_line, rows)).encode()).hexdigest()[:16]


def _line(row: Row) -> str:
    return json.dumps(asdict(row), separators=(",", ":"))


def _new_evaluations(cell_dir: Path, rows: Sequence[Row], curve: Curve, wanted: frozenset[str]) -> list[Row]:
    """A line for each checkpoint that is judged wholly, with the metrics of it that no line has."""
    told: dict[int, set[str]] = {}
    for row in rows:
        if row.event == EVALUATION:
            told.setdefault(row.step, set()).update(row.values)
    seen = {point.step: point.examples_seen for point in curve.points if point.event == "checkpoint"}
    found = []
    for folder in sorted((cell_dir / "evals").glob("step_*")):
        files = {path.name: path for path in folder.glob("*.parquet")}
        number = folder.name.removeprefix("step_")
        step = int(number) if number.isdecimal() else -1  # somebody's own folder
        if not files or not wanted <= files.keys() or step not in seen:
            continue
        values = {k: float(v) for k, v in _judged(folder).items() if is_number(v) and k not in told.get(step, ())}
        if values:
            when = max(path.stat().st_mtime for path in files.values())
            found.append(Row(event=EVALUATION, step=step, examples_seen=seen[step], time=when, values=values))
    return found


def _judged(folder: Path) -> Metrics:
    """A checkpoint's metrics, without those that its training record holds already."""
    measured = upstream_metrics(folder)
    return {k: v for k, v in measured.items() if k not in CURVES["checkpoint"].values()} | downstream_metrics(folder)
