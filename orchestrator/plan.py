"""The plan: cells x what is stored x what is live -> what to submit, with its resources and cost. Pure."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from evals import tasks
from models import ladder
from models.data import SetInfo, describe
from models.recipe import Recipe, num_steps
from orchestrator.grid import Cell
from orchestrator.state import ENDED_WELL, LIVE, CellState, StageState, Status
from orchestrator.study import Study
from slurm.cluster import Partition, Profile, choose_partition
from slurm.resources import Resources

Action = Literal["submit", "wait", "skip", "retry"]
Hours = Literal["gpu_hours", "gpu_hours_max", "cpu_hours"]

TIME_MARGIN = 2.0  # times the expected time, and
TIME_START_MIN = 5.0  # minutes for imports and data
MEMORY_BASE_GB = 1.5  # Python, torch and the library code of one process
MEMORY_CUDA_GB = 3.0  # what the driver and its libraries keep on the host
CHECKPOINT_BYTES = 12  # a parameter: the weight and two moments, copied to the host when a checkpoint is written
MEMORY_SHARE = 0.9  # of an accelerator's memory that may be planned full


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One stage of one cell: what it asks for and what it is expected to take."""

    resources: Resources
    flops: float
    hours: float
    over: tuple[str, ...] = ()
    """Which limits of the partition it would hit: "memory" of a node, or wall "time"."""

    @property
    def gpu_hours(self) -> float:
        """Accelerator-hours expected; 0 where the partition has none."""
        return self.resources.accelerators * self.resources.num_nodes * self.hours

    @property
    def gpu_hours_max(self) -> float:
        """Accelerator-hours at the wall-time limit."""
        return self.resources.accelerators * self.resources.num_nodes * self.resources.time_min / 60

    @property
    def cpu_hours(self) -> float:
        """CPU-core-hours expected."""
        return self.resources.num_cpus * self.resources.num_nodes * self.hours


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCell:
    """One cell: what it is, what it costs, what is to be done about it and why."""

    cell: Cell
    params: int
    num_layers: int
    flops: float
    train: Cost
    evaluate: Cost
    action: Action
    reason: str
    stages: tuple[str, ...]

    @property
    def to_do(self) -> list[Cost]:
        """The costs of the stages that would be submitted."""
        return [cost for name, cost in (("train", self.train), ("evaluate", self.evaluate)) if name in self.stages]

    def to_json(self) -> dict[str, Any]:
        """The cell as `upshot plan --json` prints it."""
        return {
            "cell_id": self.cell.cell_id,
            **self.cell.recipe.model_dump(),
            "params": self.params,
            "flops": self.flops,
            "resources": {"train": asdict(self.train.resources), "evaluate": asdict(self.evaluate.resources)},
            "gpu_hours": sum(cost.gpu_hours for cost in (self.train, self.evaluate)),
            "cpu_hours": sum(cost.cpu_hours for cost in (self.train, self.evaluate)),
            "limits_hit": sorted({name for cost in (self.train, self.evaluate) for name in cost.over}),
            "action": self.action,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Array:
    """One array to submit: cells that ask for the very same, and the stages that they still need."""

    stages: tuple[str, ...]
    cells: list[PlannedCell]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything a submission would do."""

    cells: list[PlannedCell]
    arrays: list[Array]
    num_excluded: int
    scheduler: str

    @property
    def sbatch_calls(self) -> int:
        """One for each stage of each array; none without a scheduler."""
        return sum(len(array.stages) for array in self.arrays) if self.scheduler == "slurm" else 0

    def hours(self, name: Hours, *, of_all: bool = False) -> float:
        """Hours of what is to be submitted, or of the whole study."""
        costs = (cost for c in self.cells for cost in ((c.train, c.evaluate) if of_all else c.to_do))
        return float(sum(getattr(cost, name) for cost in costs))

    def to_json(self) -> dict[str, Any]:
        """What `upshot plan --json` prints."""
        return {
            "cells": [cell.to_json() for cell in self.cells],
            "gpu_hours": self.hours("gpu_hours"),
            "gpu_hours_max": self.hours("gpu_hours_max"),
            "cpu_hours": self.hours("cpu_hours"),
            "sbatch_calls": self.sbatch_calls,
            "arrays": [{"stages": list(a.stages), "cells": len(a.cells)} for a in self.arrays],
            "num_excluded": self.num_excluded,
        }


def make_plan(
    study: Study, states: list[CellState], profile: Profile, *, num_excluded: int = 0, retry: bool = False
) -> Plan:
    """The plan for cells in the given states.

    Args:
        study: tasks, draws and the partition come from it.
        states: every cell with where it stands.
        profile: the cluster.
        num_excluded: combinations that [[exclude]] left out, for the record.
        retry: failed cells are started again.

    Raises:
        ProfileError: the profile has no such partition.
        UserError: the upstream data cannot be used.
    """
    partition_name, partition = choose_partition(profile, study.cluster.partition)
    info = describe(study.upstream.dataset)
    num_eval_images = sum(_eval_images(study, task) for task in study.downstream.tasks)
    planned = []
    for state in states:
        action, reason, stages = decide(state, retry=retry)
        arch = _architecture(state.cell.recipe, info)
        flops = _train_flops(state.cell.recipe, arch, info)
        checkpoints = study.train.checkpoints if study.downstream.checkpoints == "all" else 1
        eval_flops = float(ladder.forward_flops(arch)) * num_eval_images * checkpoints
        memory = ladder.training_memory_gb(
            arch, state.cell.recipe.batch_size, state.cell.recipe.precision, state.cell.recipe.optimizer
        )
        host = _host_gb(ladder.num_params(arch), info, state.cell.recipe)
        planned.append(
            PlannedCell(
                cell=state.cell,
                params=ladder.num_params(arch),
                num_layers=ladder.num_layers(arch),
                flops=flops,
                train=_cost(partition_name, partition, profile, flops, memory, host),
                evaluate=_cost(partition_name, partition, profile, eval_flops, memory / 4, host),
                action=action,
                reason=reason,
                stages=stages,
            )
        )
    arrays = list(_arrays([c for c in planned if c.action in ("submit", "retry")], profile.max_array_size))
    return Plan(cells=planned, arrays=arrays, num_excluded=num_excluded, scheduler=profile.scheduler)


def decide(state: CellState, *, retry: bool) -> tuple[Action, str, tuple[str, ...]]:
    """(action, reason, stages to submit) for one cell."""
    for name, stage in (("training", state.train), ("evaluation", state.evaluate)):
        stages = ("train", "evaluate") if name == "training" else ("evaluate",)
        if stage.status in LIVE:
            return "wait", f"{name} is {stage.status}", ()
        if stage.status == Status.FAILED:
            reason = f"{name} failed: {stage.cause}"
            return ("retry", reason, stages) if retry else ("skip", f"{reason}; `upshot retry` starts it again", ())
        if stage.status == Status.NEW:
            return "submit", _why_new(name, stage, state), stages
    return "skip", "training diverged; evaluated" if state.train.status == Status.DIVERGED else "done", ()


def _why_new(name: str, stage: StageState, state: CellState) -> str:
    if name == "evaluation" and state.train.status in ENDED_WELL:
        return f"{len(state.missing)} evaluations are missing"
    return "not submitted yet" if stage.num_attempts == 0 else "interrupted before it was recorded"


def _architecture(recipe: Recipe, info: SetInfo) -> ladder.Architecture:
    return ladder.architecture(
        recipe.family,
        recipe.size,
        image_size=recipe.image_size,
        num_classes=max(2, round(recipe.classes * info.num_classes)),
        patch_size=recipe.patch_size,
    )


def _train_flops(recipe: Recipe, arch: ladder.Architecture, info: SetInfo) -> float:
    """Training FLOPs of the whole run, from the set's size; a class share counts as the same share of images."""
    num_images = max(arch.num_classes, round(info.num_train * recipe.fraction * recipe.classes))
    steps, batch = num_steps(num_images, batch_size=recipe.batch_size, epochs=recipe.epochs)
    return float(ladder.train_flops(arch)) * steps * batch


def _eval_images(study: Study, name: str) -> int:
    """At most how many images of a task are encoded for one checkpoint: its test images and every draw's shots."""
    task = tasks.task(name)
    return task.num_test + task.num_classes * max(study.downstream.shots) * study.downstream.draws


def _host_gb(params: int, info: SetInfo, recipe: Recipe) -> float:
    """Memory beside the model's own: libraries, resident uint8 images (the set and the part in use), a checkpoint."""
    images = 2 * info.num_examples * recipe.image_size**2 * info.channels
    return MEMORY_BASE_GB + (images + CHECKPOINT_BYTES * params) / 1e9


def _cost(name: str, partition: Partition, profile: Profile, flops: float, memory_gb: float, beside_gb: float) -> Cost:
    units, nodes = _accelerators(partition, memory_gb)
    cores = units or 1
    hours = flops / (cores * nodes * partition.teraflops * 1e12 * partition.utilisation) / 3600
    time_min = _rounded_minutes(hours * 60 * TIME_MARGIN + TIME_START_MIN)
    host_gb = 2.0 ** math.ceil(math.log2(beside_gb + (MEMORY_CUDA_GB if units else memory_gb)))
    limits = {
        "memory": host_gb > partition.memory_gb_per_node,
        "time": hours * 60 > partition.max_time_min,
    }
    return Cost(
        resources=Resources(
            partition=None if profile.scheduler == "local" else name,
            num_nodes=nodes,
            accelerators=units,
            accelerator=partition.gres if units else None,
            num_cpus=_num_cpus(partition, units),
            mem_gb=min(partition.memory_gb_per_node, host_gb),
            time_min=min(partition.max_time_min, time_min),
        ),
        flops=flops,
        hours=hours,
        over=tuple(name for name, hit in limits.items() if hit),
    )


def _accelerators(partition: Partition, memory_gb: float) -> tuple[int, int]:
    """(accelerators a node, nodes) that hold `memory_gb` of training state; (0, 1) on CPU partitions."""
    if partition.accelerator == "none" or not partition.accelerators_per_node:
        return 0, 1
    wanted = 1
    if partition.accelerator_memory_gb is not None:
        wanted = 2 ** math.ceil(math.log2(max(1.0, memory_gb / (partition.accelerator_memory_gb * MEMORY_SHARE))))
    per_node = min(wanted, partition.accelerators_per_node)
    return per_node, math.ceil(wanted / per_node)


def _num_cpus(partition: Partition, accelerators: int) -> int:
    if not accelerators:
        return 1
    return max(1, partition.cpus_per_node * accelerators // partition.accelerators_per_node)


def _rounded_minutes(minutes: float) -> int:
    """The next of 10, 20, 40, ... minutes: few distinct limits make few arrays."""
    return int(10 * 2 ** max(0, math.ceil(math.log2(minutes / 10))))


def _arrays(cells: list[PlannedCell], max_size: int) -> Iterator[Array]:
    """Cells of the same resource signatures and stages, dearest first, in chunks that the scheduler takes."""
    groups: dict[tuple[tuple[str, ...], str, str], list[PlannedCell]] = {}
    for cell in sorted(cells, key=lambda c: (-c.flops, c.cell.cell_id)):
        key = (cell.stages, cell.train.resources.signature, cell.evaluate.resources.signature)
        groups.setdefault(key, []).append(cell)
    for (stages, _, _), members in groups.items():
        for start in range(0, len(members), max_size):
            yield Array(stages=stages, cells=members[start : start + max_size])
