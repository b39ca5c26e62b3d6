"""How far W&B has what a study's cells have done, by what each cell's last mirror noted; no server is asked."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from models.errors import UserError
from orchestrator.state import ENDED_WELL, LIVE, CellState, Status
from orchestrator.store import Store
from orchestrator.study import Study
from orchestrator.tracking.account import Mode
from orchestrator.tracking.curves import is_number
from orchestrator.tracking.described import asked_mode
from orchestrator.tracking.journal import JOURNAL
from orchestrator.tracking.wandb_run import NOTE

LAG_S: Final = 300.0
"""How far W&B may be behind a cell that is running: it is told about once a minute, and what was judged at the end."""

Standing = Literal["current", "behind", "offline", "never"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """The newest error of a mirror, in one line, when that was, and how many cells it concerns."""

    error: str
    time: float
    num_cells: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirrored:
    """Of the cells that ran, how many W&B has.

    Args:
        mode: how jobs mirror; "unknown" where W&B's own settings make no sense, as `trouble` then says.
        num_ran: how many ran, but those that began just now.
        num_current: W&B has all of them.
        num_behind: W&B lacks a part.
        num_offline: an offline run waits for `upshot sync`.
        num_never: nothing was mirrored.
        trouble: what went wrong last.
    """

    mode: Mode | Literal["unknown"]
    num_ran: int
    num_current: int
    num_behind: int
    num_offline: int
    num_never: int
    trouble: Trouble | None

    @property
    def num_waiting(self) -> int:
        """How many `upshot sync` would mirror."""
        return self.num_ran - self.num_current

    def to_json(self) -> dict[str, Any]:
        """As `upshot status --json` prints it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Note:
    """What a cell's last mirror left, and when by the clock of the file system; None where there is no note."""

    told: dict[str, Any]
    written: float


def mirrored(store: Store, study: Study, states: Sequence[CellState], now: float) -> Mirrored:
    """How far W&B has the cells of `states`; reads one small file a cell, and looks at a few.

    Args:
        store: the study's folder.
        study: the study.
        states: the cells.
        now: seconds since 1970.
    """
    counts: Counter[Standing] = Counter()
    errors: list[tuple[float, str]] = []
    for state in states:
        if not state.train.num_attempts:
            continue
        note = _read_note(store, state.cell.cell_id)
        if note is None and state.status in LIVE and now - _began(state) < LAG_S:
            continue
        counts[_standing(store, state, note)] += 1
        if note is not None and not note.told["ok"]:
            # The same trouble of two cells may name each.
            error = str(note.told.get("error")).replace(state.cell.cell_id, "CELL")
            errors.append((float(note.told["time"]), error))
    try:
        mode: Mode | Literal["unknown"] = asked_mode(study)
        trouble = _newest(errors)
    except UserError as error:
        mode, trouble = "unknown", Trouble(error=str(error), time=now, num_cells=counts.total())
    return Mirrored(
        mode=mode,
        num_ran=counts.total(),
        num_current=counts["current"],
        num_behind=counts["behind"],
        num_offline=counts["offline"],
        num_never=counts["never"],
        trouble=trouble,
    )


def _newest(errors: Sequence[tuple[float, str]]) -> Trouble | None:
    if not errors:
        return None
    when, newest = max(errors)
    return Trouble(error=newest, time=when, num_cells=sum(error == newest for _, error in errors))


def _began(state: CellState) -> float:
    last = state.train.last
    return last.started if last is not None else 0.0


def _read_note(store: Store, cell_id: str) -> _Note | None:
    """The note; a damaged one is as good as none."""
    try:
        descriptor = os.open(f"{store.cell_folder(cell_id)}/{NOTE}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        try:
            told = json.loads(file.read())
        except (OSError, ValueError):
            return None
        whole = isinstance(told, dict) and isinstance(told.get("ok"), bool) and is_number(told.get("time"))
        return _Note(told, os.fstat(descriptor).st_mtime) if whole and "mode" in told else None


def _standing(store: Store, state: CellState, note: _Note | None) -> Standing:
    if note is None:
        return "never"
    if note.told["mode"] != "online":
        return "offline" if note.told["ok"] else "never"
    is_live, has_ended = state.status in LIVE, state.status in (*ENDED_WELL, Status.FAILED)
    # The end of a cell is not told where its job was killed, or an evaluation failed later.
    end_was_told = not has_ended or note.told.get("outcome", state.status) == state.status
    if not note.told["ok"] or not end_was_told:
        return "behind"
    return "current" if _changed(store, state) <= note.written + (LAG_S if is_live else 0.0) else "behind"


def _changed(store: Store, state: CellState) -> float:
    """When the newest of what a mirror shows came, by the clock of the file system."""
    folder = store.cell_folder(state.cell.cell_id)
    judged = set(state.steps) - {file.step for file in state.missing}
    paths = (f"{folder}/train.ndjson", f"{folder}/{JOURNAL}", *(f"{folder}/evals/step_{step:08d}" for step in judged))
    return max(map(_modified, paths))


def _modified(path: str) -> float:
    try:
        return os.stat(path).st_mtime  # noqa: PTH116 - thousands of them
    except OSError:
        return 0.0
