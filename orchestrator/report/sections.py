"""The sections of the page, in their order: facts to HTML. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import polars as pl

from orchestrator.frontier import METHODS
from orchestrator.report.conflict_section import conflict_section
from orchestrator.report.effects_section import effects_section
from orchestrator.report.facts import Facts
from orchestrator.report.headline import answers, paragraph
from orchestrator.report.markup import Column, Markup, element, escape, join, table
from orchestrator.report.panels import Panel, line_axes
from orchestrator.report.parts import at, chart_slots, empty, legend, per_shots, shots_key
from orchestrator.report.state_sections import cells_section, missing_section, operations_section
from orchestrator.report.words import fixed, signed


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the page."""

    anchor: str
    heading: str
    body: Markup


def sections(facts: Facts, panels: Sequence[Panel], plan: Mapping[str, Any], files: Sequence[str]) -> list[Section]:
    """All sections, in the order of the page; `files` are the paths, relative to it, of tables and figures."""
    return [
        Section("answer", "The answer", _answer(facts)),
        Section("frontier", "Downstream against upstream accuracy", _frontier(facts, panels)),
        Section("fits", "Fits and verdicts", _fits(facts)),
        Section("conflicts", "Conflicts", conflict_section(facts, panels)),
        Section("effects", "Effects", effects_section(facts, panels)),
        Section("layers", "Layers", _layers(facts, panels)),
        Section("axes", "Axes", _axes(facts, panels)),
        Section("missing", "What is missing, and why", missing_section(facts)),
        Section("operations", "Operations", operations_section(facts, plan)),
        Section("cells", "All cells", cells_section(facts)),
        Section("methods", "Methods and files", _methods(facts, files)),
    ]


def _answer(facts: Facts) -> Markup:
    sentences = [
        element(
            "li",
            element("b", answer.about),
            f": {answer.verdict} ",
            element("small", answer.best),
            data_shots=shots_key(answer.shots),
            class_=None if answer.sure else "unsure",
        )
        for answer in answers(facts)
    ]
    listed = element("ul", *sentences, class_="answers") if sentences else empty("No value has been measured yet.")
    return join([element("p", paragraph(facts)), listed])


def _frontier(facts: Facts, panels: Sequence[Panel]) -> Markup:
    if not facts.tasks:
        return empty("There are no results yet.")
    note = (
        "Each point is a cell (last checkpoint, last layer, mean over draws). The thin line is the upper hull, the "
        "thick curve the law fitted to its vertices: solid where the data identify it, dotted where they do not. The "
        "band is the 95 % interval of the saturation value, downstream accuracy as upstream accuracy goes to 1."
    )
    beyond = element("label", element("input", type="checkbox", id="beyond"), " show up to upstream accuracy 1")
    return join(
        [element("p", note), legend(facts), element("p", beyond, class_="option"), chart_slots(panels, "frontier")]
    )


def _fits(facts: Facts) -> Markup:
    if not facts.tasks:
        return empty("There is nothing to fit yet.")
    note = (
        "The law e_DS = k e_US^α + e_IR, fitted to the vertices of the hull, to its rising part, and to all cells; the "
        "saturation value is 1 − e_IR with its 95 % bootstrap interval. The verdict is on the hull fit: what stands in "
        "grey is not identified by the data. Held-out error: root mean square error of the fit below the 80 % quantile "
        "of upstream accuracy on what lies above it, each method on its own points."
    )
    columns = [Column("task"), Column("shots", "number"), Column("saturation value (hull) and verdict")]
    headings = ("rising part", "all cells", "held out: hull", "held out: rising", "held out: all", "cells", "vertices")
    columns += [Column(heading, "number") for heading in headings]
    return join([element("p", note), table(columns, map(_fit_row, facts.tasks), "The fits of every task")])


def _fit_row(task: Mapping[str, Any]) -> list[object]:
    fits, sure = task["fits"], task["identifiable"]
    hull = [_saturation(fits["hull"]), element("br"), element("small", task["verdict"])]
    return [
        task["task"],
        "" if task["shots"] is None else task["shots"],
        element("div", *hull, class_="verdict" if sure else "verdict unsure"),
        *(_saturation(fits[method], element("br")) for method in METHODS if method != "hull"),
        *(fixed((fits[method] or {}).get("held_out_rmse"), 4) for method in METHODS),
        task["n"],
        task["hull_vertices"],
    ]


def _saturation(fit: Mapping[str, Any] | None, between: str = " ") -> Markup:
    if fit is None:
        return escape("–")
    interval = ""
    if fit["e_ir_low"] is not None:
        interval = f"[{fixed(1 - fit['e_ir_high'], 3)}, {fixed(1 - fit['e_ir_low'], 3)}]"
    return join([fixed(1 - fit["e_ir"], 3), between, interval])


def _layers(facts: Facts, panels: Sequence[Panel]) -> Markup:
    if not any(panel.kind == "layers" for panel in panels):
        return empty("Only one layer of each cell was probed, or none yet.")
    note = (
        "Accuracy of the probe at every layer, mean over the cells of a model and over draws; thicker lines are larger "
        "models. Depth is the layer's number as a part of all, and 1 the features before the head. The ring marks the "
        "best layer of each model. Below, the layer of a cell is chosen on one half of the draws and scored on the "
        "other, so that its gain is not the luck of the draws; with one draw it is an upper bound. Drift is Spearman's "
        "correlation of the best layer's depth with upstream accuracy."
    )
    return join([element("p", note), legend(facts), chart_slots(panels, "layers"), per_shots(facts, _best_layers)])


def _best_layers(facts: Facts, shots: int | None) -> Markup:
    frame = facts.effects["layers"].filter(pl.col("shots").eq_missing(pl.lit(shots, pl.Int64)))
    found = {(row["task"], row["family"]): row for row in frame.iter_rows(named=True)}
    tasks = frame["task"].unique(maintain_order=True)
    rows = [[task, *(_best(found.get((task, family))) for family in (None, *facts.families))] for task in tasks]
    columns = [Column("task"), Column("all cells", "line"), *(Column(family, "line") for family in facts.families)]
    what = "Mean gain of the best layer over the last, its median depth, drift, and in how many cells the last is best"
    return table(columns, rows, f"{what}{at(shots)}")


def _best(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    drift = "" if row["drift"] is None else f"; drift {row['drift']:+.2f}".replace("-", "−")
    last = f"last best in {row['last_best']} of {row['cells']}"
    return f"{signed(row['gain'])} at {fixed(row['depth'], 2)}{drift}; {last}"


def _axes(facts: Facts, panels: Sequence[Panel]) -> Markup:
    kinds = [f"axis {axis}" for axis in line_axes(facts)]
    if not any(panel.kind in kinds for panel in panels):
        return empty("No ordered axis has cells that differ in it only.")
    note = (
        "A thin line joins cells that differ in one axis only; a thick one is the mean over the lines of a family that "
        "have all its values. Mean downstream accuracy is that over all tasks."
    )
    return join([element("p", note), legend(facts), chart_slots(panels, *kinds)])


def _methods(facts: Facts, files: Sequence[str]) -> Markup:
    reducer = sorted({task["method"] for task in facts.tasks if task.get("method")})
    choices = [f"Probe: {text}." for text in facts.methods] + [f"Reducer: {text}." for text in reducer]
    law = "Frontier, law and conflicts follow Abnar, Dehghani, Neyshabur and Sedghi, arXiv 2110.02095."
    listed = [
        element("li", name, *(part for path in group for part in (" ", element("a", _suffix(path), href=path))))
        for name, group in groupby(files, key=lambda path: path.rpartition(".")[0])
    ]
    methods = element("ul", *(element("li", choice) for choice in choices))
    return join([element("p", law), methods, element("h3", "Files"), element("ul", *listed, class_="files")])


def _suffix(path: str) -> str:
    return path.rpartition(".")[2]
