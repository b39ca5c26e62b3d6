"""The arrays of a plan: work that asks for the very same, packed, in chunks that the scheduler takes."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar

from orchestrator.grid import Cell
from orchestrator.sizing import Cost, packed_cost
from orchestrator.store import Stage, unit
from slurm.resources import Resources

Action = Literal["submit", "wait", "skip", "retry"]
Pack = int | Literal["auto"]
T = TypeVar("T")

PACK_MIN = 10.0  # what is expected to take less is packed with others until it takes so long
PACK_MOST = 64  # cells a job at most, where the study does not say


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCell:
    """One cell: what it costs, what is to be done about it and why.

    `stages` are those to submit; `steps` the checkpoints that an evaluation judges each alone, none for the whole cell.
    Cells of one `chain` go into one job, each on from the one before it: the `shared` part of its steps is taken there.
    `shared_in_study` is that part where all cells of the study are trained, whatever is left to do.
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
    chain: str | None = None
    shared: float = 0.0
    shared_in_study: float = 0.0

    @property
    def to_do(self) -> list[Cost]:
        """The costs of the stages that would be submitted, without the steps that another cell of the chain takes."""
        return [self.own_train if stage == "train" else self.evaluate for stage in self.stages]

    @property
    def taken_over(self) -> float:
        """What part of its steps a shorter cell takes: one of its job, where it is to be trained, else of the study."""
        return self.shared if "train" in self.stages else self.shared_in_study

    @property
    def own_train(self) -> Cost:
        """The cost of the training steps that no shorter cell takes."""
        return self.train.times(1 - self.taken_over)

    def cost_in_study(self, stage: Stage) -> Cost:
        """The cost of a stage in the whole study, each step of training counted once."""
        return self.train.times(1 - self.shared_in_study) if stage == "train" else self.evaluate

    def to_json(self) -> dict[str, Any]:
        """The cell as `upshot plan --json` prints it."""
        return {
            "cell_id": self.cell.cell_id,
            **self.cell.recipe.model_dump(),
            "params": self.params,
            "flops": self.flops,
            "resources": {"train": asdict(self.train.resources), "evaluate": asdict(self.evaluate.resources)},
            "micro_batch": self.train.micro_batch,
            "checkpointed": self.train.checkpointed,
            "compiled": self.train.compiled,
            "sharded": self.train.sharded,
            "memory_gb": self.train.memory_gb,
            "shared": self.taken_over,
            "gpu_hours": self.own_train.gpu_hours + self.evaluate.gpu_hours,
            "cpu_hours": self.own_train.cpu_hours + self.evaluate.cpu_hours,
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
    def gpu_hours_max(self) -> float:
        """Accelerator-hours if every array task, those of `then` among them, meets its time limit."""
        return len(self.tasks) * self.cost.gpu_hours_max + (self.then.gpu_hours_max if self.then else 0.0)

    @property
    def sbatch_calls(self) -> int:
        """How often sbatch is called."""
        return 1 + (self.then.sbatch_calls if self.then else 0)


def make_arrays(pack: Pack, cells: list[PlannedCell], size: int) -> Iterator[Array]:
    """Evaluations that can start at once, then trainings with the evaluations that wait for them; dearest first."""
    to_do = sorted((c for c in cells if c.stages), key=lambda c: (-c.flops, c.cell.cell_id))
    yield from _evaluations(pack, [c for c in to_do if "train" not in c.stages], size)
    groups: dict[tuple[object, ...], list[_Chain]] = {}
    for chain in _chains(cell for cell in to_do if "train" in cell.stages):
        key = (chain.train.resources, chain.train.way, chain.evaluate.resources)
        groups.setdefault(key, []).append(chain)
    for members in groups.values():
        hours = [chain.train.hours + chain.evaluate.hours for chain in members]
        packs = list(_packed(pack, members, hours, [len(chain.cells) for chain in members]))
        for start in range(0, len(packs), size):
            chunk = packs[start : start + size]
            work = [[unit(cell.cell.cell_id) for chain in pack for cell in chain.cells] for pack in chunk]
            evaluate = Array(
                stage="evaluate", tasks=work, cost=_longest([[c.evaluate for c in pack] for pack in chunk])
            )
            yield Array(
                stage="train", tasks=work, cost=_longest([[c.train for c in pack] for pack in chunk]), then=evaluate
            )


@dataclass(frozen=True, slots=True)
class _Chain:
    """Cells of one job, each on from the one before it, or a cell by itself; with the cost of all."""

    cells: list[PlannedCell]
    train: Cost
    evaluate: Cost


def _chains(cells: Iterable[PlannedCell]) -> Iterator[_Chain]:
    by_chain: dict[str, list[PlannedCell]] = {}
    for cell in cells:
        by_chain.setdefault(cell.chain or cell.cell.cell_id, []).append(cell)
    for members in by_chain.values():
        members.sort(key=lambda c: c.cell.recipe.epochs)
        train = _longest([[c.own_train for c in members]])
        train = replace(train, compiled=any(c.train.compiled for c in members))
        yield _Chain(members, train, _longest([[c.evaluate for c in members]]))


def _evaluations(pack: Pack, cells: list[PlannedCell], size: int) -> Iterator[Array]:
    """A piece of work for each cell and checkpoint."""
    groups: dict[Resources, list[tuple[str, Cost]]] = {}
    for cell in cells:
        for step in cell.steps:
            key = cell.evaluate.resources
            groups.setdefault(key, []).append((unit(cell.cell.cell_id, step), cell.evaluate.of_one_checkpoint))
    for members in groups.values():
        packs = list(_packed(pack, members, [cost.hours for _, cost in members], [1] * len(members)))
        for start in range(0, len(packs), size):
            chunk = packs[start : start + size]
            cost = _longest([[cost for _, cost in pack] for pack in chunk])
            yield Array(stage="evaluate", tasks=[[text for text, _ in pack] for pack in chunk], cost=cost)


def _packed(most: Pack, members: list[T], hours: list[float], cells: list[int]) -> Iterator[list[T]]:
    """The members, each of so many hours and cells, in packs that run one after the other in a job."""
    pack: list[T] = []
    filled, num_cells = 0.0, 0
    for member, one, number in zip(members, hours, cells, strict=True):
        if pack and _is_full(most, num_cells + number, filled + one):
            yield pack
            pack, filled, num_cells = [], 0.0, 0
        pack.append(member)
        filled, num_cells = filled + one, num_cells + number
    if pack:
        yield pack


def _is_full(most: Pack, num_cells: int, hours: float) -> bool:
    return num_cells > most if most != "auto" else num_cells > PACK_MOST or hours * 60 > PACK_MIN


def _longest(packs: list[list[Cost]]) -> Cost:
    """The common cost of an array, with time for the longest of its packs."""
    largest = max(packs, key=lambda pack: sum(cost.hours for cost in pack))
    return packs[0][0] if len(largest) == 1 else packed_cost(packs[0][0], largest)


def within_room(room: int | None, arrays: Iterator[Array]) -> Iterator[Array]:
    """As many array tasks as the queue takes now; the rest waits for the next look."""
    left = room
    for array in arrays:
        if left is None:
            yield array
            continue
        per_task = 2 if array.then else 1
        fitting = min(len(array.tasks), left // per_task)
        if fitting > 0:
            yield _cut(array, fitting)
        left -= fitting * per_task
        if fitting < len(array.tasks):
            if left > 0:  # no room for the evaluation that waits: it is submitted once training has ended
                yield replace(array, tasks=array.tasks[fitting : fitting + left], then=None)
            return


def _cut(array: Array, num_tasks: int) -> Array:
    then = None if array.then is None else _cut(array.then, num_tasks)
    return replace(array, tasks=array.tasks[:num_tasks], then=then)
