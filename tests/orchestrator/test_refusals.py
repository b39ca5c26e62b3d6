"""What cannot run is refused in words before anything is submitted or written, each with its exit code."""

import pytest

from tests.orchestrator.conftest import SmallStudy
from tests.orchestrator.upshot_command import upshot
from tests.private_slurm import PrivateSlurm, available

CPU = """
[partitions.cpu]
cpus_per_node = 2
memory_gb_per_node = 4
max_time_min = 60
"""
GPU = """
[partitions.cpu]
accelerator = "gpu"
request = "partition"
accelerators_per_node = 1
accelerator_memory_gb = 80
memory_gb_per_node = 60
"""

pytestmark = pytest.mark.slurm


@pytest.fixture
def refused(tmp_path, on_slurm):
    small = SmallStudy(tmp_path)
    small.path.write_text(small.path.read_text() + '[cluster]\nprofile = "mini.toml"\n')

    def in_queue():
        return set(on_slurm.run("squeue", "-ho%i").split())

    before = in_queue()  # jobs of other tests may be on their way out

    def submit(profile, *words, code):
        (tmp_path / "mini.toml").write_text(profile)
        sets = [part for word in words for part in ("--set", word)]
        said = upshot("submit", small.path, "--runs", small.runs, "-y", *sets, code=code)
        assert not small.store.root.exists(), "a refused study leaves nothing behind"
        assert in_queue() <= before
        return said

    return submit


@pytest.mark.parametrize(
    ("profile", "words", "code", "parts"),
    [
        (CPU.replace("partitions.cpu", "partitions.cpus"), (), 2, ["cpus", "cpu"]),
        (CPU, ("cluster.partition=gpu",), 2, ["unknown partition 'gpu'", "known: cpu"]),
        (CPU, ("cluster.evaluate_partition=gpu",), 2, ["unknown partition 'gpu'"]),
        (CPU, ("cluster.accelerators=2",), 2, ["cluster.accelerators is 2", "partition cpu has none"]),
        (GPU + "max_nodes = 2\n", ("cluster.accelerators=4",), 2, ["at most 2 on partition cpu"]),
        (CPU.replace("memory_gb_per_node = 4", "memory_gb_per_node = 4000"), (), 2, ["memory_gb_per_node"]),
        (CPU.replace("cpus_per_node = 2", "cpus_per_node = 512"), (), 2, ["cpus_per_node"]),
        ('account = "nobody; rm -rf /"\n' + CPU, (), 2, ["account"]),
        (CPU.replace("memory_gb_per_node = 4", "memory_gb_per_node = 1"), (), 4, ["more memory than the 1 GB"]),
        (GPU, ("cluster.max_gpu_hours=0",), 4, ["cluster.max_gpu_hours is 0"]),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, tuple) else None,
)
def test_it_is_refused_in_words(refused, profile, words, code, parts):
    said = refused(profile, *words, code=code)
    for part in parts:
        assert part in said


def test_a_wall_time_above_the_partitions_own_is_refused(tmp_path, monkeypatch):
    if not available()[0]:
        pytest.skip("no private Slurm can run here")
    short = "PartitionName=short Nodes=cpu0 MaxTime=30 State=UP"
    with PrivateSlurm(num_nodes=1, extra_conf=[short]) as cluster:
        for name, value in cluster.env.items():
            monkeypatch.setenv(name, value)
        small = SmallStudy(tmp_path)
        (tmp_path / "mini.toml").write_text(CPU.replace("partitions.cpu", "partitions.short"))
        small.path.write_text(small.path.read_text() + '[cluster]\nprofile = "mini.toml"\n')
        said = upshot("submit", small.path, "--runs", small.runs, code=2)
        assert "max_time_min" in said
        assert "30" in said
        assert not small.store.root.exists()


def test_a_cell_that_does_not_fit_the_accelerators_that_there_are_is_refused(refused):
    ten_billion = ("grid.family=vit", "grid.size=10B", "grid.image_size=224", "grid.patch_size=14")
    said = refused(GPU + "max_nodes = 1\n", *ten_billion, code=2)
    assert "GB on each of 1 accelerators of partition cpu, of whose 80 GB 72 can be planned" in said
