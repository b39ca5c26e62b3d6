"""The work of a study by cell, over all its submissions, and what the scheduler says of the array tasks that do it."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from orchestrator.store import Manifest, Stage, parse_unit
from slurm.jobs import Job

TaskState = Literal["pending", "running", "unknown", "gone"]


@dataclass(frozen=True, slots=True)
class Task:
    """One array task, as far as anyone knows. Gone: it has ended, or never was."""

    state: TaskState
    job: Job | None = None

    @property
    def is_live(self) -> bool:
        """Not known to have ended: unknown is never done and never failed."""
        return self.state != "gone"


GONE = Task("gone")
TaskKey = tuple[str, int]  # token of the submission, array index
Tasks = Mapping[TaskKey, Task]  # what is missing is gone


@dataclass(frozen=True, slots=True)
class Submitted:
    """A piece of work in a submission: the checkpoint (None for a whole cell), the manifest, the array index."""

    step: int | None
    manifest: Manifest
    index: int

    @property
    def key(self) -> TaskKey:
        """Of the array task that does it."""
        return self.manifest.token, self.index


Submissions = Mapping[tuple[Stage, str], list[Submitted]]  # by stage and cell, oldest first


def index_submissions(manifests: Iterable[Manifest], cell_ids: Container[str]) -> Submissions:
    """Every piece of work of those cells by stage and cell, from manifests sorted by time, without abandoned ones."""
    found: dict[tuple[Stage, str], list[Submitted]] = {}
    for manifest in manifests:
        if manifest.abandoned:
            continue
        for index, units in enumerate(manifest.tasks):
            for text in units:
                cell_id, step = parse_unit(text)
                if cell_id in cell_ids:
                    found.setdefault((manifest.stage, cell_id), []).append(Submitted(step, manifest, index))
    return found
