"""The same way on a real private Slurm cluster: arrays, dependencies, failures, adoption."""

import json

import polars as pl
import pytest

from orchestrator.files import read_records
from slurm import jobs
from tests.orchestrator.conftest import SmallStudy
from tests.orchestrator.upshot_command import upshot, upshot_json
from tests.private_slurm import wait_until

PROFILE = """
scheduler = "slurm"
[partitions.cpu]
cpus_per_node = 2
memory_gb_per_node = 4
max_time_min = 60
"""

pytestmark = pytest.mark.slurm


@pytest.fixture
def small(tmp_path, on_slurm):
    study = SmallStudy(tmp_path)
    (tmp_path / "mini.toml").write_text(PROFILE)
    study.path.write_text(study.path.read_text() + '[cluster]\nprofile = "mini.toml"\npack = 1\n')
    return study


def submit(small, *words, code=0):
    return upshot("submit", small.path, "--runs", small.runs, *words, code=code)


def watch(small, code=0):
    return upshot("watch", small.store.root, "--every", "0.5", code=code)


def test_a_study_goes_from_the_command_line_to_the_report(small, monkeypatch):
    monkeypatch.setenv("SBATCH_PARTITION", "nowhere")  # a user's own, which sbatch would prefer to the script's
    plan = upshot_json("plan", small.path, "--runs", small.runs)
    assert plan["sbatch_calls"] == 2
    assert {cell["resources"]["train"]["partition"] for cell in plan["cells"]} == {"cpu"}
    assert "submitted 4 cells" in submit(small)
    assert "nothing to submit" in submit(small)
    train, evaluate = small.store.manifests()
    assert (train.stage, evaluate.stage, evaluate.after) == ("train", "evaluate", train.token)
    assert "4 done, 0 running, 0 pending, 0 failed" in watch(small)
    for cell in small.cells:
        starts = [e for e in small.store.attempts(cell.cell_id) if e["event"] == "start"]
        assert [e["stage"] for e in starts] == ["train", "evaluate"]
        assert [e["job"].split("_")[0] for e in starts] == [train.job_id, evaluate.job_id]
    page = upshot("report", small.store.root).strip()
    assert page.endswith("index.html")
    assert "nothing to submit" in submit(small)
    assert "reduces the study" in upshot("reduce", small.store.root, "--submit", "--draws", "20")
    answer = small.store.root / "results" / "reduced.json"
    wait_until(answer.exists, "the job has reduced the study", timeout_s=120)
    assert json.loads(answer.read_text()) == upshot_json("reduce", small.store.root, "--draws", "20")


def test_a_cell_that_fails_takes_only_its_own_evaluation_with_it(small):
    victim = small.cells[2].cell_id
    in_the_way = small.store.checkpoints(victim)
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where a folder belongs")
    submit(small)
    watch(small, code=1)
    states = {c["cell_id"]: c for c in upshot_json("status", small.store.root, code=1)["cells"]}
    assert states[victim]["status"] == "failed"
    assert states[victim]["cause"].startswith("code-error: ")
    assert sorted(c["status"] for c in states.values()) == ["done", "done", "done", "failed"]
    # The last job may still be on its way out, but no evaluation waits for the training that failed.
    wait_until(lambda: not jobs.query_live("upshot-small-"), "the queue is empty")
    in_the_way.unlink()
    assert "submitted 1 cells" in upshot("retry", small.store.root)
    assert "4 done" in watch(small)


def test_a_job_that_finds_no_accelerator_fails_instead_of_training_on_the_cpu(small, tmp_path):
    (tmp_path / "mini.toml").write_text(
        '[partitions.tpu-v5e]\naccelerator = "tpu"\ngres = "tpu:v5e"\naccelerators_per_node = 4\ncpus_per_node = 4\n'
        "memory_gb_per_node = 60\n"
    )
    submit(small, "--set", "grid.family=vit", "--set", "grid.fraction=[0.01]")
    watch(small, code=1)
    [state] = upshot_json("status", small.store.root, code=1)["cells"]
    assert "launch-failure: NoAcceleratorError: the job asked for 1 accelerators" in state["cause"]


def test_a_submission_whose_answer_was_lost_is_adopted(small, on_slurm):
    submit(small, "--set", "grid.epochs=20")
    for manifest in small.store.manifests():
        small.store.write_manifest(manifest.__class__(**{**_fields(manifest), "job_id": None}))
    assert "nothing to submit" in submit(small, "--set", "grid.epochs=20")
    assert all(manifest.job_id for manifest in small.store.manifests())
    on_slurm.run("scancel", *(manifest.job_id for manifest in small.store.manifests()))


def test_a_cancelled_study_stops_and_can_be_retried(small):
    submit(small, "--set", "grid.epochs=200")
    wait_until(lambda: any(small.store.attempts(c.cell_id) for c in _cells(small)), "a cell runs")
    assert "stopped 2 jobs" in upshot("cancel", small.store.root, "-y")
    wait_until(lambda: not jobs.query_live("upshot-small-"), "the queue is empty")
    watch(small, code=1)
    failed = upshot_json("status", small.store.root, "-s", "FAILED", code=1)["cells"]
    assert len(failed) == 4
    assert "submitted 1 cells" in upshot("retry", small.store.root, failed[0]["cell_id"])
    wait_until(lambda: bool(jobs.query_live("upshot-small-")), "it runs again")
    upshot("cancel", small.store.root, "-y")


def test_checkpoints_are_judged_while_their_cell_trains(small):
    words = (
        "grid.epochs=100",
        "grid.family=vit",
        "grid.fraction=[0.02]",
        "train.checkpoints=4",
        "downstream.ahead_min=0",
    )
    submit(small, *(part for word in words for part in ("--set", word)))
    assert "1 done" in watch(small)
    [cell] = _cells(small)
    ahead = [m for m in small.store.manifests() if m.stage == "evaluate" and "@" in m.tasks[0][0]]
    assert ahead
    end = next(e["time"] for e in small.store.attempts(cell.cell_id) if e["event"] == "end" and e["stage"] == "train")
    judged = [e for e in small.store.attempts(cell.cell_id) if e["event"] == "end" and e.get("step_to_evaluate")]
    assert min(e["time"] for e in judged) < end
    assert {e["outcome"] for e in judged} == {"done"}
    table = pl.read_parquet(sorted(small.store.cell_folder(cell.cell_id).glob("evals/step_*/[!u]*.parquet")))
    assert table.select("step", "task", "shots", "draw", "layer").is_duplicated().sum() == 0


def test_a_task_that_is_added_later_is_judged_without_training_again(small):
    submit(small, "--set", "grid.family=vit")
    watch(small)
    said = submit(small, "--set", "grid.family=vit", "--set", 'downstream.tasks=["mnist","patches","digits"]')
    assert "submitted 2 cells" in said
    watch(small)
    units = [text for m in small.store.manifests()[2:] for units in m.tasks for text in units]
    assert {m.stage for m in small.store.manifests()[2:]} == {"evaluate"}
    assert sorted(units) == sorted(
        f"{c.cell_id}@{s}" for c in _cells(small) for s in small.store.finalised_steps(c.cell_id)
    )
    for cell in _cells(small):
        stages = [e["stage"] for e in small.store.attempts(cell.cell_id) if e["event"] == "start"]
        assert stages.count("train") == 1


def test_a_requeued_cell_is_not_started_twice(small, on_slurm):
    submit(small, "--set", "grid.epochs=100", "--set", "grid.family=vit", "--set", "grid.fraction=[0.02]")
    [cell] = _cells(small)
    wait_until(lambda: small.store.finalised_steps(cell.cell_id) or _started(small, cell), "the cell trains")
    train = small.store.manifests()[0]
    on_slurm.run("scontrol", "requeue", train.job_id)
    [state] = upshot_json("status", small.store.root)["cells"]
    assert state["status"] in ("running", "pending", "unknown")
    assert "submitted" not in upshot("retry", small.store.root)
    upshot("cancel", small.store.root, "-y")


def test_near_its_time_limit_a_job_leaves_a_checkpoint_and_requeues_itself(small, on_slurm):
    submit(small, "--set", "grid.epochs=60", "--set", "grid.family=vit", "--set", "grid.fraction=[0.02]")
    [cell] = _cells(small)
    wait_until(lambda: _started(small, cell), "the cell trains")
    train = small.store.manifests()[0]
    on_slurm.run("scancel", "--signal=USR2", train.job_id)  # what --signal does before the limit
    assert "1 done" in watch(small)
    events = [(e["event"], e.get("outcome")) for e in small.store.attempts(cell.cell_id) if e["stage"] == "train"]
    assert [e for e in events if e[0] != "death"] == [
        ("start", None),
        ("end", "interrupted"),
        ("start", None),
        ("end", "done"),
    ]
    assert "died on cpu" in upshot("why", cell.cell_id, small.store.root)
    assert "told to stop long before its time limit" in upshot(
        "why", cell.cell_id, small.store.root, env={"COLUMNS": None}
    )
    starts = [r["step"] for r in read_records(small.store.train_log(cell.cell_id)).records if r["event"] == "start"]
    assert starts[0] == 0 < starts[1]
    assert len(small.store.manifests()) == 2
    assert "SIGUSR2" in upshot("why", cell.cell_id, small.store.root)


def _started(small, cell):
    return any(r["event"] == "train" for r in read_records(small.store.train_log(cell.cell_id)).records)


def test_a_silent_scheduler_is_never_read_as_an_end(small):
    submit(small, "--set", "grid.epochs=50")
    lost = {"SLURM_CONF": "/nonexistent/slurm.conf", "PATH": "/nonexistent"}
    states = upshot_json("status", small.store.root, env=lost)["cells"]
    assert {state["status"] for state in states} <= {"unknown", "running"}
    upshot("cancel", small.store.root, "-y")


def test_no_scheduler_is_exit_code_3_and_writes_nothing(small, tmp_path):
    without_slurm = {"PATH": str(tmp_path)}
    assert "not found on PATH" in upshot("submit", small.path, "--runs", small.runs, code=3, env=without_slurm)
    assert not small.store.root.exists()


def test_an_unknown_partition_is_refused_before_sbatch(small):
    said = submit(small, "--set", "cluster.partition=gpuu", code=2)
    assert "known: cpu" in said
    assert not small.store.root.exists()


def _fields(manifest):
    return {name: getattr(manifest, name) for name in manifest.__slots__}


def _cells(small):
    return small.store.cells()
