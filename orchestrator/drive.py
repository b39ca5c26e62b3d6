"""Observe, plan, act: what `submit`, `watch` and every command that reads a study's state do."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from models.errors import UserError
from orchestrator import node
from orchestrator.grid import cells, num_excluded
from orchestrator.plan import Array, Plan, make_plan
from orchestrator.state import LIVE, CellState, Live, Status, read_states
from orchestrator.store import Manifest, Stage, Store, new_token
from orchestrator.study import Study, StudyFile
from slurm import jobs, local
from slurm.cluster import Profile
from slurm.resources import SlurmError, SlurmUnreachable
from slurm.submit import submit_array

LAG_S = 15.0
"""How long after a submission a job may be missing from the queue without having ended."""

LiveState = Literal["pending", "running", "unknown"]


@dataclass(frozen=True, slots=True)
class Observation:
    """A study, its cells' states, and the plan that follows from them."""

    study: Study
    states: list[CellState]
    plan: Plan

    @property
    def settled(self) -> bool:
        """Nothing is live and nothing is to be submitted."""
        live = any(stage.status in LIVE for state in self.states for stage in (state.train, state.evaluate))
        return not live and not self.plan.arrays

    @property
    def num_failed(self) -> int:
        """Cells of which a stage failed."""
        return sum(state.status == Status.FAILED for state in self.states)


def observe(
    store: Store,
    file: StudyFile,
    profile: Profile,
    *,
    retry: bool = False,
    keep: Callable[[CellState], bool] = lambda _: True,
    strict: bool = True,
) -> Observation:
    """Where the study stands, and what is to be done about the cells that `keep` keeps.

    Raises:
        UserError: the study makes no cells.
        SlurmError: the scheduler does not answer; without `strict`, its jobs are then unknown.
    """
    study = file.study
    live = live_tasks(store, strict=strict)
    states = [s for s in read_states(store, study, cells(study, file.path), live) if keep(s)]
    plan = make_plan(study, states, profile, num_excluded=num_excluded(study), retry=retry)
    return Observation(study, states, plan)


def live_tasks(store: Store, *, strict: bool = True) -> Live:
    """By token and array index, what has not ended; adopts jobs whose id was never recorded.

    Raises:
        SlurmUnreachable: Slurm jobs were submitted, Slurm does not answer, and `strict` forbids to call them unknown.
    """
    manifests = store.manifests()
    live: dict[tuple[str, int], LiveState] = {}
    for manifest in manifests:
        if manifest.executor == "local":
            live |= _live_locally(store, manifest)
    on_slurm = [manifest for manifest in manifests if manifest.executor == "slurm"]
    if on_slurm:
        try:
            live |= _live_on_slurm(store, on_slurm)
        except SlurmUnreachable:
            if strict:
                raise
            # Its silence is never read as an end: what has no record of one is unknown.
            live |= {(m.token, index): "unknown" for m in on_slurm for index in range(len(m.tasks))}
    return live


def _live_locally(store: Store, manifest: Manifest) -> dict[tuple[str, int], LiveState]:
    home = store.job_folder(manifest.job_id or manifest.token)
    living = local.living(home)
    if not living:
        started = (
            local.is_stopped(home)
            or (home / "workers").exists()
            or time.time() - manifest.submitted > local.START_GRACE_S
        )
        return {} if started else {(manifest.token, i): "pending" for i in range(len(manifest.tasks))}
    claims = local.claims(store.job_folder(manifest.token))
    return {
        (manifest.token, index): "running" if index in claims else "pending"
        for index in range(len(manifest.tasks))
        if index not in claims or claims[index] in living
    }


def _live_on_slurm(store: Store, manifests: list[Manifest]) -> dict[tuple[str, int], LiveState]:
    queue = jobs.query_live("upshot-")
    by_name = {job.name: job.array_job_id for job in queue.values()}
    live: dict[tuple[str, int], LiveState] = {}
    for manifest in manifests:
        found = manifest
        if manifest.job_id is None and manifest.job_name in by_name:
            found = store.set_job_id(manifest, by_name[manifest.job_name])
        live |= _tasks_in_queue(found, queue)
    return live


def _tasks_in_queue(manifest: Manifest, queue: dict[jobs.JobKey, jobs.Job]) -> dict[tuple[str, int], LiveState]:
    lagging = time.time() - manifest.submitted < LAG_S
    live: dict[tuple[str, int], LiveState] = {}
    for index in range(len(manifest.tasks)):
        job = jobs.find_job(queue, manifest.job_id or "", index)
        if job is not None:
            live[(manifest.token, index)] = _LIVE_STATES.get(job.state, "unknown")
        elif lagging:
            live[(manifest.token, index)] = "unknown"
    return live


_LIVE_STATES: dict[jobs.JobState, LiveState] = {
    jobs.JobState.PENDING: "pending",
    jobs.JobState.REQUEUED: "pending",
    jobs.JobState.RUNNING: "running",
    jobs.JobState.SUSPENDED: "running",
}


def submit(
    store: Store,
    file: StudyFile,
    profile: Profile,
    *,
    retry: bool = False,
    keep: Callable[[CellState], bool] = lambda _: True,
) -> Observation:
    """Submits what the plan says, and nothing twice; the observation is that before.

    Raises:
        DriverBusyError: another driver is at work.
        SlurmError: the scheduler does not answer or refuses.
    """
    if profile.scheduler == "slurm":
        jobs.query_live(f"upshot-{file.study.name}-")  # a silent scheduler is met before anything is written
    with store.driving():
        seen = observe(store, file, profile, retry=retry, keep=keep)
        refuse_several_accelerators(seen.plan)
        act(store, file, profile, seen.plan)
    return seen


def refuse_several_accelerators(plan: Plan) -> None:
    """A cell trains on one accelerator; asking for more would hold them idle, or train the cell on each node."""
    for planned in plan.cells:
        asked = planned.train.resources
        if planned.to_do and asked.accelerators * asked.num_nodes > 1:
            raise UserError(
                f"cell {planned.cell.cell_id} ({planned.cell.recipe.family} {planned.cell.recipe.size}) needs"
                f" {asked.accelerators * asked.num_nodes} accelerators, and a cell can only be trained on one yet:"
                " leave it out by [[exclude]], or give it a smaller batch"
            )


def act(store: Store, file: StudyFile, profile: Profile, plan: Plan) -> list[Manifest]:
    """Carries out a plan; the caller holds the driver lock."""
    if not plan.arrays:
        return []
    store.write_study(file.text, profile)
    for array in plan.arrays:
        for planned in array.cells:
            store.write_cell(planned.cell)
    if profile.scheduler == "local":
        return _submit_locally(store, file.study, profile, plan.arrays)
    return [m for array in plan.arrays for m in _submit_on_slurm(store, file.study, profile, array)]


def _manifests(study: Study, array: Array, executor: Literal["local", "slurm"]) -> Iterator[Manifest]:
    """One for each stage that the array's cells need; the second waits for the first."""
    after: str | None = None
    stages: list[Stage] = [stage for stage in ("train", "evaluate") if stage in array.stages]
    for stage in stages:
        cost = array.cells[0].train if stage == "train" else array.cells[0].evaluate
        manifest = Manifest(
            token=new_token(),
            study=study.name,
            stage=stage,
            executor=executor,
            tasks=[[planned.cell.cell_id] for planned in array.cells],
            resources=asdict(cost.resources),
            submitted=time.time(),
            after=after,
        )
        after = manifest.token
        yield manifest


def _submit_on_slurm(store: Store, study: Study, profile: Profile, array: Array) -> list[Manifest]:
    submitted: list[Manifest] = []
    for manifest in _manifests(study, array, "slurm"):
        store.write_manifest(manifest)
        cost = array.cells[0].train if manifest.stage == "train" else array.cells[0].evaluate
        job_id = submit_array(
            node.run_task,
            [(str(store.root), manifest.token, index) for index in range(len(manifest.tasks))],
            folder=store.job_folder(manifest.token),
            job_name=manifest.job_name,
            resources=cost.resources,
            profile=profile,
            after=submitted[-1].job_id if submitted else None,
        )
        submitted.append(store.set_job_id(manifest, job_id))
    return submitted


def _submit_locally(store: Store, study: Study, profile: Profile, arrays: list[Array]) -> list[Manifest]:
    """One queue of all arrays, worked off by as many processes as cores, in a session of their own."""
    queue = [manifest for array in arrays for manifest in _manifests(study, array, "local")]
    home = queue[0].token
    for manifest in queue:
        store.write_manifest(replace(manifest, job_id=home))
    num_tasks = sum(len(manifest.tasks) for manifest in queue)
    workers = min(num_tasks, next(iter(profile.partitions.values())).cpus_per_node)
    log = store.job_folder(home) / "workers.log"
    tokens = ",".join(manifest.token for manifest in queue)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output:
        started = subprocess.run(
            [sys.executable, "-m", "orchestrator.node", str(store.root), tokens, str(workers)],
            start_new_session=True,  # a closed terminal or Ctrl-C leaves the workers alone
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _python_path()},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        )
    if started.returncode:
        raise SlurmError(f"the workers did not start; see {log}")
    return queue


def _python_path() -> str:
    """The folder of the packages first, so that workers run this code whatever their working directory."""
    here = str(Path(__file__).resolve().parent.parent)
    return os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))


def watch(
    store: Store,
    file: StudyFile,
    profile: Profile,
    *,
    show: Callable[[Observation], None],
    tick_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> Observation:
    """Drives the study until nothing is live and nothing is left to submit; returns the last observation.

    Raises:
        DriverBusyError: another driver is at work.
        SlurmError: the scheduler refuses a submission.
    """
    with store.driving() as check_lock:
        while True:
            check_lock()
            try:
                seen = observe(store, file, profile)
            except SlurmUnreachable as error:
                print(f"{error}; trying again", file=sys.stderr)
                sleep(tick_s)
                continue
            show(seen)
            if seen.settled:
                return seen
            act(store, file, profile, seen.plan)
            sleep(tick_s)


def cancel(store: Store) -> int:
    """Stops every live job of the study; how many submissions that were."""
    manifests = {token for token, _ in live_tasks(store)}
    stopped = [store.manifest(token) for token in sorted(manifests)]
    on_slurm = [m.job_id for m in stopped if m.executor == "slurm" and m.job_id]
    if on_slurm:
        jobs.cancel(on_slurm)
    for home in {m.job_id or m.token for m in stopped if m.executor == "local"}:
        local.stop(store.job_folder(home))
    return len(stopped)
