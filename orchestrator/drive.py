"""Observe, plan, act: what `submit`, `retry`, `watch` and `cancel` do to a study."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from models.errors import DataError, UserError
from orchestrator import node
from orchestrator.arrays import Array
from orchestrator.attempts import retry_event
from orchestrator.images import ON_DISK, Images, recorded
from orchestrator.observe import Observation, Observer, keep_all
from orchestrator.plan import Plan
from orchestrator.private import export_lines, make_private, private_umask, refuse_unsafe, shell_check
from orchestrator.queue import local_tasks
from orchestrator.sizing import Cost
from orchestrator.snapshot import job_environment, take_snapshot
from orchestrator.spread import room_gb
from orchestrator.state import CellState
from orchestrator.store import PURPOSES, Manifest, Store, new_token, parse_unit, study_job_name
from orchestrator.study import StudyFile
from orchestrator.terminal import print_plain
from slurm import jobs, local
from slurm.cluster import Profile, ProfileError, choose_partition
from slurm.limits import refuse
from slurm.resources import LimitReachedError, SlurmError, SlurmUnreachable
from slurm.submit import SubmissionUnansweredError, submit_array

IDLE_TICKS = 10  # looks without any change, after which the next ones come less often
IDLE_FACTOR = 4.0  # at most so many times less often
MOST_REFUSALS = 5  # in a row, before a watch gives up; silence is waited out

JobFunction = Callable[[str, str, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What the jobs of one submission have in common."""

    code: Path
    function: JobFunction

    @property
    def environment(self) -> dict[str, str]:
        """What the job's Python needs to import the snapshot and to find the packaged images."""
        return job_environment(self.code)


class Driver:
    """Drives one study; whoever lets it tick holds the study's lock (`Store.driving`).

    Args:
        store: the study's folder.
        file: the study.
        profile: where it runs.
        function: what an array task calls with (study folder, token, index).
    """

    def __init__(self, store: Store, file: StudyFile, profile: Profile, function: JobFunction = node.run_task) -> None:
        self.store, self.file, self.profile, self.function = store, file, profile, function
        self.observer = Observer(store, file, profile)
        self.observer.asks_limits = True
        self._code: Path | None = None
        self.num_live = 0

    def tick(self, *, retry: bool = False, keep: Callable[[CellState], bool] = keep_all) -> Observation:
        """Looks, and submits what the plan says; the observation is that before the submission. The lock is held.

        Raises:
            SlurmUnreachable: the scheduler does not answer.
            SlurmError: it refuses.
            UserError: the study cannot be run as it is.
        """
        self.observer.writes = True
        seen = self.observer.look(retry=retry, keep=keep)
        self.num_live = seen.num_live
        if seen.never_start:
            jobs.cancel(seen.never_start)
        if retry:
            self._forgive(seen.plan)
        if seen.plan.arrays:
            refuse_what_cannot_run(seen.plan, self.profile)
            self.act(seen.plan)
        return seen

    def _forgive(self, plan: Plan) -> None:
        """Records what somebody wants tried again, so that what finds no room now is not forgotten."""
        for planned in plan.cells:
            if planned.action == "retry":
                self.store.record_attempt(planned.cell.cell_id, **retry_event(planned.stages[0]))

    def act(self, plan: Plan) -> list[Manifest]:
        """Carries out a plan.

        A limit that passes ends it early: what is left waits for the next tick.

        Raises:
            LimitReachedError: a limit that never passes, or one that passes while nothing at all could be submitted.
            SlurmError: the scheduler refuses.
        """
        refuse_unsafe(self.store.root)
        mode = int(self.profile.folder_mode, 8)
        with private_umask(mode):  # of jobs too: Slurm hands it on
            make_private(self.store.root, mode)
            self._prepare(plan)
            launch = Launch(code=self._snapshot(), function=self.function)
            if self.profile.scheduler == "local":
                return self._submit_locally(plan.arrays, launch)
            return self._submit_arrays(plan.arrays, launch)

    def _submit_arrays(self, arrays: list[Array], launch: Launch) -> list[Manifest]:
        submitted: list[Manifest] = []
        refused: SlurmError | None = None
        for array in arrays:
            if self.store.is_cancelled:
                break
            try:
                submitted += self._submit_on_slurm(array, launch)
            except SubmissionUnansweredError as error:
                print_plain(error, sys.stderr)
                break
            except SlurmError as error:
                if isinstance(error, LimitReachedError) and error.passes:
                    print_plain(f"{error}: the rest waits for room", sys.stderr)
                    break
                refused = refused or error  # of this array: the others may be welcome
                print_plain(error, sys.stderr)
        if refused is not None and not submitted:
            raise refused
        return submitted

    def _prepare(self, plan: Plan) -> None:
        self.store.write_images(self.own_images(ON_DISK))
        self.store.write_study(self.file.text, self.profile)
        cells = {planned.cell.cell_id: planned.cell for planned in plan.cells}
        ids = {parse_unit(text)[0]: None for array in plan.arrays for units in array.tasks for text in units}
        self.store.write_cells(cells[cell_id] for cell_id in ids)

    def own_images(self, images: Images) -> str | None:
        """What is to be kept of the study's own images; raises DataError where jobs would not find them."""
        study, recipes = self.file.study, (cell.recipe for cell in self.observer.cells)
        return recorded(images, study.upstream.dataset, study.downstream.tasks, recipes)

    def _snapshot(self) -> Path:
        """The code that this driver's jobs run, kept once."""
        if self._code is None:
            self._code = take_snapshot(self.store.root)
        return self._code

    def _manifest(self, array: Array, executor: Literal["local", "slurm"], launch: Launch) -> Manifest:
        return Manifest(
            token=new_token(),
            study=self.file.study.name,
            stage=array.stage,
            executor=executor,
            tasks=array.tasks,
            resources=asdict(array.cost.resources),
            submitted=time.time(),
            micro_batch=array.cost.micro_batch,
            checkpointed=array.cost.checkpointed,
            compiled=array.cost.compiled,
            peak_teraflops=array.cost.peak_teraflops,
            sharded=array.cost.sharded,
            code=launch.code.name,
        )

    # --- on Slurm --------------------------------------------------------------------------------------------------

    def _submit_on_slurm(self, array: Array, launch: Launch, after: Manifest | None = None) -> list[Manifest]:
        """The submission of an array, and of the one that waits for it."""
        answered = self._submit_anywhere(array, launch, after)
        followers = self._submit_on_slurm(array.then, launch, answered) if array.then else []
        return [answered, *followers]

    def _submit_anywhere(self, array: Array, launch: Launch, after: Manifest | None) -> Manifest:
        """The submission of one array, on nodes that failed too where Slurm has no others."""
        try:
            return self._submit_one(array, launch, after)
        except LimitReachedError as error:
            if error.passes or not array.cost.resources.exclude:
                raise
        cost = replace(array.cost, resources=replace(array.cost.resources, exclude=()))
        return self._submit_one(replace(array, cost=cost), launch, after)

    def _submit_one(self, array: Array, launch: Launch, after: Manifest | None) -> Manifest:
        """The submission of one array."""
        manifest = replace(self._manifest(array, "slurm", launch), after=after.token if after else None)
        self.store.write_manifest(manifest)
        try:
            job_id = submit_array(
                launch.function,
                [(str(self.store.root), manifest.token, index) for index in range(len(manifest.tasks))],
                folder=self.store.job_folder(manifest.token),
                job_name=manifest.job_name,
                resources=array.cost.resources,
                profile=self.profile,
                after=after.job_id if after else None,
                setup=[*export_lines(launch.environment), shell_check(self.store.job_folder(manifest.token))],
            )
        except SubmissionUnansweredError as error:
            # The controller may have it all the same: the job's name tells, and the next ticks look for it.
            raise SubmissionUnansweredError(f"{error}; the next look tells whether it was taken") from error
        except SlurmError:
            self.store.write_manifest(replace(manifest, abandoned=True))
            raise
        return self.store.set_job_id(manifest, job_id)

    # --- on this machine -------------------------------------------------------------------------------------------

    def _submit_locally(self, arrays: list[Array], launch: Launch) -> list[Manifest]:
        """One queue of all arrays, worked off by as many processes as cores, in a session of their own."""
        queue: list[Manifest] = []
        for array in arrays:
            after: Manifest | None = None
            stage: Array | None = array
            while stage is not None:
                after = replace(self._manifest(stage, "local", launch), after=after.token if after else None)
                queue.append(after)
                stage = stage.then
        home = queue[0].token
        for manifest in queue:
            self.store.write_manifest(replace(manifest, job_id=home))
        self._start_workers(queue, home, launch)
        return queue

    def _start_workers(self, queue: list[Manifest], home: str, launch: Launch) -> None:
        num_tasks = sum(len(manifest.tasks) for manifest in queue)
        workers = min(num_tasks, next(iter(self.profile.partitions.values())).cpus_per_node)
        log = self.store.job_folder(home) / "workers.log"
        tokens = ",".join(manifest.token for manifest in queue)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as output:
            started = subprocess.run(
                [sys.executable, "-m", "orchestrator.node", str(self.store.root), tokens, str(workers)],
                start_new_session=True,  # a closed terminal or Ctrl-C leaves the workers alone
                env={**os.environ, "OMP_NUM_THREADS": "1", **launch.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
            )
        if started.returncode:
            raise SlurmError(f"the workers did not start; see {log}")


def refuse_what_cannot_run(plan: Plan, profile: Profile) -> None:
    """Raises for a plan that no partition, or not the study's budget, has room for.

    Raises:
        UserError: a cell has to be sharded where that cannot be, or not even its shards fit the accelerators.
        ProfileError: a cell needs several processes, and the profile forbids srun.
        LimitReachedError: a cell needs more memory than a node has, or the plan exceeds the study's GPU-hours.
    """
    for planned in plan.cells:
        costs: list[Cost] = planned.to_do
        if any(cost.resources.num_tasks > 1 for cost in costs) and not profile.use_srun:
            raise ProfileError("use_srun is false, and cells of several processes are started by srun alone")
        recipe = planned.cell.recipe
        name = f"cell {planned.cell.cell_id} ({recipe.family} {recipe.size})"
        if planned.train in costs and planned.train.sharded:
            _refuse_shards(name, planned.train, profile)
        for cost in costs:
            if "memory" in cost.over:
                raise LimitReachedError(
                    f"{name}: needs more memory than the {cost.resources.mem_gb:g} GB of a node of partition"
                    f" {cost.resources.partition or 'local'}: leave it out by [[exclude]], or place it elsewhere"
                )


def _refuse_shards(name: str, cost: Cost, profile: Profile) -> None:
    partition, found = choose_partition(profile, cost.resources.partition)
    mend = "leave it out by [[exclude]], or place it on accelerators with more memory"
    if "accelerator" in cost.over:
        raise UserError(
            f"{name}: needs {cost.memory_gb['total']:.1f} GB on each of {cost.resources.num_accelerators} accelerators"
            f" of partition {partition}, of whose {found.accelerator_memory_gb:g} GB {room_gb(found):.3g} can be"
            f" planned: {mend}, or give it more of them (cluster.accelerators)"
        )


def submit(
    store: Store,
    file: StudyFile,
    profile: Profile,
    *,
    retry: bool = False,
    keep: Callable[[CellState], bool] = keep_all,
    function: JobFunction = node.run_task,
) -> Observation:
    """Submits what the plan says, and nothing twice; the observation is that before.

    Raises:
        DriverBusyError: another driver is at work.
        ProfileError: the cluster is not as the profile says.
        LimitReachedError: a limit or the budget refuses.
        SlurmError: the scheduler does not answer or refuses.
        DataError: something is to be submitted, and the study's own images are gone.
    """
    driver = Driver(store, file, profile, function)
    preflight(driver.observer)
    plan = driver.observer.look(retry=retry, keep=keep).plan
    if plan.over_budget:
        raise LimitReachedError(plan.over_budget)
    refuse_what_cannot_run(plan, profile)  # before anything is written
    if plan.arrays:
        driver.own_images(ON_DISK)
    with store.driving():
        store.set_cancelled(False)
        if store.study_path.exists():  # what was edited holds from now on, also if nothing is to submit
            store.write_images(driver.own_images(file.images))
            store.write_study(file.text, profile)
        return driver.tick(retry=retry, keep=keep)


def preflight(observer: Observer) -> None:
    """Raises for what would be refused whatever the study: a silent scheduler, a wrong profile, a limit of zero.

    Raises:
        SlurmUnreachable: the scheduler does not answer.
        ProfileError: the cluster is not as the profile says.
        LimitReachedError: a limit that can never be met.
    """
    if observer.profile.scheduler == "slurm":
        refuse(observer.profile, observer.ask_limits(), partitions=observer.partitions)


def watch(
    store: Store,
    file: StudyFile,
    profile: Profile,
    *,
    show: Callable[[Observation], None],
    tick_s: float,
    sleep: Callable[[float], None] = time.sleep,
    should_stop: Callable[[], bool] = lambda: False,
    function: JobFunction = node.run_task,
) -> Observation | None:
    """Drives the study until nothing is live and nothing is left to submit; returns the last observation.

    Looks come less often while nothing changes. None when it was told to stop.

    Raises:
        DriverBusyError: another driver is at work.
        SlurmError: the scheduler refuses a submission.
    """
    with store.driving() as check_lock:
        driver, idle, before, refusals = Driver(store, file, profile, function), 0, None, 0
        while not should_stop():
            check_lock()
            try:
                seen = driver.tick()
            except (SlurmError, DataError, OSError) as error:
                refusals += not isinstance(error, SlurmUnreachable)
                if refusals > MOST_REFUSALS and not driver.num_live:
                    raise
                print_plain(f"{error}; trying again", sys.stderr)
                sleep(tick_s * IDLE_FACTOR)
                continue
            refusals = 0
            show(seen)
            if seen.settled:
                return seen
            now = [(state.train.status, state.evaluate.status, state.steps) for state in seen.states]
            idle, before = (idle + 1 if now == before else 0), now
            sleep(tick_s * min(IDLE_FACTOR, max(1.0, idle / IDLE_TICKS)))
    return None


def cancel(store: Store) -> int:
    """Stops every live job of the study; how many submissions that were.

    Raises:
        SlurmError: the scheduler does not answer or refuses.
    """
    store.set_cancelled(True)  # first, so that no driver submits any more
    manifests = store.manifests()
    on_slurm = any(manifest.executor == "slurm" for manifest in manifests)
    queued = {job.name: job.array_job_id for job in jobs.query_live("upshot-").values()} if on_slurm else {}
    live = [m for m in manifests if m.job_name in queued or (any(local_tasks(store, m)) and m.executor == "local")]
    for manifest in live:
        store.write_manifest(replace(manifest, cancelled=True))  # first, so that no driver starts them again
    ids = [queued[manifest.job_name] for manifest in live if manifest.executor == "slurm"]
    of_study = {study_job_name(manifest.study, purpose) for manifest in manifests for purpose in PURPOSES}
    ids += [queued[name] for name in of_study & queued.keys()]
    if ids:
        jobs.cancel(ids)
    for home in {m.job_id or m.token for m in live if m.executor == "local"}:
        local.stop(store.job_folder(home))
    return len(live)
