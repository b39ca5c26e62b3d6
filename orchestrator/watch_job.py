"""`watch` as a one-CPU job that requeues itself near its time limit, for login nodes that forbid long processes."""

import signal
import sys
import time
from pathlib import Path

from orchestrator import drive
from orchestrator.node import StopRequest, own_job_id
from orchestrator.progress import SLURM_TICK_S, lines_of
from orchestrator.session import Session, open_submitted
from orchestrator.study_job import submit_for_study
from slurm import jobs

MEM_GB = 2.0
SLICE_S = 1.0  # of a sleep, after which a signal is looked at


def submit_watch(session: Session, every_s: float | None = None) -> str:
    """The id of the job that watches the study, submitted now or already in the queue.

    Raises:
        UserError: the study runs on this machine, where there is no job to watch it.
        DriverBusyError: another driver is at work.
        SlurmError: the scheduler does not answer or refuses.
    """
    return submit_for_study(session, "watch", run_watch, (every_s or SLURM_TICK_S,), mem_gb=MEM_GB)


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
