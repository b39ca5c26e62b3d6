"""Runs that were read from W&B, kept in the user's cache folder: a line a run, of several the last counts."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

from models.errors import UserError
from orchestrator.files import append_record, read_records, write_whole

Scalar = str | int | float | bool
REVISION: Final = 1
"""Raised when what is kept of a run changes, so that older lines are read anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedRun:
    """A run as W&B holds it; of config and summary the scalars, nested ones under dotted names."""

    run_id: str
    name: str
    group: str | None
    job_type: str | None
    state: str
    config: dict[str, Scalar]
    summary: dict[str, Scalar]


@dataclass(slots=True)
class KeptRuns:
    """The runs of one project: by id, and what told that each has not changed since."""

    folder: Path
    runs: dict[str, LoggedRun]
    stamps: dict[str, list[Any]]
    num_lines: int

    @classmethod
    def of(cls, base_url: str, entity: str, project: str) -> Self:
        """What is kept of a project.

        Raises:
            UserError: the folder cannot be read.
        """
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        server = urlsplit(base_url).netloc or base_url
        folder = cache.joinpath("upshot", "wandb", *(_file_name(name) for name in (server, entity, project)))
        try:
            read = read_records(folder / "runs.ndjson")
        except OSError as error:
            raise UserError(f"{error}; XDG_CACHE_HOME names another cache folder") from error
        kept = cls(folder, {}, {}, len(read.records) + read.num_torn)
        for record in read.records:
            if record.get("revision") == REVISION:
                run = LoggedRun(**record["run"])
                kept.runs[run.run_id], kept.stamps[run.run_id] = run, record["stamp"]
        return kept

    def has(self, run_id: str, stamp: list[Any]) -> bool:
        """Whether the run is kept as it is."""
        return self.stamps.get(run_id) == stamp

    def add(self, run: LoggedRun, stamp: list[Any]) -> None:
        """Keeps a run at once, whatever becomes of the others.

        Raises:
            OSError: the folder cannot be written.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        append_record(self.folder / "runs.ndjson", _record(run, stamp))
        self.runs[run.run_id], self.stamps[run.run_id] = run, stamp
        self.num_lines += 1

    def tidy(self) -> None:
        """Writes the file anew once most of its lines are of runs that changed since."""
        if self.num_lines > 2 * len(self.runs):
            lines = [json.dumps(_record(run, self.stamps[run_id])) + "\n" for run_id, run in self.runs.items()]
            write_whole(self.folder / "runs.ndjson", "".join(lines))
            self.num_lines = len(lines)


def _record(run: LoggedRun, stamp: list[Any]) -> dict[str, Any]:
    return {"revision": REVISION, "stamp": stamp, "run": asdict(run)}


def _file_name(name: str) -> str:
    """The name without separators; `..` is no folder above."""
    return quote(name, safe="").replace(".", "%2E") if name.strip(".") == "" else quote(name, safe="")
