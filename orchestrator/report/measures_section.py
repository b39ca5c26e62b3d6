"""The section on upstream measures: what norms, margins and ranks of a checkpoint go along with. Pure."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from orchestrator.effect_charts import SIDES
from orchestrator.report.facts import Facts
from orchestrator.report.markup import Column, Markup, element, join, table
from orchestrator.report.measure_panels import at_the_end, in_words
from orchestrator.report.panels import Panel
from orchestrator.report.parts import at, chart_slots, empty, findings, folded, legend, per_shots
from orchestrator.report.words import count, listed, ranked

CHANCE = 0.05  # of intervals that leave 0 out though there is nothing to find
NAMED = 2
AGAINST = {"upstream": "upstream accuracy", "residual": "what a cell does downstream beyond its upstream accuracy"}

NOTE = (
    "Quantities of each cell's last checkpoint on the held-out upstream images; of a quantity that every layer has, "
    "that of the last one. A margin is the true class's logit minus the best other one, and its boundary distance that "
    "over the norm of the difference of both classes' head weights; the effective rank is the exponential of the "
    "entropy of the features' covariance eigenvalues. Upshot's docs/measures.md has all definitions."
)
ALONG = (
    "Spearman's correlation over the cells, with its 95 % interval, of each quantity with upstream accuracy (circles) "
    "and with what a cell does downstream beyond it (squares): the residual of a cubic of upstream accuracy, mean over "
    "the tasks. A quantity that explains saturation goes along with both. Cells of a grid are no independent draws, so "
    "that the intervals are rather too narrow."
)
LAYERS = "The same for quantities of layers, read at the same depths of all models."
POINTS = (
    "Each point is a cell's last checkpoint against its upstream accuracy. The depth of the best layer is the mean "
    "over the tasks."
)
RESIDUALS = "The same cells against what they do downstream beyond their upstream accuracy."


def measures_section(facts: Facts, panels: Sequence[Panel]) -> Markup:
    """The whole section."""
    kinds = {panel.kind for panel in panels}
    if "measures" not in kinds:
        return empty("No checkpoint has been measured on the upstream images, and no layer was probed but the last.")
    parts = []
    if "along" in kinds:
        parts += [per_shots(facts, _found), element("p", ALONG), chart_slots(panels, "along")]
        parts.append(per_shots(facts, _along))
    if "layers_along" in kinds:
        parts += [element("h3", "By depth"), element("p", LAYERS), chart_slots(panels, "layers_along")]
    parts += [element("h3", "Against upstream accuracy"), element("p", POINTS), legend(facts)]
    parts.append(chart_slots(panels, "measures"))
    if "residuals" in kinds:
        parts += [element("h3", "Against downstream accuracy beyond it"), element("p", RESIDUALS), legend(facts)]
        parts.append(chart_slots(panels, "residuals"))
    return join([*parts, element("p", NOTE), _lacking(facts)])


def _found(facts: Facts, shots: int | None) -> Markup:
    """Which quantities go along with either side."""
    rows = at_the_end(facts, shots)
    return findings([_told(rows.filter(against=side), words) for side, words in AGAINST.items()])


def _told(rows: pl.DataFrame, side: str) -> str:
    known = rows.drop_nulls("spearman_low")
    if known.is_empty():
        return f"Too few cells tell how measures go along with {side}."
    sure = known.filter((pl.col("spearman_low") > 0) | (pl.col("spearman_high") < 0))
    chance = f"{known.height * CHANCE:.2g} would by chance"
    if sure.is_empty():
        return f"None of {known.height} quantities goes along with {side} beyond its interval."
    top = sure.sort(-pl.col("spearman").abs(), "quantity").head(NAMED)
    named = [
        f"{in_words(row['quantity'])} {ranked(row['spearman'], row['spearman_low'], row['spearman_high'])}"
        for row in top.iter_rows(named=True)
    ]
    return f"{sure.height} of {known.height} quantities go along with {side} ({chance}), most of all {listed(named)}."


def _along(facts: Facts, shots: int | None) -> Markup:
    """Every quantity, and how its rank goes with both sides."""
    known = facts.measures.drop_nulls("value").partition_by("quantity", as_dict=True)
    medians = {name: np.median(group["value"].to_numpy()) for (name,), group in known.items()}
    sides = at_the_end(facts, shots).partition_by("quantity", as_dict=True, maintain_order=True)
    rows = []
    for (name,), of_quantity in sides.items():
        by_side = {row["against"]: row for row in of_quantity.iter_rows(named=True)}
        ranks = [_rank(by_side.get(side)) for side in ("upstream", "residual")]
        cells = max(row["n"] for row in by_side.values())
        rows.append([in_words(name), cells, f"{medians[name]:.4g}".replace("-", "−"), *ranks])
    headings = ("cells", "median", *(f"with {side}" for side in SIDES))
    columns = [Column("quantity"), *(Column(heading, "number") for heading in headings)]
    caption = f"Every quantity of the model and its last layer, and Spearman's correlations{at(shots)}"
    return folded("Every quantity", table(columns, rows, caption))


def _rank(row: dict[str, float | None] | None) -> str:
    return "–" if row is None else ranked(row["spearman"], row["spearman_low"], row["spearman_high"])


def _lacking(facts: Facts) -> Markup:
    """How many cells lack which quantity, and why."""
    lacking = facts.measures.filter(pl.col("value").is_null())
    if lacking.is_empty():
        return Markup("")
    why = pl.col("reason").fill_null("not a finite number")
    counted = lacking.group_by("quantity", why.alias("reason")).agg(cells=pl.len()).sort("quantity", "reason")
    columns = [Column("quantity"), Column("reason"), Column("cells", "number")]
    rows = [[in_words(name), reason, cells] for name, reason, cells in counted.iter_rows()]
    summary = f"{count(lacking.height, 'value')} of cells that are not known"
    return folded(summary, table(columns, rows, "Cells without a value, by reason"))
