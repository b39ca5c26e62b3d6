"""What a study's report says at Weights & Biases: the page's answers, charts of its runs, fits, conflicts, frontier."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import cycle
from typing import Any, Final

import polars as pl

from models.errors import UserError
from orchestrator import lock
from orchestrator.charts import LIGHT
from orchestrator.report.facts import Facts, plain
from orchestrator.report.headline import answers, paragraph
from orchestrator.report.page import default_shots
from orchestrator.report.panels import shots_text
from orchestrator.report.tables import markdown_lines
from orchestrator.report.words import percent
from orchestrator.session import Session
from orchestrator.study_summary import busy, gathered, mirror_study, mode_of, tables_of
from orchestrator.tracking.curves import task_prefix
from orchestrator.tracking.wandb_report import Published, ReportContent, ReportRefusedError, need_library, publish

MAX_TASKS: Final = 12
"""Charts of tasks; a report with more of them no browser likes."""
MAX_METRICS: Final = 6
"""Downstream metrics in the chart of all cells, where each is one more vertical line."""
MAX_COLOURED: Final = 2_000
MAX_VERTICES: Final = 200
COLOURS: Final = dict(
    zip(LIGHT.families, ("blue", "vermilion", "green", "pink", "orange", "light blue", "grey"), strict=True)
)
"""What people call the colours of families."""


def need_wandb(session: Session) -> None:
    """Raises where the study's report cannot be published, before anything is computed.

    Raises:
        UserError: the study is not mirrored at all, W&B's report library is missing, `WANDB_MODE` is no mode.
    """
    if mode_of(session) == "disabled":
        name = session.file.study.name
        raise UserError(f"--wandb: W&B is disabled for study {name} (wandb.mode, or WANDB_MODE): nothing is published")
    need_library()


def publish_study(session: Session, **options: Any) -> Published:
    """Publishes the study's report at W&B, after the study's run has what the report links to.

    Args:
        session: the study.
        options: of `reduce_study`.

    Raises:
        UserError: as `need_wandb`; no key.
        ReportRefusedError: W&B does not answer or refuses a part; what it had before stays.
    """
    need_wandb(session)
    mirrored = mirror_study(session)
    if not mirrored.ok:
        raise ReportRefusedError(f"the report is not published, since the study's run is not: {mirrored.error}")
    try:
        with lock.holding(session.store.root / "mirror.lock"):
            return publish(session.store.root, report_content(session, **options))
    except lock.LockBusyError as error:
        raise ReportRefusedError(f"the report is not published: {busy(error)}") from error


def report_content(session: Session, **options: Any) -> ReportContent:
    """What the report says of the study as it stands.

    Args:
        session: the study.
        options: of `reduce_study`.
    """
    reduced, facts = gathered(session, **options)
    study, shots = session.file.study, default_shots(facts)
    names = [name for name in facts.task_names if any(t["task"] == name and t["shots"] == shots for t in facts.tasks)]
    metrics = {name: f"{task_prefix(name, shots, facts.protocol)}/accuracy" for name in names}
    colours, legend = _colours(facts)
    return ReportContent(
        study=study.name,
        project=study.wandb.project,
        entity=study.wandb.entity,
        lead=paragraph(facts),
        answers=[
            " ".join(filter(None, [f"{one.about}: {one.verdict}", one.best]))
            for one in answers(facts)
            if one.shots == shots
        ],
        scatters=list(metrics.items())[:MAX_TASKS],
        axes=facts.varying,
        metrics=list(metrics.values())[:MAX_METRICS],
        colours=colours,
        legend=legend,
        tables=_tables(reduced["tasks"], facts, shots),
        notes=_notes(facts, num_charts=len(names)),
    )


def _colours(facts: Facts) -> tuple[dict[str, str], str]:
    """By cell, the colour of its family, or of another axis with few values; and what the colours mean."""
    palette = LIGHT.families
    few = [axis for axis in facts.varying if 1 < facts.cells[axis].drop_nulls().n_unique() <= len(palette)]
    axis = "family" if "family" in few else few[0] if few else None
    if axis is None or facts.cells.height > MAX_COLOURED:
        return {}, ""
    values = facts.cells[axis].drop_nulls().unique().sort().to_list()
    colour = dict(zip(values, cycle(palette), strict=False))
    found = {cell: colour[value] for cell, value in facts.cells.select("cell_id", axis).iter_rows() if value in colour}
    return found, f"Colours by {axis}: {', '.join(f'{plain(value)} {COLOURS[colour[value]]}' for value in values)}."


def _tables(tasks: Sequence[Mapping[str, Any]], facts: Facts, shots: int | None) -> dict[str, str]:
    """By heading; the vertices are those of one number of shots."""
    if not tasks:
        return {}
    tables = tables_of(tasks, facts)
    vertices = tables["frontier"].filter(pl.col("shots").eq_missing(pl.lit(shots, pl.Int64))).drop("shots")
    more = tables["frontier"].height - min(vertices.height, MAX_VERTICES)
    note = ["", f"{more:,} further vertices are in the table `frontier` of the study's run."] if more else []
    frontier = f"Frontier{', ' if shots else ''}{shots_text(shots)}"
    return {
        "Fits and verdicts": "\n".join(markdown_lines(_fits(tables["fits"]))),
        "Conflicts": "\n".join(markdown_lines(_conflicts(tables["conflicts"]))),
        frontier: "\n".join([*markdown_lines(vertices.head(MAX_VERTICES)), *note]),
    }


def _fits(fits: pl.DataFrame) -> pl.DataFrame:
    rows = [
        {
            "task": row["task"],
            "shots": row["shots"],
            "cells": row["cells"],
            "saturates at": _interval(row) if row["identifiable"] else "not identifiable",
            "held-out error": row["held_out_error"],
            "by": row["held_out_best"],
            "verdict": row["verdict"],
        }
        for row in fits.iter_rows(named=True)
    ]
    return pl.DataFrame(rows)


def _interval(row: Mapping[str, Any]) -> str:
    if row["saturation"] is None:
        return ""
    return f"{row['saturation']:.3f} ({row['saturation_low']:.3f} to {row['saturation_high']:.3f})"


def _conflicts(conflicts: pl.DataFrame) -> pl.DataFrame:
    rows = [
        {
            "task": row["task"],
            "shots": row["shots"],
            "pairs": row["pairs"],
            "conflicts": "" if row["conflict_share"] is None else percent(row["conflict_share"]),
            "significant": "unknown" if row["significant_share"] is None else percent(row["significant_share"]),
            "Spearman": row["spearman"],
            "Kendall": row["kendall"],
        }
        for row in conflicts.iter_rows(named=True)
    ]
    return pl.DataFrame(rows)


def _notes(facts: Facts, *, num_charts: int) -> list[str]:
    methods = list(dict.fromkeys(task["method"] for task in facts.tasks))
    notes = [f"Written by upshot {version('upshot')}.", *methods]
    if num_charts > MAX_TASKS:
        notes.append(f"The charts show {MAX_TASKS} of {num_charts} tasks; the whole report has all.")
    return notes
