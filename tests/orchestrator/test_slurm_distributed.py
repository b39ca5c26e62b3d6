"""Cells that several processes of a job train together, on two nodes of a private Slurm cluster, over gloo.

The nodes have no accelerators: the profile says that they have, and UPSHOT_DEVICE=cpu lets the CPU stand in for them.
"""

import pytest

from orchestrator.files import read_records
from tests.orchestrator.conftest import SmallStudy
from tests.orchestrator.upshot_command import upshot, upshot_json
from tests.private_slurm import wait_until

PROFILE = """
setup = ["export UPSHOT_DEVICE=cpu"]
[partitions.cpu]
accelerator = "gpu"
request = "partition"
accelerators_per_node = 1
cpus_per_node = 2
memory_gb_per_node = 60
max_time_min = 60
"""
ONE_CELL = ("--set", "grid.family=vit", "--set", "grid.fraction=[0.02]", "--set", "grid.epochs=12")

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process records of the cell: its losses and its measurements."""
    return run_alone(tmp_path_factory.mktemp("alone"), *ONE_CELL)


def run_alone(folder, *words):
    folder.mkdir(exist_ok=True)
    small = SmallStudy(folder)
    upshot("submit", small.path, "--runs", small.runs, *words)
    upshot("watch", small.path, "--runs", small.runs)
    return recorded(small)


def recorded(small):
    [cell] = small.store.cells()
    records = read_records(small.store.train_log(cell.cell_id)).records
    kept = ("train_loss", "upstream_loss", "upstream_accuracy")
    # A step that was trained again is recorded again: the last record of each counts.
    return {(r["event"], r["step"]): [r[key] for key in kept if key in r] for r in records if r["event"] != "start"}


@pytest.fixture
def together(tmp_path, on_slurm):
    small = SmallStudy(tmp_path)
    (tmp_path / "mini.toml").write_text(PROFILE)
    small.path.write_text(small.path.read_text() + '[cluster]\nprofile = "mini.toml"\naccelerators = 2\n')
    return small


def check_as_alone(small, alone, tolerance=1e-6):
    together = recorded(small)
    assert together.keys() == alone.keys()
    for key, values in alone.items():
        assert together[key] == pytest.approx(values, abs=tolerance), key


def test_what_no_accelerator_holds_is_sharded_over_two_nodes(tmp_path, on_slurm):
    """The plan finds it: the cell's state alone is more than what is said to be an accelerator's memory."""
    words = (*ONE_CELL, "--set", "grid.size=dim32-depth12", "--set", "grid.epochs=1")
    alone = run_alone(tmp_path / "alone", *words)
    small = SmallStudy(tmp_path)
    (tmp_path / "mini.toml").write_text(PROFILE + "accelerator_memory_gb = 0.0031\nmax_nodes = 2\n")
    small.path.write_text(small.path.read_text() + '[cluster]\nprofile = "mini.toml"\n')
    [cell] = upshot_json("plan", small.path, "--runs", small.runs, *words)["cells"]
    assert (cell["sharded"], cell["resources"]["train"]["num_nodes"]) == (True, 2)
    assert "vit dim32-depth12 is sharded over 2 accelerators" in upshot(
        "plan", small.path, "--runs", small.runs, *words
    )
    upshot("submit", small.path, "--runs", small.runs, *words)
    assert "1 done" in upshot("watch", small.store.root, "--every", "0.5")
    assert [m.sharded for m in small.store.manifests()] == [True, False]
    [stored] = small.store.cells()
    [start] = [r for r in read_records(small.store.train_log(stored.cell_id)).records if r["event"] == "start"]
    assert start["world_size"] == 2
    check_as_alone(small, alone, tolerance=1e-5)


def test_two_nodes_train_a_cell_as_one_process_does(together, alone):
    [cell] = upshot_json("plan", together.path, "--runs", together.runs, *ONE_CELL)["cells"]
    assert (cell["resources"]["train"]["num_nodes"], cell["resources"]["evaluate"]["num_nodes"]) == (2, 1)
    upshot("submit", together.path, "--runs", together.runs, *ONE_CELL)
    assert "1 done" in upshot("watch", together.store.root, "--every", "0.5")
    [stored] = together.store.cells()
    [start] = [r for r in read_records(together.store.train_log(stored.cell_id)).records if r["event"] == "start"]
    assert start["world_size"] == 2
    assert (together.store.log_path(stored.cell_id, "train", 1).with_suffix(".rank1.log")).exists()
    check_as_alone(together, alone)


def test_near_the_time_limit_all_processes_stop_at_one_step_and_go_on(together, alone, on_slurm):
    upshot("submit", together.path, "--runs", together.runs, *ONE_CELL)
    [cell] = together.store.cells()
    wait_until(lambda: any(key[0] == "train" for key in recorded(together)), "the cell trains", timeout_s=120)
    train = together.store.manifests()[0]
    on_slurm.run("scancel", "--signal=USR2", train.job_id)
    assert "1 done" in upshot("watch", together.store.root, "--every", "0.5")
    starts = [e for e in together.store.attempts(cell.cell_id) if e["event"] == "start" and e["stage"] == "train"]
    assert [e["job"] for e in starts] == [train.job_id] * 2
    deaths = [e["cause"] for e in together.store.attempts(cell.cell_id) if e["event"] == "death"]
    assert deaths == ["preemption"]  # which is what the signal means that comes long before the limit
    check_as_alone(together, alone)
