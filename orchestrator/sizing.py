"""What a cell asks for: accelerators, nodes, micro-batch, memory, CPUs, wall time. Pure.

A stage is expected to take its FLOPs over what the accelerators reach (peak x utilisation). Once cells of the study
have ended, their measured seconds correct that: see `Speeds`.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Literal

from models import ladder
from models.data import SetInfo, is_folder, residence
from models.data.parts import MAX_TEST
from models.errors import UserError
from models.recipe import Recipe, num_steps
from orchestrator.evaluation_cost import EvaluationWork, evaluation_work
from orchestrator.grid import planned_architecture
from orchestrator.images import Images
from orchestrator.speeds import Speeds, measured_as
from orchestrator.spread import (
    MEMORY_BASE_GB,
    TIME_MARGIN,
    TIME_START_MIN,
    Split,
    enough_images,
    flops_per_hour,
    nodes_of,
    refuse_accelerators,
    room_gb,
    spread,
)
from orchestrator.store import Stage
from orchestrator.study import ClusterChoice, Study
from slurm.cluster import Partition, Profile, choose_partition
from slurm.resources import Resources

MEMORY_CUDA_GB = 3.0  # what the driver and its libraries keep on the host
AVERAGE_BYTES = 4  # a parameter: its moving average, where one is kept
CHECKPOINT_BYTES = 12  # a parameter: the weight and two moments, copied to the host when a checkpoint is written
RECOMPUTED = 4 / 3  # times the expected time where blocks are computed a second time
COMPILE_MIN_HOURS = 0.25  # of training that pay for a minute of compiling

Limit = Literal["memory", "accelerator", "time"]
""""memory" of a node or of its accelerators, which no job can mend, or wall "time", which it meets by going on in
another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One stage of one cell: what it asks for and what it is expected to take.

    `hours` is corrected by measurement where there is one, `planned_hours` is not. `micro_batch` is the number of
    images that one accelerator takes at once, None for all of its share. `checkpointed` says that blocks are computed a
    second time so that it takes more, as they are for fewer than `enough_images`; `compiled` that torch.compile is to
    make it faster; `sharded` that the training state is too large for one accelerator; `memory` what each of them (the
    process, where there is none) holds. `peak_teraflops` is that of all accelerators (or CPU cores) together, None
    where the profile does not say.
    """

    resources: Resources
    flops: float
    planned_hours: float
    hours: float
    max_time_min: int
    price_per_hour: float = 0.0
    peak_teraflops: float | None = None
    micro_batch: int | None = None
    checkpointed: bool = False
    compiled: bool = False
    enough_images: int = 0
    num_checkpoints: int = 1
    sharded: bool = False
    memory: ladder.TrainingMemory | None = None
    over: tuple[Limit, ...] = ()
    """Which limits of the partition it would hit."""

    @property
    def of_one_checkpoint(self) -> "Cost":
        """Of an evaluation of several checkpoints, the cost of one; it asks for the same."""
        return self.times(1 / self.num_checkpoints)

    @property
    def way(self) -> tuple[int | None, bool, bool, bool]:
        """How a job trains: images at once, whether sharded, with blocks computed a second time, and compiled."""
        return self.micro_batch, self.sharded, self.checkpointed, self.compiled

    def times(self, share: float) -> "Cost":
        """The cost of a share of the work; it asks for the same."""
        return replace(
            self, flops=self.flops * share, planned_hours=self.planned_hours * share, hours=self.hours * share
        )

    @property
    def memory_gb(self) -> dict[str, float]:
        """What each accelerator is to hold, by part, and the sum as "total"; empty where it is not planned."""
        if self.memory is None:
            return {}
        parts = {name.removesuffix("_gb"): round(gb, 3) for name, gb in asdict(self.memory).items()}
        return parts | {"total": round(self.memory.total_gb, 3)}

    @property
    def gpu_hours(self) -> float:
        """Accelerator-hours expected; 0 where the partition has none."""
        return self.resources.num_accelerators * self.hours

    @property
    def gpu_hours_max(self) -> float:
        """Accelerator-hours at the wall-time limit."""
        return self.resources.num_accelerators * self.resources.time_min / 60

    @property
    def cpu_hours(self) -> float:
        """CPU-core-hours expected."""
        return self.resources.num_cpus * self.resources.num_nodes * self.hours

    @property
    def price(self) -> float:
        """What it is expected to cost, in the profile's currency; 0 where the partition has no price."""
        return self.price_per_hour * (self.gpu_hours if self.resources.accelerators else self.cpu_hours)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """A cell's model and the cost of its two stages."""

    params: int
    num_layers: int
    flops: float
    train: Cost
    evaluate: Cost

    def cost(self, stage: Stage) -> Cost:
        """The cost of a stage."""
        return self.train if stage == "train" else self.evaluate


# --- a cell's sizes ------------------------------------------------------------------------------------------------


def size_cell(study: Study, recipe: Recipe, images: Images, profile: Profile, speeds: Speeds | None = None) -> Sizes:
    """What the cell costs on the partition that the study places it on.

    Raises:
        ProfileError: the profile has no such partition, or not the accelerators that the study asks for.
    """
    speeds = speeds or Speeds()
    info, num_images = images.upstream(study.upstream.dataset), images.kept(recipe)[0]
    arch = planned_architecture(recipe, images)
    params = ladder.num_params(arch)
    flops = _train_flops(recipe, arch, num_images)
    where = study.cluster.partition_of(recipe)
    place = choose_partition(profile, where)
    train = _train_cost(study.cluster, recipe, arch, flops, info, num_images, profile, place, speeds)
    train = replace(train, compiled=_compiles(study, train, place[1]))
    evaluate_where = choose_partition(profile, study.cluster.evaluate_partition or where)
    checkpoints = study.train.checkpoints if study.downstream.checkpoints == "all" else 1
    work, host_gb = evaluation_work(study, arch, images), _host_gb(params, info, recipe)
    evaluate = _evaluate_cost(recipe, arch, work, checkpoints, host_gb, profile, evaluate_where, speeds)
    evaluate = replace(evaluate, num_checkpoints=checkpoints)
    return Sizes(params=params, num_layers=ladder.num_layers(arch), flops=flops, train=train, evaluate=evaluate)


def _train_flops(recipe: Recipe, arch: ladder.Architecture, num_images: int) -> float:
    """Training FLOPs of the whole run."""
    steps, batch = num_steps(num_images, batch_size=recipe.batch_size, epochs=recipe.epochs)
    return float(ladder.train_flops(arch)) * steps * batch


def _compiles(study: Study, train: Cost, partition: Partition) -> bool:
    if study.train.compile != "auto":
        return study.train.compile
    whole = not train.sharded and not train.checkpointed
    return partition.accelerator == "gpu" and whole and train.hours >= COMPILE_MIN_HOURS


def _host_gb(params: int, info: SetInfo, recipe: Recipe) -> float:
    """Memory beside the model's own: libraries, the images of a packaged set, a checkpoint.

    Of a packaged set the whole and the part in use are in memory.
    """
    packaged = not is_folder(recipe.dataset)
    images = 2 * residence.images_gb(info.num_examples, recipe.image_size, info.channels) if packaged else 0.0
    per_parameter = CHECKPOINT_BYTES + (AVERAGE_BYTES if recipe.ema else 0)
    return MEMORY_BASE_GB + images + per_parameter * params / 1e9


def _stored_gb(recipe: Recipe, info: SetInfo, num_train: int, split: Split, memory_gb: float) -> float:
    """Memory of one training process of `memory_gb` for the images of a stored set, of which it keeps `num_train`."""
    if not is_folder(recipe.dataset):
        return 0.0
    num_test = min(info.num_test, MAX_TEST)
    share = math.ceil(recipe.batch_size / max(1, split.accelerators))
    images = residence.upstream_gb(num_train, num_test, recipe.image_size, share=share, memory_gb=memory_gb)
    return info.held_gb + images


def _train_cost(
    choice: ClusterChoice,
    recipe: Recipe,
    arch: ladder.Architecture,
    flops: float,
    info: SetInfo,
    num_images: int,
    profile: Profile,
    place: tuple[str, Partition],
    speeds: Speeds,
) -> Cost:
    name, partition = place
    refuse_accelerators(choice.accelerators, name, partition, recipe.batch_size)
    split = spread(choice, recipe, arch, flops, partition)
    nodes, per_node = nodes_of(partition, split.accelerators)
    tasks_per_node = per_node if partition.accelerator == "gpu" else 1  # a TPU host's chips belong to one process
    tasks_per_node = max(1, tasks_per_node)
    of_a_task_gb = _host_gb(math.ceil(ladder.num_params(arch) / split.num_shards), info, recipe)
    of_a_task_gb += _stored_gb(recipe, info, num_images, split, partition.memory_gb_per_node / tasks_per_node)
    beside = of_a_task_gb * tasks_per_node + (MEMORY_CUDA_GB if per_node else split.memory.total_gb)
    planned = flops / (max(1, split.accelerators) * flops_per_hour(partition))
    cost = _cost(
        "train",
        recipe,
        flops=flops,
        planned_hours=planned * (RECOMPUTED if split.checkpointed else 1),
        nodes=nodes,
        per_node=per_node,
        tasks_per_node=tasks_per_node,
        host_gb=beside,
        profile=profile,
        place=(name, partition),
        speeds=speeds,
        split=split,
    )
    share = math.ceil(recipe.batch_size / max(1, split.accelerators))
    return replace(cost, checkpointed=split.checkpointed, enough_images=enough_images(arch, share))


def _evaluate_cost(
    recipe: Recipe,
    arch: ladder.Architecture,
    work: EvaluationWork,
    checkpoints: int,
    host_gb: float,
    profile: Profile,
    place: tuple[str, Partition],
    speeds: Speeds,
) -> Cost:
    """Evaluation needs the weights alone, on one accelerator, but for fine-tuning, which needs what training does."""
    partition, flops = place[1], work.flops(arch) * checkpoints
    per_node = 0 if partition.accelerator == "none" else 1
    batch_size = max(1, work.batch_size)
    memory = ladder.training_memory(arch, batch_size, optimizer="sgd")
    model_gb = 2 * memory.weights_gb + (memory.total_gb if work.batch_size else 0)
    return _cost(
        "evaluate",
        recipe,
        flops=flops,
        planned_hours=flops / flops_per_hour(partition),
        nodes=1,
        per_node=per_node,
        tasks_per_node=1,
        host_gb=host_gb + work.features_gb + (MEMORY_CUDA_GB if per_node else model_gb),
        profile=profile,
        place=place,
        speeds=speeds,
    )


def _cost(
    stage: Stage,
    recipe: Recipe,
    *,
    flops: float,
    planned_hours: float,
    nodes: int,
    per_node: int,
    tasks_per_node: int,
    host_gb: float,
    profile: Profile,
    place: tuple[str, Partition],
    speeds: Speeds,
    split: Split | None = None,
) -> Cost:
    name, partition = place
    measured = speeds.seconds(stage, measured_as(recipe), planned_hours * 3600)
    hours = planned_hours if measured is None else measured / 3600
    wanted_gb = 2.0 ** math.ceil(math.log2(host_gb))
    over: list[Limit] = []
    if wanted_gb > partition.memory_gb_per_node and host_gb > partition.memory_gb_per_node:
        over.append("memory")
    if split is not None and split.sharded and split.memory.total_gb > room_gb(partition):
        over.append("accelerator")
    if hours * 60 > partition.max_time_min:
        over.append("time")
    return Cost(
        resources=Resources(
            partition=None if profile.scheduler == "local" else name,
            num_nodes=nodes,
            tasks_per_node=tasks_per_node,
            accelerators=per_node,
            accelerator=partition.accelerator_name if per_node else None,
            num_cpus=_num_cpus(partition, per_node),
            mem_gb=min(partition.memory_gb_per_node, wanted_gb),
            time_min=min(partition.max_time_min, rounded_minutes(hours * 60 * TIME_MARGIN + TIME_START_MIN)),
        ),
        flops=flops,
        planned_hours=planned_hours,
        hours=hours,
        max_time_min=partition.max_time_min,
        price_per_hour=partition.price_per_hour or 0.0,
        peak_teraflops=partition.teraflops and partition.teraflops * max(1, nodes * per_node),
        micro_batch=split.micro_batch if split else None,
        sharded=bool(split and split.sharded),
        memory=split.memory if split else None,
        over=tuple(over),
    )


def _num_cpus(partition: Partition, accelerators: int) -> int:
    if not accelerators:
        return 1
    return max(1, partition.cpus_per_node * accelerators // partition.accelerators_per_node)


def rounded_minutes(minutes: float) -> int:
    """The next of 10, 20, 40, ... minutes: few distinct limits make few arrays."""
    return 10 << max(0, math.ceil(math.log2(minutes / 10)))


def packed_cost(cost: Cost, members: list[Cost]) -> Cost:
    """The cost of a job that does the members one after the other: theirs, with the time of all."""
    hours = sum(member.hours for member in members)
    minutes = rounded_minutes(hours * 60 * TIME_MARGIN + TIME_START_MIN)
    # One of them may have met a limit before, and asks for more since.
    longest = max(member.resources.time_min for member in members)
    time_min = max(longest, min(cost.max_time_min, minutes))
    return replace(
        cost,
        resources=replace(cost.resources, time_min=time_min),
        hours=hours,
        planned_hours=sum(member.planned_hours for member in members),
        flops=sum(member.flops for member in members),
    )


def with_less_memory(recipe: Recipe, cost: Cost, times: int) -> Cost:
    """The training after the accelerator's memory did not suffice so many times.

    Half as many images at once cost no time, so that comes first; where too few would be left (with batch norm: where
    results would change) blocks are computed a second time, and only then are images halved to the last.

    Raises:
        UserError: it is at one image, with blocks computed a second time, already.
    """
    images = cost.micro_batch or math.ceil(recipe.batch_size / max(1, cost.resources.num_accelerators))
    checkpointed = cost.checkpointed
    for _ in range(times):
        if not checkpointed and images // 2 < cost.enough_images:
            checkpointed = True
        elif images > 1:
            images //= 2
        else:
            raise UserError("one image at a time does not fit the accelerator")
    hours = RECOMPUTED if checkpointed > cost.checkpointed else 1.0
    slower = cost.times(hours)
    return replace(slower, flops=cost.flops, micro_batch=images, checkpointed=checkpointed)
