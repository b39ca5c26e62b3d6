"""Jobs of few CPUs that belong to a study as a whole: that which watches it, that which reduces it."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from models.errors import UserError
from orchestrator.files import write_atomically
from orchestrator.private import export_lines, make_private, private_umask, refuse_unsafe, shell_check
from orchestrator.session import Session
from orchestrator.snapshot import job_environment, take_snapshot
from orchestrator.store import PURPOSES, Purpose, Store, study_job_name
from slurm import jobs
from slurm.cluster import driver_partition
from slurm.limits import discover, refuse
from slurm.resources import Resources
from slurm.submit import submit_job

CODE_FILE = "code"  # in the job's folder below jobs/; names its snapshot


def submit_for_study(
    session: Session,
    purpose: Purpose,
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    *,
    mem_gb: float,
    num_cpus: int = 1,
) -> str:
    """The id of the job, submitted now or already in the queue.

    It runs on the profile's driver partition, for as long as the profile's driver may.

    Raises:
        UserError: the study runs on this machine, where there are no such jobs.
        DriverBusyError: to watch, and another driver is at work.
        SlurmError: the scheduler does not answer or refuses.
    """
    profile, store, name = session.profile, session.store, study_job_name(session.file.study.name, purpose)
    if profile.scheduler != "slurm":
        raise UserError(f"this study runs on this machine, without Slurm: `upshot {purpose}` does it here")
    partition = driver_partition(profile)
    place = profile.partitions[partition]
    refuse(profile, discover(), partitions={partition})
    live = [job for job in jobs.query_live(name).values() if job.name == name]
    if live:
        return live[0].job_id
    refuse_unsafe(store.root)
    mode = int(profile.folder_mode, 8)
    with store.driving() if purpose == "watch" else nullcontext(), private_umask(mode):
        make_private(store.root, mode)
        code, folder = take_snapshot(store.root), store.job_folder(purpose)
        write_atomically(folder / CODE_FILE, code.name)
        return submit_job(
            function,
            (str(store.root), *arguments),
            folder=folder,
            job_name=name,
            resources=Resources(
                partition=partition,
                num_cpus=min(num_cpus, place.cpus_per_node),
                mem_gb=min(mem_gb, place.memory_gb_per_node),
                time_min=min(profile.driver.time_min, place.max_time_min),
            ),
            profile=profile,
            setup=[*export_lines(job_environment(code)), shell_check(folder)],
        )


def codes_in_use(store: Store) -> set[str | None]:
    """The snapshots that these jobs run; that of `watch` may be started again at any time."""
    paths = [store.job_folder(purpose) / CODE_FILE for purpose in PURPOSES]
    return {path.read_text() for path in paths if path.is_file()}
