"""The panels of layers: accuracy by depth, the best layer as upstream accuracy grows, what it gains. Pure."""

import hashlib

import numpy as np
import polars as pl

from orchestrator.conflicts.noise import student_95
from orchestrator.report.facts import Facts
from orchestrator.report.panels import Panel, at_shots, family_of, titled
from orchestrator.report.words import count, ranked

MAX_CELLS = 300  # points of a chart of best layers; the trend is that of all cells
CELLS_A_STEP = 12  # of the trend, at least
MAX_STEPS = 6
TREND_SCHEMA: dict[str, type[pl.DataType]] = {
    "upstream": pl.Float64,
    "depth": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "cells": pl.Int64,
}


def layer_panels(facts: Facts) -> list[Panel]:
    """Every panel of the section on layers."""
    return [*_accuracies(facts), *_depths(facts), *_gains(facts)]


def _accuracies(facts: Facts) -> list[Panel]:
    """Accuracy against depth for every task and number of shots that has several layers."""
    panels = []
    for key, rows in facts.layers.partition_by("task", "shots", as_dict=True, maintain_order=True).items():
        task, shots = str(key[0]), None if key[1] is None else int(key[1])
        tables = {"layers": rows.drop("task", "shots", "size")}
        panels.append(Panel(kind="layers", name=task, shots=shots, title=titled(task, shots), note="", tables=tables))
    return panels


def _depths(facts: Facts) -> list[Panel]:
    """The depth of each cell's best layer against its upstream accuracy, for every task and number of shots."""
    drifts = {
        (row["task"], row["shots"]): row
        for row in facts.effects["layers"].filter(pl.col("family").is_null()).iter_rows(named=True)
    }
    about = _drawn(facts)
    panels = []
    for key, rows in facts.best.partition_by("task", "shots", as_dict=True, maintain_order=True).items():
        task, shots = str(key[0]), None if key[1] is None else int(key[1])
        judged = rows.drop_nulls("upstream")
        drift = drifts.get((task, shots))
        if judged.is_empty() or drift is None:
            continue
        # Every panel lists the same cells, so that the page holds ids, axes and upstream accuracies once.
        points = about.join(
            judged.select("cell_id", "depth"), left_on="cell", right_on="cell_id", how="left", maintain_order="left"
        )
        drawn = points["depth"].drop_nulls().len()
        note = f"{count(judged.height, 'cell')}; rank correlation {ranked(*_rank(drift))}"
        note += f"; {drawn:,} drawn" if drawn < judged.height else ""
        tables = {"points": points, "trend": trend(judged)}
        panels.append(Panel(kind="depths", name=task, shots=shots, title=titled(task, shots), note=note, tables=tables))
    return panels


def _rank(drift: dict[str, float | None]) -> tuple[float | None, float | None, float | None]:
    return drift["drift"], drift["drift_low"], drift["drift_high"]


def _drawn(facts: Facts) -> pl.DataFrame:
    """The cells whose best layers are drawn: all, or some of many, the same on every task."""
    with_layers = facts.cells.join(facts.best, on="cell_id", how="semi").drop_nulls("upstream")
    if with_layers.height > MAX_CELLS:
        # By a hash, so that they stand for all, and are the same whenever the report is written.
        order = [hashlib.sha256(cell_id.encode()).hexdigest() for cell_id in with_layers["cell_id"]]
        with_layers = with_layers.with_columns(pl.Series(" order", order)).sort(" order").head(MAX_CELLS)
    return with_layers.sort("cell_id").select(
        cell="cell_id", axes="text", family=family_of(with_layers), upstream="upstream"
    )


def trend(best: pl.DataFrame) -> pl.DataFrame:
    """Mean depth of the best layer in steps of equally many cells by upstream accuracy: `TREND_SCHEMA`.

    With the 95 % interval of each mean (Student's). Empty for too few cells for two steps.
    """
    steps = min(MAX_STEPS, best.height // CELLS_A_STEP)
    if steps < 2:
        return pl.DataFrame(schema=TREND_SCHEMA)
    rows = []
    for part in np.array_split(np.argsort(best["upstream"].to_numpy(), kind="stable"), steps):
        depth_N, upstream_N = (best[name].to_numpy()[part] for name in ("depth", "upstream"))
        mean, half = float(depth_N.mean()), student_95(part.size - 1) * float(depth_N.std(ddof=1) / np.sqrt(part.size))
        rows.append((float(upstream_N.mean()), mean, max(0.0, mean - half), min(1.0, mean + half), part.size))
    return pl.DataFrame(rows, schema=TREND_SCHEMA, orient="row")


def _gains(facts: Facts) -> list[Panel]:
    """What the chosen layer gains over the last, by task, the largest first."""
    whole = facts.effects["layers"].filter(pl.col("family").is_null())
    panels = []
    for shots in facts.shots:
        rows = at_shots(whole, shots)
        if rows.is_empty():
            continue
        shown = rows.select("task", "gain", low="gain_low", high="gain_high", cells="cells")
        shown = shown.sort("gain", "task", descending=[True, False])
        panels.append(
            Panel(
                kind="gains",
                name="gains",
                shots=shots,
                title=titled("Gain of the best layer over the last", shots),
                note="",
                tables={"gains": shown, "intervals": shown.drop_nulls("low")},
            )
        )
    return panels
