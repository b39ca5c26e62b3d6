"""Processes that hold a part of the model each: their losses are those of one, and their checkpoints anybody's."""

import pytest

from models.build import build_model
from models.checkpoint import finalised_steps, step_folder
from models.ladder import FAMILIES, num_params
from models.prepare import recipe_architecture
from models.recipe import Recipe
from models.train import train
from tests.models.worlds import curve, largest_difference, recipe, run_worlds, weights

pytestmark = pytest.mark.xdist_group("sharded")  # what its tests share is made once

ADAMW = {"optimizer": "adamw", "learning_rate": 1e-3, "head_learning_rate": 1e-3}
AXES = {
    "vit": recipe(clip_norm=0.5, ema=0.9),
    "vit-adamw": recipe(drop_path=0.0, flip=True, mixup=0.8, **ADAMW),
    "mixer": recipe("mixer", clip_norm=0.5),
    "mixer-adamw": recipe("mixer", ema=0.9, **ADAMW),
    "bfloat16": recipe(precision="bfloat16"),
}
CHAIN = recipe(ema=0.9, clip_norm=0.5, epochs=0.7)
INITIAL = {f"initial-{family}": {"initial": recipe(family)} for family in FAMILIES}


def shards(name, **more):
    return {"recipe": AXES[name], "sharded": True, **more}


CELLS = {
    2: {
        **INITIAL,
        "vit": shards("vit", micro_batch=4),
        "mixer-adamw": shards("mixer-adamw"),
        "bfloat16": shards("bfloat16"),
        "whole": {"recipe": CHAIN, "folder": "chain", "stop_at": [1, 2]},
        "two": {"recipe": CHAIN, "folder": "chain", "stop_at": [0, 3], "sharded": True, "micro_batch": 5},
        "killed": {"recipe": CHAIN, "sharded": True, "dies_writing": 1},
    },
    4: {
        **INITIAL,
        "vit-adamw": shards("vit-adamw"),
        "mixer": shards("mixer", micro_batch=3, checkpointed=True),
        "four": {"recipe": CHAIN, "folder": "chain", "stop_at": [3, 4], "sharded": True},
        "resnet": {"recipe": recipe("resnet"), "sharded": True},
    },
}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    return run_worlds(CELLS, tmp_path_factory.mktemp("worlds"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Trains a recipe in this process: its folder and records."""

    def run(wanted, folder=None):
        folder, records = folder or tmp_path_factory.mktemp("alone"), []
        train(Recipe.model_validate(wanted), folder, num_checkpoints=3, log=records.append)
        return folder, records

    return run


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_weights_are_those_of_one_process_and_each_rank_holds_its_part(worlds, size, family):
    said = [rank[f"initial-{family}"] for rank in worlds[1][size]]
    assert [(s["differing"], s["drew_alike"]) for s in said] == [([], True)] * size
    params = num_params(recipe_architecture(Recipe.model_validate(recipe(family)), 11))
    assert sum(s["held"] for s in said) == params
    assert max(s["held"] for s in said) < 1.5 * params / size


@pytest.mark.parametrize(
    ("size", "cell"), [(2, "vit"), (2, "mixer-adamw"), (2, "bfloat16"), (4, "vit-adamw"), (4, "mixer")], ids=str
)
def test_losses_are_those_of_one_process(worlds, alone, size, cell):
    folder, worlds = worlds
    expected_folder, expected = alone(AXES[cell])
    start, *records = worlds[size][0][cell]["records"]
    assert start["world_size"] == size
    assert len(records) > 5
    tolerance = 1e-3 if cell == "bfloat16" else 1e-5  # a gradient of each rank is rounded to bfloat16
    assert curve(records) == [pytest.approx(record, abs=tolerance) for record in curve(expected)]
    norms = [[r.get("gradient_norm") for r in some if r["event"] == "train"] for some in (records, expected)]
    assert norms[0] == ([pytest.approx(norm, rel=1e-4) for norm in norms[1]] if norms[1][0] else norms[1])
    if AXES[cell]["optimizer"] == "sgd":
        assert 0 < largest_difference(folder / cell, expected_folder) <= tolerance
    assert [rank[cell]["records"] for rank in worlds[size][1:]] == [[]] * (size - 1)


def test_a_run_goes_on_in_any_number_of_processes_sharded_or_not(worlds, alone):
    """Two processes that hold the model whole, two and four that hold parts of it, and one."""
    folder, worlds = worlds
    parts = [worlds[2][0]["whole"], worlds[2][0]["two"], worlds[4][0]["four"]]
    assert [part["ended"] for part in parts] == [["interrupted", 2, 0], ["interrupted", 5, 2], ["interrupted", 9, 5]]
    assert finalised_steps(folder / "chain" / "resume") == [9]
    _, rest = alone(CHAIN, folder / "chain")
    assert rest[0]["step"] == 9
    expected_folder, expected = alone(CHAIN)
    assert curve([record for part in parts for record in part["records"]] + rest) == [
        pytest.approx(record, abs=1e-5) for record in curve(expected)
    ]
    assert largest_difference(folder / "chain", expected_folder) <= 1e-5
    for step in finalised_steps(folder / "chain"):
        kinds = [sorted(p.name for p in step_folder(f, step).iterdir()) for f in (folder / "chain", expected_folder)]
        assert kinds[0] == kinds[1]


def test_a_rank_that_is_killed_while_it_writes_costs_only_that_checkpoint(worlds, alone):
    folder, worlds = worlds
    first, second = worlds[2]
    assert "killed" not in second
    assert first["killed"]["ended"][0] not in ("done", "diverged", "interrupted")
    [step] = finalised_steps(folder / "killed")
    assert sorted(path.name for path in (folder / "killed").iterdir()) == [f"step_{step:08d}"]
    _, rest = alone(CHAIN, folder / "killed")
    assert rest[0]["step"] == step
    expected_folder, _ = alone(CHAIN)
    assert largest_difference(folder / "killed", expected_folder) <= 1e-5


def test_evaluation_reads_what_shards_wrote(worlds):
    folder, worlds = worlds
    records = worlds[4][0]["mixer"]["records"]
    model = build_model(recipe_architecture(Recipe.model_validate(AXES["mixer"]), records[0]["num_classes"]))
    assert {name: tuple(t.shape) for name, t in weights(folder / "mixer").items()} == {
        name: tuple(t.shape) for name, t in model.state_dict().items()
    }


def test_batch_norm_on_cpus_is_refused_in_shards_too(worlds):
    for rank in worlds[1][4]:
        kind, message, _ = rank["resnet"]["ended"]
        assert (kind, "batch norm" in message) == ("UserError", True)
