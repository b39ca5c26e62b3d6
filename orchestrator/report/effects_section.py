"""The section on effects: what is to be said beyond upstream accuracy, in sentences, then charts and tables. Pure."""

from collections.abc import Sequence

import polars as pl

from orchestrator.effects.summary import sentences
from orchestrator.report.effect_panels import at_shots
from orchestrator.report.facts import Facts
from orchestrator.report.markup import Column, Markup, element, join, table
from orchestrator.report.panels import Panel
from orchestrator.report.parts import at, cell_name, chart_slots, empty, legend, per_shots
from orchestrator.report.words import count, fixed, si

LISTED_CELLS = 5


def effects_section(facts: Facts, panels: Sequence[Panel]) -> Markup:
    """The whole section."""
    if facts.points.is_empty():
        return empty("There are no results yet.")
    parts = [per_shots(facts, _sentences)]
    if any(panel.kind == "added" for panel in panels):
        parts += [element("h3", "What an axis adds"), element("p", ADDED), chart_slots(panels, "added")]
    parts.append(per_shots(facts, _untested))
    if facts.effects["regret"].height:
        parts += [element("h3", "One cell for all tasks"), element("p", REGRET), per_shots(facts, _regrets)]
    parts += [element("h3", "The best cell of each task"), per_shots(facts, _best_cells)]
    if any(panel.kind == "correlations" for panel in panels):
        parts += [element("h3", "Tasks that rank cells alike"), element("p", ALIKE)]
        parts.append(chart_slots(panels, "correlations"))
    if facts.effects["coverage"].height:
        parts += [element("h3", "How much each model was tuned"), element("p", TUNED), _coverage(facts)]
        if any(panel.kind == "best_of_k" for panel in panels):
            parts += [legend(facts), chart_slots(panels, "best_of_k")]
    return join(parts)


ADDED = (
    "A cubic of upstream accuracy (both accuracies as logits) explains downstream accuracy; the number is the part of "
    "what it leaves that the axis takes up. Faint numbers have p > 0.05 by permuting the residuals (Freedman and "
    "Lane). One test in twenty falls below that by chance, and an axis that goes along with another one in the grid "
    "passes for it."
)
REGRET = (
    "Regret is the accuracy that a cell loses on a task against the best cell of that task, among the cells that have "
    "all tasks. Both are measured on the same test images, so that the best of many cells is best by luck too."
)
ALIKE = "Spearman's rank correlation of downstream accuracies, over the cells that have both tasks."
TUNED = (
    "A scaling plot looks better where large models were tuned more. Curves show the best accuracy to expect of k "
    "random settings of a model, without replacement: a mean over data and resolution, which are no hyper-parameters."
)


def _sentences(facts: Facts, shots: int | None) -> Markup:
    frames = {
        name: at_shots(frame, shots) if "shots" in frame.columns else frame for name, frame in facts.effects.items()
    }
    return element("ul", *(element("li", sentence) for sentence in sentences(frames)))


def _untested(facts: Facts, shots: int | None) -> Markup:
    """How many comparisons could not be made, by reason; an axis with one value is none."""
    rows = at_shots(facts.effects["axes"], shots).filter(pl.col("p_value").is_null() & (pl.col("num_values") > 1))
    if rows.is_empty():
        return Markup("")
    reasons = rows.group_by("axis", "reason").len().sort("axis", "reason").iter_rows()
    told = "; ".join(f"{axis} on {count(number, 'task')} ({reason})" for axis, reason, number in reasons)
    return element("p", f"Not compared: {told}.", class_="note")


def _regrets(facts: Facts, shots: int | None) -> Markup:
    names = _names(facts)
    frame = at_shots(facts.effects["regret"], shots).drop_nulls("cell_id")
    if frame.is_empty():
        return element("p", "No cell has all tasks.", class_="note")
    shown = frame.filter((pl.col("mean_rank") <= LISTED_CELLS) | (pl.col("worst_rank") == 1))
    rows = [
        [
            cell_name(row["cell_id"], names),
            fixed(row["mean_regret"], 4),
            fixed(row["worst_regret"], 4),
            row["worst_task"],
        ]
        for row in shown.iter_rows(named=True)
    ]
    columns = [Column("cell"), Column("mean regret", "number"), Column("worst regret", "number"), Column("on")]
    first = frame.row(0, named=True)
    more, partial = first["complete_cells"] - shown.height, first["incomplete_cells"]
    others = [f"{count(more, 'further cell')} with all tasks"] if more else []
    others += [f"{count(partial, 'cell')} without all of them left out"] if partial else []
    note = element("p", "; ".join(others) + ".", class_="note") if others else ""
    caption = f"The cells with the least regret over {count(first['tasks'], 'task')}{at(shots)}"
    return join([table(columns, rows, caption), note])


def _best_cells(facts: Facts, shots: int | None) -> Markup:
    names = _names(facts)
    rows = [
        [
            row["task"],
            cell_name(row["cell_id"], names),
            fixed(row["downstream"], 4),
            f"{row['upstream_rank']} of {row['cells']}",
            fixed(row["lost_by_upstream"], 4),
        ]
        for row in at_shots(facts.effects["best_cells"], shots).iter_rows(named=True)
    ]
    columns = [Column("task"), Column("best cell"), Column("accuracy", "number")]
    columns += [Column("its place upstream", "number"), Column("lost by choosing upstream", "number")]
    return table(columns, rows, f"The best cell of each task, and what the best cell upstream would lose{at(shots)}")


def _coverage(facts: Facts) -> Markup:
    """A row for each family and size: how many values each hyper-parameter took, the most in bold."""
    frame = facts.effects["coverage"]
    axes = [axis for axis in frame["axis"].unique(maintain_order=True) if axis is not None]
    rows = []
    for key, models in frame.group_by("family", "size", "params", maintain_order=True):
        values = {row["axis"]: row for row in models.iter_rows(named=True)}
        counts = [
            f"{values[axis]['values']} of {values[axis]['most']}" if values[axis]["fewer"] else values[axis]["values"]
            for axis in (None, *axes)
        ]
        name = " ".join(str(part) for part in key[:2] if part is not None)
        rows.append([name, si(key[2]), models["cells"][0], *counts])
    headings = ("parameters", "cells", "settings", *axes)
    columns = [Column("model"), *(Column(heading, "number") for heading in headings)]
    return table(columns, rows, "Different values of each hyper-parameter that varies, by family and size")


def _names(facts: Facts) -> dict[str, str]:
    return dict(facts.cells.select("cell_id", "text").iter_rows())
