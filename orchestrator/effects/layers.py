"""The best layer of each task and cell, what it gains over the last, and how it moves. Pure polars and numpy.

The best layer is chosen by the accuracy that it is judged by. Where a value has one draw only, its accuracy is
therefore optimistic. Where it has several, the layer is chosen on one half of the draws and scored on the other, both
ways, and the mean of the two scores counts: that takes away the luck of the draws (the images that the probe learns
from), but not that of the test images, which all draws share.

As for the reducer (`selection`), a layer of which any draw has no value does not count: the draws that fail are no
chance choice. A cell whose last layer does not count has no gain over it, and no row.

Accuracies are fractions in [0, 1]. Depth is (layer + 1) / number of layers: 1 is the features before the head.
Shape suffixes: R rows, G groups of one task, shots and cell, L layers.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from orchestrator.conflicts import rank_interval, spearman
from orchestrator.conflicts.noise import MIN_FREEDOM, student_95
from orchestrator.selection import IN_PART

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Accuracies are summed as whole numbers, so that a mean does not depend on the order of the rows; 2,000 draws fit.
ONE = 2.0**42
CELL = ("task", "shots", "cell_id")
# Numbers up to so many times as many as rows are counted in place rather than sorted.
MAX_SPARSE = 4

BEST_LAYERS_SCHEMA: dict[str, type[pl.DataType]] = {
    "task": pl.String,
    "shots": pl.Int64,
    "cell_id": pl.String,
    "family": pl.String,
    "upstream": pl.Float64,
    "layer": pl.Int64,
    "num_layers": pl.Int64,
    "depth": pl.Float64,
    "accuracy": pl.Float64,
    "last_accuracy": pl.Float64,
    "gain": pl.Float64,
    "is_last": pl.Boolean,
    "split": pl.Boolean,
}
LAYERS_SCHEMA: dict[str, type[pl.DataType]] = {
    "task": pl.String,
    "shots": pl.Int64,
    "family": pl.String,
    "cells": pl.Int64,
    "last_best": pl.Int64,
    "depth": pl.Float64,
    "gain": pl.Float64,
    "gain_low": pl.Float64,
    "gain_high": pl.Float64,
    "optimistic": pl.Int64,
    "drift": pl.Float64,
    "drift_low": pl.Float64,
    "drift_high": pl.Float64,
    "n": pl.Int64,
}
LAYER_ACCURACIES_SCHEMA: dict[str, type[pl.DataType]] = {
    "task": pl.String,
    "shots": pl.Int64,
    "cell_id": pl.String,
    "layer": pl.Int64,
    "num_layers": pl.Int64,
    "accuracy": pl.Float64,
}
LOST_SCHEMA: dict[str, type[pl.DataType]] = {
    "task": pl.String,
    "shots": pl.Int64,
    "reason": pl.String,
    "rows": pl.Int64,
}
_COLUMNS: dict[str, type[pl.DataType]] = {
    "cell_id": pl.String,
    "task": pl.String,
    "layer": pl.Int64,
    "shots": pl.Int64,
    "draw": pl.Int64,
    "family": pl.String,
    "protocol": pl.String,
    "last_checkpoint": pl.Boolean,
    "num_layers": pl.Int64,
    "reason": pl.String,
}
LAST_LOST = "the last layer of the cell has no value"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerMeans:
    """What is known of the layers of every task, shots and cell at the last checkpoint.

    Args:
        keys: task, shots and cell_id of each of the G groups.
        about: family, upstream and num_layers of each cell_id.
        first_GL: accuracy by layer, mean over the first half of the draws; NaN where a layer has none or does not
            count.
        second_GL: the same over the second half.
        mean_GL: the same over all draws.
        lost: rows that do not count, by reason (`LOST_SCHEMA`).
    """

    keys: pl.DataFrame
    about: pl.DataFrame
    first_GL: "Floats"
    second_GL: "Floats"
    mean_GL: "Floats"
    lost: pl.DataFrame

    @property
    def accuracies(self) -> pl.DataFrame:
        """One row a layer that counts: `LAYER_ACCURACIES_SCHEMA`, of cells with several layers."""
        group, layer = np.nonzero(np.isfinite(self.mean_GL) & (np.isfinite(self.mean_GL).sum(axis=1) > 1)[:, None])
        rows = self.keys[group].with_columns(
            layer=pl.Series(layer, dtype=pl.Int64), accuracy=pl.Series(self.mean_GL[group, layer])
        )
        known = rows.join(self.about.select("cell_id", "num_layers"), on="cell_id", how="left", maintain_order="left")
        return known.select(pl.col(name).cast(kind) for name, kind in LAYER_ACCURACIES_SCHEMA.items())


def layer_means(results: pl.DataFrame | pl.LazyFrame, protocol: str | None) -> LayerMeans | None:
    """The layers of every task, shots and cell; None where the table knows no layers.

    Args:
        results: the results table.
        protocol: which rows count; None for all.
    """
    rows = _rows(results.lazy(), protocol)
    if rows.is_empty():
        return None
    keys, (first_GL, second_GL, mean_GL), failed_GL = _layer_means(rows)
    for means_GL in (first_GL, second_GL, mean_GL):
        means_GL[failed_GL] = np.nan
    known_GL = np.isfinite(mean_GL)
    deepest_G = mean_GL.shape[1] - 1 - (known_GL | failed_GL)[:, ::-1].argmax(axis=1)
    has_last_G = known_GL[np.arange(deepest_G.size), deepest_G]
    lost = _lost(rows, keys.filter(pl.Series(~has_last_G)))
    return LayerMeans(
        keys=keys.filter(pl.Series(has_last_G)),
        about=rows.group_by("cell_id").agg(pl.col("family", "upstream", "num_layers").max()),
        first_GL=first_GL[has_last_G],
        second_GL=second_GL[has_last_G],
        mean_GL=mean_GL[has_last_G],
        lost=lost,
    )


def best_layers(results: pl.DataFrame | pl.LazyFrame, protocol: str | None) -> pl.DataFrame:
    """The best layer of every task, shots and cell at the last checkpoint: `BEST_LAYERS_SCHEMA`.

    `layer` is the best over all draws (of equal ones the last), `accuracy` that of a layer chosen on half of the draws
    and scored on the other (`split`), or the best layer's own where there is one draw. `gain` is over the last layer,
    and below 0 where the choice does not hold. Cells with one layer have no row.

    Args:
        results: the results table; nothing comes back where it knows no layers.
        protocol: which rows count; None for all.
    """
    means = layer_means(results, protocol)
    return pl.DataFrame(schema=BEST_LAYERS_SCHEMA) if means is None else best_of(means)


def best_of(means: LayerMeans) -> pl.DataFrame:
    """`best_layers` of means that are there already."""
    first_GL, second_GL, mean_GL = means.first_GL, means.second_GL, means.mean_GL
    several_G = np.isfinite(mean_GL).sum(axis=1) > 1
    first_GL, second_GL, mean_GL = first_GL[several_G], second_GL[several_G], mean_GL[several_G]
    best_G, last_G = _deepest_best(mean_GL), _deepest_best(np.where(np.isfinite(mean_GL), 0.0, np.nan))
    each_G = np.arange(best_G.size)
    crossed_G = (first_GL[each_G, _deepest_best(second_GL)] + second_GL[each_G, _deepest_best(first_GL)]) / 2
    split_G = (np.isfinite(first_GL) & np.isfinite(second_GL) | np.isnan(mean_GL)).all(axis=1)
    found = (
        means.keys.filter(pl.Series(several_G))
        .with_columns(
            layer=pl.Series(best_G),
            accuracy=pl.Series(np.where(split_G, crossed_G, mean_GL[each_G, best_G])),
            last_accuracy=pl.Series(mean_GL[each_G, last_G]),
            is_last=pl.Series(best_G == last_G),
            split=pl.Series(split_G),
            deepest=pl.Series(last_G),
        )
        .join(means.about, on="cell_id", maintain_order="left")
        .with_columns(pl.col("num_layers").fill_null(pl.col("deepest") + 1))
        .with_columns(
            depth=(pl.col("layer") + 1) / pl.col("num_layers"), gain=pl.col("accuracy") - pl.col("last_accuracy")
        )
    )
    return found.select(pl.col(name).cast(kind) for name, kind in BEST_LAYERS_SCHEMA.items()).sort(CELL)


def best_layer_cells(cells: pl.DataFrame, best: pl.DataFrame) -> pl.DataFrame:
    """`cells` with the accuracies of their best layers, for the frontier when the best layer may be used.

    Cells without several layers are left out; the caller can count them from the heights.
    """
    # Without another name: an imported axis may be called anything.
    scores = best.select(*CELL, downstream="accuracy")
    joined = cells.drop("downstream").join(scores, on=CELL, nulls_equal=True)
    return joined.select(cells.columns).sort(
        "task", "shots", "downstream", "upstream", "cell_id", descending=[False, False, True, True, False]
    )


def layer_drift(best: pl.DataFrame) -> pl.DataFrame:
    """By task and shots, over all cells (family null) and by family: `LAYERS_SCHEMA`.

    In how many cells the last layer is best, the median depth of the best, its mean gain over the last with a 95 %
    interval (Student's, over cells; null for fewer than five), in how many cells that gain is optimistic (one draw),
    and the drift: Spearman's correlation of the best layer's depth with upstream accuracy over `n` cells with its
    interval (`conflicts.rank_interval`), null where either is constant.
    """
    rows = []
    for family in (False, True):
        known = best.filter(pl.col("family").is_not_null()) if family else best
        groups = known.partition_by("task", "shots", *(["family"] if family else []))
        rows += [{"family": group["family"][0] if family else None, **_drift(group)} for group in groups]
    return pl.DataFrame(rows, schema=LAYERS_SCHEMA).sort("task", "shots", "family")


def _drift(group: pl.DataFrame) -> dict[str, object]:
    judged, gain_N = group.drop_nulls("upstream"), group["gain"].to_numpy()
    drift = spearman(judged["upstream"].to_numpy(), judged["depth"].to_numpy())
    drift_low, drift_high = rank_interval(drift, judged.height)
    half = _half_width(gain_N)
    gain = float(gain_N.mean())
    return {
        "task": group["task"][0],
        "shots": group["shots"][0],
        "cells": group.height,
        "last_best": group["is_last"].sum(),
        "depth": group["depth"].median(),
        "gain": gain,
        "gain_low": None if half is None else gain - half,
        "gain_high": None if half is None else gain + half,
        "optimistic": (~group["split"]).sum(),
        "drift": drift,
        "drift_low": drift_low,
        "drift_high": drift_high,
        "n": judged.height,
    }


def _half_width(values_N: "Floats") -> float | None:
    """Half the 95 % interval of a mean; None for fewer than five values."""
    if values_N.size <= MIN_FREEDOM:
        return None
    return student_95(values_N.size - 1) * float(values_N.std(ddof=1)) / float(np.sqrt(values_N.size))


def _rows(results: pl.LazyFrame, protocol: str | None) -> pl.DataFrame:
    """Rows of known layers at the last checkpoint, with `second`: whether the draw is of the second half."""
    columns = results.collect_schema().names()
    if "layer" not in columns:
        return pl.DataFrame()
    absent = [pl.lit(None, kind).alias(name) for name, kind in _COLUMNS.items() if name not in columns]
    kept = (
        results.with_columns(absent)
        .select(
            *(pl.col(name).cast(kind, strict=False) for name, kind in _COLUMNS.items()),
            upstream=pl.col("upstream_accuracy").cast(pl.Float64).fill_nan(None),
            accuracy=pl.col("downstream_accuracy").cast(pl.Float64).fill_nan(None),
        )
        .filter(pl.col("last_checkpoint").fill_null(True), pl.col("layer") >= 0)
        .filter(pl.lit(True) if protocol is None else pl.col("protocol") == protocol)
        .drop("last_checkpoint", "protocol")
        .collect(engine="streaming")
    )
    second = kept["draw"].drop_nulls().unique().sort()[1::2]
    return kept.with_columns(second=pl.col("draw").is_in(second.to_list()).fill_null(False))


def _lost(rows: pl.DataFrame, without_last: pl.DataFrame) -> pl.DataFrame:
    """Rows without a value, other draws of their layers, and all of cells without their last layer, by reason."""
    failed = rows.filter(pl.col("accuracy").is_null())
    if failed.is_empty():
        return pl.DataFrame(schema=LOST_SCHEMA)
    valued = rows.filter(pl.col("accuracy").is_not_null())
    in_part = valued.join(failed.select(*CELL, "layer").unique(), on=[*CELL, "layer"], how="semi", nulls_equal=True)
    rest = valued.join(failed.select(*CELL, "layer").unique(), on=[*CELL, "layer"], how="anti", nulls_equal=True)
    parts = (
        failed.select("task", "shots", reason=pl.col("reason").fill_null("no downstream accuracy")),
        in_part.select("task", "shots", reason=pl.lit(IN_PART)),
        rest.join(without_last, on=CELL, how="semi", nulls_equal=True).select(
            "task", "shots", reason=pl.lit(LAST_LOST)
        ),
    )
    counted = pl.concat(parts).group_by("task", "shots", "reason").agg(rows=pl.len().cast(pl.Int64))
    return counted.sort("task", "shots", "reason")


def _layer_means(rows: pl.DataFrame) -> "tuple[pl.DataFrame, list[Floats], NDArray[np.bool_]]":
    """Task, shots and cell of each row G; its means by layer of each half of the draws, and of all; where one failed.

    Keys are numbered, since sums over millions of rows by text take minutes.
    """
    names = {name: rows[name].unique().sort() for name in CELL}
    number_R = np.zeros(rows.height, dtype=np.int64)
    for name, values in names.items():
        number_R = number_R * values.len() + _places(rows[name], values)
    num_layers = int(rows["layer"].max()) + 1  # type: ignore[arg-type]  # of a column of whole numbers
    groups, group_R = _dense(number_R)
    place_R = (group_R * num_layers + rows["layer"].to_numpy()) * 2 + rows["second"].to_numpy()
    failed_R = rows["accuracy"].is_null().to_numpy()
    value_R = np.round(rows["accuracy"].fill_null(0.0).to_numpy() * ONE)
    sums, counts, failed = (
        np.bincount(place_R, weights, minlength=groups.size * num_layers * 2).reshape(-1, num_layers, 2)
        for weights in (value_R, ~failed_R, failed_R)
    )
    means = [
        np.divide(total, count, where=count > 0, out=np.full(total.shape, np.nan)) / ONE
        for total, count in (*((sums[..., half], counts[..., half]) for half in (0, 1)), (sums.sum(-1), counts.sum(-1)))
    ]
    places = np.unravel_index(groups, [values.len() for values in names.values()])
    keys = pl.DataFrame({name: names[name].gather(place) for name, place in zip(CELL, places, strict=True)})
    return keys, means, failed.sum(-1) > 0


def _dense(number_R: "NDArray[np.int64]") -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
    """The numbers that occur, sorted, and the place of each row's among them. Made for numbers that lie close."""
    highest = int(number_R.max())
    if highest > MAX_SPARSE * number_R.size:
        return np.unique(number_R, return_inverse=True)
    occurs = np.zeros(highest + 1, dtype=np.bool_)
    occurs[number_R] = True
    return np.flatnonzero(occurs), (np.cumsum(occurs, dtype=np.int64) - 1)[number_R]


def _places(column: pl.Series, values: pl.Series) -> "NDArray[np.int64]":
    """Where each value stands among the sorted ones."""
    if column.dtype == pl.String:
        return column.cast(pl.Enum(values)).to_physical().to_numpy().astype(np.int64)
    # A missing number of shots sorts first, here as there.
    return np.searchsorted(values.fill_null(-1).to_numpy(), column.fill_null(-1).to_numpy())


def _deepest_best(accuracy_GL: "Floats") -> "NDArray[np.intp]":
    """The layer of the highest accuracy of each row, the last of equal ones."""
    filled_GL = np.where(np.isnan(accuracy_GL), -np.inf, accuracy_GL)
    layer_G: NDArray[np.intp] = accuracy_GL.shape[1] - 1 - filled_GL[:, ::-1].argmax(axis=1)
    return layer_G
