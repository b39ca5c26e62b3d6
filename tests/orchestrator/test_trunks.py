import json
from pathlib import Path

import pytest

from models.checkpoint import finalised_steps
from orchestrator.clean import clean
from orchestrator.identity import cell_id, trunk_id
from orchestrator.operations import operations_of
from orchestrator.session import open_submitted
from tests.orchestrator.conftest import SmallStudy
from tests.orchestrator.plans import CLUSTER, plan_of, units
from tests.orchestrator.upshot_command import upshot, upshot_json

pytestmark = pytest.mark.xdist_group("trunks")  # what its tests share is made once

LENGTHS = ("grid.epochs=[3,1,2]", 'grid.schedule="rsqrt"')
ONE_CELL_EACH = ("grid.family=vit", "grid.size=pico", "grid.fraction=0.01")


def epochs_of(plan, array):
    """The lengths of each job of an array, in their order."""
    cells = {planned.cell.cell_id: planned.cell.recipe.epochs for planned in plan.cells}
    return [[cells[unit] for unit in task] for task in array.tasks]


def test_cells_that_differ_only_in_their_length_are_one_job_the_shortest_first(small):
    plan = plan_of(small, sets=LENGTHS, hours=100.0)
    jobs = [job for array in plan.arrays for job in epochs_of(plan, array)]
    assert jobs == [[1, 2, 3]] * 4
    for array in plan.arrays:
        recipes = {planned.cell.cell_id: planned.cell.recipe for planned in plan.cells}
        assert all(len({trunk_id(recipes[unit]) for unit in task}) == 1 for task in array.tasks)
        assert array.then.tasks == array.tasks


def test_the_steps_in_common_are_counted_once(small):
    plan = plan_of(small, sets=LENGTHS, hours=100.0)
    shares = {planned.cell.recipe.epochs: planned.shared for planned in plan.cells}
    assert shares == {1: 0, 2: pytest.approx(0.8 / 2), 3: pytest.approx(1.6 / 3)}
    own = 100 * (3 - 0.8 / 2 - 1.6 / 3)
    (evaluations,) = {planned.evaluate.gpu_hours for planned in plan.cells}
    assert plan.hours("gpu_hours") == pytest.approx(4 * (own + 3 * evaluations))
    assert plan.arrays[0].cost.hours == pytest.approx(own)
    assert all(planned.train.hours == 100 for planned in plan.cells)  # which a cell takes by itself


def test_a_job_holds_no_more_cells_than_the_study_says(small):
    for most, expected in ((1, [[1], [2], [3]]), (2, [[1, 2], [3]])):
        plan = plan_of(small, sets=[*LENGTHS, *ONE_CELL_EACH, f"cluster.pack={most}"], hours=100.0)
        assert sorted(job for array in plan.arrays for job in epochs_of(plan, array)) == expected
        assert sum(planned.shared > 0 for planned in plan.cells) == most - 1
    plan = plan_of(small, sets=[*LENGTHS, "cluster.pack=4"])
    assert max(len(job) for array in plan.arrays for job in array.tasks) == 3  # of which two would be six


def test_other_schedules_and_other_resources_are_no_chain(small):
    cosine = plan_of(small, sets=["grid.epochs=[3,1,2]"], hours=100.0)
    assert all(len(task) == 1 for array in cosine.arrays for task in array.tasks)
    assert not any(planned.shared for planned in cosine.cells)
    far_apart = [
        "grid.epochs=[1,100000]",
        'grid.schedule="rsqrt"',
        "grid.size=L",
        "grid.family=vit",
        "grid.image_size=224",
    ]
    plan = plan_of(small, CLUSTER, far_apart)
    assert len({planned.train.resources.num_accelerators for planned in plan.cells}) == 2
    assert not any(planned.shared for planned in plan.cells)


def test_a_trunk_is_that_of_the_recipe_without_its_length(small):
    plan = plan_of(small, sets=LENGTHS)
    recipes = [planned.cell.recipe for planned in plan.cells]
    assert len({cell_id(recipe) for recipe in recipes}) == 12
    assert len({trunk_id(recipe) for recipe in recipes}) == 4
    assert sorted(units(plan.arrays[0])) == sorted({cell_id(recipe) for recipe in recipes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study of one cell in three lengths, two checkpoints each, after its workers have ended."""
    small = SmallStudy(tmp_path_factory.mktemp("trunks"))
    sets = [word for one in (*LENGTHS, *ONE_CELL_EACH, 'downstream.tasks=["digits"]') for word in ("--set", one)]
    small.planned = upshot("plan", small.path, "--runs", small.runs, *sets)
    small.hours = upshot_json("plan", small.path, "--runs", small.runs, *sets)["cpu_hours"]
    upshot("submit", small.path, "--runs", small.runs, *sets)
    upshot("watch", small.store.root)
    return small


def test_the_nodes_go_on_from_each_others_states(finished):
    assert "2 cells go on from the state of a shorter one" in finished.planned
    store = finished.store
    cells = sorted(store.cells(), key=lambda cell: cell.recipe.epochs)
    ended = [next(e for e in store.attempts(c.cell_id) if e["event"] == "end") for c in cells]
    assert [end["outcome"] for end in ended] == ["done"] * 3
    totals = [end["step"] for end in ended]
    assert [end["first_step"] for end in ended] == [0, *(total - round(0.2 * total) for total in totals[:2])]
    for cell, total in zip(cells, totals, strict=True):
        assert store.finalised_steps(cell.cell_id) == [round(total / 2), total]
        folders = store.checkpoints(cell.cell_id)
        metrics = [
            json.loads((folders / f"step_{s:08d}" / "metrics.json").read_text()) for s in (round(total / 2), total)
        ]
        assert metrics[1]["flops"] == pytest.approx(metrics[0]["flops"] * total / round(total / 2))
    status = upshot_json("status", store.root)
    assert [cell["status"] for cell in status["cells"]] == ["done"] * 3


def test_what_was_planned_is_what_the_cells_did(finished):
    """The plan of the finished study is that of the new one, and its hours are as many as the steps that were taken."""
    store = finished.store
    session = open_submitted(store.root, finished.runs)
    seen = session.observe()
    planned = operations_of(store, session.profile, seen).planned
    assert planned["planned_hours"].sum() == pytest.approx(finished.hours)
    assert f"{session.planned(seen)['cpu_hours']:.2f} expected for the whole study" in upshot("status", store.root)
    hours = dict(planned.filter(stage="train").select("cell_id", "planned_hours").iter_rows())
    ends = {
        cell.cell_id: next(e for e in store.attempts(cell.cell_id) if e["event"] == "end") for cell in store.cells()
    }
    steps = {cell_id: end["step"] - end["first_step"] for cell_id, end in ends.items()}
    for name, number in steps.items():  # but for rounding to whole steps, of which there are few
        assert hours[name] / sum(hours.values()) == pytest.approx(number / sum(steps.values()), rel=0.05)


def test_a_trunk_goes_once_all_that_could_use_it_are_trained(finished):
    (trunk,) = (finished.store.root / "trunks").iterdir()
    assert finalised_steps(trunk)
    assert trunk in {leftover.path for leftover in clean(finished.store)}
    assert not trunk.exists()


def test_a_trunk_stays_while_a_cell_of_the_study_is_to_be_trained(finished):
    store = finished.store
    cell = store.cells()[0]
    folder = store.trunk(cell.recipe)
    folder.mkdir(parents=True, exist_ok=True)
    text = Path(store.study_path).read_text()
    assert "epochs = [3,1,2]" in text
    store.study_path.write_text(text.replace("epochs = [3,1,2]", "epochs = [3,1,2,5]"))
    clean(store)
    assert folder.is_dir()
    store.study_path.write_text(text.replace('dataset = "icons"', 'dataset = "/images/that/are/gone"'))
    clean(store)
    assert folder.is_dir()
    store.study_path.write_text(text)
    clean(store)
    assert not folder.exists()
