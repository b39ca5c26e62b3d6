"""Where every cell stands: a pure reading of the study folder's files and of what the scheduler says of its jobs."""

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import takewhile
from typing import Any

from orchestrator.attempts import Attempt, read_attempts, work_seconds
from orchestrator.grid import Cell
from orchestrator.store import STAGES, Stage, Store
from orchestrator.study import Study
from orchestrator.submissions import GONE, Submissions, Submitted, Task, TaskKey, Tasks
from orchestrator.wanted import MissingFile, missing_evaluations
from slurm.failures import Cause, Death
from slurm.jobs import Job


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
    """One stage of one cell.

    `seconds` are those of all attempts, `work_seconds` those that the work itself takes (`attempts.work_seconds`).
    `attempts` are all that were made, `deaths` all that it ever died of, oldest first, `recent` those since somebody
    last asked for a retry. `covered` are the checkpoints that live evaluations judge, each alone; None among them
    stands for the whole cell.
    """

    status: Status
    cause: Cause | None = None
    detail: str = ""
    num_attempts: int = 0
    seconds: float = 0.0
    work_seconds: float = 0.0
    token: str | None = None
    last: Attempt | None = None
    attempts: tuple[Attempt, ...] = ()
    deaths: tuple[Death, ...] = ()
    recent: tuple[Death, ...] = ()
    covered: frozenset[int | None] = frozenset()
    job: Job | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CellState:
    """Both stages of a cell. `missing` lists the evaluations that are wanted and not there."""

    cell: Cell
    train: StageState
    evaluate: StageState
    steps: tuple[int, ...] = ()
    missing: tuple[MissingFile, ...] = ()

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
    def stage(self) -> StageState:
        """The stage that the status is about."""
        return self.evaluate if self.train.status in ENDED_WELL else self.train

    @property
    def cause(self) -> Cause | None:
        """What it failed of, if it failed."""
        return self.train.cause or self.evaluate.cause

    @property
    def why(self) -> str | None:
        """The cause and what tells of it, in one line."""
        failed = self.train if self.train.cause else self.evaluate
        return f"{failed.cause}: {failed.detail}" if failed.cause else None

    def to_json(self) -> dict[str, Any]:
        """The cell as `upshot status --json` prints it."""
        return {
            "cell_id": self.cell.cell_id,
            **self.cell.recipe.model_dump(),
            "status": self.status,
            "cause": self.why,
            "cause_name": self.cause,
            "train": self.train.status,
            "evaluate": self.evaluate.status,
            "attempts": self.train.num_attempts + self.evaluate.num_attempts,
            "seconds": self.train.seconds + self.evaluate.seconds,
            "checkpoints": list(self.steps),
            "missing_evaluations": len(self.missing),
        }


# --- attempts without a cause ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CellFiles:
    """What a cell's folder holds.

    Its attempts, each with its death where it has one, its finalised checkpoints, and the evaluations that are wanted
    and not there.
    """

    attempts: list[Attempt]
    steps: tuple[int, ...] = ()
    missing: tuple[MissingFile, ...] = ()


CorpseKey = tuple[str, Stage, str, int, int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpse:
    """An attempt that did not end well and whose cause is not on record yet.

    `started_again` says that its job goes on with another attempt.
    """

    cell_id: str
    attempt: Attempt
    submitted: Submitted
    task: Task
    started_again: bool = False

    @property
    def key(self) -> CorpseKey:
        """Tells it from every other."""
        a = self.attempt
        return self.cell_id, a.stage, a.token, a.number, a.step


def find_corpses(
    cell_id: str,
    files: CellFiles,
    submissions: Submissions,
    tasks: Tasks,
    innocent: set[TaskKey],
    asked_at: float = math.inf,
) -> list[Corpse]:
    """Those of one cell.

    `asked_at` is when the scheduler gave its answer: an attempt that began about then or later is not in it.
    `innocent` are the array tasks in which what never began is not to blame: other work of theirs began, or the job
    that they waited for did not end well.
    """
    found = []
    for stage in STAGES:
        mine = [attempt for attempt in files.attempts if attempt.stage == stage]
        by_unit = {(s.manifest.token, s.step): s for s in submissions.get((stage, cell_id), [])}
        for position, attempt in enumerate(mine):
            submitted = by_unit.get((attempt.token, attempt.step))
            if submitted is None or attempt.death is not None or not attempt.ended_badly:
                continue
            later = any((o.token, o.step) == (attempt.token, attempt.step) for o in mine[position + 1 :])
            just_started = attempt.started > asked_at - JUST_STARTED_S
            corpse = _corpse(cell_id, attempt, submitted, tasks, later=later, just_started=just_started)
            found += [corpse] if corpse is not None else []
        if stage == "evaluate" or not files.steps or all(attempt.ended_badly for attempt in mine):
            newest = {s.step: s for s in submissions.get((stage, cell_id), [])}
            found += [c for s in newest.values() if (c := _unborn(cell_id, stage, files.attempts, s, tasks, innocent))]
    return found


JUST_STARTED_S = 30.0  # what the clocks of nodes and login node may differ by


def _corpse(
    cell_id: str, attempt: Attempt, submitted: Submitted, tasks: Tasks, *, later: bool, just_started: bool
) -> Corpse | None:
    task = tasks.get(submitted.key, GONE)
    # A task that was pending when the scheduler was asked may have started since: that is no requeue.
    requeued = later or (attempt.outcome != "failed" and task.state == "pending" and not just_started)
    if task.is_live and not requeued and attempt.outcome != "failed":
        return None  # it runs, is on its way out, or nobody knows
    return Corpse(cell_id=cell_id, attempt=attempt, submitted=submitted, task=task, started_again=requeued)


def _unborn(
    cell_id: str, stage: Stage, attempts: list[Attempt], submitted: Submitted, tasks: Tasks, innocent: set[TaskKey]
) -> Corpse | None:
    """A piece of work whose job ended before it recorded anything of it.

    An evaluation whose training did not end well never had its turn.
    """
    token, step = submitted.manifest.token, submitted.step
    if submitted.manifest.job_id is None or (submitted.key in innocent and not submitted.manifest.cancelled):
        return None
    task = tasks.get(submitted.key, GONE)
    if task.is_live or any((a.stage, a.token, a.step) == (stage, token, step) for a in attempts):
        return None
    after = submitted.manifest.after
    if after is not None and not any(a.token == after and not a.ended_badly for a in attempts):
        return None
    attempt = Attempt(stage=stage, number=0, token=token, step=step)
    return Corpse(cell_id=cell_id, attempt=attempt, submitted=submitted, task=task)


# --- judgement -----------------------------------------------------------------------------------------------------


def read_files(store: Store, study: Study, cell_id: str, attempts: list[Attempt] | None = None) -> CellFiles:
    """What one cell's folder holds now; `attempts` are those of its ledger where that is known not to have changed."""
    if attempts is None:
        attempts = read_attempts(store.attempts(cell_id))
    steps = store.finalised_steps(cell_id)
    trained = next((a for a in reversed(attempts) if a.stage == "train" and a.outcome is not None), None)
    if trained is not None and trained.outcome == "diverged" and trained.end is not None:
        steps = sorted({*steps, int(trained.end["step"])})
    return CellFiles(
        attempts=attempts, steps=tuple(steps), missing=tuple(missing_evaluations(store, study, cell_id, steps))
    )


def judge(cell: Cell, files: CellFiles, submissions: Submissions, tasks: Tasks) -> CellState:
    """Where one cell stands."""
    by_stage = {stage: submissions.get((stage, cell.cell_id), []) for stage in STAGES}
    mine = {stage: [a for a in files.attempts if a.stage == stage] for stage in STAGES}
    train = _judge_training(mine["train"], by_stage["train"], tasks, has_checkpoints=bool(files.steps))
    if train.status == Status.DONE and not files.steps:
        train = _lost(train, mine["train"][-1], "its checkpoints are gone")
    evaluate = _judge_evaluation(mine["evaluate"], by_stage["evaluate"], tasks, train, files.missing)
    return CellState(cell=cell, train=train, evaluate=evaluate, steps=files.steps, missing=files.missing)


def _told(
    attempts: list[Attempt],
    submitted: list[Submitted],
    job: Job | None = None,
    covered: frozenset[int | None] = frozenset(),
) -> StageState:
    """What the ledger tells of a stage whatever its status: attempts, seconds, deaths."""
    token = submitted[-1].manifest.token if submitted else None
    if not attempts:  # as for thousands of cells that wait in the queue
        return StageState(status=Status.NEW, token=token, covered=covered, job=job)
    counted = {s.manifest.token for s in submitted}
    return StageState(
        status=Status.NEW,
        num_attempts=sum(attempt.number > 0 for attempt in attempts),
        seconds=sum(attempt.seconds for attempt in attempts),
        work_seconds=work_seconds(attempts),
        token=token,
        last=attempts[-1],
        attempts=tuple(attempts),
        deaths=tuple(a.death for a in attempts if a.death is not None),
        recent=tuple(a.death for a in attempts if a.death is not None and not a.forgiven and a.token in counted),
        covered=covered,
        job=job,
    )


def _judge_training(
    attempts: list[Attempt], submitted: list[Submitted], tasks: Tasks, *, has_checkpoints: bool
) -> StageState:
    if not submitted:
        return _told(attempts, submitted)
    newest = submitted[-1]
    task = tasks.get(newest.key, GONE)
    told = _told(attempts, submitted, task.job)
    mine = [attempt for attempt in attempts if attempt.token == newest.manifest.token]
    last = mine[-1] if mine else None
    # A node that was only cut off may end its work after all; newer submissions then find nothing to do.
    ended = next((a for a in reversed(attempts if has_checkpoints else mine[-1:]) if not a.ended_badly), None)
    if ended is not None:
        return replace(told, status=Status(str(ended.outcome)))
    if last is not None and last.outcome == "failed":
        return _failed(told, last)
    if task.is_live:  # an interrupted attempt goes on once its job is requeued
        alone = len(newest.manifest.tasks[newest.index]) == 1
        begun = last is not None
        if task.state == "running" and not (begun or alone):
            return replace(told, status=Status.PENDING)  # others of its job come first
        running = task.state == "running" or (begun and task.state == "pending")
        return replace(told, status=Status.RUNNING if running else Status(task.state))
    if last is None or newest.manifest.job_id is None:
        return told  # the scheduler never took it, or its job died before its turn
    return _failed(told, last)


def _lost(told: StageState, last: Attempt, detail: str) -> StageState:
    """Files that ought to be there are not, of which no attempt died: no budget answers that."""
    if last.forgiven:
        return replace(told, status=Status.NEW)
    return replace(told, status=Status.FAILED, cause=Cause.FILE_SYSTEM, detail=detail, recent=())


def _failed(told: StageState, last: Attempt) -> StageState:
    if last.forgiven:
        return told  # new again
    death = last.death or Death(cause=Cause.KILLED, detail="not examined yet")
    return replace(told, status=Status.FAILED, cause=death.cause, detail=death.detail)


def _judge_evaluation(
    attempts: list[Attempt],
    submitted: list[Submitted],
    tasks: Tasks,
    train: StageState,
    missing: tuple[MissingFile, ...],
) -> StageState:
    """Result files decide: with nothing missing it is done, whatever its attempts say."""
    # A job that is on its way out, or does others of its pack, covers nothing that it has ended.
    ended = {(a.token, a.step) for a in attempts if a.outcome in ("done", "diverged", "failed")}
    live = [
        (s.step, tasks[s.key])
        for s in submitted
        if tasks.get(s.key, GONE).is_live and (s.manifest.token, s.step) not in ended
    ]
    told = _told(attempts, submitted, live[-1][1].job if live else None, frozenset(step for step, _ in live))
    if train.status not in ENDED_WELL:
        blocked = train.status == Status.FAILED and bool(submitted)
        ahead = {task.state for _, task in live}
        status = Status.BLOCKED if blocked else Status.RUNNING if "running" in ahead else Status.NEW
        return replace(told, status=Status.PENDING if status == Status.NEW and live else status)
    if not missing:
        return replace(told, status=Status.DONE)
    if live:
        states = {task.state for _, task in live}
        return replace(told, status=next(s for s in (Status.RUNNING, Status.PENDING, Status.UNKNOWN) if s in states))
    for step in dict.fromkeys(file.step for file in missing):
        last = _last_of_step(attempts, submitted, step)
        if last is None or last.forgiven:
            continue
        if last.ended_badly and (last.death is None or last.death.cause is not Cause.DEPENDENCY):
            return _failed(_only_of_step(told, attempts, step), last)
        if _times_in_vain(attempts, step) > MAX_IN_VAIN:
            return _lost(told, last, f"step {step} was evaluated again and again, and its result files are not there")
    return told


MAX_IN_VAIN = 3


def _times_in_vain(attempts: list[Attempt], step: int) -> int:
    """How often in a row, up to now, the checkpoint was judged well and no result written."""
    of_step = [a for a in reversed(attempts) if a.step in (None, step) and not a.forgiven]
    return len(list(takewhile(lambda a: a.outcome == "done" and not (a.end or {}).get("num_files"), of_step)))


def _last_of_step(attempts: list[Attempt], submitted: list[Submitted], step: int) -> Attempt | None:
    """The last attempt of the newest submission that was to judge a checkpoint."""
    of_step = [s.manifest.token for s in submitted if s.step in (None, step)]
    mine = [a for a in attempts if of_step and a.token == of_step[-1] and a.step in (None, step)]
    return mine[-1] if mine else None


def _only_of_step(told: StageState, attempts: list[Attempt], step: int) -> StageState:
    """Budgets are for each checkpoint: the deaths of others do not count."""
    of_step = {id(a.death) for a in attempts if a.step in (None, step) and a.death is not None}
    return replace(told, recent=tuple(death for death in told.recent if id(death) in of_step))
