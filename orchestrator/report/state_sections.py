"""The sections on what ran: missing and failed cells, operations, all cells. Pure."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from orchestrator.report.facts import MODEL, Facts
from orchestrator.report.markup import Column, Markup, bar, element, join, table
from orchestrator.report.parts import code, empty
from orchestrator.report.words import count, duration, fixed, si

LISTED_CELLS = 50  # of each cause; tables/cells has all
ENDED_WELL = ("done", "diverged")
FAILED = ("failed", "blocked")


def missing_section(facts: Facts) -> Markup:
    """Failed cells by cause, diverged and unfinished ones, rows without a value by reason."""
    cells = facts.cells
    parts = []
    if not facts.num_states:
        parts.append(element("p", "These results were imported: what ran and what failed is not known here."))
    failed = cells.filter(pl.col("status").is_in(FAILED))
    if failed.height:
        parts += [element("h3", "Failed"), _failures(failed)]
    diverged = cells.filter(pl.col("status") == "diverged")
    if diverged.height:
        lead = "Their loss became infinite or no number: that is a result, and their rows stay, without values."
        parts += [element("h3", "Diverged"), element("p", lead), _cells(diverged, count(diverged.height, "cell"))]
    lacking = pl.col("status").is_in(ENDED_WELL) & (pl.col("missing_evaluations") > 0)
    unfinished = cells.filter(~pl.col("status").is_in([*ENDED_WELL, *FAILED]) | lacking)
    if unfinished.height:
        parts += [element("h3", "Not finished"), _cells(unfinished, count(unfinished.height, "cell"))]
    if not parts:
        parts.append(element("p", "Nothing: every cell ended and every evaluation is there."))
    return join([*parts, element("h3", "Rows without a value"), _dropped(facts)])


def operations_section(facts: Facts, plan: Mapping[str, Any]) -> Markup:
    """Job time and attempts by model, and what was planned."""
    if not facts.num_states:
        return empty("Nothing is known about the jobs of imported results.")
    keys = [name for name in MODEL if name in facts.cells.columns]
    sums = facts.cells.group_by(keys or [pl.lit("all").alias("family")], maintain_order=True).agg(
        cells=pl.len(),
        params=pl.col("params").max(),
        flops=pl.col("flops").sum(),
        attempts=pl.col("attempts").sum(),
        seconds=pl.col("seconds").sum(),
    )
    most = max(*sums["seconds"].to_list(), 1e-9)
    rows = [
        [
            " ".join(str(row[key]) for key in keys) or "all",
            row["cells"],
            si(row["params"]),
            si(row["flops"] or None),
            row["attempts"],
            bar(row["seconds"] / most, duration(row["seconds"])),
            duration(row["seconds"] / row["cells"]),
        ]
        for row in sums.iter_rows(named=True)
    ]
    headings = ("cells", "parameters", "training FLOPs", "attempts", "job time", "a cell")
    columns = [Column("model"), *(Column(heading, "number") for heading in headings)]
    return join([element("p", _hours(facts, plan)), table(columns, rows, "Jobs by model")])


def cells_section(facts: Facts) -> Markup:
    """Every cell, to be unfolded."""
    if facts.cells.is_empty():
        return empty("The study has no cells.")
    unstated = "not in the study" if facts.num_states else "imported"
    columns = [
        Column("cell"),
        Column("axes", "line"),
        Column("parameters", "number"),
        Column("upstream accuracy", "number"),
    ]
    rows = [
        [code(row["cell_id"]), row["text"], si(row["params"]), fixed(row["upstream"], 4), row["status"] or unstated]
        for row in facts.cells.iter_rows(named=True)
    ]
    inner = table([*columns, Column("status")], rows, "At the last checkpoint")
    return element("details", element("summary", count(len(rows), "cell")), inner)


def _failures(failed: pl.DataFrame) -> Markup:
    known = failed.with_columns(pl.col("cause").fill_null("no cause recorded"))
    causes = known.partition_by("cause", as_dict=True, maintain_order=True)
    return join(
        element("div", element("pre", cause, class_="cause"), _cells(cells, count(cells.height, "cell")))
        for (cause,), cells in causes.items()
    )


def _cells(cells: pl.DataFrame, caption: str) -> Markup:
    shown = cells.head(LISTED_CELLS)
    names = ("text", "status", "attempts", "checkpoints", "missing_evaluations")
    rows = [[code(row["cell_id"]), *(row[name] for name in names)] for row in shown.iter_rows(named=True)]
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
    by_task = element("details", element("summary", "By task"), table(columns, rows, "Rows left out of the fits"))
    return join([element("p", lead), element("ul", *reasons), by_task])


def _hours(facts: Facts, plan: Mapping[str, Any]) -> str:
    seconds, attempts = float(facts.cells["seconds"].sum()), int(facts.cells["attempts"].sum())
    used = f"{seconds / 3600:.2f} job-hours used in {count(attempts, 'attempt')}."
    planned = [f"{plan[key]:.2f} {name}" for key, name in PLANNED.items() if plan.get(key)]
    if plan.get("sbatch_calls"):
        planned.append(count(plan["sbatch_calls"], "sbatch call"))
    return f"{used} Planned: {', '.join(planned)}." if planned else used


PLANNED = {"gpu_hours": "GPU-hours", "cpu_hours": "CPU-hours"}
