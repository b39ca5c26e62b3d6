"""What tells, without asking W&B, that nothing has changed since a cell was last mirrored: a stamp of its files.

A stamp is made of what `stat` says of the files that a mirror is written from, so thousands of cells take a second.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from orchestrator.tracking.account import base_url, default_entity

REVISION: Final = 1
"""Raised when a mirror shows something new of the same files, so that every cell is told again."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where runs are mirrored to. `entity` is None where it is the key's own."""

    server: str
    entity: str | None
    project: str

    @classmethod
    def of(cls, project: str, entity: str | None) -> Self:
        """That of a study's project and entity, with what W&B's settings say of the rest."""
        return cls(base_url(), entity or default_entity(), project)

    @property
    def path(self) -> str:
        """ENTITY/PROJECT as the public API takes it."""
        return f"{self.entity}/{self.project}" if self.entity else self.project

    def __str__(self) -> str:
        return f"{self.path} at {self.server}"


def stamp_of(cell_dir: Path, outcome: str) -> str:
    """What differs once a mirror of the cell would show something else.

    It is to be taken before the files are read: what changes meanwhile then makes the next one differ.
    """
    told = [REVISION, outcome, *_seen(str(cell_dir))]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _seen(cell: str) -> Iterator[list[Any]]:
    """The study, the records of training and attempts, the newest checkpoint, the evaluations."""
    study = cell.rsplit("/", 3)[0] + "/study.toml"
    for path in (study, f"{cell}/train.ndjson", f"{cell}/attempts.ndjson"):
        try:
            seen = os.stat(path)  # noqa: PTH116 - thousands of cells are looked at, and joining paths takes longest
        except FileNotFoundError:
            continue
        yield [path.rpartition("/")[2], seen.st_mtime_ns, seen.st_size]
    steps = sorted((name for name in _names(f"{cell}/checkpoints") if name.startswith("step_")), reverse=True)
    done = (name for name in steps if os.path.exists(f"{cell}/checkpoints/{name}/DONE"))  # noqa: PTH110 - the same
    yield [next(done, None)]
    for step in sorted(_names(f"{cell}/evals")):
        with os.scandir(f"{cell}/evals/{step}") as entries:
            files = [(entry.name, entry.stat()) for entry in entries if entry.name.endswith(".parquet")]
        yield [step, *sorted((name, seen.st_mtime_ns, seen.st_size) for name, seen in files)]


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - the same
    except (FileNotFoundError, NotADirectoryError):
        return []


def stamped(place: Place, stamp: str) -> dict[str, Any]:
    """What a note of a good online mirror says more: where to, and of which files."""
    return {**asdict(place), "stamp": stamp}
