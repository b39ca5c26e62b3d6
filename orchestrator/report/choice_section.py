"""The section on which cell to take: one for all tasks, the best of each, tasks that rank cells alike. Pure."""

from collections.abc import Sequence

from orchestrator.effects.summary import alike_sentences, choice_sentences
from orchestrator.report.anchors import told_of
from orchestrator.report.facts import Facts
from orchestrator.report.markup import Column, Markup, element, join, table
from orchestrator.report.panels import Panel, at_shots
from orchestrator.report.parts import (
    at,
    cell_names,
    chart_slots,
    empty,
    findings,
    folded,
    linked,
    linking,
    per_shots,
)
from orchestrator.report.words import count, fixed

LISTED_CELLS = 5

REGRET = (
    "Regret is the accuracy that a cell loses on a task against the best cell of that task, among the cells that have "
    "all tasks. Both are measured on the same test images, so that the best of many cells is best by luck too."
)
ALIKE = (
    "Spearman's rank correlation of downstream accuracies, over the cells that have both tasks: blue where two tasks "
    "rank the cells alike, vermilion where they rank them the other way round. In parentheses are those whose 95 % "
    "interval holds 0; it takes the cells for independent draws, which those of a grid are not quite. Tasks that are "
    "alike stand together."
)


def choice_section(facts: Facts, panels: Sequence[Panel]) -> Markup:
    """The whole section."""
    if facts.points.is_empty():
        return empty("There are no results yet.")
    parts = [per_shots(facts, _found)]
    if any(panel.kind == "correlations" for panel in panels):
        parts += [element("h3", "Tasks that rank cells alike"), element("p", ALIKE)]
        parts.append(chart_slots(panels, "correlations"))
    if facts.effects["regret"].height:
        parts += [element("h3", "One cell for all tasks"), element("p", REGRET), per_shots(facts, _regrets)]
    return join([*parts, per_shots(facts, _best_cells)])


def _found(facts: Facts, shots: int | None) -> Markup:
    regret, best, alike = (at_shots(facts.effects[name], shots) for name in ("regret", "best_cells", "correlations"))
    said = choice_sentences(regret, best)
    for cell_id in regret.filter(mean_rank=1)["cell_id"]:
        link = join([": ", linked(cell_id, told_of(facts)), " loses "])
        said = [linking(sentence, f": {cell_id} loses ", link) for sentence in said]
    return findings([*said, *alike_sentences(alike)])


def _regrets(facts: Facts, shots: int | None) -> Markup:
    name = cell_names(facts)
    frame = at_shots(facts.effects["regret"], shots).drop_nulls("cell_id")
    if frame.is_empty():
        return element("p", "No cell has all tasks.", class_="note")
    shown = frame.filter((frame["mean_rank"] <= LISTED_CELLS) | (frame["worst_rank"] == 1))
    rows = [
        [
            name(row["cell_id"]),
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
    name = cell_names(facts)
    rows = [
        [
            row["task"],
            name(row["cell_id"]),
            fixed(row["downstream"], 4),
            f"{row['upstream_rank']} of {row['cells']}",
            fixed(row["lost_by_upstream"], 4),
        ]
        for row in at_shots(facts.effects["best_cells"], shots).iter_rows(named=True)
    ]
    columns = [Column("task"), Column("best cell"), Column("accuracy", "number")]
    columns += [Column("its place upstream", "number"), Column("lost by choosing upstream", "number")]
    caption = f"The best cell of each task, and what the best cell upstream would lose{at(shots)}"
    return folded("The best cell of each task", table(columns, rows, caption))
