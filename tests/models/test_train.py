import json
import math
import os
import signal
import subprocess
import sys

import pytest
import torch

from models.build import build_model
from models.checkpoint import finalised_steps, load_checkpoint, save_checkpoint, step_folder
from models.device import pick_device
from models.errors import CheckpointError
from models.optim import learning_rate_factor, make_optimizer, parameter_groups
from models.recipe import Recipe, num_steps
from models.train import (
    checkpoint_steps,
    epoch_order,
    load_model,
    load_upstream,
    measure_upstream,
    recipe_architecture,
    train,
)

DEADLINE_S = 120


def recipe(family="vit", **axes):
    common = {
        "family": family,
        "size": "pico",
        "dataset": "icons",
        "image_size": 32,
        "patch_size": None if family == "resnet" else 8,
        "fraction": 0.02,
        "batch_size": 32,
        "head_learning_rate": axes.get("learning_rate", 1e-3),
        "head_weight_decay": 0.03,
    }
    return Recipe.model_validate(common | axes)


def run(wanted, folder, count=3):
    records = []
    return train(wanted, folder, num_checkpoints=count, log=records.append), records


def final_bytes(folder):
    last = step_folder(folder, finalised_steps(folder)[-1])
    return {name: (last / name).read_bytes() for name in ("weights.safetensors", "optimizer.safetensors")}


TRAIN_IN_A_PROCESS = """
import json, sys
from pathlib import Path
from models.recipe import Recipe
from models.train import train
log = lambda record: print(json.dumps(record), flush=True)
train(Recipe.model_validate_json(sys.argv[1]), Path(sys.argv[2]), num_checkpoints=8, log=log)
"""


@pytest.mark.parametrize(("family", "optimizer"), [("vit", "adamw"), ("mixer", "sgd"), ("resnet", "adamw")])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, family, optimizer):
    wanted = recipe(family, optimizer=optimizer)
    run(wanted, tmp_path / "unbroken", 8)
    command = [sys.executable, "-c", TRAIN_IN_A_PROCESS, wanted.model_dump_json(), str(tmp_path / "killed")]
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        for line in process.stdout:
            if json.loads(line)["event"] == "checkpoint":
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    done = finalised_steps(tmp_path / "killed")
    assert 0 < len(done) < 8
    _, records = run(wanted, tmp_path / "killed", 8)
    assert records[0]["event"] == "start"
    assert records[0]["step"] == done[-1]
    assert final_bytes(tmp_path / "killed") == final_bytes(tmp_path / "unbroken")


@pytest.mark.parametrize("stop_after", [1, 3, 10, 23])
def test_an_interrupted_run_goes_on_to_the_same_bits_and_records(tmp_path, stop_after):
    wanted = recipe("resnet", batch_size=8)
    _, unbroken = run(wanted, tmp_path / "unbroken")
    records, asked = [], []

    def should_stop():
        asked.append(1)
        return len(asked) == stop_after

    stopped = train(wanted, tmp_path / "stopped", num_checkpoints=3, log=records.append, should_stop=should_stop)
    assert (stopped.outcome, stopped.step) == ("interrupted", stop_after)
    assert finalised_steps(tmp_path / "stopped" / "resume") == [stop_after]
    assert finalised_steps(tmp_path / "stopped") == []
    again, more = run(wanted, tmp_path / "stopped")
    assert (again.outcome, again.first_step) == ("done", stop_after)
    assert not (tmp_path / "stopped" / "resume").exists()
    assert final_bytes(tmp_path / "stopped") == final_bytes(tmp_path / "unbroken")
    assert losses(records + more) == losses(unbroken)


def losses(records):
    return [(r["step"], r["train_loss"]) for r in records if r["event"] in ("train", "checkpoint")]


def test_a_finished_run_trains_no_further(tmp_path):
    first, _ = run(recipe(), tmp_path)
    again, records = run(recipe(), tmp_path)
    assert (again.outcome, again.step, again.first_step) == (first.outcome, first.step, first.step)
    assert [record["event"] for record in records] == ["start"]


def test_it_learns_more_from_more(tmp_path):
    accuracy = {}
    for fraction, epochs in ((0.02, 1), (0.2, 3)):
        _, records = run(
            recipe("resnet", fraction=fraction, epochs=epochs, learning_rate=3e-3), tmp_path / str(fraction), 1
        )
        accuracy[fraction] = records[-1]["upstream_accuracy"]
    chance = 1 / records[-1]["upstream_num_classes"]
    assert accuracy[0.2] > max(10 * chance, accuracy[0.02])


def test_the_records_are_the_run(tmp_path):
    result, records = run(recipe(), tmp_path)
    start, checkpoints = records[0], [r for r in records if r["event"] == "checkpoint"]
    assert [r["step"] for r in checkpoints] == list(result.steps) == finalised_steps(tmp_path)
    assert checkpoints[-1]["examples_seen"] == start["num_steps"] * start["batch_size"] == result.examples_seen
    for record in checkpoints:
        saved = json.loads((step_folder(tmp_path, record["step"]) / "metrics.json").read_text())
        assert saved == {k: v for k, v in record.items() if k != "event"}
    losses = [r["train_loss"] for r in records if r["event"] == "train"]
    assert abs(losses[0] - math.log(start["num_classes"])) < 1.5


def test_divergence_is_a_result(tmp_path):
    wanted = recipe("mixer", optimizer="sgd", learning_rate=1e12, warmup=0.0)
    result, records = run(wanted, tmp_path)
    assert result.outcome == "diverged"
    assert records[-1]["event"] == "diverged"
    assert records[-1]["step"] == result.step
    assert not math.isfinite(records[-1]["train_loss"])
    assert records[-1]["upstream_accuracy"] is None


def test_weights_that_break_at_the_very_last_step_are_no_result(tmp_path):
    wanted = recipe("mixer", optimizer="sgd", learning_rate=1e12, warmup=0.0, epochs=0.01)
    result, records = run(wanted, tmp_path, 1)
    assert (records[0]["num_steps"], result.outcome) == (1, "diverged")
    assert records[-1]["upstream_accuracy"] is None
    assert finalised_steps(tmp_path) == []


def test_a_class_fraction_renumbers_the_classes(tmp_path):
    data = load_upstream(recipe(classes=0.1, fraction=0.1))
    assert data.num_classes < 100
    assert set(data.train_labels_N.tolist()) == set(range(data.num_classes))
    assert set(data.test_labels_N.tolist()) <= set(range(data.num_classes))


def test_the_saved_model_is_the_trained_one(tmp_path):
    result, records = run(recipe(), tmp_path)
    arch = recipe_architecture(recipe(), records[0]["num_classes"])
    model = load_model(arch)(step_folder(tmp_path, result.step))
    assert not model.training
    measured = measure_upstream(model, load_upstream(recipe()), pick_device())
    assert measured == (records[-1]["upstream_accuracy"], records[-1]["upstream_loss"])


# --- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small():
    wanted = recipe()
    model = build_model(recipe_architecture(wanted, 10))
    return model, make_optimizer(model, wanted)


def save(root, small, step=1):
    model, optimizer = small
    return save_checkpoint(root, step, model=model, optimizer=optimizer, state={}, metrics={})


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json"])
def test_a_torn_file_is_named(tmp_path, small, name):
    path = save(tmp_path, small) / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(path.parent, model=small[0], optimizer=small[1])


def test_a_checkpoint_of_another_model_is_refused_and_left(tmp_path, small):
    folder = save(tmp_path, small)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = build_model(recipe_architecture(recipe("mixer"), 10))
    with pytest.raises(CheckpointError, match="another model"):
        load_checkpoint(folder, model=other, optimizer=make_optimizer(other, recipe("mixer")))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_without_done_does_not_count(tmp_path, small):
    (save(tmp_path, small, 1) / "DONE").unlink()
    save(tmp_path, small, 2)
    assert finalised_steps(tmp_path) == [2]
    save(tmp_path, small, 1)
    assert finalised_steps(tmp_path) == [1, 2]


@pytest.mark.skipif(os.geteuid() != 0 or not sys.platform.startswith("linux"), reason="a small tmpfs needs root")
def test_a_full_disk_keeps_earlier_checkpoints(tmp_path, small):
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(path.stat().st_size for path in save(tmp_path / "elsewhere", small).iterdir())
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(size * 1.6)}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a tmpfs be mounted")
    try:
        save(disk, small, 1)
        with pytest.raises(OSError, match="step 2 not written: No space left") as caught:
            save(disk, small, 2)
        assert caught.value.errno == 28
        assert [path.name for path in disk.iterdir()] == ["step_00000001"]
        load_checkpoint(step_folder(disk, 1), model=small[0], optimizer=small[1])
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- schedule and groups -------------------------------------------------------------------------------------------


def test_the_schedule_warms_up_and_ends_near_zero():
    rates = [learning_rate_factor(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01


def test_the_head_has_its_own_rate_and_decay():
    wanted = recipe(head_learning_rate=0.5, head_weight_decay=3.0, weight_decay=0.1)
    model = build_model(recipe_architecture(wanted, 10))
    groups = parameter_groups(model, wanted)
    head = {id(p) for p in model.get_classifier().parameters()}
    seen = set()
    for group in groups:
        members = {id(p) for p in group["params"]}
        seen |= members
        assert members <= head or not members & head
        assert group["lr"] == (0.5 if members <= head else wanted.learning_rate)
        assert group["weight_decay"] in ((0.0, 3.0) if members <= head else (0.0, 0.1))
        assert all(p.ndim > 1 for p in group["params"]) or group["weight_decay"] == 0
    assert seen == {id(p) for p in model.parameters()}


@pytest.mark.parametrize(
    ("images", "batch", "epochs", "expected"),
    [(1000, 128, 2, (14, 128)), (50, 128, 3, (3, 50)), (1000, 128, 0.01, (1, 128))],
)
def test_steps(images, batch, epochs, expected):
    assert num_steps(images, batch_size=batch, epochs=epochs) == expected


def test_checkpoints_are_even_and_end_with_the_last_step():
    assert checkpoint_steps(100, 4) == (25, 50, 75, 100)
    assert checkpoint_steps(2, 5) == (1, 2)
    assert checkpoint_steps(7, 1) == (7,)


def test_each_epoch_visits_every_image_once_in_its_own_order():
    first, second = (epoch_order(100, seed=0, epoch=epoch) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(100))
    assert list(first) != list(second)
    assert list(first) == list(epoch_order(100, seed=0, epoch=0))
