"""Which evaluations a study wants of a cell's checkpoints, each a file, and which of them are not there."""

from functools import lru_cache
from typing import NamedTuple

from evals.protocol import Protocol, upstream_eval_id
from orchestrator.store import Store
from orchestrator.study import Study

UPSTREAM = "upstream"
"""Stands in the place of a task for the measures on the held-out upstream images, which know no protocol."""


class MissingFile(NamedTuple):
    """An evaluation that is wanted and not there: of a checkpoint, on a task or `UPSTREAM`, by a protocol."""

    step: int
    task: str
    protocol: str | None = None


class WantedFiles(NamedTuple):
    """The names of the files that are wanted of each checkpoint: of results by task and protocol, and of measures."""

    results: dict[tuple[str, str], str]
    measures: str | None


def wanted_files(study: Study) -> WantedFiles:
    """What the study wants of each checkpoint that it evaluates; no measures where it asks for none."""
    d = study.downstream
    measures = f"{upstream_eval_id(by_class=d.upstream == 'by_class')}.parquet" if d.upstream else None
    return WantedFiles(_result_files(study.protocols, tuple(d.tasks)), measures)


def wanted_steps(study: Study, steps: list[int]) -> list[int]:
    """Of the finalised checkpoints, those that the study evaluates."""
    return steps if study.downstream.checkpoints == "all" else steps[-1:]


def missing_evaluations(store: Store, study: Study, cell_id: str, steps: list[int]) -> list[MissingFile]:
    """The evaluations that are wanted and have no file; `steps` may end with that of divergence."""
    found = wanted_steps(study, steps)
    if not found:
        return []
    wanted, missing = wanted_files(study), []
    for step in found:
        present = store.result_names(cell_id, step)
        missing += [MissingFile(step, *key) for key, name in wanted.results.items() if name not in present]
        if wanted.measures is not None and wanted.measures not in present:
            missing.append(MissingFile(step, UPSTREAM))
    return missing


@lru_cache(maxsize=16)
def _result_files(protocols: tuple[Protocol, ...], tasks: tuple[str, ...]) -> dict[tuple[str, str], str]:
    """The names are hashes, which thousands of cells have in common."""
    return {(task, p.name): f"{p.eval_id(task)}.parquet" for p in protocols for task in tasks}
