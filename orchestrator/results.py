"""The study folder to one results table, a row for each cell x checkpoint x task x protocol x shots x draw x layer.

What the checkpoints are on the held-out upstream images is a table of its own.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from evals.measures import MEASURES_SCHEMA
from evals.protocol import RESULT_SCHEMA
from models.errors import DataError
from models.recipe import Axes
from orchestrator.bars import Tell, tell_nobody
from orchestrator.files import write_atomically
from orchestrator.grid import Cell
from orchestrator.store import Store
from orchestrator.study import Study
from orchestrator.wanted import wanted_files, wanted_steps

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

Schema = Mapping[str, type[pl.DataType]]

SCHEMA: dict[str, type[pl.DataType]] = {
    "cell_id": pl.String,
    **AXIS_SCHEMA,
    **RESULT_SCHEMA,
    "last_checkpoint": pl.Boolean,
}
UPSTREAM_SCHEMA: dict[str, type[pl.DataType]] = {
    "cell_id": pl.String,
    **AXIS_SCHEMA,
    **MEASURES_SCHEMA,
    "last_checkpoint": pl.Boolean,
}

assert list(AXIS_SCHEMA) == list(Axes.model_fields), "every axis has its column"

UNUSED_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """One kind of files: what they are, the folder of its parts, what a file holds, and what its rows are sorted by."""

    what: str
    folder: str
    schema: Schema
    order: tuple[str, ...]
    younger: frozenset[str] = frozenset()
    """Columns that files of earlier versions lack; they are read as null."""


_RESULTS = _Kind(
    what="results",
    folder="parts",
    schema=RESULT_SCHEMA,
    order=("cell_id", "step", "task", "protocol", "shots", "draw", "layer"),
    younger=frozenset({"downstream_class_accuracy", "downstream_duplicates"}),
)
_MEASURES = _Kind(
    what="measures",
    folder="measures_parts",
    schema=MEASURES_SCHEMA,
    order=("cell_id", "step", "quantity", "layer", "label"),
)


@dataclass(frozen=True, slots=True)
class ResultFile:
    """One evaluation's rows, and what changes whenever they do."""

    path: Path
    signature: tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class CellResults:
    """The files of a cell's wanted evaluations that are there: on tasks, and on the upstream images."""

    results: list[ResultFile]
    measures: list[ResultFile]


def collect(store: Store, study: Study, cells: list[Cell], tell: Tell = tell_nobody) -> pl.LazyFrame:
    """The results of every cell that has some, in `results/results.parquet`; beside it `measures.parquet`.

    The latter has the measures on the upstream images (`UPSTREAM_SCHEMA`), sorted by cell, step, quantity, layer and
    label. Only evaluations that the study asks for now are read, so that an earlier choice's rows do not mix with them.
    Result files are read once: what was read is kept in `results/parts`, by cells whose ids begin alike, and only parts
    of which a file came, went or changed are made anew.

    `tell` hears how far it is.

    Returns:
        A table of `SCHEMA`, sorted by cell, step, task, protocol, shots, draw and layer; empty when nothing is
        evaluated yet.

    Raises:
        DataError: a result file is damaged; the message names it.
    """
    results: dict[str, list[ResultFile]] = {}
    measures: dict[str, list[ResultFile]] = {}
    for i, cell in enumerate(sorted(cells, key=lambda cell: cell.cell_id)):
        tell("looking at cells", i, len(cells))
        found = result_files(store, study, cell.cell_id)
        results.setdefault(cell.cell_id[:2], []).extend(found.results)
        measures.setdefault(cell.cell_id[:2], []).extend(found.measures)
    identity = _axes_table(cells).join(_final_steps(store, cells), on="cell_id", how="left").lazy()
    _write_table(_gathered(store, measures, _MEASURES, tell), identity, UPSTREAM_SCHEMA, store.measures_path)
    return _write_table(_gathered(store, results, _RESULTS, tell), identity, SCHEMA, store.results_path)


def result_files(store: Store, study: Study, cell_id: str) -> CellResults:
    """The files of a cell's wanted checkpoints and evaluations that are there."""
    wanted, found = wanted_files(study), CellResults([], [])
    names = ((found.results, [*wanted.results.values()]), (found.measures, [wanted.measures or ""]))
    for step in wanted_steps(study, store.evaluated_steps(cell_id)):
        folder = store.evals(cell_id, step)
        there = {entry.name: entry for entry in os.scandir(folder)}
        for files, asked in names:
            # No others are looked at: the drafts of a job that is at it are gone at any moment.
            seen = {name: there[name].stat() for name in asked if name in there}
            files += [
                ResultFile(folder / name, (f"{cell_id}/{step}/{name}", stat.st_mtime_ns, stat.st_size))
                for name, stat in seen.items()
            ]
    return found


def _gathered(store: Store, files: Mapping[str, list[ResultFile]], kind: _Kind, tell: Tell) -> pl.LazyFrame:
    """The rows of all files, by the beginnings of their cells' ids."""
    folder = store.results_path.with_name(kind.folder)
    parts = []
    for i, (prefix, found) in enumerate(files.items()):
        tell(f"reading {kind.what}", i, len(files))
        parts += [_part(folder, prefix, found, kind)] if found else []
    _remove_unused(parts)
    return pl.scan_parquet(parts) if parts else pl.LazyFrame(schema=kind.schema)


def _write_table(rows: pl.LazyFrame, identity: pl.LazyFrame, schema: Schema, path: Path) -> pl.LazyFrame:
    """The rows with the axes of their cells, written to `path` and read from there."""
    table = (
        rows.join(identity, on="cell_id", how="left", maintain_order="left")
        .with_columns(last_checkpoint=(pl.col("step") == pl.col("final_step")).fill_null(False))
        .select(list(schema))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.{os.getpid()}.draft")
    try:
        table.sink_parquet(draft)
        with draft.open("rb") as written:
            os.fsync(written.fileno())  # as `write_atomically`: after a power cut it is the old table or the new one
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return pl.scan_parquet(path)


def _part(folder: Path, prefix: str, files: Sequence[ResultFile], kind: _Kind) -> Path:
    """The rows of some cells in one file, made if it is not there; its name tells what it was made of."""
    made_of = [dict(kind.schema), kind.order, *(file.signature for file in files)]
    digest = hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
    path = folder / f"{prefix}-{digest}.parquet"
    try:
        os.utime(path)  # in use
    except FileNotFoundError:
        rows = pl.concat([_read(file.path, kind) for file in files])
        buffer = io.BytesIO()
        rows.sort(kind.order).write_parquet(buffer)
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
        DataError: the file is missing or no parquet file, or a column has a name that stands for several.
    """
    try:
        table = pl.scan_parquet(path)
        names = table.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: no results table can be read: {error}") from error
    check_columns(path, names)
    return table


def check_columns(path: Path, names: Sequence[str]) -> None:
    """Refuses names that polars takes for several columns.

    Raises:
        DataError: a column is called `*`, or from `^` to `$`.
    """
    for name in names:
        if name == "*" or (name.startswith("^") and name.endswith("$")):
            raise DataError(f"{path}: the column {name!r} has a name that stands for several columns; rename it")


def _read(path: Path, kind: _Kind) -> pl.DataFrame:
    try:
        table = pl.read_parquet(path)
        absent = [pl.lit(None).alias(name) for name in kind.younger.difference(table.columns)]
        return table.with_columns(absent).select(pl.col(name).cast(type_) for name, type_ in kind.schema.items())
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
