"""The plan: cells x where they stand x what they cost -> what to submit, wait for, retry or leave. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar

from models.errors import UserError
from orchestrator.grid import Cell
from orchestrator.sizing import Cost, Sizes, halved_micro_batch, packed_cost
from orchestrator.speeds import Speeds
from orchestrator.state import ENDED_WELL, LIVE, CellState, StageState, Status
from orchestrator.store import Stage, unit
from orchestrator.study import Study
from slurm.cluster import Profile, choose_partition
from slurm.failures import Cause, Death, adjusted, may_retry

Action = Literal["submit", "wait", "skip", "retry"]
Pack = int | Literal["auto"]
Hours = Literal["gpu_hours", "gpu_hours_max", "cpu_hours", "price"]

T = TypeVar("T")

PACK_MIN = 10.0  # what is expected to take less is packed with others until it takes so long
PACK_MOST = 64  # cells a job at most, where the study does not say


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCell:
    """One cell: what it costs, what is to be done about it and why.

    `stages` are those to submit; `steps` the checkpoints that an evaluation judges each alone, none for the whole cell.
    """

    cell: Cell
    params: int
    num_layers: int
    flops: float
    train: Cost
    evaluate: Cost
    action: Action
    reason: str
    stages: tuple[Stage, ...]
    steps: tuple[int, ...] = ()

    @property
    def to_do(self) -> list[Cost]:
        """The costs of the stages that would be submitted."""
        return [self.cost(stage) for stage in self.stages]

    def cost(self, stage: Stage) -> Cost:
        """The cost of a stage."""
        return self.train if stage == "train" else self.evaluate

    def to_json(self) -> dict[str, Any]:
        """The cell as `upshot plan --json` prints it."""
        return {
            "cell_id": self.cell.cell_id,
            **self.cell.recipe.model_dump(),
            "params": self.params,
            "flops": self.flops,
            "resources": {"train": asdict(self.train.resources), "evaluate": asdict(self.evaluate.resources)},
            "micro_batch": self.train.micro_batch,
            "gpu_hours": self.train.gpu_hours + self.evaluate.gpu_hours,
            "cpu_hours": self.train.cpu_hours + self.evaluate.cpu_hours,
            "limits_hit": sorted({*self.train.over, *self.evaluate.over}),
            "action": self.action,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Array:
    """One array to submit for a stage: the work of each array task, all of which ask for the very same.

    `then` is the array of the cells' evaluations, task by task; it waits for this one.
    """

    stage: Stage
    tasks: list[list[str]]
    cost: Cost
    then: "Array | None" = None

    @property
    def num_tasks(self) -> int:
        """Array tasks in the queue, those of `then` among them."""
        return len(self.tasks) + (self.then.num_tasks if self.then else 0)

    @property
    def sbatch_calls(self) -> int:
        """How often sbatch is called."""
        return 1 + (self.then.sbatch_calls if self.then else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything a submission would do. `halted` says why nothing is submitted although there is work left."""

    cells: list[PlannedCell]
    arrays: list[Array]
    num_excluded: int
    scheduler: str
    speeds: Speeds
    halted: str | None = None

    @property
    def sbatch_calls(self) -> int:
        """One for each stage of each array; none without a scheduler."""
        return sum(array.sbatch_calls for array in self.arrays) if self.scheduler == "slurm" else 0

    def hours(self, name: Hours, *, of_all: bool = False) -> float:
        """Hours (or the price) of what is to be submitted, or of the whole study."""
        costs = (cost for c in self.cells for cost in ((c.train, c.evaluate) if of_all else c.to_do))
        return float(sum(getattr(cost, name) for cost in costs))

    def to_json(self) -> dict[str, Any]:
        """What `upshot plan --json` prints."""
        return {
            "cells": [cell.to_json() for cell in self.cells],
            "gpu_hours": self.hours("gpu_hours"),
            "gpu_hours_max": self.hours("gpu_hours_max"),
            "cpu_hours": self.hours("cpu_hours"),
            "price": self.hours("price"),
            "sbatch_calls": self.sbatch_calls,
            "arrays": [{"stages": _stages(array), "tasks": len(array.tasks)} for array in self.arrays],
            "num_excluded": self.num_excluded,
            "measured": self.speeds.summary(),
            "halted": self.halted,
        }


def _stages(array: Array) -> list[str]:
    return [array.stage, *(_stages(array.then) if array.then else ())]


def make_plan(
    study: Study,
    states: list[CellState],
    sizes: Mapping[str, Sizes],
    profile: Profile,
    *,
    speeds: Speeds | None = None,
    num_excluded: int = 0,
    retry: bool = False,
    max_array_tasks: int = 1000,
    room: int | None = None,
) -> Plan:
    """What is to be done about each cell, and the arrays that do it.

    Args:
        study: what is wanted.
        states: where each cell stands.
        sizes: what each cell costs, by its id.
        profile: where it runs.
        speeds: what was measured, for the record.
        num_excluded: combinations that [[exclude]] leaves out.
        retry: whether a person asked for failed cells to be started again, whatever their budgets say.
        max_array_tasks: array tasks in one array.
        room: array tasks that the queue takes now; None for any number.
    """
    planned = [_planned(study, state, sizes[state.cell.cell_id], profile, retry=retry) for state in states]
    halted = None if retry else why_halted(study, states)
    arrays: list[Array] = []
    if halted is None:
        size = min(max_array_tasks, profile.max_array_tasks or max_array_tasks)
        # On this machine a worker does one cell after the other anyway.
        pack = 1 if profile.scheduler == "local" else study.cluster.pack
        arrays = list(_within(room, _arrays(pack, planned, size)))
    return Plan(
        cells=planned,
        arrays=arrays,
        num_excluded=num_excluded,
        scheduler=profile.scheduler,
        speeds=speeds or Speeds(),
        halted=halted,
    )


def why_halted(study: Study, states: list[CellState]) -> str | None:
    """Why the study submits nothing more: the first cells to end all died of the same code error."""
    ended = [state for state in states if state.train.status in (*ENDED_WELL, Status.FAILED)]
    if len(ended) < study.retry.stop_after:
        return None
    first = ended[0].train
    if any(state.train.cause is not Cause.CODE_ERROR or state.train.detail != first.detail for state in ended):
        return None
    return (
        f"the first {len(ended)} cells to end all died of the same error ({first.detail}): nothing more is submitted;"
        " mend it, then `upshot retry` (`upshot cancel` ends what is still queued)"
    )


# --- one cell ------------------------------------------------------------------------------------------------------


def _planned(study: Study, state: CellState, sizes: Sizes, profile: Profile, *, retry: bool) -> PlannedCell:
    train, train_vain = _after_deaths(sizes.train, state, state.train.deaths, profile, study.cluster.partition_of)
    evaluate, evaluate_vain = _after_deaths(
        sizes.evaluate,
        state,
        state.evaluate.deaths,
        profile,
        lambda recipe: study.cluster.evaluate_partition or study.cluster.partition_of(recipe),
    )
    action, reason, stages, steps = decide(
        study, state, retry=retry, vain={"train": train_vain, "evaluate": evaluate_vain}, hours=train.hours
    )
    return PlannedCell(
        cell=state.cell,
        params=sizes.params,
        num_layers=sizes.num_layers,
        flops=sizes.flops,
        train=train,
        evaluate=evaluate,
        action=action,
        reason=reason,
        stages=stages,
        steps=steps,
    )


def _after_deaths(
    cost: Cost, state: CellState, deaths: tuple[Death, ...], profile: Profile, partition_of: Any
) -> tuple[Cost, str | None]:
    """What the next start asks for after what the cell died of, and why it would be in vain, if it would."""
    if not deaths:
        return cost, None
    partition = choose_partition(profile, partition_of(state.cell.recipe))[1]
    resources, vain = adjusted(cost.resources, deaths, partition)
    changed = replace(cost, resources=resources)
    in_vain = sum(death.cause is Cause.ACCELERATOR_MEMORY for death in deaths)
    if in_vain:
        try:
            changed = replace(changed, micro_batch=halved_micro_batch(state.cell.recipe, cost, in_vain))
        except UserError as error:
            changed = replace(changed, micro_batch=1)
            vain = vain or (str(error) if deaths[-1].cause is Cause.ACCELERATOR_MEMORY else None)
    return changed, vain


def decide(
    study: Study,
    state: CellState,
    *,
    retry: bool = False,
    vain: Mapping[str, str | None] | None = None,
    hours: float = 0.0,
) -> tuple[Action, str, tuple[Stage, ...], tuple[int, ...]]:
    """(action, reason, stages to submit, checkpoints to judge each alone) for one cell.

    Args:
        study: budgets, and how long before the end of training a checkpoint is judged.
        state: where the cell stands.
        retry: whether a person asked for it.
        vain: by stage, why another start would be in vain.
        hours: what its training is expected to take.
    """
    stages: tuple[tuple[Stage, StageState], ...] = (("train", state.train), ("evaluate", state.evaluate))
    for stage, now in stages:
        to_do: tuple[Stage, ...] = ("train", "evaluate") if stage == "train" else ("evaluate",)
        steps = _open_steps(state) if stage == "evaluate" else ()
        if now.status in LIVE:
            ahead = _steps_ahead(study, state, hours) if stage == "train" else steps
            if ahead and now.status != Status.UNKNOWN:
                return "submit", f"{len(ahead)} checkpoints can be judged", ("evaluate",), ahead
            return "wait", f"{_WORDS[stage]} is {now.status}", (), ()
        if now.status == Status.FAILED:
            return _after_failure(study, stage, now, to_do, steps, retry=retry, vain=(vain or {}).get(stage))
        if now.status == Status.NEW:
            return "submit", _why_new(stage, now, state), to_do, steps
    return "skip", "training diverged; evaluated" if state.train.status == Status.DIVERGED else "done", (), ()


_WORDS: dict[Stage, str] = {"train": "training", "evaluate": "evaluation"}


def _after_failure(
    study: Study,
    stage: Stage,
    now: StageState,
    to_do: tuple[Stage, ...],
    steps: tuple[int, ...],
    *,
    retry: bool,
    vain: str | None,
) -> tuple[Action, str, tuple[Stage, ...], tuple[int, ...]]:
    failed = f"{_WORDS[stage]} failed: {now.cause}: {now.detail}"
    if retry:
        return "retry", failed, to_do, steps
    if vain is not None:
        return "skip", f"{failed}; {vain}", (), ()
    if not now.recent:
        return "skip", f"{failed}; `upshot retry` starts it again", (), ()
    again, why = may_retry(now.recent, study.retry.budgets)
    if again:
        return "retry", f"{failed}; {why}", to_do, steps
    return "skip", f"{failed}; {why}; `upshot retry` starts it again", (), ()


def _open_steps(state: CellState) -> tuple[int, ...]:
    """The checkpoints with missing evaluations that no live evaluation covers."""
    if None in state.evaluate.covered and state.train.status in ENDED_WELL:
        return ()
    missing = dict.fromkeys(step for step, _ in state.missing)
    return tuple(step for step in missing if step not in state.evaluate.covered)


def _steps_ahead(study: Study, state: CellState, hours: float) -> tuple[int, ...]:
    """The checkpoints to judge while training goes on: where that is expected to take long, and none has failed."""
    if state.train.status != Status.RUNNING or state.evaluate.deaths or not state.steps:
        return ()
    if study.downstream.checkpoints == "last":
        return ()
    left = hours * 60 * (1 - len(state.steps) / study.train.checkpoints)
    return _open_steps(state) if left >= study.downstream.ahead_min else ()


def _why_new(stage: Stage, now: StageState, state: CellState) -> str:
    if stage == "evaluate" and state.train.status in ENDED_WELL:
        return f"{len(state.missing)} evaluations are missing"
    return "not submitted yet" if now.num_attempts == 0 and now.token is None else "interrupted before its turn"


# --- arrays --------------------------------------------------------------------------------------------------------


def _arrays(pack: Pack, cells: list[PlannedCell], size: int) -> Iterator[Array]:
    """Evaluations that can start at once, then trainings with the evaluations that wait for them; dearest first."""
    to_do = sorted((c for c in cells if c.stages), key=lambda c: (-c.flops, c.cell.cell_id))
    yield from _evaluations(pack, [c for c in to_do if "train" not in c.stages], size)
    groups: dict[tuple[object, ...], list[PlannedCell]] = {}
    for cell in to_do:
        if "train" in cell.stages:
            key = (cell.train.resources.signature, cell.train.micro_batch, cell.evaluate.resources.signature)
            groups.setdefault(key, []).append(cell)
    for members in groups.values():
        packs = list(_packed(pack, members, [c.train.hours + c.evaluate.hours for c in members]))
        for start in range(0, len(packs), size):
            chunk = packs[start : start + size]
            work = [[unit(c.cell.cell_id) for c in members] for members in chunk]
            evaluate = Array(stage="evaluate", tasks=work, cost=_longest(chunk, "evaluate"))
            yield Array(stage="train", tasks=work, cost=_longest(chunk, "train"), then=evaluate)


def _evaluations(pack: Pack, cells: list[PlannedCell], size: int) -> Iterator[Array]:
    """A piece of work for each cell and checkpoint."""
    groups: dict[str, list[tuple[PlannedCell, int]]] = {}
    for cell in cells:
        for step in cell.steps:
            groups.setdefault(cell.evaluate.resources.signature, []).append((cell, step))
    for members in groups.values():
        packs = list(_packed(pack, members, [c.evaluate.hours / max(1, len(c.steps)) for c, _ in members]))
        for start in range(0, len(packs), size):
            chunk = packs[start : start + size]
            cost = _longest([[c for c, _ in pack] for pack in chunk], "evaluate")
            yield Array(stage="evaluate", tasks=[[unit(c.cell.cell_id, s) for c, s in p] for p in chunk], cost=cost)


def _packed(most: Pack, members: list[T], hours: list[float]) -> Iterator[list[T]]:
    """The members in packs that run one after the other in a job."""
    pack: list[T] = []
    filled = 0.0
    for member, one in zip(members, hours, strict=True):
        full = len(pack) >= most if most != "auto" else _is_full(pack, filled + one)
        if pack and full:
            yield pack
            pack, filled = [], 0.0
        pack.append(member)
        filled += one
    if pack:
        yield pack


def _is_full(pack: list[Any], hours: float) -> bool:
    return len(pack) >= PACK_MOST or hours * 60 > PACK_MIN


def _longest(packs: list[list[PlannedCell]], stage: Stage) -> Cost:
    """The common cost of an array, with time for the longest of its packs."""
    cost = packs[0][0].cost(stage)
    largest = max(packs, key=lambda pack: sum(cell.cost(stage).hours for cell in pack))
    return cost if len(largest) == 1 else packed_cost(cost, [cell.cost(stage) for cell in largest])


def _within(room: int | None, arrays: Iterator[Array]) -> Iterator[Array]:
    """As many array tasks as the queue takes now; the rest waits for the next look."""
    left = room
    for array in arrays:
        if left is None:
            yield array
            continue
        per_task = 2 if array.then else 1
        fitting = min(len(array.tasks), left // per_task)
        if fitting <= 0:
            return
        yield _cut(array, fitting)
        left -= fitting * per_task


def _cut(array: Array, num_tasks: int) -> Array:
    then = None if array.then is None else _cut(array.then, num_tasks)
    return replace(array, tasks=array.tasks[:num_tasks], then=then)
