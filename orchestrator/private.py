"""Study folders that only their owner can change, and the check of that before anything in them is trusted.

Jobs load submitit's pickles and run the code snapshot from the study folder: whoever can write there runs as its owner.
"""

import os
import pwd
import re
import shlex
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from models.errors import UserError

MAX_LINKS = 40  # as the kernel's own limit
MAX_LISTED = 5
UNSAFE_EXIT_CODE = 77  # EX_NOPERM of sysexits.h


def make_private(folder: Path, mode: int = 0o700) -> None:
    """Makes the folder, or gives it this mode where it is there already; setgid and sticky bits stay.

    A folder that is there should have passed `refuse_unsafe` before: a mode that is mended now does not undo what
    others may have put there while it was open.

    Raises:
        UserError: the mode lets others write, or locks the owner out; the folder is somebody else's.
    """
    if mode & 0o022 or mode & 0o700 != 0o700:
        raise UserError(
            f"{folder}: mode {mode:04o}: the owner needs all rights, and nobody else may write (0700, 0750)"
        )
    folder.mkdir(mode, parents=True, exist_ok=True)
    present = stat.S_IMODE(folder.stat().st_mode)
    if present & 0o777 == mode:
        return
    try:
        folder.chmod(present & 0o7000 | mode)
    except PermissionError as error:
        raise UserError(f"{folder}: belongs to {_owner(folder.stat())}; use a study folder of your own") from error


@contextmanager
def private_umask(mode: int) -> Iterator[None]:
    """While the block runs, this process and what it starts make no file wider than `mode`, nor one others can write.

    Slurm gives a job the umask that it was submitted with.
    """
    before = os.umask(0o022 | 0o777 & ~mode)
    try:
        yield
    finally:
        os.umask(before)


def refuse_unsafe(root: Path) -> None:
    """Refuses a study folder that somebody else could change; a folder that is not there yet is judged by its parents.

    The study folder, `jobs` and `code` in it and the folders in those have to be the user's own, writable by nobody
    else. No folder above may be writable by everybody (unless sticky, as /tmp is), and no link on the way be made by
    another user than root: the rules of ssh for its keys, except that a group may write above the study folder.

    Raises:
        UserError: which folders, their mode and owner, and the command that mends it.
    """
    found = dict.fromkeys(complaint for folder in _trusted_folders(root) for complaint in _complaints(folder))
    if found:
        more = f"\n... and {len(found) - MAX_LISTED} more" if len(found) > MAX_LISTED else ""
        raise UserError("\n".join(list(found)[:MAX_LISTED]) + more)


def shell_check(folder: Path) -> str:
    """A line of POSIX shell that ends a job with exit code 77 when others could change what it is about to load.

    That is so when the folder is missing, not the user's own, or writable by group or others; and where group or others
    can enter it, when a pickle in it is. It uses `find` and `id` alone, and a tool that is missing counts as unsafe.
    """
    place = shlex.quote(f"{folder.absolute()}/.")
    unsafe = '\\( ! -user "$(id -u)" -o -perm -020 -o -perm -002 \\)'
    closed, deeper = "-name . ! -perm -010 ! -perm -001 -prune", "! -name . -type d -prune"
    look = f"{place} -name . {unsafe} -print -o {closed} -o {deeper} -o -name '*.pkl' {unsafe} -print"
    message = shlex.quote(
        f"upshot: {folder}: is missing, not yours, or writable by others, so nothing is loaded from it."
        f" If nobody tampered with it: chmod -R go-w {shlex.quote(str(folder))}"
    )
    return f"[ -z \"$(find {look} 2>&1)\" ] || {{ printf '%s\\n' {message} >&2; exit {UNSAFE_EXIT_CODE}; }}"


def export_lines(environment: Mapping[str, str]) -> list[str]:
    """Lines of POSIX shell that set these variables, every value quoted."""
    assert all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) for name in environment), "names are names of variables"
    return [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]


def _trusted_folders(root: Path) -> Iterator[Path]:
    yield root
    for folder in (root / "jobs", root / "code"):
        if folder.is_dir():
            yield folder
            yield from sorted(path for path in folder.iterdir() if path.is_dir())


def _complaints(folder: Path) -> Iterator[str]:
    way = list(_way_to(folder))
    target = folder.resolve()
    for path, seen in way:
        if stat.S_ISLNK(seen.st_mode):
            if seen.st_uid not in (os.geteuid(), 0):
                yield f"{path}: is a link that {_owner(seen)} made and can turn elsewhere; name its target instead"
        elif path == target and seen.st_uid != os.geteuid():
            yield f"{path}: belongs to {_owner(seen)}, who could change what your jobs run; use a folder of your own"
        elif _is_open(seen.st_mode, above=path != target):
            yield (
                f"{path}: has mode {stat.S_IMODE(seen.st_mode):04o}, so that others could change what your jobs run;"
                f" if nobody has: chmod go-w {shlex.quote(str(path))}"
            )


def _is_open(mode: int, *, above: bool) -> bool:
    if above:
        return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX
    return bool(mode & (stat.S_IWGRP | stat.S_IWOTH))


def _way_to(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every folder and link that the kernel passes on the way to `path`, with what it is; up to what is not there."""
    current, num_links = Path("/"), 0
    waiting = list(reversed(path.absolute().parts))
    while waiting:
        name = waiting.pop()
        current = Path("/") if name == "/" else current.parent if name == ".." else current / name
        try:
            seen = current.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return
        yield current, seen
        if stat.S_ISLNK(seen.st_mode):
            num_links += 1
            if num_links > MAX_LINKS:
                raise UserError(f"{path}: its links go round in a circle")
            waiting += reversed(current.readlink().parts)
            current = current.parent


def _owner(seen: os.stat_result) -> str:
    try:
        return pwd.getpwuid(seen.st_uid).pw_name
    except KeyError:
        return f"user {seen.st_uid}"
