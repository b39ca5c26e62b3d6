"""A study as the commands see it: its file, its folder, its cluster profile."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from models.errors import StudyError, UnknownNameError
from orchestrator import drive
from orchestrator.bars import Tell, tell_nobody
from orchestrator.grid import cells
from orchestrator.kept import read_kept, write_kept
from orchestrator.observe import Observation, Observer, keep_all
from orchestrator.operations import operations_of
from orchestrator.reduce import reduce_study
from orchestrator.results import collect
from orchestrator.select import Keep
from orchestrator.selection import protocols_of
from orchestrator.state import ENDED_WELL, CellState
from orchestrator.store import Store
from orchestrator.study import StudyFile, load_study, load_unchecked
from slurm.cluster import Profile, load_profile


@dataclass(frozen=True, slots=True)
class Session:
    """One study, opened."""

    file: StudyFile
    store: Store
    profile: Profile

    def observe(self, *, retry: bool = False, keep: Keep = keep_all, limits: bool = False) -> Observation:
        """Where the study stands and what would be done about it; jobs of a silent scheduler are unknown.

        With `limits` the plan keeps to those of the scheduler.
        """
        observer = Observer(self.store, self.file, self.profile)
        observer.asks_limits = limits
        return observer.look(retry=retry, keep=keep, strict=False)

    def submit(self, *, retry: bool = False, keep: Keep = keep_all) -> Observation:
        """Submits what is to be submitted; the observation that led to it."""
        return drive.submit(self.store, self.file, self.profile, retry=retry, keep=keep)

    def cancel(self) -> int:
        """Stops every live job; how many submissions that were."""
        return drive.cancel(self.store)

    def protocol(self, given: str | None, there: Sequence[str] = ()) -> str:
        """Whose values count: the given protocol, or the study's first, if possible of those that are `there`.

        Raises:
            UnknownNameError: the study does not ask for the given one.
        """
        names = [protocol.name for protocol in self.file.study.protocols]
        if given is None:
            return next((name for name in names if name in there), names[0])
        if given not in names:
            raise UnknownNameError("protocol", given, names, f"in study {self.file.study.name}")
        return given

    def collect(self, tell: Tell = tell_nobody) -> pl.LazyFrame:
        """The results table, collected anew, as is the table of upstream measures (`store.measures_path`)."""
        found = cells(self.file.study, self.file.path, self.file.images)
        return collect(self.store, self.file.study, found, tell)

    def reduced(self, tell: Tell = tell_nobody, **options: Any) -> dict[str, Any]:
        """The reducer's answer over the collected results, and how far the study has come (`progress_of`).

        Args:
            tell: hears how far the work is.
            options: of `reduce_study`.
        """
        return self.reduce(self.collect(tell), self.observe().states, tell=tell, **options)

    def report(self, tell: Tell = tell_nobody, **options: Any) -> Path:
        """The page of the report, written anew.

        Args:
            tell: hears how far the work is.
            options: of `reduce_study`.
        """
        from orchestrator.report import write_report  # its chart libraries take a second to load

        seen, results = self.observe(), self.collect(tell).collect()
        return write_report(
            self.store.report_folder,
            title=self.file.study.name,
            results=results,
            measures=pl.read_parquet(self.store.measures_path),
            reduced=self.reduce(results, seen.states, tell=tell, **options),
            generated_by=f"upshot {version('upshot')}",
            cells=[state.to_json() for state in seen.states],
            plan_summary=self.planned(seen),
            operations=operations_of(self.store, self.profile, seen),
            tell=tell,
        )

    def planned(self, seen: Observation) -> dict[str, Any]:
        """What the whole study is expected to take, and how often it was handed to sbatch."""
        return {
            "gpu_hours": seen.plan.hours("gpu_hours", of_all=True),
            "cpu_hours": seen.plan.hours("cpu_hours", of_all=True),
            "sbatch_calls": len({m.token for m in self.store.manifests() if m.executor == "slurm"}),
        }

    def reduce(
        self,
        results: pl.DataFrame | pl.LazyFrame,
        states: Sequence[CellState],
        *,
        protocol: str | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """As `reduced`, of what was collected and observed already."""
        progress = progress_of(states)
        chosen = self.protocol(protocol, protocols_of(results))
        if not results.lazy().select(pl.len()).collect().item():
            return {"protocol": chosen, "tasks": [], "study": progress}
        kept = read_kept(self.store.kept_answers_path)
        reduced = reduce_study(results, protocol=chosen, **options, kept=kept)
        write_kept(self.store.kept_answers_path, kept)
        if not progress["finished"]:
            for task in reduced["tasks"]:
                task["verdict"] += f" (so far: {task['n']} of {progress['cells']} cells)"
        return {**reduced, "study": progress}


def progress_of(states: Sequence[CellState]) -> dict[str, Any]:
    """How far a study has come: cells in all, by status, failed ones by cause, and whether all have ended well."""
    by_status = Counter(str(state.status) for state in states)
    causes = Counter(str(state.cause) for state in states if state.cause is not None)
    finished = all(state.status in ENDED_WELL for state in states)
    return {"cells": len(states), "by_status": dict(by_status), "failed": dict(causes), "finished": finished}


def open_session(study: Path, runs: Path, sets: list[str]) -> Session:
    """The study of a study file (its folder is `runs`/NAME), for planning and submitting, or of a study folder.

    Raises:
        StudyError: there is no such study, or it is malformed.
        ProfileError: its cluster profile cannot be used.
    """
    if study.is_dir():
        return open_submitted(study, runs, sets)
    file = load_study(study, sets)
    return Session(file, Store(runs / file.study.name), load_profile(file.study.cluster.profile))


def open_submitted(study: Path, runs: Path, sets: list[str] | None = None) -> Session:
    """The study as it was submitted, whatever has been edited since: study and profile come from its folder.

    So does what is known of its own images, which may be gone.
    A study file that was never submitted is opened as it stands.

    Raises:
        StudyError, ProfileError: as `open_session`.
    """
    folder = study if study.is_dir() else runs / load_unchecked(study).name
    if not (folder / "study.toml").exists():
        if study.is_dir():
            raise StudyError(f"{study}: holds no study.toml, so it is no study folder")
        return open_session(study, runs, sets or [])
    store = Store(folder)
    file = load_study(folder / "study.toml", sets or [], store.images())
    kept = folder / "cluster.toml"
    return Session(file, store, load_profile(str(kept) if kept.exists() else file.study.cluster.profile))
