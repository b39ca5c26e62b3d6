"""The strongest conflicts, folded task by task. Pure."""

from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from orchestrator.report.facts import Facts
from orchestrator.report.markup import Column, Markup, element, join, table
from orchestrator.report.panels import at_shots
from orchestrator.report.parts import at, cell_names, folded_on_paper
from orchestrator.report.words import count, signed

Name = Callable[[str], Markup]

LISTED_PAIRS = 5  # of each task; tables/conflicts has more


def strongest(facts: Facts, shots: int | None) -> Markup:
    """A folded part for each task: its significant conflicts, and where all are asked for the others too."""
    name = cell_names(facts)
    frame = at_shots(facts.strongest, shots)
    significant = {task["task"]: task["significant_conflicts"] for task in facts.tasks if task["shots"] == shots}
    tasks = frame.partition_by("task", as_dict=True, maintain_order=True)
    parts = [_task(str(task), rows, significant[task], name, shots) for (task,), rows in tasks.items()]
    note = f"Up to {LISTED_PAIRS} of each task are listed; tables/conflicts.csv has more."
    return join([*parts, element("p", note, class_="note")])


def _task(task: str, rows: pl.DataFrame, num_significant: int | None, name: Name, shots: int | None) -> Markup:
    sure = pl.col("significant").fill_null(False)
    first = rows.filter(sure).head(LISTED_PAIRS)
    others = rows.filter(~sure).head(LISTED_PAIRS - first.height)
    total = count(rows["conflicts"][0], "conflict")
    told = total if num_significant is None else f"{num_significant:,} significant of {total}"
    strong = rows.row(0, named=True)
    gain, loss = signed(strong["upstream_gain"]), signed(-strong["downstream_loss"])
    summary = join([element("b", task), f": {told}; the strongest {gain} upstream, {loss} downstream"])
    content: list[object] = []
    if first.height:
        content.append(_pairs(first, name, f"The strongest significant conflicts on {task}{at(shots)}"))
    elif num_significant is not None:
        content.append(element("p", "No conflict here is significant.", class_="note", data_conflicts="significant"))
    if others.height:
        hidden = {} if num_significant is None else {"data_conflicts": "all", "hidden": "hidden"}
        rest = f"The strongest {'others' if first.height else 'conflicts'} on {task}{at(shots)}"
        content.append(element("div", _pairs(others, name, rest), **hidden))
    more = rows["conflicts"][0] - first.height - others.height
    note = element("p", f"{count(more, 'further conflict')} not listed here.", class_="note") if more else ""
    return folded_on_paper(summary, *content, note)


def _pairs(pairs: pl.DataFrame, name: Name, caption: str) -> Markup:
    columns = [Column("better upstream"), Column("better downstream"), Column("differ in")]
    columns += [Column("upstream gain", "number"), Column("downstream loss", "number")]
    rows = [_pair(pair, name) for pair in pairs.iter_rows(named=True)]
    return table(columns, rows, f"{caption}, σ in standard errors")


def _pair(pair: Mapping[str, Any], name: Name) -> list[object]:
    gain = _change(pair["upstream_gain"], pair["upstream_z"])
    loss = _change(-pair["downstream_loss"], pair["downstream_z"])
    cells = [name(pair[f"cell_id_{side}"]) for side in ("upstream", "downstream")]
    return [*cells, pair["differs_on"] or "–", gain, loss]


def _change(value: float, sigmas: float | None) -> str:
    return signed(value) + (f" ({sigmas:.1f} σ)" if sigmas is not None else "")
