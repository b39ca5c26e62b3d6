"""The sections on where cells stand: missing and failed ones, all of them. Pure."""

from collections.abc import Collection

import polars as pl

from orchestrator.report.anchors import told_of
from orchestrator.report.facts import Facts
from orchestrator.report.markup import Column, Markup, element, join, table
from orchestrator.report.parts import empty, folded, folded_on_paper, linked
from orchestrator.report.words import count, fixed, si

LISTED_CELLS = 50  # of each cause; tables/cells has all
ENDED_WELL = ("done", "diverged")
FAILED = ("failed", "blocked")


def missing_section(facts: Facts) -> Markup:
    """Failed cells by cause, diverged and unfinished ones, rows without a value by reason."""
    cells, told = facts.cells, told_of(facts)
    parts = []
    if not facts.num_states:
        parts.append(element("p", "These results were imported: what ran and what failed is not known here."))
    failed = cells.filter(pl.col("status").is_in(FAILED))
    if failed.height:
        parts += [element("h3", "Failed"), _failures(failed, told)]
    diverged = cells.filter(pl.col("status") == "diverged")
    if diverged.height:
        lead = "Their loss became infinite or no number: that is a result, and their rows stay, without values."
        parts += [element("h3", "Diverged"), element("p", lead), _cells(diverged, count(diverged.height, "cell"), told)]
    lacking = pl.col("status").is_in(ENDED_WELL) & (pl.col("missing_evaluations") > 0)
    unfinished = cells.filter(~pl.col("status").is_in([*ENDED_WELL, *FAILED]) | lacking)
    if unfinished.height:
        parts += [element("h3", "Not finished"), _cells(unfinished, count(unfinished.height, "cell"), told)]
    if not parts:
        parts.append(element("p", "Nothing: every cell ended and every evaluation is there."))
    return join([*parts, element("h3", "Rows without a value"), _dropped(facts)])


def cells_section(facts: Facts) -> Markup:
    """Every cell, to be unfolded."""
    if facts.cells.is_empty():
        return empty("The study has no cells.")
    told = told_of(facts)
    unstated = "not in the study" if facts.num_states else "imported"
    columns = [
        Column("cell"),
        Column("axes", "line"),
        Column("parameters", "number"),
        Column("upstream accuracy", "number"),
    ]
    rows = [
        [
            linked(row["cell_id"], told),
            row["text"],
            si(row["params"]),
            fixed(row["upstream"], 4),
            row["status"] or unstated,
        ]
        for row in facts.cells.iter_rows(named=True)
    ]
    inner = table([*columns, Column("status")], rows, "At the last checkpoint")
    return folded_on_paper(count(len(rows), "cell"), inner)


def _failures(failed: pl.DataFrame, told: Collection[str]) -> Markup:
    known = failed.with_columns(pl.col("cause").fill_null("no cause recorded"))
    causes = known.partition_by("cause", as_dict=True, maintain_order=True)
    return join(
        element("div", element("pre", cause, class_="cause"), _cells(cells, count(cells.height, "cell"), told))
        for (cause,), cells in causes.items()
    )


def _cells(cells: pl.DataFrame, caption: str, told: Collection[str]) -> Markup:
    shown = cells.head(LISTED_CELLS)
    names = ("text", "status", "attempts", "checkpoints", "missing_evaluations")
    rows = [[linked(row["cell_id"], told), *(row[name] for name in names)] for row in shown.iter_rows(named=True)]
    columns = [Column("cell"), Column("axes", "line"), Column("status")]
    columns += [Column(name, "number") for name in ("attempts", "checkpoints", "evaluations missing")]
    more = cells.height - shown.height
    note = f"{count(more, 'further cell')} not listed here; tables/cells.csv has all."
    return join([table(columns, rows, caption), element("p", note, class_="note") if more else ""])


def _dropped(facts: Facts) -> Markup:
    """The rows that the reducer could not use, by reason, and by task."""
    if not facts.dropped:
        return element("p", "None." if facts.tasks else "There are no rows yet.")
    lead = "Rows that the fits had to leave out, by reason:"
    reasons = [element("li", f"{reason}: {count(number, 'row')}") for reason, number in facts.dropped.items()]
    rows = [
        [task["task"], "" if task["shots"] is None else task["shots"], reason, number]
        for task in facts.tasks
        for reason, number in task["dropped"].items()
    ]
    columns = [Column("task"), Column("shots", "number"), Column("reason"), Column("rows", "number")]
    by_task = folded("By task", table(columns, rows, "Rows left out of the fits"))
    return join([element("p", lead), element("ul", *reasons), by_task])
