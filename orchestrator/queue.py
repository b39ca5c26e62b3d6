"""What one look at the queue tells of a study's jobs: one squeue, whatever their number; and this machine's workers."""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from orchestrator.store import Manifest, Store
from orchestrator.submissions import Task, TaskKey, TaskState
from slurm import jobs, local
from slurm.failures import NEVER_STARTS
from slurm.resources import SlurmUnreachable
from slurm.submit import name_pickles

LAG_S = 15.0
"""How long after a submission a job may be missing from the queue without having ended."""
UNANSWERED_S = 60.0
"""How long a submission whose answer was lost may take to appear in the queue: a busy controller takes late."""


@dataclass(slots=True)
class Queue:
    """What one look at the queue gave.

    Of all the user's array tasks: those that are live, and those that the controller remembers.
    """

    tasks: dict[TaskKey, Task]
    asked_at: float = 0.0  # seconds since 1970
    num_live: int = 0
    num_known: int = 0
    never_start: tuple[str, ...] = ()
    starts_at: float | None = None


def look_at_queue(store: Store, manifests: list[Manifest], *, on_slurm: bool, strict: bool, writes: bool) -> Queue:
    """What is live, by token and array index; adopts jobs whose id was never recorded.

    Args:
        store: the study.
        manifests: its submissions.
        on_slurm: whether the study runs on Slurm, so that the queue counts before anything is submitted.
        strict: raise where the scheduler does not answer; otherwise its jobs are unknown.
        writes: whether an adopted or abandoned submission is recorded.

    Raises:
        SlurmUnreachable: the scheduler does not answer, and `strict` is set.
        SlurmError: it answered what cannot be read.
    """
    queue = Queue({}, time.time())
    for manifest in manifests:
        if manifest.executor == "local" and not manifest.abandoned:
            queue.tasks |= local_tasks(store, manifest)
    there = [m for m in manifests if m.executor == "slurm" and not m.abandoned]
    if not there and not on_slurm:
        return queue
    try:
        _look_at_slurm(store, there, queue, writes=writes)
    except SlurmUnreachable:
        if strict and there:
            raise
        # Its silence is never read as an end: what has no record of one is unknown.
        queue.tasks |= {(m.token, index): Task("unknown") for m in there for index in range(len(m.tasks))}
    return queue


def _look_at_slurm(store: Store, manifests: list[Manifest], queue: Queue, *, writes: bool) -> None:
    everything = jobs.query_queue("")
    ours = {key: job for key, job in everything.items() if job.name.startswith("upshot-")}
    by_name = {job.name: job.array_job_id for job in ours.values()}
    queue.num_known = len(everything)
    queue.num_live = sum(not job.state.is_over for job in everything.values())
    for manifest in manifests:
        found = manifest if manifest.job_id else _adopted(store, manifest, by_name, writes=writes)
        if found is not None:
            queue.tasks |= _tasks_in_queue(found, ours)
    live = [task.job for task in queue.tasks.values() if task.is_live and task.job is not None]
    queue.never_start = tuple(job.job_id for job in live if job.reason in NEVER_STARTS)
    starts = [j.start_time.timestamp() for j in live if j.state is jobs.JobState.PENDING and j.start_time]
    queue.starts_at = max(starts, default=None)


def _adopted(store: Store, manifest: Manifest, by_name: Mapping[str, str], *, writes: bool) -> Manifest | None:
    """The manifest of a submission whose answer was lost, with the id of the job that it became.

    None once the scheduler is taken never to have got it: then it is abandoned, and its cells are new again.
    """
    job_id = by_name.get(manifest.job_name) or _recorded_job(store, manifest)
    if job_id is not None and writes:
        with suppress(OSError):  # then its tasks end without having begun, and are answered as such
            name_pickles(store.job_folder(manifest.token), job_id, len(manifest.tasks))
        return store.set_job_id(manifest, job_id)
    if job_id is not None:
        return replace(manifest, job_id=job_id)
    if time.time() - manifest.submitted < UNANSWERED_S:
        return manifest
    if writes:
        store.write_manifest(replace(manifest, abandoned=True))
    return None


def _recorded_job(store: Store, manifest: Manifest) -> str | None:
    """The job that the submission's cells recorded when they ran."""
    for units in manifest.tasks:
        for text in units:
            for event in store.attempts(text.partition("@")[0]):
                if event.get("token") == manifest.token and event.get("job"):
                    return str(event["job"]).partition("_")[0]
    return None


_STATE_OF_JOB: Mapping[jobs.JobState, TaskState] = {
    jobs.JobState.PENDING: "pending",
    jobs.JobState.REQUEUED: "pending",
    jobs.JobState.RUNNING: "running",
    jobs.JobState.SUSPENDED: "running",
}


def _tasks_in_queue(manifest: Manifest, queue: Mapping[jobs.JobKey, jobs.Job]) -> dict[TaskKey, Task]:
    lagging = time.time() - manifest.submitted < (LAG_S if manifest.job_id else UNANSWERED_S)
    found: dict[TaskKey, Task] = {}
    for index in range(len(manifest.tasks)):
        job = jobs.find_job(queue, manifest.job_id or "", index)
        if job is not None and job.name != manifest.job_name:
            job = None  # a stranger's, that has the id now
        if job is not None:
            state: TaskState = "gone" if job.state.is_over else _STATE_OF_JOB.get(job.state, "unknown")
            found[manifest.token, index] = Task(state, job)
        elif lagging:
            found[manifest.token, index] = Task("unknown")
    return found


def local_tasks(store: Store, manifest: Manifest) -> dict[TaskKey, Task]:
    """What this machine's workers still have to do of a submission."""
    home = store.job_folder(manifest.job_id or manifest.token)
    indices = range(len(manifest.tasks))
    living = local.living(home)
    if not living:
        old = time.time() - manifest.submitted > local.START_GRACE_S
        started = local.is_stopped(home) or (home / "workers").exists() or old
        return {} if started else {(manifest.token, index): Task("pending") for index in indices}
    claims = local.claims(store.job_folder(manifest.token))
    return {
        (manifest.token, index): Task("running" if index in claims else "pending")
        for index in indices
        if index not in claims or claims[index] in living
    }
