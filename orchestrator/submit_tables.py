"""What submit and retry print: what sbatch would be told, and what became of every cell."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.arrays import Array
from orchestrator.observe import Observation
from orchestrator.plan import Plan
from orchestrator.session import Session
from slurm.options import sbatch_options


def print_scripts(plan: Plan, session: Session) -> None:
    """What sbatch would be told of each array, for `submit --dry-run`."""
    for array in _scripts(plan, session):
        words = [f"--{name}" if value is True else shlex.quote(f"--{name}={value}") for name, value in array["sbatch"]]
        print(f"{array['stage']}, {array['pieces']} pieces of work: {' '.join(['sbatch', *words])}")


def dry_run_json(plan: Plan, session: Session) -> dict[str, Any]:
    """What `submit --dry-run --json` prints: the cells that would go, and what sbatch would be told."""
    cells = [
        {"cell_id": planned.cell.cell_id, "outcome": "planned", "reason": planned.reason}
        for planned in plan.cells
        if planned.action in ("submit", "retry")
    ]
    arrays = [{**array, "sbatch": dict(array["sbatch"])} for array in _scripts(plan, session)]
    return {"cells": cells, "arrays": arrays, "halted": plan.halted}


def _scripts(plan: Plan, session: Session) -> Iterator[dict[str, Any]]:
    """The stage of each array, its pieces of work, and sbatch's options in order."""
    for array in plan.arrays:
        now: Array | None = array
        while now is not None:
            told = list(sbatch_options(now.cost.resources, session.profile).items())
            if len(now.tasks) > 1:
                told.insert(0, ("array", f"0-{len(now.tasks) - 1}%{session.profile.throttle}"))
            yield {"stage": now.stage, "pieces": sum(map(len, now.tasks)), "sbatch": told}
            now = now.then


def submitted_json(seen: Observation) -> dict[str, Any]:
    """What `submit --json` and `retry --json` print: every cell that was asked for, and what became of it."""
    taken = {text.partition("@")[0] for array in seen.plan.arrays for units in array.tasks for text in units}
    cells = [
        {"cell_id": cell_id, "outcome": "submitted" if cell_id in taken else "waiting", "reason": planned.reason}
        for planned in seen.plan.cells
        if (cell_id := planned.cell.cell_id) in taken or planned.action in ("submit", "retry")
    ]
    return {"cells": cells, "halted": seen.plan.halted}


def submitted_text(cells: Sequence[Mapping[str, str]]) -> str:
    """The same in a sentence."""
    waiting = sum(cell["outcome"] == "waiting" for cell in cells)
    more = f"; {waiting:,} wait for room in the queue: `upshot watch` feeds them" if waiting else ""
    return f"submitted {len(cells) - waiting:,} cells{more}" if cells else "nothing to submit"
