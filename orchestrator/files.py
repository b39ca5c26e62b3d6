"""Files that survive a crash: written whole or not at all, appended a line at a time, read past a torn end."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replaces `path`; a reader sees the old content or the new one, never a part.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        with draft.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Adds one JSON line in one write; a torn last line of an earlier, killed writer is ended first.

    NaN and infinities are written as JavaScript names, which Python's reader takes back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


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
