"""A lock that survives NFS: a file made atomically and touched while it is held, stale once nobody touches it.

Its owner is told by host and process, so that on the same host a dead owner's lock is free at once; elsewhere it is
free two minutes after the last touch.
"""

import errno
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STALE_S = 120.0
BEAT_S = 20.0
POLL_S = 0.5
MOST_BYTES = 1000  # an owner's name is far shorter


class LockBusyError(RuntimeError):
    """Another process holds the lock; `owner` says which."""

    def __init__(self, path: Path, owner: str) -> None:
        super().__init__(f"{path}: {owner}")
        self.owner = owner


@contextmanager
def holding(path: Path, *, wait_s: float = 0.0) -> Iterator[Callable[[], bool]]:
    """Holds the lock while the block runs; what it yields says whether it still does, as after a long suspension.

    Args:
        path: the file; its folder is made.
        wait_s: how long to wait for a living owner.

    Raises:
        LockBusyError: another process holds it.
    """
    owner = f"{socket.gethostname()} pid {os.getpid()} {_identity(os.getpid())} {secrets.token_hex(4)}"
    _take(path, owner, time.monotonic() + wait_s)
    ended = threading.Event()
    threading.Thread(target=_beat, args=(path, owner, ended), daemon=True).start()
    try:
        yield lambda: read_owner(path) == owner
    finally:
        ended.set()
        if read_owner(path) == owner:
            path.unlink(missing_ok=True)


def _take(path: Path, owner: str, deadline: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        for _ in range(2):
            try:
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o644)
            except FileExistsError:
                _break_if_stale(path)
                continue
            with os.fdopen(descriptor, "w") as file:
                file.write(owner)
            return
        if time.monotonic() >= deadline:
            if path.is_symlink():
                raise LockBusyError(path, "is a link, which no process of ours leaves: find out who made it, remove it")
            raise LockBusyError(path, read_owner(path) or "another process")
        time.sleep(POLL_S)


def _break_if_stale(path: Path) -> None:
    """Removes a lock that nobody holds any more; of several that try, one does it.

    The right to remove it is a hard link named after the very file that was found stale: made once, and of no use
    against a fresh lock that has taken its place in the meantime. Who dies with that right leaves the link; then the
    next one is named after the number of links, and so made once too.
    """
    try:
        seen = path.lstat()
        if not _is_stale(path, seen):
            return
        tombstone = path.with_name(f".{path.name}.{seen.st_ino}-{seen.st_mtime_ns}-{seen.st_nlink}")
        os.link(path, tombstone, follow_symlinks=False)
    except (FileNotFoundError, FileExistsError, PermissionError):  # others were first; a link of somebody else's
        return
    with suppress(FileNotFoundError):
        linked, now = tombstone.lstat(), path.lstat()
        if (linked.st_ino, linked.st_mtime_ns) == (seen.st_ino, seen.st_mtime_ns) == (now.st_ino, now.st_mtime_ns):
            path.unlink()
    tombstone.unlink(missing_ok=True)


def _is_stale(path: Path, lock: os.stat_result) -> bool:
    """Not touched for two minutes, nor linked to by one who is removing it just now; or its owner on this host died."""
    touched = lock.st_mtime if lock.st_nlink == 1 else max(lock.st_mtime, lock.st_ctime)
    return time.time() - touched > STALE_S or _owner_died(read_owner(path))


def _owner_died(owner: str) -> bool:
    """Whether the owner was a process of this host that is gone; False where that cannot be told."""
    words = owner.split()
    if len(words) != 5 or words[0] != socket.gethostname() or not words[2].isdigit():
        return False
    identity = _identity(int(words[2]))
    # Another container of the same name counts its processes on its own.
    return identity.partition(":")[0] == words[3].partition(":")[0] and identity != words[3]


def _identity(pid: int) -> str:
    """The process namespace of this host, and when the process began there: what a recycled number does not share."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        began = stat[19] if stat[0] not in "ZX" else "dead"
    except (OSError, IndexError):
        began = "dead"
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 - a link to follow
    except OSError:  # no Linux: only time tells
        return f"unknown-{secrets.token_hex(4)}:{began}"
    return f"{boot}-{namespace}:{began}"


def _beat(path: Path, owner: str, ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        with suppress(OSError):  # a stalled file system: the next beat may pass
            if read_owner(path) == owner:
                os.utime(path, follow_symlinks=False)


def read_owner(path: Path) -> str:
    """What a lock says; nothing where there is none. A link is not followed, and a pipe not waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return ""
        raise
    try:
        return os.read(descriptor, MOST_BYTES).decode(errors="replace")
    except IsADirectoryError:
        return ""
    finally:
        os.close(descriptor)
