import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import load_file

from models.build import build_model
from models.checkpoint import finalised_steps, load_checkpoint, save_checkpoint, step_folder, take_snapshot
from models.data.order import epoch_order
from models.device import pick_device
from models.errors import CheckpointError, CorruptCheckpointError, UserError
from models.optim import learning_rate_factor, make_optimizer, parameter_groups
from models.prepare import recipe_architecture
from models.recipe import Recipe, checkpoint_steps, cooldown_start, num_steps, num_warmup_steps
from models.step import layer_seed, micro_batches
from models.train import (
    load_model,
    train,
)
from models.upstream import load_upstream, measure_upstream
from tests.models.killed import is_checkpoint, train_until

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


def all_bytes(folder):
    last = step_folder(folder, finalised_steps(folder)[-1])
    return {path.name: path.read_bytes() for path in last.glob("*.safetensors")}


def final_weights(folder):
    return load_file(step_folder(folder, finalised_steps(folder)[-1]) / "weights.safetensors")


def assert_close(given, expected):
    assert given.keys() == expected.keys()
    for name, tensor in given.items():
        assert torch.allclose(tensor, expected[name], rtol=0, atol=1e-6), name


# AdamW divides a gradient by its own size, so rounding alone moves a weight whose gradient is 0 but for rounding.
SGD = {"optimizer": "sgd", "learning_rate": 0.05}


@pytest.mark.parametrize(("family", "optimizer"), [("vit", "adamw"), ("mixer", "sgd"), ("resnet", "adamw")])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, family, optimizer):
    wanted = recipe(family, optimizer=optimizer)
    run(wanted, tmp_path / "unbroken", 8)
    train_until(is_checkpoint, wanted, tmp_path / "killed", num_checkpoints=8)
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


STEP_AXES = [
    {"schedule": "rsqrt"},
    {"clip_norm": 0.5},
    {"dropout": 0.1},
    {"drop_path": 0.1},
    {"flip": True},
    {"mixup": 0.2},
    {"ema": 0.9},
    {"optimizer": "adafactor"},
]


@pytest.mark.parametrize("axes", STEP_AXES, ids=str)
def test_what_changes_the_steps_changes_nothing_about_going_on(tmp_path, axes):
    """From a checkpoint in the middle of the run, by another process's random state."""
    wanted = recipe("resnet", batch_size=8, size="nano", **axes)
    _, unbroken = run(wanted, tmp_path / "unbroken")
    run(recipe("resnet", batch_size=8, size="nano"), tmp_path / "plain")
    records, asked = [], []

    def should_stop():
        asked.append(1)
        return len(asked) == 10

    train(wanted, tmp_path / "stopped", num_checkpoints=3, log=records.append, should_stop=should_stop)
    torch.manual_seed(12345)
    again, more = run(wanted, tmp_path / "stopped")
    assert (again.outcome, again.first_step) == ("done", 10)
    assert all_bytes(tmp_path / "stopped") == all_bytes(tmp_path / "unbroken") != all_bytes(tmp_path / "plain")
    assert losses(records + more) == losses(unbroken)


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


def test_ranks_steps_and_seeds_draw_other_masks():
    places = [(seed, step, rank) for seed in (0, 1) for step in range(50) for rank in range(4)]
    assert len({layer_seed(*place) for place in places}) == len(places)


def test_random_layers_draw_anew_in_every_step(tmp_path):
    """With a learning rate of nearly nothing and one batch an epoch, only the masks tell the steps apart."""
    still = {"learning_rate": 1e-12, "head_learning_rate": 1e-12, "weight_decay": 0.0, "batch_size": 10_000}
    for axes, spread in (({}, False), ({"dropout": 0.5}, True), ({"drop_path": 0.5}, True)):
        _, records = run(recipe(epochs=4, **still, **axes), tmp_path / str(axes), 1)
        found = [r["train_loss"] for r in records if r["event"] == "train"]
        assert len(found) == 4
        assert (max(found) - min(found) > 1e-4) == spread


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


DIVERGING = [
    ({"optimizer": "sgd"}, None),
    ({"optimizer": "adamw"}, None),
    ({"optimizer": "adafactor"}, None),
    ({"optimizer": "sgd", "precision": "bfloat16"}, None),
    ({"optimizer": "sgd", "ema": 0.99}, None),
    ({"optimizer": "sgd", "ema": 0.99, "clip_norm": 1.0}, 5),
]


@pytest.mark.parametrize(("axes", "micro_batch"), DIVERGING, ids=str)
def test_divergence_is_a_result(tmp_path, axes, micro_batch):
    wanted, records = recipe("mixer", learning_rate=1e30, warmup=0.0, **axes), []
    result = train(wanted, tmp_path, num_checkpoints=3, log=records.append, micro_batch=micro_batch)
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
    assert set(data.train.labels_N.tolist()) == set(range(data.num_classes))
    assert set(data.test.labels_N.tolist()) <= set(range(data.num_classes))


def test_the_saved_model_is_the_trained_one(tmp_path):
    result, records = run(recipe(), tmp_path)
    arch = recipe_architecture(recipe(), records[0]["num_classes"])
    model = load_model(arch)(step_folder(tmp_path, result.step))
    assert not model.training
    measured = measure_upstream(model, load_upstream(recipe()), pick_device())
    assert measured == (records[-1]["upstream_accuracy"], records[-1]["upstream_loss"])


def test_a_truncated_newest_checkpoint_costs_only_its_own_steps(tmp_path):
    run(recipe(), tmp_path / "unbroken")
    first, _ = run(recipe(), tmp_path / "torn")
    truncate(step_folder(tmp_path / "torn", first.steps[-1]) / "weights.safetensors")
    again, records = run(recipe(), tmp_path / "torn")
    assert (again.outcome, again.first_step) == ("done", first.steps[-2])
    assert [r["event"] for r in records[:2]] == ["corrupt_checkpoint", "start"]
    assert records[0]["step"] == first.steps[-1]
    assert "weights.safetensors" in records[0]["error"]
    assert final_bytes(tmp_path / "torn") == final_bytes(tmp_path / "unbroken")
    aside = tmp_path / "torn" / f"corrupt-step_{first.steps[-1]:08d}"
    assert records[0]["moved_to"] == str(aside)
    assert (aside / "DONE").exists()
    assert (aside / "weights.safetensors").stat().st_size > 0


@pytest.mark.parametrize("name", ["optimizer.safetensors", "state.json"])
def test_where_no_checkpoint_can_be_read_training_begins_anew(tmp_path, name):
    """With intact weights beside the torn file: they must not leak into the new beginning."""
    run(recipe(), tmp_path / "unbroken", 1)
    first, _ = run(recipe(), tmp_path / "torn", 1)
    for aside in ("corrupt-step_{:08d}", "corrupt-step_{:08d}.2"):
        truncate(step_folder(tmp_path / "torn", first.step) / name)
        again, records = run(recipe(), tmp_path / "torn", 1)
        assert (again.first_step, again.outcome) == (0, "done")
        assert records[0]["event"] == "corrupt_checkpoint"
        assert final_bytes(tmp_path / "torn") == final_bytes(tmp_path / "unbroken")
        assert (tmp_path / "torn" / aside.format(first.step)).is_dir()


def test_a_torn_resume_checkpoint_is_kept_aside_though_its_folder_goes(tmp_path):
    asked, records = [], []

    def should_stop():
        asked.append(1)
        return len(asked) == 12

    stopped = train(recipe(), tmp_path, num_checkpoints=3, log=records.append, should_stop=should_stop)
    (numbered,) = finalised_steps(tmp_path)
    (tmp_path / "resume" / f"step_{stopped.step:08d}" / "optimizer.safetensors").unlink()
    again, _ = run(recipe(), tmp_path)
    assert (stopped.outcome, again.outcome, again.first_step) == ("interrupted", "done", numbered)
    assert not (tmp_path / "resume").exists()
    assert (tmp_path / f"corrupt-step_{stopped.step:08d}").is_dir()


def test_intact_weights_of_another_model_are_not_passed_over(tmp_path):
    run(recipe(), tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="another model"):
        run(recipe("mixer"), tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def test_micro_batches_change_no_more_than_rounding(tmp_path):
    """31 images, at most 4 at a time: 8 pieces, one of them smaller."""
    wanted = recipe(batch_size=31, **SGD)
    _, whole = run(wanted, tmp_path / "whole")
    records = []
    train(wanted, tmp_path / "cut", num_checkpoints=3, log=records.append, micro_batch=4)
    assert (records[0]["micro_batch"], whole[0]["micro_batch"], records[-1]["micro_batch"]) == (4, 31, 4)
    assert losses(records) == [(step, pytest.approx(loss, abs=1e-6)) for step, loss in losses(whole)]
    assert final_bytes(tmp_path / "cut") != final_bytes(tmp_path / "whole")
    assert_close(final_weights(tmp_path / "cut"), final_weights(tmp_path / "whole"))


def test_a_micro_batch_as_large_as_the_batch_changes_no_bit(tmp_path):
    run(recipe(), tmp_path / "whole")
    train(recipe(), tmp_path / "cut", num_checkpoints=3, log=lambda _: None, micro_batch=32)
    assert final_bytes(tmp_path / "cut") == final_bytes(tmp_path / "whole")


@pytest.mark.parametrize(
    ("family", "axes", "micro_batch"),
    [("vit", {"dropout": 0.1, "drop_path": 0.1}, None), ("mixer", {}, 5), ("resnet", {"drop_path": 0.1}, 5)],
    ids=str,
)
def test_blocks_that_are_computed_again_change_no_bit(tmp_path, family, axes, micro_batch):
    wanted, records = recipe(family, **axes), []
    for checkpointed in (False, True):
        folder = tmp_path / str(checkpointed)
        options = {"micro_batch": micro_batch, "checkpointed": checkpointed}
        train(wanted, folder, num_checkpoints=1, log=records.append, **options)
    assert final_bytes(tmp_path / "True") == final_bytes(tmp_path / "False")


@pytest.mark.soak
@pytest.mark.parametrize(("family", "length", "stop"), [("vit", {}, 7), ("resnet", {"epochs": 0.12}, 2)])
def test_compiled_steps_change_no_more_than_rounding_and_go_on_from_and_to_plain_ones(tmp_path, family, length, stop):
    """A compiler takes a minute for each.

    The ResNet takes four steps: rounding differs by 1e-7 in each, until it turns a unit on or off. After thirty steps
    plain and compiled runs are 1e-2 apart.
    """
    wanted, asked = recipe(family, batch_size=31, ema=0.9, **length, **SGD), []

    def should_stop():
        asked.append(1)
        return len(asked) == stop

    options = {"num_checkpoints": 3, "log": lambda _: None, "micro_batch": 5}
    train(wanted, tmp_path / "plain", **options)
    train(wanted, tmp_path / "compiled", compiled=True, **options)
    train(wanted, tmp_path / "stopped", compiled=True, should_stop=should_stop, **options)
    train(wanted, tmp_path / "stopped", compiled=True, **options)
    assert all_bytes(tmp_path / "stopped") == all_bytes(tmp_path / "compiled")
    assert final_weights(tmp_path / "compiled").keys() == final_weights(tmp_path / "plain").keys()
    assert_close(final_weights(tmp_path / "compiled"), final_weights(tmp_path / "plain"))


def test_no_images_at_a_time_are_refused(tmp_path):
    with pytest.raises(UserError, match="micro_batch: must be at least 1"):
        train(recipe(), tmp_path, num_checkpoints=3, log=lambda _: None, micro_batch=0)


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 40))
def test_every_image_of_a_batch_is_in_one_piece_of_one_rank(num_images, size, at_most):
    batch_B = np.random.default_rng(0).permutation(num_images)
    ranks = [micro_batches(batch_B, rank=rank, size=size, at_most=at_most) for rank in range(size)]
    assert np.array_equal(np.concatenate([piece_B for pieces in ranks for piece_B in pieces]), batch_B)
    assert len({len(pieces) for pieces in ranks}) == 1
    assert max(len(piece_B) for pieces in ranks for piece_B in pieces) <= at_most


def test_memory_is_in_the_records(tmp_path):
    result, records = run(recipe(), tmp_path, 1)
    assert 0.05 < records[-1]["peak_memory_gb"] <= result.peak_memory_gb < 64
    assert (result.peak_accelerator_gb is None) == (not torch.cuda.is_available())
    assert records[-1]["peak_accelerator_gb"] is None or records[-1]["peak_accelerator_gb"] > 0


def test_records_say_what_share_of_the_peak_the_model_used_where_the_peak_is_known(tmp_path):
    _, unknown = run(recipe(), tmp_path / "unknown", 1)
    records = []
    train(recipe(), tmp_path / "known", num_checkpoints=1, log=records.append, peak_teraflops=0.25)
    known = [record for record in records if record["event"] == "train"]
    per_image = records[-1]["flops"] / records[-1]["examples_seen"]
    assert not any("mfu" in record for record in unknown)
    assert len(known) > 3
    for record in known:
        assert record["mfu"] == pytest.approx(per_image * record["images_per_second"] / 0.25e12, rel=0.01)


def test_an_accelerator_out_of_memory_is_reported_as_such(tmp_path):
    def log(record):
        if record["event"] == "train":
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        train(recipe(), tmp_path, num_checkpoints=3, log=log)


# --- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small():
    wanted = recipe()
    model = build_model(recipe_architecture(wanted, 10))
    return model, make_optimizer(model, wanted)


def save(root, small, step=1):
    model, optimizer = small
    return save_checkpoint(take_snapshot(root, step, model=model, optimizer=optimizer, state={}, metrics={}))


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json"])
def test_a_torn_file_is_named(tmp_path, small, name):
    path = save(tmp_path, small) / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CorruptCheckpointError, match=name):
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
    rates = [learning_rate_factor(step, 100, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01


def test_the_linear_schedule_falls_by_the_same_amount_a_step():
    rates = [learning_rate_factor(step, 100, 10, "linear") for step in range(100)]
    assert rates[:10] == [learning_rate_factor(step, 100, 10) for step in range(10)]
    assert np.diff(rates[10:]) == pytest.approx(-1 / 90)
    assert rates[-1] == pytest.approx(1 / 90)


def test_the_reciprocal_square_root_cools_down_to_zero():
    rates = [learning_rate_factor(step, 1000, 100, "rsqrt") for step in range(1000)]
    assert rates[:100] == [learning_rate_factor(step, 1000, 100) for step in range(100)]
    assert rates[100:800] == pytest.approx([math.sqrt(100 / step) for step in range(100, 800)])
    cooled = [math.sqrt(100 / step) * (1000 - step) / 200 for step in range(800, 1000)]
    assert rates[800:] == pytest.approx(cooled)


@given(st.integers(1, 300), st.integers(0, 400), st.integers(0, 60))
def test_the_reciprocal_square_root_is_the_same_whatever_the_length_until_it_cools_down(shorter, more, warmup):
    start = cooldown_start(shorter)
    ours, theirs = (
        [learning_rate_factor(step, total, warmup, "rsqrt") for step in range(start)]
        for total in (shorter, shorter + more)
    )
    assert ours == theirs
    assert cooldown_start(shorter + more) >= start


def test_a_warm_up_is_a_share_of_the_steps_or_a_number_of_epochs():
    assert num_warmup_steps(recipe(warmup=0.1), num_steps=1000, steps_an_epoch=50) == 100
    assert num_warmup_steps(recipe(warmup=3, schedule="rsqrt"), num_steps=1000, steps_an_epoch=50) == 150
    with pytest.raises(ValueError, match='warmup is 3: with schedule "cosine" it is a share of the steps, below 1'):
        recipe(warmup=3)


@given(st.integers(1, 50), st.integers(0, 60), st.sampled_from(["cosine", "linear", "rsqrt"]))
def test_no_schedule_leaves_its_range(num_steps, warmup, schedule):
    assume(warmup < num_steps or schedule == "rsqrt")
    assert all(0 < learning_rate_factor(step, num_steps, warmup, schedule) <= 1 for step in range(num_steps))


@pytest.mark.parametrize("schedule", ["linear", "rsqrt"])
def test_the_schedule_is_what_the_weights_are_moved_by(tmp_path, schedule):
    _, records = run(recipe(schedule=schedule), tmp_path)
    trained = [(r["step"], r["learning_rate"]) for r in records if r["event"] == "train"]
    num_steps = records[0]["num_steps"]  # of one epoch, so that a warm-up of 0.1 is the same of either kind
    assert trained == [
        (step, recipe().learning_rate * learning_rate_factor(step - 1, num_steps, round(0.1 * num_steps), schedule))
        for step, _ in trained
    ]
    run(recipe(), tmp_path / "cosine")
    assert final_bytes(tmp_path) != final_bytes(tmp_path / "cosine")


def test_a_gradient_that_is_too_long_is_scaled_down_after_all_micro_batches(tmp_path):
    """One step of SGD without decay: the weights move by the rate times the gradient (Nesterov: 1 + momentum)."""
    wanted = recipe(**SGD | {"weight_decay": 0.0, "head_weight_decay": 0.0, "warmup": 0.0, "epochs": 0.01})
    clipped = wanted.model_copy(update={"clip_norm": 0.5})
    moved, norms = {}, {}
    for name, axes, micro_batch in (("free", wanted, None), ("clipped", clipped, None), ("cut", clipped, 5)):
        records = []
        train(axes, tmp_path / name, num_checkpoints=1, log=records.append, micro_batch=micro_batch)
        torch.manual_seed(axes.seed)
        began = build_model(recipe_architecture(axes, records[0]["num_classes"])).state_dict()
        moved[name] = {key: w - began[key] for key, w in final_weights(tmp_path / name).items()}
        norms[name] = next(r for r in records if r["event"] == "train").get("gradient_norm")
    assert norms["free"] is None
    length = {name: math.sqrt(sum(float(step.square().sum()) for step in moved[name].values())) for name in moved}
    per_gradient = 1.9 * wanted.learning_rate
    assert norms["clipped"] == pytest.approx(length["free"] / per_gradient, rel=1e-4)
    assert norms["clipped"] > 1
    assert length["clipped"] == pytest.approx(0.5 * per_gradient, rel=1e-4)
    assert norms["cut"] == pytest.approx(norms["clipped"], rel=1e-5)
    assert_close(moved["cut"], moved["clipped"])


def test_a_gradient_that_is_short_enough_stays_as_it_is(tmp_path):
    run(recipe(), tmp_path / "free")
    run(recipe(clip_norm=1e9), tmp_path / "clipped")
    assert final_bytes(tmp_path / "clipped") == final_bytes(tmp_path / "free")


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
