"""Where every cell stands: a pure reading of the study folder's files and of what the scheduler says is live."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal

from orchestrator.grid import Cell
from orchestrator.store import STAGES, Manifest, Stage, Store
from orchestrator.study import Study

Live = Mapping[tuple[str, int], Literal["pending", "running", "unknown"]]
"""By token and array index: what has not ended, as far as anyone knows. What is missing has ended."""


class Status(StrEnum):
    """Where one stage of a cell stands. Diverged is a result: training ended with a loss that is no number."""

    NEW = "new"
    PENDING = "pending"
    RUNNING = "running"
    UNKNOWN = "unknown"
    DONE = "done"
    DIVERGED = "diverged"
    FAILED = "failed"
    BLOCKED = "blocked"


ENDED_WELL = (Status.DONE, Status.DIVERGED)
LIVE = (Status.PENDING, Status.RUNNING, Status.UNKNOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageState:
    """One stage of one cell, with the newest submission that carries it and the last thing it recorded."""

    status: Status
    cause: str | None = None
    num_attempts: int = 0
    seconds: float = 0.0
    token: str | None = None
    last: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CellState:
    """Both stages of a cell. `missing` lists the (step, task) evaluations that are wanted and not there."""

    cell: Cell
    train: StageState
    evaluate: StageState
    steps: tuple[int, ...]
    missing: tuple[tuple[int, str], ...]

    @property
    def status(self) -> Status:
        """The cell as a whole: failed if a stage failed, done once every wanted evaluation is there."""
        if self.train.status not in ENDED_WELL:
            return self.train.status
        if self.evaluate.status == Status.DONE:
            return self.train.status
        # Between its two stages a cell counts as running, or the bar would jump back.
        return Status.RUNNING if self.evaluate.status == Status.PENDING else self.evaluate.status

    @property
    def cause(self) -> str | None:
        """Why it failed, in one line."""
        return self.train.cause or self.evaluate.cause

    def to_json(self) -> dict[str, Any]:
        """The cell as `upshot status --json` prints it."""
        return {
            "cell_id": self.cell.cell_id,
            **self.cell.recipe.model_dump(),
            "status": self.status,
            "cause": self.cause,
            "train": self.train.status,
            "evaluate": self.evaluate.status,
            "attempts": self.train.num_attempts + self.evaluate.num_attempts,
            "seconds": self.train.seconds + self.evaluate.seconds,
            "checkpoints": list(self.steps),
            "missing_evaluations": len(self.missing),
        }


def read_states(store: Store, study: Study, cells: list[Cell], live: Live) -> list[CellState]:
    """The state of every cell, in the order given."""
    newest = _newest_tasks(store.manifests())
    return [_cell_state(store, study, cell, newest, live) for cell in cells]


def wanted_steps(study: Study, steps: list[int]) -> list[int]:
    """Of the finalised checkpoints, those that the study evaluates."""
    return steps if study.downstream.checkpoints == "all" else steps[-1:]


def missing_evaluations(store: Store, study: Study, cell_id: str, steps: list[int]) -> list[tuple[int, str]]:
    """The (step, task) pairs that are wanted and have no result file; `steps` may end with that of divergence."""
    files = {task: f"{study.protocol.eval_id(task)}.parquet" for task in study.downstream.tasks}
    missing = []
    for step in wanted_steps(study, steps):
        folder = store.evals(cell_id, step)
        present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        missing += [(step, task) for task, file in files.items() if file not in present]
    return missing


def _newest_tasks(manifests: list[Manifest]) -> dict[tuple[Stage, str], tuple[Manifest, int]]:
    newest: dict[tuple[Stage, str], tuple[Manifest, int]] = {}
    for manifest in manifests:
        for index, cell_ids in enumerate(manifest.tasks):
            newest |= {(manifest.stage, cell_id): (manifest, index) for cell_id in cell_ids}
    return newest


def _cell_state(
    store: Store, study: Study, cell: Cell, newest: dict[tuple[Stage, str], tuple[Manifest, int]], live: Live
) -> CellState:
    if not any((stage, cell.cell_id) in newest for stage in STAGES):
        new = StageState(status=Status.NEW)
        return CellState(cell=cell, train=new, evaluate=new, steps=(), missing=())
    ledger = store.attempts(cell.cell_id)
    states = {stage: _stage_state(stage, ledger, newest.get((stage, cell.cell_id)), live) for stage in STAGES}
    train, evaluate = states["train"], states["evaluate"]
    if train.status not in ENDED_WELL:
        blocked = train.status == Status.FAILED and evaluate.status != Status.NEW
        evaluate = StageState(status=Status.BLOCKED if blocked else evaluate.status, token=evaluate.token)
        return CellState(cell=cell, train=train, evaluate=evaluate, steps=(), missing=())
    steps = store.finalised_steps(cell.cell_id)
    if not steps and train.status == Status.DONE:
        lost = replace(train, status=Status.FAILED, cause="its checkpoints are gone")
        return CellState(cell=cell, train=lost, evaluate=StageState(status=Status.BLOCKED), steps=(), missing=())
    if train.status == Status.DIVERGED:
        steps = [*steps, int((train.last or {})["step"])]
    missing = missing_evaluations(store, study, cell.cell_id, steps)
    evaluate = _with_files(evaluate, bool(missing))
    return CellState(cell=cell, train=train, evaluate=evaluate, steps=tuple(steps), missing=tuple(missing))


def _with_files(state: StageState, missing: bool) -> StageState:
    """Result files decide: nothing missing is done, something missing after a good end is new."""
    if not missing and state.status not in LIVE:
        status = Status.DONE
    elif missing and state.status == Status.DONE:
        status = Status.NEW
    else:
        return state
    return StageState(status=status, num_attempts=state.num_attempts, seconds=state.seconds, last=state.last)


def _stage_state(
    stage: Stage, ledger: list[dict[str, Any]], newest: tuple[Manifest, int] | None, live: Live
) -> StageState:
    events = [event for event in ledger if event.get("stage") == stage]
    starts = sum(event["event"] == "start" for event in events)
    seconds = sum(event.get("seconds", 0.0) for event in events)
    if newest is None:
        return StageState(status=Status.NEW, num_attempts=starts, seconds=seconds)
    manifest, index = newest
    mine = [event for event in events if event.get("token") == manifest.token]
    last = mine[-1] if mine else None
    status, cause = _judge(last, manifest, live.get((manifest.token, index)))
    return StageState(
        status=status,
        cause=cause,
        num_attempts=starts,
        seconds=seconds,
        token=manifest.token,
        last=last or (events[-1] if events else None),
    )


def _judge(last: dict[str, Any] | None, manifest: Manifest, live: str | None) -> tuple[Status, str | None]:
    ended = last["outcome"] if last is not None and last["event"] == "end" else None
    if last is not None and ended == "failed":
        return Status.FAILED, f"{last['error']['type']}: {_first_line(last['error']['message'])}"
    if ended in ("done", "diverged"):
        return Status(ended), None
    if live is not None:  # an interrupted attempt goes on once its job is requeued
        return (Status.RUNNING if last is not None and live == "pending" else Status(live)), None
    if last is not None and ended == "interrupted":
        return Status.FAILED, f"interrupted: {_first_line(last['error']['message']) or last['error']['type']}"
    if last is not None:
        return Status.FAILED, f"killed: the attempt on {last.get('host')} ended without a record"
    if manifest.job_id is None:
        return Status.NEW, None  # the scheduler never took it
    return Status.FAILED, "its job ended before the cell began"


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0][:200] if lines else ""
