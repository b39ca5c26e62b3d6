"""The one door to submitit: arrays on Slurm, worker processes on this machine.

What is carried is a callable of strings and numbers, found by its import path; what it does and how it ended stands in
the study folder, never in submitit's pickles.
"""

import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import submitit

from slurm.cluster import Profile
from slurm.resources import Resources, SlurmError

Task = tuple[str | int, ...]
SIGNAL_DELAY_S = 90  # before the time limit, for a last checkpoint


class SubmissionError(SlurmError):
    """The scheduler refused a submission; the message holds what it said."""


def submit_array(
    function: Callable[..., None],
    tasks: list[Task],
    *,
    folder: Path,
    job_name: str,
    resources: Resources,
    profile: Profile,
    after: str | None = None,
) -> str:
    """The job id of one array, one `sbatch` call whatever its size.

    Args:
        function: what each array task calls, importable on the node.
        tasks: the arguments of array task 0, 1, ...
        folder: submitit's files and the jobs' logs, on a file system that the nodes share.
        job_name: how the scheduler lists it.
        resources: the same for every task.
        profile: account, set-up lines, throttle.
        after: the id of an array of the same length; task i starts once task i of that one has ended well, and is
            dropped if it did not (`aftercorr`; one task is a plain job, and waits by `afterok`).

    Raises:
        SubmissionError: sbatch is not there or refused.
    """
    try:
        # Without srun, bash must become Python, or signals reach the shell alone and Python outlives its job.
        python = None if profile.use_srun else f"exec {shlex.quote(sys.executable)}"
        executor = submitit.SlurmExecutor(folder, python=python)
        executor.update_parameters(**_parameters(job_name, resources, profile, after, len(tasks)))
        jobs = executor.map_array(function, *zip(*tasks, strict=True))
    except (RuntimeError, OSError, subprocess.SubprocessError, submitit.core.utils.FailedJobError) as error:
        raise SubmissionError(f"{job_name}: sbatch failed: {error}") from error
    return str(jobs[0].job_id).split("_")[0]


def submit_workers(function: Callable[..., None], workers: list[Task], *, folder: Path) -> list[str]:
    """The process ids of workers started on this machine; they outlive the caller."""
    executor = submitit.LocalExecutor(folder)
    executor.update_parameters(timeout_min=60 * 24 * 365)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the processes are meant to be left running
        return [executor.submit(function, *arguments).job_id for arguments in workers]


def _parameters(
    job_name: str, resources: Resources, profile: Profile, after: str | None, num_tasks: int
) -> dict[str, Any]:
    additional: dict[str, str | bool] = {"requeue": True, **dict(resources.extra)}
    if not profile.use_srun:
        additional["signal"] = f"B:USR2@{SIGNAL_DELAY_S}"
    if after is not None:
        additional["dependency"] = f"{'aftercorr' if num_tasks > 1 else 'afterok'}:{after}"
        additional["kill-on-invalid-dep"] = "yes"
    if resources.accelerators:
        additional["gres"] = f"{resources.accelerator}:{resources.accelerators}"
    given = {
        "partition": resources.partition,
        "account": profile.account,
        "qos": profile.qos,
        "setup": profile.setup or None,
    }
    return {
        "job_name": job_name,
        "time": resources.time_min,
        "nodes": resources.num_nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": resources.num_cpus,
        "mem": f"{round(resources.mem_gb * 1024)}MB",
        "signal_delay_s": SIGNAL_DELAY_S,
        "array_parallelism": profile.throttle,
        "use_srun": profile.use_srun,
        "stderr_to_stdout": True,
        "additional_parameters": additional,
        **{name: value for name, value in given.items() if value is not None},
    }
