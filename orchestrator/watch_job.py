"""`watch` as a one-CPU job that requeues itself near its time limit, for login nodes that forbid long processes."""

import signal
import sys
import time
from pathlib import Path

from models.errors import UserError
from orchestrator import drive
from orchestrator.files import write_atomically
from orchestrator.node import StopRequest, own_job_id
from orchestrator.private import export_lines, make_private, private_umask, refuse_unsafe, shell_check
from orchestrator.progress import SLURM_TICK_S, lines_of
from orchestrator.session import Session, open_submitted
from orchestrator.snapshot import job_environment, take_snapshot
from slurm import jobs
from slurm.cluster import driver_partition
from slurm.limits import discover, refuse
from slurm.resources import Resources
from slurm.submit import submit_job

WATCH, CODE_FILE = "watch", "code"  # the job's folder below jobs/, and the file there that names its snapshot
MEM_GB = 2.0
SLICE_S = 1.0  # of a sleep, after which a signal is looked at


def submit_watch(session: Session, every_s: float | None = None) -> str:
    """The id of the job that watches the study, submitted now or already in the queue.

    Raises:
        UserError: the study runs on this machine, where there is no job to watch it.
        SlurmError: the scheduler does not answer or refuses.
    """
    profile, store, name = session.profile, session.store, f"upshot-{session.file.study.name}-watch"
    if profile.scheduler != "slurm":
        raise UserError("--as-job: this study runs on this machine; `upshot watch` watches it")
    partition = driver_partition(profile)
    refuse(profile, discover(), partitions={partition})
    time_min = min(profile.driver.time_min, profile.partitions[partition].max_time_min)
    live = [job for job in jobs.query_live(name).values() if job.name == name]
    if live:
        return live[0].job_id
    refuse_unsafe(store.root)
    mode = int(profile.folder_mode, 8)
    with store.driving(), private_umask(mode):
        make_private(store.root, mode)
        code, folder = take_snapshot(store.root), store.job_folder(WATCH)
        write_atomically(folder / CODE_FILE, code.name)
        return submit_job(
            run_watch,
            (str(store.root), every_s or SLURM_TICK_S),
            folder=folder,
            job_name=name,
            resources=Resources(partition=partition, mem_gb=MEM_GB, time_min=time_min),
            profile=profile,
            setup=[*export_lines(job_environment(code)), shell_check(folder)],
        )


def run_watch(study_dir: str, tick_s: float) -> None:
    """What the job runs: drives the study; told that its time limit is near, it lets itself be started again."""
    job_id = own_job_id()
    stop = StopRequest()
    stop.listen()
    session = open_submitted(Path(study_dir), Path(study_dir).parent)

    def sleep(seconds: float) -> None:
        end = time.monotonic() + seconds
        while not stop and time.monotonic() < end:
            time.sleep(min(SLICE_S, max(0.0, end - time.monotonic())))

    drive.watch(
        session.store,
        session.file,
        session.profile,
        show=lines_of(time.monotonic),
        tick_s=tick_s,
        sleep=sleep,
        should_stop=lambda: bool(stop),
    )
    if stop.signal == signal.SIGUSR2 and job_id:
        jobs.requeue(job_id)
        sys.exit("requeued: the time limit was near")
