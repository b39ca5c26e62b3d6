"""How much each model was tuned, and the best that k settings would have given. Pure numpy and polars.

A scaling plot looks better, or worse, where some sizes were tuned with more settings than others. Of a study's axes
those that say how a model is trained are hyper-parameters (`TUNED`); model, data, resolution, precision and seed are
none, nor is any other column of an imported table, since nothing says that it is.

Accuracies are fractions in [0, 1]. Shape suffix: N settings, sorted by group and accuracy.
"""

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from orchestrator.conflicts import AXES, axes_of
from orchestrator.conflicts.counts import log_factorials

if TYPE_CHECKING:
    from collections.abc import Sequence

MODEL = ("family", "size")
NOT_TUNED = (*MODEL, "fraction", "classes", "images", "image_size", "patch_size", "precision", "seed")
TUNED = tuple(axis for axis in AXES if axis not in NOT_TUNED)
"""The axes of a study that tell how a model is trained, not what is trained on what."""

COVERAGE_SCHEMA: dict[str, type[pl.DataType]] = {
    "family": pl.String,
    "size": pl.String,
    "params": pl.Float64,
    "cells": pl.Int64,
    "axis": pl.String,
    "values": pl.Int64,
    "most": pl.Int64,
    "fewer": pl.Boolean,
}
BEST_OF_K_SCHEMA: dict[str, type[pl.DataType]] = {
    "task": pl.String,
    "shots": pl.Int64,
    "family": pl.String,
    "size": pl.String,
    "params": pl.Float64,
    "fixed": pl.String,
    "settings": pl.Int64,
    "k": pl.Int64,
    "expected_best": pl.Float64,
}


def coverage(cells: pl.DataFrame) -> pl.DataFrame:
    """Different values of each hyper-parameter that varies, by family and size: `COVERAGE_SCHEMA`.

    A row without an axis counts the different settings: combinations of all hyper-parameters. `most` is the largest
    count of any family and size, `fewer` says that this one has less. Nothing where neither family nor size is known,
    or no hyper-parameter varies.
    """
    model, varying = _known(cells)
    if not model or not varying:
        return pl.DataFrame(schema=COVERAGE_SCHEMA)
    counts = (
        _complete(cells.unique("cell_id"), model)
        .group_by(MODEL)
        .agg(
            pl.col(varying).n_unique(),
            pl.struct(varying).n_unique().alias(""),
            params=pl.col("params").mean(),
            cells=pl.len(),
        )
    )
    long = counts.unpivot(["", *varying], index=[*MODEL, "params", "cells"], variable_name="axis", value_name="values")
    place = pl.col("axis").replace_strict(["", *varying], range(len(varying) + 1), return_dtype=pl.Int64)
    marked = long.with_columns(most=pl.col("values").max().over("axis")).with_columns(
        fewer=pl.col("values") < pl.col("most")
    )
    return (
        marked.sort("family", "params", "size", place)
        .with_columns(pl.col("axis").replace("", None))
        .select(pl.col(name).cast(kind) for name, kind in COVERAGE_SCHEMA.items())
    )


def best_of_k(cells: pl.DataFrame) -> pl.DataFrame:
    """The expected best accuracy of k of a model's settings, drawn at random without replacement: `BEST_OF_K_SCHEMA`.

    Of N accuracies in rising order the i-th is the best of k with probability C(i - 1, k - 1) / C(N, k). Dodge et al.
    2019 (arXiv 1909.03004, equation 4) give the same for draws with replacement.

    A curve belongs to one task, shots, family and size, and one value of all other axes that are no hyper-parameters
    (`fixed`, in words, where they vary): more data is not better tuning. Seeds of a setting count as one, with their
    mean. k runs over the powers of two up to N, and N. Nothing where neither family nor size is known, or no
    hyper-parameter varies.
    """
    model, tuned = _known(cells)
    if not model or not tuned:
        return pl.DataFrame(schema=BEST_OF_K_SCHEMA)
    others = [axis for axis in axes_of(cells) if axis not in (*MODEL, *TUNED, "seed")]
    varying = [axis for axis in others if cells[axis].n_unique() > 1]
    curve = ("task", "shots", *MODEL, "fixed")
    words = [pl.format("{} {}", pl.lit(axis), pl.col(axis).cast(pl.String).str.strip_suffix(".0")) for axis in varying]
    fixed = pl.concat_str(words, separator=", ", ignore_nulls=True) if words else pl.lit("")
    named = (
        _complete(cells, model)
        .select("task", "shots", "cell_id", *MODEL, *tuned, "downstream", "params", fixed=fixed)
        .sort("task", "shots", "cell_id")
    )
    settings = named.group_by(*curve, *tuned, maintain_order=True).agg(
        pl.col("downstream").mean(), pl.col("params").mean()
    )
    rising = settings.sort(*curve, "downstream")
    curves = rising.group_by(curve, maintain_order=True).agg(params=pl.col("params").mean(), settings=pl.len())
    if curves.is_empty():
        return pl.DataFrame(schema=BEST_OF_K_SCHEMA)
    rows = _expected_best(rising["downstream"].to_numpy(), curves["settings"].to_numpy().astype(np.int64))
    found = curves.with_row_index("curve").join(rows, on="curve", maintain_order="left_right")
    return found.select(pl.col(name).cast(kind) for name, kind in BEST_OF_K_SCHEMA.items()).sort(*curve, "k")


def _known(cells: pl.DataFrame) -> tuple[list[str], list[str]]:
    """Which of family and size are known, and the hyper-parameters that vary."""
    model, tuned = ([axis for axis in axes if axis in cells.columns] for axes in (MODEL, TUNED))
    return model, [axis for axis in tuned if cells[axis].n_unique() > 1]


def _complete(cells: pl.DataFrame, model: "Sequence[str]") -> pl.DataFrame:
    absent = [pl.lit(None, pl.String).alias(name) for name in MODEL if name not in model]
    params = [] if "params" in cells.columns else [pl.lit(None, pl.Float64).alias("params")]
    return cells.with_columns(*absent, *params)


def _expected_best(
    accuracy_N: "np.ndarray[tuple[int], np.dtype[np.float64]]", sizes: "np.ndarray[tuple[int], np.dtype[np.int64]]"
) -> pl.DataFrame:
    """Rows of curve, k and expected_best; the accuracies of a curve follow one another, rising."""
    log_factorial = log_factorials(int(sizes.max()))
    starts = np.cumsum(sizes) - sizes
    size_N = np.repeat(sizes, sizes)
    place_N = np.arange(accuracy_N.size) - np.repeat(starts, sizes)  # i - 1
    frames = []
    for k in np.unique([*(2 ** np.arange(int(sizes.max()).bit_length())), *sizes]).tolist():
        counts_N = (place_N >= k - 1) & (size_N >= k)
        i, n = np.where(counts_N, place_N, k - 1), np.where(counts_N, size_N, k)
        log_ways_N = log_factorial[i] - log_factorial[k - 1] - log_factorial[i - k + 1]
        log_all_N = log_factorial[n] - log_factorial[k] - log_factorial[n - k]
        weight_N = np.where(counts_N, np.exp(log_ways_N - log_all_N), 0.0)
        wanted = np.flatnonzero((sizes >= k) & ((sizes == k) | (k & (k - 1) == 0)))
        best = np.add.reduceat(weight_N * accuracy_N, starts)
        frames.append(
            pl.DataFrame({"curve": wanted.astype(np.uint32), "expected_best": best[wanted]}).with_columns(k=pl.lit(k))
        )
    return pl.concat(frames).sort("curve", "k")
