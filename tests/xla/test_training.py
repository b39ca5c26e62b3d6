"""Each family trains, resumes and is measured under torch-xla as on the CPU, and nothing is compiled twice."""

import os

import numpy as np
import pytest
import torch

from models.device import device_of, pick_device
from models.errors import UserError
from tests.xla.runs import AXES, NUM_STEPS, compiled, recipe, run, run_in_main

pytestmark = [pytest.mark.xla, pytest.mark.xdist_group("xla training")]  # together, to share what they compile


@pytest.mark.parametrize("family", AXES)
def test_the_losses_are_those_of_the_cpu(unbroken, family, tmp_path, monkeypatch):
    there = unbroken(family)
    monkeypatch.delenv("PJRT_DEVICE")
    here = run(recipe(family), tmp_path)
    assert (there.records[0]["device"], here.records[0]["device"]) == ("xla:cpu", "cpu")
    assert there.records[0]["accelerators"] == 0
    assert there.all("train", "step") == list(range(1, NUM_STEPS + 1))
    np.testing.assert_allclose(there.all("train", "train_loss"), here.all("train", "train_loss"), atol=1e-4)
    of_there, of_here = (run.all("checkpoint", "upstream_loss") for run in (there, here))
    np.testing.assert_allclose(of_there, of_here, atol=1e-4)
    assert len(of_there) == 2


@pytest.mark.parametrize("family", AXES)
def test_nothing_is_compiled_after_the_second_step_but_the_first_measurement(unbroken, family):
    there = unbroken(family)
    events = [(record["event"], record["step"]) for record in there.records]
    second, first_measured = events.index(("train", 2)), next(i for i, e in enumerate(events) if e[0] == "checkpoint")
    assert set(there.compiled[second:first_measured]) == {there.compiled[second]}
    assert set(there.compiled[first_measured:]) == {there.compiled[second] + 1}
    assert there.compiled[second] > there.compiled[0]


def test_a_new_sum_of_losses_begins_in_the_same_program(unbroken, tmp_path, monkeypatch):
    unbroken("vit")
    monkeypatch.setattr("models.train.NUM_RECORDS", 2)
    seldom = run(recipe(), tmp_path)
    assert seldom.all("train", "step") == [3, 4, 6, 7]  # a sum begins with steps 4, 5 and 7
    assert len(set(seldom.compiled)) == 1


@pytest.mark.parametrize("family", AXES)
def test_a_run_that_was_stopped_resumes_to_the_same_bits(unbroken, family, tmp_path):
    stopped = run(recipe(family), tmp_path, stop_after=2)
    assert stopped.records[-1]["step"] == 2
    resumed = run(recipe(family), tmp_path)
    assert resumed.records[0]["step"] == 2
    assert resumed.bytes() == unbroken(family).bytes()
    assert resumed.all("train", "train_loss") == unbroken(family).all("train", "train_loss")[2:]


def test_random_layers_draw_by_seed_and_step(tmp_path):
    wanted = recipe(size="dim16-depth2", dropout=0.2, drop_path=0.2)
    whole = run(wanted, tmp_path / "whole")
    run(wanted, tmp_path / "parts", stop_after=3)
    assert run(wanted, tmp_path / "parts").bytes() == whole.bytes()
    again = run(recipe(size="dim16-depth2", dropout=0.2, drop_path=0.2, seed=1), tmp_path / "other")
    assert again.compiled[-1] == again.compiled[0]
    assert again.all("train", "train_loss") != whole.all("train", "train_loss")


def test_micro_batches_change_no_more_than_rounding_and_compile_nothing_after_the_second_step(unbroken, tmp_path):
    parts = run(recipe(), tmp_path, micro_batch=12)
    assert parts.records[0]["micro_batch"] == 12
    losses = unbroken("vit").all("train", "train_loss")
    np.testing.assert_allclose(parts.all("train", "train_loss"), losses, atol=1e-4)
    assert len(set(parts.compiled[2:5])) == 1


def test_bfloat16_changes_no_more_than_its_precision(unbroken, tmp_path):
    half = run(recipe(precision="bfloat16"), tmp_path, stop_after=3)
    losses = unbroken("vit").all("train", "train_loss")[:3]
    np.testing.assert_allclose(half.all("train", "train_loss"), losses, atol=0.05)
    assert half.all("train", "train_loss") != losses


def test_what_torch_xla_does_by_itself_is_left_to_it(unbroken, tmp_path):
    same = run(recipe(), tmp_path, stop_after=2, checkpointed=True, compiled=True)
    assert same.all("train", "train_loss") == unbroken("vit").all("train", "train_loss")[:2]


@pytest.mark.parametrize("first", ["xla", "main"])
def test_checkpoints_go_from_one_environment_to_the_other_and_on(unbroken, first, tmp_path):
    begins, ends = (run, run_in_main) if first == "xla" else (run_in_main, run)
    begins(recipe(), tmp_path, stop_after=3)
    went_on = ends(recipe(), tmp_path)
    assert went_on.records[0]["step"] == 3
    losses = unbroken("vit").all("train", "train_loss")[3:]
    np.testing.assert_allclose(went_on.all("train", "train_loss"), losses, atol=1e-4)
    measured = unbroken("vit").all("checkpoint", "upstream_loss")[-1]
    np.testing.assert_allclose(went_on.all("checkpoint", "upstream_loss")[-1], measured, atol=1e-4)


def test_several_processes_are_refused():
    from models.distributed import World
    from models.prepare import _check_chips

    with pytest.raises(UserError, match=r"2 processes, but torch-xla trains a cell in one"):
        _check_chips(pick_device(), World(size=2), 32)


def test_without_its_variable_torch_xla_is_not_taken_on_a_machine_without_tpus(monkeypatch):
    monkeypatch.delenv("PJRT_DEVICE")
    device = pick_device()
    assert (device.name, device.compiles) == ("cpu", False)
    assert "PJRT_DEVICE" not in os.environ


def test_numbers_of_a_step_make_no_difference_to_its_program():
    device = pick_device()
    x_N = torch.ones(8).to(device.torch_device)
    counts = []
    for value in (0.5, 0.0, 1.0, 0.25, 8.0):
        assert float(x_N[0]) == 1.0
        y_N = x_N * device.scalar(value) + 0.25
        device.end_step()
        assert y_N.cpu().tolist() == [value + 0.25] * 8
        counts.append(compiled())
    assert counts[0] == counts[-1]


def test_a_model_says_where_it_is():
    model = torch.nn.Linear(2, 2)
    assert device_of(model).name == "cpu"
    assert device_of(model.to(pick_device().torch_device)).name == "xla:cpu"
    assert pick_device().peak_accelerator_gb() is None
