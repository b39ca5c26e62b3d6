"""The study folder to one results table: a row for each cell x checkpoint x task x protocol x shots x draw x layer."""

import contextlib
import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from evals.protocol import RESULT_SCHEMA
from models.errors import DataError
from models.recipe import Axes
from orchestrator.files import write_atomically
from orchestrator.grid import Cell
from orchestrator.state import wanted_steps
from orchestrator.store import Store
from orchestrator.study import Study

AXIS_SCHEMA: dict[str, type[pl.DataType]] = {
    "family": pl.String,
    "size": pl.String,
    "fraction": pl.Float64,
    "classes": pl.Float64,
    "images": pl.Int64,
    "epochs": pl.Float64,
    "batch_size": pl.Int64,
    "image_size": pl.Int64,
    "patch_size": pl.Int64,
    "optimizer": pl.String,
    "learning_rate": pl.Float64,
    "weight_decay": pl.Float64,
    "head_learning_rate": pl.Float64,
    "head_weight_decay": pl.Float64,
    "warmup": pl.Float64,
    "schedule": pl.String,
    "clip_norm": pl.Float64,
    "label_smoothing": pl.Float64,
    "dropout": pl.Float64,
    "drop_path": pl.Float64,
    "flip": pl.Boolean,
    "mixup": pl.Float64,
    "crop": pl.Float64,
    "augreg": pl.String,
    "ema": pl.Float64,
    "precision": pl.String,
    "seed": pl.Int64,
}
"""The axes' columns, in the order of `models.recipe.Axes`."""

SCHEMA = {"cell_id": pl.String, **AXIS_SCHEMA, **RESULT_SCHEMA, "last_checkpoint": pl.Boolean}

assert list(AXIS_SCHEMA) == list(Axes.model_fields), "every axis has its column"

UNUSED_S = 3600.0


def collect(store: Store, study: Study, cells: list[Cell]) -> pl.LazyFrame:
    """The results of every cell that has some, in `results/results.parquet`.

    Only evaluations that the study asks for now are read, so that an earlier protocol's rows do not mix with them.
    Result files are read once: what was read is kept in `results/parts`, by cells whose ids begin alike, and only parts
    of which a file came, went or changed are made anew.

    Returns:
        A table of `SCHEMA`, sorted by cell, step, task, shots, draw and layer; empty when nothing is evaluated yet.

    Raises:
        DataError: a result file is damaged; the message names it.
    """
    files: dict[str, list[ResultFile]] = {}
    for cell in sorted(cells, key=lambda cell: cell.cell_id):
        files.setdefault(cell.cell_id[:2], []).extend(result_files(store, study, cell.cell_id))
    parts = [_part(store.results_path.with_name("parts"), prefix, found) for prefix, found in files.items() if found]
    _remove_unused(parts)
    measured = pl.scan_parquet(parts) if parts else pl.LazyFrame(schema=RESULT_SCHEMA)
    identity = _axes_table(cells).join(_final_steps(store, cells), on="cell_id", how="left")
    table = (
        measured.join(identity.lazy(), on="cell_id", how="left", maintain_order="left")
        .with_columns(last_checkpoint=(pl.col("step") == pl.col("final_step")).fill_null(False))
        .select(list(SCHEMA))
    )
    store.results_path.parent.mkdir(parents=True, exist_ok=True)
    draft = store.results_path.with_name(f".results.{os.getpid()}.draft")
    try:
        table.sink_parquet(draft)
        with draft.open("rb") as written:
            os.fsync(written.fileno())  # as `write_atomically`: after a power cut it is the old table or the new one
        draft.replace(store.results_path)
    finally:
        draft.unlink(missing_ok=True)
    return pl.scan_parquet(store.results_path)


@dataclass(frozen=True, slots=True)
class ResultFile:
    """One evaluation's rows, and what changes whenever they do."""

    path: Path
    signature: tuple[str, int, int]


def result_files(store: Store, study: Study, cell_id: str) -> list[ResultFile]:
    """The result files of a cell's wanted checkpoints and tasks that are there."""
    names = [f"{study.protocol.eval_id(task)}.parquet" for task in study.downstream.tasks]
    found = []
    for step in wanted_steps(study, store.evaluated_steps(cell_id)):
        folder = store.evals(cell_id, step)
        there = {entry.name: entry.stat() for entry in os.scandir(folder)}
        found += [
            ResultFile(folder / name, (f"{cell_id}/{step}/{name}", there[name].st_mtime_ns, there[name].st_size))
            for name in names
            if name in there
        ]
    return found


def _part(folder: Path, prefix: str, files: list[ResultFile]) -> Path:
    """The rows of some cells in one file, made if it is not there; its name tells what it was made of."""
    digest = hashlib.sha256(repr([RESULT_SCHEMA, *(file.signature for file in files)]).encode()).hexdigest()[:16]
    path = folder / f"{prefix}-{digest}.parquet"
    try:
        os.utime(path)  # in use
    except FileNotFoundError:
        rows = pl.concat([_read(file.path) for file in files])
        buffer = io.BytesIO()
        rows.sort("cell_id", "step", "task", "shots", "draw", "layer").write_parquet(buffer)
        write_atomically(path, buffer.getvalue())
    return path


def _remove_unused(parts: list[Path]) -> None:
    """Removes parts that nobody has used for an hour: another `collect` may be about to read them."""
    if not parts:
        return
    now = max(path.stat().st_mtime for path in parts)  # by the clock of the file system
    for path in parts[0].parent.glob("*.parquet"):
        with contextlib.suppress(FileNotFoundError):  # another `collect` removes them too
            if path.stat().st_mtime < now - UNUSED_S:
                path.unlink()


def read_results(path: Path) -> pl.LazyFrame:
    """A results table from a parquet file.

    Raises:
        DataError: the file is missing or no parquet file.
    """
    try:
        table = pl.scan_parquet(path)
        table.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: no results table can be read: {error}") from error
    return table


def _read(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path).select(pl.col(name).cast(kind) for name, kind in RESULT_SCHEMA.items())
    except (pl.exceptions.PolarsError, OSError) as error:
        mend = "delete it, and `upshot submit` makes it anew"
        raise DataError(f"{path}: a damaged result file ({mend}): {error}") from error


def _final_steps(store: Store, cells: list[Cell]) -> pl.DataFrame:
    """The step at which each cell's training ended; null while it has not, so that no earlier one passes for it."""
    ends = {}
    for cell in cells:
        for event in store.attempts(cell.cell_id):
            if event.get("stage") == "train" and event.get("outcome") in ("done", "diverged"):
                ends[cell.cell_id] = event["step"]
    final = {"cell_id": list(ends), "final_step": list(ends.values())}
    return pl.DataFrame(final, schema={"cell_id": pl.String, "final_step": pl.Int64})


def _axes_table(cells: list[Cell]) -> pl.DataFrame:
    rows = [{"cell_id": cell.cell_id, **cell.recipe.model_dump(exclude={"dataset"})} for cell in cells]
    return pl.DataFrame(rows, schema={"cell_id": pl.String, **AXIS_SCHEMA})
