"""The one door to submitit: arrays on Slurm, worker processes on this machine.

What is carried is a callable of strings and numbers, found by its import path; what it does and how it ended stands in
the study folder, never in submitit's pickles.

An array is one submission of submitit's: one pickle with every task's arguments, under as many names as it has tasks.
`map_array` would write and rename one for each, which is what takes the time when there are thousands.
"""

import contextlib
import io
import os
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import submitit

from slurm.cluster import Profile
from slurm.failures import NODE_MARKER
from slurm.limits import Refusal, classify_refusal
from slurm.options import sbatch_options
from slurm.resources import LimitReachedError, Resources, SlurmError

Task = tuple[str | float, ...]
SIGNAL_DELAY_S = 90  # before the time limit, for a last checkpoint
SAY_NODE = f'echo "{NODE_MARKER} $SLURMD_NODENAME"'  # before any line that may fail there


class SubmissionError(SlurmError):
    """The scheduler refused a submission; the message holds what it said."""


class SubmissionUnansweredError(SlurmError):
    """The scheduler gave no answer to a submission: it may have taken it or not."""


def submit_array(
    function: Callable[..., None],
    tasks: list[Task],
    *,
    folder: Path,
    job_name: str,
    resources: Resources,
    profile: Profile,
    after: str | None = None,
    setup: list[str] | None = None,
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
        setup: shell lines that a job runs after those of the profile and its partition.

    Raises:
        SubmissionUnansweredError: sbatch got no answer, so the job may be there or not.
        LimitReachedError: a limit on the number or the size of jobs is in the way.
        SubmissionError: sbatch is not there or refused.
    """
    said = io.StringIO()  # submitit prints what sbatch said, and raises it too
    try:
        executor = submitit.SlurmExecutor(folder, python=job_python(resources, profile))
        given = parameters(job_name, resources, profile, after, len(tasks), setup or [])
        executor.update_parameters(**(given if len(tasks) == 1 else _as_array(given, executor, len(tasks))))
        with contextlib.redirect_stderr(said), _outside_of_any_job(given["additional_parameters"]):
            if len(tasks) == 1:  # a plain job, with an id of its own
                return str(executor.submit(function, *tasks[0]).job_id)
            job_id = str(executor.submit(run_array_task, function, tasks).job_id)
        name_pickles(folder, job_id, len(tasks))
        return job_id
    except (RuntimeError, OSError, subprocess.SubprocessError, submitit.core.utils.FailedJobError) as error:
        raise _refusal(f"{job_name}: sbatch failed: {error}") from error


def run_array_task(function: Callable[..., None], tasks: list[Task]) -> None:
    """What every task of an array calls: the function, with the arguments of its own index."""
    function(*tasks[int(os.environ["SLURM_ARRAY_TASK_ID"])])


def job_python(resources: Resources, profile: Profile) -> str:
    """How a job starts Python: the interpreter of its partition or of the profile, else the one that submits.

    Activating another environment in a set-up line changes nothing, because submitit names the interpreter by its path.
    """
    partition = profile.partitions.get(resources.partition or "")
    python = shlex.quote((partition and partition.python) or profile.python or sys.executable)
    # Without srun, bash must become Python, or signals reach the shell alone and Python outlives its job.
    return python if profile.use_srun else f"exec {python}"


def _as_array(given: dict[str, Any], executor: submitit.SlurmExecutor, num_tasks: int) -> dict[str, Any]:
    """The parameters of one job, made those of an array; its logs are named as submitit names an array's."""
    log = str(submitit.core.utils.JobPaths(executor.folder).stdout).replace("%j", "%A_%a")
    throttle = min(num_tasks, given["array_parallelism"])
    array = {"array": f"0-{num_tasks - 1}%{throttle}", "output": log.replace("%t", "0")}
    srun_args = given["srun_args"] and [*given["srun_args"], f"--output={log}"]
    return {
        **given,
        "srun_args": srun_args,
        "additional_parameters": {**given["additional_parameters"], **array},
    }


def name_pickles(folder: Path, job_id: str, num_tasks: int) -> None:
    """Gives a submission's one pickle the names that its tasks look for, and wait a minute for.

    Also for a submission whose answer was lost: then submitit has not named it either.
    """
    paths = submitit.core.utils.JobPaths
    whole = paths(folder, job_id).submitted_pickle
    unnamed = [path for path in folder.glob("*.pkl") if "_" not in path.name]
    if not whole.exists() and len(unnamed) == 1:
        unnamed[0].rename(whole)
    before, after = str(paths(folder, f"{job_id}_{{}}").submitted_pickle).rsplit("{}", 1)
    for index in range(num_tasks if num_tasks > 1 else 0):
        name = f"{before}{index}{after}"
        try:
            os.link(whole, name)  # thousands of paths take longer to make than links
        except FileExistsError:
            continue
        except OSError:  # a file system without hard links, or with no more of them for one file
            draft = f"{name}.draft"
            shutil.copyfile(whole, draft)
            Path(draft).replace(name)


@contextlib.contextmanager
def _outside_of_any_job(given: Mapping[str, object]) -> Iterator[None]:
    """Without the variables of a job that this process may be in: sbatch takes some for options, and hands all on.

    Nor with a user's own SBATCH_PARTITION and the like, which would win over the script; those that stand for what the
    profile says nothing about are kept.
    """
    kept = {"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_CONF_SERVER"}
    kept |= {f"SBATCH_{name.upper()}" for name in ("account", "qos", "reservation", "constraint") if name not in given}
    names = [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_")) and name not in kept]
    taken = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(taken)


def _refusal(said: str) -> SlurmError:
    kind = classify_refusal(said)
    if kind is Refusal.BUSY:
        return SubmissionUnansweredError(said)
    if kind in (Refusal.LIMIT, Refusal.LIMIT_NEVER):
        return LimitReachedError(said, passes=kind is Refusal.LIMIT)
    return SubmissionError(said)


def submit_job(function: Callable[..., None], arguments: Task, *, folder: Path, **options: Any) -> str:
    """The id of one job; the options, and what is raised, are those of `submit_array`."""
    return submit_array(function, [arguments], folder=folder, **options)


def submit_workers(function: Callable[..., None], workers: list[Task], *, folder: Path) -> list[str]:
    """The process ids of workers started on this machine; they outlive the caller."""
    executor = submitit.LocalExecutor(folder)
    executor.update_parameters(timeout_min=60 * 24 * 365)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the processes are meant to be left running
        return [executor.submit(function, *arguments).job_id for arguments in workers]


def parameters(
    job_name: str, resources: Resources, profile: Profile, after: str | None, num_tasks: int, setup: list[str]
) -> dict[str, Any]:
    """What submitit is told of an array.

    Resources go to sbatch as `sbatch_options` has them, past submitit's own parameters, of which some have no form of
    ours (accelerators by gres with a type, a partition alone).
    """
    additional: dict[str, str | bool] = {"requeue": True, **sbatch_options(resources, profile)}
    if not profile.use_srun:
        additional["signal"] = f"B:USR2@{SIGNAL_DELAY_S}"
    if after is not None:
        additional["dependency"] = f"{'aftercorr' if num_tasks > 1 else 'afterok'}:{after}"
        additional["kill-on-invalid-dep"] = "yes"
    partition = profile.partitions.get(resources.partition or "")
    lines = [SAY_NODE, *profile.setup, *(partition.setup if partition else []), *setup]
    return {
        "job_name": job_name,
        **_own_parameters(additional),
        "signal_delay_s": SIGNAL_DELAY_S,
        "array_parallelism": profile.throttle,
        "use_srun": profile.use_srun,
        "srun_args": _srun_args(resources) if profile.use_srun else None,
        "stderr_to_stdout": True,
        "setup": lines,
        "additional_parameters": additional,
    }


def _own_parameters(options: dict[str, str | bool]) -> dict[str, Any]:
    """The options that submitit has parameters of its own for, taken out of `options`.

    Given twice, both would stand in the script.
    """
    own = {"nodes": int, "ntasks-per-node": int, "cpus-per-task": int, "time": int}
    return {name.replace("-", "_"): kind(options.pop(name)) for name, kind in own.items() if name in options}


def _srun_args(resources: Resources) -> list[str]:
    """No CPU binding, which hurts threads; logs that a requeued job adds to; a step of several tasks that ends as one.

    Otherwise a rank would be left waiting for a dead one.
    """
    cpus = max(1, resources.num_cpus // resources.tasks_per_node)  # since 22.05 srun does not take it from the job
    common = ["--cpu-bind=none", "--open-mode=append", f"--cpus-per-task={cpus}"]
    return [*common, "--kill-on-bad-exit=1"] if resources.num_tasks > 1 else common
