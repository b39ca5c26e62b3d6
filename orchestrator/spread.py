"""How a cell's training is spread: over how many accelerators, whole or in shards, how many images at once. Pure."""

import math
from dataclasses import dataclass

from models import ladder
from models.recipe import Recipe
from orchestrator.study import ClusterChoice
from slurm.cluster import Partition, ProfileError

TIME_MARGIN = 2.0  # times the expected time, and
TIME_START_MIN = 5.0  # minutes for imports and data
MEMORY_BASE_GB = 1.5  # Python, torch and the library code of one process
MEMORY_SHARE = 0.9  # of an accelerator's memory that may be planned full
USEFUL_MICRO_BATCH = 8  # images at once; with fewer, an accelerator waits for its own memory
SHARDS_SHARE = 0.5  # of that which shards may fill, so that images enough are left to compute on between two gathers


@dataclass(frozen=True, slots=True)
class Split:
    """How a batch is spread: accelerators in all, images at once on each (None for the whole share)."""

    accelerators: int
    micro_batch: int | None
    memory: ladder.TrainingMemory
    sharded: bool = False
    checkpointed: bool = False

    @property
    def num_shards(self) -> int:
        """Among how many the state is divided."""
        return self.accelerators if self.sharded else 1


def spread(
    choice: ClusterChoice, recipe: Recipe, arch: ladder.Architecture, flops: float, partition: Partition
) -> Split:
    """As few accelerators as hold the cell and end it within one wall time, or as many as the study says.

    A model with batch norm gets more accelerators before its share of the batch is cut: what the norm sees would
    change. Where the state itself (weights, gradients, moments) does not fit, it is sharded.
    """
    room = room_gb(partition)
    batch = recipe.batch_size
    if partition.accelerator == "none":
        micro, memory, checkpointed = _micro_batch(recipe, arch, batch, room)
        return Split(0, micro if micro < batch else None, memory, checkpointed=checkpointed)
    most = _most_accelerators(partition, batch)
    sharded = _memory(recipe, arch, 1, checkpointed=ladder.can_checkpoint(arch)).total_gb > room
    wanted = min(most, choice.accelerators or (2 if sharded else 1))
    while wanted < most and choice.accelerators is None and not _fits(recipe, arch, flops, partition, wanted, sharded):
        wanted *= 2
    wanted = math.prod(nodes_of(partition, min(most, wanted)))
    share = math.ceil(batch / wanted)
    micro, memory, checkpointed = _micro_batch(recipe, arch, share, room, wanted if sharded else 1)
    return Split(wanted, micro if micro < share else None, memory, sharded, checkpointed)


def refuse_accelerators(asked: int | None, name: str, partition: Partition, batch: int) -> None:
    """Returns if a cell can have as many accelerators as the study asks for.

    Raises:
        ProfileError: the partition has none, or not so many for a cell.
    """
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


def _fits(
    recipe: Recipe, arch: ladder.Architecture, flops: float, partition: Partition, accelerators: int, sharded: bool
) -> bool:
    hours, room = flops / (accelerators * flops_per_hour(partition)), room_gb(partition)
    if hours * 60 * TIME_MARGIN + TIME_START_MIN > partition.max_time_min:
        return False
    memory = _memory(recipe, arch, math.ceil(recipe.batch_size / accelerators), accelerators if sharded else 1)
    if sharded and memory.total_gb - memory.activations_gb > SHARDS_SHARE * room:
        return False
    # What batch norm sees changes with how a batch is split: more accelerators before micro-batches.
    return not ladder.has_batch_norm(arch) or memory.total_gb <= room


def _most_accelerators(partition: Partition, batch: int) -> int:
    """The largest power of two that nodes and batch allow: one image for each at least, on TPUs the same number."""
    if partition.accelerator == "tpu":
        return math.gcd(2 ** int(math.log2(partition.accelerators_per_node)), batch)
    most = partition.accelerators_per_node * (partition.max_nodes or batch)
    return int(2 ** math.floor(math.log2(max(1, min(most, batch)))))


def room_gb(partition: Partition) -> float:
    """What a training step may fill: of an accelerator's memory, or of the node's where there is none."""
    if partition.accelerator == "none":
        return max(0.1, partition.memory_gb_per_node - MEMORY_BASE_GB) * MEMORY_SHARE
    return math.inf if partition.accelerator_memory_gb is None else partition.accelerator_memory_gb * MEMORY_SHARE


def _micro_batch(
    recipe: Recipe, arch: ladder.Architecture, share: int, room: float, num_shards: int = 1
) -> tuple[int, ladder.TrainingMemory, bool]:
    """(images at once, what they take, whether blocks are computed a second time): as much of the share as fits.

    Time is given for memory where too few images fit or, with batch norm, fewer than the share, which changes results.
    """
    for checkpointed in (False, True) if ladder.can_checkpoint(arch) else (False,):
        micro = share
        while micro > 1 and _memory(recipe, arch, micro, num_shards, checkpointed=checkpointed).total_gb > room:
            micro = math.ceil(micro / 2)
        memory = _memory(recipe, arch, micro, num_shards, checkpointed=checkpointed)
        if micro >= enough_images(arch, share) and memory.total_gb <= room:
            break
    return micro, memory, checkpointed


def enough_images(arch: ladder.Architecture, share: int) -> int:
    """The images at once below which blocks had better be computed a second time; 0 where they cannot be."""
    if not ladder.can_checkpoint(arch):
        return 0
    return share if ladder.has_batch_norm(arch) else min(share, USEFUL_MICRO_BATCH)


def _memory(
    recipe: Recipe, arch: ladder.Architecture, images: int, num_shards: int = 1, *, checkpointed: bool = False
) -> ladder.TrainingMemory:
    return ladder.training_memory(
        arch,
        images,
        recipe.precision,
        recipe.optimizer,
        dropout=recipe.dropout > 0,
        average=recipe.ema > 0,
        checkpointed=checkpointed,
        num_shards=num_shards,
    )


def nodes_of(partition: Partition, accelerators: int) -> tuple[int, int]:
    """(nodes, accelerators on each)."""
    if not accelerators:
        return 1, 0
    nodes = math.ceil(accelerators / partition.accelerators_per_node)
    if partition.request == "partition":  # nodes are had whole
        return nodes, partition.accelerators_per_node
    return nodes, math.ceil(accelerators / nodes)


def flops_per_hour(partition: Partition) -> float:
    """What one accelerator, or one CPU core, gets done in an hour."""
    return partition.expected_teraflops * 1e12 * partition.utilisation * 3600
