"""The section on layers: which is best, what it gains, where it goes as upstream accuracy grows. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from orchestrator.effects.summary import layer_sentences
from orchestrator.report.facts import Facts
from orchestrator.report.markup import Column, Markup, element, join, table
from orchestrator.report.panels import Panel, at_shots
from orchestrator.report.parts import at, chart_slots, empty, findings, folded, legend, per_shots
from orchestrator.report.words import count, fixed, ranked, signed

BY_DEPTH = (
    "Accuracy of the probe at every layer, mean over the cells of a model and over draws; thicker lines are larger "
    "models. Depth is the layer's number as a part of all, and 1 the features before the head. The ring marks the "
    "best layer of each model."
)
GAINS = (
    "What the best layer gains over the last one, mean over cells with its 95 % interval. The layer of a cell is "
    "chosen on one half of the draws and scored on the other, so that its gain is not the luck of the draws; it is "
    "below 0 where the choice does not hold. All draws are tested on the same images, and that luck stays."
)
OPTIMISTIC = (
    "There is one draw, so that a layer is judged by the accuracy that it was chosen by: these gains are upper bounds."
)
DEPTHS = (
    "Each point is a cell: the depth of its best layer against its upstream accuracy. The black line goes through the "
    "means of equally many cells, with their 95 % intervals. Beside the number of cells stands Spearman's correlation "
    "with its 95 % interval; of as many tasks as there are here one in twenty would leave 0 out by chance."
)


def layers_section(facts: Facts, panels: Sequence[Panel]) -> Markup:
    """The whole section."""
    if not any(panel.kind in ("layers", "depths") for panel in panels):
        return empty("Only one layer of each cell was probed, or none yet.")
    parts = [per_shots(facts, _found)]
    if any(panel.kind == "gains" for panel in panels):
        parts += [element("h3", "What the best layer gains"), element("p", GAINS), per_shots(facts, _optimistic)]
        parts += [chart_slots(panels, "gains"), per_shots(facts, _best_layers)]
    if any(panel.kind == "layers" for panel in panels):
        parts += [element("h3", "Accuracy by depth"), element("p", BY_DEPTH), legend(facts)]
        parts.append(chart_slots(panels, "layers"))
    if any(panel.kind == "depths" for panel in panels):
        parts += [element("h3", "The best layer as upstream accuracy grows"), element("p", DEPTHS)]
        parts.append(chart_slots(panels, "depths"))
    return join([*parts, per_shots(facts, _lost)])


def _found(facts: Facts, shots: int | None) -> Markup:
    return findings(layer_sentences(at_shots(facts.effects["layers"], shots)))


def _optimistic(facts: Facts, shots: int | None) -> Markup:
    whole = at_shots(facts.effects["layers"], shots).filter(pl.col("family").is_null())
    cells, optimistic = int(whole["cells"].sum()), int(whole["optimistic"].sum())
    if not optimistic:
        return Markup("")
    part = f"Of {optimistic:,} of {cells:,} choices, the gain is an upper bound: they have one draw."
    return element("p", OPTIMISTIC if optimistic == cells else part, class_="note")


def _best_layers(facts: Facts, shots: int | None) -> Markup:
    """A row for each task, over all cells, and for each of its families."""
    frame = at_shots(facts.effects["layers"], shots).sort("task", pl.col("family").is_not_null(), "family")
    headings = ("cells", "last is best in", "median depth", "gain over the last", "drift with upstream accuracy")
    columns = [Column("task"), Column("family", "line"), *(Column(heading, "number") for heading in headings)]
    rows = [_best(row) for row in frame.iter_rows(named=True)]
    caption = f"The best layer by task and family; drift is Spearman's correlation of its depth{at(shots)}"
    return folded("The best layer of every task and family", table(columns, rows, caption))


def _best(row: Mapping[str, Any]) -> list[object]:
    interval = "" if row["gain_low"] is None else f" [{signed(row['gain_low'])}, {signed(row['gain_high'])}]"
    return [
        row["task"],
        row["family"] or "all cells",
        row["cells"],
        row["last_best"],
        fixed(row["depth"], 2),
        signed(row["gain"]) + interval,
        ranked(row["drift"], row["drift_low"], row["drift_high"]),
    ]


def _lost(facts: Facts, shots: int | None) -> Markup:
    """Rows of layers that do not count, and why."""
    rows = at_shots(facts.layers_lost, shots).group_by("reason").agg(pl.col("rows").sum()).sort("reason")
    if rows.is_empty():
        return Markup("")
    told = "; ".join(f"{reason}: {count(number, 'row')}" for reason, number in rows.iter_rows())
    return element("p", f"Layers that do not count{at(shots)}, by reason: {told}.", class_="note")
