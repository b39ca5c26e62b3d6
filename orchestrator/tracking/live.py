"""A cell's curves at W&B while it trains, by a process of its own: training never waits for W&B, nor for this.

`python -m orchestrator.tracking CELL_FOLDER PERIOD_S` mirrors the cell now and then until its standard input
ends, which it does when the process that started it lets go of it or dies, in whatever way.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from orchestrator import lock
from orchestrator.store import Store
from orchestrator.tracking.account import Mode
from orchestrator.tracking.client import (
    NoAnswerError,
    OpenRun,
    close,
    draft_folder,
    look,
    one_line,
    summarise,
    tell,
)
from orchestrator.tracking.described import describe
from orchestrator.tracking.opening import open_online
from orchestrator.tracking.patience import PATIENCE
from orchestrator.tracking.wandb_run import CellFiles, note, problem_of, read_files

PERIOD_S: Final = 60.0
MOST_PERIODS: Final = 16  # between two tries to open a run, where the ones before failed
ANSWER_S: Final = 10.0  # for W&B to open a run, to answer, and to take the last rows
END_S: Final = 20.0  # for this process to end, once training has
STOPPED_S: Final = 2.0  # the same where the job is about to be killed
SOURCE: Final = Path(__file__).resolve().parents[2]
MODE: Final[Mode] = "online"

Ended = Callable[[float], bool]
"""Whether the training has ended; waits that many seconds for it."""


@contextlib.contextmanager
def following(cell_dir: Path, *, hurried: Callable[[], bool], period_s: float = PERIOD_S) -> Iterator[None]:
    """Mirrors the cell at W&B while the block runs, about once in `period_s` and once at its end.

    The block waits at its end for the last rows, at most `END_S`, or `STOPPED_S` where it is `hurried` or raises, or
    where W&B has been waited for in vain. One that is shorter than a period opens no run.
    """
    # Nothing of it is to be in the way of the training: no accelerator, no thread for each core.
    environment = {**os.environ, "PYTHONPATH": _import_path(), "PYTHONSAFEPATH": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"POLARS_MAX_THREADS": "1", "GOMAXPROCS": "1"}
    command = [sys.executable, "-m", "orchestrator.tracking", str(cell_dir), str(period_s)]
    try:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment)
    except OSError as error:  # no process or memory left for it
        print(f"not mirrored while it trains: {error}", flush=True)
        yield
        return
    wait_s, began = STOPPED_S, time.monotonic()
    try:
        yield
        wait_s = STOPPED_S if hurried() or PATIENCE.is_over else END_S
    finally:
        _let_go(child, wait_s if time.monotonic() - began > period_s else 0.0)


def _import_path() -> str:
    """Finds the very code that this process runs."""
    return os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH", "")]))


def _let_go(child: "subprocess.Popen[bytes]", wait_s: float) -> None:
    assert child.stdin is not None, "it was made with a pipe"
    child.stdin.close()
    began = time.monotonic()
    try:
        child.wait(wait_s)
    except subprocess.TimeoutExpired:
        child.kill()  # nothing is lost: the journal is there, and wandb's own process ends with its parent
        child.wait()
    PATIENCE.wait(time.monotonic() - began)


def follow(store: Store, cell_id: str, ended: Ended, *, period_s: float = PERIOD_S) -> None:
    """Keeps the cell's run at W&B up to date until the training has `ended`; what goes wrong is noted, and retried."""
    folder, pause = store.cell_folder(cell_id), 1
    while not ended(pause * period_s):
        try:
            with lock.holding(folder / "mirror.lock") as is_ours, draft_folder(folder) as draft:
                read = partial(_read, store, cell_id, is_ours)
                pause = 1 if _session(read, draft, ended, period_s) else min(2 * pause, MOST_PERIODS)
        except lock.LockBusyError:
            continue  # another process mirrors the cell, and notes how that goes
        except Exception as error:  # what wandb raises is no closed set
            close()
            note(folder, ok=False, mode=MODE, error=problem_of(error), rows=None)
            pause = min(2 * pause, MOST_PERIODS)


def _session(read: Callable[[], CellFiles], draft: Path, ended: Ended, period_s: float) -> bool:
    """Tells one opened run what comes, until the training has ended or W&B takes no more; whether it went well."""
    cell = read()
    opened = open_online(cell.folder, cell.description, cell.rows, draft, ANSWER_S)
    num_told = opened.num_there
    try:
        while True:
            num_told += tell(opened.run, cell.rows, num_told)
            summarise(opened.run, cell.summary, cell.rows)
            if _note_progress(cell, opened, draft) or ended(period_s):
                break
            cell = read()
        if not opened.listener.fatal:
            cell = read()
            tell(opened.run, cell.rows, num_told)
            opened.run.mark_preempting()  # until whoever mirrors the end of the cell, or its next attempt, goes on
    except lock.LockBusyError:
        opened.run.mark_preempting()
        raise
    finally:
        opened.run.finish(exit_code=1)
    return not opened.listener.fatal


def _read(store: Store, cell_id: str, is_ours: Callable[[], bool]) -> CellFiles:
    """The cell as its files have it now; its journal is ours alone to bring up to date.

    Raises:
        LockBusyError: another process mirrors the cell, as after this one was suspended for long.
    """
    if not is_ours():
        raise lock.LockBusyError(store.cell_folder(cell_id) / "mirror.lock", "another process took it over")
    return read_files(store.cell_folder(cell_id), describe(store, cell_id), "running")


def _note_progress(cell: CellFiles, opened: OpenRun, draft: Path) -> bool:
    """Notes how many rows W&B says it has, or what is in the way; whether the run takes nothing more."""
    listener, there = opened.listener, None
    problem = f"W&B refused a part: {listener.fatal[0]}" if listener.fatal else listener.trouble
    listener.trouble = ""
    if not problem:
        try:
            known = look(cell.folder.name, cell.description, draft, ANSWER_S, listener)
            there = known.num_told if known else None
        except NoAnswerError as error:
            problem = one_line(error)
    note(cell.folder, ok=not problem, mode=MODE, error=problem or None, rows=there, url=opened.run.url)
    return bool(listener.fatal)


def _input_ended(wait_s: float) -> bool:
    ready, _, _ = select.select([sys.stdin.fileno()], [], [], wait_s)
    return bool(ready)


def main() -> None:
    """What the process does. The signals that tell its job to end are for the training: this one ends with it."""
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    os.nice(19)
    folder, period_s = Path(sys.argv[1]).resolve(), float(sys.argv[2])
    follow(Store(folder.parents[2]), folder.name, _input_ended, period_s=period_s)
