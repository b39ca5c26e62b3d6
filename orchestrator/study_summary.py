"""What W&B shows of a whole study: its headline numbers, tables and files, in one run beside those of its cells."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import polars as pl

from models.errors import UserError
from orchestrator import lock
from orchestrator.bars import Tell, tell_nobody
from orchestrator.identity import canonical_json
from orchestrator.observe import Observation
from orchestrator.operations import operations_of
from orchestrator.report import page_alone
from orchestrator.report.facts import Facts, gather
from orchestrator.session import Session
from orchestrator.state import Status
from orchestrator.tracking import Description, MirrorResult, Mode, default_mode
from orchestrator.tracking.client import one_line
from orchestrator.tracking.summary_run import MODE, StudySummary, mirror_summary

REVISION: Final = 1
"""Raised when what is told of a study changes, so that studies are told anew."""
MAX_ROWS: Final = 10_000
"""Of a table: W&B's pages show no more. Longer ones lose their end; how many rows is told in the run's summary."""

FITS_SCHEMA: Final[dict[str, type[pl.DataType]]] = {
    "task": pl.String,
    "shots": pl.Int64,
    "cells": pl.Int64,
    "vertices": pl.Int64,
    "identifiable": pl.Boolean,
    "saturation": pl.Float64,
    "saturation_low": pl.Float64,
    "saturation_high": pl.Float64,
    "alpha": pl.Float64,
    "k": pl.Float64,
    "held_out_best": pl.String,
    "held_out_error": pl.Float64,
    "held_out_points": pl.Int64,
    "best_downstream": pl.Float64,
    "best_cell": pl.String,
    "verdict": pl.String,
}
CONFLICTS_SCHEMA: Final[dict[str, type[pl.DataType]]] = {
    "task": pl.String,
    "shots": pl.Int64,
    "pairs": pl.Int64,
    "conflicts": pl.Int64,
    "conflict_share": pl.Float64,
    "significant_conflicts": pl.Int64,
    "significant_share": pl.Float64,
    "noise": pl.String,
    "spearman": pl.Float64,
    "kendall": pl.Float64,
}
FRONTIER_SCHEMA: Final[dict[str, type[pl.DataType]]] = {
    "task": pl.String,
    "shots": pl.Int64,
    "cell_id": pl.String,
    "cell": pl.String,
    "upstream": pl.Float64,
    "downstream": pl.Float64,
}
HEADLINES: Final = {
    "fits": [name for name in FITS_SCHEMA if name not in ("task", "shots", "alpha", "k", "held_out_points")],
    "conflicts": ["conflict_share", "significant_share", "spearman"],
}
"""By table, the columns that are headline numbers too, as TASK/SHOTSshot/COLUMN."""


def mode_of(session: Session) -> Mode:
    """How the study is mirrored from here, where W&B can be reached: online, or not at all.

    Raises:
        UserError: `WANDB_MODE` is no mode.
    """
    asked = session.file.study.wandb.mode
    return "disabled" if (default_mode() if asked == "auto" else asked) == "disabled" else MODE


def mirror_study(session: Session, tell: Tell = tell_nobody) -> MirrorResult:
    """Tells W&B what the study says as a whole, unless it was told just that (`tracking.summary_run`).

    For the login node: also a study whose nodes are offline is told online. One that W&B is disabled for is not told.
    `tell` hears how far the reduction is.

    Returns:
        What was done. Nothing that goes wrong is raised, nor is anything lost: the next call makes up for it.
    """
    try:
        if mode_of(session) == "disabled":
            return MirrorResult(ok=True, mode="disabled")
        with lock.holding(session.store.root / "mirror.lock"):
            return _mirror(session, tell)
    except lock.LockBusyError as error:
        return MirrorResult(ok=False, mode=MODE, error=busy(error))
    except (UserError, OSError) as error:
        return MirrorResult(ok=False, mode=MODE, error=one_line(error))


def busy(error: lock.LockBusyError) -> str:
    """What is said where another process is at it."""
    return f"another process tells W&B of this study just now ({error})"


def _mirror(session: Session, tell: Tell) -> MirrorResult:
    seen = session.observe()
    session.collect(tell)

    def make() -> StudySummary:
        return summarise(session, seen, *_gathered(session, seen, tell=tell))

    return mirror_summary(session.store.root, describe_study(session), _digest(session, seen), make)


def gathered(session: Session, **options: Any) -> tuple[dict[str, Any], Facts]:
    """The reducer's answer, and the facts of the report.

    Args:
        session: the study.
        options: of `reduce_study`.
    """
    seen = session.observe()
    session.collect()
    return _gathered(session, seen, **options)


def _gathered(session: Session, seen: Observation, **options: Any) -> tuple[dict[str, Any], Facts]:
    results, measures = (pl.read_parquet(path) for path in (session.store.results_path, session.store.measures_path))
    reduced = session.reduce(results, seen.states, **options)
    took = operations_of(session.store, session.profile, seen)
    return reduced, gather(results, reduced, [state.to_json() for state in seen.states], measures, took)


def describe_study(session: Session) -> Description:
    """What W&B shows of the study's run beside its summary: where it belongs, and the study itself as its config."""
    study = session.file.study
    return Description(
        study=study.name,
        project=study.wandb.project,
        entity=study.wandb.entity,
        config=study.model_dump(mode="json", exclude={"wandb", "cluster", "retry"}),
        name=study.name,
        job_type="summary",
    )


def summarise(session: Session, seen: Observation, reduced: Mapping[str, Any], facts: Facts) -> StudySummary:
    """What the study's run is told: numbers, tables, files, the report's page."""
    tables = tables_of(reduced["tasks"], facts)
    files = {"results": session.store.results_path, "measures": session.store.measures_path}
    rows = {kind: pl.scan_parquet(path).select(pl.len()).collect().item() for kind, path in files.items()}
    left_out = {f"rows_left_out/{name}": max(0, frame.height - MAX_ROWS) for name, frame in tables.items()}
    return StudySummary(
        numbers={
            **headlines(tables),
            **state_numbers(seen, session.planned(seen)),
            "protocol": reduced["protocol"],
            "finished": reduced["study"]["finished"],
            **{f"rows/{kind}": number for kind, number in rows.items()},
            **{name: number for name, number in left_out.items() if number},
        },
        tables={name: frame.head(MAX_ROWS) for name, frame in tables.items()},
        files={kind: path for kind, path in files.items() if rows[kind]},
        page=page_alone(
            facts,
            title=session.file.study.name,
            plan_summary=session.planned(seen),
            generated_by=f"upshot {version('upshot')}",
        ),
    )


def tables_of(tasks: Sequence[Mapping[str, Any]], facts: Facts) -> dict[str, pl.DataFrame]:
    """By name: fits, conflicts, frontier (the vertices of the hulls), the strongest conflicts, and all points."""
    names = dict(facts.cells.select("cell_id", "text").iter_rows())
    varying = facts.cells.select("cell_id", *facts.varying)
    vertices = [
        {"task": task["task"], "shots": task["shots"], "cell": names.get(vertex["cell_id"]), **vertex}
        for task in tasks
        for vertex in task["hull"]
    ]
    return {
        "fits": pl.DataFrame([_fit(task) for task in tasks], schema=FITS_SCHEMA),
        "conflicts": pl.DataFrame([_conflict(task) for task in tasks], schema=CONFLICTS_SCHEMA),
        "frontier": pl.DataFrame(vertices, schema=FRONTIER_SCHEMA),
        "strongest_conflicts": facts.strongest,
        "points": facts.points.join(varying, on="cell_id", how="left", maintain_order="left"),
    }


def headlines(tables: Mapping[str, pl.DataFrame]) -> dict[str, str | float]:
    """By TASK/SHOTSshot/NAME (`all` where a task has no shots), what there is of `HEADLINES`.

    A saturation value that the cells do not determine is left out; the verdict says why.
    """
    found = {}
    for table, columns in HEADLINES.items():
        for row in tables[table].iter_rows(named=True):
            shots = "all" if row["shots"] is None else f"{row['shots']}shot"
            prefix = f"{row['task']}/{shots}"
            found.update({f"{prefix}/{name}": row[name] for name in columns if _is_told(row[name])})
    return found


def state_numbers(seen: Observation, planned: Mapping[str, Any]) -> dict[str, float]:
    """Cells by status and failed ones by cause, hours planned and used."""
    by_status = Counter(str(state.status) for state in seen.states)
    causes = Counter(str(state.cause) for state in seen.states if state.cause is not None)
    used = sum(
        state.train.seconds * cell.train.resources.num_accelerators
        + state.evaluate.seconds * cell.evaluate.resources.num_accelerators
        for state, cell in zip(seen.states, seen.plan.cells, strict=True)
    )
    return {
        "cells/total": len(seen.states),
        **{f"cells/{status}": by_status[str(status)] for status in Status},
        **{f"failed/{cause}": number for cause, number in sorted(causes.items())},
        "gpu_hours/planned": planned["gpu_hours"],
        "gpu_hours/used": used / 3600,
        "cpu_hours/planned": planned["cpu_hours"],
        "job_hours/used": sum(state.train.seconds + state.evaluate.seconds for state in seen.states) / 3600,
    }


def _is_told(value: object) -> bool:
    """Whether W&B's summary can hold a value: no null, NaN or infinity."""
    return value is not None and (not isinstance(value, float) or abs(value) < float("inf"))


def _fit(task: Mapping[str, Any]) -> dict[str, Any]:
    fit, held, hull = task["fits"]["hull"], task["held_out"], task["hull"]
    best = max(hull, key=lambda vertex: vertex["downstream"]) if hull else None
    row = {"task": task["task"], "shots": task["shots"], "cells": task["n"], "vertices": task["hull_vertices"]}
    row |= {"identifiable": task["identifiable"], "verdict": task["verdict"]}
    if task["identifiable"] and fit is not None:
        row |= {"saturation": 1 - fit["e_ir"], "alpha": fit["alpha"], "k": fit["k"]}
        row |= {"saturation_low": 1 - fit["e_ir_high"], "saturation_high": 1 - fit["e_ir_low"]}
    if held["best_model"]:
        row |= {"held_out_best": held["best_model"], "held_out_error": held["rmse"][held["best_model"]]}
    if best:
        row |= {"best_downstream": best["downstream"], "best_cell": best["cell_id"]}
    return {**dict.fromkeys(FITS_SCHEMA), **row, "held_out_points": held["num_points"]}


def _conflict(task: Mapping[str, Any]) -> dict[str, Any]:
    pairs, significant = task["n"] * (task["n"] - 1) // 2, task["significant_conflicts"]
    return {
        **{name: task.get(name) for name in CONFLICTS_SCHEMA},
        "pairs": pairs,
        "significant_share": significant / pairs if pairs and significant is not None else None,
        "noise": task["significant_against"],
    }


def _digest(session: Session, seen: Observation) -> str:
    """What changes whenever the study says something else: results, states, plan, the study itself, or the program."""
    facts = {
        "revision": [REVISION, version("upshot")],
        "study": session.file.study.model_dump(mode="json"),
        "cells": [state.to_json() for state in seen.states],
        "planned": session.planned(seen),
        "files": [_file_digest(path) for path in (session.store.results_path, session.store.measures_path)],
    }
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest()[:16]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
