import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evals import tasks
from models import ladder
from models.build import build_model
from models.data import describe, load_labels, split, subset
from models.data.parts import MAX_TEST
from models.data.residence import fits_in_memory
from models.memory import own_memory_gb
from models.recipe import num_steps
from orchestrator import drive, sizing
from orchestrator.evaluation_cost import evaluation_work, feature_width
from orchestrator.grid import planned_architecture
from orchestrator.images import ImagesOnDisk
from orchestrator.sizing import packed_cost, rounded_minutes, with_less_memory
from orchestrator.speeds import measure_speeds
from orchestrator.spread import MEMORY_SHARE, TIME_MARGIN, TIME_START_MIN
from slurm.cluster import Partition, Profile, ProfileError, local_profile
from slurm.resources import LimitReachedError
from tests.models.stored_images import examples, write_folder
from tests.orchestrator.plans import CLUSTER, CPU, GPU, TPU, WIDE, load, plan_of, sizes_of

LARGE = ["grid.family=vit", 'grid.size=["10B"]', "grid.image_size=224", "grid.patch_size=14", "grid.fraction=1.0"]


def on(**changes):
    """A cluster of one partition that differs from the H100s by this."""
    return Profile(partitions={"gpu": GPU.model_copy(update=changes)})


def trains(small, profile=CLUSTER, sets=(), **options):
    return [cell.train for cell in plan_of(small, profile, sets, **options).cells]


# --- time and memory -----------------------------------------------------------------------------------------------


def test_hours_follow_the_flops(small):
    plan = plan_of(small)
    one = plan.cells[0].train
    assert one.hours == pytest.approx(one.flops / (400e12 * GPU.utilisation) / 3600)
    assert one.gpu_hours == one.hours
    assert one.price == pytest.approx(2.0 * one.gpu_hours)
    assert plan.hours("gpu_hours") < plan.gpu_hours_max


def test_the_peak_is_that_of_all_accelerators_and_only_where_the_profile_says_it(small):
    for accelerators in (1, 4):
        costs = trains(small, on(teraflops=400), [f"cluster.accelerators={accelerators}"])
        assert {cost.peak_teraflops for cost in costs} == {400.0 * accelerators}
    silent = trains(small, on(teraflops=None))
    assert {cost.peak_teraflops for cost in silent} == {None}
    assert silent[0].hours == pytest.approx(silent[0].flops / (100e12 * GPU.utilisation) / 3600)
    local = plan_of(small, local_profile()).cells[0].train
    assert (local.peak_teraflops, local.hours > 0) == (None, True)


def test_twice_the_epochs_are_twice_the_flops(small):
    one, two = (plan_of(small, sets=[f"grid.epochs={n}"]) for n in (1, 2))
    for a, b in zip(one.cells, two.cells, strict=True):
        assert b.flops == 2 * a.flops
        assert b.params == a.params


def test_flops_are_those_of_the_images_that_are_drawn(small):
    s = load_labels("icons")
    train_idx = split(s)[0]
    sets = ["grid.family=vit", "grid.seed=[0, 1]", "grid.epochs=3", "grid.classes=[0.1, 0.6]"]
    for more in ("grid.fraction=[0.2, 1.0]", "grid.images=[1000, 1300]"):
        sizes_and = plan_of(small, sets=[*sets, *(["grid.fraction=1.0"] if "images" in more else []), more])
        for planned in sizes_and.cells:
            recipe = planned.cell.recipe
            drawn = s.labels_N[subset(s.labels_N, train_idx, **recipe.subset)]
            steps, batch = num_steps(len(drawn), batch_size=recipe.batch_size, epochs=recipe.epochs)
            arch = ladder.architecture(
                "vit", recipe.size, image_size=32, num_classes=len(np.unique(drawn)), patch_size=recipe.patch_size
            )
            assert planned.flops == ladder.train_flops(arch) * steps * batch


def test_all_checkpoints_are_more_to_judge_than_the_last(small):
    sets = ["train.checkpoints=4"]
    all_of_them = plan_of(small, sets=sets).cells[0].evaluate.flops
    assert all_of_them == 4 * plan_of(small, sets=[*sets, "downstream.checkpoints=last"]).cells[0].evaluate.flops


def test_an_evaluation_encodes_every_image_once_whatever_is_fitted_to_it(small):
    def encoded(*protocols, upstream=False):
        study, found = load(
            small, [f"downstream.protocol={list(protocols)}", f"downstream.upstream={upstream}".lower()]
        )
        arch = planned_architecture(found[0].recipe)
        work = evaluation_work(study, arch, ImagesOnDisk())
        assert work.flops(arch) == ladder.forward_flops(arch) * work.num_encoded
        assert (work.num_trained, work.batch_size) == (0, 0)
        return work.num_encoded

    mnist, patches = tasks.task("mnist"), tasks.task("patches")
    tests, shots = 1000 + 834, 5 * 2 * (10 + 12)  # shots, draws, classes
    assert encoded("ridge") == encoded("ridge", "logistic", "knn", "finetune-head") == tests + shots
    assert encoded("ridge", upstream=True) == tests + shots + min(describe("icons").num_test, MAX_TEST)
    assert encoded("linear") == encoded("linear", "ridge", "knn-all") == tests + mnist.num_train + patches.num_train
    assert encoded("vtab1k-linear") == tests + 1000 + patches.num_train  # which are 847
    assert encoded("vtab1k-linear", "ridge") == tests + 1000 + 5 * 2 * 10 + patches.num_train


def test_fine_tuning_costs_its_steps_and_a_pass_of_the_test_images_for_each_model(small):
    study, found = load(
        small, ["downstream.protocol=finetune", 'downstream.tasks=["mnist"]', "downstream.upstream=false"]
    )
    arch = planned_architecture(found[0].recipe)
    work = evaluation_work(study, arch, ImagesOnDisk())
    assert work.num_trained == 2 * 500 * (10 + 50)  # draws, steps, images of 1 and of 5 shots
    assert work.num_encoded == 4 * 1000
    assert work.flops(arch) == ladder.train_flops(arch) * work.num_trained + ladder.forward_flops(arch) * 4000
    plans = [plan_of(small, local_profile(), [f"downstream.protocol={name}"]) for name in ("ridge", "vtab1k-finetune")]
    ridge, tuned = (plan.cells[0].evaluate for plan in plans)
    assert tuned.hours > 100 * ridge.hours
    assert tuned.resources.mem_gb >= ridge.resources.mem_gb


def test_features_of_all_training_images_are_held_of_the_last_layer_alone(small):
    def features_gb(protocol, task):
        study, found = load(small, [f"downstream.protocol={protocol}", f"downstream.tasks={task}"])
        arch = planned_architecture(found[0].recipe)
        return evaluation_work(study, arch, ImagesOnDisk()).features_gb, arch

    images = tasks.task("noto_script")
    held, arch = features_gb("linear", '["noto_script"]')
    copies = 2  # the features, and what the probe makes of them
    weights = 8 * images.num_classes * (arch.width + 1)
    assert held == (copies * 4 * images.num_train * arch.width + weights) / 1e9
    assert features_gb("linear", '["cells","noto_script"]')[0] == held, "one task after the other"
    shots = images.num_classes * 5 * 2
    layers = arch.depth + 1
    few = copies * 4 * shots * layers * arch.width
    assert features_gb("ridge", '["noto_script"]')[0] == (few + 2 * 2 * layers * weights) / 1e9
    neighbours = 4 * images.num_classes * (1 + 5) * 2 * layers * arch.width
    assert features_gb("knn", '["noto_script"]')[0] == (few + neighbours) / 1e9


@pytest.mark.parametrize(
    ("family", "size"),
    [("vit", "pico"), ("mixer", "pico"), ("resnet", "pico"), ("resnet", "R50"), ("timm", "resnet18")],
)
def test_no_layer_has_more_features_than_are_planned_for(family, size):
    arch = ladder.architecture(family, size, image_size=32, num_classes=10)
    widest = build_model(arch).num_features
    assert feature_width(arch) == widest if family != "timm" else feature_width(arch) >= widest


def test_measured_seconds_correct_the_hours(small):
    study, found = load(small)
    before = sizes_of(study, found, CLUSTER)[found[0].cell_id].train
    speeds = measure_speeds([("train", found[0].recipe.family, before.hours * 3600, 3 * before.hours * 3600)])
    after = sizes_of(study, found, CLUSTER, speeds=speeds)[found[0].cell_id].train
    assert after.hours == pytest.approx(3 * before.hours)
    assert after.planned_hours == before.planned_hours


def test_no_cell_asks_for_more_than_a_node_has(small):
    tiny = Partition(cpus_per_node=2, memory_gb_per_node=3)
    plan = plan_of(small, Profile(partitions={"cpu": tiny}), ["grid.size=S", "grid.batch_size=4096"])
    for cell in plan.cells:
        assert cell.train.resources.mem_gb <= 3
        assert cell.train.resources.num_cpus <= 2
        assert cell.train.resources.accelerators == 0
        assert cell.train.micro_batch < 4096
    assert not any(cell.train.over for cell in plan_of(small).cells)


def test_what_no_node_holds_is_over_its_memory_and_refused(small):
    tiny = Partition(cpus_per_node=2, memory_gb_per_node=1)
    profile = Profile(partitions={"cpu": tiny})
    plan = plan_of(small, profile)
    assert all("memory" in cell.train.over for cell in plan.cells)
    with pytest.raises(LimitReachedError, match=r"needs more memory than the 1 GB of a node of partition cpu"):
        drive.refuse_what_cannot_run(plan, profile)


def test_an_average_of_the_weights_and_the_masks_of_dropout_leave_less_room_for_images(small):
    sets = ["grid.family=vit", 'grid.size=["H"]', "grid.image_size=224", "grid.patch_size=14", "grid.fraction=1.0"]
    only = on(accelerator_memory_gb=24, accelerators_per_node=1, max_nodes=1)
    more = ([], ["grid.ema=0.999"], ["grid.dropout=0.1"], ["grid.drop_path=0.1"])
    plain, averaged, dropped, skipped = (trains(small, only, sets + axes)[0] for axes in more)
    assert (plain.micro_batch, averaged.micro_batch, dropped.micro_batch, skipped.micro_batch) == (16, 8, 8, 16)


def test_an_average_of_the_weights_is_counted_on_the_host_too(small):
    sets = ["grid.family=vit", 'grid.size=["G"]', "grid.image_size=224", "grid.patch_size=14", "grid.fraction=1.0"]
    (plain,), (averaged,) = (trains(small, CLUSTER, sets + axes) for axes in ([], ["grid.ema=0.999"]))
    assert plain.resources.mem_gb < averaged.resources.mem_gb


@given(st.floats(0.01, 1e6))
def test_few_distinct_time_limits_suffice(minutes):
    rounded = rounded_minutes(minutes)
    assert rounded >= minutes
    assert rounded == 10 or rounded < 2 * minutes
    assert rounded % 10 == 0
    assert (rounded // 10).bit_count() == 1


# --- images on disk ------------------------------------------------------------------------------------------------


@pytest.fixture
def on_disk(small, tmp_path):
    """The small study, on a folder of images."""
    folder = write_folder(tmp_path / "photos", examples(200))
    small.path.write_text(small.path.read_text().replace('"icons"', f'"{folder}"'))
    return small


ON_DISK = ["grid.fraction=1.0", "grid.family=vit", "grid.image_size=512", "grid.patch_size=128", "grid.batch_size=8"]


@pytest.mark.parametrize(("node_gb", "kept"), [(0.25, False), (0.4, True), (512, True)])
def test_a_job_keeps_its_images_exactly_where_the_plan_counts_on_it(on_disk, monkeypatch, node_gb, kept):
    """200 images of 0.8 MB, of which a process keeps 0.157 GB or reads all of them again in every epoch."""
    monkeypatch.setattr(sizing, "MEMORY_BASE_GB", 0.01)
    monkeypatch.setattr(sizing, "MEMORY_CUDA_GB", 0.0)
    node = on(memory_gb_per_node=node_gb, accelerators_per_node=1)
    [cell] = trains(on_disk, node, ON_DISK)
    assert cell.over == ()
    monkeypatch.setenv("SLURM_MEM_PER_NODE", str(int(cell.resources.mem_gb * 1024)))
    num_images = 200
    assert fits_in_memory(num_images, 512, own_memory_gb()) == kept
    assert (cell.resources.mem_gb >= 0.157 * 2) == kept


def test_the_processes_of_a_node_share_its_memory(on_disk, monkeypatch):
    sets = [*ON_DISK, "cluster.accelerators=4"]
    [cell] = trains(on_disk, on(memory_gb_per_node=512, accelerators_per_node=4), sets)
    assert cell.resources.tasks_per_node == 4
    monkeypatch.setenv("SLURM_MEM_PER_NODE", str(int(cell.resources.mem_gb * 1024)))
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    assert own_memory_gb() == cell.resources.mem_gb / 4
    assert fits_in_memory(200, 512, own_memory_gb())


def test_an_evaluation_needs_none_of_the_images_on_disk(on_disk):
    few, many = (plan_of(on_disk, sets=[*ON_DISK, f"grid.image_size={side}"]).cells[0] for side in (512, 8192))
    assert few.train.resources.mem_gb < many.train.resources.mem_gb
    assert few.evaluate.resources.mem_gb == many.evaluate.resources.mem_gb


# --- accelerators --------------------------------------------------------------------------------------------------


def test_a_small_cell_has_one_accelerator_and_its_share_of_the_node(small):
    one = trains(small)[0].resources
    assert (one.num_nodes, one.accelerators, one.accelerator, one.num_cpus) == (1, 1, "gpu:h100", 8)


def test_ten_billion_parameters_are_sharded_over_as_many_accelerators_as_hold_them(small):
    [large] = plan_of(small, sets=LARGE).cells
    asked, memory = large.train.resources, large.train.memory
    assert (asked.num_nodes, asked.accelerators, asked.tasks_per_node) == (1, 8, 8)
    assert large.train.sharded
    assert large.train.over == ()
    state_gb = 16 * large.params / 1e9  # weight, gradient and two moments, each in float32
    assert memory.weights_gb + memory.gradients_gb + memory.optimizer_gb == pytest.approx(state_gb / 8)
    assert memory.gathered_gb > 4 * large.params / 50 / 1e9  # a block of fifty, at least
    assert large.train.memory_gb["total"] <= 80 * MEMORY_SHARE
    assert large.train.micro_batch == 4 or large.train.micro_batch is None
    # Eight processes copy their shards of a checkpoint to the host, not eight whole ones.
    assert asked.mem_gb < 8 * 12 * large.params / 1e9
    drive.refuse_what_cannot_run(plan_of(small, sets=LARGE), CLUSTER)


def test_sharded_cells_spread_over_nodes(small):
    [large] = trains(small, on(accelerator_memory_gb=24), LARGE)
    assert large.resources.num_accelerators == 32
    assert large.resources.num_nodes == 4
    assert large.memory_gb["total"] <= 24 * MEMORY_SHARE


def test_the_average_of_the_weights_is_sharded_too(small):
    (plain,), (averaged,) = (trains(small, CLUSTER, LARGE + axes) for axes in ([], ["grid.ema=0.999"]))
    assert averaged.memory.average_gb == pytest.approx(averaged.memory.weights_gb)
    assert plain.memory.average_gb == 0


@pytest.mark.parametrize("sets", [[], ["cluster.accelerators=4"]], ids=str)
def test_shards_that_do_not_fit_are_refused_before_anything_is_written(small, sets):
    profile = on(accelerator_memory_gb=24, max_nodes=1)
    plan = plan_of(small, profile, LARGE + sets)
    assert plan.cells[0].train.over == ("accelerator",)
    num = 4 if sets else 8
    with pytest.raises(ValueError, match=rf"GB on each of {num} accelerators .* of whose 24 GB 21.6"):
        drive.refuse_what_cannot_run(plan, profile)
    assert not small.runs.exists()


def test_shards_over_tpus_are_those_of_one_host(small):
    profile = Profile(partitions={"tpu": TPU})
    [fits] = trains(small, profile, [*LARGE, 'grid.size=["g"]'])
    assert fits.sharded
    assert (fits.resources.num_nodes, fits.resources.tasks_per_node, fits.resources.accelerators) == (1, 1, 4)
    with pytest.raises(ValueError, match=r"GB on each of 4 accelerators of partition tpu"):
        drive.refuse_what_cannot_run(plan_of(small, profile, LARGE), profile)


def test_a_cell_that_fits_one_accelerator_is_not_sharded(small):
    cost = trains(small, sets=["cluster.accelerators=8"])[0]
    assert not cost.sharded
    assert cost.memory.gathered_gb == 0


def test_what_one_accelerator_does_not_end_within_one_wall_time_is_given_more(small):
    hours = trains(small)[0].hours
    sets = ["grid.family=vit", "grid.fraction=0.02"]
    slow = {"teraflops": 400 * hours / 10, "max_time_min": 360}  # about 10 hours on one
    [one] = trains(small, on(**{**slow, "max_time_min": 100_000}), sets)
    [many] = trains(small, on(**slow), sets)
    assert one.resources.num_accelerators == 1
    assert one.hours * 60 * TIME_MARGIN + TIME_START_MIN > 360
    assert many.resources.num_accelerators > 1
    assert many.hours * 60 * TIME_MARGIN + TIME_START_MIN <= 360
    assert many.hours == pytest.approx(one.hours / many.resources.num_accelerators)
    assert many.gpu_hours == pytest.approx(one.gpu_hours)
    assert many.over == ()


def test_what_no_number_of_accelerators_ends_in_time_is_told(small):
    [cost] = trains(small, on(teraflops=1e-7, max_time_min=60, max_nodes=1), ["grid.family=vit", "grid.fraction=0.02"])
    assert cost.resources.num_accelerators == 8
    assert cost.resources.time_min == 60
    assert cost.over == ("time",)


def test_a_resnet_gets_more_accelerators_before_its_batch_is_cut_and_a_vit_does_not(small):
    sets = ["grid.size=S", "grid.batch_size=4096", "grid.image_size=224", "grid.patch_size=16", "grid.fraction=1.0"]
    by_family = {c.cell.recipe.family: c.train for c in plan_of(small, on(accelerator_memory_gb=40), sets).cells}
    assert by_family["resnet"].micro_batch is None
    assert by_family["resnet"].resources.num_accelerators > 1
    assert by_family["vit"].micro_batch < 4096
    assert by_family["vit"].resources.num_accelerators == 1


def test_a_resnet_is_cut_where_there_are_no_more_accelerators(small):
    sets = ["grid.family=resnet", "grid.size=S", "grid.batch_size=4096", "grid.image_size=224", "grid.fraction=1.0"]
    only = on(accelerator_memory_gb=40, accelerators_per_node=1, max_nodes=1)
    [cost] = trains(small, only, sets)
    assert cost.resources.num_accelerators == 1
    assert cost.micro_batch < 4096


@pytest.mark.parametrize(("asked", "nodes", "per_node"), [(2, 1, 2), (8, 1, 8), (16, 2, 8)])
def test_the_study_can_say_how_many_accelerators_a_cell_has(small, asked, nodes, per_node):
    for cost in trains(small, sets=[f"cluster.accelerators={asked}"]):
        assert (cost.resources.num_nodes, cost.resources.accelerators) == (nodes, per_node)
        assert cost.resources.tasks_per_node == per_node
    for cell in plan_of(small, sets=[f"cluster.accelerators={asked}"]).cells:
        assert cell.evaluate.resources.num_accelerators == 1


def test_a_cell_has_no_more_accelerators_than_images_in_a_batch(small):
    few = ["grid.batch_size=4", "grid.family=vit", "grid.fraction=1"]
    [cost] = trains(small, on(teraflops=1e-9), few)
    assert cost.resources.num_accelerators == 4
    with pytest.raises(ProfileError, match=r"accelerators is 64, but a cell can have at most 4"):
        trains(small, sets=[*few, "cluster.accelerators=64"])


# --- placement -----------------------------------------------------------------------------------------------------

PLACES = """
[[cluster.place]]
partition = "tpu-v5e"
where = {family = "vit", fraction = [0.02]}
[[cluster.place]]
partition = "cpu"
where = {fraction = 0.02}
"""


def test_cells_of_one_study_are_placed_on_several_partitions(small):
    plan = plan_of(small, WIDE, more=PLACES)
    placed = {(c.cell.recipe.family, c.cell.recipe.fraction): c.train.resources for c in plan.cells}
    assert {key: (r.partition, r.accelerator) for key, r in placed.items()} == {
        ("vit", 0.02): ("tpu-v5e", "tpu:v5e"),
        ("resnet", 0.02): ("cpu", None),
        ("vit", 0.01): ("gpu-h100", "gpu:h100"),
        ("resnet", 0.01): ("gpu-h100", "gpu:h100"),
    }
    assert {c.evaluate.resources.partition for c in plan.cells} == {"tpu-v5e", "cpu", "gpu-h100"}
    partitions = {array.cost.resources.partition: len(array.tasks) for array in plan.arrays}
    assert set(partitions) == {"tpu-v5e", "cpu", "gpu-h100"}


def test_cells_can_be_judged_elsewhere(small):
    plan = plan_of(small, WIDE, more='[cluster]\nevaluate_partition = "cpu"\n' + PLACES)
    assert {c.evaluate.resources.partition for c in plan.cells} == {"cpu"}
    assert {c.evaluate.resources.accelerators for c in plan.cells} == {0}
    assert {c.train.resources.partition for c in plan.cells} == {"tpu-v5e", "cpu", "gpu-h100"}


def test_the_chips_of_a_tpu_host_belong_to_one_process(small):
    for cost in trains(small, WIDE, ["cluster.partition=tpu-v5e", "cluster.accelerators=4"]):
        assert (cost.resources.num_nodes, cost.resources.accelerators, cost.resources.tasks_per_node) == (1, 4, 1)


@pytest.mark.parametrize(("batch", "most"), [(64, 4), (50, 2), (33, 1)])
def test_a_cell_has_at_most_the_chips_of_a_host_that_divide_its_batch(small, batch, most):
    on_tpus = ["cluster.partition=tpu-v5e", f"grid.batch_size={batch}"]
    slow = Profile(partitions={"tpu-v5e": TPU.model_copy(update={"teraflops": 1e-9, "utilisation": 0.01})})
    for cost in trains(small, slow, on_tpus):  # which would want as many as there are
        assert (cost.resources.num_nodes, cost.resources.accelerators) == (1, most)
    with pytest.raises(ProfileError, match=rf"at most {most} on .*of TPUs one, whose chips divide a batch"):
        trains(small, WIDE, [*on_tpus, "cluster.accelerators=8"])


def test_nodes_that_are_had_whole_are_asked_for_whole(small):
    whole = Profile(partitions={"tpu": TPU.model_copy(update={"request": "partition", "gres": None})})
    for cost in trains(small, whole):
        assert (cost.resources.num_nodes, cost.resources.accelerators) == (1, 4)


def test_an_unknown_partition_names_the_known_ones(small):
    with pytest.raises(ProfileError, match=r"known: gpu-h100, tpu-v5e, cpu"):
        plan_of(small, WIDE, more=PLACES.replace('"tpu-v5e"', '"tpu-v6"'))


# --- packs and micro-batches ---------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hours=st.lists(st.floats(1e-4, 100), min_size=1, max_size=20))
def test_a_pack_has_time_for_its_members_and_never_more_than_there_is(small, hours):
    study, found = load(small)
    one = sizes_of(study, found, CLUSTER)[found[0].cell_id].train
    members = [sizes_of(study, found[:1], CLUSTER, hours=h)[found[0].cell_id].train for h in hours]
    packed = packed_cost(one, members)
    wanted = sum(hours) * 60 * TIME_MARGIN + TIME_START_MIN
    assert packed.resources.time_min >= min(wanted, GPU.max_time_min)
    assert one.resources.time_min <= packed.resources.time_min <= GPU.max_time_min
    assert packed.hours == pytest.approx(sum(hours))


def test_memory_that_did_not_suffice_costs_images_at_once_then_time_then_images(small):
    cell = plan_of(small, sets=["grid.family=vit"]).cells[0]
    assert (cell.train.micro_batch, cell.train.checkpointed) == (None, False)  # the batch of 64 fits whole
    costs = [with_less_memory(cell.cell.recipe, cell.train, times) for times in range(1, 8)]
    ways = [(cost.micro_batch, cost.checkpointed) for cost in costs]
    assert ways == [(32, False), (16, False), (8, False), (8, True), (4, True), (2, True), (1, True)]
    assert [cost.hours / cell.train.hours for cost in costs] == pytest.approx([1.0] * 3 + [4 / 3] * 4)
    assert {cost.flops for cost in costs} == {cell.train.flops}
    with pytest.raises(ValueError, match="one image at a time"):
        with_less_memory(cell.cell.recipe, cell.train, 8)


def test_with_batch_norm_time_is_given_before_images(small):
    cell = plan_of(small, sets=["grid.family=resnet"]).cells[0]
    costs = [with_less_memory(cell.cell.recipe, cell.train, times) for times in range(1, 4)]
    assert [(cost.micro_batch, cost.checkpointed) for cost in costs] == [(64, True), (32, True), (16, True)]


@pytest.mark.parametrize(("family", "enough"), [("vit", 8), ("resnet", 64)])
def test_blocks_are_computed_again_where_too_few_images_would_fit(small, family, enough):
    sets = [f"grid.family={family}", "grid.size=B", "grid.image_size=224", "grid.fraction=1.0"]
    found = []
    for memory_gb in (40, 12, 6, 5, 4, 3, 2.5, 2.2):
        [cost] = trains(small, on(accelerator_memory_gb=memory_gb, max_nodes=1, accelerators_per_node=1), sets)
        found.append((cost.micro_batch or 64, cost.checkpointed, cost.sharded))
        assert cost.planned_hours == pytest.approx(
            cost.flops / (400e12 * GPU.utilisation) / 3600 * (4 / 3 if cost.checkpointed else 1)
        )
    whole = [images for images, checkpointed, _ in found if not checkpointed]
    assert 0 < len(whole) < len(found)
    assert min(whole) >= enough
    assert found == sorted(found, key=lambda one: one[1])  # none goes back to keeping all with less memory


def test_long_trainings_on_gpus_are_compiled_and_what_the_study_says(small):
    sets = ["grid.family=vit", "grid.fraction=1.0"]
    slow, fast = on(teraflops=1e-5), on(teraflops=400)
    assert [trains(small, where, sets)[0].compiled for where in (slow, fast)] == [True, False]
    assert not trains(small, Profile(partitions={"cpu": CPU.model_copy(update={"teraflops": 1e-4})}), sets)[0].compiled
    for wanted in (True, False):
        assert trains(small, slow, [*sets, f"train.compile={str(wanted).lower()}"])[0].compiled is wanted


def test_cells_of_several_processes_need_srun(small):
    without = CLUSTER.model_copy(update={"use_srun": False})
    with pytest.raises(ProfileError, match="use_srun is false"):
        drive.refuse_what_cannot_run(plan_of(small, without, ["cluster.accelerators=2"]), without)
