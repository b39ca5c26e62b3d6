"""The queue of this machine, for where there is no Slurm: workers claim array tasks by making files.

A claim is made atomically, so no task runs twice; a worker holds a lock on its own file while it lives, which the
kernel lets go when it dies, so the living are told from the dead without process ids.
"""

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

START_GRACE_S = 60.0  # a worker that was started this long ago and has no lock file yet is dead


def claim(folder: Path, index: int, worker: str) -> bool:
    """True for the one worker that claims array task `index` first."""
    (folder / "claims").mkdir(parents=True, exist_ok=True)
    draft = folder / "claims" / f".{index}.{worker}"
    draft.write_text(worker)
    try:
        os.link(draft, folder / "claims" / str(index))  # whole at once, so that no reader sees a claim without a name
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    return True


def claims(folder: Path) -> dict[int, str]:
    """The worker that claimed each array task."""
    path = folder / "claims"
    return {int(e.name): e.read_text() for e in path.iterdir() if e.name.isdigit()} if path.is_dir() else {}


def claimant(folder: Path, index: int) -> str | None:
    """The worker that claimed one array task, if one did."""
    try:
        return (folder / "claims" / str(index)).read_text()
    except FileNotFoundError:
        return None


@contextmanager
def alive(folder: Path, worker: str) -> Iterator[None]:
    """Marks a worker as living while the block runs, and however it dies."""
    (folder / "workers").mkdir(parents=True, exist_ok=True)
    with (folder / "workers" / worker).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(str(os.getpid()))
        file.flush()
        yield


def is_alive(folder: Path, worker: str) -> bool:
    """Whether that worker lives."""
    try:
        with (folder / "workers" / worker).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def is_stopped(folder: Path) -> bool:
    """Whether the queue was stopped: its workers take nothing more."""
    return (folder / "stopped").exists()


def living(folder: Path) -> set[str]:
    """The workers that live."""
    path = folder / "workers"
    names = [entry.name for entry in path.iterdir()] if path.is_dir() else []
    return {name for name in names if is_alive(folder, name)}


def stop(folder: Path) -> None:
    """Ends the workers of a queue, those that are still starting too; what they were running can be retried."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stopped").touch()
    for worker in living(folder):
        with suppress(ProcessLookupError):
            os.kill(int((folder / "workers" / worker).read_text()), signal.SIGTERM)
