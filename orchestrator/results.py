"""The study folder to one results table: a row for each cell x checkpoint x task x protocol x shots x draw x layer."""

import io
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
    "label_smoothing": pl.Float64,
    "precision": pl.String,
    "seed": pl.Int64,
}
"""The axes' columns, in the order of `models.recipe.Axes`."""

SCHEMA = {"cell_id": pl.String, **AXIS_SCHEMA, **RESULT_SCHEMA, "last_checkpoint": pl.Boolean}

assert list(AXIS_SCHEMA) == list(Axes.model_fields), "every axis has its column"


def collect(store: Store, study: Study, cells: list[Cell]) -> pl.DataFrame:
    """The results of every cell that has some, also written to `results/results.parquet`.

    Only evaluations that the study asks for now are read, so that an earlier protocol's rows do not mix with them.

    Returns:
        A table of `SCHEMA`, sorted by cell, step, task, shots, draw and layer; empty when nothing is evaluated yet.

    Raises:
        DataError: a result file is damaged; the message names it.
    """
    paths = [path for cell in cells for path in result_files(store, study, cell.cell_id)]
    measured = pl.concat([_read(path) for path in paths]) if paths else pl.DataFrame(schema=RESULT_SCHEMA)
    table = (
        measured.join(_axes_table(cells), on="cell_id", how="left")
        .join(_final_steps(store, cells), on="cell_id", how="left")
        .with_columns(last_checkpoint=(pl.col("step") == pl.col("final_step")).fill_null(False))
        .select(list(SCHEMA))
        .sort("cell_id", "step", "task", "shots", "draw", "layer")
    )
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    write_atomically(store.results_path, buffer.getvalue())
    return table


def result_files(store: Store, study: Study, cell_id: str) -> list[Path]:
    """The result files of a cell's wanted checkpoints and tasks that are there."""
    steps = wanted_steps(study, store.evaluated_steps(cell_id))
    names = [f"{study.protocol.eval_id(task)}.parquet" for task in study.downstream.tasks]
    paths = (store.evals(cell_id, step) / name for step in steps for name in names)
    return [path for path in paths if path.exists()]


def read_results(path: Path) -> pl.DataFrame:
    """A results table from a parquet file.

    Raises:
        DataError: the file is missing or no parquet file.
    """
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: no results table can be read: {error}") from error


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
