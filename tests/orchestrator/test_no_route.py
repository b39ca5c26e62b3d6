"""Jobs on nodes from which W&B cannot be reached, or is not let in: what they come to, and how long their ends take."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from orchestrator.grid import cells
from orchestrator.state import read_files
from orchestrator.store import Manifest, Store
from orchestrator.study import load_study
from orchestrator.tracking.patience import SHARE, Patience
from slurm.cluster import load_profile
from tests.orchestrator import test_tracking as tracked
from tests.wandb_server import WandbServer

_bare_machine = tracked._bare_machine

ROOT = Path(__file__).parents[2]
MOST_S = 120.0  # by far more than a job waits at its end, and less than for ever
STUDY = """
name = "lonely"
[upstream]
dataset = "icons"
[grid]
family = "vit"
size = "pico"
patch_size = 8
fraction = 0.01
batch_size = 64
[downstream]
tasks = ["mnist"]
shots = [1]
draws = 1
[wandb]
mode = "online"
"""
JOB = """
import sys
from orchestrator.node import run_task
for token in ("train", "evaluate"):
    run_task(sys.argv[1], token, 0)
"""


class Lonely:
    """A study of one cell, whose two jobs run one after the other in a process."""

    def __init__(self, folder: Path, url: str) -> None:
        folder.mkdir()
        path = folder / "lonely.toml"
        path.write_text(STUDY)
        file = load_study(path)
        self.store = Store(folder / "runs")
        self.store.write_study(file.text, load_profile("local"))
        self.store.write_cells(cells(file.study, path))
        [cell] = self.store.cells()
        self.cell_id, self.folder = cell.cell_id, self.store.cell_folder(cell.cell_id)
        work: dict[str, Any] = {"study": "lonely", "executor": "local", "tasks": [[cell.cell_id]], "resources": {}}
        self.store.write_manifest(Manifest(token="train", stage="train", submitted=0.0, **work))
        self.store.write_manifest(Manifest(token="evaluate", stage="evaluate", submitted=1.0, **work))
        key = {"WANDB_API_KEY": "f" * 40, "WANDB_BASE_URL": url}
        environment = {**os.environ, **key, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", JOB, str(self.store.root)]
        self.log = folder / "job.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def wait(self) -> None:
        """Returns when both jobs have ended, as they must, whatever W&B does."""
        try:
            assert self.process.wait(5 * MOST_S) == 0, self.log.read_text()
        finally:
            self.process.kill()

    def check(self, why: str) -> None:
        ends = {e["stage"]: e for e in self.store.attempts(self.cell_id) if e["event"] == "end"}
        assert {stage: end["outcome"] for stage, end in ends.items()} == {"train": "done", "evaluate": "done"}
        assert read_files(self.store, self.store.study(), self.cell_id).missing == ()
        noted = json.loads((self.folder / "mirror.json").read_text())
        assert (noted["ok"], noted["rows"]) == (False, None)
        assert why in noted["error"]
        assert "f" * 40 not in noted["error"]
        [began] = [
            e["time"] for e in self.store.attempts(self.cell_id) if (e["event"], e["stage"]) == ("start", "evaluate")
        ]
        assert began - ends["train"]["time"] < MOST_S
        assert noted["time"] - ends["evaluate"]["time"] < MOST_S
        assert (self.folder / "tensorboard").is_dir()

    def results(self) -> tuple[str, list[dict[str, Any]]]:
        [weights] = self.store.checkpoints(self.cell_id).glob("step_*/weights.safetensors")
        [rows] = self.folder.glob("evals/step_*/[!u]*.parquet")
        return hashlib.sha256(weights.read_bytes()).hexdigest(), pl.read_parquet(rows).to_dicts()


@contextmanager
def nobody() -> Iterator[str]:
    """A port that nobody listens on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@contextmanager
def black_hole() -> Iterator[str]:
    """A listener that takes nobody's call."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


@pytest.mark.timeout(900)
def test_jobs_that_cannot_reach_wandb_come_to_the_same_and_end(tmp_path: Path) -> None:
    with nobody() as refused, black_hole() as silent, WandbServer() as server:
        cells = {
            "connection refused": Lonely(tmp_path / "refused", refused),
            "deadline exceeded": Lonely(tmp_path / "silent", silent),
            "401": Lonely(tmp_path / "stranger", server.url),
        }
        for cell in cells.values():
            cell.wait()
        assert server.runs == {}
    for why, cell in cells.items():
        cell.check(why)
    first, *others = [cell.results() for cell in cells.values()]
    assert others == [first, first]
    # W&B is not asked again for the evaluation, which ends a moment later.
    for why in ("connection refused", "deadline exceeded"):
        assert "not tried so soon after" in json.loads((cells[why].folder / "mirror.json").read_text())["error"]


def test_patience_is_a_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    patience = Patience()
    waited = 0.0
    for second in range(3600):
        now = 1000.0 + second
        if not patience.is_over:
            patience.wait(4.0)
            patience.wait(8.0)
            patience.judge("gone")
            waited += 12.0
    assert 12.0 < waited < SHARE * 3600 + 12.0 + 1
    assert patience.problem == "gone"
    now += 3600
    patience.wait(8.0)
    patience.judge(None)
    assert not patience.is_over
    patience.judge("refused at once")
    assert not patience.is_over
