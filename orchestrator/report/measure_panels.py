"""The panels of upstream measures: against upstream accuracy, against what is beyond it downstream, by depth. Pure."""

import polars as pl

from orchestrator.conflicts import rank_interval, spearman
from orchestrator.effect_charts import SIDES
from orchestrator.report.facts import Facts
from orchestrator.report.panels import Panel, about_cells, at_shots, titled
from orchestrator.report.words import count, ranked

DEPTH = "depth of the best layer"
CHARTED = (
    "head_weight_norm",
    "margin_mean",
    "boundary_distance_mean",
    "expected_calibration_error",
    "effective_rank",
    "feature_norm",
)
"""What is drawn of each cell (`evals.measures` defines them); the tables have them all."""


RESTATED = ("accuracy", "accuracy_top5", "cross_entropy", "brier_score")
"""How well upstream images are told apart in other words, which explains nothing; the tables have them."""


def measure_panels(facts: Facts) -> list[Panel]:
    """Every panel of the section on upstream measures."""
    return [*_along_panels(facts), *_layer_panels(facts), *_point_panels(facts), *_residual_panels(facts)]


def in_words(quantity: object) -> str:
    """A quantity's name without underscores."""
    return str(quantity).replace("_", " ")


def at_the_end(facts: Facts, shots: int | None) -> pl.DataFrame:
    """The correlations of quantities of the model, and of the last layer where they are of layers."""
    depth, restated = pl.col("depth"), pl.col("quantity").is_in(RESTATED)
    return at_shots(facts.along, shots).filter(depth.is_null() | (depth == 1.0), ~restated).drop_nulls("spearman_low")


def _along_panels(facts: Facts) -> list[Panel]:
    """How each quantity goes with both sides, the strongest with upstream accuracy first."""
    panels = []
    for shots in facts.shots:
        rows = at_the_end(facts, shots)
        if rows.is_empty():
            continue
        first = rows.sort(pl.col("against") == "residual", -pl.col("spearman").abs(), "quantity")
        order = {name: i for i, name in enumerate(first["quantity"].unique(maintain_order=True))}
        place = pl.col("quantity").replace_strict(order, return_dtype=pl.Int64)
        shown = _sided(rows.sort(place, "against", descending=[False, True])).with_columns(
            quantity=pl.col("quantity").str.replace_all("_", " ")
        )
        tables = {"along": shown.select("quantity", "against", "spearman", "low", "high", "cells")}
        title = titled("Rank correlation of measures", shots)
        panels.append(Panel(kind="along", name="along", shots=shots, title=title, note="", tables=tables))
    return panels


def _layer_panels(facts: Facts) -> list[Panel]:
    """How each quantity of layers goes with both sides, by depth."""
    of_layers = facts.along.drop_nulls(["depth", "spearman_low"])
    panels = []
    for shots in facts.shots:
        groups = at_shots(of_layers, shots).partition_by("quantity", as_dict=True, maintain_order=True)
        for (quantity,), rows in groups.items():
            name = in_words(quantity)
            tables = {"along": _sided(rows).select("depth", "against", "spearman", "low", "high", "cells")}
            panels.append(
                Panel(kind="layers_along", name=name, shots=shots, title=titled(name, shots), note="", tables=tables)
            )
    return panels


def _sided(rows: pl.DataFrame) -> pl.DataFrame:
    sides = dict(zip(("upstream", "residual"), SIDES, strict=True))
    return rows.with_columns(
        pl.col("against").replace_strict(sides), low="spearman_low", high="spearman_high", cells="n"
    )


def _point_panels(facts: Facts) -> list[Panel]:
    """A panel for each charted quantity, and one for each number of shots of the depth of the best layer."""
    about = about_cells(facts).join(
        facts.cells.select("cell_id", "upstream"), left_on="cell", right_on="cell_id", maintain_order="left"
    )
    found = [_points(about, in_words(name), None, rows) for name, rows in _charted(facts)]
    depths = facts.best.group_by("shots", "cell_id", maintain_order=True).agg(value=pl.col("depth").mean())
    by_shots = depths.sort("shots", "cell_id").partition_by("shots", as_dict=True, maintain_order=True)
    found += [_points(about, DEPTH, shots, rows) for (shots,), rows in by_shots.items()]
    return [panel for panel in found if panel.tables["points"].height]


def _charted(facts: Facts) -> list[tuple[str, pl.DataFrame]]:
    quantities = facts.measures.partition_by("quantity", as_dict=True, maintain_order=True)
    return [(name, quantities[name,]) for name in CHARTED if (name,) in quantities]


def _points(about: pl.DataFrame, name: str, shots: int | None, rows: pl.DataFrame) -> Panel:
    values = rows.select("cell_id", "value").drop_nulls()
    points = about.join(values, left_on="cell", right_on="cell_id", maintain_order="left").drop_nulls(["upstream"])
    note = _note(points, "upstream")
    return Panel(
        kind="measures", name=name, shots=shots, title=titled(name, shots), note=note, tables={"points": points}
    )


def _residual_panels(facts: Facts) -> list[Panel]:
    """Each charted quantity against what a cell does downstream beyond its upstream accuracy."""
    about, panels = about_cells(facts), []
    for shots in facts.shots:
        residuals = at_shots(facts.residuals, shots).select("cell_id", "residual")
        for quantity, rows in _charted(facts):
            values = rows.select("cell_id", "value").drop_nulls().join(residuals, on="cell_id")
            points = about.join(values, left_on="cell", right_on="cell_id", maintain_order="left")
            if points.height:
                name, note = in_words(quantity), _note(points, "residual")
                title, tables = titled(name, shots), {"points": points}
                panels.append(Panel(kind="residuals", name=name, shots=shots, title=title, note=note, tables=tables))
    return panels


def _note(points: pl.DataFrame, side: str) -> str:
    rank = spearman(points[side].to_numpy(), points["value"].to_numpy())
    told = "" if rank is None else f"; rank correlation {ranked(rank, *rank_interval(rank, points.height))}"
    return count(points.height, "cell") + told
