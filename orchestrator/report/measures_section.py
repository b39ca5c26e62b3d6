"""The section on upstream measures: what a checkpoint's head and features are like as upstream accuracy grows. Pure."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from orchestrator.conflicts import spearman
from orchestrator.report.facts import Facts
from orchestrator.report.markup import Column, Markup, element, join, table
from orchestrator.report.panels import Panel, about_cells, titled
from orchestrator.report.parts import chart_slots, empty, legend
from orchestrator.report.words import count

KIND = "measures"
DEPTH = "depth of the best layer"
CHARTED = (
    "head_weight_norm",
    "margin_mean",
    "boundary_distance_mean",
    "expected_calibration_error",
    "effective_rank",
    "feature_norm",
)
"""What is drawn (`evals.measures` defines them); the table has them all."""
NOTE = (
    "Each point is a cell's last checkpoint: a quantity on the held-out upstream images against upstream accuracy; of "
    "a quantity that every layer has, that of the last one. The depth of the best layer is the mean over the tasks. "
    "A margin is the true class's logit minus the best other one, and its boundary distance that over the norm of the "
    "difference of both classes' head weights; the effective rank is the exponential of the entropy of the features' "
    "covariance eigenvalues. Upshot's docs/measures.md has all definitions."
)


def measure_panels(facts: Facts) -> list[Panel]:
    """A panel for each quantity, and one for each number of shots of the depth of the best layer."""
    about = about_cells(facts).join(
        facts.cells.select("cell_id", "upstream"), left_on="cell", right_on="cell_id", maintain_order="left"
    )
    quantities = facts.measures.partition_by("quantity", as_dict=True, maintain_order=True)
    found = [_panel(about, _words(name), None, quantities[name,], "value") for name in CHARTED if (name,) in quantities]
    by_shots = facts.depths.partition_by("shots", as_dict=True, maintain_order=True)
    found += [_panel(about, DEPTH, shots, rows, "depth") for (shots,), rows in by_shots.items()]
    return [panel for panel in found if panel.tables["points"].height]


def measures_section(facts: Facts, panels: Sequence[Panel]) -> Markup:
    """The whole section."""
    if not any(panel.kind == KIND for panel in panels):
        return empty("No checkpoint has been measured on the upstream images, and no layer was probed but the last.")
    return join([element("p", NOTE), legend(facts), chart_slots(panels, KIND), _along(facts), _lacking(facts)])


def _panel(about: pl.DataFrame, name: str, shots: int | None, rows: pl.DataFrame, column: str) -> Panel:
    values = rows.select("cell_id", value=column).drop_nulls()
    points = about.join(values, left_on="cell", right_on="cell_id", maintain_order="left").drop_nulls(["upstream"])
    rank = spearman(points["upstream"].to_numpy(), points["value"].to_numpy())
    note = count(points.height, "cell") + ("" if rank is None else f"; rank correlation {_signed(rank)}")
    return Panel(kind=KIND, name=name, shots=shots, title=titled(name, shots), note=note, tables={"points": points})


def _along(facts: Facts) -> Markup:
    """Every quantity, and how its rank goes with upstream accuracy."""
    known = facts.measures.drop_nulls("value").join(facts.cells.select("cell_id", "upstream"), on="cell_id")
    rows = [
        [
            _words(name),
            group.height,
            f"{np.median(group['value'].to_numpy()):.4g}".replace("-", "−"),
            _signed(spearman(group["upstream"].to_numpy(), group["value"].to_numpy())),
        ]
        for (name,), group in known.drop_nulls("upstream").group_by("quantity", maintain_order=True)
    ]
    columns = [Column("quantity"), *(Column(name, "number") for name in ("cells", "median", "rank correlation"))]
    caption = "Every quantity, and Spearman's rank correlation with upstream accuracy over the cells"
    return table(columns, rows, caption) if rows else Markup("")


def _words(quantity: object) -> str:
    return str(quantity).replace("_", " ")


def _signed(rank: float | None) -> str:
    return "–" if rank is None else f"{rank:+.2f}".replace("-", "−")


def _lacking(facts: Facts) -> Markup:
    """How many cells lack which quantity, and why."""
    lacking = facts.measures.filter(pl.col("value").is_null())
    if lacking.is_empty():
        return Markup("")
    why = pl.col("reason").fill_null("not a finite number")
    counted = lacking.group_by("quantity", why.alias("reason")).agg(cells=pl.len()).sort("quantity", "reason")
    columns = [Column("quantity"), Column("reason"), Column("cells", "number")]
    rows = [[_words(name), reason, cells] for name, reason, cells in counted.iter_rows()]
    return table(columns, rows, "Cells without a value, by reason")
