"""Checkpoints outside a study as cells of a results table, beside each other or beside those of a study.

The one place of the orchestrator that evaluates in its own process: what `upshot evaluate` runs on a node or a
workstation. Torch is imported inside the functions.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import polars as pl

from evals.protocol import Layers, Protocol
from evals.tasks import task
from models.errors import DataError, UserError
from models.recipe import Recipe
from orchestrator import lock
from orchestrator.bars import Tell, tell_nobody
from orchestrator.importing import write_results
from orchestrator.results import AXIS_SCHEMA, SCHEMA, read_results
from orchestrator.study_text import absolute_task

if TYPE_CHECKING:
    from evals.external import Upstream
    from models.external import PublicModel

WAIT_S = 60.0  # for others that add to the same table


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a checkpoint is judged on, and how."""

    tasks: tuple[str, ...]
    protocols: tuple[Protocol, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """An upstream accuracy that others measured, and on how many images where that is known.

    Raises:
        UserError: it is no fraction.
    """

    accuracy: float
    num_test: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy <= 1:
            raise UserError(f"--upstream-accuracy: {self.accuracy:g} given; a fraction, such as 0.85, is wanted")


def asked_for(tasks: Sequence[str], protocols: Sequence[str], shots: str, draws: int, layers: str) -> Asked:
    """What was asked for, checked before anything is loaded. Tasks that are paths are absolute, as in a study.

    Raises:
        UserError: no task, an unknown task or protocol, or shots that are no numbers.
    """
    if not tasks:
        raise UserError("--task: none given; `upshot tasks` lists those that work at once")
    beside = Path("study.toml")  # as a study file in the working folder would have them
    named = tuple(dict.fromkeys(absolute_task(name, beside) for name in tasks))
    for name in named:
        task(name)
    if not all(part.strip().isdecimal() for part in shots.split(",")):
        raise UserError(f"--shots {shots}: whole numbers separated by commas are wanted, such as 1,5,10")
    if layers not in get_args(Layers):
        raise UserError(f"--layers {layers}: all or last is wanted")
    counts = tuple(int(part) for part in shots.split(","))
    specs = [Protocol(name=name, shots=counts, draws=draws, layers=cast("Layers", layers)) for name in protocols]
    return Asked(tasks=named, protocols=tuple(dict.fromkeys(specs)))


def evaluate_timm(
    name: str,
    *,
    weights: Path | None,
    image_size: int | None,
    cell_id: str,
    asked: Asked,
    upstream: Published | str | None,
    tell: Tell = tell_nobody,
) -> pl.DataFrame:
    """Rows of `orchestrator.results.SCHEMA` for a public model, as a cell of family timm; what is not known is null.

    Args:
        name: timm's, with the tag of its weights or without.
        weights: a file; None lets timm download them.
        image_size: pixels; None for timm's own.
        cell_id: goes into every row.
        asked: tasks and protocols.
        upstream: a published accuracy, or the image set on whose held-out part the model's own head is measured.
        tell: hears how many images are measured upstream, and how many tasks are done.

    Raises:
        UserError: what `models.external` and `evals.external` raise.
    """
    from evals.external import evaluate_public
    from models.external import downloaded_model, model_with_weights

    public = downloaded_model(name, image_size) if weights is None else model_with_weights(name, weights, image_size)
    known = _upstream(public, upstream, tell)
    rows = evaluate_public(
        public, cell_id=cell_id, tasks=asked.tasks, protocols=asked.protocols, upstream=known, tell=tell
    )
    return _with_axes(rows, {"family": "timm", "size": name, "image_size": public.image_size})


def _upstream(public: "PublicModel", given: Published | str | None, tell: Tell) -> "Upstream":
    from evals.external import Upstream, measure_head

    if isinstance(given, str):
        return measure_head(public, given, tell)
    classes = public.num_classes or None
    if given is None:
        return Upstream(upstream_num_classes=classes)
    return Upstream(upstream_accuracy=given.accuracy, upstream_num_test=given.num_test, upstream_num_classes=classes)


def evaluate_folder(folder: Path, *, cell_id: str | None, asked: Asked, tell: Tell = tell_nobody) -> pl.DataFrame:
    """The same for a checkpoint folder of a study, wherever it lies now.

    Where it still lies below its cell, all axes are the cell's, and so is the id unless another is given.

    Raises:
        CheckpointError: it is no whole checkpoint.
        UserError: it lies elsewhere, and no id is given.
    """
    from evals import external

    axes = external.axes_of_folder(folder)
    cell = _cell_of(folder)
    cell_id = cell_id or cell.get("cell_id")
    if cell_id is None:
        raise UserError(f"{folder}: lies outside its study, so that its cell is not known: give it a --name")
    rows = external.evaluate_folder(folder, cell_id=cell_id, tasks=asked.tasks, protocols=asked.protocols, tell=tell)
    return _with_axes(rows, axes | cell)


def _cell_of(folder: Path) -> dict[str, Any]:
    """The record of the cell below which a checkpoint lies; empty where it lies elsewhere."""
    try:
        record: dict[str, Any] = json.loads((folder.resolve().parents[1] / "cell.json").read_text())
        recipe = Recipe.model_validate({name: value for name, value in record.items() if name != "cell_id"})
    except (OSError, ValueError, IndexError):
        return {}
    return {"cell_id": record.get("cell_id"), **recipe.model_dump(exclude={"dataset"})}


def _with_axes(rows: pl.DataFrame, axes: Mapping[str, Any]) -> pl.DataFrame:
    """In the columns of a study's results; a checkpoint that was asked for is the last one of its cell here."""
    columns = {name: pl.lit(axes.get(name), kind) for name, kind in AXIS_SCHEMA.items()}
    return rows.with_columns(last_checkpoint=pl.lit(True), **columns).select(list(SCHEMA))


def check_output(path: Path, *, append: bool) -> None:
    """Returns if rows may be written there.

    Raises:
        UserError: it is no .parquet file, or there is one that nothing was asked to be added to.
        DataError: what it is to be added to is no results table.
    """
    if path.suffix != ".parquet":
        raise UserError(f"--output {path}: a results table is a .parquet file")
    if path.exists() and not append:
        raise UserError(f"--output {path}: is there already: --append adds to it, or name another file")
    if path.exists():
        _read(path)


def _read(path: Path) -> pl.DataFrame:
    table = read_results(path).collect()
    lacking = [name for name in ("cell_id", "task", "protocol", "layer") if name not in table.columns]
    if lacking:
        raise DataError(
            f"{path}: has no column {', '.join(lacking)}, so no evaluation of Upshot wrote it: rows of published"
            " accuracies and probes of frozen features are not to be compared; name another file"
        )
    return table


def add_rows(rows: pl.DataFrame, path: Path, *, append: bool) -> int:
    """How many rows of the same cell were replaced. Readers see the old table or the new one.

    Several processes may add to one table: each waits for the others.

    Raises:
        UserError: another process holds the table for longer than a minute, or it cannot be written.
        DataError: the table that is there cannot be read.
    """
    try:
        with lock.holding(path.with_name(f".{path.name}.lock"), wait_s=WAIT_S):
            check_output(path, append=append)
            there = _read(path) if append and path.exists() else rows.clear()
            others = there.filter(pl.col("cell_id") != rows["cell_id"][0])
            write_results(_joined(others, rows, path), path)
            return there.height - others.height
    except lock.LockBusyError as error:
        raise UserError(f"--output {path}: {error.owner} is writing to it") from error


def _joined(others: pl.DataFrame, rows: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Columns that only one of the two has are null in the other's rows: versions of Upshot add columns."""
    kinds = {name: kind for name, kind in rows.schema.items() if name in others.columns}
    try:
        return pl.concat([others.cast(dict(kinds)), rows], how="diagonal")  # type: ignore[arg-type]
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: a column holds values of another kind than results have: {error}") from error


def summary(rows: pl.DataFrame) -> dict[str, Any]:
    """The cell with its mean accuracies at the last layer, ready for JSON."""
    accuracy = pl.col("downstream_accuracy")
    mean = pl.when(accuracy.is_not_null().all()).then(accuracy.mean())  # of all draws that were asked for, or none
    why = pl.coalesce(pl.col("reason").filter(accuracy.is_null()).first(), pl.col("reason").drop_nulls().first())
    tasks = rows.filter("last_layer").group_by("task", "protocol", "shots", maintain_order=True).agg(mean, why)
    first = rows.row(0, named=True)
    return {
        **{name: first[name] for name in ("cell_id", "family", "size", "image_size", "params", "num_layers")},
        "upstream_accuracy": first["upstream_accuracy"],
        "rows": rows.height,
        "tasks": tasks.to_dicts(),
    }
