"""Cells that have a trunk in common: they differ only in how long they train, until they cool down. Pure.

Such cells are packed into one job, the shortest first: each goes on from where the one before it cooled down, so that
the job takes the steps that they share once (see `models.trunk`).
"""

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

from models.recipe import RSQRT_COOLDOWN
from orchestrator.arrays import PlannedCell
from orchestrator.identity import trunk_id


def with_trunks(cells: Iterable[PlannedCell], most: int | None) -> list[PlannedCell]:
    """The cells, in their order; those of a chain know their `chain` and what part of their steps others take.

    Args:
        cells: what is planned.
        most: cells in one job at most; None sets no limit.
    """
    cells = list(cells)
    groups: dict[tuple[object, ...], list[PlannedCell]] = {}
    for cell in cells:
        if cell.cell.recipe.schedule == "rsqrt" and "train" in cell.stages:
            groups.setdefault(_asks_for(cell), []).append(cell)
    linked: dict[str, PlannedCell] = {}
    for members in groups.values():
        members.sort(key=lambda c: c.cell.recipe.epochs)
        for start in range(0, len(members), most or len(members)):
            linked |= _linked(members[start : start + (most or len(members))])
    return [linked.get(cell.cell.cell_id, cell) for cell in cells]


def _asks_for(cell: PlannedCell) -> tuple[object, ...]:
    """What cells of one job have in common: the trunk, and all that they ask for but the time.

    Whether it pays to compile depends on all of them together.
    """
    train, evaluate = (replace(cost.resources, time_min=1) for cost in (cell.train, cell.evaluate))
    return trunk_id(cell.cell.recipe), train, cell.train.micro_batch, cell.train.checkpointed, evaluate


def _linked(members: list[PlannedCell]) -> dict[str, PlannedCell]:
    if len(members) == 1:
        return {}
    found = {members[0].cell.cell_id: replace(members[0], chain=members[0].cell.cell_id)}
    for before, cell in pairwise(members):
        shared = (1 - RSQRT_COOLDOWN) * before.cell.recipe.epochs / cell.cell.recipe.epochs
        found[cell.cell.cell_id] = replace(cell, chain=members[0].cell.cell_id, shared=shared)
    return found
