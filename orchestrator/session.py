"""A study as the commands see it: its file, its folder, its cluster profile."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from models.errors import StudyError
from orchestrator import drive
from orchestrator.drive import Observation
from orchestrator.grid import cells
from orchestrator.results import collect
from orchestrator.select import Keep
from orchestrator.store import Store
from orchestrator.study import StudyFile, load_study
from slurm import jobs, local
from slurm.cluster import Profile, load_profile


def _all(_: object) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Session:
    """One study, opened."""

    file: StudyFile
    store: Store
    profile: Profile

    def observe(self, *, retry: bool = False, keep: Keep = _all) -> Observation:
        """Where the study stands and what would be done about it."""
        return drive.observe(self.store, self.file, self.profile, retry=retry, keep=keep)

    def submit(self, *, retry: bool = False, keep: Keep = _all) -> Observation:
        """Submits what is to be submitted; the observation that led to it."""
        return drive.submit(self.store, self.file, self.profile, retry=retry, keep=keep)

    def cancel(self) -> int:
        """Stops every live job; how many submissions that were."""
        return drive.cancel(self.store, self.profile)

    def collect(self) -> pl.DataFrame:
        """The results table, collected anew."""
        return collect(self.store, self.file.study, cells(self.file.study, self.file.path))

    def report(self) -> Path:
        """The page of the report, written anew."""
        from orchestrator.report import write_report

        raise NotImplementedError(write_report)

    def sync(self) -> tuple[int, list[str]]:
        """(cells mirrored to W&B, one line for each that could not be)."""
        raise NotImplementedError


def open_session(study: Path, runs: Path, sets: list[str]) -> Session:
    """The study of a study file (its folder is `runs`/NAME) or of a study folder.

    Raises:
        StudyError: there is no such study, or it is malformed.
        ProfileError: its cluster profile cannot be used.
    """
    if study.is_dir():
        if not (study / "study.toml").exists():
            raise StudyError(f"{study}: holds no study.toml, so it is no study folder")
        file = load_study(study / "study.toml", sets)
        folder = study
    else:
        file = load_study(study, sets)
        folder = runs / file.study.name
    return Session(file, Store(folder), load_profile(file.study.cluster.profile))
