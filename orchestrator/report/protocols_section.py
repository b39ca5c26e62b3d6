"""The section on protocols: whether others rank the cells as the one does that the page is about. Pure."""

import polars as pl

from orchestrator.report.facts import Facts
from orchestrator.report.markup import Column, Markup, element, join, table
from orchestrator.report.panels import shots_text
from orchestrator.report.parts import at, empty, per_shots
from orchestrator.report.words import fixed, signed

NOTE = (
    "All other sections are about one protocol ({name}). Here each other one is compared with it over the cells that "
    "have both: Spearman's rank correlation of their accuracies, and by how much the other one is higher on average. "
    "One that fits to all training images, or to VTAB-1k's, is compared with each number of shots of another. "
    "upshot reduce --json compares every two, under effects.protocols."
)


def protocols_section(facts: Facts) -> Markup:
    """The whole section."""
    if facts.effects["protocols"].is_empty():
        only = (
            f"All values are of one protocol, {facts.protocol}." if facts.protocol else "The table knows no protocols."
        )
        return empty(only if facts.tasks else "There are no results yet.")
    note = element("p", NOTE.format(name=facts.protocol))
    return join([note, per_shots(facts, _pairs)])


def _pairs(facts: Facts, shots: int | None) -> Markup:
    """The pairs at a number of shots; all where the protocol of the page has none."""
    shown = facts.effects["protocols"].filter(protocol=facts.protocol)
    if shots is not None:
        shown = shown.filter(pl.col(name).is_null() | (pl.col(name) == shots) for name in ("shots", "other_shots"))
    columns = [Column("task"), Column("protocol", "line"), Column("other", "line"), Column("cells", "number")]
    columns += [Column("rank correlation", "number"), Column("mean difference", "number")]
    rows = [
        [
            row["task"],
            _named(row["protocol"], row["shots"]),
            _named(row["other"], row["other_shots"]),
            row["n"],
            fixed(row["spearman"], 3).replace("-", "−"),
            signed(row["mean_difference"]),
        ]
        for row in shown.iter_rows(named=True)
    ]
    return table(columns, rows, f"Other protocols against {facts.protocol} on every task{at(shots)}")


def _named(protocol: str, shots: int | None) -> str:
    return ", ".join(filter(None, [protocol, shots_text(shots)]))
