"""Where a study stands now: its folder, the queue, and the deaths between them. One look is one query of the queue.

An `Observer` remembers what cannot have changed since the last look, so that a look at thousands of live cells reads
only what is new.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from models.recipe import Recipe
from orchestrator.attempts import Attempt, death_event
from orchestrator.autopsy import examine
from orchestrator.grid import Cell, cells, num_excluded
from orchestrator.plan import Plan, make_plan
from orchestrator.queue import Queue, look_at_queue
from orchestrator.sizing import Sizes, size_cell
from orchestrator.speeds import Speeds, measure_speeds, measured_as
from orchestrator.state import (
    ENDED_WELL,
    LIVE,
    CellFiles,
    CellState,
    Corpse,
    CorpseKey,
    Status,
    find_corpses,
    judge,
    read_files,
)
from orchestrator.store import STAGES, Manifest, Stage, Store, parse_unit
from orchestrator.study import Study, StudyFile
from orchestrator.submissions import Submissions, Task, TaskKey, index_submissions
from orchestrator.trunks import shares_in_common
from slurm.cluster import Profile
from slurm.failures import Death
from slurm.limits import Limits, discover
from slurm.resources import SlurmUnreachable

CANCELLED = "the study was cancelled: nothing more is submitted until `upshot submit` or `upshot retry`"
FREE_AXES = frozenset(
    (
        "learning_rate",
        "weight_decay",
        "head_learning_rate",
        "head_weight_decay",
        "warmup",
        "schedule",
        "clip_norm",
        "label_smoothing",
        "drop_path",
        "flip",
        "mixup",
        "seed",
    )
)
"""The axes that change nothing of what a cell costs."""
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
        self.store, self.study, self.images, self.profile = store, file.study, file.images, profile
        self.writes = self.asks_limits = False
        self.cells = cells(file.study, file.path, file.images) if of is None else of
        self.num_excluded = num_excluded(file.study)
        self.speeds = Speeds()
        self._limits: Limits | None = None
        self._planned_sizes: dict[str, Sizes] = {}
        self._sizes: dict[str, Sizes] = {}
        self._num_measured: Counter[Stage] = Counter()
        self._gpu_hours_bound = 0.0
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
        self._gpu_hours_bound = self._bound(states)
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
        queue = look_at_queue(
            self.store,
            self._read_manifests(),
            on_slurm=self.profile.scheduler == "slurm",
            strict=strict,
            writes=self.writes,
        )
        submissions = index_submissions(self._read_manifests(), {cell.cell_id for cell in self.cells})
        files = {cell.cell_id: self._read_cell(cell.cell_id, submissions) for cell in self.cells}
        files = self._with_deaths(files, submissions, queue)
        return [judge(cell, files[cell.cell_id], submissions, queue.tasks) for cell in self.cells], queue

    @property
    def limits(self) -> Limits | None:
        """The scheduler's limits, asked for once; None without a scheduler or while it does not answer."""
        if self.profile.scheduler == "slurm":
            with suppress(SlurmUnreachable):
                return self.ask_limits()
        return None

    def ask_limits(self) -> Limits:
        """The scheduler's limits, asked for once.

        Raises:
            SlurmUnreachable: it does not answer.
            SlurmError: it answered what cannot be read.
        """
        self._limits = self._limits or discover()
        return self._limits

    # --- sizes and plan --------------------------------------------------------------------------------------------

    def _size(self, speeds: Speeds) -> dict[str, Sizes]:
        """Every cell's sizes: computed once for all that differ only in what neither costs nor places."""
        places = {axis for place in self.study.cluster.place for axis in place.where}
        costly = [axis for axis in Recipe.model_fields if axis not in FREE_AXES - places]
        known: dict[tuple[object, ...], Sizes] = {}
        found = {}
        for cell in self.cells:
            key = (*(getattr(cell.recipe, axis) for axis in costly), self.images.kept(cell.recipe))
            if key not in known:
                known[key] = size_cell(self.study, cell.recipe, self.images, self.profile, speeds)
            found[cell.cell_id] = known[key]
        return found

    def _need_sizes(self) -> dict[str, Sizes]:
        if not self._sizes:
            self._sizes = self._planned_sizes = self._size(Speeds())
        return self._sizes

    def _measure(self, states: list[CellState]) -> None:
        """Corrects the sizes by what ended stages took; anew each time as many again of one stage have ended."""
        self._need_sizes()
        ended: list[tuple[Stage, str, float, float]] = []
        for state in states:
            planned, family = self._planned_sizes[state.cell.cell_id], measured_as(state.cell.recipe)
            for stage in STAGES:
                now = state.train if stage == "train" else state.evaluate
                if now.status in ENDED_WELL and now.work_seconds:
                    ended.append((stage, family, planned.cost(stage).planned_hours * 3600, now.work_seconds))
        numbers = Counter(stage for stage, *_ in ended)
        if all(numbers[stage] < max(1, 2 * self._num_measured[stage]) for stage in STAGES):
            return
        self._num_measured = numbers
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
            gpu_hours_bound=self._gpu_hours_bound,
            halted=CANCELLED if self.store.is_cancelled else None,
        )

    def _bound(self, states: list[CellState]) -> float:
        """GPU-hours that attempts have used, and that live ones are expected to use."""
        hours, shares = 0.0, self._shares_in_jobs(states)
        for state in states:
            for stage in STAGES:
                now = state.train if stage == "train" else state.evaluate
                cost = self._sizes[state.cell.cell_id].cost(stage)
                own = 1 - shares.get(state.cell.cell_id, 0.0) if stage == "train" else 1.0
                live = cost.gpu_hours * own if now.status in LIVE else 0.0
                hours += now.seconds / 3600 * cost.resources.num_accelerators + live
        return hours

    def _shares_in_jobs(self, states: list[CellState]) -> dict[str, float]:
        """By cell id, what part of its steps a shorter cell takes that was submitted with it and is live too."""
        live: dict[str | None, list[Cell]] = {}
        for state in states:
            if state.train.status in LIVE:
                live.setdefault(state.train.token, []).append(state.cell)
        found: dict[str, float] = {}
        for together in live.values():
            found |= shares_in_common(together, self._sizes, self.study.cluster.pack)
        return found

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
        sizes = {id(size): size for size in self._need_sizes().values()}.values()
        asked = {s.cost(stage).resources.partition for s in sizes for stage in STAGES}
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
        signature = self.store.ledger_signature(cell_id)
        known = self._files.get(cell_id)
        unchanged = known is not None and known[0] == signature
        if known is not None and unchanged and not _is_open(known[1]):
            return known[1]
        attempts = known[1].attempts if known is not None and unchanged else None
        nothing = signature == (0, 0)
        files = CellFiles(attempts=[]) if nothing else read_files(self.store, self.study, cell_id, attempts)
        self._files[cell_id] = (signature, files)
        return files

    # --- deaths ----------------------------------------------------------------------------------------------------

    def _with_deaths(self, files: dict[str, CellFiles], submissions: Submissions, queue: Queue) -> dict[str, CellFiles]:
        """The files with a death for every attempt that died; tasks of which nobody can say yet become unknown."""
        innocent = _begun(files, submissions) | _dropped(files, submissions)
        corpses = [
            corpse
            for cell_id, f in files.items()
            for corpse in find_corpses(cell_id, f, submissions, queue.tasks, innocent, queue.asked_at)
        ]
        if not corpses:
            return files
        findings = examine(self.store, corpses, is_patient=self._is_patient)
        for corpse in findings.undecided:
            queue.tasks[corpse.submitted.key] = Task("unknown", corpse.task.job)
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


def _is_open(files: CellFiles) -> bool:
    """Whether files may appear without a word in the ledger.

    An attempt may be running; or what one has left is not to be seen yet, as NFS has it.
    """
    ended = {attempt.stage for attempt in files.attempts if attempt.outcome == "done"}
    lacks = ("train" in ended and not files.steps) or ("evaluate" in ended and bool(files.missing))
    return lacks or any(attempt.outcome is None and attempt.death is None for attempt in files.attempts)


def _same(one: Attempt, other: Attempt) -> bool:
    keys = [(attempt.stage, attempt.number, attempt.token, attempt.step) for attempt in (one, other)]
    return keys[0] == keys[1] and one.number > 0


def _begun(files: Mapping[str, CellFiles], submissions: Submissions) -> set[TaskKey]:
    """The array tasks with several pieces of work in which any began."""
    found = set()
    for (stage, cell_id), submitted in submissions.items():
        packed = [s for s in submitted if len(s.manifest.tasks[s.index]) > 1]
        began = {(a.token, a.step) for a in files[cell_id].attempts if a.stage == stage and a.number} if packed else ()
        found |= {s.key for s in packed if (s.manifest.token, s.step) in began}
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
