"""Where a study stands now: its folder, the queue, and the deaths between them. One look is one query of the queue.

An `Observer` remembers what cannot have changed since the last look, so that a look at thousands of live cells reads
only what is new.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from models.data import describe
from orchestrator.attempts import Attempt, death_event
from orchestrator.autopsy import examine
from orchestrator.grid import Cell, cells, num_excluded
from orchestrator.plan import Plan, make_plan
from orchestrator.sizing import Sizes, size_cell
from orchestrator.speeds import Speeds, measure_speeds
from orchestrator.state import (
    ENDED_WELL,
    LIVE,
    CellFiles,
    CellState,
    Corpse,
    CorpseKey,
    Status,
    Submissions,
    Task,
    TaskKey,
    TaskState,
    find_corpses,
    index_submissions,
    judge,
    read_files,
)
from orchestrator.store import STAGES, Manifest, Stage, Store, parse_unit
from orchestrator.study import Study, StudyFile
from slurm import jobs, local
from slurm.cluster import Profile
from slurm.failures import NEVER_STARTS, Death
from slurm.limits import Limits, discover
from slurm.resources import SlurmUnreachable

LAG_S = 15.0
"""How long after a submission a job may be missing from the queue without having ended."""
UNANSWERED_S = 60.0
"""How long a submission whose answer was lost may take to appear in the queue: a busy controller takes late."""
ACCOUNTS_LAG_S = 120.0
"""How long accounts are waited for that still call a job live which the queue has forgotten."""


def keep_all(_: CellState) -> bool:
    """Every cell."""
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A study, its cells' states, and the plan that follows from them.

    `never_start` are the queued jobs that wait for what will never be; `starts_at` is when the scheduler expects the
    last pending job to start (seconds since 1970), where it says.
    """

    study: Study
    states: list[CellState]
    plan: Plan
    num_live: int = 0
    num_waiting: int = 0
    never_start: tuple[str, ...] = ()
    starts_at: float | None = None

    @property
    def settled(self) -> bool:
        """Nothing is live and nothing is to be submitted, now or once there is room."""
        live = any(stage.status in LIVE for state in self.states for stage in (state.train, state.evaluate))
        return not live and not self.plan.arrays and not self.num_waiting

    @property
    def num_failed(self) -> int:
        """Cells of which a stage failed."""
        return sum(state.status == Status.FAILED for state in self.states)


@dataclass(slots=True)
class Queue:
    """What one look at the queue gave.

    Of all the user's array tasks: those that are live, and those that the controller remembers.
    """

    tasks: dict[TaskKey, Task]
    num_live: int = 0
    num_known: int = 0
    never_start: tuple[str, ...] = ()
    starts_at: float | None = None


class Observer:
    """Looks at one study.

    Where `writes` is set, what it finds out (job ids, causes of death) is recorded: for drivers, who hold the lock.
    Where `asks_limits` is, plans keep to the scheduler's limits, which are asked for once.

    Args:
        store: the study's folder.
        file: the study.
        profile: where it runs.
        of: the cells to look at; the study's when not given.
    """

    def __init__(self, store: Store, file: StudyFile, profile: Profile, *, of: list[Cell] | None = None) -> None:
        self.store, self.study, self.profile = store, file.study, profile
        self.writes = self.asks_limits = False
        self.cells = cells(file.study, file.path) if of is None else of
        self.num_excluded = num_excluded(file.study)
        self.speeds = Speeds()
        self._limits: Limits | None = None
        self._planned_sizes: dict[str, Sizes] = {}
        self._sizes: dict[str, Sizes] = {}
        self._num_measured = 0
        self._files: dict[str, tuple[tuple[int, int], CellFiles]] = {}
        self._manifests: dict[str, tuple[tuple[int, int], Manifest]] = {}
        self._undecided_since: dict[CorpseKey, float] = {}

    def look(
        self, *, retry: bool = False, keep: Callable[[CellState], bool] = keep_all, strict: bool = True
    ) -> Observation:
        """Where the study stands, and what is to be done about the cells that `keep` keeps.

        Raises:
            SlurmUnreachable: the scheduler does not answer; without `strict`, its jobs are then unknown.
            SlurmError: it answered what cannot be read.
        """
        states, queue = self.read(strict=strict)
        self._measure(states)
        kept = [state for state in states if keep(state)]
        plan = self._plan(kept, queue, retry=retry)
        wanted = sum(bool(cell.stages) for cell in plan.cells) if plan.halted is None else 0
        return Observation(
            study=self.study,
            states=kept,
            plan=plan,
            num_live=sum(task.is_live for task in queue.tasks.values()),
            num_waiting=wanted if not plan.arrays else 0,
            never_start=queue.never_start,
            starts_at=queue.starts_at,
        )

    def read(self, *, strict: bool = True) -> tuple[list[CellState], Queue]:
        """Where every cell stands, and what the queue holds; raises as `look`."""
        queue = self._tasks(self._read_manifests(), strict=strict)
        submissions = index_submissions(self._read_manifests(), {cell.cell_id for cell in self.cells})
        files = {cell.cell_id: self._read_cell(cell.cell_id, submissions) for cell in self.cells}
        files = self._with_deaths(files, submissions, queue.tasks)
        return [judge(cell, files[cell.cell_id], submissions, queue.tasks) for cell in self.cells], queue

    @property
    def limits(self) -> Limits | None:
        """The scheduler's limits, asked for once; None without a scheduler or while it does not answer."""
        if self._limits is None and self.profile.scheduler == "slurm":
            try:
                self._limits = discover()
            except SlurmUnreachable:
                return None
        return self._limits

    # --- sizes and plan --------------------------------------------------------------------------------------------

    def _size(self, speeds: Speeds) -> dict[str, Sizes]:
        info = describe(self.study.upstream.dataset)
        return {c.cell_id: size_cell(self.study, c.recipe, info, self.profile, speeds) for c in self.cells}

    def _measure(self, states: list[CellState]) -> None:
        """Corrects the sizes by what ended stages took; anew each time as many again have ended."""
        if not self._sizes:
            self._sizes = self._planned_sizes = self._size(Speeds())
        ended: list[tuple[Stage, str, float, float]] = []
        for state in states:
            planned, family = self._planned_sizes[state.cell.cell_id], state.cell.recipe.family
            for stage in STAGES:
                now = state.train if stage == "train" else state.evaluate
                if now.status in ENDED_WELL and now.seconds:
                    ended.append((stage, family, planned.cost(stage).planned_hours * 3600, now.seconds))
        if len(ended) < max(1, 2 * self._num_measured):
            return
        self._num_measured = len(ended)
        self.speeds = measure_speeds(ended)
        self._sizes = self._size(self.speeds)

    def _plan(self, states: list[CellState], queue: Queue, *, retry: bool) -> Plan:
        limits = self.limits if self.asks_limits else None
        return make_plan(
            self.study,
            states,
            self._sizes,
            self.profile,
            speeds=self.speeds,
            num_excluded=self.num_excluded,
            retry=retry,
            max_array_tasks=limits.max_array_tasks if limits else 1000,
            room=self._room(limits, queue),
        )

    def _room(self, limits: Limits | None, queue: Queue) -> int | None:
        """Array tasks that the queue takes now, as far as limits are known; None for any number.

        What has ended counts against MaxJobCount as long as the controller remembers it, but against no submit limit.
        """
        caps = [self.profile.max_submitted, *(self._submit_limits(limits) if limits else ())]
        room = [cap - queue.num_live for cap in caps if cap is not None]
        if limits is not None:
            room.append(limits.max_job_count - 1 - queue.num_known)
        return max(0, min(room)) if room else None

    def _submit_limits(self, limits: Limits) -> list[int | None]:
        """Of every partition that the study's cells are placed on: a partition's own limits bind first."""
        places = [(name, self.profile.partitions[name]) for name in self.partitions]
        return [
            limits.submit_limit(at.account or self.profile.account, at.qos or self.profile.qos, name)
            for name, at in places
        ]

    @property
    def partitions(self) -> set[str]:
        """The partitions that the study's cells are placed on."""
        sizes = self._sizes or self._size(Speeds())
        asked = {s.cost(stage).resources.partition for s in sizes.values() for stage in STAGES}
        return {name for name in asked if name is not None}

    # --- the folder ------------------------------------------------------------------------------------------------

    def _read_manifests(self) -> list[Manifest]:
        """Every submission, oldest first; each file is parsed once."""
        folder = self.store.root / "jobs"
        if not folder.is_dir():
            return []
        found = {}
        for entry in os.scandir(folder):
            if entry.name.endswith(".json"):
                seen = entry.stat()
                token, changed = entry.name.removesuffix(".json"), (seen.st_mtime_ns, seen.st_ino)
                known = self._manifests.get(token)
                found[token] = known if known and known[0] == changed else (changed, self.store.manifest(token))
        self._manifests = found
        return sorted((m for _, m in found.values()), key=lambda m: (m.submitted, m.token))

    def _read_cell(self, cell_id: str, submissions: Submissions) -> CellFiles:
        """What the cell's folder holds; read again only if its ledger grew or one of its attempts is running."""
        if not any((stage, cell_id) in submissions for stage in STAGES):
            return CellFiles(attempts=[])
        signature = _signature(self.store.cell_folder(cell_id) / "attempts.ndjson")
        known = self._files.get(cell_id)
        if known is not None and known[0] == signature and not _is_open(known[1].attempts):
            return known[1]
        files = read_files(self.store, self.study, cell_id) if signature != (0, 0) else CellFiles(attempts=[])
        self._files[cell_id] = (signature, files)
        return files

    # --- deaths ----------------------------------------------------------------------------------------------------

    def _with_deaths(
        self, files: dict[str, CellFiles], submissions: Submissions, tasks: dict[TaskKey, Task]
    ) -> dict[str, CellFiles]:
        """The files with a death for every attempt that died; tasks of which nobody can say yet become unknown."""
        innocent = _begun(files, submissions) | _dropped(files, submissions)
        corpses = [c for cell_id, f in files.items() for c in find_corpses(cell_id, f, submissions, tasks, innocent)]
        if not corpses:
            return files
        findings = examine(self.store, corpses, is_patient=self._is_patient)
        for corpse in findings.undecided:
            tasks[corpse.submitted.key] = Task("unknown", corpse.task.job)
        found = dict(files)
        for corpse in corpses:
            if corpse.key in findings.deaths:
                found[corpse.cell_id] = self._bury(corpse, findings.deaths[corpse.key], found[corpse.cell_id])
        return found

    def _is_patient(self, corpse: Corpse) -> bool:
        first = self._undecided_since.setdefault(corpse.key, time.monotonic())
        return time.monotonic() - first < ACCOUNTS_LAG_S

    def _bury(self, corpse: Corpse, death: Death, files: CellFiles) -> CellFiles:
        """The cell's files with the death in them; recorded in the ledger by a driver."""
        if self.writes:
            self.store.record_attempt(corpse.cell_id, **death_event(corpse.attempt, death))
        dead = replace(corpse.attempt, death=death)
        attempts = [dead if _same(attempt, dead) else attempt for attempt in files.attempts]
        return replace(files, attempts=attempts if corpse.attempt.number else [*attempts, dead])

    # --- the queue -------------------------------------------------------------------------------------------------

    def _tasks(self, manifests: list[Manifest], *, strict: bool) -> Queue:
        """What is live, by token and array index; adopts jobs whose id was never recorded."""
        queue = Queue({})
        for manifest in manifests:
            if manifest.executor == "local" and not manifest.abandoned:
                queue.tasks |= local_tasks(self.store, manifest)
        on_slurm = [m for m in manifests if m.executor == "slurm" and not m.abandoned]
        if not on_slurm and self.profile.scheduler != "slurm":
            return queue
        try:
            self._tasks_on_slurm(on_slurm, queue)
        except SlurmUnreachable:
            if strict and on_slurm:
                raise
            # Its silence is never read as an end: what has no record of one is unknown.
            queue.tasks |= {(m.token, index): Task("unknown") for m in on_slurm for index in range(len(m.tasks))}
        return queue

    def _tasks_on_slurm(self, manifests: list[Manifest], queue: Queue) -> None:
        everything = jobs.query_queue("")
        ours = {key: job for key, job in everything.items() if job.name.startswith("upshot-")}
        by_name = {job.name: job.array_job_id for job in ours.values()}
        queue.num_known = len(everything)
        queue.num_live = sum(not job.state.is_over for job in everything.values())
        for manifest in manifests:
            found = manifest if manifest.job_id else self._adopted(manifest, by_name)
            if found is not None:
                queue.tasks |= _tasks_in_queue(found, ours)
        live = [task.job for task in queue.tasks.values() if task.is_live and task.job is not None]
        queue.never_start = tuple(job.job_id for job in live if job.reason in NEVER_STARTS)
        starts = [j.start_time.timestamp() for j in live if j.state is jobs.JobState.PENDING and j.start_time]
        queue.starts_at = max(starts, default=None)

    def _adopted(self, manifest: Manifest, by_name: Mapping[str, str]) -> Manifest | None:
        """The manifest of a submission whose answer was lost, with the id of the job that it became.

        None once the scheduler is taken never to have got it: then it is abandoned, and its cells are new again.
        """
        job_id = by_name.get(manifest.job_name) or self._recorded_job(manifest)
        if job_id is not None:
            return self.store.set_job_id(manifest, job_id) if self.writes else replace(manifest, job_id=job_id)
        if time.time() - manifest.submitted < UNANSWERED_S:
            return manifest
        if self.writes:
            self.store.write_manifest(replace(manifest, abandoned=True))
        return None

    def _recorded_job(self, manifest: Manifest) -> str | None:
        """The job that the submission's cells recorded when they ran."""
        for units in manifest.tasks:
            for text in units:
                for event in self.store.attempts(text.partition("@")[0]):
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


def _signature(path: Path) -> tuple[int, int]:
    try:
        seen = path.stat()
    except FileNotFoundError:
        return 0, 0
    return seen.st_mtime_ns, seen.st_size


def _is_open(attempts: Iterable[Attempt]) -> bool:
    """Whether an attempt may be running: checkpoints and results appear without a word in the ledger."""
    return any(attempt.outcome is None and attempt.death is None for attempt in attempts)


def _same(one: Attempt, other: Attempt) -> bool:
    keys = [(attempt.stage, attempt.number, attempt.token, attempt.step) for attempt in (one, other)]
    return keys[0] == keys[1] and one.number > 0


def _begun(files: Mapping[str, CellFiles], submissions: Submissions) -> set[TaskKey]:
    """The array tasks with several pieces of work in which any began."""
    found = set()
    for (stage, cell_id), submitted in submissions.items():
        packed = [s for s in submitted if len(s.manifest.tasks[s.index]) > 1]
        tokens = {a.token for a in files[cell_id].attempts if a.stage == stage and a.number} if packed else set()
        found |= {s.key for s in packed if s.manifest.token in tokens}
    return found


def _dropped(files: Mapping[str, CellFiles], submissions: Submissions) -> set[TaskKey]:
    """The array tasks of packed evaluations that wait for a job that did not end well: one of its cells did not."""
    trained = {
        (cell_id, attempt.token)
        for cell_id, f in files.items()
        for attempt in f.attempts
        if attempt.stage == "train" and not attempt.ended_badly
    }
    found = set()
    for (stage, _), submitted in submissions.items():
        for s in submitted if stage == "evaluate" else ():
            pack, after = s.manifest.tasks[s.index], s.manifest.after
            if after is not None and any((parse_unit(text)[0], after) not in trained for text in pack):
                found.add(s.key)
    return found
