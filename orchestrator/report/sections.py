"""The sections of the page, in their order: facts to HTML. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from orchestrator.report.answer_section import answer_section
from orchestrator.report.axes_section import axes_section
from orchestrator.report.cell_sections import cells_of_frontier
from orchestrator.report.choice_section import choice_section
from orchestrator.report.conflict_section import conflict_section
from orchestrator.report.facts import Facts
from orchestrator.report.fits_section import fits_section
from orchestrator.report.layers_section import layers_section
from orchestrator.report.markup import Markup, element, join
from orchestrator.report.measures_section import measures_section
from orchestrator.report.operations_section import operations_section
from orchestrator.report.panels import Panel
from orchestrator.report.parts import empty
from orchestrator.report.plots import plots
from orchestrator.report.protocols_section import protocols_section
from orchestrator.report.state_sections import cells_section, missing_section


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the page."""

    anchor: str
    heading: str
    body: Markup


def sections(facts: Facts, panels: Sequence[Panel], plan: Mapping[str, Any], files: Sequence[str]) -> list[Section]:
    """All sections, in the order of the page; `files` are the paths, relative to it, of tables and figures."""
    return [
        Section("answer", "The answer", answer_section(facts)),
        Section("frontier", "Downstream against upstream accuracy", _frontier(facts, panels)),
        Section("fits", "Fits and verdicts", fits_section(facts)),
        Section("conflicts", "Conflicts", conflict_section(facts, panels)),
        Section("choice", "Which cell to take", choice_section(facts, panels)),
        Section("axes", "Axes", axes_section(facts, panels)),
        Section("layers", "Layers", layers_section(facts, panels)),
        Section("upstream", "Norms, margins and ranks", measures_section(facts, panels)),
        Section("protocols", "Protocols", protocols_section(facts)),
        Section("missing", "What is missing, and why", missing_section(facts)),
        Section("operations", "Operations", operations_section(facts, plan)),
        Section("frontier-cells", "Cells of the frontier", cells_of_frontier(facts)),
        Section("cells", "All cells", cells_section(facts)),
        Section("methods", "Methods and files", _methods(facts, files)),
    ]


def _frontier(facts: Facts, panels: Sequence[Panel]) -> Markup:
    if not facts.tasks:
        return empty("There are no results yet.")
    note = (
        "Each point is a cell (last checkpoint, last layer, mean over draws). The thin line is the upper hull, the "
        "thick curve the law fitted to its vertices: solid where the data identify it, dotted where they do not. The "
        "band is the 95 % interval of the saturation value, downstream accuracy as upstream accuracy goes to 1."
    )
    return join([element("p", note), plots(facts, panels)])


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
