"""The plan: cells x where they stand x what they cost -> what to submit, wait for, retry or leave. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from models.errors import UserError
from models.recipe import Recipe
from orchestrator.arrays import Action, Array, PlannedCell, make_arrays, within_room
from orchestrator.sizing import Cost, Sizes, with_less_memory
from orchestrator.speeds import Speeds
from orchestrator.state import ENDED_WELL, LIVE, CellState, StageState, Status
from orchestrator.store import STAGES, Stage
from orchestrator.study import Study
from orchestrator.trunks import shares_in_common, with_trunks
from slurm.cluster import Profile, choose_partition
from slurm.failures import Cause, Death, adjusted, may_retry

Hours = Literal["gpu_hours", "cpu_hours", "price"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything a submission would do. `halted` says why nothing is submitted although there is work left.

    `gpu_hours_max` are the accelerator-hours of all jobs that are left to submit, each at its time limit.
    """

    cells: list[PlannedCell]
    arrays: list[Array]
    num_excluded: int
    scheduler: str
    speeds: Speeds
    gpu_hours_max: float = 0.0
    halted: str | None = None
    over_budget: str | None = None

    @property
    def sbatch_calls(self) -> int:
        """One for each stage of each array; none without a scheduler."""
        return sum(array.sbatch_calls for array in self.arrays) if self.scheduler == "slurm" else 0

    def hours(self, name: Hours, *, of_all: bool = False) -> float:
        """Hours (or the price) of what is to be submitted, or of the whole study; steps in common count once."""
        of_cells = ([c.cost_in_study(stage) for stage in STAGES] if of_all else c.to_do for c in self.cells)
        return float(sum(getattr(cost, name) for costs in of_cells for cost in costs))

    def to_json(self) -> dict[str, Any]:
        """What `upshot plan --json` prints."""
        return {
            "cells": [cell.to_json() for cell in self.cells],
            "gpu_hours": self.hours("gpu_hours"),
            "gpu_hours_max": self.gpu_hours_max,
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
    gpu_hours_bound: float = 0.0,
    halted: str | None = None,
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
        gpu_hours_bound: what the whole study has used, and what is under way is expected to use.
        halted: why nothing is to be submitted, where it is not the plan that tells.
    """
    shares = shares_in_common((state.cell for state in states), sizes, study.cluster.pack)
    planned = [_planned(study, state, sizes[state.cell.cell_id], profile, shares, retry=retry) for state in states]
    planned = with_trunks(_with_common_exclusions(planned), study.cluster.pack)
    halted = halted or (None if retry else why_halted(study, states))
    wanted = sum(cost.gpu_hours for cell in planned for cost in cell.to_do)
    over_budget = _over_budget(study, gpu_hours_bound, wanted)
    size = min(max_array_tasks, profile.max_array_tasks or max_array_tasks)
    # On this machine a worker does one cell after the other anyway.
    pack = 1 if profile.scheduler == "local" else study.cluster.pack
    jobs = list(make_arrays(pack, planned, size))
    return Plan(
        cells=planned,
        arrays=[] if halted or over_budget else list(within_room(room, iter(jobs))),
        gpu_hours_max=sum(array.gpu_hours_max for array in jobs),
        num_excluded=num_excluded,
        scheduler=profile.scheduler,
        speeds=speeds or Speeds(),
        halted=halted or over_budget,
        over_budget=over_budget,
    )


def _with_common_exclusions(cells: list[PlannedCell]) -> list[PlannedCell]:
    """Cells that failed on nodes leave out the nodes of all of them: a set each would make an array of each.

    Where many nodes failed it was not the nodes, and none is left out.
    """
    failed = {node for c in cells if c.stages for cost in (c.train, c.evaluate) for node in cost.resources.exclude}
    nodes = tuple(sorted(failed)) if len(failed) <= MOST_EXCLUDED else ()
    changed = []
    for c in cells:
        costs = {
            stage: replace(cost, resources=replace(cost.resources, exclude=nodes)) if cost.resources.exclude else cost
            for stage, cost in (("train", c.train), ("evaluate", c.evaluate))
        }
        changed.append(replace(c, train=costs["train"], evaluate=costs["evaluate"]) if failed and c.stages else c)
    return changed


MOST_EXCLUDED = 10


def _over_budget(study: Study, bound: float, wanted: float) -> str | None:
    budget = study.cluster.max_gpu_hours
    if budget is None or not wanted or bound + wanted <= budget:
        return None
    told = f"{bound:.1f} are used or under way, and the plan expects {wanted:.1f} more"
    return f"cluster.max_gpu_hours is {budget:g}: {told}"


def why_halted(study: Study, states: list[CellState]) -> str | None:
    """Why the study submits nothing more: the first cells to end a stage all died in it, of the same code error."""
    by_stage: dict[Stage, list[StageState]] = {
        "train": [s.train for s in states],
        "evaluate": [s.evaluate for s in states],
    }
    for stage, found in by_stage.items():
        ended = [now for now in found if now.status in (*ENDED_WELL, Status.FAILED)]
        same = {(now.cause, now.detail) for now in ended}
        if len(ended) < study.retry.stop_after or len(same) > 1 or ended[0].cause is not Cause.CODE_ERROR:
            continue
        return (
            f"the first {len(ended)} cells to end their {_WORDS[stage]} all died of the same error"
            f" ({ended[0].detail}): nothing more is submitted; mend it, then `upshot retry`"
            " (`upshot cancel` ends what is still queued)"
        )
    return None


# --- one cell ------------------------------------------------------------------------------------------------------


def _planned(
    study: Study, state: CellState, sizes: Sizes, profile: Profile, shares: Mapping[str, float], *, retry: bool
) -> PlannedCell:
    recipe = state.cell.recipe
    train, train_vain = _after_deaths("train", sizes.train, recipe, state.train.deaths, profile)
    evaluate, evaluate_vain = _after_deaths("evaluate", sizes.evaluate, recipe, state.evaluate.deaths, profile)
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
        shared_in_study=shares.get(state.cell.cell_id, 0.0),
    )


def _after_deaths(
    stage: Stage, cost: Cost, recipe: Recipe, deaths: tuple[Death, ...], profile: Profile
) -> tuple[Cost, str | None]:
    """What the next start asks for after what the cell died of, and why it would be in vain, if it would."""
    if not deaths:
        return cost, None
    partition = choose_partition(profile, cost.resources.partition)[1]
    resources, vain = adjusted(cost.resources, deaths, partition)
    changed = replace(cost, resources=resources)
    in_vain = sum(death.cause is Cause.ACCELERATOR_MEMORY for death in deaths)
    if in_vain and stage == "evaluate":
        vain = vain or "an evaluation has no smaller batch; place it on accelerators with more memory"
    elif in_vain:
        try:
            changed = replace(with_less_memory(recipe, cost, in_vain), resources=resources)
        except UserError as error:
            changed = replace(changed, micro_batch=1, checkpointed=True)
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
    missing = dict.fromkeys(file.step for file in state.missing)
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
    if now.deaths and not now.recent:
        return "asked for again"
    return "not submitted yet" if now.num_attempts == 0 and now.token is None else "interrupted before its turn"
