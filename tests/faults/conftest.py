"""A small study whose cells really train, to be disturbed, and what it comes to when nothing disturbs it."""

import hashlib
import os
import pwd
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest

from orchestrator import drive
from orchestrator.files import read_records
from orchestrator.session import open_session, open_submitted
from orchestrator.store import Store
from tests.conftest import _skip_or_fail, _spoken_to
from tests.orchestrator.upshot_command import upshot, upshot_json
from tests.private_slurm import PrivateSlurm, PrivateSlurmError, available, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
STUDY = """
name = "faults"
[upstream]
dataset = "icons"
[grid]
family = ["vit", "mixer"]
size = "pico"
patch_size = 8
fraction = 0.02
epochs = 16
batch_size = 64
[train]
checkpoints = 3
[downstream]
tasks = ["mnist"]
shots = [1, 5]
draws = 1
[wandb]
mode = "disabled"
[cluster]
pack = 1
"""
PROFILE = """
[partitions.cpu]
cpus_per_node = 4
memory_gb_per_node = 60
max_time_min = 60
[partitions.scavenge]
cpus_per_node = 4
memory_gb_per_node = 60
max_time_min = 60
"""
LONG = ("--set", "grid.family=vit", "--set", "grid.epochs=200", "--set", "train.checkpoints=10")
START_S = 120.0  # for a job to start and torch to be imported on a busy machine


class Faulty:
    """One submission of the study, on a cluster that a test disturbs."""

    def __init__(self, folder: Path, cluster: PrivateSlurm) -> None:
        self.cluster, self.folder = cluster, folder
        self.path = folder / "faults.toml"
        self.profile = folder / "mini.toml"
        self.profile.write_text(PROFILE)
        self.path.write_text(STUDY + 'profile = "mini.toml"\n')
        self.store = Store(folder / "runs" / "faults")
        self.cells = [state.cell.cell_id for state in open_session(self.path, folder / "runs", []).observe().states]

    def configure(self, text: str) -> None:
        """More of the study file's [cluster] table, and what follows it."""
        self.path.write_text(self.path.read_text() + text)

    def submit(self, *words: object, code: int = 0) -> str:
        return upshot("submit", self.path, "--runs", self.folder / "runs", "-y", *words, code=code)

    def submit_mischievous(self) -> None:
        """Submits jobs that can be told to come to grief: see `tests.faults.bodies`."""
        from tests.faults import bodies

        session = open_session(self.path, self.folder / "runs", [])
        drive.submit(session.store, session.file, session.profile, function=bodies.run_task)

    def watch_mischievous(self) -> drive.Observation:
        from tests.faults import bodies

        session = open_submitted(self.store.root, self.folder / "runs")
        seen = drive.watch(
            session.store, session.file, session.profile, show=lambda _: None, tick_s=0.5, function=bodies.run_task
        )
        assert seen is not None
        return seen

    def watch(self, code: int = 0) -> str:
        return upshot("watch", self.store.root, "--every", "0.5", code=code)

    def events(self, cell_id: str, stage: str = "train", event: str | None = None) -> list[dict[str, object]]:
        found = [e for e in self.store.attempts(cell_id) if e["stage"] == stage]
        return [e for e in found if event is None or e["event"] == event]

    def wait_until_it_trains(self, cell_id: str, attempt: int = 1) -> dict[str, object]:
        """The attempt's start, once it has trained for some steps."""

        def trains() -> bool:
            starts = self.events(cell_id, event="start")
            records = read_records(self.store.train_log(cell_id)).records
            since = starts[attempt - 1]["time"] if len(starts) >= attempt else float("inf")
            return any(record["event"] == "train" and record["time"] > since for record in records)

        wait_until(trains, f"attempt {attempt} of {cell_id} trains", timeout_s=START_S)
        return self.events(cell_id, event="start")[attempt - 1]

    def records(self, cell_id: str) -> list[dict[str, object]]:
        """What training recorded."""
        return read_records(self.store.train_log(cell_id)).records

    def job_of(self, cell_id: str) -> str:
        """The job, or array task, that the cell's newest attempt runs in."""
        return str(self.events(cell_id, event="start")[-1]["job"])

    def kill(self, cell_id: str) -> None:
        os.kill(int(str(self.events(cell_id, event="start")[-1]["pid"])), signal.SIGKILL)

    def causes(self, cell_id: str) -> list[str]:
        return [str(e["cause"]) for e in self.events(cell_id, event="death")]

    def why(self, cell_id: str) -> str:
        return upshot("why", cell_id, self.store.root)

    def states(self, code: int = 0) -> dict[str, dict[str, object]]:
        return {c["cell_id"]: c for c in upshot_json("status", self.store.root, code=code)["cells"]}

    def check(self, undisturbed: dict[str, str]) -> None:
        """No cell is lost, none was run to its end twice, and all came to what the undisturbed ones came to."""
        assert {state["status"] for state in self.states().values()} == {"done"}
        for cell_id in self.cells:
            ends = [e for e in self.events(cell_id, event="end") if e["outcome"] == "done"]
            assert len(ends) == 1, f"{cell_id} was trained to its end {len(ends)} times"
            for cause in self.causes(cell_id):
                assert cause in self.why(cell_id)
        assert results(self.store) == undisturbed


def results(store: Store) -> dict[str, str]:
    """A digest of every checkpoint's weights and of every evaluation, by path."""
    found = {}
    for path in sorted((store.root / "cells").glob("*/*/checkpoints/step_*/weights.safetensors")):
        found[str(path.relative_to(store.root))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted((store.root / "cells").glob("*/*/evals/step_*/*.parquet")):
        rows = pl.read_parquet(path).write_json()
        found[str(path.relative_to(store.root))] = hashlib.sha256(rows.encode()).hexdigest()
    return found


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the study comes to on this machine when nothing disturbs it."""
    found = run_undisturbed(tmp_path_factory.mktemp("undisturbed"))
    assert len(found) == 18  # two cells, three checkpoints; weights, one evaluation and upstream measures each
    return found


@pytest.fixture(scope="session")
def undisturbed_long(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same for one cell that trains for as long as Slurm takes to enforce a time limit."""
    return run_undisturbed(tmp_path_factory.mktemp("undisturbed"), *LONG)


def run_undisturbed(folder: Path, *words: str) -> dict[str, str]:
    path = folder / "faults.toml"
    path.write_text(STUDY)
    upshot("submit", path, "--runs", folder / "runs", *words)
    upshot("watch", path, "--runs", folder / "runs")
    return results(Store(folder / "runs" / "faults"))


@pytest.fixture(scope="session")
def fault_slurm() -> "Iterator[PrivateSlurm]":
    """Three nodes, accounts, enforced limits, and an end to jobs that take more memory than they asked for."""
    _skip_or_fail(*available(accounting=True))
    extra = ["AccountingStorageEnforce=associations,limits,qos", "JobAcctGatherParams=OverMemoryKill"]
    with PrivateSlurm(num_nodes=3, accounting=True, extra_conf=extra) as cluster:
        user = pwd.getpwuid(os.geteuid()).pw_name
        # root has an association of its own from the start
        cluster.run("sacctmgr", "-iQ", "add", "account", "lab")
        cluster.run("sacctmgr", "-iQ", "add", "user", user, "account=lab", "defaultaccount=lab")
        yield cluster


@pytest.fixture
def faulty(tmp_path: Path, fault_slurm: PrivateSlurm, monkeypatch: pytest.MonkeyPatch) -> "Iterator[Faulty]":
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the mischief; the snapshot comes before it
    for cluster in _spoken_to(fault_slurm, monkeypatch):
        wait_until(partial(is_quiet, cluster), "what the fault before left is over", timeout_s=2 * START_S)
        yield Faulty(tmp_path, cluster)


def is_quiet(cluster: PrivateSlurm) -> bool:
    """Whether no job is left and every node is idle; one that was left down is brought back."""
    states = dict(line.split() for line in cluster.run("sinfo", "-hN", "-o%N %t").splitlines())
    for node, state in states.items():
        if state.startswith(("down", "drain")):
            bring_up(cluster, node)
    return not cluster.run("squeue", "-h").strip() and set(states.values()) == {"idle"}


def bring_up(cluster: PrivateSlurm, node: str) -> None:
    """Puts a node back into service; Slurm refuses it where the node has come back by itself."""
    with suppress(PrivateSlurmError):
        cluster.run("scontrol", "update", f"nodename={node}", "state=resume")


@pytest.fixture
def faulty_without_accounts(
    tmp_path: Path, private_slurm: PrivateSlurm, monkeypatch: pytest.MonkeyPatch
) -> "Iterator[Faulty]":
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for cluster in _spoken_to(private_slurm, monkeypatch):
        yield Faulty(tmp_path, cluster)


def with_sbatch(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a script in front of sbatch; $SBATCH in it is the real one."""
    import shutil

    real = shutil.which("sbatch")
    folder.mkdir(exist_ok=True)
    wrapper = folder / "sbatch"
    wrapper.write_text(f"#!/bin/bash\nSBATCH={real}\n{script}\n")
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
