"""Cells that have a trunk in common: they differ only in how long they train, until they cool down. Pure.

Such cells are packed into one job, the shortest first: each goes on from where the one before it cooled down, so that
the job takes the steps that they share once (see `models.trunk`).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise

from models.recipe import RSQRT_COOLDOWN
from orchestrator.arrays import Pack, PlannedCell
from orchestrator.grid import Cell
from orchestrator.identity import trunk_id
from orchestrator.sizing import Cost, Sizes


def with_trunks(cells: Iterable[PlannedCell], pack: Pack) -> list[PlannedCell]:
    """The cells, in their order; of those to train, each one of a chain knows its `chain` and what it has `shared`.

    Args:
        cells: what is planned.
        pack: cells in one job at most; "auto" sets no limit.
    """
    cells = list(cells)
    to_train = ((c.cell, c.train, c.evaluate) for c in cells if "train" in c.stages)
    found: dict[str, tuple[str, float]] = {}
    for chain in _chains(to_train, pack):
        found |= {cell_id: (chain[0].cell_id, share) for cell_id, share in _shares(chain).items()}
    return [_linked(cell, *found[cell.cell.cell_id]) if cell.cell.cell_id in found else cell for cell in cells]


def shares_in_common(cells: Iterable[Cell], sizes: Mapping[str, Sizes], pack: Pack) -> dict[str, float]:
    """By cell id, what part of a cell's training steps a shorter one takes, where all of these are trained together.

    Cells without such a part are left out. Args as `with_trunks` has them; the sizes are by cell id.
    """
    costs = ((cell, sizes[cell.cell_id].train, sizes[cell.cell_id].evaluate) for cell in cells)
    return {cell_id: share for chain in _chains(costs, pack) for cell_id, share in _shares(chain).items() if share}


def _chains(cells: Iterable[tuple[Cell, Cost, Cost]], pack: Pack) -> Iterator[list[Cell]]:
    """The cells that go into one job for what they have in common, the shortest first; two at least.

    Each comes with what its training and its evaluation cost.
    """
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell, train, evaluate in cells:
        if cell.recipe.schedule == "rsqrt":
            groups.setdefault(_asks_for(cell, train, evaluate), []).append(cell)
    for members in groups.values():
        members.sort(key=lambda cell: cell.recipe.epochs)
        most = len(members) if pack == "auto" else pack
        chains = (members[start : start + most] for start in range(0, len(members), most))
        yield from (chain for chain in chains if len(chain) > 1)


def _asks_for(cell: Cell, train: Cost, evaluate: Cost) -> tuple[object, ...]:
    """What cells of one job have in common: the trunk, and all that they ask for but the time.

    Whether it pays to compile depends on all of them together.
    """
    asked = (replace(cost.resources, time_min=1) for cost in (train, evaluate))
    return trunk_id(cell.recipe), train.micro_batch, train.checkpointed, *asked


def _shares(chain: list[Cell]) -> dict[str, float]:
    """Of each cell's training steps, the part that the one before it takes."""
    parts = {
        cell.cell_id: (1 - RSQRT_COOLDOWN) * before.recipe.epochs / cell.recipe.epochs
        for before, cell in pairwise(chain)
    }
    return {chain[0].cell_id: 0.0} | parts


def _linked(cell: PlannedCell, chain: str, shared: float) -> PlannedCell:
    return replace(cell, chain=chain, shared=shared)
