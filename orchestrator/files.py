"""Files that survive a crash: written whole or not at all, appended a line at a time, read past a torn end."""

import errno
import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replaces `path`; a reader sees the old content or the new one, never a part. A link at `path` is replaced itself.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is as it was.
    """
    _replace(path, data, os.fsync)


def write_whole(path: Path, data: bytes | str) -> None:
    """As `write_atomically`, but not waiting for the disk: for what can be made anew, should power fail before it is.

    After that the file may be empty, so whoever reads it must be able to tell.

    Raises:
        OSError: as `write_atomically`.
    """
    _replace(path, data, _no_sync)


def _no_sync(_: int) -> None:
    """Leaves it to the operating system when data goes to the disk."""


def _replace(path: Path, data: bytes | str, sync: Callable[[int], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Nobody can plant a link under a name that cannot be guessed, and O_EXCL takes no file that is there already.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            sync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Adds one JSON line in one write; a torn last line of an earlier, killed writer is ended first.

    NaN and infinities are written as JavaScript names, which Python's reader takes back.

    Raises:
        OSError: the disk is full (ENOSPC; the file holds no part of the record), or a link stands at `path` (ELOOP).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        num_written = os.write(descriptor, line)
        if num_written < len(line):
            _take_back(descriptor, num_written)
            raise OSError(errno.ENOSPC, "a record was not written: is the disk full, or a quota used up?", str(path))
    finally:
        os.close(descriptor)


def _take_back(descriptor: int, num_bytes: int) -> None:
    """Cuts off what the last write appended, unless another process has appended after it: its record stays."""
    end = os.lseek(descriptor, 0, os.SEEK_CUR)
    if os.fstat(descriptor).st_size == end:
        os.ftruncate(descriptor, end - num_bytes)


@dataclass(frozen=True, slots=True)
class Records:
    """The records of a file of JSON lines, and how many lines were torn."""

    records: list[dict[str, Any]]
    num_torn: int = 0


def read_records(path: Path) -> Records:
    """Every whole line of a file of JSON lines; no records when the file is not there."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Records([])
    return _parsed(data)


def read_last_records(path: Path, num_bytes: int) -> list[dict[str, Any]]:
    """The whole records among the last bytes of such a file; none when it is not there."""
    try:
        with path.open("rb") as file:
            left_out = max(0, file.seek(0, os.SEEK_END) - num_bytes)
            file.seek(left_out)
            data = file.read()
    except FileNotFoundError:
        return []
    return _parsed(data.partition(b"\n")[2] if left_out else data).records


def _parsed(data: bytes) -> Records:
    records, torn = [], 0
    for line in data.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif line.strip():
            torn += 1
    return Records(records, torn)
