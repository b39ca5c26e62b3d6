import dataclasses
import itertools
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.observe import Observer
from orchestrator.state import CellState, StageState, Status
from orchestrator.wanted import MissingFile
from slurm.cluster import Profile, load_profile, local_profile
from slurm.failures import Cause, Death
from tests.orchestrator.ledger import Ledger
from tests.orchestrator.plans import CLUSTER, CPU, GPU, WIDE, load, new, plan_of, sizes_of, units
from tests.orchestrator.upshot_command import upshot

TEN_SEEDS = ["grid.seed=[0,1,2,3,4,5,6,7,8,9]"]
ONE_A_JOB = ["cluster.pack=1"]
LENGTHS = ["grid.epochs=[1,2,3]", 'grid.schedule="rsqrt"']
SLOW = Profile(partitions={"gpu-h100": GPU.model_copy(update={"teraflops": 1e-5})})
OWN = 3 - 0.8 / 2 - 1.6 / 3  # trainings of three lengths, each of which is expected to take as long


def trained(cell, steps=(2, 4)):
    """Training has ended, and nothing is judged yet."""
    missing = tuple(MissingFile(step, task, "ridge") for step in steps for task in ("mnist", "patches"))
    done = StageState(status=Status.DONE, num_attempts=1, token="t")
    return CellState(cell=cell, train=done, evaluate=StageState(status=Status.NEW), steps=steps, missing=missing)


def failed(*causes, node="", stage="train", retried=True):
    """Cells of which that stage died so, one death after the other."""

    def state(cell):
        deaths = tuple(Death(cause=cause, detail="said", node=node) for cause in causes)
        dead = StageState(
            status=Status.FAILED,
            cause=causes[-1],
            detail="said",
            num_attempts=len(causes),
            deaths=deaths,
            recent=deaths if retried else (),
        )
        if stage == "train":
            return CellState(cell=cell, train=dead, evaluate=StageState(status=Status.BLOCKED))
        return dataclasses.replace(trained(cell), evaluate=dead)

    return state


# --- arrays --------------------------------------------------------------------------------------------------------


def test_an_array_holds_one_exact_signature(small):
    sizes = 'grid.size=["pico","S","L","10B"]'
    plan = plan_of(
        small, sets=[sizes, 'grid.family=["vit","mixer","resnet"]', "grid.image_size=224", "grid.patch_size=14"]
    )
    assert len(plan.arrays) > 1
    cells = {planned.cell.cell_id: planned for planned in plan.cells}
    for array in plan.arrays:
        members = [cells[unit] for unit in units(array)]
        assert len({cell.train.resources for cell in members}) == 1
        assert len({cell.evaluate.resources for cell in members}) == 1
        assert len({cell.train.micro_batch for cell in members}) == 1
        assert array.then.tasks == array.tasks
    assert sorted(unit for array in plan.arrays for unit in units(array)) == sorted(cells)


def test_arrays_stay_below_the_schedulers_limit_and_the_profiles(small):
    for profile, most in ((CLUSTER, 9), (CLUSTER.model_copy(update={"max_array_tasks": 7}), 7)):
        plan = plan_of(small, profile, [*TEN_SEEDS, *ONE_A_JOB], max_array_tasks=9)
        assert max(len(array.tasks) for array in plan.arrays) == most
        assert plan.sbatch_calls == 2 * len(plan.arrays)
        assert sum(len(array.tasks) for array in plan.arrays) == 40


def test_evaluations_come_first_then_the_dearest_trainings(small):
    done = {cell.cell_id for cell in load(small, TEN_SEEDS)[1][::2]}
    plan = plan_of(
        small,
        CLUSTER.model_copy(update={"max_array_tasks": 3}),
        [*TEN_SEEDS, *ONE_A_JOB],
        states=lambda cell: trained(cell) if cell.cell_id in done else new(cell),
    )
    stages = [array.stage for array in plan.arrays]
    assert stages == sorted(stages)  # evaluate before train
    flops = {planned.cell.cell_id: planned.flops for planned in plan.cells}
    order = [flops[unit] for array in plan.arrays if array.stage == "train" for unit in units(array)]
    assert len(order) == 20
    assert order == sorted(order, reverse=True)


def test_each_checkpoint_of_a_trained_cell_is_judged_in_a_task_of_its_own(small):
    plan = plan_of(small, sets=ONE_A_JOB, states=trained)
    [array] = plan.arrays
    assert array.then is None
    assert sorted(units(array)) == sorted(f"{c.cell.cell_id}@{step}" for c in plan.cells for step in (2, 4))
    assert {len(pack) for pack in array.tasks} == {1}


# --- packs ---------------------------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(pack=st.integers(1, 50))
def test_a_fixed_number_of_cells_shares_a_job(small, pack):
    plan = plan_of(small, sets=[*TEN_SEEDS, f"cluster.pack={pack}"], hours=5.0)
    sizes = [len(p) for array in plan.arrays for p in array.tasks]
    assert sum(sizes) == 40
    assert max(sizes) == min(pack, 40)
    assert sum(size < pack for size in sizes) <= len(plan.arrays)  # the last of each array


def test_what_takes_long_has_a_job_of_its_own_and_what_is_short_shares_one(small):
    minutes = {minutes: plan_of(small, sets=TEN_SEEDS, hours=minutes / 60) for minutes in (60, 2, 1e-3)}
    packs = {m: sorted(len(p) for array in plan.arrays for p in array.tasks) for m, plan in minutes.items()}
    assert set(packs[60]) == {1}
    assert packs[2][-1] == 4  # training and evaluation of four are 8.8 minutes
    assert packs[1e-3] == [40]


def test_a_job_never_holds_more_than_64_cells(small):
    plan = plan_of(small, sets=[f"grid.seed={list(range(50))}"], hours=1e-6)
    packs = [len(pack) for array in plan.arrays for pack in array.tasks]
    assert sum(packs) == 200
    assert max(packs) == 64


def test_a_packed_jobs_time_covers_its_members_and_never_exceeds_the_partitions(small):
    short = Profile(partitions={"cpu": CPU.model_copy(update={"max_time_min": 600})})
    for hours, least in ((1.0, 2 * 4 * 60), (5.0, 600)):
        [array] = plan_of(small, short, ["cluster.pack=4"], hours=hours).arrays
        assert least <= array.cost.resources.time_min <= 600
        assert array.then.cost.resources.time_min >= min(600, 2 * 4 * 0.1 * hours * 60)


def test_on_this_machine_nothing_is_packed(small):
    plan = plan_of(small, local_profile(), hours=1e-6)
    assert {len(pack) for array in plan.arrays for pack in array.tasks} == {1}


# --- room ----------------------------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(room=st.integers(0, 100), size=st.integers(1, 15))
def test_no_more_array_tasks_are_submitted_than_there_is_room_for(small, room, size):
    profile = CLUSTER.model_copy(update={"max_array_tasks": size})
    everything = plan_of(small, profile, [*TEN_SEEDS, *ONE_A_JOB])
    plan = plan_of(small, profile, [*TEN_SEEDS, *ONE_A_JOB], room=room)
    # a training counts twice: its evaluation waits for it in the queue
    num_cells = sum(len(array.tasks) for array in plan.arrays)
    num_tasks = sum(array.num_tasks for array in plan.arrays)
    assert num_tasks <= room
    # where there is room for one more, a training takes it, and its evaluation comes later
    assert 2 * num_cells - num_tasks == (num_tasks % 2)
    assert num_cells == min(40, (room + 1) // 2)
    wanted = [unit for array in everything.arrays for unit in units(array)]
    assert [unit for array in plan.arrays for unit in units(array)] == wanted[:num_cells]
    for array in plan.arrays:
        assert array.then is None or array.then.tasks == array.tasks


def test_an_evaluation_alone_takes_one_place(small):
    plan = plan_of(small, sets=ONE_A_JOB, states=trained, room=3)
    assert [len(array.tasks) for array in plan.arrays] == [3]


# --- deaths change what is asked for -------------------------------------------------------------------------------


def test_memory_is_doubled_after_it_ran_out_and_then_in_vain(small):
    before = plan_of(small, CLUSTER).cells[0].train.resources.mem_gb
    asked = []
    for times in range(1, 20):
        cell = plan_of(small, CLUSTER, ["retry.oom=100"], states=failed(*[Cause.OUT_OF_MEMORY] * times)).cells[0]
        asked.append(cell.train.resources.mem_gb)
        if cell.action == "skip":
            break
        assert cell.action == "retry"
    assert asked[0] == 2 * before
    assert asked == sorted(asked)
    assert asked[-2:] == [512, 512]
    assert "512" in cell.reason


def test_time_is_doubled_after_a_limit_that_was_met_without_getting_on(small):
    before = plan_of(small).cells[0].train.resources.time_min
    assert plan_of(small, states=failed(Cause.TIME_LIMIT)).cells[0].train.resources.time_min == 2 * before


@pytest.mark.parametrize("cause", [Cause.NODE_FAILURE, Cause.LAUNCH_FAILURE])
def test_nodes_that_failed_are_left_out_of_the_next_start(small, cause):
    plan = plan_of(small, states=failed(cause, node="gpu07"))
    assert {cell.train.resources.exclude for cell in plan.cells} == {("gpu07",)}
    assert {cell.evaluate.resources.exclude for cell in plan.cells} == {()}
    assert {array.cost.resources.exclude for array in plan.arrays} == {("gpu07",)}


def test_the_micro_batch_is_halved_after_the_accelerators_memory_ran_out_and_then_in_vain(small):
    found = []
    for times in range(1, 9):
        states = failed(*[Cause.ACCELERATOR_MEMORY] * times)
        cell = plan_of(small, sets=["retry.accelerator_oom=100", "grid.family=vit"], states=states).cells[0]
        found.append((cell.train.micro_batch, cell.train.checkpointed, cell.action))
    plain, again = (
        [(micro, False, "retry") for micro in (32, 16, 8)],
        [(micro, True, "retry") for micro in (8, 4, 2, 1)],
    )
    assert found == [*plain, *again, (1, True, "skip")]
    assert "one image at a time" in cell.reason


def test_cells_with_different_micro_batches_are_in_different_arrays(small):
    died = itertools.cycle([failed(Cause.ACCELERATOR_MEMORY), failed(*[Cause.ACCELERATOR_MEMORY] * 2)])
    plan = plan_of(small, sets=["grid.family=vit"], states=lambda cell: next(died)(cell))
    assert sorted(array.cost.micro_batch for array in plan.arrays) == [16, 32]


def test_the_evaluations_deaths_leave_the_training_alone(small):
    cell = plan_of(small, states=failed(Cause.OUT_OF_MEMORY, stage="evaluate")).cells[0]
    before = plan_of(small).cells[0]
    assert cell.train == before.train
    assert cell.evaluate.resources.mem_gb == 2 * before.evaluate.resources.mem_gb


def test_memory_grows_to_what_the_cells_own_partition_has(small):
    more = '[cluster]\nevaluate_partition = "cpu"\n'
    states = failed(*[Cause.OUT_OF_MEMORY] * 12, stage="evaluate")
    for cell in plan_of(small, WIDE, more=more, states=states).cells:
        assert cell.evaluate.resources.mem_gb == CPU.memory_gb_per_node


# --- hours and budget ----------------------------------------------------------------------------------------------


def test_hours_are_those_of_the_stages_that_are_left(small):
    plan = plan_of(small)
    cell = plan.cells[0]
    later = dataclasses.replace(cell, stages=("evaluate",))
    only = dataclasses.replace(plan, cells=[later])
    assert only.hours("gpu_hours") == cell.evaluate.gpu_hours
    assert only.hours("gpu_hours", of_all=True) == cell.train.gpu_hours + cell.evaluate.gpu_hours


def test_a_plan_above_the_studys_budget_submits_nothing(small):
    hours = plan_of(small, hours=2.0).hours("gpu_hours")
    assert hours == pytest.approx(4 * 2.2)
    enough = [f"cluster.max_gpu_hours={hours * 1.01}"]
    assert plan_of(small, sets=enough, hours=2.0).over_budget is None
    bound = plan_of(small, sets=enough, hours=2.0, gpu_hours_bound=1.0)
    for plan in (bound, plan_of(small, sets=[f"cluster.max_gpu_hours={hours * 0.99}"], hours=2.0)):
        assert plan.arrays == []
        assert "cluster.max_gpu_hours is 8." in plan.over_budget
        assert plan.halted == plan.over_budget


def test_a_budget_counts_the_steps_of_a_job_in_the_queue_once_and_those_of_other_jobs_each(small, scheduler):
    """Cells of other jobs run at once: what one of them leaves may come too late for the others."""
    _, found = load(small, LENGTHS)
    queued = [cell for cell in found if cell.recipe.fraction == 0.01]
    plan = plan_of(small, SLOW, LENGTHS)
    left = sum(cost.gpu_hours for c in plan.cells for cost in c.to_do if c.cell not in queued)
    trains = {c.cell.cell_id: c.train.gpu_hours for c in plan.cells if c.cell in queued}
    shares = {1: 0, 2: 0.8 / 2, 3: 1.6 / 3}
    once = left + sum(trains[cell.cell_id] * (1 - shares[cell.recipe.epochs]) for cell in queued)
    each = left + sum(trains.values())
    in_jobs_of_their_own = [[cell for cell in queued if cell.recipe.epochs == length] for length in (1, 2, 3)]
    for jobs, hours in (([queued], once), (in_jobs_of_their_own, each)):
        for share, refused in ((1.001, False), (0.999, True)):
            seen = _look_with_jobs(small, scheduler, jobs, [*LENGTHS, f"cluster.max_gpu_hours={hours * share}"])
            assert (seen.plan.over_budget is not None) is refused
            assert len([cell for cell in seen.plan.cells if cell.action == "submit"]) == len(found) - len(queued)


def _look_with_jobs(small, scheduler, jobs, sets):
    """Where the study stands that has these cells' trainings in the queue, each list of them as one job."""
    study, found = load(small, sets)
    shutil.rmtree(small.store.root, ignore_errors=True)
    ledger, scheduler.queue = Ledger(small.store, study, found), []
    for token, job in zip(("a" * 12, "b" * 12, "c" * 12), jobs, strict=False):
        number = ledger.submit(token, [[cell.cell_id for cell in job]]).job_id
        scheduler.in_queue(f"{number}_0", "PENDING", token)
    file = dataclasses.replace(small.file, study=study)
    return Observer(small.store, file, SLOW, of=found).look()


def test_the_most_that_jobs_take_is_their_time_limits(small):
    for sets in (TEN_SEEDS, [*TEN_SEEDS, *ONE_A_JOB], LENGTHS):
        plan = plan_of(small, SLOW, sets)
        each = [job for array in plan.arrays for job in (array, array.then)]
        most = sum(len(job.tasks) * job.cost.resources.time_min / 60 for job in each)
        assert plan.to_json()["gpu_hours_max"] == pytest.approx(most)
        assert plan_of(small, SLOW, sets, room=2).gpu_hours_max == pytest.approx(most)
        assert plan.hours("gpu_hours") < most


# --- steps that lengths have in common -----------------------------------------------------------------------------


def only_the_shortest_is_trained(cell):
    return trained(cell) if cell.recipe.epochs == 1 else new(cell)


def the_shortest_needs_more_memory(cell):
    return (failed(Cause.OUT_OF_MEMORY) if cell.recipe.epochs == 1 else trained)(cell)


@pytest.mark.parametrize("states", [new, only_the_shortest_is_trained, the_shortest_needs_more_memory, trained])
def test_the_whole_study_counts_them_once_whatever_is_left_of_it(small, states):
    plan = plan_of(small, sets=LENGTHS, hours=100.0, states=states)
    assert plan.hours("gpu_hours", of_all=True) == pytest.approx(4 * (100 * OWN + 3 * 10))
    assert plan.hours("price", of_all=True) == pytest.approx(2.0 * 4 * (100 * OWN + 3 * 10))


def test_what_is_left_counts_in_full_what_nobody_in_its_job_takes(small):
    plan = plan_of(small, sets=LENGTHS, hours=100.0, states=only_the_shortest_is_trained)
    expected = {1: 0.0, 2: 100.0, 3: 100 * (1 - 1.6 / 3)}  # the state of the first one need not be there any more
    trains = {c.cell.recipe.epochs: c.own_train.hours if "train" in c.stages else 0.0 for c in plan.cells}
    assert trains == pytest.approx(expected)
    assert plan.hours("gpu_hours") == pytest.approx(4 * (sum(expected.values()) + 3 * 10))


def test_the_rows_of_a_plan_add_up_to_its_hours(small):
    for states, of_all in ((new, False), (trained, True)):
        plan = plan_of(small, sets=LENGTHS, hours=100.0, states=states)
        rows = plan.to_json()["cells"]
        assert sum(row["gpu_hours"] for row in rows) == pytest.approx(plan.hours("gpu_hours", of_all=of_all))
        assert sum(row["cpu_hours"] for row in rows) == pytest.approx(plan.hours("cpu_hours", of_all=of_all))
        assert {row["epochs"]: row["shared"] for row in rows} == pytest.approx({1: 0, 2: 0.8 / 2, 3: 1.6 / 3})


@pytest.mark.parametrize("cells", [(1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)])
def test_a_job_has_the_time_of_all_that_it_trains_from_the_very_first_step(small, cells):
    """Whichever cells of a chain are left, and whatever a shorter one that is trained has left behind."""
    sets = [*LENGTHS, "grid.family=vit", "grid.fraction=0.01"]
    plan = plan_of(small, SLOW, sets, states=lambda cell: new(cell) if cell.recipe.epochs in cells else trained(cell))
    (array,) = (array for array in plan.arrays if array.stage == "train")
    alone = {planned.cell.recipe.epochs: planned.train for planned in plan.cells}
    reached, hours = 0.0, 0.0
    for epochs in cells:
        hours += alone[epochs].hours * (1 - reached / epochs)
        reached = 0.8 * epochs
    assert array.cost.hours == pytest.approx(hours)
    assert 2 * 60 * hours < array.cost.resources.time_min
    assert alone[cells[-1]].resources.time_min <= array.cost.resources.time_min


def test_a_job_keeps_the_time_that_one_of_its_cells_asks_for_since_it_met_a_limit(small):
    def the_longest_met_a_limit_twice(cell):
        return failed(Cause.TIME_LIMIT, Cause.TIME_LIMIT)(cell) if cell.recipe.epochs == 3 else new(cell)

    plan = plan_of(small, sets=LENGTHS, states=the_longest_met_a_limit_twice)
    (asked,) = {c.train.resources.time_min for c in plan.cells if c.cell.recipe.epochs == 3}
    assert asked == 40  # twice as long as 10, two times
    assert {array.cost.resources.time_min for array in plan.arrays} == {asked}


def test_the_plan_tells_what_is_saved(small):
    profile = small.path.with_name("cluster.toml")
    profile.write_text(
        """
        [partitions.gpu]
        accelerator = "gpu"
        gres = "gpu:h100"
        accelerators_per_node = 8
        accelerator_memory_gb = 80
        cpus_per_node = 64
        memory_gb_per_node = 512
        teraflops = 1e-5
        utilisation = 0.3
        """
    )
    sets = [*LENGTHS, "grid.family=vit", "cluster.profile=cluster.toml"]
    told = upshot("plan", small.path, "--runs", small.runs, *(word for text in sets for word in ("--set", text)))
    study, found = load(small, sets)
    whole = sizes_of(study, found, load_profile(str(profile)))
    saved = sum(whole[c.cell_id].train.gpu_hours * {1: 0, 2: 0.4, 3: 1.6 / 3}[c.recipe.epochs] for c in found)
    assert saved > 0.005
    words = "4 cells go on from the state of a shorter one: hours count the steps in common once, which saves"
    assert f"{words} {saved:.2f} GPU-hours" in " ".join(told.split())


def test_the_local_machine_is_a_cluster_without_sbatch(small):
    plan = plan_of(small, local_profile())
    assert plan.sbatch_calls == 0
    assert plan.hours("gpu_hours") == 0 < plan.hours("cpu_hours")


def test_the_plan_is_pure(small):
    one, two = (plan_of(small).to_json() for _ in range(2))
    assert one == two
    assert not small.runs.exists()
