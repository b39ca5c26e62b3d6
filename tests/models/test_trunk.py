import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from models import trunk
from models.checkpoint import finalised_steps, step_folder
from models.recipe import Recipe, checkpoint_steps, cooldown_start
from models.train import train
from models.trunk import Trunk, leave_state, steps_to_leave, take_states
from tests.models.killed import train_until

LENGTHS = (1.0, 2.0, 3.0)
PER_EPOCH = 10


def recipe(epochs, family="vit", **axes):
    return Recipe.model_validate(
        {
            "family": family,
            "size": "pico",
            "dataset": "patches",
            "image_size": 32,
            "patch_size": None if family == "resnet" else 8,
            "fraction": 0.1,
            "batch_size": 14,
            "epochs": epochs,
            "schedule": "rsqrt",
            "warmup": 0.5,
            "head_learning_rate": 1e-3,
            "head_weight_decay": 0.03,
        }
        | axes
    )


def run(wanted, folder, trunk=None, count=1, **options):
    records = []
    result = train(wanted, folder, num_checkpoints=count, log=records.append, trunk=trunk, **options)
    return result, records


def shared(folder, epochs):
    return Trunk(folder=folder / "trunk", epochs=tuple(other for other in LENGTHS if other != epochs))


def all_bytes(folder):
    """What every numbered checkpoint holds, and what was measured there, but for the mean of the training loss."""
    found = {}
    for step in finalised_steps(folder):
        files = {path.name: path.read_bytes() for path in step_folder(folder, step).glob("*.safetensors")}
        metrics = json.loads((step_folder(folder, step) / "metrics.json").read_text())
        changing = ("train_loss", "peak_memory_gb", "peak_accelerator_gb")
        found[step] = files, {name: value for name, value in metrics.items() if name not in changing}
    return found


def starts():
    return [cooldown_start(round(PER_EPOCH * epochs)) for epochs in LENGTHS]


@pytest.mark.parametrize("axes", [{}, {"family": "resnet"}, {"dropout": 0.1, "ema": 0.9, "flip": True}], ids=str)
@pytest.mark.parametrize("count", [1, 4])
def test_runs_of_several_lengths_end_as_if_each_had_trained_alone_without_the_steps_twice(tmp_path, axes, count):
    began = 0
    for epochs in LENGTHS:
        wanted = recipe(epochs, **axes)
        result, records = run(wanted, tmp_path / f"{epochs}", shared(tmp_path, epochs), count)
        alone, _ = run(wanted, tmp_path / f"alone-{epochs}", None, count)
        assert result.first_step == began < alone.step == result.step == round(PER_EPOCH * epochs)
        assert result.examples_seen == alone.examples_seen
        assert all_bytes(tmp_path / f"{epochs}") == all_bytes(tmp_path / f"alone-{epochs}")
        made = [record["step"] for record in records if record["event"] == "checkpoint"]
        assert made == list(result.steps) == list(alone.steps)
        assert not (tmp_path / f"{epochs}" / "resume").exists()
        began = cooldown_start(result.step)


def test_a_longer_run_leaves_what_a_shorter_one_that_comes_later_needs(tmp_path):
    for epochs, began in ((3.0, 0), (1.0, starts()[0]), (2.0, starts()[1])):
        result, _ = run(recipe(epochs), tmp_path / f"{epochs}", shared(tmp_path, epochs), 3)
        assert result.first_step == began
        run(recipe(epochs), tmp_path / f"alone-{epochs}", None, 3)
        assert all_bytes(tmp_path / f"{epochs}") == all_bytes(tmp_path / f"alone-{epochs}")


def test_a_run_begins_no_later_than_the_first_checkpoint_that_nobody_has_made(tmp_path):
    run(recipe(1.0), tmp_path / "short", Trunk(folder=tmp_path / "trunk", epochs=(3.0,)))  # knows of one checkpoint
    assert finalised_steps(tmp_path / "trunk") == [8]
    result, _ = run(recipe(3.0), tmp_path / "long", Trunk(folder=tmp_path / "trunk"), 6)  # and makes one at step 5
    assert (finalised_steps(tmp_path / "trunk"), result.first_step) == ([8], 0)


def test_one_that_stopped_goes_on_from_whoever_came_further(tmp_path):
    asked = []

    def should_stop():
        asked.append(1)
        return len(asked) == 5

    stopped, _ = run(recipe(3.0), tmp_path / "long", shared(tmp_path, 3.0), should_stop=should_stop)
    run(recipe(2.0), tmp_path / "short", shared(tmp_path, 2.0))
    again, _ = run(recipe(3.0), tmp_path / "long", shared(tmp_path, 3.0))
    run(recipe(3.0), tmp_path / "alone")
    assert (stopped.step, again.first_step) == (5, starts()[1])
    assert all_bytes(tmp_path / "long") == all_bytes(tmp_path / "alone")
    assert run(recipe(3.0), tmp_path / "long", shared(tmp_path, 3.0))[0].first_step == 30  # and no further back


def test_a_run_that_was_killed_in_its_cooldown_has_left_its_state(tmp_path):
    wanted = recipe(2.0)

    def is_in_its_cooldown(record):
        return record.get("step") == starts()[1] + 1

    trunk = (tmp_path / "trunk", [3.0])
    train_until(is_in_its_cooldown, wanted, tmp_path / "2", num_checkpoints=1, trunk=trunk)
    assert finalised_steps(tmp_path / "trunk") == [starts()[1]]
    for epochs in (2.0, 3.0):
        result, _ = run(recipe(epochs), tmp_path / f"{epochs:g}", shared(tmp_path, epochs))
        assert result.first_step == starts()[1]
        run(recipe(epochs), tmp_path / f"alone-{epochs:g}")
        assert all_bytes(tmp_path / f"{epochs:g}") == all_bytes(tmp_path / f"alone-{epochs:g}")


def test_a_torn_state_is_set_aside_once_and_the_steps_are_taken(tmp_path):
    run(recipe(2.0), tmp_path / "short", shared(tmp_path, 2.0))
    torn = step_folder(tmp_path / "trunk", starts()[1]) / "optimizer.safetensors"
    whole = torn.read_bytes()
    torn.unlink()
    torn.write_bytes(whole[:-7])
    result, records = run(recipe(3.0), tmp_path / "long", shared(tmp_path, 3.0))
    assert [records[0]["event"], records[0]["step"], result.first_step] == ["corrupt_checkpoint", starts()[1], 0]
    again, records = run(recipe(3.0), tmp_path / "long", shared(tmp_path, 3.0))
    assert (again.first_step, [record["event"] for record in records]) == (30, ["start"])
    run(recipe(3.0), tmp_path / "alone")
    assert all_bytes(tmp_path / "long") == all_bytes(tmp_path / "alone")


def test_of_many_that_leave_a_state_at_once_one_does_and_all_can_take_it(tmp_path):
    result, _ = run(recipe(1.0), tmp_path / "made")
    made = step_folder(tmp_path / "made", result.step)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: leave_state(made, tmp_path / "trunk"), range(64)))
        took = list(
            pool.map(
                lambda i: take_states(tmp_path / "trunk", tmp_path / f"{i}", steps=(result.step,), before=99), range(16)
            )
        )
    assert [path.name for path in (tmp_path / "trunk").iterdir()] == [made.name]
    assert took == [[result.step]] * 16
    for i in range(16):
        assert all_bytes(tmp_path / f"{i}") == all_bytes(tmp_path / "made")


def test_a_state_that_is_removed_while_it_is_taken_is_none(tmp_path, monkeypatch):
    run(recipe(1.0), tmp_path / "short", shared(tmp_path, 1.0))

    def link(source, target, link=trunk._link):
        shutil.rmtree(tmp_path / "trunk", ignore_errors=True)  # as `upshot clean` may, between two files
        link(source, target)

    monkeypatch.setattr(trunk, "_link", link)
    assert take_states(tmp_path / "trunk", tmp_path / "long", steps=(30,), before=24) == []
    assert finalised_steps(tmp_path / "long" / "resume") == []
    assert not list((tmp_path / "long").rglob(".draft-*"))


def test_states_outlive_their_first_place_and_a_run_that_is_done_takes_none(tmp_path):
    run(recipe(1.0), tmp_path / "short", shared(tmp_path, 1.0))
    shutil.rmtree(tmp_path / "short")
    assert take_states(tmp_path / "trunk", tmp_path / "long", steps=(30,), before=24) == []
    assert finalised_steps(tmp_path / "long" / "resume") == [8]
    shutil.rmtree(tmp_path / "trunk")
    assert run(recipe(3.0), tmp_path / "long", shared(tmp_path, 3.0))[0].first_step == 8


def test_what_is_left_is_what_the_others_look_for_before_one_cools_down(tmp_path):
    def left(epochs, others, count=1):
        trunk = Trunk(folder=tmp_path, epochs=others)
        return sorted(steps_to_leave(recipe(epochs), trunk, num_images=149, num_checkpoints=count))

    assert left(2.0, ()) == []
    assert left(2.0, (1.0,)) == [8]
    assert left(2.0, (3.0,)) == [16]
    assert left(2.0, (1.0, 3.0)) == [8, 16]
    assert checkpoint_steps(30, 6) == (5, 10, 15, 20, 25, 30)
    assert left(2.0, (3.0,), 6) == [5, 10, 15, 16]
    assert left(2.0, (0.1,)) == []
