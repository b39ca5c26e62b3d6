"""The whole way of a study on this machine, with the installed command, real training and real images."""

import json
import os
import signal
from pathlib import Path

import polars as pl
import pytest

from orchestrator.files import read_records
from orchestrator.results import SCHEMA
from slurm import local
from tests.orchestrator.conftest import SmallStudy
from tests.orchestrator.upshot_command import upshot, upshot_json
from tests.private_slurm import wait_until
from tests.wandb_server import WandbServer

pytestmark = pytest.mark.xdist_group("local pipeline")  # what its tests share is made once


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small study that was submitted, watched and reported once, for the tests that only look."""
    small = SmallStudy(tmp_path_factory.mktemp("finished"))
    upshot("submit", small.path, "--runs", small.runs)
    small.watched = upshot("watch", small.path, "--runs", small.runs)
    small.reported = upshot("report", small.path, "--runs", small.runs)
    return small


def ends(small, cell):
    return [event for event in small.store.attempts(cell.cell_id) if event["event"] == "end"]


def test_every_cell_is_trained_and_evaluated_once(finished):
    assert "4 done, 0 running, 0 pending, 0 failed" in finished.watched
    for cell in finished.cells:
        assert [(e["stage"], e["outcome"]) for e in ends(finished, cell)] == [("train", "done"), ("evaluate", "done")]


def test_a_second_submit_starts_nothing(finished):
    before = {m.token for m in finished.store.manifests()}
    assert "nothing to submit" in upshot("submit", finished.path, "--runs", finished.runs)
    assert {m.token for m in finished.store.manifests()} == before


def test_the_results_hold_every_measurement(finished):
    table = pl.read_parquet(finished.store.results_path)
    assert dict(table.schema) == SCHEMA
    keys = ["cell_id", "step", "task", "shots", "draw", "layer"]
    assert table.select(keys).is_duplicated().sum() == 0
    per_cell = table.group_by("cell_id").agg(pl.col("num_layers").first(), pl.len(), pl.col("step").n_unique())
    for _, num_layers, rows, steps in per_cell.iter_rows():
        assert steps == 2
        assert rows == steps * 2 * 2 * 2 * num_layers  # tasks, shots, draws
    assert table["downstream_accuracy"].null_count() == 0
    last = table.filter("last_checkpoint").group_by("cell_id").agg(pl.col("step").unique())
    for cell in finished.cells:
        assert last.filter(cell_id=cell.cell_id)["step"].to_list() == [
            [finished.store.finalised_steps(cell.cell_id)[-1]]
        ]


def test_few_shot_accuracy_is_above_chance(finished):
    table = pl.read_parquet(finished.store.results_path).filter(pl.col("shots") == 5, "last_checkpoint")
    for _, group in table.group_by("task"):
        chance = {"mnist": 1 / 10, "patches": 1 / 12}[group["task"][0]]
        assert group["downstream_accuracy"].mean() > 1.5 * chance


def test_the_folder_alone_is_the_study(finished, tmp_path):
    moved = tmp_path / "elsewhere"
    finished.store.root.rename(moved)
    try:
        assert "4 done" in upshot("status", moved)
        assert (Path(upshot("report", moved).strip())).is_relative_to(moved)
    finally:
        moved.rename(finished.store.root)


def test_the_report_names_every_cell(finished):
    page = Path(finished.reported.strip()).read_text()
    for cell in finished.cells:
        assert cell.cell_id in page


def test_reduce_prints_the_declared_json(finished):
    tasks = upshot_json("reduce", finished.store.results_path)["tasks"]
    assert {(t["task"], t["shots"]) for t in tasks} == {(t, s) for t in ("mnist", "patches") for s in (1, 5)}
    declared = {"task", "shots", "n", "hull_vertices", "hull", "fits", "identifiable", "verdict", "spearman", "kendall"}
    declared |= {"conflicts", "significant_conflicts"}
    for task in tasks:
        assert declared <= set(task)
        assert task["n"] == 4
        assert set(task["fits"]) == {"hull", "rising", "all"}


def test_plan_prints_the_declared_json(finished):
    plan = upshot_json("plan", finished.path, "--runs", finished.runs)
    assert {"cells", "gpu_hours", "sbatch_calls"} <= set(plan)
    assert {cell["action"] for cell in plan["cells"]} == {"skip"}
    for cell in plan["cells"]:
        assert {"cell_id", "family", "size", "fraction", "params", "flops", "resources", "reason"} <= set(cell)


def test_status_selects(finished):
    def ids(*words):
        return {c["cell_id"] for c in upshot_json("status", finished.store.root, *words)["cells"]}

    everything = {cell.cell_id for cell in finished.cells}
    assert ids() == ids("-s", "DONE") == everything
    assert ids("-s", "failed") == set()
    assert ids("family=vit") == {c.cell_id for c in finished.cells if c.recipe.family == "vit"}
    assert ids("fraction=0.02", "family=vit") < ids("family=vit")
    first = finished.cells[0].cell_id
    assert ids(first[:6]) == {first}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-s", "FAILD"), "Did you mean 'FAILED'"),
        (("famly=vit",), "Did you mean 'family'"),
        (("not hexadecimal",), "axis=value"),
    ],
)
def test_a_wrong_filter_is_a_usage_error(finished, words, said):
    assert said in upshot("status", finished.store.root, *words, code=2)


def test_a_new_task_is_evaluated_without_training(tmp_path):
    small = SmallStudy(tmp_path)
    one = ["--runs", small.runs, "--set", "grid.family=vit", "--set", "grid.fraction=[0.01]"]
    upshot("submit", small.path, *one)
    upshot("watch", small.store.root)
    upshot("submit", small.path, *one, "--set", 'downstream.tasks=["mnist","patches","cells"]')
    upshot("watch", small.store.root)
    [state] = upshot_json("status", small.store.root)["cells"]
    starts = [e for e in small.store.attempts(state["cell_id"]) if e["event"] == "start"]
    steps = [(e["stage"], e.get("step_to_evaluate")) for e in starts]
    whole, each = steps[:2], steps[2:]
    assert whole == [("train", None), ("evaluate", None)]
    assert sorted(each) == [("evaluate", step) for step in small.store.finalised_steps(state["cell_id"])]
    assert state["status"] == "done"


def test_a_protocol_that_is_added_later_is_evaluated_alone(tmp_path):
    small = SmallStudy(tmp_path)
    one = ["--runs", small.runs, "--set", "grid.family=vit", "--set", "grid.epochs=2"]
    upshot("submit", small.path, *one)
    upshot("watch", small.store.root)
    first = evaluations(small)
    both = [*one, "--set", f'downstream.protocol=["ridge","{OTHER}"]']
    plan = upshot_json("plan", small.path, *both)
    assert {cell["reason"] for cell in plan["cells"]} == {"4 evaluations are missing"}  # 2 checkpoints, 2 tasks
    upshot("submit", small.path, *both)
    assert "2 done" in upshot("watch", small.store.root)
    second = evaluations(small)
    assert first.items() < second.items(), "what was there is as it was"
    assert len(second) - len(first) == 2 * 4
    assert [c["missing_evaluations"] for c in upshot_json("status", small.store.root)["cells"]] == [0, 0]
    for cell in small.store.cells():
        assert [e["stage"] for e in small.store.attempts(cell.cell_id) if e["event"] == "start"].count("train") == 1

    reduced = upshot_json("reduce", small.store.root)
    assert (reduced["protocol"], {task["shots"] for task in reduced["tasks"]}) == ("ridge", {1, 5})
    assert {(row["protocol"], row["other"], row["n"]) for row in reduced["effects"]["protocols"]} == {
        ("ridge", OTHER, 2)
    }
    other = upshot_json("reduce", small.store.root, "--protocol", OTHER)
    assert (other["protocol"], [task["n"] for task in other["tasks"]]) == (OTHER, [2] * len(other["tasks"]))
    said = upshot("reduce", small.store.root, "--protocol", "knn", code=2)
    assert f"unknown protocol 'knn' in study small (known: ridge, {OTHER})" in said
    page = Path(upshot("report", small.store.root, "--protocol", OTHER).strip()).read_text()
    assert f"about one protocol ({OTHER})" in page
    table = pl.read_parquet(small.store.results_path)
    assert set(table["protocol"]) == {"ridge", OTHER}
    means = table.filter("last_checkpoint", "last_layer").group_by("protocol").agg(pl.col("downstream_accuracy").mean())
    assert means["downstream_accuracy"].min() > 1.5 / 12
    measures = pl.read_parquet(small.store.measures_path).filter(pl.col("label").is_null())
    assert measures.select("cell_id", "step").n_unique() == 4


OTHER = "linear"


def evaluations(small):
    """When each file of an evaluation was written."""
    return {path: path.stat().st_mtime_ns for path in small.store.root.glob("cells/*/*/evals/*/*.parquet")}


def test_a_cell_that_raises_leaves_the_others_alone(tmp_path):
    small = SmallStudy(tmp_path)
    victim = small.cells[1].cell_id
    in_the_way = small.store.checkpoints(victim)
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where a folder should be")
    upshot("submit", small.path, "--runs", small.runs)
    assert "3 done, 0 running, 0 pending, 1 failed" in upshot("watch", small.store.root, code=1)
    status = upshot("status", small.store.root, code=1)
    assert "1 failed: code-error: " in status
    assert str(in_the_way) in status
    story = upshot("why", victim[:8], small.store.root)
    assert "Traceback (most recent call last)" in story
    assert "models/train.py" in story
    assert "upshot retry" in story
    assert "Traceback" in upshot("logs", victim[:8], small.store.root)
    assert "nothing to submit" in upshot("submit", small.path, "--runs", small.runs)

    in_the_way.unlink()
    assert "submitted 1 cells" in upshot("retry", small.store.root, "--cause", "code-error")
    assert "4 done" in upshot("watch", small.store.root)
    page = Path(upshot("report", small.store.root).strip()).read_text()
    assert victim in page


def test_a_corrupt_checkpoint_is_set_aside(tmp_path):
    small = SmallStudy(tmp_path)
    one = ["--runs", small.runs, "--set", "grid.family=vit", "--set", "grid.fraction=[0.01]"]
    torn = small.store.checkpoints(small.cells[0].cell_id) / "step_00000001"
    torn.mkdir(parents=True)
    for name in ("weights.safetensors", "DONE"):
        (torn / name).write_bytes(b"torn")
    upshot("submit", small.path, *one)
    assert "1 done" in upshot("watch", small.store.root)
    assert not torn.exists()
    assert (torn.parent / "corrupt-step_00000001").exists()


def test_a_killed_worker_costs_only_its_cell_which_goes_on_from_its_checkpoint(tmp_path):
    small = SmallStudy(tmp_path)
    upshot("submit", small.path, "--runs", small.runs, "--set", "grid.epochs=20", "--set", "grid.fraction=[0.02]")
    home = next(m for m in small.store.manifests()).job_id
    folder = small.store.job_folder(home)
    started = {}
    while not started:  # until a worker has a checkpoint of a cell that it goes on training
        started = {i: w for i, w in local.claims(folder).items() if _steps(small, home, i)}
    index, worker = min(started.items())
    cell_id = small.store.manifest(home).tasks[index][0]
    os.kill(int((folder / "workers" / worker).read_text()), signal.SIGKILL)
    assert "2 done" in upshot("watch", small.store.root)
    deaths = {
        cell.cell_id: [e["cause"] for e in small.store.attempts(cell.cell_id) if e["event"] == "death"]
        for cell in small.store.cells()
    }
    assert deaths.pop(cell_id) == ["killed"]
    assert list(deaths.values()) == [[]]
    assert "without a record" in upshot("why", cell_id, small.store.root)
    starts = [r for r in read_records(small.store.train_log(cell_id)).records if r["event"] == "start"]
    assert [r["step"] > 0 for r in starts] == [False, True]


def _steps(small, token, index):
    return small.store.finalised_steps(small.store.manifest(token).tasks[index][0])


def test_cancel_stops_workers_even_before_they_have_started(tmp_path):
    small = SmallStudy(tmp_path)
    upshot("submit", small.path, "--runs", small.runs, "--set", "grid.epochs=50")
    assert "stopped 2 jobs" in upshot("cancel", small.store.root, "-y")
    home = small.store.job_folder(small.store.manifests()[0].job_id)
    wait_until(lambda: not local.living(home), "the workers are gone")
    assert "0 running, 0 pending" in upshot("watch", small.store.root, code=1)
    # Retried and unbothered, the study ends well.
    assert "submitted" in upshot("retry", small.store.root)
    assert upshot_json("status", small.store.root)["cells"]
    upshot("cancel", small.store.root, "-y")


def test_commands_after_submit_follow_what_was_submitted(tmp_path):
    small = SmallStudy(tmp_path)
    upshot("submit", small.path, "--runs", small.runs, "--set", "grid.family=vit", "--set", "grid.fraction=[0.01]")
    assert "1 done" in upshot("watch", small.path, "--runs", small.runs)
    [cell] = upshot_json("status", small.path, "--runs", small.runs)["cells"]
    assert (cell["family"], cell["fraction"]) == ("vit", 0.01)
    # The file as it stands plans the other three cells beside it, and a narrower one says what it leaves out.
    assert "3 to submit" in upshot("plan", small.path, "--runs", small.runs)
    other = upshot("plan", small.path, "--runs", small.runs, "--set", "grid.family=resnet")
    assert "1 cells in the study's folder" in other
    assert "not of this study" in other


def test_a_torn_metrics_line_is_survived(finished):
    cell = finished.cells[0]
    path = finished.store.train_log(cell.cell_id)
    whole = path.read_bytes()
    try:
        path.write_bytes(whole + b'{"event": "train", "step"')
        assert "4 done" in upshot("status", finished.store.root)
        assert cell.cell_id in upshot("why", cell.cell_id, finished.store.root)
        upshot("report", finished.store.root)
    finally:
        path.write_bytes(whole)


def test_tensorboard_and_attempt_records_stand_beside_each_cell(finished):
    for cell in finished.cells:
        folder = finished.store.cell_folder(cell.cell_id)
        assert any((folder / "tensorboard").iterdir())
        assert (folder / "logs" / "train-1.log").read_text().count("event=checkpoint") == 2
        assert json.loads((folder / "cell.json").read_text())["cell_id"] == cell.cell_id


def test_sync_makes_one_wandb_run_a_cell_however_often_it_runs(finished, tmp_path):
    with WandbServer() as server:
        env = {**server.environment, "HOME": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path)}
        for said in ("4 cells mirrored", "4 unchanged"):
            assert said in upshot("sync", finished.store.root, env=env)
        assert set(server.runs) == {cell.cell_id for cell in finished.cells}
        for cell in finished.cells:
            run = server.runs[cell.cell_id]
            records = read_records(finished.store.train_log(cell.cell_id)).records
            checkpoints = [r for r in records if r["event"] == "checkpoint"]
            assert (run.group, run.config["family"], run.config["seed"]) == ("small", cell.recipe.family, 0)
            assert run.curve("upstream/accuracy") == [(r["examples_seen"], r["upstream_accuracy"]) for r in checkpoints]
            assert run.summary["upstream/accuracy"] == checkpoints[-1]["upstream_accuracy"]
            assert 0 < run.summary["downstream/mnist/5shot/accuracy"] < 1
            assert run.summary["outcome"] == "done"


def test_sync_without_a_server_says_so(finished, tmp_path):
    lost = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40, "HOME": str(tmp_path)}
    said = upshot("sync", finished.store.root, "--patience", 2, env=lost, code=1)
    assert "0 cells mirrored" in said
    assert "connection refused" in said


def test_cells_leave_an_offline_wandb_run_without_a_key(tmp_path):
    small = SmallStudy(tmp_path)
    one = ["--set", "grid.family=vit", "--set", "grid.fraction=[0.01]", "--set", "wandb.mode=auto"]
    clean = {"HOME": str(tmp_path), "WANDB_MODE": None, "WANDB_API_KEY": None, "NETRC": str(tmp_path / "none")}
    upshot("submit", small.path, "--runs", small.runs, *one, env=clean)
    upshot("watch", small.store.root)
    [cell] = small.store.cells()
    [folder] = (small.store.cell_folder(cell.cell_id) / "wandb").glob("offline-run-*")
    assert folder.name.endswith(cell.cell_id)
    assert (folder / f"run-{cell.cell_id}.wandb").stat().st_size > 1000


def test_an_upstream_folder_that_is_missing_or_empty_is_refused_before_anything_runs(tmp_path):
    small = SmallStudy(tmp_path)
    missing = tmp_path / "nowhere"
    for dataset in (missing, tmp_path / "empty"):
        if dataset != missing:
            dataset.mkdir()
        said = upshot("submit", small.path, "--runs", small.runs, "--set", f"upstream.dataset={dataset}", code=2)
        assert str(dataset) in said
    assert not small.store.root.exists()
