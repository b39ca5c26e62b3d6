"""Plans of study texts on made-up clusters, for the tests of sizes and plans."""

from dataclasses import replace

from orchestrator.grid import cells
from orchestrator.images import ON_DISK
from orchestrator.plan import make_plan
from orchestrator.sizing import size_cell
from orchestrator.state import CellState, StageState, Status
from orchestrator.study import load_study
from slurm.cluster import Partition, Profile

CPU = Partition(cpus_per_node=64, memory_gb_per_node=256)
GPU = Partition(
    accelerator="gpu",
    gres="gpu:h100",
    accelerators_per_node=8,
    accelerator_memory_gb=80,
    cpus_per_node=64,
    memory_gb_per_node=512,
    teraflops=400,
    max_time_min=2880,
    price_per_hour=2.0,
)
TPU = Partition(
    accelerator="tpu",
    gres="tpu:v5e",
    accelerators_per_node=4,
    accelerator_memory_gb=16,
    cpus_per_node=112,
    memory_gb_per_node=192,
    teraflops=197,
)
CLUSTER = Profile(partitions={"gpu-h100": GPU})
WIDE = Profile(partitions={"gpu-h100": GPU, "tpu-v5e": TPU, "cpu": CPU})


def new(cell):
    return CellState(cell=cell, train=StageState(status=Status.NEW), evaluate=StageState(status=Status.NEW))


def load(small, sets=(), more=""):
    """(study, its cells) of the small study with overrides and further text."""
    path = small.path.with_name("planned.toml")
    path.write_text(small.path.read_text() + more)
    file = load_study(path, sets)
    return file.study, cells(file.study, file.path)


def sizes_of(study, found, profile, *, hours=None, speeds=None):
    """Sizes by cell; `hours` sets what each training is expected to take (and its evaluation a tenth of it)."""
    sizes = {cell.cell_id: size_cell(study, cell.recipe, ON_DISK, profile, speeds) for cell in found}
    if hours is None:
        return sizes
    return {
        cell_id: replace(s, train=replace(s.train, hours=hours), evaluate=replace(s.evaluate, hours=hours / 10))
        for cell_id, s in sizes.items()
    }


def plan_of(small, profile=CLUSTER, sets=(), *, more="", states=new, hours=None, **options):
    """The plan of the small study; `states` makes a cell's state of the cell."""
    study, found = load(small, sets, more)
    sizes = sizes_of(study, found, profile, hours=hours)
    return make_plan(study, [states(cell) for cell in found], sizes, profile, **options)


def units(array):
    return [unit for pack in array.tasks for unit in pack]
