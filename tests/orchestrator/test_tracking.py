"""A cell at W&B, with the real wandb client against a loopback server."""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.measures import MEASURES_SCHEMA
from evals.protocol import upstream_eval_id
from models.errors import DataError, UserError
from orchestrator import tracking
from orchestrator.tracking.curves import Point, current_points, downstream_metrics, final_metrics, read_curve
from tests.wandb_server import WandbServer

ROOT = Path(__file__).resolve().parents[2]
CELL_ID = "0123456789abcdef"
BATCH = 16
CONFIG: dict[str, Any] = {
    "family": "vit",
    "size": "S",
    "fraction": 0.3,
    "patch_size": None,
    "seed": 0,
    "params": 28_000,
    "flops": 1.5e12,
}
NAMES = {
    "train_loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "images_per_second": "train/images_per_second",
    "upstream_accuracy": "upstream/accuracy",
    "upstream_loss": "upstream/loss",
}
SHORT_S = 1.0  # how long a mirror waits for a server that a test has broken


# --- a cell's folder, written by hand --------------------------------------------------------------------------------


def training(first: int, last: int, checkpoints: tuple[int, ...] = (), salt: float = 0.0) -> list[dict[str, Any]]:
    """The records of steps first..last, each 10 steps, as the training loop writes them."""
    records: list[dict[str, Any]] = [{"time": 1e9 + first, "event": "start", "step": first, "params": 28_000}]
    for step in range(first + 10, last + 1, 10):
        base = {"time": 1e9 + step, "step": step, "examples_seen": step * BATCH}
        values = {"train_loss": 5 / step + salt, "learning_rate": 1e-3 * step, "images_per_second": 1000.5 + step}
        records.append({**base, "event": "train", **values})
        if step in checkpoints:
            upstream = {"upstream_accuracy": step / 1000 + salt, "upstream_loss": 3.0 - step / 1000}
            records.append({**base, "event": "checkpoint", **upstream, "upstream_num_test": 500})
    return records


def append(cell: Path, records: list[dict[str, Any]], torn: str = "") -> None:
    cell.mkdir(parents=True, exist_ok=True)
    with (cell / "train.ndjson").open("a") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records) + torn)


def evaluate(cell: Path, step: int, accuracy: dict[int, list[float | None]], **fields: Any) -> Path:
    """Writes one evaluation: by layer, the accuracy of each draw; the highest layer is the last."""
    rows = [
        {
            "task": "mnist",
            "protocol": "ridge",
            "shots": 5,
            "draw": draw,
            "layer": layer,
            "last_layer": layer == max(accuracy),
            "downstream_accuracy": value,
            "reason": "too few images of class 7" if value is None else None,
            "downstream_num_test": 2000,
            **fields,
        }
        for layer, values in accuracy.items()
        for draw, value in enumerate(values)
    ]
    folder = cell / "evals" / f"step_{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{len(list(folder.iterdir())):012x}.parquet"
    schema = {"reason": pl.String, "downstream_accuracy": pl.Float64, "shots": pl.Int64}
    pl.DataFrame(rows, schema_overrides=schema).write_parquet(path)
    return path


def curves(records: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """By mirrored name, (examples seen, value), as the records say; they hold no repeated step."""
    found: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for key, name in NAMES.items():
            if key in record:
                found.setdefault(name, []).append((record["examples_seen"], record[key]))
    return found


def shown(server: WandbServer, run_id: str = CELL_ID) -> dict[str, list[tuple[float, float]]]:
    """The curves that W&B holds, in the order of its history."""
    run = server.runs[run_id]
    return {name: run.curve(name) for name in NAMES.values() if run.curve(name)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


DESCRIPTION: dict[str, Any] = {
    "study": "limits",
    "project": "upshot",
    "entity": None,
    "config": CONFIG,
    "name": "vit-S fraction=0.3",
    "tags": ["family=vit", "size=S"],
}


def mirror(
    cell: Path, mode: tracking.Mode = "online", *, outcome: str = "done", timeout_s: float = 30.0, **changes: Any
) -> tracking.MirrorResult:
    description = tracking.Description(**(DESCRIPTION | changes))
    return tracking.mirror_cell(cell, description, mode=mode, outcome=outcome, timeout_s=timeout_s)


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    folder = tmp_path / "study" / "cells" / CELL_ID[:2] / CELL_ID
    folder.mkdir(parents=True)
    return folder


# --- a machine on which nobody has set up wandb ----------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No user configuration, no host but loopback, and no wandb-core left behind."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_DIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there, and loopback is never proxied
    monkeypatch.chdir(home)
    yield
    if "wandb" in sys.modules:
        import wandb

        wandb.teardown()
    assert cores_of(os.getpid()) == []


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with WandbServer() as started:
        for name, value in started.environment.items():
            monkeypatch.setenv(name, value)
        yield started
        started.recover()
        assert started.unknown == []


def cores_of(parent: int) -> list[int]:
    """The process ids of a process's own wandb-core children that live."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name, rest = (entry / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
            except OSError:  # it has ended
                continue
            state, its_parent, *_ = rest.split()
            if name == "wandb-core" and int(its_parent) == parent and state != "Z":
                found.append(int(entry.name))
    return found


# --- online ----------------------------------------------------------------------------------------------------------


def test_an_online_run_shows_the_cell(cell: Path, server: WandbServer, capfd: pytest.CaptureFixture[str]) -> None:
    records = training(0, 100, checkpoints=(50, 100))
    append(cell, records)
    evaluate(cell, 100, {0: [0.5, 0.6], 1: [0.8, 0.9], 2: [0.7, 0.8]})

    result = mirror(cell)

    assert result.ok, result.error
    assert (result.num_records, result.num_rows, result.num_sent, result.num_unreadable) == (12, 13, 13, 0)
    assert result.url == f"{server.url}/{server.entity}/upshot/runs/{CELL_ID}"
    run = server.runs[CELL_ID]
    assert (run.group, run.job_type, run.name, run.state) == ("limits", "cell", "vit-S fraction=0.3", "finished")
    assert (run.project, run.entity, run.tags) == ("upshot", server.entity, ["family=vit", "size=S"])
    assert {key: run.config[key] for key in CONFIG} == CONFIG
    assert shown(server) == curves(records)
    assert [row["step"] for row in run.history] == [r["step"] for r in records if "examples_seen" in r] + [100]
    assert run.curve("downstream/mnist/5shot/accuracy") == [(1600, 0.75)]
    assert [run.lines[i]["_timestamp"] for i in (0, 11)] == [1e9 + 10, 1e9 + 100]
    expected = {
        "upstream/accuracy": 0.1,
        "upstream/loss": 2.9,
        "downstream/mnist/5shot/accuracy": 0.75,
        "downstream/mnist/5shot/best_layer": 1,
        "params": 28_000,
        "flops": 1.5e12,
        "examples_seen": 1600,
        "outcome": "done",
    }
    assert {key: run.summary[key] for key in expected} == expected
    assert capfd.readouterr() == ("", "")


def test_examples_seen_is_the_x_axis_of_every_curve(cell: Path, server: WandbServer) -> None:
    append(cell, training(0, 20))
    mirror(cell)
    # wandb's wire format for defined metrics: "1" a name, "2" a glob, "5" the (1-based) index of the step metric.
    defined = server.runs[CELL_ID].config["_wandb"]["m"]
    (glob,) = [metric for metric in defined if metric.get("2") == "*"]
    assert defined[glob["5"] - 1]["1"] == "examples_seen"


def test_a_repeated_mirror_changes_nothing(cell: Path, server: WandbServer) -> None:
    append(cell, training(0, 60, checkpoints=(60,)))
    evaluate(cell, 60, {0: [0.5], 1: [0.6]})
    mirror(cell)
    before = dict(server.runs[CELL_ID].lines)
    for _ in range(2):
        result = mirror(cell)
        assert (result.ok, result.num_rows, result.num_sent) == (True, 8, 0)
    assert server.runs[CELL_ID].lines == before
    assert server.runs[CELL_ID].summary["downstream/mnist/5shot/accuracy"] == 0.6
    assert list(server.runs) == [CELL_ID]


def test_a_cell_that_goes_on_continues_its_run(cell: Path, server: WandbServer) -> None:
    first, second = training(0, 50, checkpoints=(50,)), training(50, 100, checkpoints=(100,))
    append(cell, first)
    evaluate(cell, 50, {0: [0.4]})
    mirror(cell, outcome="running")
    summary = server.runs[CELL_ID].summary
    assert (summary["outcome"], summary["downstream/mnist/5shot/accuracy"]) == ("running", 0.4)

    append(cell, second)
    result = mirror(cell, outcome="done", tags=["family=vit", "late"], config={**CONFIG, "params": 29_000})
    assert (result.ok, result.num_sent) == (True, 6)
    run = server.runs[CELL_ID]
    assert shown(server) == curves(first + second)
    # The newest checkpoint has no evaluation yet: the old one's must not stand beside its upstream accuracy.
    assert [key for key in run.summary if key.startswith("downstream/")] == []
    assert (run.summary["upstream/accuracy"], run.summary["outcome"]) == (0.1, "done")
    assert (run.tags, run.config["params"]) == (["family=vit", "late"], 29_000)

    evaluate(cell, 100, {0: [0.7]})
    assert mirror(cell).num_sent == 1
    assert server.runs[CELL_ID].summary["downstream/mnist/5shot/accuracy"] == 0.7
    assert server.runs[CELL_ID].curve("downstream/mnist/5shot/accuracy") == [(800, 0.4), (1600, 0.7)]
    assert shown(server) == curves(first + second)


def test_of_repeated_steps_the_later_record_counts(cell: Path, server: WandbServer) -> None:
    killed, resumed = training(0, 80, checkpoints=(50,)), training(50, 100, checkpoints=(100,), salt=0.25)
    append(cell, killed + resumed)
    result = mirror(cell)
    assert (result.num_records, result.num_sent) == (9 + 6, 9 + 6 - 3)
    assert shown(server) == curves([r for r in killed if r["step"] <= 50] + resumed)


def test_what_was_told_before_a_resume_is_not_told_twice(cell: Path, server: WandbServer) -> None:
    killed, resumed = training(0, 80, checkpoints=(50,)), training(50, 100, checkpoints=(100,), salt=0.25)
    append(cell, killed)
    mirror(cell, outcome="running")
    append(cell, resumed)
    assert mirror(cell).num_sent == 3
    assert shown(server) == curves(killed + [r for r in resumed if r["step"] > 80])


@pytest.fixture
def short_folder() -> Iterator[str]:
    """Where a process that is killed leaves its things; its path is short enough for the client's socket."""
    with tempfile.TemporaryDirectory() as folder:
        yield folder


def script_environment(folder: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": folder}


MIRROR_SCRIPT = """
import json, sys
from pathlib import Path
from orchestrator.tracking import Description, mirror_cell
print(mirror_cell(Path(sys.argv[1]), Description(**json.loads(sys.argv[2])), mode="online", outcome="done"))
"""


def test_a_mirror_that_is_killed_halfway_is_completed_by_the_next(
    cell: Path, server: WandbServer, short_folder: str
) -> None:
    records = training(0, 300, checkpoints=(300,))
    append(cell, records)
    server.fail("half", "/file_stream")
    process = subprocess.Popen(
        [sys.executable, "-c", MIRROR_SCRIPT, str(cell), json.dumps(DESCRIPTION)],
        env=script_environment(short_folder),
    )
    try:
        assert server.cut_off.wait(60)
    finally:
        for pid in [*cores_of(process.pid), process.pid]:
            os.kill(pid, 9)
        process.wait()
    kept = len(server.runs[CELL_ID].lines)
    assert 0 < kept < 31

    server.recover()
    result = mirror(cell)
    assert (result.ok, result.num_sent) == (True, 31 - kept)
    assert shown(server) == curves(records)
    assert names(cell) == ["mirror.json", "train.ndjson", "wandb.ndjson"]


def test_a_failed_cell_is_a_failed_run(cell: Path, server: WandbServer) -> None:
    append(cell, training(0, 20))
    assert mirror(cell, outcome="failed").ok
    assert (server.runs[CELL_ID].state, server.runs[CELL_ID].summary["outcome"]) == ("failed", "failed")


def test_a_cell_without_any_record_has_a_run_too(cell: Path, server: WandbServer) -> None:
    result = mirror(cell, outcome="failed")
    assert (result.ok, result.num_records, server.runs[CELL_ID].lines) == (True, 0, {})
    append(cell, training(0, 20))
    assert mirror(cell).num_sent == 2
    assert shown(server) == curves(training(0, 20))


def test_losses_that_are_no_numbers_survive(cell: Path, server: WandbServer) -> None:
    records = training(0, 40, checkpoints=(40,))
    records[-2] |= {"train_loss": math.inf}
    records[-1] |= {"upstream_loss": math.nan}
    append(cell, records)
    mirror(cell, outcome="diverged")
    run = server.runs[CELL_ID]
    assert run.curve("train/loss")[-1] == (640, math.inf)
    assert math.isnan(run.curve("upstream/loss")[-1][1])
    assert (run.summary["upstream/loss"], run.summary["outcome"]) == ("NaN", "diverged")


def test_costs_that_the_configuration_lacks_are_the_checkpoints(cell: Path, server: WandbServer) -> None:
    records = training(0, 40, checkpoints=(20, 40))
    for i, record in enumerate(r for r in records if r["event"] == "checkpoint"):
        record |= {"params": 5_000, "flops": 1e9 * (i + 1)}
    append(cell, records)
    mirror(cell, config={"family": "vit"})
    assert (server.runs[CELL_ID].summary["params"], server.runs[CELL_ID].summary["flops"]) == (5_000, 2e9)
    mirror(cell)
    assert (server.runs[CELL_ID].summary["params"], server.runs[CELL_ID].summary["flops"]) == (28_000, 1.5e12)


def test_a_torn_line_is_counted_and_comes_later(cell: Path, server: WandbServer) -> None:
    records = training(0, 50)
    line = json.dumps(records[-1])
    append(cell, records[:-1], torn=line[:30])
    result = mirror(cell)
    assert (result.ok, result.num_unreadable, result.num_sent) == (True, 1, 4)
    append(cell, [], torn=line[30:] + "\n")
    result = mirror(cell)
    assert (result.ok, result.num_unreadable, result.num_sent) == (True, 0, 1)
    assert shown(server) == curves(records)


def test_a_run_of_an_earlier_training_is_pointed_out(cell: Path, server: WandbServer) -> None:
    append(cell, training(0, 50))
    mirror(cell)
    (cell / "train.ndjson").unlink()
    (cell / "wandb.ndjson").unlink()
    append(cell, training(0, 20))
    result = mirror(cell)
    assert not result.ok
    assert "5 records" in str(result.error)
    assert "upshot sync --rebuild" in str(result.error)


def test_long_names_and_tags_are_cut_to_what_wandb_takes(cell: Path, server: WandbServer) -> None:
    append(cell, training(0, 20))
    assert mirror(cell, name="n" * 300, tags=["dataset=" + "d" * 100, ""]).ok
    assert server.runs[CELL_ID].name == "n" * 128
    assert server.runs[CELL_ID].tags == ["dataset=" + "d" * 56]


def test_jobs_do_not_inherit_the_clients_socket(cell: Path, server: WandbServer) -> None:
    append(cell, training(0, 20))
    mirror(cell)
    assert "WANDB_SERVICE" not in os.environ


def test_a_run_is_the_cells_whatever_the_environment_says(
    cell: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = {
        "RUN_ID": "x",
        "RUN_GROUP": "x",
        "NAME": "x",
        "TAGS": "x,y",
        "PROJECT": "x",
        "JOB_TYPE": "x",
        "DIR": "/x",
    }
    strange |= {"MODE": "offline", "RESUME": "never", "SILENT": "false", "SERVICE": "3-1-unix-/gone", "SWEEP_ID": "x"}
    (cell / "sweep.yaml").write_text("wandb_version: 1\nfamily:\n  value: mixer\n")
    strange |= {"SWEEP_PARAM_PATH": str(cell / "sweep.yaml"), "CONFIG_PATHS": str(cell / "sweep.yaml")}
    strange |= {"FORK_FROM": "x?_step=3", "LAUNCH_CONFIG_PATH": "/x", "X_UPDATE_FINISH_STATE": "false"}
    for name, value in strange.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    append(cell, training(0, 20))
    assert [mirror(cell).num_sent, mirror(cell).num_sent] == [2, 0]
    (run,) = server.runs.values()
    assert (run.run_id, run.group, run.job_type, run.name) == (CELL_ID, "limits", "cell", "vit-S fraction=0.3")
    assert (run.project, run.tags) == ("upshot", ["family=vit", "size=S"])
    assert (run.config["family"], run.state) == ("vit", "finished")
    assert (os.environ["WANDB_SWEEP_ID"], os.environ["WANDB_DIR"]) == ("x", "/x")


def test_nothing_is_left_in_the_temporary_folder(
    cell: Path, server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_DIR")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    append(cell, training(0, 20))
    assert [mirror(cell).ok, mirror(cell).ok] == [True, True]
    assert not (tmp_path / "tmp" / server.entity).exists()


# --- a server that is not well ---------------------------------------------------------------------------------------


@pytest.mark.timeout(60)
@pytest.mark.parametrize("fault", [401, 429, 500, "hang"])
def test_a_server_that_fails_is_reported_not_raised(
    cell: Path, server: WandbServer, fault: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    records = training(0, 50)
    append(cell, records)
    server.fail(fault)
    result = mirror(cell, timeout_s=SHORT_S)
    assert (result.ok, result.num_records, result.num_sent) == (False, 5, 0)
    assert result.error
    assert "\n" not in result.error
    assert fault == "hang" or str(fault) in result.error
    assert WandbServer.api_key not in result.error
    assert capfd.readouterr() == ("", "")
    server.recover()
    assert mirror(cell).ok
    assert shown(server) == curves(records)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("fault", [401, 500, "hang", "half"])
def test_an_upload_that_fails_is_reported_and_made_good(
    cell: Path, server: WandbServer, fault: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    records = training(0, 50)
    append(cell, records)
    server.fail(fault, "/file_stream")
    result = mirror(cell, timeout_s=SHORT_S)
    assert not result.ok
    assert ("refused a part" if fault == 401 else "longer than 1 s") in str(result.error)
    assert capfd.readouterr() == ("", "")
    server.recover()
    assert mirror(cell).ok
    assert shown(server) == curves(records)


@pytest.mark.timeout(60)
def test_a_row_that_the_client_does_not_send_is_reported(
    cell: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_X_FILE_STREAM_MAX_LINE_BYTES", "10")
    append(cell, training(0, 50))
    result = mirror(cell)
    assert not result.ok
    assert "Skipped uploading" in str(result.error)


def test_a_server_that_is_not_there_is_reported(cell: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(cell, training(0, 50))
    with WandbServer() as gone:
        environment = gone.environment
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = mirror(cell, timeout_s=SHORT_S)
    assert not result.ok
    assert "connection refused" in str(result.error)
    assert names(cell) == ["mirror.json", "train.ndjson", "wandb.ndjson"]


def test_a_key_of_somebody_else_is_refused(cell: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    append(cell, training(0, 20))
    monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    result = mirror(cell)
    assert not result.ok
    assert "401" in str(result.error)
    assert server.runs == {}


@pytest.mark.timeout(60)
def test_a_run_that_was_deleted_in_wandb_is_reported(cell: Path, server: WandbServer) -> None:
    append(cell, training(0, 20))
    server.deleted.add(CELL_ID)
    result = mirror(cell, timeout_s=SHORT_S)
    assert not result.ok
    assert "previously created and deleted" in str(result.error)
    assert "restore the run" in str(result.error)


def test_a_malformed_key_is_reported(cell: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "tooshort")
    result = mirror(cell)
    assert not result.ok
    assert "WANDB_API_KEY invalid" in str(result.error)
    assert "tooshort" not in str(result.error)


def test_without_a_key_nobody_is_asked_for_one(
    cell: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    append(cell, training(0, 20))
    result = mirror(cell)
    assert not result.ok
    assert server.url in str(result.error)
    assert "wandb login" in str(result.error)
    assert server.operations == []


def test_a_damaged_evaluation_is_named(cell: Path, server: WandbServer) -> None:
    append(cell, training(0, 20, checkpoints=(20,)))
    evaluate(cell, 20, {0: [0.5]}).write_bytes(b"PAR1 torn")
    result = mirror(cell)
    assert not result.ok
    assert "000000000000.parquet" in str(result.error)
    assert server.runs == {}


# --- offline ---------------------------------------------------------------------------------------------------------


def sync(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", str(folder)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_offline_run_is_synced_by_wandb_itself(
    cell: Path, server: WandbServer, capfd: pytest.CaptureFixture[str]
) -> None:
    records = training(0, 100, checkpoints=(50, 100))
    append(cell, records)
    evaluate(cell, 100, {0: [0.5, 0.6], 1: [0.8, 0.9]})
    result = mirror(cell, "offline")
    assert (result.ok, result.num_sent, result.url) == (True, 13, None)
    assert capfd.readouterr() == ("", "")
    assert server.operations == []
    assert result.folder is not None
    assert [path.name for path in result.folder.rglob("*") if path.is_file()] == [f"run-{CELL_ID}.wandb"]
    assert WandbServer.api_key.encode() not in (result.folder / f"run-{CELL_ID}.wandb").read_bytes()

    sync(result.folder)
    run = server.runs[CELL_ID]
    assert (run.group, run.job_type, run.name, run.tags) == (
        "limits",
        "cell",
        "vit-S fraction=0.3",
        ["family=vit", "size=S"],
    )
    assert {key: run.config[key] for key in CONFIG} == CONFIG
    assert shown(server) == curves(records)
    assert run.summary["downstream/mnist/5shot/accuracy"] == pytest.approx(0.85)
    assert (run.summary["outcome"], run.summary["params"]) == ("done", 28_000)

    more = training(100, 120)
    append(cell, more)
    assert mirror(cell).num_sent == 2
    assert shown(server) == curves(records + more)


def test_an_offline_run_is_replaced_by_the_whole_cell(cell: Path, server: WandbServer) -> None:
    first, second = training(0, 50), training(50, 80)
    append(cell, first)
    mirror(cell, "offline")
    append(cell, second)
    result = mirror(cell, "offline")
    assert result.num_sent == 8
    assert list((cell / "wandb").iterdir()) == [result.folder]
    assert result.folder is not None
    assert names(cell) == ["mirror.json", "train.ndjson", "wandb", "wandb.ndjson"]
    sync(result.folder)
    assert shown(server) == curves(first + second)


@pytest.mark.parametrize("kilobytes", [4, 12, 20])
def test_an_offline_run_stays_when_the_disk_is_full(
    cell: Path, kilobytes: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """wandb's client goes on without a word when it cannot write."""
    if os.geteuid() != 0:
        pytest.skip("a small tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let a tmpfs be mounted")
    request.addfinalizer(lambda: subprocess.run(["umount", "-l", disk], check=True))
    cell = disk / CELL_ID
    append(cell, training(0, 600))
    before = mirror(cell, "offline")
    assert before.folder is not None
    whole = (before.folder / f"run-{CELL_ID}.wandb").read_bytes()
    (disk / "others").write_bytes(b"x" * (shutil.disk_usage(disk).free - 1024 * kilobytes))
    result = mirror(cell, "offline")
    assert not result.ok
    assert "No space left" in str(result.error) or "is the disk full" in str(result.error)
    assert [run.name for run in (cell / "wandb").iterdir()] == [before.folder.name]
    assert (before.folder / f"run-{CELL_ID}.wandb").read_bytes() == whole
    (disk / "others").unlink()
    assert mirror(cell, "offline").ok


def test_an_offline_run_stays_when_its_successor_fails(cell: Path) -> None:
    append(cell, training(0, 20))
    before = mirror(cell, "offline")
    failed = mirror(cell, "offline", project="no/such/name")
    assert not failed.ok
    assert "project" in str(failed.error)
    assert list((cell / "wandb").iterdir()) == [before.folder]
    assert names(cell) == ["mirror.json", "train.ndjson", "wandb", "wandb.ndjson"]


def test_cells_are_mirrored_one_after_another_in_one_process(cell: Path) -> None:
    cells = [cell.with_name(f"{CELL_ID[:-1]}{i}") for i in range(3)]
    for folder in cells:
        append(folder, training(0, 30))
        result = mirror(folder, "offline")
        assert result.ok, result.error
        assert result.folder is not None
        assert list(result.folder.glob(f"run-{folder.name}.wandb"))


DEAD_CLIENT_SCRIPT = """
import os, sys
from pathlib import Path
from tests.orchestrator.test_tracking import cores_of, mirror
first = mirror(Path(sys.argv[1]), "offline").ok
for pid in cores_of(os.getpid()):
    os.kill(pid, 9)
print(first, *[mirror(Path(sys.argv[1]), "offline").ok for _ in range(2)])
"""


def test_a_client_that_died_is_replaced(cell: Path, short_folder: str) -> None:
    append(cell, training(0, 30))
    command = [sys.executable, "-c", DEAD_CLIENT_SCRIPT, str(cell)]
    done = subprocess.run(command, capture_output=True, text=True, env=script_environment(short_folder))
    assert done.stdout == "True False True\n"


DYING_CLIENT_SCRIPT = """
import os, signal, sys, threading
from pathlib import Path
import wandb
from orchestrator.tracking.client import close
from tests.orchestrator.test_tracking import cores_of, mirror
wandb.setup(wandb.Settings(mode="offline"))
[client] = cores_of(os.getpid())
os.kill(client, signal.SIGSTOP)
threading.Timer(1.0, os.kill, (client, signal.SIGKILL)).start()
close()
print("closed", mirror(Path(sys.argv[1]), "offline").ok)
"""


def test_a_client_that_dies_while_it_is_closed_does_not_end_the_process(cell: Path, short_folder: str) -> None:
    append(cell, training(0, 30))
    command = [sys.executable, "-c", DYING_CLIENT_SCRIPT, str(cell)]
    done = subprocess.run(command, capture_output=True, text=True, env=script_environment(short_folder))
    assert done.stdout == "closed True\n", done.stderr


def test_disabled_does_nothing(cell: Path, server: WandbServer) -> None:
    append(cell, training(0, 20))
    assert mirror(cell, "disabled") == tracking.MirrorResult(ok=True, mode="disabled")
    assert [path.name for path in cell.iterdir()] == ["train.ndjson"]
    assert server.operations == []


def test_importing_tracking_loads_nothing_heavy() -> None:
    code = (
        "import sys, orchestrator.tracking; print([m for m in ('torch', 'wandb', 'tensorboard') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"


# --- which mode ------------------------------------------------------------------------------------------------------


def test_without_a_key_the_mode_is_offline() -> None:
    assert tracking.default_mode() == "offline"


def test_a_key_in_the_environment_means_online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert tracking.default_mode() == "online"


@pytest.mark.parametrize(
    ("machine", "url", "mode"),
    [
        ("api.wandb.ai", None, "online"),
        ("api.wandb.ai", "https://wandb.example.org", "offline"),
        ("wandb.example.org", "https://wandb.example.org", "online"),
        ("127.0.0.1:8080", "http://127.0.0.1:8080", "online"),
    ],
)
def test_a_key_in_netrc_counts_for_its_own_server(
    machine: str, url: str | None, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(os.environ["NETRC"]).write_text(f"machine {machine}\n  login user\n  password {'a' * 40}\n")
    if url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
    assert tracking.default_mode() == mode


def test_the_server_may_stand_in_wandbs_settings_file() -> None:
    Path(os.environ["NETRC"]).write_text(f"machine wandb.example.org login user password {'a' * 40}\n")
    Path(os.environ["WANDB_CONFIG_DIR"], "settings").write_text("[default]\nbase_url = https://wandb.example.org\n")
    assert tracking.default_mode() == "online"


def test_a_damaged_netrc_holds_no_key() -> None:
    Path(os.environ["NETRC"]).write_text("machine api.wandb.ai what is this\n")
    assert tracking.default_mode() == "offline"


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_the_mode_that_was_asked_for_is_respected(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_MODE", mode)
    assert tracking.default_mode() == mode


def test_a_folder_that_was_set_offline_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    Path("wandb").mkdir()
    Path("wandb/settings").write_text("[default]\nmode = offline\n")
    assert tracking.default_mode() == "offline"


def test_an_unknown_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "on-line")
    with pytest.raises(UserError, match="'on-line'"):
        tracking.default_mode()


# --- reading a cell --------------------------------------------------------------------------------------------------


@given(
    keys=st.lists(st.tuples(st.sampled_from(["train", "checkpoint"]), st.integers(1, 8)), max_size=25),
    stops=st.lists(st.integers(0, 25), max_size=4),
)
def test_mirroring_in_pieces_tells_every_step_once(keys: list[tuple[str, int]], stops: list[int]) -> None:
    points = [
        Point(index=i, event=event, step=step, examples_seen=step, time=0.0, values={}, costs={})
        for i, (event, step) in enumerate(keys)
    ]
    told: list[Point] = []
    for stop in [*sorted(stops), len(points)]:
        told += current_points(points[:stop], {(point.event, point.step) for point in told})
    assert len(told) == len(set(keys))
    assert {(point.event, point.step) for point in told} == set(keys)


def test_records_without_a_step_are_counted(cell: Path) -> None:
    whole = training(0, 30)
    append(cell, [*whole, {"event": "train", "train_loss": 1.0}, {"event": ["train"]}, {"no": "event"}], torn="\n[1]\n")
    curve = read_curve(cell)
    assert (len(curve.points), curve.num_unreadable) == (3, 2)


def test_a_cell_that_never_started_has_no_curve(cell: Path) -> None:
    assert (read_curve(cell).points, read_curve(cell).num_unreadable) == ([], 0)


def test_the_best_layer_has_the_highest_mean_and_ties_go_down(cell: Path) -> None:
    path = evaluate(cell, 10, {0: [0.1, 0.3], 1: [0.9, 0.3], 2: [0.6, 0.6], 3: [0.5, 0.4]})
    found = downstream_metrics(path.parent)
    assert found == {
        "downstream/mnist/5shot/accuracy": pytest.approx(0.45),
        "downstream/mnist/5shot/best_layer": 1,
    }


def test_a_mean_over_fewer_draws_is_no_mean(cell: Path) -> None:
    path = evaluate(cell, 10, {0: [0.5, 0.5], 1: [0.5, None]})
    assert downstream_metrics(path.parent) == {
        "downstream/mnist/5shot/accuracy": None,
        "downstream/mnist/5shot/reason": "too few images of class 7",
    }


def test_the_last_layer_is_never_taken_from_another(cell: Path) -> None:
    path = evaluate(cell, 10, {0: [0.5], 1: [0.6]}, last_layer=False)
    assert downstream_metrics(path.parent)["downstream/mnist/5shot/accuracy"] is None


def test_tasks_shots_and_protocols_stay_apart(cell: Path) -> None:
    evaluate(cell, 10, {0: [0.1]})
    evaluate(cell, 10, {0: [0.2]}, shots=25)
    evaluate(cell, 10, {0: [0.3]}, task="digits")
    evaluate(cell, 10, {0: [0.4]}, shots=None)
    folder = evaluate(cell, 10, {0: [0.5]}, protocol="ridge-fixed").parent
    assert downstream_metrics(folder) == {
        "downstream/mnist/5shot/accuracy": 0.1,
        "downstream/mnist/25shot/accuracy": 0.2,
        "downstream/digits/5shot/accuracy": 0.3,
        "downstream/mnist/all/accuracy": 0.4,
        "downstream/mnist/5shot/ridge-fixed/accuracy": 0.5,
    }
    evaluate(cell, 10, {0: [0.6]}, protocol="linear", shots=None)
    assert downstream_metrics(folder)["downstream/mnist/all/linear/accuracy"] == 0.6


def test_upstream_measures_stand_beside_the_results_of_the_tasks(cell: Path) -> None:
    append(cell, training(0, 10, checkpoints=(10,)))
    folder = evaluate(cell, 10, {0: [0.1]}).parent
    rows = [
        ("margin", None, None, 0.4),
        ("feature_rank", 1, None, 3.5),
        ("feature_rank", 0, None, 7.5),
        ("accuracy", None, "sea", 0.9),
        ("ece", None, None, None),
        ("head_norm", None, None, math.inf),
        ("accuracy", None, None, 0.3),
    ]
    columns = ("quantity", "layer", "label", "value")
    table = pl.DataFrame(rows, schema=[(name, MEASURES_SCHEMA[name]) for name in columns], orient="row")
    table.write_parquet(folder / f"{upstream_eval_id(by_class=True)}.parquet")
    metrics = final_metrics(cell, read_curve(cell))
    assert {name: value for name, value in metrics.items() if name.startswith(("upstream", "downstream"))} == {
        "upstream/accuracy": 0.01,  # as training measured it
        "upstream/loss": 2.99,
        "upstream/margin": 0.4,
        "upstream/feature_rank": 3.5,
        "upstream/ece": None,
        "upstream/head_norm": None,
        "upstream/num_test": 500,
        "downstream/mnist/5shot/accuracy": 0.1,
        "downstream/mnist/5shot/num_test": 2000,
    }
    (folder / f"{upstream_eval_id(by_class=True)}.parquet").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"upstream-.*cannot be read"):
        final_metrics(cell, read_curve(cell))


def test_of_two_files_for_the_same_shots_the_newer_counts(cell: Path) -> None:
    older, newer = evaluate(cell, 10, {0: [0.1, 0.2, 0.3]}), evaluate(cell, 10, {0: [0.5]})
    os.utime(older, (1e9, 1e9))
    assert downstream_metrics(newer.parent)["downstream/mnist/5shot/accuracy"] == 0.5
    os.utime(older, (4e9, 4e9))
    assert downstream_metrics(newer.parent)["downstream/mnist/5shot/accuracy"] == pytest.approx(0.2)


# --- the server itself -----------------------------------------------------------------------------------------------


def test_wandbs_public_api_reads_the_runs_back(cell: Path, server: WandbServer) -> None:
    records = training(0, 30, checkpoints=(30,))
    append(cell, records)
    mirror(cell)
    import wandb

    (run,) = wandb.Api(timeout=20).runs(f"{server.entity}/upshot")
    assert (run.id, run.name, run.group, run.config["size"]) == (CELL_ID, "vit-S fraction=0.3", "limits", "S")
    assert run.summary["upstream/accuracy"] == 0.03
    rows = run.history(pandas=False)
    assert [row["train/loss"] for row in rows if "train/loss" in row] == [
        r["train_loss"] for r in records if "train_loss" in r
    ]
