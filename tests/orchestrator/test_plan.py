import dataclasses

import pytest

from models.errors import UserError
from orchestrator import drive
from orchestrator.grid import cells
from orchestrator.plan import make_plan
from orchestrator.state import read_states
from orchestrator.study import load_study
from slurm.cluster import Partition, Profile, ProfileError, choose_partition, load_profile, local_profile

GPU = Partition(
    accelerator="gpu",
    gres="gpu:h100",
    accelerators_per_node=8,
    accelerator_memory_gb=80,
    cpus_per_node=64,
    memory_gb_per_node=512,
    teraflops=400,
    max_time_min=2880,
)
CLUSTER = Profile(partitions={"gpu-h100": GPU}, max_array_size=1000)


def plan_of(small, profile=CLUSTER, sets=()):
    file = load_study(small.path, sets)
    found = cells(file.study, file.path)
    return make_plan(file.study, read_states(small.store, file.study, found, {}), profile)


def test_an_array_holds_one_exact_signature(small):
    sizes = 'grid.size=["pico","S","L","10B"]'
    plan = plan_of(
        small, sets=[sizes, 'grid.family=["vit","mixer","resnet"]', "grid.image_size=224", "grid.patch_size=14"]
    )
    assert len(plan.arrays) > 1
    for array in plan.arrays:
        assert len({cell.train.resources.signature for cell in array.cells}) == 1
        assert len({cell.evaluate.resources.signature for cell in array.cells}) == 1
    in_arrays = [cell.cell.cell_id for array in plan.arrays for cell in array.cells]
    assert sorted(in_arrays) == sorted(cell.cell.cell_id for cell in plan.cells)


def test_arrays_stay_below_the_schedulers_limit(small):
    profile = CLUSTER.model_copy(update={"max_array_size": 7})
    plan = plan_of(small, profile, ["grid.seed=[0,1,2,3,4,5,6,7,8,9]"])
    assert max(len(array.cells) for array in plan.arrays) == 7
    assert plan.sbatch_calls == 2 * len(plan.arrays)
    assert sum(len(array.cells) for array in plan.arrays) == 40


def test_ten_billion_parameters_ask_for_many_accelerators(small):
    sets = ["grid.family=vit", 'grid.size=["Ti","10B"]', "grid.image_size=224", "grid.patch_size=14"]
    small_cell, large_cell = plan_of(small, sets=[*sets, "grid.fraction=1.0"]).cells
    assert small_cell.train.resources.accelerators == 1
    assert small_cell.train.resources.num_cpus == 8
    large = large_cell.train.resources
    assert large.accelerators * large.num_nodes * 80 > 160  # 16 bytes a parameter are 160 GB
    assert large_cell.flops > 100 * small_cell.flops


def test_hours_follow_the_flops(small):
    plan = plan_of(small)
    one = plan.cells[0].train
    assert one.hours == pytest.approx(one.flops / (400e12 * GPU.utilisation) / 3600)
    assert one.gpu_hours == one.hours
    assert plan.hours("gpu_hours") < plan.hours("gpu_hours_max")


def test_a_cell_that_needs_several_accelerators_is_refused_before_anything_is_written(small):
    plan = plan_of(small, sets=["grid.family=vit", 'grid.size=["10B"]', "grid.image_size=224", "grid.patch_size=14"])
    with pytest.raises(UserError, match="accelerators"):
        drive.refuse_several_accelerators(plan)


def test_hours_are_those_of_the_stages_that_are_left(small):
    plan = plan_of(small)
    cell = plan.cells[0]
    later = dataclasses.replace(cell, stages=("evaluate",))
    only = dataclasses.replace(plan, cells=[later])
    assert only.hours("gpu_hours") == cell.evaluate.gpu_hours
    assert only.hours("gpu_hours", of_all=True) == cell.train.gpu_hours + cell.evaluate.gpu_hours


def test_twice_the_epochs_are_twice_the_flops(small):
    one, two = (plan_of(small, sets=[f"grid.epochs={n}"]) for n in (1, 2))
    for a, b in zip(one.cells, two.cells, strict=True):
        assert b.flops == 2 * a.flops
        assert b.params == a.params


def test_no_cell_asks_for_more_than_a_node_has(small):
    tiny = Partition(cpus_per_node=2, memory_gb_per_node=3)
    plan = plan_of(small, Profile(partitions={"cpu": tiny}), ["grid.size=S", "grid.batch_size=4096"])
    for cell in plan.cells:
        assert cell.train.resources.mem_gb <= 3
        assert cell.train.resources.num_cpus <= 2
        assert cell.train.resources.accelerators == 0
        assert "memory" in cell.train.over
    assert not any(cell.train.over for cell in plan_of(small).cells)


def test_the_local_machine_is_a_cluster_without_sbatch(small):
    plan = plan_of(small, local_profile())
    assert plan.sbatch_calls == 0
    assert plan.hours("gpu_hours") == 0 < plan.hours("cpu_hours")


def test_the_plan_is_pure(small):
    one, two = (plan_of(small).to_json() for _ in range(2))
    assert one == two
    assert not small.runs.exists()


# --- profiles ------------------------------------------------------------------------------------------------------


def test_a_profile_comes_from_a_file(tmp_path):
    path = tmp_path / "cluster.toml"
    text = '[partitions.a]\n[partitions.b]\naccelerator = "tpu"\ngres = "tpu:v5e"\naccelerators_per_node = 4\n'
    path.write_text('account = "vision"\n' + text)
    profile = load_profile(str(path))
    assert (profile.scheduler, profile.account) == ("slurm", "vision")
    assert choose_partition(profile, None)[0] == "a"
    assert choose_partition(profile, "b")[1].accelerator == "tpu"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[partitions.a", ["cannot be read"]),
        ("", ["partitions"]),
        ("[partitions.a]\nacelerator = 'gpu'", ["partitions.a.acelerator"]),
        ("[partitions.a]\ncpus_per_node = 0", ["partitions.a.cpus_per_node", "given: 0"]),
        ("[partitions.a]\naccelerator = 'gpu'", ["partitions.a", "needs gres and accelerators_per_node"]),
    ],
)
def test_a_profile_that_cannot_be_used_is_named(tmp_path, text, parts):
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    with pytest.raises(ProfileError) as caught:
        load_profile(str(path))
    for part in ["cluster.toml", *parts]:
        assert part in str(caught.value)


def test_a_missing_profile_and_an_unknown_partition(tmp_path):
    with pytest.raises(ProfileError, match="no such cluster profile"):
        load_profile(str(tmp_path / "none.toml"))
    with pytest.raises(ProfileError, match="known: gpu-h100"):
        choose_partition(CLUSTER, "gpu")
