import os
import shutil
import time
from dataclasses import dataclass

import polars as pl
import pytest

from orchestrator.clean import clean, leftovers, unneeded_code
from orchestrator.snapshot import RECORD
from orchestrator.store import Manifest
from slurm import jobs
from slurm.cluster import local_profile
from slurm.resources import SlurmUnreachable
from tests.orchestrator.conftest import SmallStudy
from tests.orchestrator.test_slurm_pipeline import PROFILE
from tests.orchestrator.upshot_command import upshot, upshot_json
from tests.private_slurm import wait_until

TWO_CELLS = ("--set", "grid.family=vit")


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def plant(store, cell_id):
    """What killed and resumed attempts leave, made of a real checkpoint where there is one; what of it may go."""
    folder, steps = store.checkpoints(cell_id), store.finalised_steps(cell_id)
    planted = [folder / "resume" / "step_00000003", folder / ".draft-00000004-123", folder / "corrupt-step_00000002"]
    for path in planted:
        if steps:
            shutil.copytree(folder / f"step_{steps[0]:08d}", path)
        else:
            path.mkdir(parents=True)
            (path / "DONE").touch()
    return {f"{p.relative_to(store.root).as_posix()}/{name}" for p in planted for name in files(p)}


def run(small, *words, code=0):
    upshot("submit", small.path, "--runs", small.runs, *TWO_CELLS, *words)
    upshot("watch", small.store.root, code=code)
    return small.store


def test_a_finished_study_gives_up_what_it_does_not_need_and_nothing_else(tmp_path):
    small = SmallStudy(tmp_path)
    store = run(small)
    upshot("report", store.root)
    results, status = pl.read_parquet(store.results_path), upshot_json("status", store.root)
    cell_ids = [cell["cell_id"] for cell in status["cells"]]
    expected = set().union(*(plant(store, cell_id) for cell_id in cell_ids))
    for cell_id in cell_ids:
        first, last = store.finalised_steps(cell_id)
        folder = store.checkpoints(cell_id).relative_to(store.root).as_posix()
        for step in (first, last):  # beside an average of the weights
            (store.root / folder / f"step_{step:08d}" / "raw.safetensors").write_bytes(b"raw")
        expected |= {f"{folder}/step_{first:08d}/{name}.safetensors" for name in ("optimizer", "raw")}
        assert (store.root / folder / f"step_{last:08d}" / "optimizer.safetensors").exists()
    home = store.job_folder(store.manifests()[0].job_id)
    submitits = {p for p in home.iterdir() if p.suffix in (".pkl", ".out", ".err", ".sh")}
    assert {path.suffix for path in submitits} >= {".pkl", ".out"}
    expected |= {path.relative_to(store.root).as_posix() for path in submitits}
    (store.root / ".driver.lock.1-2-1").touch()
    [code] = (store.root / "code").iterdir()  # of submissions that have ended; what tells which it was stays
    expected |= {path.relative_to(store.root).as_posix() for path in code.rglob("*") if path.is_file()}
    (store.root / "code" / ("0" * 64)).mkdir(parents=True)
    (store.root / "code" / ("0" * 64) / "orchestrator.py").touch()
    expected |= {".driver.lock.1-2-1", f"code/{'0' * 64}/orchestrator.py"}

    before = files(store.root)
    told = upshot("clean", store.root, "--dry-run")
    assert files(store.root) == before
    freed = sum(len(before[name]) for name in expected)
    assert f"would free {freed / 1e6:.1f} MB" in told

    assert f"freed {freed / 1e6:.1f} MB" in upshot("clean", small.path, "--runs", small.runs, "-y")
    records = {name: data for name, data in files(store.root).items() if name.startswith(f"code/{code.name}.")}
    assert f"code/{code.name}.{RECORD}" in records
    assert files(store.root) == {**{n: data for n, data in before.items() if n not in expected}, **records}
    assert "freed 0.0 MB" in upshot("clean", store.root, "-y").replace("would free", "freed")

    assert upshot_json("status", store.root) == status
    assert {cell["action"] for cell in upshot_json("plan", store.root)["cells"]} == {"skip"}
    upshot("collect", store.root)
    assert pl.read_parquet(store.results_path).equals(results)
    upshot("report", store.root)
    upshot(
        "submit", small.path, "--runs", small.runs, *TWO_CELLS, "--set", 'downstream.tasks=["mnist","patches","cells"]'
    )
    assert "2 done" in upshot("watch", store.root)
    for cell_id in cell_ids:
        starts = [e["stage"] for e in store.attempts(cell_id) if e["event"] == "start"]
        assert starts == ["train", *["evaluate"] * (1 + len(store.finalised_steps(cell_id)))]
    upshot("collect", store.root)
    added = pl.read_parquet(store.results_path)
    assert added.filter(pl.col("task") != "cells").equals(results)
    assert added.filter(task="cells").group_by("cell_id").agg(pl.col("step").n_unique())["step"].to_list() == [2, 2]


def test_a_cell_that_failed_keeps_everything_and_is_mended_from_it(tmp_path):
    small = SmallStudy(tmp_path)
    victim = next(cell.cell_id for cell in small.cells if cell.recipe.family == "vit")
    in_the_way = [small.store.checkpoints(victim) / f"step_{step:08d}" for step in range(1, 100)]
    in_the_way[0].parent.mkdir(parents=True)
    for path in in_the_way:
        path.write_text("a file where a checkpoint's folder should be")
    store = run(small, code=1)
    [other] = store.cell_ids() - {victim}
    kept, gone = plant(store, victim), plant(store, other)
    jobs_before = files(store.root / "jobs")
    upshot("clean", store.root, "-y")
    left = files(store.root)
    assert kept <= left.keys()
    assert not gone & left.keys()
    assert files(store.root / "jobs") == jobs_before
    for path in in_the_way:
        path.unlink()
    shutil.rmtree(store.checkpoints(victim) / "resume")
    upshot("retry", store.root)
    assert "2 done" in upshot("watch", store.root)
    upshot("clean", store.root, "-y")
    assert not kept & files(store.root).keys()
    assert not list((store.root / "jobs").rglob("*.pkl"))


def test_nothing_of_a_live_cell_goes(tmp_path):
    small = SmallStudy(tmp_path)
    upshot("submit", small.path, "--runs", small.runs, *TWO_CELLS, "--set", "grid.epochs=200")
    store = small.store
    try:
        set_aside = [store.checkpoints(cell.cell_id) / "corrupt-step_00000001" for cell in store.cells()]
        for path in set_aside:
            path.mkdir(parents=True)
        assert "free" in upshot("clean", store.root, "-y")
        assert [path.is_dir() for path in set_aside] == [True, True]
        assert list(store.job_folder(store.manifests()[0].job_id).glob("*_submitted.pkl"))
    finally:
        upshot("cancel", store.root, "-y")


def ended(store, cell, *, stage="train", outcome="done", executor="local"):
    """A submission of one cell that ended so, as the ledger has it."""
    manifest = Manifest(
        token=f"{stage}{cell.cell_id[:6]}",
        study="small",
        stage=stage,
        executor=executor,
        tasks=[[cell.cell_id]],
        resources={},
        submitted=time.time() - 1000,
        job_id=f"{stage}{cell.cell_id[:6]}",
    )
    store.write_cells([cell])
    store.write_manifest(manifest)
    attempt = {"stage": stage, "attempt": 1, "token": manifest.token}
    store.record_attempt(cell.cell_id, event="start", host="here", pid=1, **attempt)
    store.record_attempt(cell.cell_id, event="end", outcome=outcome, step=7, seconds=1.0, **attempt)
    return manifest


@pytest.fixture
def store(small):
    small.store.write_study(small.file.text, local_profile())
    return small.store


def test_a_diverged_cells_only_checkpoint_stays(store, small):
    cell = small.cells[0]
    ended(store, cell, outcome="diverged")
    plant(store, cell.cell_id)
    assert {leftover.kind for leftover in clean(store)} == {"draft", "damaged"}
    assert (store.checkpoints(cell.cell_id) / "resume" / "step_00000003" / "DONE").exists()
    numbered = store.checkpoints(cell.cell_id) / "step_00000002"
    numbered.mkdir()
    (numbered / "DONE").touch()
    (numbered / "optimizer.safetensors").touch()
    assert [leftover.kind for leftover in clean(store)] == ["resume"]
    assert {path.name for path in numbered.iterdir()} == {"DONE", "optimizer.safetensors"}


def test_a_cell_whose_numbered_checkpoints_are_gone_keeps_what_it_can_go_on_from(store, small):
    ended(store, small.cells[0])
    plant(store, small.cells[0].cell_id)
    assert clean(store) == []


def test_a_link_is_left_alone_with_what_it_leads_to(store, small, tmp_path):
    cell = small.cells[0]
    ended(store, cell)
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "precious").touch()
    for step in (1, 2):
        (store.checkpoints(cell.cell_id) / f"step_{step:08d}").mkdir(parents=True)
        (store.checkpoints(cell.cell_id) / f"step_{step:08d}" / "DONE").touch()
    for name in ("resume", ".draft-1", "corrupt-step_1", "step_00000001/optimizer.safetensors"):
        (store.checkpoints(cell.cell_id) / name).symlink_to(tmp_path / "victim")
    assert clean(store) == []
    assert (tmp_path / "victim" / "precious").exists()


def test_while_slurm_is_silent_nothing_goes(store, small, monkeypatch, tmp_path):
    cell = small.cells[0]
    ended(store, cell, executor="slurm")
    plant(store, cell.cell_id)
    before = files(store.root)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmUnreachable):
        clean(store)
    assert files(store.root) == before


def test_while_another_drives_nothing_goes(store, small):
    ended(store, small.cells[0], outcome="diverged")
    plant(store, small.cells[0].cell_id)
    assert leftovers(store)
    with store.driving():
        before = files(store.root)
        assert f"pid {os.getpid()}" in upshot("clean", store.root, "-y", code=2)
        assert files(store.root) == before


def test_without_a_yes_nothing_goes(store, small):
    ended(store, small.cells[0], outcome="diverged")
    plant(store, small.cells[0].cell_id)
    before = files(store.root)
    assert "Remove this from" in upshot("clean", store.root, code=1)
    assert files(store.root) == before


@dataclass(frozen=True, slots=True, kw_only=True)
class WithCode(Manifest):
    code: str | None = None


def submission(token, code):
    return WithCode(
        token=token, study="s", stage="train", executor="slurm", tasks=[], resources={}, submitted=0, code=code
    )


def test_code_goes_once_every_submission_that_runs_it_has_ended(tmp_path):
    for name in ("a", "b", "c", ".draft-1"):
        (tmp_path / name).mkdir()
    (tmp_path / "a.snapshot.json").touch()
    manifests = [submission("1", "a"), submission("2", "a"), submission("3", "b"), submission("4", None)]

    def goes(*ended):
        return [path.name for path in unneeded_code(tmp_path, manifests, set(ended))]

    assert goes() == ["c"]
    assert goes("1") == ["c"]
    assert goes("1", "2", "4") == ["a", "c"]
    assert goes("1", "2", "3", "4") == ["a", "b", "c"]


def test_of_code_that_goes_the_record_stays(store):
    folder = store.root / "code" / "abc"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "build.py").write_text("code")
    (folder / "snapshot.json").write_text('{"git_sha": "0123"}')
    (folder / "environment.lock").write_text("torch==2\n")
    clean(store)
    assert files(store.root / "code") == {
        "abc.snapshot.json": b'{"git_sha": "0123"}',
        "abc.environment.lock": b"torch==2\n",
    }


@pytest.mark.slurm
def test_on_slurm_the_files_of_ended_arrays_go(tmp_path, on_slurm):
    small = SmallStudy(tmp_path)
    (tmp_path / "mini.toml").write_text(PROFILE)
    small.path.write_text(small.path.read_text() + '[cluster]\nprofile = "mini.toml"\n')
    upshot("submit", small.path, "--runs", small.runs, *TWO_CELLS)
    upshot("watch", small.store.root, "--every", "0.5")
    wait_until(lambda: not jobs.query_live("upshot-small-"), "the queue is empty")
    wait_until(lambda: _kinds(small.store) >= {"submission"}, "no job can be on its way into the queue any more")
    tokens = [manifest.token for manifest in small.store.manifests()]
    before = files(small.store.root / "jobs")
    assert {name.split("/")[0] for name in before if name.endswith("_submitted.pkl")} == set(tokens)
    upshot("clean", small.store.root, "-y")
    assert files(small.store.root / "jobs").keys() == {f"{token}.json" for token in tokens}
    assert {cell["status"] for cell in upshot_json("status", small.store.root)["cells"]} == {"done"}


def _kinds(store):
    return {leftover.kind for leftover in leftovers(store)}
