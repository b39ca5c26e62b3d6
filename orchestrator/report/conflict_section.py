"""The section on conflicts: how many, along which axis, between which cells. Pure.

One switch shows the significant conflicts or all of them: what belongs to one of both carries `data-conflicts`, and
conflicts.js hides the other.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import polars as pl

from orchestrator.effects.summary import LEVEL, parting
from orchestrator.report.conflict_panels import Which, change_text, counted, which_column
from orchestrator.report.facts import Facts
from orchestrator.report.markup import Column, Markup, element, join, table
from orchestrator.report.panels import Panel, at_shots
from orchestrator.report.parts import at, chart_slots, empty, folded, per_shots, share, tasks_at
from orchestrator.report.strongest_pairs import strongest
from orchestrator.report.words import count, fixed, listed, percent

LISTED_CHANGES = 100  # those with the most pairs of cells; tables/axes has all

CONFLICT = (
    "A conflict is a pair of cells of which one is better upstream and worse downstream. It is significant where "
    "both differences exceed the 95 % bound of their noise: binomial where the sizes of the test sets are known, "
    "otherwise from the spread of seeds."
)
DIFFERING = (
    "Of the pairs of cells that differ on one axis only, the share that conflicts. Half of the pairs would if upstream "
    "accuracy said nothing about a task."
)
CHANGES = (
    "Every row takes pairs of cells that differ in one axis only, and shows the mean change of accuracy by raising "
    "it (names have no order: from the first to the second): blue is better, vermilion worse. Where upstream and a "
    "task differ in sign, the two are at odds."
)
PARTING = (
    "From the lowest to the highest value of an axis, each set of cells counted once: how often upstream accuracy "
    "rises and downstream accuracy falls (up, down) or the other way round (down, up), and the p of a two-sided sign "
    "test between the two."
)
DIRECTIONS = {
    "upstream_up_downstream_down": "up, down",
    "upstream_down_downstream_up": "down, up",
    "both_up": "both up",
    "both_down": "both down",
    "tied": "tied",
}
"""Columns of the controlled conflicts, with their headings: upstream accuracy first."""


def conflict_section(facts: Facts, panels: Sequence[Panel]) -> Markup:
    """The whole section."""
    if not facts.tasks:
        return empty("There are no results yet.")
    parts = [
        _either(facts, lambda which: per_shots(facts, lambda facts, shots: _found(facts, shots, which))),
        _switch(facts),
        element("p", CONFLICT),
        _either(facts, lambda which: chart_slots(_named(panels, which), "conflicts")),
        per_shots(facts, _counts),
        *_axis_parts(facts, panels),
    ]
    if facts.strongest.height:
        parts += [element("h3", "The strongest conflicts"), per_shots(facts, strongest)]
    return join(parts)


def is_known(facts: Facts) -> bool:
    """Whether the noise of any task is known, so that there are significant conflicts to choose."""
    return any(task["significant_conflicts"] is not None for task in facts.tasks)


def _either(facts: Facts, make: Callable[[Which], Markup]) -> Markup:
    """What is made for the significant conflicts and for all; without noise, for all alone."""
    if not is_known(facts):
        return make("all")
    return join(
        element("div", make(which), data_conflicts=which, hidden="hidden" if which == "all" else None)
        for which in get_args(Which)
    )


def _switch(facts: Facts) -> Markup:
    if not is_known(facts):
        return element(
            "p", "Neither test-set sizes nor seeds tell the noise, so all conflicts are shown.", class_="note"
        )
    choices = [
        element("label", element("input", type="radio", name="conflicts", value=which, checked=checked), text)
        for which, text, checked in (("significant", "significant only", "checked"), ("all", "all", None))
    ]
    return element("fieldset", element("legend", "Conflicts:"), *choices, id="which-conflicts", class_="switch")


def _named(panels: Sequence[Panel], which: Which) -> list[Panel]:
    return [panel for panel in panels if panel.name == which]


def _found(facts: Facts, shots: int | None, which: Which) -> Markup:
    """What was found, in a sentence or two."""
    word = "significant conflicts" if which == "significant" else "conflicts"
    told = [
        (task["task"], task[counted(which)], task["n"] * (task["n"] - 1) // 2)
        for task in tasks_at(facts, shots)
        if task[counted(which)] is not None and task["n"] > 1
    ]
    number, pairs = sum(row[1] for row in told), sum(row[2] for row in told)
    if not pairs:
        return element("p", f"No task has two cells to compare{at(shots)}.")
    if not number:
        return element("p", f"There are no {word}{at(shots)}, among {count(pairs, 'pair')} of cells.")
    most = sorted(told, key=lambda row: (-row[1] / row[2], row[0]))[:2]
    worst = listed([f"{task} ({percent(part / whole)} of its pairs)" for task, part, whole in most if part])
    text = f"{percent(number / pairs)} of all pairs of cells are {word}{at(shots)}; most are on {worst}."
    return element("p", text, _axis_found(facts, shots, which))


def _axis_found(facts: Facts, shots: int | None, which: Which) -> str:
    sums = _sums(facts, shots, which).filter(pl.col("alone_pairs") > 0, pl.col("alone") > 0)
    if sums.is_empty():
        return ""
    top = sums.sort(pl.col("alone") / pl.col("alone_pairs"), "axis", descending=[True, False]).row(0, named=True)
    rate = percent(top["alone"] / top["alone_pairs"])
    return (
        f" Of pairs that differ in one axis only, those that differ in {top['axis']} are at odds most often: {rate} "
        f"({top['alone']:,} of {top['alone_pairs']:,} over all tasks)."
    )


def _counts(facts: Facts, shots: int | None) -> Markup:
    rows = []
    for task in tasks_at(facts, shots):
        pairs, significant = task["n"] * (task["n"] - 1) // 2, task["significant_conflicts"]
        shares = [share(task["conflicts"], pairs), "unknown" if significant is None else share(significant, pairs)]
        noise = task["significant_against"].removeprefix("unknown: ")
        rows.append([task["task"], f"{pairs:,}", *shares, noise, fixed(task["spearman"], 2), fixed(task["kendall"], 2)])
    headings = ("pairs", "conflicts", "significant", "noise", "Spearman", "Kendall")
    columns = [Column("task"), *(Column(heading, "number") for heading in headings)]
    return folded("The counts of every task", table(columns, rows, f"Conflicting pairs of cells{at(shots)}"))


def _axis_parts(facts: Facts, panels: Sequence[Panel]) -> list[Markup]:
    parts: list[Markup] = []
    if facts.differing.height:
        parts += [element("h3", "On which axes the two cells differ"), element("p", DIFFERING)]
        parts.append(_either(facts, lambda which: chart_slots(_named(panels, which), "conflict_axes")))
        parts.append(
            _either(facts, lambda which: per_shots(facts, lambda facts, shots: _differing(facts, shots, which)))
        )
    if any(panel.kind == "changes" for panel in panels):
        parts += [element("h3", "What raising an axis does, all else equal"), element("p", CHANGES)]
        parts += [chart_slots(panels, "changes"), per_shots(facts, _directions)]
    if facts.crowded:
        axes = ", ".join(f"{axis} ({number:,})" for axis, number in sorted(facts.crowded.items()))
        parts.append(element("p", f"Not compared value by value, for their number of values: {axes}.", class_="note"))
    if facts.effects["directions"].height:
        parts.append(per_shots(facts, _parting))
    return parts


def _sums(facts: Facts, shots: int | None, which: Which) -> pl.DataFrame:
    """Over all tasks, for each axis: pairs, conflicts, alone_pairs, alone, all_pairs, all."""
    name = which_column(which)
    rows = at_shots(facts.differing, shots).filter(pl.col(f"all_{name}").is_not_null())
    return rows.group_by("axis", maintain_order=True).agg(
        pl.col("pairs", "alone_pairs", "all_pairs").sum(),
        conflicts=pl.col(name).sum(),
        alone=pl.col(f"alone_{name}").sum(),
        all=pl.col(f"all_{name}").sum(),
    )


def _differing(facts: Facts, shots: int | None, which: Which) -> Markup:
    """How often pairs that differ on an axis conflict, beside those that agree on it."""
    rows = [
        [
            row["axis"],
            share(row["conflicts"], row["pairs"]),
            share(row["all"] - row["conflicts"], row["all_pairs"] - row["pairs"]),
            share(row["alone"], row["alone_pairs"]) if row["alone_pairs"] else "no such pair",
        ]
        for row in _sums(facts, shots, which).iter_rows(named=True)
    ]
    headings = ("pairs that differ on it", "pairs that agree on it", "pairs that differ on nothing else")
    columns = [Column("axis"), *(Column(heading, "number") for heading in headings)]
    what = "Significant conflicts" if which == "significant" else "Conflicts"
    caption = f"{what} of pairs of cells, over all tasks, and their share{at(shots)}"
    return folded("The counts of every axis", table(columns, rows, caption))


def _directions(facts: Facts, shots: int | None) -> Markup:
    """Over all tasks: how often raising an axis moves the two accuracies in opposite directions."""
    sums = (
        at_shots(facts.changes, shots)
        .with_columns(change=change_text())
        .group_by("axis", "change", maintain_order=True)
        .agg(pl.col("pairs", *DIRECTIONS).sum())
        .sort("axis", maintain_order=True)
    )
    num_changes, order = sums.height, ("axis", "place")
    sums = sums.with_row_index("place").sort("pairs", *order, descending=[True, False, False])
    sums = sums.head(LISTED_CHANGES).sort(order)
    shown = [
        [row["change"], row["pairs"], *(share(row[name], row["pairs"]) for name in DIRECTIONS)]
        for row in sums.iter_rows(named=True)
    ]
    columns = [Column("raising"), *(Column(heading, "number") for heading in ("pairs × tasks", *DIRECTIONS.values()))]
    inner = table(columns, shown, f"Directions of upstream and downstream accuracy, over all tasks{at(shots)}")
    more = num_changes - len(shown)
    rest = f"{count(more, 'further change')} not listed here; tables/axes.csv has all."
    note = element("p", rest, class_="note") if more else ""
    return folded(f"The directions of {count(num_changes, 'change')}", inner, note)


def _parting(facts: Facts, shots: int | None) -> Markup:
    """The axes and tasks that part the two accuracies in one direction more often than chance would."""
    frame = at_shots(facts.effects["directions"], shots)
    shown = parting(frame)
    rows = [_parting_row(row) for row in shown.iter_rows(named=True)]
    rest = frame.height - shown.height
    chance = f"{frame.height * LEVEL:.2g} of all would be listed by chance"
    note = f"{count(rest, 'further row')} with p > {LEVEL:g} not listed; {chance}."
    columns = [Column("raising"), *(Column(h, "number") for h in ("pairs", "up, down", "95 %", "down, up", "p"))]
    caption = f"Axes that part upstream and downstream in one direction{at(shots)}"
    shown_rows = table(columns, rows, caption) if rows else ""
    summary = f"{count(shown.height, 'axis and task', 'axes and tasks')} where the two part in one direction"
    return folded(summary, element("p", PARTING), shown_rows, element("p", note, class_="note"))


def _parting_row(row: Mapping[str, Any]) -> list[object]:
    return [
        f"{row['axis']}, {row['task']}",
        row["pairs"],
        share(row["upstream_up_downstream_down"], row["pairs"]),
        f"{row['share_low']:.0%} to {row['share_high']:.0%}",
        share(row["upstream_down_downstream_up"], row["pairs"]),
        f"{row['p_value']:.2g}",
    ]
