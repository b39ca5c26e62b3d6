"""What an array task of a job runs, and what a worker of this machine runs in its place."""

import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.node.bodies import BODIES, show, training_ended
from orchestrator.node.work import BUSY, Body, StopRequest, Work, logged, own_job_id, run_work
from orchestrator.store import Manifest, Stage, Store, parse_unit
from slurm import launch, local
from slurm.jobs import requeue

if TYPE_CHECKING:
    from models.distributed import World

IDLE_S = 0.2  # between two looks for a task whose cell is still being trained


class CellsFailedError(RuntimeError):
    """Some cells of a job failed, so that the scheduler counts the job as failed too."""


def run_task(study_dir: str, token: str, index: int, bodies: Mapping[Stage, Body] | None = None) -> None:
    """Runs array task `index` of a submission; near its time limit it requeues itself, if it came any further.

    Raises:
        CellsFailedError: a cell failed; the others were run all the same.
    """
    store = Store(Path(study_dir))
    manifest = store.manifest(token)
    if manifest.abandoned:
        print("this submission was given up, and its cells submitted anew: nothing to do", flush=True)
        return
    stop = StopRequest(manifest.resources.get("time_min"))
    stop.listen()
    num_tasks = len(manifest.tasks[index])
    with _world(store, manifest) as world:
        outcomes: dict[str, str] = {}
        for text in manifest.tasks[index]:
            cell_id, step = parse_unit(text)
            work = Work(store=store, manifest=manifest, cell_id=cell_id, step=step, stop=stop, world=world)
            work.agree_to_stop()
            if stop:
                break
            outcomes[text] = _do(work, (bodies or BODIES)[manifest.stage])
            if world is not None and outcomes[text] == "failed":
                break  # one process may be in the middle of what the others have left: they part
        if "failed" in outcomes.values() and world is not None:
            raise _failure(manifest, outcomes)
    _end_job(manifest, stop, outcomes, leads=world is None or world.rank == 0, num_tasks=num_tasks)


def _do(work: Work, body: Body) -> str:
    """Does one piece of work and shows what came of it; the outcome is that of `run_work`."""
    outcome = run_work(work, body)
    if work.leads and outcome != BUSY:
        with logged(work):
            show(work, outcome)
    return outcome


def _end_job(manifest: Manifest, stop: StopRequest, outcomes: dict[str, str], *, leads: bool, num_tasks: int) -> None:
    """Leaves as the scheduler is to see it: requeued, stopped, failed or well."""
    unfinished = len(outcomes) < num_tasks or "interrupted" in outcomes.values()
    if stop.signal == signal.SIGUSR2 and unfinished and leads:
        requeue(own_job_id() or "")
    if stop.signal == signal.SIGUSR2 and unfinished and not leads:
        return  # an exit code other than 0 would end the step while the leading process asks for the requeue
    if unfinished:
        sys.exit("requeued: told to stop, to go on later" if stop.signal == signal.SIGUSR2 else "stopped")
    # What another attempt is still at is not done either: an evaluation that waits for this job is not to start.
    if {"failed", BUSY} & set(outcomes.values()):
        raise _failure(manifest, outcomes)


def _failure(manifest: Manifest, outcomes: dict[str, str]) -> CellsFailedError:
    failed = [text for text, outcome in outcomes.items() if outcome in ("failed", BUSY)]
    cell_id = parse_unit(failed[0])[0]
    return CellsFailedError(f"{manifest.stage} failed: {', '.join(failed)} (`upshot why {cell_id}` tells why)")


@contextmanager
def _world(store: Store, manifest: Manifest) -> "Iterator[World | None]":
    """The processes of this step that train together; None for one that is alone."""
    asked = manifest.resources
    # A batch script that was submitted from inside a step has inherited that step's variables.
    rank = launch.own_rank() if asked.get("tasks_per_node", 1) * asked.get("num_nodes", 1) > 1 else launch.Rank()
    if rank.size == 1:
        yield None
        return
    from models.distributed import World

    with (
        launch.meet(rank, store.job_folder(manifest.token)) as point,
        World.formed(
            rank=rank.rank,
            size=rank.size,
            local_rank=rank.local_rank,
            host=point.host,
            port=point.port,
            listen_fd=point.listener.fileno() if point.listener else None,
        ) as world,
    ):
        yield world


def run_queue(study_dir: str, tokens: str, worker: str) -> None:
    """Works off the array tasks of several submissions, as one of several workers on this machine.

    `tokens` are separated by commas; the claims and the living of a queue are kept in the first one's folder. An
    evaluation is taken once its cell's training has ended, and dropped if that failed.
    """
    store, stop = Store(Path(study_dir)), StopRequest()
    stop.listen()
    queue = [store.manifest(token) for token in tokens.split(",")]
    with local.alive(store.job_folder(queue[0].token), worker):
        waiting = _in_order(queue)
        while waiting and not stop and not local.is_stopped(store.job_folder(queue[0].token)):
            waiting, took = _take_one(store, waiting, queue[0].token, worker, stop)
            if not took and waiting:
                if not store.root.exists():  # removed under its workers: nothing will ever be ready
                    return
                time.sleep(IDLE_S)


def _in_order(queue: list[Manifest]) -> list[tuple[Manifest, int]]:
    """Training and evaluation of a cell side by side, so that results come in as cells finish."""
    tasks = [(manifest, index) for manifest in queue for index in range(len(manifest.tasks))]
    return sorted(tasks, key=lambda task: (task[1], queue.index(task[0])))


def _take_one(
    store: Store, waiting: list[tuple[Manifest, int]], home: str, worker: str, stop: StopRequest
) -> tuple[list[tuple[Manifest, int]], bool]:
    """What is still waiting after one task was run, and whether one was."""
    for position, (manifest, index) in enumerate(waiting):
        ready = _ready(store, manifest, index, home)
        if ready == "later":
            continue
        rest = waiting[:position] + waiting[position + 1 :]
        if not local.claim(store.job_folder(manifest.token), index, worker) or ready == "never":
            return rest, True
        for text in manifest.tasks[index]:
            cell_id, step = parse_unit(text)
            work = Work(store=store, manifest=manifest, cell_id=cell_id, step=step, stop=stop)
            _do(work, BODIES[manifest.stage])
        return rest, True
    return waiting, False


def _ready(store: Store, manifest: Manifest, index: int, home: str) -> str:
    """'now', 'later' or 'never': whether the cells' training lets an evaluation start."""
    if manifest.after is None:
        return "now"
    claimant = local.claimant(store.job_folder(manifest.after), index)
    if claimant is None:
        return "later"
    ended = [training_ended(store, parse_unit(text)[0], manifest.after) for text in manifest.tasks[index]]
    if all(outcome is not None for outcome in ended):
        return "now" if set(ended) <= {"done", "diverged"} else "never"
    return "later" if local.is_alive(store.job_folder(home), claimant) else "never"
