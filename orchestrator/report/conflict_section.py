"""The section on conflicts: how many, along which axis, between which cells. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from orchestrator.effects.summary import LEVEL, parting
from orchestrator.report.facts import Facts
from orchestrator.report.markup import Column, Markup, element, join, table
from orchestrator.report.panels import Panel, change_text
from orchestrator.report.parts import at, cell_name, chart_slots, empty, per_shots, share, tasks_at
from orchestrator.report.words import count, fixed, signed

LISTED_PAIRS = 3  # of each task; tables/conflicts has more
LISTED_CHANGES = 100  # those with the most pairs of cells; tables/axes has all

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
    note = (
        "A conflict is a pair of cells of which one is better upstream and worse downstream. It is significant where "
        "both differences exceed the 95 % bound of their noise: binomial where the sizes of the test sets are known, "
        "otherwise from the spread of seeds."
    )
    changes = (
        "Every row takes pairs of cells that differ in one axis only, and shows the mean change of accuracy by raising "
        "it (names have no order: from the first to the second): blue is better, vermilion worse. Where upstream and a "
        "task differ in sign, the two are at odds."
    )
    parts = [element("p", note), per_shots(facts, _counts)]
    if any(panel.kind == "changes" for panel in panels):
        parts += [element("h3", "By axis, all else equal"), element("p", changes), chart_slots(panels, "changes")]
        parts += [per_shots(facts, _directions)]
    if facts.crowded:
        axes = ", ".join(f"{axis} ({number:,})" for axis, number in sorted(facts.crowded.items()))
        parts += [element("p", f"Not compared value by value, for their number of values: {axes}.", class_="note")]
    if facts.effects["directions"].height:
        parts += [element("p", PARTING), per_shots(facts, _parting)]
    if facts.strongest.height:
        parts += [element("h3", "Strongest pairs"), per_shots(facts, _strongest)]
    return join(parts)


def _counts(facts: Facts, shots: int | None) -> Markup:
    rows = []
    for task in tasks_at(facts, shots):
        pairs, significant = task["n"] * (task["n"] - 1) // 2, task["significant_conflicts"]
        shares = [share(task["conflicts"], pairs), "unknown" if significant is None else share(significant, pairs)]
        noise = task["significant_against"].removeprefix("unknown: ")
        rows.append([task["task"], f"{pairs:,}", *shares, noise, fixed(task["spearman"], 2), fixed(task["kendall"], 2)])
    headings = ("pairs", "conflicts", "significant", "noise", "Spearman", "Kendall")
    columns = [Column("task"), *(Column(heading, "number") for heading in headings)]
    return table(columns, rows, f"Conflicting pairs of cells{at(shots)}")


def _directions(facts: Facts, shots: int | None) -> Markup:
    """Over all tasks: how often raising an axis moves the two accuracies in opposite directions."""
    rows = facts.changes.filter(pl.col("shots").eq_missing(pl.lit(shots, pl.Int64)))
    sums = (
        rows.with_columns(change=change_text())
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
    return element(
        "details", element("summary", f"Count the directions of {count(num_changes, 'change')}"), inner, note
    )


def _parting(facts: Facts, shots: int | None) -> Markup:
    """The axes and tasks that part the two accuracies in one direction more often than chance would."""
    frame = facts.effects["directions"].filter(pl.col("shots").eq_missing(pl.lit(shots, pl.Int64)))
    shown = parting(frame)
    rows = [
        [
            f"{row['axis']}, {row['task']}",
            row["pairs"],
            share(row["upstream_up_downstream_down"], row["pairs"]),
            f"{row['share_low']:.0%} to {row['share_high']:.0%}",
            share(row["upstream_down_downstream_up"], row["pairs"]),
            f"{row['p_value']:.2g}",
        ]
        for row in shown.iter_rows(named=True)
    ]
    rest = frame.height - shown.height
    chance = f"{frame.height * LEVEL:.2g} of all would be listed by chance"
    note = f"{count(rest, 'further row')} with p > {LEVEL:g} not listed; {chance}."
    columns = [Column("raising"), *(Column(h, "number") for h in ("pairs", "up, down", "95 %", "down, up", "p"))]
    listed = table(columns, rows, f"Axes that part upstream and downstream in one direction{at(shots)}") if rows else ""
    return join([listed, element("p", note, class_="note")])


def _strongest(facts: Facts, shots: int | None) -> Markup:
    names = dict(facts.cells.select("cell_id", "text").iter_rows())
    frame = facts.strongest.filter(pl.col("shots").eq_missing(pl.lit(shots, pl.Int64)))
    pairs = frame.group_by("task", maintain_order=True).head(LISTED_PAIRS)
    total = int(frame.group_by("task").agg(pl.col("conflicts").first())["conflicts"].sum())
    columns = [Column("task"), Column("better upstream"), Column("better downstream"), Column("differ in")]
    columns += [Column("upstream gain", "number"), Column("downstream loss", "number")]
    rows = [_pair(pair, names) for pair in pairs.iter_rows(named=True)]
    more = total - len(rows)
    note = f"{count(more, 'further conflict')} not listed here; tables/conflicts.csv has the strongest."
    caption = f"The {LISTED_PAIRS} strongest conflicts of each task, σ in standard errors{at(shots)}"
    return join([table(columns, rows, caption), element("p", note, class_="note") if more else ""])


def _pair(pair: Mapping[str, Any], names: Mapping[str, str]) -> list[object]:
    gain = _change(pair["upstream_gain"], pair["upstream_z"])
    loss = _change(-pair["downstream_loss"], pair["downstream_z"])
    cells = [cell_name(pair[f"cell_id_{side}"], names) for side in ("upstream", "downstream")]
    return [pair["task"], *cells, pair["differs_on"] or "–", gain, loss]


def _change(value: float, sigmas: float | None) -> str:
    return signed(value) + (f" ({sigmas:.1f} σ)" if sigmas is not None else "")
