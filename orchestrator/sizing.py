"""What a cell asks for: accelerators, nodes, micro-batch, memory, CPUs, wall time. Pure.

A stage is expected to take its FLOPs over what the accelerators reach (peak x utilisation). Once cells of the study
have ended, their measured seconds correct that: see `Speeds`.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from evals import tasks
from models import ladder
from models.data import SetInfo, is_folder, kept, residence
from models.data.parts import MAX_TEST
from models.errors import UserError
from models.recipe import Recipe, num_steps
from orchestrator.grid import planned_architecture
from orchestrator.speeds import Speeds, measured_as
from orchestrator.store import Stage
from orchestrator.study import ClusterChoice, Study
from slurm.cluster import Partition, Profile, ProfileError, choose_partition
from slurm.resources import Resources

TIME_MARGIN = 2.0  # times the expected time, and
TIME_START_MIN = 5.0  # minutes for imports and data
MEMORY_BASE_GB = 1.5  # Python, torch and the library code of one process
MEMORY_CUDA_GB = 3.0  # what the driver and its libraries keep on the host
AVERAGE_BYTES = 4  # a parameter: its moving average, where one is kept
CHECKPOINT_BYTES = 12  # a parameter: the weight and two moments, copied to the host when a checkpoint is written
MEMORY_SHARE = 0.9  # of an accelerator's memory that may be planned full
RECOMPUTED = 4 / 3  # times the expected time where blocks are computed a second time
USEFUL_MICRO_BATCH = 8  # images at once; with fewer, an accelerator waits for its own memory
COMPILE_MIN_HOURS = 0.25  # of training that pay for a minute of compiling


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One stage of one cell: what it asks for and what it is expected to take.

    `hours` is corrected by measurement where there is one, `planned_hours` is not. `micro_batch` is the number of
    images that one accelerator takes at once, None for all of its share. `checkpointed` says that blocks are computed a
    second time so that it takes more, as they are for fewer than `enough_images`; `compiled` that torch.compile is to
    make it faster; `sharded` that the training state is too large for one accelerator. `peak_teraflops` is that of all
    accelerators (or CPU cores) together, None where the profile does not say.
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
    over: tuple[Literal["memory", "time"], ...] = ()
    """Which limits of the partition it would hit: "memory" of a node, which no job can mend, or wall "time", which it
    meets by going on in another one."""

    @property
    def of_one_checkpoint(self) -> "Cost":
        """Of an evaluation of several checkpoints, the cost of one; it asks for the same."""
        return self.times(1 / self.num_checkpoints)

    @property
    def way(self) -> tuple[int | None, bool, bool]:
        """How a job trains: images at once, whether blocks are computed a second time, whether it compiles."""
        return self.micro_batch, self.checkpointed, self.compiled

    def times(self, share: float) -> "Cost":
        """The cost of a share of the work; it asks for the same."""
        return replace(
            self, flops=self.flops * share, planned_hours=self.planned_hours * share, hours=self.hours * share
        )

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


def size_cell(study: Study, recipe: Recipe, info: SetInfo, profile: Profile, speeds: Speeds | None = None) -> Sizes:
    """What the cell costs on the partition that the study places it on.

    Raises:
        ProfileError: the profile has no such partition, or not the accelerators that the study asks for.
    """
    speeds = speeds or Speeds()
    arch = planned_architecture(recipe)
    params = ladder.num_params(arch)
    flops = _train_flops(recipe, arch)
    host_gb = _host_gb(params, info, recipe)
    where = study.cluster.partition_of(recipe)
    place = choose_partition(profile, where)
    train = _train_cost(study.cluster, recipe, arch, flops, info, host_gb, profile, place, speeds)
    train = replace(train, compiled=_compiles(study, train, place[1]))
    evaluate_where = choose_partition(profile, study.cluster.evaluate_partition or where)
    checkpoints = study.train.checkpoints if study.downstream.checkpoints == "all" else 1
    eval_flops = float(ladder.forward_flops(arch)) * _num_eval_images(study) * checkpoints
    evaluate = _evaluate_cost(recipe, arch, eval_flops, host_gb, profile, evaluate_where, speeds)
    evaluate = replace(evaluate, num_checkpoints=checkpoints)
    return Sizes(params=params, num_layers=ladder.num_layers(arch), flops=flops, train=train, evaluate=evaluate)


def _train_flops(recipe: Recipe, arch: ladder.Architecture) -> float:
    """Training FLOPs of the whole run."""
    num_images, _ = kept(recipe.dataset, **recipe.subset)
    steps, batch = num_steps(num_images, batch_size=recipe.batch_size, epochs=recipe.epochs)
    return float(ladder.train_flops(arch)) * steps * batch


def _compiles(study: Study, train: Cost, partition: Partition) -> bool:
    if study.train.compile != "auto":
        return study.train.compile
    whole = not train.sharded and not train.checkpointed
    return partition.accelerator == "gpu" and whole and train.hours >= COMPILE_MIN_HOURS


def _num_eval_images(study: Study) -> int:
    """At most how many images are encoded for one checkpoint: every task's test images and every draw's shots."""
    d = study.downstream
    found = [tasks.task(name) for name in d.tasks]
    return sum(task.num_test + task.num_classes * max(d.shots) * d.draws for task in found)


def _host_gb(params: int, info: SetInfo, recipe: Recipe) -> float:
    """Memory beside the model's own: libraries, the images of a packaged set, a checkpoint.

    Of a packaged set the whole and the part in use are in memory.
    """
    packaged = not is_folder(recipe.dataset)
    images = 2 * residence.images_gb(info.num_examples, recipe.image_size, info.channels) if packaged else 0.0
    per_parameter = CHECKPOINT_BYTES + (AVERAGE_BYTES if recipe.ema is not None else 0)
    return MEMORY_BASE_GB + images + per_parameter * params / 1e9


def _stored_gb(recipe: Recipe, info: SetInfo, split: "_Split", memory_gb: float) -> float:
    """Memory of one training process of `memory_gb` for the images of a stored set."""
    if not is_folder(recipe.dataset):
        return 0.0
    num_images = kept(recipe.dataset, **recipe.subset)[0] + min(info.num_test, MAX_TEST)
    share = math.ceil(recipe.batch_size / max(1, split.accelerators))
    return residence.upstream_gb(num_images, recipe.image_size, share=share, memory_gb=memory_gb)


@dataclass(frozen=True, slots=True)
class _Split:
    """How a batch is spread: accelerators in all, images at once on each (None for the whole share)."""

    accelerators: int
    micro_batch: int | None
    memory_gb: float
    sharded: bool = False
    checkpointed: bool = False


def _train_cost(
    choice: ClusterChoice,
    recipe: Recipe,
    arch: ladder.Architecture,
    flops: float,
    info: SetInfo,
    host_gb: float,
    profile: Profile,
    place: tuple[str, Partition],
    speeds: Speeds,
) -> Cost:
    name, partition = place
    _refuse_accelerators(choice.accelerators, name, partition, recipe.batch_size)
    split = _split(choice, recipe, arch, flops, partition)
    nodes, per_node = _nodes(partition, split.accelerators)
    tasks_per_node = per_node if partition.accelerator == "gpu" else 1  # a TPU host's chips belong to one process
    tasks_per_node = max(1, tasks_per_node)
    of_a_task_gb = host_gb + _stored_gb(recipe, info, split, partition.memory_gb_per_node / tasks_per_node)
    beside = of_a_task_gb * tasks_per_node + (MEMORY_CUDA_GB if per_node else split.memory_gb)
    planned = flops / (max(1, split.accelerators) * _flops_per_hour(partition))
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
        micro_batch=split.micro_batch,
        sharded=split.sharded,
    )
    share = math.ceil(recipe.batch_size / max(1, split.accelerators))
    return replace(cost, checkpointed=split.checkpointed, enough_images=_enough(arch, share))


def _evaluate_cost(
    recipe: Recipe,
    arch: ladder.Architecture,
    flops: float,
    host_gb: float,
    profile: Profile,
    place: tuple[str, Partition],
    speeds: Speeds,
) -> Cost:
    """Evaluation needs the weights alone, on one accelerator."""
    partition = place[1]
    per_node = 0 if partition.accelerator == "none" else 1
    weights_gb = ladder.training_memory(arch, 1, recipe.precision).weights_gb
    return _cost(
        "evaluate",
        recipe,
        flops=flops,
        planned_hours=flops / _flops_per_hour(partition),
        nodes=1,
        per_node=per_node,
        tasks_per_node=1,
        host_gb=host_gb + (MEMORY_CUDA_GB if per_node else 2 * weights_gb),
        profile=profile,
        place=place,
        speeds=speeds,
    )


def _flops_per_hour(partition: Partition) -> float:
    """What one accelerator, or one CPU core, gets done in an hour."""
    return partition.expected_teraflops * 1e12 * partition.utilisation * 3600


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
    micro_batch: int | None = None,
    sharded: bool = False,
) -> Cost:
    name, partition = place
    measured = speeds.seconds(stage, measured_as(recipe), planned_hours * 3600)
    hours = planned_hours if measured is None else measured / 3600
    wanted_gb = 2.0 ** math.ceil(math.log2(host_gb))
    over: list[Literal["memory", "time"]] = []
    if wanted_gb > partition.memory_gb_per_node and host_gb > partition.memory_gb_per_node:
        over.append("memory")
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
        micro_batch=micro_batch,
        sharded=sharded,
        over=tuple(over),
    )


def _split(
    choice: ClusterChoice, recipe: Recipe, arch: ladder.Architecture, flops: float, partition: Partition
) -> _Split:
    """As few accelerators as hold the cell and end it within one wall time, or as many as the study says.

    A model with batch norm gets more accelerators before its share of the batch is cut: what the norm sees would
    change. Where the state itself (weights, gradients, moments) does not fit, it has to be sharded.
    """
    room = _room_gb(partition)
    batch = recipe.batch_size
    if partition.accelerator == "none":
        micro, memory, checkpointed = _micro_batch(recipe, arch, batch, room)
        return _Split(0, micro if micro < batch else None, memory, checkpointed=checkpointed)
    most = _most_accelerators(partition, batch)
    least = min(most, choice.accelerators or 1)
    wanted = least
    while wanted < most and choice.accelerators is None and not _fits(recipe, arch, flops, partition, wanted):
        wanted *= 2
    wanted = math.prod(_nodes(partition, min(most, wanted)))
    share = math.ceil(batch / wanted)
    state = _memory_gb(recipe, arch, 1, checkpointed=ladder.can_checkpoint(arch))
    if state > room:
        needed = 2 ** math.ceil(math.log2(_memory_gb(recipe, arch, share * wanted) / room))
        wanted = choice.accelerators or max(wanted, needed)
        return _Split(wanted, None, state / wanted, sharded=True)
    micro, memory, checkpointed = _micro_batch(recipe, arch, share, room)
    return _Split(wanted, micro if micro < share else None, memory, checkpointed=checkpointed)


def _refuse_accelerators(asked: int | None, name: str, partition: Partition, batch: int) -> None:
    if asked is None:
        return
    if partition.accelerator == "none":
        raise ProfileError(f"cluster.accelerators is {asked}, but partition {name} has none (see its `accelerator`)")
    most = _most_accelerators(partition, batch)
    if asked > most:
        raise ProfileError(
            f"cluster.accelerators is {asked}, but a cell can have at most {most} on partition {name}:"
            f" {partition.accelerators_per_node} a node, nodes by max_nodes (of TPUs one, whose chips divide a batch),"
            f" and an image for each (batch {batch})"
        )


def _fits(recipe: Recipe, arch: ladder.Architecture, flops: float, partition: Partition, accelerators: int) -> bool:
    hours = flops / (accelerators * _flops_per_hour(partition))
    if hours * 60 * TIME_MARGIN + TIME_START_MIN > partition.max_time_min:
        return False
    share = math.ceil(recipe.batch_size / accelerators)
    # What batch norm sees changes with how a batch is split: more accelerators before micro-batches.
    return not ladder.has_batch_norm(arch) or _memory_gb(recipe, arch, share) <= _room_gb(partition)


def _most_accelerators(partition: Partition, batch: int) -> int:
    """The largest power of two that nodes and batch allow: one image for each at least, on TPUs the same number."""
    if partition.accelerator == "tpu":
        return math.gcd(2 ** int(math.log2(partition.accelerators_per_node)), batch)
    most = partition.accelerators_per_node * (partition.max_nodes or batch)
    return int(2 ** math.floor(math.log2(max(1, min(most, batch)))))


def _room_gb(partition: Partition) -> float:
    """What a training step may fill: of an accelerator's memory, or of the node's where there is none."""
    if partition.accelerator == "none":
        return max(0.1, partition.memory_gb_per_node - MEMORY_BASE_GB) * MEMORY_SHARE
    return math.inf if partition.accelerator_memory_gb is None else partition.accelerator_memory_gb * MEMORY_SHARE


def _micro_batch(recipe: Recipe, arch: ladder.Architecture, share: int, room: float) -> tuple[int, float, bool]:
    """(images at once, GB that they take, whether blocks are computed a second time): as much of the share as fits.

    Time is given for memory where too few images fit or, with batch norm, fewer than the share, which changes results.
    """
    for checkpointed in (False, True) if ladder.can_checkpoint(arch) else (False,):
        micro = share
        while micro > 1 and _memory_gb(recipe, arch, micro, checkpointed=checkpointed) > room:
            micro = math.ceil(micro / 2)
        memory = _memory_gb(recipe, arch, micro, checkpointed=checkpointed)
        if micro >= _enough(arch, share) and memory <= room:
            break
    return micro, memory, checkpointed


def _enough(arch: ladder.Architecture, share: int) -> int:
    """The images at once below which blocks had better be computed a second time; 0 where they cannot be."""
    if not ladder.can_checkpoint(arch):
        return 0
    return share if ladder.has_batch_norm(arch) else min(share, USEFUL_MICRO_BATCH)


def _memory_gb(recipe: Recipe, arch: ladder.Architecture, images: int, *, checkpointed: bool = False) -> float:
    return ladder.training_memory(
        arch,
        images,
        recipe.precision,
        recipe.optimizer,
        dropout=recipe.dropout > 0,
        average=recipe.ema is not None,
        checkpointed=checkpointed,
    ).total_gb


def _nodes(partition: Partition, accelerators: int) -> tuple[int, int]:
    """(nodes, accelerators on each)."""
    if not accelerators:
        return 1, 0
    nodes = math.ceil(accelerators / partition.accelerators_per_node)
    if partition.request == "partition":  # nodes are had whole
        return nodes, partition.accelerators_per_node
    return nodes, math.ceil(accelerators / nodes)


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
    time_min = max(cost.resources.time_min, min(cost.max_time_min, minutes))
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
