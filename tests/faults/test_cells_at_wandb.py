"""A study of 200 real cells on Slurm, of which many are preempted, beside a W&B server that is ill: what is there then.

`make soak` runs it; each half takes about a quarter of an hour on two cores.
"""

import json
import os
import random
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import polars as pl
import pytest

from orchestrator import drive
from orchestrator.files import read_records
from orchestrator.observe import Observation
from orchestrator.session import open_session
from orchestrator.store import Store
from tests.conftest import _skip_or_fail, _spoken_to
from tests.faults import struck
from tests.faults.conftest import ROOT, is_quiet
from tests.faults.struck import How, Strike
from tests.orchestrator.test_live import journal, kept, told
from tests.orchestrator.upshot_command import UPSHOT
from tests.private_slurm import PrivateSlurm, available, wait_until
from tests.wandb_server import Fault, Run, WandbServer

pytestmark = [pytest.mark.slurm, pytest.mark.soak, pytest.mark.timeout(7200)]

NUM_CELLS: Final = 200
LONG_EPOCHS: Final = 24
NUM_RECORDS: Final = 50
"""Training records of a long cell, about."""
STUDY = """
name = "many"
[upstream]
dataset = "icons"
[[grid]]
family = ["vit", "mixer"]
size = "pico"
patch_size = 8
fraction = 0.02
epochs = 8
batch_size = 64
learning_rate = [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 3e-3, 4e-3, 5e-3]
seed = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
[[grid]]
family = ["vit", "mixer"]
size = "pico"
patch_size = 8
fraction = 0.02
epochs = 24
batch_size = 64
learning_rate = [1e-4, 2e-4, 5e-4, 1e-3]
seed = [0, 1, 2, 3, 4]
[train]
checkpoints = 3
[downstream]
tasks = ["mnist"]
shots = [1, 5]
draws = 2
[wandb]
mode = "{mode}"
[retry]
killed = 3
[cluster]
pack = 10
profile = "mini.toml"
"""
PROFILE = """
[partitions.cpu]
cpus_per_node = 3
memory_gb_per_node = 60
max_time_min = 60
"""
TROUBLES: Final[tuple[tuple[int, Fault | None, float], ...]] = ((10, 429, 20.0), (40, 500, 20.0), (70, "hang", 15.0))
"""From so many cells on that are done, what the server answers, and for how many seconds."""
DEATH: Final = (100, 60.0)


class Illness:
    """A server that is ill now and then, as the study gets on."""

    def __init__(self, server: WandbServer) -> None:
        self.server, self.left = server, list(TROUBLES)
        self.has_died = False
        self.timers: list[threading.Timer] = []

    def look(self, seen: Observation) -> None:
        done = sum(state.status == "done" for state in seen.states)
        if any(timer.is_alive() for timer in self.timers):
            return
        if self.left and done >= self.left[0][0]:
            _, fault, seconds = self.left.pop(0)
            assert fault is not None
            self.server.fail(fault)
            self._later(seconds, self.server.recover)
        elif not self.left and not self.has_died and done >= DEATH[0]:
            self.has_died = True
            self.server.go_away()
            self._later(DEATH[1], self.server.come_back)

    def _later(self, seconds: float, act: Any) -> None:
        self.timers.append(threading.Timer(seconds, act))
        self.timers[-1].start()

    def end(self) -> None:
        for timer in self.timers:
            timer.join()
        assert (self.left, self.has_died) == ([], True)


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server, and jobs that find it and no user's own settings."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "1")
    with WandbServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server
        server.recover()
        assert server.unknown == []


@pytest.fixture(scope="module")
def narrow_slurm() -> Iterator[PrivateSlurm]:
    """A cluster that runs three jobs at a time, each of a gigabyte, whatever has been submitted."""
    _skip_or_fail(*available(accounting=True))
    with PrivateSlurm(num_nodes=1, cpus_per_node=3, accounting=True) as cluster:
        yield cluster


@pytest.fixture
def slurm(narrow_slurm: PrivateSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateSlurm]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the strikes; the snapshot comes before it
    for cluster in _spoken_to(narrow_slurm, monkeypatch):
        wait_until(partial(is_quiet, cluster), "nothing is left of the study before", timeout_s=120)
        yield cluster


def strikes_of(chance: random.Random) -> list[Strike]:
    """One to three ends of a cell's attempts, at any moment of training, mirroring or judging."""
    hows: list[How] = ["kill", "requeue", "stop"]

    def while_it_trains(most: int) -> Strike:
        return Strike(
            stage="train", after=chance.randint(0, most), delay_s=chance.uniform(0, 1), how=chance.choice(hows)
        )

    first, again, third = while_it_trains(NUM_RECORDS), while_it_trains(8), while_it_trains(8)
    return chance.choice([[first], [first, again], [first, again, third], [first, judging(chance)], [judging(chance)]])


def judging(chance: random.Random) -> Strike:
    return Strike(stage="evaluate", after=0, delay_s=chance.uniform(0, 2), how=chance.choice(["kill", "requeue"]))


def run_study(folder: Path, mode: str, show: Any) -> Store:
    """The study, driven to its end."""
    (folder / "mini.toml").write_text(PROFILE)
    path = folder / "many.toml"
    path.write_text(STUDY.format(mode=mode))
    session = open_session(path, folder / "runs", [])
    chance, store = random.Random(11), session.store
    states = session.observe().states
    assert len(states) == NUM_CELLS
    long = [state.cell.cell_id for state in states if state.cell.recipe.epochs == LONG_EPOCHS]
    for cell_id in long:
        struck.order(store.root, cell_id, strikes_of(chance))
    for state in chance.sample(states, 16):
        if state.cell.cell_id not in long:
            struck.order(store.root, state.cell.cell_id, [judging(chance)])
    drive.submit(session.store, session.file, session.profile, function=struck.run_task)
    seen = drive.watch(session.store, session.file, session.profile, show=show, tick_s=1.0, function=struck.run_task)
    assert seen is not None
    assert Counter(str(state.status) for state in seen.states) == {"done": NUM_CELLS}
    return store


def check_strikes(store: Store) -> None:
    """Many cells were hit, some more than once, in every way."""
    came = struck.struck(store.root)
    print(f"{len(came)} strikes: {Counter((strike['stage'], strike['how']) for strike in came)}")
    hit = Counter(strike["cell_id"] for strike in came)
    assert len(hit) >= 30
    assert sum(number > 1 for number in hit.values()) >= 5
    assert {strike["how"] for strike in came} == {"kill", "requeue", "stop"}
    starts = {cell_id: [e for e in store.attempts(cell_id) if e["event"] == "start"] for cell_id in hit}
    assert sum(len(of_cell) > 2 for of_cell in starts.values()) >= 20, "many attempts were to be ended before their end"


def check_all(store: Store, server: WandbServer) -> None:
    """Every cell is a run of its own, once and wholly."""
    cell_ids = {cell.cell_id for cell in store.cells()}
    assert {run_id for run_id, run in server.runs.items() if run.job_type == "cell"} == cell_ids
    for cell_id in cell_ids:
        check(store, cell_id, server.runs[cell_id])


def check(store: Store, cell_id: str, run: Run) -> None:
    folder = store.cell_folder(cell_id)
    assert told(run) == kept(folder), cell_id  # no duplicate, no gap, nothing rewritten
    rows = journal(folder)
    for event in ("train", "checkpoint", "evaluation"):
        steps = [row["step"] for row in rows if row["event"] == event]
        assert steps == sorted(set(steps)), (cell_id, event, steps)
    trained = read_records(store.train_log(cell_id)).records
    for event in ("train", "checkpoint"):
        there = {row["step"] for row in rows if row["event"] == event}
        assert there == {record["step"] for record in trained if record["event"] == event}, (cell_id, event)
    assert [r["step"] for r in rows if r["event"] == "evaluation"] == store.finalised_steps(cell_id)
    expected = final(store, cell_id)
    assert {key: run.summary.get(key) for key in expected} == pytest.approx(expected), cell_id
    assert (run.state, run.summary["outcome"], run.group, run.job_type) == ("finished", "done", "many", "cell")


def final(store: Store, cell_id: str) -> dict[str, float]:
    """The metrics of the last checkpoint, read from its own files."""
    step = store.finalised_steps(cell_id)[-1]
    metrics = json.loads((store.checkpoints(cell_id) / f"step_{step:08d}" / "metrics.json").read_text())
    found = {f"upstream/{name}": metrics[f"upstream_{name}"] for name in ("accuracy", "loss")}
    found |= {name: metrics[name] for name in ("params", "flops", "examples_seen")}
    [path] = [p for p in store.evals(cell_id, step).glob("*.parquet") if not p.name.startswith("upstream-")]
    last = pl.read_parquet(path).filter("last_layer").group_by("shots").agg(pl.col("downstream_accuracy").mean())
    return found | {f"downstream/mnist/{shots}shot/accuracy": mean for shots, mean in last.iter_rows()}


def sync(store: Store) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([UPSHOT, "sync", store.root])


def test_200_cells_online(tmp_path: Path, slurm: PrivateSlurm, wandb: WandbServer) -> None:
    illness = Illness(wandb)
    store = run_study(tmp_path, "online", illness.look)
    illness.end()
    check_strikes(store)
    there = sum(run.state == "finished" for run in wandb.runs.values())
    print(f"before `upshot sync`: {len(wandb.runs)} runs, {there} finished, rewritten rows:", end=" ")
    print(sum(run.num_rewritten for run in wandb.runs.values()))
    with sync(store) as syncing:
        assert syncing.wait(1800) == 0
    check_all(store, wandb)


def test_200_cells_offline_then_synced(tmp_path: Path, slurm: PrivateSlurm, wandb: WandbServer) -> None:
    store = run_study(tmp_path, "offline", lambda _: None)
    check_strikes(store)
    assert wandb.operations == []
    for number in (40, 110):
        with sync(store) as syncing:
            wait_until(lambda number=number: len(wandb.runs) >= number, f"{number} runs are there", timeout_s=900)
            syncing.kill()
    with sync(store) as syncing:
        assert syncing.wait(1800) == 0
    check_all(store, wandb)
    told_once = {cell_id: dict(run.lines) for cell_id, run in wandb.runs.items()}
    with sync(store) as syncing:
        assert syncing.wait(1800) == 0
    assert {cell_id: run.lines for cell_id, run in wandb.runs.items()} == told_once
