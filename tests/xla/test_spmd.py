"""Four devices of one process: they split batches and large parameters, and come to what one device comes to."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.xla.runs import NUM_STEPS, recipe, run_in_main

pytestmark = [pytest.mark.xla, pytest.mark.xdist_group("xla on four devices")]


@pytest.fixture(scope="module")
def four_chips(tmp_path_factory):
    """What `four_chips.py` tells."""
    folder = tmp_path_factory.mktemp("four_chips")
    environment = {**os.environ, "CPU_NUM_DEVICES": "4"}
    command = [sys.executable, "-m", "tests.xla.four_chips", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1]) | {"folder": folder}


@pytest.fixture(scope="module")
def of_the_cpu(tmp_path_factory):
    """What the main environment's CPU comes to, by family."""
    return {family: run_in_main(recipe(family), tmp_path_factory.mktemp(family)) for family in ("vit", "resnet")}


def test_all_devices_are_one(four_chips):
    assert (four_chips["name"], four_chips["num_chips"]) == ("xla:cpu x4", 4)


@pytest.mark.parametrize(
    ("how", "family"),
    [("replicated", "vit"), ("sharded", "vit"), ("micro-batches", "vit"), ("batch norm", "resnet")],
)
def test_the_losses_are_those_of_one_device(four_chips, of_the_cpu, how, family):
    there, here = four_chips["runs"][how], of_the_cpu[family]
    losses = here.all("train", "train_loss")[: len(there["train"])]
    np.testing.assert_allclose(there["train"], losses, atol=1e-4)
    measured = here.all("checkpoint", "upstream_loss")[: len(there["upstream"])]
    np.testing.assert_allclose(there["upstream"], measured, atol=1e-4)
    assert len(losses) >= 3


def test_bfloat16_changes_no_more_than_its_precision(four_chips):
    losses = four_chips["runs"]["replicated"]["train"][:2]
    np.testing.assert_allclose(four_chips["runs"]["bfloat16"]["train"], losses, atol=0.05)
    assert four_chips["runs"]["bfloat16"]["train"] != losses


@pytest.mark.parametrize("how", ["replicated", "sharded"])
def test_nothing_is_compiled_after_the_second_step_but_the_first_measurement(four_chips, how):
    compiled = four_chips["runs"][how]["compiled"]
    assert set(compiled[2:5]) == {compiled[2]}  # steps 2 to 4, before the first measurement
    assert set(compiled[5:]) == {compiled[2] + 1}
    assert compiled[2] > compiled[0]


def test_a_run_with_sharded_state_resumes_to_the_same_bits(four_chips):
    assert four_chips["same_bits"]
    assert four_chips["runs"]["resumed"]["train"] == four_chips["runs"]["sharded"]["train"][3:]


def test_parameters_and_moments_lie_in_parts(four_chips):
    quarter = "{devices=[4,1]0,1,2,3}"
    assert four_chips["shardings"] == {
        "made": [quarter],
        "after a step": [quarter, quarter, quarter, "{replicated}"],
        "loaded": [quarter, quarter, quarter, ""],
    }


def test_micro_batches_are_those_of_one_device_each(four_chips):
    assert four_chips["runs"]["micro-batches"]["micro_batch"] == 12


def test_a_batch_that_the_devices_do_not_divide_is_refused(four_chips):
    assert "a batch of 30 images cannot be split among the 4 chips" in four_chips["refused"]


def test_features_are_those_of_the_cpu(four_chips):
    assert four_chips["features_differ_by"] < 1e-4


def test_another_environment_goes_on_from_a_sharded_run(four_chips):
    longer = recipe(epochs=2 * recipe().epochs)
    went_on = run_in_main(longer, four_chips["folder"] / "sharded", stop_after=2 * NUM_STEPS)
    assert [went_on.records[n]["step"] for n in (0, -1)] == [NUM_STEPS, 2 * NUM_STEPS]
