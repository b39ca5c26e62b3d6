"""From a checkpoint to rows of the results table: a parquet file a task and protocol, written whole or not at all."""

import hashlib
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import polars as pl
from torch import nn

from evals import datasets
from evals.datasets import TaskData
from evals.encoding import Encoder
from evals.judge import Judge, Judged
from evals.measures import MEASURES_SCHEMA, Row, null_measures
from evals.protocol import RESULT_SCHEMA, Protocol, upstream_eval_id
from models.data import Square
from models.errors import CheckpointError, DataError
from models.inputs import Inputs
from models.ladder import Architecture, layer_elements, num_layers

MAX_BATCH: Final = 128
"""Fastest for small models on one CPU thread; larger batches fall out of its caches."""

ACTIVATION_BYTES: Final = 2**30
"""What the pooled-from block outputs of one batch may take, since one pass holds those of every layer."""

_CHECKPOINT_COLUMNS: Final = (
    "params",
    "flops",
    "step",
    "examples_seen",
    "upstream_accuracy",
    "upstream_loss",
    "upstream_num_test",
    "upstream_num_classes",
)

LoadModel = Callable[[Path], nn.Module]
LoadTask = Callable[[str, Square], TaskData]
MeasureUpstream = Callable[[nn.Module, int], list[Row]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """What has to be known of a model.

    Attributes:
        num_blocks: whose outputs are probed, beside the pre-logits features.
        layer_elements: numbers that these outputs hold together, for one image.
        inputs: how it wants images.
    """

    num_blocks: int
    layer_elements: int
    inputs: Inputs

    @classmethod
    def of(cls, a: Architecture) -> "Backbone":
        """That of a model of the ladder, or of a timm model that was trained in a study."""
        return cls(num_blocks=num_layers(a), layer_elements=layer_elements(a), inputs=Inputs(square=a.image_size))


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is judged: the columns that all rows of a checkpoint share.

    Args:
        cell_id: goes into every row.
        backbone: its model.
        checkpoint: `step`, `examples_seen`, `upstream_accuracy`, `upstream_loss`, `upstream_num_test`,
            `upstream_num_classes`, `params` and `flops` (training FLOPs up to this checkpoint); others are ignored.
            Numbers that are not finite become null.

    Raises:
        CheckpointError: one of these numbers is not there.
    """

    cell_id: str
    backbone: Backbone
    checkpoint: Mapping[str, Any]

    def __post_init__(self) -> None:
        absent = [name for name in _CHECKPOINT_COLUMNS if name not in self.checkpoint]
        if absent:
            raise CheckpointError(f"cell {self.cell_id}: the checkpoint's metrics lack {', '.join(absent)}")

    @property
    def num_layers(self) -> int:
        """The pre-logits features are one layer more than the blocks."""
        return self.backbone.num_blocks + 1

    @property
    def batch_size(self) -> int:
        """Images a forward pass."""
        return max(1, min(MAX_BATCH, ACTIVATION_BYTES // (4 * max(1, self.backbone.layer_elements))))

    def encoder(self, model: Callable[[], nn.Module], folder: Path | None) -> Encoder:
        """What gives features of its model, or of a folder that has them."""
        return Encoder(
            model=model,
            num_layers=self.num_layers,
            batch_size=self.batch_size,
            to_input=self.backbone.inputs.to_input,
            folder=folder,
        )

    @property
    def has_diverged(self) -> bool:
        """Whether its upstream loss is known not to be a number."""
        loss = self.checkpoint["upstream_loss"]
        return loss is not None and not math.isfinite(loss)

    def row(self, task: str, protocol: Protocol, shots: int | None, draw: int, layer: int, judged: Judged) -> Row:
        """One of the results table, but for the number of test images."""
        return {
            "cell_id": self.cell_id,
            **{name: _finite_or_none(self.checkpoint[name]) for name in _CHECKPOINT_COLUMNS},
            "task": task,
            "protocol": protocol.name,
            "shots": shots,
            "draw": draw,
            "layer": layer,
            "num_layers": self.num_layers,
            "last_layer": layer == self.num_layers - 1,
            "regularisation": judged.regularisation,
            "downstream_accuracy": judged.accuracy,
            "downstream_class_accuracy": judged.class_accuracy,
            "downstream_duplicates": judged.duplicates,
            "method": protocol.method.sentence,
            "reason": judged.reason,
        }

    def measure(self, row: Row) -> Row:
        """One of the measures' table."""
        shared = {name: self.checkpoint[name] for name in ("step", "examples_seen")}
        return {"cell_id": self.cell_id, **shared, **row}


def evaluate_checkpoint(
    checkpoint_dir: Path,
    output_dir: Path,
    subject: Subject,
    *,
    tasks: Sequence[str],
    protocols: Sequence[Protocol],
    load_model: LoadModel,
    load_task: LoadTask = datasets.load_task,
    upstream: MeasureUpstream | None = None,
    by_class: bool = False,
    keep_features: bool = False,
) -> list[Path]:
    """The files that were written: of every task and protocol that had none yet, and of the upstream measures.

    They are `output_dir`/<eval_id>.parquet, with a row for every shot count, draw and layer. Protocols share the
    forward passes of a task. Shots that a class of the task has too few images for, and features that are not finite,
    give rows with a null accuracy and the reason. A checkpoint whose upstream loss is not finite gives null rows only,
    and no model is loaded. Tasks are written one by one, so a job that is killed keeps what it had.

    Args:
        checkpoint_dir: what `load_model` is called with, once, when something is missing.
        output_dir: made when it is not there.
        subject: whose checkpoint it is.
        tasks: their names.
        protocols: how each is judged.
        load_model: gives the model, on the device where it is to run.
        load_task: gives a task's images, by its name and how the model wants them made square.
        upstream: gives the rows of the upstream measures, for the model and images a forward pass; None for none.
        by_class: whether these are of each class too.
        keep_features: whether the features stay in `output_dir`/features-<task's digest>, so that protocols that are
            asked for later need no model.

    Raises:
        UserError: an unknown task, or images that are missing or unreadable, once everything else is there.
        OSError: a file could not be written.
    """
    if subject.has_diverged:
        return write_null_rows(
            output_dir, subject, tasks=tasks, protocols=protocols, upstream=upstream is not None, by_class=by_class
        )
    model, inputs = cache(partial(load_model, checkpoint_dir)), subject.backbone.inputs
    written: list[Path] = []
    unreadable: list[DataError] = []
    for task, missing in _missing(output_dir, tasks, protocols).items():
        kept = _features_folder(output_dir, task) if keep_features else None
        try:
            judge = Judge(encoder=subject.encoder(model, kept), data=load_task(task, inputs.square), task=task)
            written += _judge(subject, judge, missing)
        except DataError as error:  # of this task's images alone
            unreadable.append(error)
    # Last: the upstream images may be gone, and no task needs them.
    measures = _upstream_path(output_dir, by_class)
    if upstream is not None and not measures.exists():
        rows = [subject.measure(row) for row in upstream(model(), subject.batch_size)]
        written.append(_write_rows(measures, rows, MEASURES_SCHEMA))
    if unreadable:
        raise DataError("; ".join(map(str, unreadable))) from unreadable[0]
    return written


def write_null_rows(
    output_dir: Path,
    subject: Subject,
    *,
    tasks: Sequence[str],
    protocols: Sequence[Protocol],
    upstream: bool = False,
    by_class: bool = False,
    reason: str | None = None,
) -> list[Path]:
    """The files that were written, as by `evaluate_checkpoint`, every accuracy null: divergence is a result too.

    `reason` says why there is no accuracy, "diverged at step N" when it is not given.

    Raises:
        OSError: a file could not be written.
    """
    reason = reason if reason is not None else f"diverged at step {subject.checkpoint['step']}"
    judged, written = Judged(reason=reason), []
    measures = _upstream_path(output_dir, by_class)
    if upstream and not measures.exists():
        rows = [subject.measure(row) for row in null_measures(subject.num_layers, (), reason)]
        written.append(_write_rows(measures, rows, MEASURES_SCHEMA))
    for task, missing in _missing(output_dir, tasks, protocols).items():
        for protocol, path in missing.items():
            first = 0 if protocol.layers == "all" else subject.num_layers - 1
            rows = [
                subject.row(task, protocol, shots, draw, layer, judged)
                for shots, draw in protocol.combinations()
                for layer in range(first, subject.num_layers)
            ]
            written.append(_write_rows(path, rows, RESULT_SCHEMA))
    return written


def _upstream_path(output_dir: Path, by_class: bool) -> Path:
    return output_dir / f"{upstream_eval_id(by_class=by_class)}.parquet"


def _missing(output_dir: Path, tasks: Sequence[str], protocols: Sequence[Protocol]) -> dict[str, dict[Protocol, Path]]:
    """By task, the protocols that have no file there, with its path."""
    paths = {
        task: {protocol: output_dir / f"{protocol.eval_id(task)}.parquet" for protocol in protocols} for task in tasks
    }
    missing = {task: {p: path for p, path in of_task.items() if not path.exists()} for task, of_task in paths.items()}
    return {task: of_task for task, of_task in missing.items() if of_task}


def _features_folder(output_dir: Path, task: str) -> Path:
    """Named by a digest, since the name of a task may be a path."""
    return output_dir / f"features-{hashlib.sha256(task.encode()).hexdigest()[:12]}"


def _judge(subject: Subject, judge: Judge, missing: Mapping[Protocol, Path]) -> Iterator[Path]:
    results = judge.results(list(missing))
    num_test = len(judge.data.test.labels_N)
    for protocol, path in missing.items():
        rows = [
            subject.row(judge.task, protocol, probed.fit.shots, probed.fit.draw, probed.layer, judged)
            | {"downstream_num_test": num_test}
            for probed, judged in results.items()
            if probed.fit.protocol == protocol
        ]
        yield _write_rows(path, rows, RESULT_SCHEMA)


def _finite_or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _write_rows(path: Path, rows: Sequence[Row], schema: Mapping[str, type[pl.DataType]]) -> Path:
    table = pl.DataFrame(rows, schema=schema, orient="row")
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name does not end in .parquet, so that no reader takes a draft for a result.
    draft = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp")
    try:
        with draft.open("xb") as file:
            table.write_parquet(file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path
