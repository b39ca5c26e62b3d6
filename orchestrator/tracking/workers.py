"""Processes that mirror cells, one cell each at a time, each with a wandb client of its own.

One process would not do: to end a client that could not open a run ends every other run of its process.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Final, Self

from orchestrator import lock
from orchestrator.store import Store
from orchestrator.tracking.client import close, draft_folder, one_line
from orchestrator.tracking.described import describe
from orchestrator.tracking.opening import open_online, open_over
from orchestrator.tracking.stamps import Place, stamp_of
from orchestrator.tracking.trouble import Trouble, trouble_of
from orchestrator.tracking.wandb_run import is_unchanged, mirror_cell, note

GRACE_S: Final = 5.0
"""How long the cells under way have to end, once no more are wanted."""
FRUGAL: Final = {"POLARS_MAX_THREADS": "1", "GOMAXPROCS": "2", "CUDA_VISIBLE_DEVICES": ""}
"""A login node is everybody's."""
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
LOCK: Final = "mirror.lock"


@dataclass(frozen=True, slots=True)
class Task:
    """A cell that is to be told, and how it ended; `over` tells that W&B may hold another history, or none."""

    cell_id: str
    outcome: str
    over: bool = False


class Became(StrEnum):
    """What became of a cell; a busy one is being mirrored by its job, or by another sync."""

    TOLD = "told"
    UNCHANGED = "unchanged"
    BUSY = "busy"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a cell, how many rows were new to W&B, and what went wrong in one line."""

    became: Became
    num_sent: int = 0
    error: str = ""
    trouble: Trouble | None = None


@dataclass(slots=True)
class _Worker:
    process: SpawnProcess
    pipe: Connection
    task: Task | None = None


class Workers:
    """The processes, as a context manager: as many as there were cells under way at once.

    Args:
        root: the study folder.
        timeout_s: how long W&B may take for each step of a mirror.
    """

    def __init__(self, root: Path, timeout_s: float) -> None:
        self._root, self._timeout_s = root, timeout_s
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        deadline = time.monotonic() + GRACE_S
        try:
            for worker in self._workers:
                worker.pipe.close()
            for worker in self._workers:
                worker.process.join(max(0.0, deadline - time.monotonic()))
        finally:
            for worker in self._workers:
                self._end(worker)

    @property
    def under_way(self) -> list[Task]:
        """The cells that are being told."""
        return [worker.task for worker in self._workers if worker.task is not None]

    def give(self, task: Task) -> None:
        """Has the cell mirrored by a process that has nothing to do, if need be a new one."""
        while True:
            worker = next((worker for worker in self._workers if worker.task is None), None) or self._start()
            try:
                worker.pipe.send(task)
            except OSError:  # it has died meanwhile
                self._drop(worker)
                continue
            worker.task = task
            return

    def answers(self, wait_s: float) -> list[tuple[Task, Answer | None]]:
        """The cells that have been mirrored, within so many seconds; None is the answer of a process that died."""
        busy = {worker.pipe: worker for worker in self._workers if worker.task is not None}
        if not busy:
            time.sleep(wait_s)
            return []
        ready = wait(list(busy), wait_s)
        return [self._answer(worker) for pipe, worker in busy.items() if pipe in ready]

    def _answer(self, worker: _Worker) -> tuple[Task, Answer | None]:
        task, worker.task = worker.task, None
        assert task is not None, "only busy ones are asked"
        try:
            answer: Answer = worker.pipe.recv()
        except (EOFError, OSError):
            self._drop(worker)
            clear(self._root, task.cell_id)
            return task, None
        return task, answer

    def _start(self) -> _Worker:
        context = get_context("spawn")
        resource_tracker.ensure_running()  # or starting it would let signals through again
        with _environment(FRUGAL), _signals_held():
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, self._root, self._timeout_s), daemon=True)
            process.start()
            theirs.close()  # so that its end is heard
            worker = _Worker(process, ours)
            self._workers.append(worker)
        return worker

    def _drop(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.pipe.close()
        self._end(worker)

    def _end(self, worker: _Worker) -> None:
        if worker.process.is_alive():
            worker.process.kill()
        worker.process.join()
        if worker.task is not None:
            clear(self._root, worker.task.cell_id)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """What a process that is started in the block inherits."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _signals_held() -> Iterator[None]:
    """Ctrl-C goes to every process of a terminal: one that starts has it held until it can say that it ignores it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def clear(root: Path, cell_id: str) -> None:
    """Removes what a process that was killed has left in a cell's folder: its lock and its draft."""
    folder = Store(root).cell_folder(cell_id)
    with suppress(lock.LockBusyError, OSError), lock.holding(folder / LOCK), draft_folder(folder):
        pass


# --- in a worker -----------------------------------------------------------------------------------------------------


def _work(pipe: Connection, root: Path, timeout_s: float) -> None:
    """Mirrors the cells that come, until no more do. Signals are for the command, which then lets go."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    store = Store(root)
    with suppress(EOFError, OSError):
        while True:
            pipe.send(_mirror(store, pipe.recv(), timeout_s))
    close()


def _end_with_parent() -> None:
    """Ends this process, and with it its client, when the command was killed."""
    parent = parent_process()
    assert parent is not None, "it was started by one"
    parent.join()
    os._exit(1)


def _mirror(store: Store, task: Task, timeout_s: float) -> Answer:
    folder = store.cell_folder(task.cell_id)
    try:
        with lock.holding(folder / LOCK):
            return _mirror_held(store, folder, task, timeout_s)
    except lock.LockBusyError:
        return Answer(Became.BUSY)
    except Exception as error:  # of one cell, whatever it is: the others are to be told
        note(folder, ok=False, mode="online", error=one_line(error), rows=None)
        return Answer(Became.FAILED, error=one_line(error), trouble=trouble_of(error))


def _mirror_held(store: Store, folder: Path, task: Task, timeout_s: float) -> Answer:
    description = describe(store, task.cell_id)
    place = Place.of(description.project, description.entity)
    if not task.over and is_unchanged(folder, place, stamp_of(folder, task.outcome)):
        return Answer(Became.UNCHANGED)  # another sync was here first
    opens = open_over if task.over else open_online
    done = mirror_cell(folder, description, mode="online", outcome=task.outcome, timeout_s=timeout_s, opens=opens)
    if done.ok:
        return Answer(Became.TOLD, done.num_sent)
    return Answer(Became.FAILED, error=done.error or "", trouble=done.trouble)
