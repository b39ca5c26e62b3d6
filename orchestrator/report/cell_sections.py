"""What there is to know of single cells: those on a frontier, and the best one of each task. Pure."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import polars as pl

from orchestrator.report.anchors import MOST_CELLS, anchor_of, frontier_cells
from orchestrator.report.facts import Facts, plain
from orchestrator.report.markup import Column, Markup, element, join, table
from orchestrator.report.parts import code, empty
from orchestrator.report.words import count, duration, fixed, hours, listed, si


def _tasks(tasks: Mapping[str, list[str]]) -> str:
    return ", ".join(f"{task} ({_counted(shots)})" if any(shots) else task for task, shots in tasks.items())


def _counted(shots: list[str]) -> str:
    return "1 shot" if shots == ["1"] else f"{listed(shots)} shots"


def cells_of_frontier(facts: Facts) -> Markup:
    """A section for each of them, folded; the page opens that which its address names."""
    order, best, vertices = frontier_cells(facts)
    if not order:
        return empty("No cell has been judged downstream yet.")
    note = "The vertices of every task's hull and its best cell. Paths are seen from the study folder."
    shown = order[:MOST_CELLS]
    rows = {row["cell_id"]: row for row in facts.cells.iter_rows(named=True)}
    known = _Known(facts)
    parts = [_section(facts, rows[cell], best.get(cell, {}), vertices.get(cell, {}), known) for cell in shown]
    more = len(order) - len(shown)
    rest = f"{count(more, 'further cell')} of frontiers not shown here; tables/cells.csv has all." if more else ""
    return join([element("p", note, class_="note"), *parts, element("p", rest, class_="note") if rest else ""])


class _Known:
    """Attempts and files by cell."""

    def __init__(self, facts: Facts) -> None:
        took = facts.operations
        attempts = took.attempts if took is not None else None
        self.files = {} if took is None else {row["cell_id"]: row for row in took.files.iter_rows(named=True)}
        self.attempts = (
            {} if attempts is None else {key: f for (key,), f in attempts.partition_by("cell_id", as_dict=True).items()}
        )


def _section(
    facts: Facts,
    row: Mapping[str, Any],
    best: Mapping[str, list[str]],
    vertex: Mapping[str, list[str]],
    known: _Known,
) -> Markup:
    cell_id = row["cell_id"]
    there_for = (("best cell of", best), ("vertex of", vertex))
    counted = ", ".join(f"{what} {count(len(tasks), 'task')}" for what, tasks in there_for if tasks)
    lead = [code(cell_id), " ", row["text"], element("small", f" ({counted})")]
    entries: list[tuple[str, object]] = [(what, _tasks(tasks)) for what, tasks in there_for if tasks]
    entries += [*_numbers(facts, row), *_places(known.files.get(cell_id))]
    listed_entries = [part for name, value in entries for part in (element("dt", name), element("dd", value))]
    attempts = known.attempts.get(cell_id)
    inner = [element("dl", *listed_entries), _attempts(attempts) if attempts is not None else ""]
    return element("details", element("summary", *lead), *inner, id=anchor_of(cell_id), class_="cell-section")


def _numbers(facts: Facts, row: Mapping[str, Any]) -> list[tuple[str, object]]:
    axes = [f"{axis} {plain(row[axis])}" for axis in facts.axes if row.get(axis) is not None]
    entries: list[tuple[str, object]] = [
        ("axes", ", ".join(axes)),
        ("parameters", si(row["params"])),
        ("training FLOPs", si(row["flops"])),
        ("upstream accuracy", fixed(row["upstream"], 4)),
    ]
    if row["status"] is not None:
        cause = f": {row['cause']}" if row["cause"] else ""
        entries.append(("status", f"{row['status']}{cause}"))
    return entries


def _places(files: Mapping[str, Any] | None) -> list[tuple[str, object]]:
    if files is None:
        return []
    entries: list[tuple[str, object]] = []
    if files["images_per_second"] is not None:
        reached = "" if files["mfu"] is None else f", {files['mfu'] * 100:.1f} % of the peak (MFU)"
        entries.append(("speed", f"{si(files['images_per_second'])} images a second{reached}"))
    for name, key in (("checkpoint", "checkpoint"), ("TensorBoard", "tensorboard")):
        if files[key] is not None:
            entries.append((name, code(files[key])))
    if files["wandb"] is not None:
        entries.append(("W&B", element("a", files["wandb"], href=files["wandb"])))
    return entries


def _attempts(attempts: pl.DataFrame) -> Markup:
    rows = [
        [
            _name(row),
            _when(row["started"]),
            row["node"] or "–",
            row["job"] or "–",
            duration(row["seconds"]),
            f"{hours(row['hours'])} {row['kind'] or ''}".strip(),
            ": ".join(filter(None, [row["cause"] or row["outcome"], row["detail"]])),
            code(row["log"]) if row["log"] else "–",
        ]
        for row in attempts.iter_rows(named=True)
    ]
    columns = [Column("attempt", "line"), Column("started, UTC", "line"), Column("node"), Column("job")]
    columns += [Column("took", "number"), Column("hours", "number"), Column("ended by"), Column("log", "line")]
    return table(columns, rows, count(attempts.height, "attempt"))


def _name(row: Mapping[str, Any]) -> str:
    step = "" if row["step"] is None else f" of step {row['step']}"
    return f"{row['stage']}{step} {row['attempt'] or 'never began'}"


def _when(started: datetime | None) -> str:
    return "–" if started is None else f"{started:%Y-%m-%d %H:%M:%S}"
