"""The sections of the page, in their order: facts to HTML. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from orchestrator.answer import recipe_text
from orchestrator.frontier import METHODS, MIN_HELD_OUT, MODEL_NAMES, MODELS
from orchestrator.report.axes_section import axes_section
from orchestrator.report.cell_sections import cells_of_frontier
from orchestrator.report.choice_section import choice_section
from orchestrator.report.conflict_section import conflict_section
from orchestrator.report.facts import Facts
from orchestrator.report.headline import answers, paragraph
from orchestrator.report.layers_section import layers_section
from orchestrator.report.markup import Column, Markup, element, join, table
from orchestrator.report.measures_section import measures_section
from orchestrator.report.operations_section import operations_section
from orchestrator.report.panels import Panel
from orchestrator.report.parts import at, chart_slots, empty, legend, per_shots, shots_key, tasks_at
from orchestrator.report.protocols_section import protocols_section
from orchestrator.report.state_sections import cells_section, missing_section
from orchestrator.report.words import fixed, listed


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
        "The law e_DS = k e_US^α + e_IR, fitted to the upper hull, to its rising part, and to all cells; the "
        "saturation value is 1 − e_IR with its 95 % interval. What stands in grey is not identified by the data, and "
        "has no number; tables/fits.csv has what was fitted. The recipe names the best cell of the hull."
    )
    fits = per_shots(facts, _fit_table)
    return join([element("p", note), fits, element("h3", "What predicts best"), _held_out(facts)])


def _fit_table(facts: Facts, shots: int | None) -> Markup:
    headings = ("saturation value (hull) and verdict", "rising part", "all cells", "recipe for the best vertex")
    columns = [Column("task"), *(Column(heading) for heading in headings)]
    columns += [Column(heading, "number") for heading in ("cells", "vertices")]
    return table(columns, map(_fit_row, tasks_at(facts, shots)), f"The fits of every task{at(shots)}")


def _fit_row(task: Mapping[str, Any]) -> list[object]:
    recipe = "" if task["recipe"] and task["recipe"]["cells"] else "unsure"
    return [
        task["task"],
        _judged(task["fits"]["hull"], task["verdict"]),
        *(_judged(task["fits"][method]) for method in METHODS if method != "hull"),
        element("div", recipe_text(task), class_=f"verdict {recipe}".strip()),
        task["n"],
        task["hull_vertices"],
    ]


def _judged(fit: Mapping[str, Any] | None, without: str = "no fit") -> Markup:
    """A saturation value with its verdict; the verdict alone where the data do not identify the value."""
    if fit is None:
        return element("div", element("small", without), class_="verdict unsure")
    text = element("small", fit["verdict"])
    if not fit["identifiable"]:
        return element("div", text, class_="verdict unsure")
    interval = f" [{fixed(1 - fit['e_ir_high'], 3)}, {fixed(1 - fit['e_ir_low'], 3)}]"
    return element("div", fixed(1 - fit["e_ir"], 3), interval, element("br"), text, class_="verdict")


def _held_out(facts: Facts) -> Markup:
    """Errors of the fits and of simpler rivals, all on the same points."""
    note = (
        "Root mean square error on the cells above the 80 % quantile of upstream accuracy, and on the hull's vertices "
        "among them, of models that saw the other cells only: the three fits, a straight line in logit space, a "
        "constant, and a monotone regression. All are asked for the same points. An error in parentheses is that of a "
        "degenerate law, which rests on a bound or on no more than three points, so that it cannot be the best; on "
        f"fewer than {MIN_HELD_OUT} points none is. "
    )
    best = Counter(task["held_out"]["best_model"] for task in facts.tasks if task["held_out"]["best_model"])
    won = listed([f"{MODEL_NAMES[name]} on {count}" for name, count in best.most_common()])
    said = f"Best on all cells beyond, by number of tasks and shots: {won}." if won else "Too little could be held out."
    return join([element("p", note, said), per_shots(facts, _held_out_table)])


def _held_out_table(facts: Facts, shots: int | None) -> Markup:
    columns = [Column("task"), Column("predicts best"), Column("on")]
    columns += [Column(MODEL_NAMES[name], "number") for name in MODELS] + [Column("points", "number")]
    rows = [row for task in tasks_at(facts, shots) for row in _held_out_rows(task)]
    return table(columns, rows, f"Held-out errors{at(shots)}")


def _held_out_rows(task: Mapping[str, Any]) -> list[list[object]]:
    held = task["held_out"]
    return [
        [
            task["task"],
            MODEL_NAMES[contest["best_model"]] if contest["best_model"] else "–",
            points,
            *(_error(contest, name) for name in MODELS),
            contest["num_points"],
        ]
        for points, contest in (("cells", held), ("vertices", held["frontier"]))
    ]


def _error(contest: Mapping[str, Any], name: str) -> str:
    """A model's error; in parentheses that of a degenerate law."""
    error = fixed(contest["rmse"][name], 4)
    return f"({error})" if name in contest["degenerate"] and contest["rmse"][name] is not None else error


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
