"""Several processes train one model, whole in each of them."""

import json

import pytest
import torch

from models.checkpoint import finalised_steps
from models.distributed import World
from models.recipe import Recipe
from models.train import train
from tests.models.worlds import curve, largest_difference, recipe, run_worlds

pytestmark = pytest.mark.xdist_group("distributed")  # what its tests share is made once

VIT, MIXER = recipe(), recipe("mixer", label_smoothing=0.1)
CLIPPED, MIXED = recipe(clip_norm=0.5), recipe(flip=True, mixup=0.8, ema=0.9)
LONG = recipe(schedule="rsqrt")
FEW = recipe(batch_size=2, epochs=0.03)  # of three ranks, one has no image
ADAPTIVE = {
    "adamw": recipe(optimizer="adamw", learning_rate=1e-3),
    "adafactor": recipe(optimizer="adafactor", learning_rate=1e-3),
}
CELLS = {
    2: {
        "vit": {"recipe": VIT},
        "vit-4": {"recipe": VIT, "micro_batch": 4},
        "mixer-5": {"recipe": MIXER, "micro_batch": 5},
        "clipped": {"recipe": CLIPPED, "micro_batch": 5},
        "again": {"recipe": CLIPPED, "micro_batch": 5, "checkpointed": True},
        "short": {"recipe": recipe(schedule="rsqrt", epochs=0.3), "lengths": [0.5]},
        "long": {"recipe": LONG, "lengths": [0.3]},
        "mixed": {"recipe": MIXED, "micro_batch": 5},
        "adamw": {"recipe": ADAPTIVE["adamw"]},
        "adafactor": {"recipe": ADAPTIVE["adafactor"], "micro_batch": 5},
        "diverges": {"recipe": recipe("mixer", learning_rate=1e12, warmup=0.0)},
        "stopped": {"recipe": VIT, "stop_at": [1, 7]},
        "out-of-memory": {"recipe": VIT, "oom_at": [1, 3]},
        "too-late": {"recipe": VIT},
    },
    3: {"few": {"recipe": FEW}, "mixer": {"recipe": MIXER}, "resnet": {"recipe": recipe("resnet")}},
}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    return run_worlds(CELLS, tmp_path_factory.mktemp("worlds"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Trains a recipe in this process, once: its folder and records."""
    done = {}

    def run(wanted):
        key = json.dumps(wanted)
        if key not in done:
            folder, records = tmp_path_factory.mktemp("alone"), []
            train(Recipe.model_validate(wanted), folder, num_checkpoints=3, log=records.append)
            done[key] = folder, records
        return done[key]

    return run


@pytest.mark.parametrize(
    ("size", "cell"),
    [(2, "vit"), (2, "vit-4"), (2, "mixer-5"), (2, "clipped"), (2, "mixed"), (3, "few"), (3, "mixer")],
    ids=str,
)
def test_several_processes_train_what_one_does(worlds, alone, size, cell):
    folder, worlds = worlds
    expected_folder, expected = alone(CELLS[size][cell]["recipe"])
    start, *records = worlds[size][0][cell]["records"]
    assert start["world_size"] == records[-1]["world_size"] == size
    assert len(records) > 3
    assert curve(records) == [pytest.approx(record, rel=1e-6) for record in curve(expected)]
    assert largest_difference(folder / cell, expected_folder) <= 1e-6
    # Not the same bits: the sums were taken in another order, so it was no single process that did it all.
    assert largest_difference(folder / cell, expected_folder) > 0


def test_blocks_that_are_computed_again_change_no_bit_among_several_processes(worlds):
    folder, _ = worlds
    assert largest_difference(folder / "again", folder / "clipped") == 0


def test_several_processes_go_on_from_a_trunk(worlds, alone):
    folder, worlds = worlds
    expected_folder, _ = alone(LONG)
    _, last, first = worlds[2][0]["long"]["ended"]
    (short,) = {rank["short"]["ended"][1] for rank in worlds[2]}
    assert first == short - round(0.2 * short)
    assert [r["step"] for r in worlds[2][0]["long"]["records"] if r["event"] == "checkpoint"][-1] == last
    assert largest_difference(folder / "long", expected_folder) <= 1e-6
    assert finalised_steps(folder / "long") == finalised_steps(expected_folder)


def test_the_micro_batch_is_that_of_a_rank(worlds):
    _, worlds = worlds
    for cell, expected in (("vit", 16), ("vit-4", 4), ("mixer-5", 5)):
        assert {r["micro_batch"] for r in worlds[2][0][cell]["records"] if r["event"] != "train"} == {expected}


@pytest.mark.parametrize("optimizer", ADAPTIVE)
def test_adaptive_optimisers_give_the_loss_of_one_process(worlds, alone, optimizer):
    """The weights differ by more: a gradient that is 0 but for rounding moves its weight by its sign."""
    _, worlds = worlds
    _, expected = alone(ADAPTIVE[optimizer])
    ours = [record["train_loss"] for record in curve(worlds[2][0][optimizer]["records"])]
    assert ours == pytest.approx([record["train_loss"] for record in curve(expected)], abs=1e-5)


def test_rank_0_alone_logs_and_all_end_alike(worlds):
    _, worlds = worlds
    for ranks in worlds.values():
        for cell in ("vit", "mixer-5", "diverges", "few", "mixer"):
            if cell in ranks[0]:
                assert len({tuple(rank[cell]["ended"]) for rank in ranks}) == 1
                assert [rank[cell]["records"] for rank in ranks[1:]] == [[]] * (len(ranks) - 1)
    assert worlds[2][0]["diverges"]["ended"][0] == "diverged"


def test_one_rank_that_is_told_to_stop_stops_all_at_its_step(worlds, alone):
    folder, worlds = worlds
    assert [rank["stopped"]["ended"] for rank in worlds[2]] == [["interrupted", 7, 0]] * 2
    assert finalised_steps(folder / "stopped" / "resume") == [7]
    records = []
    again = train(Recipe.model_validate(VIT), folder / "stopped", num_checkpoints=3, log=records.append)
    assert (again.outcome, again.first_step) == ("done", 7)
    expected_folder, expected = alone(VIT)
    whole = curve(worlds[2][0]["stopped"]["records"] + records)
    assert whole == [pytest.approx(record, rel=1e-6) for record in curve(expected)]
    assert largest_difference(folder / "stopped", expected_folder) <= 1e-6


def test_batch_norm_on_cpus_is_refused_by_every_rank(worlds):
    folder, worlds = worlds
    for rank in worlds[3]:
        kind, message, _ = rank["resnet"]["ended"]
        assert (kind, rank["resnet"]["records"]) == ("UserError", [])
        assert "batch norm" in message
    assert not (folder / "resnet").exists()


def test_the_other_ranks_say_which_one_failed_and_of_what(worlds):
    _, worlds = worlds
    first, second = (rank["out-of-memory"]["ended"] for rank in worlds[2])
    assert second == ["OutOfMemoryError", "CUDA out of memory", None]
    assert first == ["PeerFailedError", "rank 1 failed: OutOfMemoryError: CUDA out of memory", "OutOfMemoryError"]
    assert not any("too-late" in rank for rank in worlds[2])


def test_one_process_agrees_with_itself():
    world = World.alone()
    assert (world.rank, world.size) == (0, 1)
    assert (world.any(True), world.any(False), world.sum(0.1), world.decide("step_1")) == (True, False, 0.1, "step_1")
    assert not torch.distributed.is_initialized()
