"""A cell's run at W&B while it trains, is preempted and resumed: the real client against a loopback server."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator import tracking
from orchestrator.grid import cells
from orchestrator.node import mirror_cell
from orchestrator.store import Store
from orchestrator.study import load_study
from orchestrator.tracking import live
from slurm.cluster import load_profile
from tests.orchestrator import test_tracking as tracked
from tests.orchestrator.conftest import SMALL_STUDY
from tests.orchestrator.test_tracking import append, curves, shown, sync, training
from tests.private_slurm import wait_until
from tests.wandb_server import Run, WandbServer

_bare_machine, server, short_folder = tracked._bare_machine, tracked.server, tracked.short_folder

PERIOD_S = 0.3


@pytest.fixture(autouse=True)
def _swift(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client gathers rows for one second, not for 15, and tries again after as long (whole ones count)."""
    for name in ("FILE_STREAM_TRANSMIT_INTERVAL", "FILE_STREAM_RETRY_WAIT_MAX_SECONDS", "GRAPHQL_RETRY_MAX"):
        monkeypatch.setenv(f"WANDB_X_{name}", "1")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A study that is mirrored online, of one cell."""
    path = tmp_path / "small.toml"
    text = SMALL_STUDY.replace('mode = "disabled"', 'mode = "online"').replace('["vit", "resnet"]', '"vit"')
    path.write_text(text.replace("[0.01, 0.02]", "0.01"))
    file = load_study(path)
    store = Store(tmp_path / "runs" / "small")
    store.write_study(file.text, load_profile(file.study.cluster.profile))
    store.write_cells(cells(file.study, path))
    return store


@pytest.fixture
def cell_id(store: Store) -> str:
    return store.cells()[0].cell_id


@pytest.fixture
def folder(store: Store, cell_id: str) -> Path:
    made = store.cell_folder(cell_id)
    made.mkdir(parents=True)
    return made


def followed(folder: Path, *, hurried: bool = False, period_s: float = PERIOD_S) -> Any:
    return tracking.following(folder, hurried=lambda: hurried, period_s=period_s)


def mirrored(folder: Path) -> dict[str, Any]:
    path = folder / "mirror.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "wandb.ndjson").read_text().splitlines()]


def told(run: Run) -> list[dict[str, Any]]:
    """The rows of W&B's history as the journal would have them; a duplicate, a gap or a rewritten row fails."""
    assert run.num_rewritten == 0
    assert [run.lines[i]["_step"] for i in sorted(run.lines)] == list(range(len(run.lines)))
    keys = ("step", "examples_seen")
    return [
        {key: row[key] for key in keys} | {"values": {k: v for k, v in row.items() if k not in keys}}
        for row in run.history
    ]


def kept(folder: Path) -> list[dict[str, Any]]:
    return [{key: row[key] for key in ("step", "examples_seen", "values")} for row in journal(folder)]


def followers(folder: Path) -> list[int]:
    """The process ids that mirror the cell just now."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:  # it has ended
                continue
            if b"\0orchestrator.tracking\0" in command and os.fsencode(folder) in command:
                found.append(int(entry.name))
    return found


def wait_for_rows(server: WandbServer, cell_id: str, number: int) -> None:
    wait_until(lambda: cell_id in server.runs and len(server.runs[cell_id].lines) >= number, "mirrored so far")


def test_curves_are_at_wandb_while_the_cell_trains(
    store: Store, cell_id: str, folder: Path, server: WandbServer
) -> None:
    first, second = training(0, 50, checkpoints=(50,)), training(50, 80)
    with followed(folder):
        append(folder, first)
        wait_for_rows(server, cell_id, 6)
        run = server.runs[cell_id]
        assert (run.state, run.group, run.job_type) == ("running", "small", "cell")
        append(folder, second)
        wait_for_rows(server, cell_id, 9)
        wait_until(lambda: mirrored(folder).get("rows") == 9, "mirrored so far")
        assert (mirrored(folder)["ok"], mirrored(folder)["error"]) == (True, None)
        append(folder, training(80, 90))
    assert followers(folder) == []
    assert run.state == "preempted"
    assert told(run) == kept(folder)
    assert shown(server, cell_id) == curves(first + second + training(80, 90))
    assert mirror_cell(store, cell_id, "done").ok
    assert (run.state, run.summary["outcome"]) == ("finished", "done")
    assert told(run) == kept(folder)


def test_a_cell_that_is_shorter_than_a_period_opens_nothing(folder: Path, server: WandbServer) -> None:
    append(folder, training(0, 50))
    with followed(folder, period_s=60):
        pass
    assert (followers(folder), server.operations) == ([], [])


ATTEMPT_SCRIPT = """
import sys, time
from pathlib import Path
from orchestrator.tracking import following
with following(Path(sys.argv[1]), hurried=lambda: True, period_s=0.3):
    time.sleep(600)
"""


def test_three_preemptions_leave_neither_gaps_nor_duplicates(
    store: Store, cell_id: str, folder: Path, server: WandbServer, short_folder: str
) -> None:
    """The mirror is killed; it and the client get the job's signals; the training is killed. Each repeats steps."""
    records = training(0, 80, checkpoints=(50,))
    with followed(folder):
        append(folder, records)
        wait_for_rows(server, cell_id, 5)
        for pid in followers(folder):
            os.kill(pid, signal.SIGKILL)
    again = training(50, 130, checkpoints=(100,), salt=0.25)
    with followed(folder, hurried=True):
        append(folder, again)
        wait_for_rows(server, cell_id, 12)
        for pid in followers(folder):
            for child in [*tracked.cores_of(pid), pid]:
                os.kill(child, signal.SIGUSR2)
                os.kill(child, signal.SIGTERM)
    third = training(100, 180, checkpoints=(150,), salt=0.5)
    environment = tracked.script_environment(short_folder)
    training_process = subprocess.Popen([sys.executable, "-c", ATTEMPT_SCRIPT, str(folder)], env=environment)
    append(folder, third)
    wait_for_rows(server, cell_id, 16)
    training_process.kill()
    training_process.wait()
    wait_until(lambda: followers(folder) == [], "mirrored so far")
    append(folder, training(150, 200, checkpoints=(200,), salt=0.75))
    result = mirror_cell(store, cell_id, "done")
    assert result.ok, result.error
    run = server.runs[cell_id]
    assert told(run) == kept(folder)
    assert [row["step"] for row in run.history if "train/loss" in row] == list(range(10, 201, 10))
    assert [row["step"] for row in run.history if "upstream/accuracy" in row] == [50, 100, 150, 200]
    assert run.state == "finished"

    assert mirror_cell(store, cell_id, "done", mode="offline").ok
    (offline,) = (folder / "wandb").iterdir()
    with WandbServer() as other, pytest.MonkeyPatch.context() as patch:
        for name, value in other.environment.items():
            patch.setenv(name, value)
        sync(offline)
        assert told(other.runs[cell_id]) == told(run)
        assert other.runs[cell_id].config["fraction"] == run.config["fraction"]
    sync(offline)  # over the run that is there: the same rows in the same places
    assert told(run) == kept(folder)


def test_a_server_that_is_ill_for_a_while_loses_nothing(
    store: Store, cell_id: str, folder: Path, server: WandbServer
) -> None:
    append(folder, training(0, 50))
    with followed(folder):
        wait_for_rows(server, cell_id, 5)
        for number, fault in enumerate((429, 500), start=1):
            server.fail(fault)  # type: ignore[arg-type]  # a literal in a tuple
            append(folder, training(50 * number, 50 * (number + 1)))
            wait_until(lambda fault=fault: f"{fault} " in str(mirrored(folder).get("error")), "mirrored so far")
            assert mirrored(folder)["ok"] is False
            assert WandbServer.api_key not in (folder / "mirror.json").read_text()
            server.recover()
            wait_until(lambda: mirrored(folder).get("ok") is True, "mirrored so far")
    assert mirror_cell(store, cell_id, "done").ok
    assert told(server.runs[cell_id]) == kept(folder)
    assert shown(server, cell_id) == curves(training(0, 150))


@pytest.mark.timeout(90)
@pytest.mark.parametrize(
    ("client_s", "said"), [("1", "Client.Timeout|deadline"), pytest.param("60", "deadline", marks=pytest.mark.soak)]
)
def test_a_server_that_hangs_is_noted_and_holds_up_nobody(
    store: Store,
    cell_id: str,
    folder: Path,
    server: WandbServer,
    client_s: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether the client gives a request up by itself, or waits for longer than it is waited for."""
    monkeypatch.setenv("WANDB_X_GRAPHQL_TIMEOUT_SECONDS", client_s)
    append(folder, training(0, 50))
    server.fail("hang")
    with followed(folder, hurried=True):
        wait_until(lambda: mirrored(folder).get("ok") is False, "mirrored so far")
    assert followers(folder) == []
    assert re.search(said, mirrored(folder)["error"])
    server.recover()
    assert mirror_cell(store, cell_id, "done").ok
    assert told(server.runs[cell_id]) == kept(folder)


def test_a_mirror_that_lost_its_lock_leaves_the_journal_to_others(
    store: Store, cell_id: str, folder: Path, server: WandbServer
) -> None:
    """As where Slurm suspended the job for so long that another process took the cell over."""
    append(folder, training(0, 50))
    seen: list[int] = []

    def ended(_: float) -> bool:
        if len(seen) == 1:
            (folder / "mirror.lock").write_text("elsewhere pid 1 x y")
            append(folder, training(50, 80))
        if len(seen) == 3:
            (folder / "mirror.lock").unlink()
        seen.append(len(journal(folder)) if (folder / "wandb.ndjson").exists() else 0)
        return len(seen) >= 6

    live.follow(store, cell_id, ended, period_s=0.0)
    assert seen[:6] == [0, 5, 5, 5, 8, 8]
    assert told(server.runs[cell_id]) == kept(folder)
    assert server.runs[cell_id].state == "preempted"


def test_without_a_key_the_note_says_so(folder: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    append(folder, training(0, 50))
    with followed(folder):
        wait_until(lambda: "no W&B key" in str(mirrored(folder).get("error")), "mirrored so far")
    assert mirrored(folder)["ok"] is False
    assert server.operations == []


def test_a_client_that_dies_while_the_cell_trains_is_replaced(cell_id: str, folder: Path, server: WandbServer) -> None:
    append(folder, training(0, 50))
    with followed(folder):
        wait_for_rows(server, cell_id, 5)
        (pid,) = followers(folder)
        for core in tracked.cores_of(pid):
            os.kill(core, signal.SIGKILL)
        append(folder, training(50, 80))
        wait_for_rows(server, cell_id, 8)
        assert followers(folder) == [pid]
    assert told(server.runs[cell_id]) == kept(folder)
