"""What the report knows: the inputs of `write_report` as tidy tables. Pure.

Accuracies are fractions in [0, 1]. Every table is sorted, so that the same inputs make the same report byte for byte,
but for PDF files: their renderer puts fonts and other resources in a random order.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from orchestrator import conflicts
from orchestrator.columns import tidied
from orchestrator.effects import frames_of, residuals
from orchestrator.effects.layers import BEST_LAYERS_SCHEMA, LOST_SCHEMA, LayerMeans, best_of, layer_means
from orchestrator.effects.measures import ALONG_SCHEMA, along, quantities_at_depths
from orchestrator.operations import Operations
from orchestrator.report.choices import Choices, choices_of
from orchestrator.results import AXIS_SCHEMA
from orchestrator.selection import select_cells

MODEL = ("family", "size")
LISTED_CONFLICTS = 20  # of each task and number of shots, in the tables; the page shows fewer

STATE_SCHEMA: dict[str, type[pl.DataType]] = {
    "status": pl.String,
    "cause": pl.String,
    "attempts": pl.Int64,
    "seconds": pl.Float64,
    "checkpoints": pl.Int64,
    "missing_evaluations": pl.Int64,
}
LAYERS_SCHEMA: dict[str, type[pl.DataType]] = {
    "task": pl.String,
    "shots": pl.Int64,
    "family": pl.String,
    "size": pl.String,
    "series": pl.String,
    "params": pl.Int64,
    "layer": pl.Int64,
    "num_layers": pl.Int64,
    "depth": pl.Float64,
    "accuracy": pl.Float64,
    "cells": pl.Int64,
    "best": pl.Boolean,
}
POINTS_SCHEMA: dict[str, type[pl.DataType]] = {
    "task": pl.String,
    "shots": pl.Int64,
    "cell_id": pl.String,
    "upstream": pl.Float64,
    "downstream": pl.Float64,
}
LAST_MEASURES_SCHEMA: dict[str, type[pl.DataType]] = {
    "cell_id": pl.String,
    "quantity": pl.String,
    "layer": pl.Int64,
    "value": pl.Float64,
    "reason": pl.String,
}
RESIDUALS_SCHEMA: dict[str, type[pl.DataType]] = {"shots": pl.Int64, "cell_id": pl.String, "residual": pl.Float64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One study, tidied.

    Args:
        cells: one row a cell: cell_id, the axes, `text` (the axes in words), params, flops, upstream, and
            `STATE_SCHEMA` (null for imported tables, which have no states).
        points: one row per task, shots and cell (`POINTS_SCHEMA`): what the reducer looked at.
        layers: mean accuracy of each layer over the cells of a family and size (`LAYERS_SCHEMA`); of equally good
            layers the last is the best.
        measures: what each cell's last checkpoint is on the upstream images (`LAST_MEASURES_SCHEMA`), over all classes:
            of the last layer where a quantity is one of layers, null where it is no number.
        best: the best layer of every task, shots and cell (`effects.layers.BEST_LAYERS_SCHEMA`).
        layers_lost: rows of layers that do not count, by reason (`effects.layers.LOST_SCHEMA`).
        residuals: what a cell does downstream beyond its upstream accuracy, mean over its tasks (`RESIDUALS_SCHEMA`).
        along: what the measures go along with (`effects.measures.ALONG_SCHEMA`).
        effects: the reducer's effects as frames (`effects.SCHEMAS`).
        changes: what raising one axis did (`conflicts.CONTROLLED_SCHEMA`).
        differing: on which axes the conflicting pairs differ (`conflicts.DIFFERING_SCHEMA`).
        crowded: axes that are not among the changes, and how many values they have.
        strongest: the strongest conflicts (`conflicts.STRONGEST_SCHEMA`).
        choices: the accuracies at every protocol, number of shots and layer, as far as the page has room.
        protocol: whose values these are; None where the table does not say.
        tasks: the reducer's objects, one per task and shots.
        axes: the columns of `cells` that are axes, in the order of `conflicts.axes_of`.
        varying: those that have more than one value here.
        methods: how the values were measured, as their `method` column says.
        num_draws: the most draws of any value.
        num_states: cells of which a state is known.
        operations: what the study took; None where that is not known.
    """

    cells: pl.DataFrame
    points: pl.DataFrame
    layers: pl.DataFrame
    measures: pl.DataFrame
    best: pl.DataFrame
    layers_lost: pl.DataFrame
    residuals: pl.DataFrame
    along: pl.DataFrame
    effects: Mapping[str, pl.DataFrame]
    changes: pl.DataFrame
    differing: pl.DataFrame
    crowded: Mapping[str, int]
    strongest: pl.DataFrame
    choices: Choices
    protocol: str | None
    tasks: list[dict[str, Any]]
    axes: tuple[str, ...]
    varying: tuple[str, ...]
    methods: tuple[str, ...]
    num_draws: int
    num_states: int
    operations: Operations | None = None

    @property
    def task_names(self) -> list[str]:
        """Tasks in the order of the reducer."""
        return list(dict.fromkeys(task["task"] for task in self.tasks))

    @property
    def shots(self) -> list[int | None]:
        """Numbers of shots, ascending; [None] where a table knows none; empty without results."""
        found = {task["shots"] for task in self.tasks}
        return sorted(found, key=lambda shots: -1 if shots is None else shots)

    @property
    def dropped(self) -> dict[str, int]:
        """Rows that the reducer could not use, by reason, over all tasks."""
        counts: Counter[str] = Counter()
        for task in self.tasks:
            counts.update(task["dropped"])
        return dict(sorted(counts.items()))

    @property
    def job_seconds(self) -> float:
        """What all attempts took; also those that left no record of their end, where attempts are known."""
        known = self.cells if self.operations is None else self.operations.attempts
        return float(known["seconds"].sum())

    @property
    def families(self) -> tuple[str, ...]:
        """Families by name."""
        if "family" not in self.cells.columns:
            return ()
        return tuple(self.cells["family"].drop_nulls().unique().sort().to_list())

    @property
    def params(self) -> tuple[int, int] | None:
        """The smallest and the largest parameter count; None where that of a measured cell is unknown."""
        measured = self.cells.join(self.points, on="cell_id", how="semi")["params"]
        if measured.has_nulls() or self.cells["params"].drop_nulls().is_empty():
            return None
        return self.cells["params"].min(), self.cells["params"].max()  # type: ignore[return-value]  # of an Int64 column


def gather(
    results: pl.DataFrame,
    reduced: Mapping[str, Any],
    states: Sequence[Mapping[str, Any]],
    measures: pl.DataFrame | None = None,
    operations: Operations | None = None,
) -> Facts:
    """The facts of a study.

    Args:
        results: the results table, an imported one, or an empty one.
        reduced: what `reduce_study` made of it; `{"tasks": []}` without results.
        states: one object a cell as `CellState.to_json` makes it; empty for imported tables.
        measures: the table of upstream measures (`results.UPSTREAM_SCHEMA`), where there is one.
        operations: what the study took, where that is known.

    Raises:
        DataError: as `reduce_study`.
    """
    results = tidied(results.lazy()).collect()
    cells, axes, varying = _cells(results, states)
    if results.is_empty():
        points = pl.DataFrame(schema=POINTS_SCHEMA)
        changes, strongest = (pl.DataFrame(schema=s) for s in (conflicts.CONTROLLED_SCHEMA, conflicts.STRONGEST_SCHEMA))
        differing, crowded = pl.DataFrame(schema=conflicts.DIFFERING_SCHEMA), {}
        residual, layers = pl.DataFrame(schema=RESIDUALS_SCHEMA), None
        choices = Choices()
    else:
        selection = select_cells(results, reduced.get("protocol"))
        points = selection.cells.select(list(POINTS_SCHEMA)).sort("task", "shots", "cell_id")
        changes = conflicts.controlled_pairs(selection.cells)
        differing = conflicts.conflicts_by_axis(selection.cells)
        strongest = conflicts.strongest_pairs(selection.cells, LISTED_CONFLICTS)
        crowded = conflicts.crowded_axes(selection.cells)
        residual = _mean_residuals(selection.cells)
        layers = layer_means(results, selection.protocol)
        choices = choices_of(results, selection.protocol, cells)
    return Facts(
        cells=cells,
        points=points,
        layers=_mean_layers(layers, cells),
        measures=_last_measures(measures),
        best=pl.DataFrame(schema=BEST_LAYERS_SCHEMA) if layers is None else best_of(layers),
        layers_lost=pl.DataFrame(schema=LOST_SCHEMA) if layers is None else layers.lost,
        residuals=residual,
        along=_along(measures, cells, residual, reduced["tasks"]),
        effects=frames_of(reduced.get("effects", {})),
        changes=changes,
        differing=differing,
        crowded=crowded,
        strongest=strongest,
        choices=choices,
        protocol=reduced.get("protocol"),
        tasks=list(reduced["tasks"]),
        axes=axes,
        varying=varying,
        methods=_texts(results, "method"),
        num_draws=_num_draws(results),
        num_states=len(states),
        operations=operations,
    )


def axes_text(row: Mapping[str, Any], varying: Sequence[str]) -> str:
    """A cell in words: its model, then the axes in which cells of this study differ."""
    model = [str(row[axis]) for axis in MODEL if row.get(axis) is not None]
    others = [axis for axis in varying if axis not in MODEL and row.get(axis) is not None]
    return ", ".join([" ".join(model), *(f"{axis} {plain(row[axis])}" for axis in others)]).removeprefix(", ")


def plain(value: object) -> str:
    """An axis's value as people write it: 1 for 1.0, 0.001 as it stands."""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _cells(
    results: pl.DataFrame, states: Sequence[Mapping[str, Any]]
) -> tuple[pl.DataFrame, tuple[str, ...], tuple[str, ...]]:
    """The cells, their axes, and those that vary."""
    kinds = _kinds(results, states)
    known = list(kinds)
    measured, stated = _measured(results, kinds), _stated(states, kinds)
    if states:
        cells = stated.join(measured, on="cell_id", how="full", coalesce=True, suffix="_measured")
        both = [axis for axis in known if f"{axis}_measured" in cells.columns]
        cells = cells.with_columns(pl.coalesce(axis, f"{axis}_measured").alias(axis) for axis in both)
    else:
        cells = measured.with_columns(pl.lit(None, kind).alias(name) for name, kind in STATE_SCHEMA.items())
    varying = tuple(axis for axis in known if cells[axis].drop_nulls().n_unique() > 1)
    order = [name for name in ("family", "params", *varying) if name in cells.columns]
    cells = cells.select("cell_id", *known, "params", "flops", "upstream", *STATE_SCHEMA)
    cells = cells.sort(*dict.fromkeys(order), "cell_id", nulls_last=True)
    text = [axes_text(row, varying) for row in cells.iter_rows(named=True)]
    return cells.with_columns(pl.Series("text", text, dtype=pl.String)), tuple(known), varying


def _kinds(results: pl.DataFrame, states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The axes with their types: a study's own, and for an imported table those of its columns."""
    imported = conflicts.axes_of(results)
    if not states:
        return {axis: results.schema[axis] for axis in imported}
    stated = [axis for axis in conflicts.AXES if axis in imported or any(axis in state for state in states)]
    return {axis: AXIS_SCHEMA[axis] for axis in stated}


def _stated(states: Sequence[Mapping[str, Any]], kinds: Mapping[str, Any]) -> pl.DataFrame:
    rows = [
        {
            "cell_id": state["cell_id"],
            **{axis: _number(axis, state.get(axis)) for axis in kinds},
            **{name: state.get(name) for name in STATE_SCHEMA},
            "status": str(state["status"]),
            "checkpoints": len(state.get("checkpoints") or ()),
        }
        for state in states
    ]
    columns: dict[str, Any] = {"cell_id": pl.String, **kinds, **STATE_SCHEMA}
    return pl.DataFrame(rows, schema=columns)


def _number(axis: str, value: Any) -> Any:
    return float(value) if AXIS_SCHEMA[axis] is pl.Float64 and value is not None else value


def _measured(results: pl.DataFrame, kinds: Mapping[str, Any]) -> pl.DataFrame:
    """Axes, parameters, FLOPs and upstream accuracy at the last checkpoint of every cell with results."""
    schema: dict[str, Any] = {"params": pl.Int64, "flops": pl.Float64, "upstream_accuracy": pl.Float64}
    if results.is_empty():
        columns = {"cell_id": pl.String, **kinds, "params": pl.Int64, "flops": pl.Float64, "upstream": pl.Float64}
        return pl.DataFrame(schema=columns)
    axes = [axis for axis in kinds if axis in results.columns]
    absent = [pl.lit(None, kind).alias(name) for name, kind in schema.items() if name not in results.columns]
    table = results.with_columns(pl.col("cell_id").cast(pl.String), *absent)
    if "last_checkpoint" in table.columns:
        table = table.filter(pl.col("last_checkpoint").fill_null(True))
    table = table.with_columns(pl.col(axis).cast(kinds[axis], strict=False) for axis in axes)
    first = [pl.col(axis).drop_nulls().first() for axis in axes]
    return table.group_by("cell_id").agg(
        *first,
        params=pl.col("params").max().cast(pl.Int64),
        flops=pl.col("flops").max().cast(pl.Float64),
        upstream=pl.col("upstream_accuracy").fill_nan(None).drop_nulls().first().cast(pl.Float64),
    )


def _mean_layers(layers: LayerMeans | None, cells: pl.DataFrame) -> pl.DataFrame:
    """Mean over cells of each family and size, where both are known."""
    if layers is None or not {"family", "size"} <= set(cells.columns):
        return pl.DataFrame(schema=LAYERS_SCHEMA)
    keys = ("task", "shots", "family", "size", "num_layers", "layer")
    series = keys[:-1]
    known = cells.select("cell_id", "family", "size", "params")
    by_layer = layers.accuracies.join(known, on="cell_id").sort(*keys, "cell_id")
    means = by_layer.group_by(keys, maintain_order=True).agg(
        pl.col("accuracy").mean(), params=pl.col("params").median(), cells=pl.len()
    )
    return (
        means.with_columns(
            series=pl.concat_str("family", "size", separator=" "),
            depth=(pl.col("layer") + 1) / pl.col("num_layers"),
            best=pl.col("layer") == pl.col("layer").sort_by("accuracy", "layer").last().over(series),
        )
        .select(pl.col(name).cast(kind) for name, kind in LAYERS_SCHEMA.items())
        .sort("task", "shots", "family", "params", "size", "layer")
    )


def _mean_residuals(selected: pl.DataFrame) -> pl.DataFrame:
    means = residuals(selected).group_by("shots", "cell_id", maintain_order=True).agg(pl.col("residual").mean())
    return means.select(list(RESIDUALS_SCHEMA)).sort("shots", "cell_id")


def _along(
    measures: pl.DataFrame | None, cells: pl.DataFrame, residual: pl.DataFrame, tasks: Sequence[Mapping[str, Any]]
) -> pl.DataFrame:
    if measures is None:
        return pl.DataFrame(schema=ALONG_SCHEMA)
    shots = sorted({task["shots"] for task in tasks}, key=lambda number: -1 if number is None else number)
    return along(quantities_at_depths(measures), cells.select("cell_id", "upstream"), residual, shots)


def _last_measures(measures: pl.DataFrame | None) -> pl.DataFrame:
    """Quantities over all classes at the last checkpoint, those of layers at the last one."""
    if measures is None:
        return pl.DataFrame(schema=LAST_MEASURES_SCHEMA)
    table = measures.filter("last_checkpoint", pl.col("label").is_null())
    deepest = pl.col("layer").max().over("cell_id", "quantity")
    last = table.filter(pl.col("layer").eq_missing(deepest))
    finite = pl.when(pl.col("value").is_finite()).then("value").alias("value")
    return last.with_columns(finite).select(list(LAST_MEASURES_SCHEMA)).sort("quantity", "cell_id")


def _texts(results: pl.DataFrame, name: str) -> tuple[str, ...]:
    return tuple(results[name].drop_nulls().unique().sort().to_list()) if name in results.columns else ()


def _num_draws(results: pl.DataFrame) -> int:
    return results["draw"].n_unique() if "draw" in results.columns else 0
