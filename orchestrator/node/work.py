"""One piece of work: done once, by one process group at a time, with its start and its end in the cell's ledger."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import lock
from orchestrator.autopsy import marker
from orchestrator.store import Manifest, Stage, Store
from slurm.submit import SIGNAL_DELAY_S

if TYPE_CHECKING:
    from models.distributed import World

LOCK_WAIT_S = 1.5 * lock.STALE_S  # for an earlier attempt whose node may be dead
EARLY_S = 60.0  # a stop signal this long before the time limit's own is not about the time limit
BUSY = "busy"
BEGAN = time.monotonic()  # this process; a job's first one begins with it


class StopRequest:
    """The signal that told this process to end, if one did; work looks at it where it can stop."""

    def __init__(self, time_min: int | None = None) -> None:
        self.signal: int | None = None
        self.early = False
        self._limit_s = None if time_min is None else 60 * time_min - SIGNAL_DELAY_S

    def __bool__(self) -> bool:
        return self.signal is not None

    def listen(self) -> None:
        """Takes SIGUSR2 (the time limit is near, see `slurm.submit`) and SIGTERM from submitit, which ignores one.

        Some clusters send SIGUSR2 before a preemption too: then it comes long before the limit.
        """
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, _: object) -> None:
        if self.signal is None:
            self.early = self._limit_s is not None and _job_seconds() < self._limit_s - EARLY_S
        self.signal = number


def _job_seconds() -> float:
    """Since the job's start as Slurm has it, or since this process's, which set-up lines can delay."""
    started = os.environ.get("SLURM_JOB_START_TIME", "")
    return time.time() - int(started) if started.isdecimal() else time.monotonic() - BEGAN


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One stage of one cell, as an array task does it; `step` where an evaluation judges one checkpoint alone."""

    store: Store
    manifest: Manifest
    cell_id: str
    step: int | None
    stop: StopRequest
    world: "World | None" = None
    still_ours: Callable[[], bool] = lambda: True

    @property
    def stage(self) -> Stage:
        """Training or evaluation."""
        return self.manifest.stage

    @property
    def leads(self) -> bool:
        """Whether this process is the one that records and saves."""
        return self.world is None or self.world.rank == 0

    def should_stop(self) -> bool:
        """Whether to end at the next point to go on from: told to, or another attempt has taken the cell."""
        return bool(self.stop) or not self.still_ours()

    def agree_to_stop(self) -> None:
        """Lets every process that works together know of the signal that one of them was sent."""
        if self.world is not None:
            self.stop.signal = self.world.most(self.stop.signal or 0) or None

    def decided(self, value: str) -> str:
        """The leading process's value."""
        return value if self.world is None else self.world.decide(value)


Body = Callable[[Work], dict[str, Any]]
"""Does the work; returns what the ledger keeps of its end, `outcome` among it."""


def run_work(work: Work, body: Body) -> str:
    """Does one piece of work, once: what was done is skipped, and no two attempts are at it at a time.

    Returns done, diverged, interrupted or failed, as the ledger has it; skipped if it was done before, busy if another
    attempt is still at it.
    """
    with ExitStack() as stack:
        reason, still_ours = "", work.still_ours
        if work.leads:
            try:
                still_ours = stack.enter_context(lock.holding(_lock_path(work), wait_s=LOCK_WAIT_S))
                reason = _why_skip(work)
            except lock.LockBusyError as error:
                reason = f"{BUSY}: {error.owner} is at it"
        reason = work.decided(reason)
        if reason:
            print(f"{work.stage} of {work.cell_id} skipped: {reason}", flush=True)
            return next((word for word in (BUSY, "failed") if reason.startswith(word)), "skipped")
        return _attempt(replace(work, still_ours=_seldom(still_ours)), body)


def _lock_path(work: Work) -> Path:
    """One for training, one for each checkpoint that is judged alone, one for judging the whole cell."""
    folder = work.store.cell_folder(work.cell_id)
    return folder / f"{work.stage}{'' if work.step is None else f'-{work.step}'}.lock"


def _seldom(still_ours: Callable[[], bool], every_s: float = 5.0) -> Callable[[], bool]:
    """The same question, asked of the file system now and then; work asks after every step."""
    asked, answer = time.monotonic(), True

    def ask() -> bool:
        nonlocal asked, answer
        if time.monotonic() - asked > every_s:
            asked, answer = time.monotonic(), still_ours()
        return answer

    return ask


def _why_skip(work: Work) -> str:
    """Why there is nothing to do: an earlier start of this job, or another one, has done it."""
    for event in work.store.attempts(work.cell_id):
        if event.get("event") != "end" or event.get("stage") != work.stage:
            continue
        outcome = event["outcome"]
        if work.stage == "train" and (
            outcome == "diverged" or (outcome == "done" and work.store.finalised_steps(work.cell_id))
        ):
            return f"{outcome} before"
        mine = event.get("token") == work.manifest.token and event.get("step_to_evaluate") == work.step
        if mine and outcome in ("done", "diverged", "failed"):
            return f"{outcome} in this job's earlier start"
    return ""


def _attempt(work: Work, body: Body) -> str:
    """One attempt, in the ledger from its start to its end."""
    store, cell_id, stage = work.store, work.cell_id, work.stage
    events = store.attempts(cell_id) if work.leads else []
    number = int(work.decided(str(1 + sum(e.get("stage") == stage and e.get("event") == "start" for e in events))))
    attempt: dict[str, Any] = {"stage": stage, "attempt": number, "token": work.manifest.token}
    if work.step is not None:
        attempt["step_to_evaluate"] = work.step
    if work.leads:
        print(marker(stage, number, cell_id), flush=True)
        store.record_attempt(cell_id, event="start", **attempt, **_where())
    began = time.monotonic()
    _forget_peak_memory()
    outcome: dict[str, Any]
    with _captured(_log_path(work, number)):
        try:
            if work.leads:
                store.keep_cell(store.read_cell(cell_id))
            outcome = body(work)
        except Exception as error:
            traceback.print_exc()
            outcome = {"outcome": "failed", "error": _describe(error)}
        except BaseException as error:
            # A requeue or a cancellation says nothing of the cell.
            outcome = {"outcome": "interrupted", "error": _describe(error)}
            _record_end(work, attempt, began, outcome)
            raise
    _record_end(work, attempt, began, outcome)
    return str(outcome["outcome"])


def _forget_peak_memory() -> None:
    """Lets the kernel measure this process's peak (VmHWM) from now on: several cells may share a process."""
    with suppress(OSError):  # not Linux, or not allowed: the peak is then that of the process so far
        Path("/proc/self/clear_refs").write_text("5")


def _record_end(work: Work, attempt: dict[str, Any], began: float, outcome: dict[str, Any]) -> None:
    if work.leads:
        seconds = round(time.monotonic() - began, 3)
        work.store.record_attempt(work.cell_id, event="end", **attempt, seconds=seconds, **outcome)


def _log_path(work: Work, number: int) -> Path:
    """The attempt's own log; those of a step's other processes lie beside it."""
    path = work.store.log_path(work.cell_id, work.stage, number)
    return path if work.leads or work.world is None else path.with_suffix(f".rank{work.world.rank}.log")


@contextmanager
def logged(work: Work) -> Iterator[None]:
    """What is printed while the block runs goes to the log of the stage's newest attempt, once that has ended too."""
    events = work.store.attempts(work.cell_id)
    number = sum(event.get("stage") == work.stage and event.get("event") == "start" for event in events)
    with _captured(_log_path(work, max(1, number))):
        yield


def _where() -> dict[str, Any]:
    """The job that an attempt runs in."""
    restarts = os.environ.get("SLURM_RESTART_COUNT")
    return {
        "host": socket.gethostname(),
        "node": os.environ.get("SLURMD_NODENAME"),
        "pid": os.getpid(),
        "job": own_job_id(),
        "restarts": restarts,
    }


def own_job_id() -> str | None:
    """The Slurm job that this process is in: ARRAY_TASK for an array's, so that a requeue means this task alone."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def _describe(error: BaseException) -> dict[str, Any]:
    """What the ledger keeps of an error; one that another process of the step met first is named as that one's."""
    return {
        "type": getattr(error, "failed_type", type(error).__name__),
        "errno": getattr(error, "errno", None),
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
    }


@contextmanager
def _captured(path: Path) -> Iterator[None]:
    """Everything that this process and its libraries print goes to `path` while the block runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with path.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)
