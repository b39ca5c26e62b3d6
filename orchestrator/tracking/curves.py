"""What a mirror shows of a cell, read from its folder: the curves of training, and the metrics it ended with."""

import math
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeGuard

import polars as pl

from models.errors import DataError
from orchestrator.files import read_records

Metrics = dict[str, float | int | str | None]

CURVES: Final[dict[str, dict[str, str]]] = {
    "train": {
        "train_loss": "train/loss",
        "learning_rate": "train/learning_rate",
        "gradient_norm": "train/gradient_norm",
        "images_per_second": "train/images_per_second",
        "mfu": "train/mfu",
    },
    "checkpoint": {"upstream_accuracy": "upstream/accuracy", "upstream_loss": "upstream/loss"},
}
"""By event: the fields of a training record that make a curve, and the curve's name in a mirror."""

EVALUATION: Final = "evaluation"
"""The event of a checkpoint that was judged."""

COSTS: Final[tuple[str, ...]] = ("params", "flops")
"""Fields of a checkpoint's record: the model's parameters, and the training FLOPs up to that checkpoint."""

COUNTS: Final[dict[str, str]] = {
    "upstream_num_test": "upstream/num_test",
    "upstream_num_classes": "upstream/num_classes",
    "num_layers": "num_layers",
}
"""Columns of the results table that a run has once, by their names in its summary."""

TASK_VALUES: Final[dict[str, str]] = {
    "downstream_accuracy": "accuracy",
    "downstream_class_accuracy": "class_accuracy",
    "downstream_num_test": "num_test",
}
"""The same of those that each task, shots and protocol has, by the ends of their names."""

ROW_COLUMNS: Final = ("task", "protocol", "shots", "draw", "layer", "last_layer", "downstream_accuracy", "reason")
YOUNGER_COLUMNS: Final = {
    "downstream_class_accuracy": pl.Float64,
    "downstream_num_test": pl.Int64,
    "num_layers": pl.Int64,
}
"""Columns of results that a file may lack; they are then null."""
MEASURE_COLUMNS: Final = ("quantity", "layer", "label", "value")
DEFAULT_PROTOCOL: Final = "ridge"
MEASURES: Final = "upstream-*.parquet"
"""The files of upstream measures among those of a checkpoint (`evals.protocol.upstream_eval_id`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One record of a cell's curve. `index` counts the curve's records in the file, from 0."""

    index: int
    event: str
    step: int
    examples_seen: int
    time: float
    values: dict[str, float]
    costs: dict[str, float]
    counts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Curve:
    """A cell's training and checkpoint records in the order of the file, and how many lines could not be read."""

    points: list[Point]
    num_unreadable: int


def read_curve(cell_dir: Path) -> Curve:
    """Every training and checkpoint record of a cell; what cannot be read is counted, never fatal."""
    path = cell_dir / "train.ndjson"
    read = read_records(path)
    written = path.stat().st_mtime if read.records else 0.0
    points: list[Point] = []
    unreadable = read.num_torn
    for record in read.records:
        if record.get("event") not in tuple(CURVES):
            continue
        if all(type(record.get(key)) is int for key in ("step", "examples_seen")):
            points.append(_point(record, len(points), written))
        else:
            unreadable += 1
    return Curve(points, unreadable)


def _point(record: dict[str, Any], index: int, written: float) -> Point:
    event = record["event"]
    when = record.get("time")
    return Point(
        index=index,
        event=event,
        step=record["step"],
        examples_seen=record["examples_seen"],
        time=float(when) if is_number(when) else written,
        values={name: float(record[key]) for key, name in CURVES[event].items() if is_number(record.get(key))},
        costs={key: record[key] for key in COSTS if is_number(record.get(key))},
        counts={name: record[key] for key, name in COUNTS.items() if is_number(record.get(key))},
    )


def current_points(points: Iterable[Point], told: Set[tuple[str, int]] = frozenset()) -> list[Point]:
    """The points that say something new, in order: those whose event and step were not `told`.

    A resumed cell repeats the steps after its checkpoint: the later record counts.
    """
    latest = {(point.event, point.step): point for point in points}
    return sorted((latest[key] for key in latest.keys() - told), key=lambda point: point.index)


def final_metrics(cell_dir: Path, curve: Curve) -> Metrics:
    """The newest checkpoint's upstream metrics, costs and counts, and the downstream ones of the same checkpoint.

    Evaluations of an earlier checkpoint are left out: beside the newest upstream accuracy they would be a pair that
    never existed.

    Raises:
        DataError: an evaluation's file cannot be read.
    """
    checkpoints = [point for point in curve.points if point.event == "checkpoint"]
    metrics: Metrics = {}
    if checkpoints:
        last = max(checkpoints, key=lambda point: (point.step, point.index))
        folder = cell_dir / "evals" / f"step_{last.step:08d}"
        metrics |= upstream_metrics(folder) | last.costs | last.values | last.counts | downstream_results(folder)
    if curve.points:
        newest = max(curve.points, key=lambda point: (point.step, point.index))
        metrics |= {"step": newest.step, "examples_seen": newest.examples_seen}
    return metrics


def upstream_metrics(folder: Path) -> Metrics:
    """By name, `upstream/QUANTITY` of one checkpoint over all classes, of the last layer where layers have it.

    Of several files the newest counts. A value that is no number is None.

    Raises:
        DataError: the file is torn or has other columns.
    """
    files = sorted(folder.glob(MEASURES), key=_age)
    if not files:
        return {}
    rows = _read_rows(files[-1], MEASURE_COLUMNS).filter(pl.col("label").is_null()).sort("layer", nulls_last=False)
    return {
        f"upstream/{quantity}": value if value is not None and math.isfinite(value) else None
        for quantity, value in rows.select("quantity", "value").iter_rows()
    }


def downstream_metrics(folder: Path) -> Metrics:
    """By name, the results of one checkpoint: `downstream/TASK/SHOTSshot/accuracy`, `/class_accuracy`, `/best_layer`.

    Accuracy is the mean over the draws at the last layer; the best layer has the highest such mean, the lowest one on
    ties, and is given where several were probed. A mean over fewer draws than asked is None, with a `/reason`. Where
    several files hold the same task and shots the newest counts. Protocols other than ridge stand in the name, as
    `downstream/TASK/SHOTSshot/PROTOCOL/accuracy`; `all` stands there for the shots of those that have none.

    Raises:
        DataError: a file is torn or has other columns.
    """
    results = downstream_results(folder)
    return {name: value for name, value in results.items() if not _is_count(name)}


def downstream_results(folder: Path) -> Metrics:
    """The metrics of `downstream_metrics`, and what is the same for all checkpoints: `/num_test`, and `num_layers`.

    Raises:
        DataError: as there.
    """
    files = {*folder.glob("*.parquet")} - {*folder.glob(MEASURES)}
    if not files:
        return {}
    rows = pl.concat(_read_results(path).with_columns(file=pl.lit(i)) for i, path in enumerate(sorted(files, key=_age)))
    group = ["task", "protocol", "shots"]
    rows = rows.filter(pl.col("file") == pl.col("file").max().over(group)).sort(*group, "layer", "draw")
    layers = rows.group_by(*group, "layer", maintain_order=True).agg(
        pl.col("last_layer").any(),
        _mean("downstream_accuracy").alias("mean"),
        _mean("downstream_class_accuracy").alias("class_mean"),
        pl.col("downstream_num_test").max().alias("num_test"),
        pl.col("reason").drop_nulls().first(),
    )
    metrics: Metrics = {}
    for (task, protocol, shots), table in layers.group_by(*group, maintain_order=True):
        metrics |= _task_metrics(task_prefix(task, shots, protocol), table.rows(named=True))
    num_layers = rows["num_layers"].max()
    return metrics if num_layers is None else {**metrics, "num_layers": int(num_layers)}  # type: ignore[arg-type]


def _is_count(name: str) -> bool:
    return name == COUNTS["num_layers"] or name.endswith(f"/{TASK_VALUES['downstream_num_test']}")


def _mean(column: str) -> pl.Expr:
    """Over all draws, or null."""
    return pl.when(pl.col(column).is_not_null().all()).then(pl.col(column).mean())


def task_prefix(task: object, shots: object, protocol: object) -> str:
    """What the names of a task's metrics begin with: `downstream/TASK/SHOTSshot[/PROTOCOL]`; no protocol is ridge."""
    qualifier = "" if protocol in (None, DEFAULT_PROTOCOL) else f"/{protocol}"
    return f"downstream/{task}/{'all' if shots is None else f'{shots}shot'}{qualifier}"


def _age(path: Path) -> tuple[int, str]:
    return path.stat().st_mtime_ns, path.name


def _read_results(path: Path) -> pl.DataFrame:
    rows = _read_rows(path, ROW_COLUMNS, tuple(YOUNGER_COLUMNS))
    absent = [pl.lit(None).alias(name) for name in YOUNGER_COLUMNS if name not in rows.columns]
    kinds = {"shots": pl.Int64, "downstream_accuracy": pl.Float64, "reason": pl.String, **YOUNGER_COLUMNS}
    cast = {name: pl.col(name).cast(kind) for name, kind in kinds.items()}
    return rows.with_columns(absent).select(cast.get(name, pl.col(name)) for name in (*ROW_COLUMNS, *YOUNGER_COLUMNS))


def _read_rows(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> pl.DataFrame:
    try:
        rows = pl.read_parquet(path)
        return rows.select(*columns, *(name for name in optional if name in rows.columns))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path}: the evaluation cannot be read: {str(error).splitlines()[0]}") from error


def _task_metrics(prefix: str, layers: list[dict[str, Any]]) -> Metrics:
    last = next((layer for layer in layers if layer["last_layer"]), None)
    metrics: Metrics = {f"{prefix}/accuracy": last["mean"] if last else None}
    if metrics[f"{prefix}/accuracy"] is None:
        reasons = [layer["reason"] for layer in ([last] if last else layers) if layer["reason"]]
        metrics[f"{prefix}/reason"] = reasons[0] if reasons else "not every draw has an accuracy"
    if len(layers) > 1 and all(layer["mean"] is not None for layer in layers):
        metrics[f"{prefix}/best_layer"] = max(layers, key=lambda layer: (layer["mean"], -layer["layer"]))["layer"]
    others = {"class_accuracy": last["class_mean"], "num_test": last["num_test"]} if last else {}
    return metrics | {f"{prefix}/{name}": value for name, value in others.items() if value is not None}


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a number; true and false are none. NaN and infinities are."""
    return isinstance(value, int | float) and not isinstance(value, bool)
