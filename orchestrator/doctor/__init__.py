"""`upshot doctor`: looks at everything that a study rests on, and says what to do about it. Changes nothing."""

from collections.abc import Iterator
from pathlib import Path

from models.errors import StudyError
from orchestrator.doctor.checks import Check, Findings, Level, print_findings
from orchestrator.doctor.cluster import check_limits, check_partitions, find_limits, list_partitions
from orchestrator.doctor.folder import check_folder
from orchestrator.doctor.machine import check_packages, check_wandb
from orchestrator.store import Store
from orchestrator.study import Study, load_study
from slurm.cluster import Profile, load_profile
from slurm.limits import Limits

__all__ = ["Check", "Findings", "Level", "examine", "print_findings"]


def examine(study: Path | None, profile: str | None, runs: Path) -> Findings:
    """Every check that what was given allows.

    Args:
        study: a study file or a study folder; None looks at this machine and its cluster alone.
        profile: a profile file, or "local", in place of the study's.
        runs: where study folders are kept.

    Raises:
        StudyError: there is no such study, or it is malformed.
        ProfileError: its cluster profile cannot be read.
    """
    asked, folder = _study(study, runs)
    cluster = load_profile(profile) if profile is not None else _profile_of(asked, study)
    wants_slurm = cluster is not None and cluster.scheduler == "slurm"
    checks = list(check_packages())
    limits = None
    if cluster is None or wants_slurm:
        answers, limits = find_limits(is_wanted=wants_slurm)
        checks += answers
    if limits is not None:
        checks += _of_cluster(cluster, limits)
    checks += check_folder(runs, folder, on_slurm=limits is not None)
    if asked is not None:
        checks += check_wandb(asked.wandb)
    return Findings(checks=checks, limits=limits)


def _study(path: Path | None, runs: Path) -> tuple[Study | None, Path | None]:
    """The study and its folder."""
    if path is None:
        return None, None
    if not path.is_dir():
        study = load_study(path).study
        return study, runs / study.name
    if not (path / "study.toml").exists():
        raise StudyError(f"{path}: holds no study.toml, so it is no study folder")
    return Store(path).study(), path


def _profile_of(study: Study | None, path: Path | None) -> Profile | None:
    """The study's; of a study folder the one that it was submitted with."""
    if study is None or path is None:
        return None
    kept = path / "cluster.toml"
    return load_profile(str(kept) if kept.exists() else study.cluster.profile)


def _of_cluster(profile: Profile | None, limits: Limits) -> Iterator[Check]:
    yield from check_limits(limits)
    yield from list_partitions(limits) if profile is None else check_partitions(profile, limits)
