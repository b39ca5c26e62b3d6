"""Cells as jobs: a login node whose environment has no torch-xla, jobs whose environment has it."""

import json
import os
import subprocess
import sys

import polars as pl
import pytest

from orchestrator.files import read_records
from orchestrator.grid import cells
from orchestrator.store import Store
from orchestrator.study import load_study
from tests.xla.runs import MAIN_PYTHON

pytestmark = [pytest.mark.xla, pytest.mark.xdist_group("slurm")]

STUDY = """
name = "chips"
[upstream]
dataset = "icons"
[grid]
family = "vit"
size = "dim16-depth1"
patch_size = 8
fraction = 0.01
epochs = 0.25
batch_size = 32
[train]
checkpoints = 1
[downstream]
tasks = ["digits"]
shots = [1, 5]
draws = 2
[wandb]
mode = "disabled"
"""

PROFILE = """
[partitions.tpu-v5e]
accelerator = "tpu"
gres = "tpu:v5e"
accelerators_per_node = 4
accelerator_memory_gb = 16
cpus_per_node = 4
memory_gb_per_node = 7
max_time_min = 60
python = "{python}"
setup = ["export PJRT_DEVICE={device}", "export CPU_NUM_DEVICES=4", "export UPSHOT_DEVICE={allowed}"]
"""


class Study:
    """A study of one small cell."""

    def __init__(self, folder, more=""):
        self.path, self.runs = folder / "chips.toml", folder / "runs"
        self.path.write_text(STUDY + more)
        self.store = Store(self.runs / "chips")
        [self.cell] = cells(load_study(self.path).study, self.path)

    def upshot(self, command, *words, python=MAIN_PYTHON, code=0, **variables):
        """What the command printed, run by the environment without torch-xla if no other is named."""
        given = [command, str(self.path), "--runs", str(self.runs), *words]
        program = "from orchestrator.cli import main; main()"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
        done = subprocess.run(
            [python, "-c", program, *given], capture_output=True, text=True, env=environment, timeout=400, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def started(self):
        """The record with which training began."""
        [record] = [r for r in read_records(self.store.train_log(self.cell.cell_id)).records if r["event"] == "start"]
        return record

    def check_results(self):
        """Every row is there, with an accuracy."""
        table = pl.read_parquet(self.store.results_path)
        assert table.height == 2 * 2 * 2  # shots, draws, layers
        assert table["downstream_accuracy"].null_count() == 0
        assert table["cell_id"].unique().to_list() == [self.cell.cell_id]


def test_a_cell_is_trained_and_judged_by_a_worker_of_this_machine(tmp_path):
    study = Study(tmp_path)
    study.upshot("submit", python=sys.executable)
    assert "1 done, 0 running, 0 pending, 0 failed" in study.upshot("watch", "--every", "0.5")
    assert study.started()["device"] == "xla:cpu"
    study.upshot("collect")
    study.check_results()


CLUSTER = '[cluster]\nprofile = "tpu.toml"\naccelerators = 4\n'


@pytest.mark.slurm
def test_a_cell_on_four_chips_goes_through_slurm_to_the_results(tmp_path, on_slurm, monkeypatch):
    monkeypatch.delenv("PJRT_DEVICE")  # the job's own set-up lines say it
    (tmp_path / "tpu.toml").write_text(PROFILE.format(python=sys.executable, device="CPU", allowed="cpu"))
    study = Study(tmp_path, CLUSTER)
    asked = study.upshot("submit", "--dry-run")
    assert "gres=tpu:v5e:4" in asked
    study.upshot("submit")
    train, _ = study.store.manifests()
    assert (train.resources["accelerators"], train.resources["tasks_per_node"]) == (4, 1)
    said = on_slurm.run("scontrol", "show", "job", train.job_id)
    assert "TresPerNode=gres:tpu:v5e:4" in said.replace("gres/tpu", "gres:tpu")
    assert "Partition=tpu-v5e" in said
    assert "1 done, 0 running, 0 pending, 0 failed" in study.upshot("watch", "--every", "0.5")
    assert study.started()["device"] == "xla:cpu x4"
    study.upshot("collect")
    study.check_results()


@pytest.mark.slurm
def test_a_job_whose_torch_xla_finds_no_tpu_does_not_train_on_its_cpus(tmp_path, on_slurm):
    (tmp_path / "tpu.toml").write_text(PROFILE.format(python=sys.executable, device="CPU", allowed=""))
    study = Study(tmp_path, CLUSTER)
    study.upshot("submit")
    study.upshot("watch", "--every", "0.5", code=1)
    said = json.loads(study.upshot("status", "--json", code=1))
    [state] = said["cells"]
    assert "NoAcceleratorError: the job asked for 4 accelerators" in state["cause"]
