"""What a study took: every attempt with its hours, what of them was lost, what was planned, where a cell's files lie.

All of it is read from the study folder. Hours are of what a partition is charged by: its accelerators, or its CPU cores
where it has none.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import polars as pl

from orchestrator.arrays import PlannedCell
from orchestrator.attempts import Attempt, Event, Taken, taken
from orchestrator.files import read_last_records, read_records
from orchestrator.observe import Observation
from orchestrator.state import LIVE, CellState, Status
from orchestrator.store import RESUME, STAGES, Manifest, Store, unit
from slurm.cluster import Profile

CORES: Final = "CPU core"
TAIL_BYTES: Final = 2048  # of a training log: its last records

ATTEMPTS_SCHEMA: Final[dict[str, Any]] = {
    "cell_id": pl.String,
    "stage": pl.String,
    "step": pl.Int64,
    "attempt": pl.Int64,
    "job": pl.String,
    "node": pl.String,
    "partition": pl.String,
    "started": pl.Datetime("ms", "UTC"),
    "waited_seconds": pl.Float64,
    "seconds": pl.Float64,
    "end_recorded": pl.Boolean,
    "outcome": pl.String,
    "cause": pl.String,
    "detail": pl.String,
    "kind": pl.String,
    "accelerator": pl.String,
    "units": pl.Int64,
    "hours": pl.Float64,
    "lost_hours": pl.Float64,
    "price": pl.Float64,
    "lost_price": pl.Float64,
    "first_step": pl.Int64,
    "last_step": pl.Int64,
    "log": pl.String,
}
"""One row an attempt, oldest first of each cell and stage.

`outcome` is done, diverged, died, or open where it runs or nobody knows yet; `step` the checkpoint of an evaluation
that judges one alone. `attempt` is 0 where a job ended before it began. `units` are accelerators of the `kind` (GPU,
TPU), or cores (CPU). What depends on a lost submission is null. `waited_seconds` is what the job waited in the queue
whose first attempt this is; `log` is seen from the study folder.
"""

PLANNED_SCHEMA: Final[dict[str, Any]] = {
    "cell_id": pl.String,
    "stage": pl.String,
    "kind": pl.String,
    "accelerator": pl.String,
    "planned_hours": pl.Float64,
}
"""What each stage was expected to take before anything was measured, without the steps that a shorter cell takes."""

FILES_SCHEMA: Final[dict[str, Any]] = {
    "cell_id": pl.String,
    "images_per_second": pl.Float64,
    "mfu": pl.Float64,
    "checkpoint": pl.String,
    "tensorboard": pl.String,
    "wandb": pl.String,
}
"""The mean speed of a cell's newest training, where its newest checkpoint and its curves lie (seen from the study
folder), and the address of its run at W&B."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """What a study took (`ATTEMPTS_SCHEMA`), what was planned (`PLANNED_SCHEMA`), what cells left (`FILES_SCHEMA`).

    `currency` is that of the prices.
    """

    attempts: pl.DataFrame
    planned: pl.DataFrame
    files: pl.DataFrame
    currency: str


def operations_of(store: Store, profile: Profile, seen: Observation) -> Operations:
    """What the cells of an observation took; reads a few small files of each cell that ran.

    Args:
        store: the study's folder.
        profile: for the kinds and prices of partitions.
        seen: the cells and their plan.
    """
    jobs = _Jobs(store, profile, [state for state in seen.states if state.train.attempts or state.evaluate.attempts])
    planned = [row for cell in seen.plan.cells for row in jobs.planned(cell)]
    rows: list[dict[str, Any]] = []
    files = []
    for state in jobs.states:
        records = _records(store, state)
        rows += jobs.attempts(state, records)
        files.append(_files(store, state, records))
    return Operations(
        attempts=pl.DataFrame(rows, schema=ATTEMPTS_SCHEMA),
        planned=pl.DataFrame(planned, schema=PLANNED_SCHEMA),
        files=pl.DataFrame(files, schema=FILES_SCHEMA),
        currency=profile.currency,
    )


@dataclass(frozen=True, slots=True)
class _Units:
    """What a job has of what its partition is charged by."""

    kind: str
    accelerator: str
    number: int


class _Jobs:
    """The submissions of a study, and what their jobs had and waited."""

    def __init__(self, store: Store, profile: Profile, states: Sequence[CellState]) -> None:
        self.store, self.profile, self.states = store, profile, states
        self._manifests = {manifest.token: manifest for manifest in store.manifests()}
        self._indices = {
            (manifest.token, text): index
            for manifest in self._manifests.values()
            for index, units in enumerate(manifest.tasks)
            for text in units
        }
        self._first = self._first_starts()

    def _first_starts(self) -> dict[tuple[str, int], float]:
        """When each array task first began, by its token and index."""
        found: dict[tuple[str, int], float] = {}
        for state in self.states:
            for attempt in (*state.train.attempts, *state.evaluate.attempts):
                key = self._task(state.cell.cell_id, attempt)
                if attempt.number and key is not None:
                    found[key] = min(found.get(key, attempt.started), attempt.started)
        return found

    def _task(self, cell_id: str, attempt: Attempt) -> tuple[str, int] | None:
        index = self._indices.get((attempt.token, unit(cell_id, attempt.step)))
        return None if index is None else (attempt.token, index)

    def attempts(self, state: CellState, records: Sequence[Event]) -> list[dict[str, Any]]:
        """A row for each attempt of a cell."""
        rows = []
        for now in (state.train, state.evaluate):
            used = taken(now.attempts, records)
            lost = _lost_shares(self.store, state, now.attempts, used)
            live = now.status in LIVE
            for attempt, took, share in zip(now.attempts, used, lost, strict=True):
                rows.append(
                    self._told(state.cell.cell_id, attempt, took)
                    | self._charged(attempt, took, share)
                    | _ended(attempt, live=live)
                )
        return rows

    def _told(self, cell_id: str, attempt: Attempt, took: Taken) -> dict[str, Any]:
        manifest = self._manifests.get(attempt.token)
        path = self.store.log_path(cell_id, attempt.stage, attempt.number)
        return {
            "cell_id": cell_id,
            "stage": attempt.stage,
            "step": attempt.step,
            "attempt": attempt.number,
            "job": attempt.job or (manifest.job_id if manifest and manifest.executor == "slurm" else None),
            "node": attempt.node or attempt.host or (attempt.death.node if attempt.death else "") or None,
            "partition": manifest.resources.get("partition") if manifest else None,
            "started": datetime.fromtimestamp(attempt.started, UTC) if attempt.number else None,
            "waited_seconds": self._waited(cell_id, attempt),
            "seconds": took.seconds,
            "end_recorded": attempt.end is not None,
            "first_step": took.first_step,
            "last_step": took.last_step,
            "log": path.relative_to(self.store.root).as_posix() if attempt.number else None,
        }

    def _waited(self, cell_id: str, attempt: Attempt) -> float | None:
        """What its job waited, if this was the first that it did; what waits for another job is in no queue."""
        manifest, key = self._manifests.get(attempt.token), self._task(cell_id, attempt)
        if manifest is None or key is None or manifest.executor != "slurm" or manifest.after is not None:
            return None
        is_first = bool(attempt.number) and self._first[key] == attempt.started
        return max(0.0, attempt.started - manifest.submitted) if is_first else None

    def _charged(self, attempt: Attempt, took: Taken, lost_share: float) -> dict[str, Any]:
        """Hours and price, and the share of both that was lost."""
        manifest = self._manifests.get(attempt.token)
        if manifest is None:
            return {}
        units = self._units(manifest.resources)
        hours, price = took.seconds / 3600 * units.number, self._price(manifest)
        return {
            "kind": units.kind,
            "accelerator": units.accelerator,
            "units": units.number,
            "hours": hours,
            "lost_hours": hours * lost_share,
            "price": None if price is None else price * hours,
            "lost_price": None if price is None else price * hours * lost_share,
        }

    def _price(self, manifest: Manifest) -> float | None:
        """Of an hour of one unit."""
        name = manifest.resources.get("partition")
        where = self.profile.partitions.get(name or next(iter(self.profile.partitions)))
        return None if where is None else where.price_per_hour

    def _units(self, asked: Mapping[str, Any]) -> _Units:
        nodes, accelerators = asked.get("num_nodes", 1), asked.get("accelerators", 0)
        if not accelerators:
            return _Units("CPU", CORES, asked.get("num_cpus", 1) * nodes)
        where = self.profile.partitions.get(asked.get("partition") or "")
        name = str(asked.get("accelerator") or (where and where.accelerator) or "accelerator")
        kind = where.accelerator if where is not None else name.partition(":")[0]
        return _Units(kind.upper(), name, accelerators * nodes)

    def planned(self, cell: PlannedCell) -> Iterable[dict[str, Any]]:
        """A row for each stage of a cell."""
        for stage in STAGES:
            cost = cell.cost_in_study(stage)
            asked = cost.resources
            units = self._units(
                {
                    "partition": asked.partition,
                    "num_nodes": asked.num_nodes,
                    "num_cpus": asked.num_cpus,
                    "accelerators": asked.accelerators,
                    "accelerator": asked.accelerator,
                }
            )
            yield {
                "cell_id": cell.cell.cell_id,
                "stage": stage,
                "kind": units.kind,
                "accelerator": units.accelerator,
                "planned_hours": cost.planned_hours * units.number,
            }


def _ended(attempt: Attempt, *, live: bool) -> dict[str, Any]:
    """How it ended, and of what it died."""
    if not attempt.ended_badly:
        return {"outcome": attempt.outcome}
    if attempt.death is not None:
        return {"outcome": "died", "cause": attempt.death.cause.value, "detail": attempt.death.detail}
    is_open = live and attempt.outcome is None
    return {"outcome": "open" if is_open else "died", "cause": None if is_open else "not known yet"}


def _lost_shares(store: Store, state: CellState, attempts: Sequence[Attempt], used: Sequence[Taken]) -> list[float]:
    """What share of each attempt at a stage was lost: of its steps, those that no checkpoint kept.

    A step is kept if no later attempt took it again, and, after the last attempt, if a checkpoint has it. An attempt
    that died before it had a step is lost whole, and so is an evaluation that died.
    """
    shares = []
    for position, (attempt, took) in enumerate(zip(attempts, used, strict=True)):
        first, last = took.first_step, took.last_step
        if first is None or last is None or last <= first:
            shares.append(float(attempt.death is not None))
            continue
        later = [other.first_step for other in used[position + 1 :] if other.first_step is not None]
        kept = min(later) if later else _kept_at_the_end(store, state, attempt, last)
        shares.append((last - min(max(kept, first), last)) / (last - first))
    return shares


def _kept_at_the_end(store: Store, state: CellState, attempt: Attempt, last: int) -> int:
    """The step that a cell could go on from after its last attempt; what runs or ended well has lost nothing."""
    if attempt.death is None:
        return last
    saved = (*state.steps, *store.finalised_steps(state.cell.cell_id, RESUME))
    return max((step for step in saved if step <= last), default=0)


def _records(store: Store, state: CellState) -> list[Event]:
    """Of a cell's training log what is needed: the end, where the ledger tells of every attempt what it took."""
    path = store.train_log(state.cell.cell_id)
    ends = [attempt.end or {} for attempt in state.train.attempts if attempt.number]
    if all("first_step" in end and "step" in end for end in ends):
        last = read_last_records(path, TAIL_BYTES)
        if any(record.get("event") == "train" for record in last):
            return last
    return read_records(path).records


def _files(store: Store, state: CellState, records: Sequence[Event]) -> dict[str, Any]:
    cell_id = state.cell.cell_id
    folder = store.cell_folder(cell_id)
    below = folder.relative_to(store.root).as_posix()
    steps = store.finalised_steps(cell_id) if state.train.status == Status.DIVERGED else state.steps
    speed = next((record for record in reversed(records) if record.get("event") == "train"), {})
    return {
        "cell_id": cell_id,
        "images_per_second": speed.get("images_per_second"),
        "mfu": speed.get("mfu"),
        "checkpoint": f"{below}/checkpoints/step_{steps[-1]:08d}" if steps else None,
        "tensorboard": f"{below}/tensorboard" if (folder / "tensorboard").is_dir() else None,
        "wandb": _address(folder / "mirror.json"),
    }


def _address(path: Path) -> str | None:
    """Where W&B shows a cell, as its last mirror noted it."""
    try:
        url = json.loads(path.read_bytes())["url"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return url if isinstance(url, str) and url.startswith(("https://", "http://")) else None
