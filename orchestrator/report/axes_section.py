"""The section on axes: what each tells beyond upstream accuracy, what raising it does, how much was tuned. Pure."""

from collections.abc import Sequence

import polars as pl

from orchestrator.effects.summary import axis_sentences, tuned_sentences
from orchestrator.report.facts import Facts
from orchestrator.report.markup import Column, Markup, element, join, table
from orchestrator.report.panels import Panel, at_shots, line_axes
from orchestrator.report.parts import chart_slots, empty, findings, folded, legend, per_shots
from orchestrator.report.words import count, si

ADDED = (
    "Does an axis still matter once upstream accuracy is known? Upstream accuracy alone explains part of how cells "
    "differ on a task (a cubic, both accuracies as logits). The number is the share of the rest that the axis "
    "explains: 0 for nothing, 1 for all of it. In parentheses are those that chance would give more often than once "
    "in twenty times (p > 0.05, residuals permuted after Freedman and Lane). An axis that goes along with another one "
    "in the grid passes for it."
)
CURVES = (
    "A thin line joins a set of cells that differ in one axis only; a thick one is the mean over the sets of a family "
    "that have all its values, with the 95 % interval of what the axis does within a set (from five sets up). Mean "
    "downstream accuracy is that over all tasks. An axis whose numbers span a decade has a log scale."
)
TUNED = (
    "A scaling plot looks better where large models were tuned more. Curves show the best accuracy to expect of k "
    "random settings of a model, without replacement: a mean over data and resolution, which are no hyper-parameters."
)


def axes_section(facts: Facts, panels: Sequence[Panel]) -> Markup:
    """The whole section."""
    if facts.points.is_empty():
        return empty("There are no results yet.")
    parts = [per_shots(facts, _found)]
    if any(panel.kind == "added" for panel in panels):
        parts += [element("h3", "Beyond upstream accuracy"), element("p", ADDED), chart_slots(panels, "added")]
    parts += [per_shots(facts, _untested), element("h3", "All else equal"), _curves(facts, panels)]
    if facts.effects["coverage"].height:
        parts += [element("h3", "How much each model was tuned"), element("p", TUNED), _coverage(facts)]
        if any(panel.kind == "best_of_k" for panel in panels):
            summary = "The best accuracy to expect of k settings, task by task"
            parts.append(folded(summary, legend(facts), chart_slots(panels, "best_of_k")))
    return join(parts)


def _found(facts: Facts, shots: int | None) -> Markup:
    tested = at_shots(facts.effects["axes"], shots)
    told = [*axis_sentences(tested), *tuned_sentences(facts.effects["coverage"])]
    return findings(told) if told else empty("No axis varies.")


def _curves(facts: Facts, panels: Sequence[Panel]) -> Markup:
    axes = [axis for axis in line_axes(facts) if any(panel.kind == f"axis {axis}" for panel in panels)]
    if not axes:
        return empty("No ordered axis has cells that differ in it only.")
    parts = [element("p", CURVES), legend(facts)]
    for axis in axes:
        parts.append(chart_slots(panels, f"axis {axis}"))
        if any(panel.kind == f"axis_tasks {axis}" for panel in panels):
            parts.append(folded(f"{axis}, task by task", chart_slots(panels, f"axis_tasks {axis}")))
    return join(parts)


def _untested(facts: Facts, shots: int | None) -> Markup:
    """How many comparisons could not be made, by reason; an axis with one value is none."""
    rows = at_shots(facts.effects["axes"], shots).filter(pl.col("p_value").is_null() & (pl.col("num_values") > 1))
    if rows.is_empty():
        return Markup("")
    reasons = rows.group_by("axis", "reason").len().sort("axis", "reason").iter_rows()
    told = "; ".join(f"{axis} on {count(number, 'task')} ({reason})" for axis, reason, number in reasons)
    return element("p", f"Not compared: {told}.", class_="note")


def _coverage(facts: Facts) -> Markup:
    """A row for each family and size: how many values each hyper-parameter took, and the most where it took fewer."""
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
    caption = "Different values of each hyper-parameter that varies, by family and size"
    return folded("The settings of every family and size", table(columns, rows, caption))
