"""Checks of the folder that studies are kept in: who may write, who can see it, and what its file system can do."""

import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.doctor.checks import Check, advice, mend, ok
from orchestrator.lock import STALE_S

SHARED = ("nfs", "lustre", "gpfs", "beegfs", "fhgfs", "ceph", "wekafs", "panfs", "glusterfs", "pvfs2", "afs", "juicefs")
FREE_GB, FREE_GB_LEAST = 20.0, 1.0
FREE_INODES = 10_000
MOUNTS = Path("/proc/mounts")


def check_folder(runs: Path, study: Path | None, *, on_slurm: bool) -> Iterator[Check]:
    """The runs folder and, where it is there already, the study's own.

    Args:
        runs: where study folders are kept; it need not be there.
        study: the study's folder, if a study was named.
        on_slurm: jobs run on other machines, which have to see the folder.
    """
    there = next(path for path in (runs.resolve(), *runs.resolve().parents) if path.exists())
    if not there.is_dir():
        yield mend("folder", f"{there} is no folder", "give another one with --runs")
        return
    yield from _privacy(runs, study)
    if on_slurm:
        yield from _visibility("folder", there)
        yield from _visibility("environment", Path(sys.prefix))
    if not os.access(there, os.W_OK | os.X_OK):
        yield mend("folder", f"{there} cannot be written", "give another one with --runs")
        return
    yield from _abilities(there)
    yield from _room(there)


def file_system(path: Path, mounts: str) -> str:
    """The type of the file system that a path lies on, by the text of /proc/mounts; "unknown" if none covers it."""
    best, kind = -1, "unknown"
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = Path(fields[1].encode().decode("unicode_escape"))  # a blank is written as \040
        # Of two on the same place the later one hides the earlier.
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]
    return kind


def is_shared(kind: str) -> bool:
    """Whether other machines see a file system of that type."""
    return any(kind.removeprefix("fuse.").startswith(name) for name in SHARED)


def _privacy(runs: Path, study: Path | None) -> Iterator[Check]:
    """Jobs run what lies in the study folder, so whoever can write there can run it as you."""
    if study is not None and study.is_dir() and _is_open(study):
        what = f"others can write to {study} ({stat.filemode(study.stat().st_mode)}), and so run code in your jobs"
        yield mend("folder", what, f"chmod go-w {study}")
    if not runs.is_dir():
        yield ok("folder", f"{runs.resolve()} is not there yet; `submit` makes it")
    elif _is_open(runs):
        what = f"others can write to {runs} ({stat.filemode(runs.stat().st_mode)}), and so exchange a study"
        yield advice("folder", what, f"chmod go-w {runs}, or chmod +t where several share it")
    else:
        yield ok("folder", f"{runs.resolve()}: mode {stat.S_IMODE(runs.stat().st_mode):o}, nobody else can change it")


def _is_open(path: Path) -> bool:
    status = path.stat()
    # In a sticky folder (/tmp) others add what is theirs, and cannot touch what is not.
    return status.st_uid not in (os.geteuid(), 0) or bool(status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX)


def _visibility(topic: str, path: Path) -> Iterator[Check]:
    try:
        kind = file_system(path, MOUNTS.read_text())
    except OSError:
        return  # not Linux: there is nothing to be read about mounts
    if is_shared(kind):
        yield ok(topic, f"{path} is on {kind}, which the nodes can see")
    else:
        remedy = "use a folder on the cluster's shared file system, unless you know that this one is shared"
        yield advice(topic, f"{path} is on {kind}, which the nodes probably cannot see", remedy)


def _abilities(folder: Path) -> Iterator[Check]:
    """What the driver's lock and atomic writes rest on, tried in a folder of its own that is removed."""
    try:
        with tempfile.TemporaryDirectory(prefix=".upshot-doctor-", dir=folder) as made:
            lacking = [name for name, works in _trials(Path(made)).items() if not works]
            skew_s = time.time() - Path(made, "new").stat().st_mtime
    except OSError as error:
        yield mend("file system", f"cannot be used: {error}", "give another folder with --runs")
        return
    remedy = "use another file system: a study could be driven twice, or lose a file, on this one"
    if lacking:
        yield mend("file system", f"has no {', no '.join(lacking)}", remedy)
    else:
        yield ok("file system", "exclusive creation, hard links and atomic renames work")
    if abs(skew_s) > STALE_S / 4:
        what = f"its clock is {abs(skew_s):.0f} s {'behind' if skew_s > 0 else 'ahead of'} this machine's"
        yield mend("file system", what, "ask the administrators to set the clocks: locks are judged by their age")


def _trials(folder: Path) -> dict[str, bool]:
    old, new, link = folder / "old", folder / "new", folder / "link"
    old.write_text("old")
    new.write_text("new")
    trials = {"exclusive creation": _is_refused(lambda: os.close(os.open(old, os.O_CREAT | os.O_EXCL | os.O_WRONLY)))}
    try:
        os.link(old, link)
        trials["hard links"] = old.stat().st_nlink == 2 and _is_refused(lambda: os.link(new, link))
    except OSError:
        trials["hard links"] = False
    new.replace(old)
    trials["atomic renames"] = old.read_text() == "new" and not new.exists()
    new.touch()
    return trials


def _is_refused(act: Callable[[], None]) -> bool:
    try:
        act()
    except FileExistsError:
        return True
    return False


def _room(folder: Path) -> Iterator[Check]:
    status = os.statvfs(folder)
    free_gb = shutil.disk_usage(folder).free / 1e9
    is_counted = status.f_files > 0  # 0 where the file system makes inodes as it goes
    inodes = f", {status.f_favail:,} files" if is_counted else ""
    found = f"room for {free_gb:,.1f} GB{inodes} more, quotas not counted"
    if free_gb < FREE_GB_LEAST:
        yield mend("space", found, "make room: checkpoints and results would not fit")
    elif free_gb < FREE_GB or (is_counted and status.f_favail < FREE_INODES):
        yield advice(
            "space", found, "make room before a large study: a cell has dozens of files, each checkpoint 3x its model"
        )
    else:
        yield ok("space", found)
