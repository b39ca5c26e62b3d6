"""From a checkpoint to rows of the results table: one parquet file a task, written whole or not at all.

Shape suffixes: N images, H and W pixels, C channels, D features.
"""

import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from torch import nn

from evals import datasets
from evals.datasets import TaskData
from evals.features import extract_features
from evals.fewshot import FIXED_LAMBDA, LAMBDAS, Features, FewShotError, Integers, ProbeResult, draw_shots, probe
from evals.protocol import RESULT_SCHEMA, Layers, Protocol
from models.data import Square
from models.errors import CheckpointError
from models.inputs import Inputs
from models.ladder import Architecture, layer_elements, num_layers

MAX_BATCH: Final = 128
"""Fastest for small models on one CPU thread; larger batches fall out of its caches."""

ACTIVATION_BYTES: Final = 2**30
"""What the pooled-from block outputs of one batch may take, since one pass holds those of every layer."""

_LAMBDAS: Final = {"ridge": LAMBDAS, "ridge-fixed": (FIXED_LAMBDA,)}
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

Row = dict[str, object]
LoadModel = Callable[[Path], nn.Module]
LoadTask = Callable[[str, Square], TaskData]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """What has to be known of a model that is of no size of the ladder.

    Attributes:
        num_layers: block outputs to probe.
        layer_elements: numbers that these hold together, for one image.
        inputs: how it wants images.
    """

    num_layers: int
    layer_elements: int
    inputs: Inputs

    @classmethod
    def of(cls, a: Architecture) -> "Backbone":
        """That of a model of the ladder, or of a timm model that was trained in a study."""
        return cls(num_layers=num_layers(a), layer_elements=layer_elements(a), inputs=Inputs(square=a.image_size))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """What is judged, and how: the columns that all rows of a checkpoint share."""

    cell_id: str
    checkpoint: Mapping[str, Any]
    spec: Protocol
    num_layers: int

    def row(self, task: str, *, shots: int, draw: int, layer: int, result: ProbeResult, num_test: int | None) -> Row:
        return {
            "cell_id": self.cell_id,
            **{name: _finite_or_none(self.checkpoint[name]) for name in _CHECKPOINT_COLUMNS},
            "task": task,
            "protocol": self.spec.name,
            "shots": shots,
            "draw": draw,
            "layer": layer,
            "num_layers": self.num_layers,
            "last_layer": layer == self.num_layers - 1,
            "regularisation": result.regularisation,
            "downstream_accuracy": result.accuracy,
            "downstream_class_accuracy": result.class_accuracy,
            "downstream_num_test": num_test,
            "downstream_duplicates": None,
            "method": self.spec.method.sentence,
            "reason": result.reason,
        }

    def combinations(self) -> Iterator[tuple[int, int, int]]:
        """(shots, draw, layer) of every row of a task."""
        layers = range(self.num_layers - 1 if self.spec.layers == "last" else 0, self.num_layers)
        return product(self.spec.shots, range(self.spec.draws), layers)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Encoded:
    """Features by layer: of the training images that some draw has, at the indices `used`, and of all test images."""

    used: Integers
    train: Sequence[Features]
    test: Sequence[Features]


def evaluate_checkpoint(
    checkpoint_dir: Path,
    output_dir: Path,
    *,
    cell_id: str,
    architecture: Architecture | Backbone,
    checkpoint: Mapping[str, Any],
    tasks: Sequence[str],
    protocol: str = "ridge",
    shots: Sequence[int] = (1, 5, 10, 25),
    draws: int = 3,
    layers: Layers = "all",
    load_model: LoadModel,
    load_task: LoadTask = datasets.load_task,
) -> list[Path]:
    """The files that were written: `output_dir`/<eval_id>.parquet for every task that had none yet.

    A file has one row for every shot count, draw and layer. Shots that a class of the task has too few images for, and
    features that are not finite, give rows with a null accuracy and the reason. A checkpoint whose upstream loss is not
    finite gives null rows only (`write_null_rows`), and no model is loaded. Tasks are written one by one, so a job that
    is killed keeps what it had.

    Args:
        checkpoint_dir: what `load_model` is called with, once, when something is missing.
        output_dir: made when it is not there.
        cell_id: goes into every row.
        architecture: of the checkpoint's model, or what has to be known of another one.
        checkpoint: `step`, `examples_seen`, `upstream_accuracy`, `upstream_loss`, `upstream_num_test`,
            `upstream_num_classes`, `params` and `flops` (training FLOPs up to this checkpoint); others are ignored.
            Numbers that are not finite become null.
        tasks: their names.
        protocol: "ridge" or "ridge-fixed".
        shots: images a class.
        draws: how many times they are drawn.
        layers: "all", or "last" for the pre-logits features alone.
        load_model: gives the model, on the device where it is to run.
        load_task: gives a task's images, by its name and how the model wants them made square.

    Raises:
        UserError: an unknown task or protocol, images that are missing, a checkpoint without one of its numbers.
        OSError: a file could not be written.
    """
    spec = Protocol(name=protocol, shots=tuple(shots), draws=draws, layers=layers)
    backbone = architecture if isinstance(architecture, Backbone) else Backbone.of(architecture)
    subject = _subject(cell_id, backbone, checkpoint, spec)
    missing = _missing(output_dir, tasks, spec)
    loss = checkpoint["upstream_loss"]
    if loss is not None and not math.isfinite(loss):
        return [_write_rows(path, _null_rows(subject, task, _diverged(checkpoint))) for task, path in missing]
    if not missing:
        return []
    model = load_model(checkpoint_dir)
    return [
        _write_rows(path, _judge(subject, backbone, model, task, load_task(task, backbone.inputs.square)))
        for task, path in missing
    ]


def write_null_rows(
    output_dir: Path,
    *,
    cell_id: str,
    architecture: Architecture,
    checkpoint: Mapping[str, Any],
    tasks: Sequence[str],
    protocol: str = "ridge",
    shots: Sequence[int] = (1, 5, 10, 25),
    draws: int = 3,
    layers: Layers = "all",
    reason: str | None = None,
) -> list[Path]:
    """The files that were written, as by `evaluate_checkpoint`, every accuracy null: divergence is a result too.

    The arguments are those of `evaluate_checkpoint`; `reason` says why there is no accuracy, "diverged at step N" when
    it is not given.

    Raises:
        UserError: an unknown protocol, or a checkpoint without one of its numbers.
        OSError: a file could not be written.
    """
    spec = Protocol(name=protocol, shots=tuple(shots), draws=draws, layers=layers)
    subject = _subject(cell_id, Backbone.of(architecture), checkpoint, spec)
    reason = reason if reason is not None else _diverged(checkpoint)
    return [_write_rows(path, _null_rows(subject, task, reason)) for task, path in _missing(output_dir, tasks, spec)]


def _subject(cell_id: str, backbone: Backbone, checkpoint: Mapping[str, Any], spec: Protocol) -> _Subject:
    absent = [name for name in _CHECKPOINT_COLUMNS if name not in checkpoint]
    if absent:
        raise CheckpointError(f"cell {cell_id}: the checkpoint's metrics lack {', '.join(absent)}")
    # The pre-logits features are one layer more than the blocks.
    return _Subject(cell_id=cell_id, checkpoint=checkpoint, spec=spec, num_layers=backbone.num_layers + 1)


def _missing(output_dir: Path, tasks: Sequence[str], spec: Protocol) -> list[tuple[str, Path]]:
    paths = {task: output_dir / f"{spec.eval_id(task)}.parquet" for task in tasks}
    return [(task, path) for task, path in paths.items() if not path.exists()]


def _diverged(checkpoint: Mapping[str, Any]) -> str:
    return f"diverged at step {checkpoint['step']}"


def _finite_or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _null_rows(subject: _Subject, task: str, reason: str) -> Iterator[Row]:
    for shots, draw, layer in subject.combinations():
        yield subject.row(task, shots=shots, draw=draw, layer=layer, result=ProbeResult(reason=reason), num_test=None)


def _judge(subject: _Subject, backbone: Backbone, model: nn.Module, task: str, data: TaskData) -> Iterator[Row]:
    drawn, reasons = _draw_all(task, data, subject.spec)
    encoded = _encode(subject, backbone, model, data, drawn) if drawn else None
    for shots, draw, layer in subject.combinations():
        if encoded is None or shots in reasons:
            result = ProbeResult(reason=reasons[shots])
        else:
            index_N = drawn[shots, draw]
            result = probe(
                encoded.train[layer][np.searchsorted(encoded.used, index_N)],
                data.train_labels_N[index_N],
                encoded.test[layer],
                data.test_labels_N,
                num_classes=len(data.classes),
                lambdas=_LAMBDAS[subject.spec.name],
            )
        yield subject.row(task, shots=shots, draw=draw, layer=layer, result=result, num_test=len(data.test_labels_N))


def _draw_all(task: str, data: TaskData, spec: Protocol) -> tuple[dict[tuple[int, int], Integers], dict[int, str]]:
    """Indices by (shots, draw), and the reason by shots that cannot be judged."""
    if len(data.test_labels_N) == 0:
        return {}, dict.fromkeys(spec.shots, f"task {task!r} has no test images")
    drawn: dict[tuple[int, int], Integers] = {}
    reasons: dict[int, str] = {}
    for shots in spec.shots:
        try:
            for draw in range(spec.draws):
                drawn[shots, draw] = draw_shots(task, data.train_labels_N, classes=data.classes, shots=shots, draw=draw)
        except FewShotError as error:
            reasons[shots] = str(error)
    return drawn, reasons


def _encode(
    subject: _Subject,
    backbone: Backbone,
    model: nn.Module,
    data: TaskData,
    drawn: Mapping[tuple[int, int], Integers],
) -> _Encoded:
    used_N = np.unique(np.concatenate(list(drawn.values())))
    train, test = (
        extract_features(
            model,
            images_NHWC,
            batch_size=_batch_size(backbone),
            mean=backbone.inputs.mean,
            std=backbone.inputs.std,
        )
        for images_NHWC in (data.train_images_NHWC[used_N], data.test_images_NHWC)
    )
    assert len(test) == subject.num_layers, f"{len(test)} layers encoded, {subject.num_layers} expected"
    return _Encoded(used=used_N, train=train, test=test)


def _batch_size(backbone: Backbone) -> int:
    return max(1, min(MAX_BATCH, ACTIVATION_BYTES // (4 * max(1, backbone.layer_elements))))


def _write_rows(path: Path, rows: Iterator[Row]) -> Path:
    table = pl.DataFrame(list(rows), schema=RESULT_SCHEMA, orient="row")
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
