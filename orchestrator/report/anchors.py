"""Which cells have a section of their own, and how the page names its place. Pure."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import polars as pl

from orchestrator.report.facts import Facts

MOST_CELLS = 200  # that have a section; the others are counted
UNESCAPED = "!'()*~"  # beside letters, digits and -_. as JavaScript's encodeURIComponent leaves them


def anchor_of(cell_id: str) -> str:
    """The id of a cell's section: `cell-` and its id, with what may not stand there escaped as in an address."""
    return f"cell-{quote(cell_id, safe=UNESCAPED)}"


Reasons = dict[str, dict[str, list[str]]]
"""Numbers of shots by cell and task."""


def frontier_cells(facts: Facts) -> tuple[list[str], Reasons, Reasons]:
    """The cells of which there is a section; on which tasks each is the best one, and on which a vertex of the hull.

    Those that are the best of most tasks come first, then those that are a vertex of most.
    """
    vertices: Reasons = {}
    best: Reasons = {}
    for task in facts.tasks:
        for vertex in task["hull"]:
            vertices.setdefault(vertex["cell_id"], {}).setdefault(task["task"], []).append(_shots(task))
    top = facts.points.group_by("task", "shots").agg(pl.all().sort_by("downstream", "cell_id").last())
    for row in top.sort("task", "shots").iter_rows(named=True):
        best.setdefault(row["cell_id"], {}).setdefault(row["task"], []).append(_shots(row))
    order = sorted({*vertices, *best}, key=lambda cell: (-len(best.get(cell, ())), -len(vertices.get(cell, ())), cell))
    return order, best, vertices


def told_of(facts: Facts) -> frozenset[str]:
    """The cells that have a section."""
    return frozenset(frontier_cells(facts)[0][:MOST_CELLS])


def _shots(row: Mapping[str, Any]) -> str:
    return "" if row["shots"] is None else str(row["shots"])
