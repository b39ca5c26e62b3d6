"""Trainings that fail: their own jobs say so at W&B, and whatever W&B does, they fail of nothing else."""

import json
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator import drive, node, tracking
from orchestrator.node import Work, bodies
from orchestrator.node.jobs import CellsFailedError
from orchestrator.session import open_session
from orchestrator.state import CellState
from orchestrator.store import Manifest, Stage
from orchestrator.tracking.patience import Patience
from slurm.cluster import local_profile
from tests.orchestrator.conftest import SmallStudy
from tests.orchestrator.own_server import own_server
from tests.private_slurm import wait_until
from tests.wandb_server import WandbServer


@pytest.fixture(autouse=True)
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server and a machine that knows no other."""
    monkeypatch.setattr(tracking, "PATIENCE", Patience())  # each job has its own
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    with own_server(tmp_path, monkeypatch) as started:
        yield started
    for number, handler in handlers.items():  # a job has its own
        signal.signal(number, handler)


@pytest.fixture
def small(tmp_path: Path) -> SmallStudy:
    """One cell, mirrored online, whose training cannot begin: a file lies where its checkpoints are to go."""
    made = SmallStudy(tmp_path)
    made.path.write_text(
        made.path.read_text()
        .replace('"disabled"', '"online"')
        .replace('["vit", "resnet"]', '"vit"')
        .replace("[0.01, 0.02]", "0.01")
    )
    in_the_way(made).parent.mkdir(parents=True)
    in_the_way(made).write_text("a file where a folder should be")
    return made


def in_the_way(small: SmallStudy) -> Path:
    return small.store.checkpoints(small.cells[0].cell_id)


def note(small: SmallStudy) -> dict[str, Any]:
    """How the mirror went; the job writes it once its failure is on record."""
    path = small.store.cell_folder(small.cells[0].cell_id) / "mirror.json"
    wait_until(path.exists, "the failed training is mirrored")
    return dict(json.loads(path.read_text()))


def watched(small: SmallStudy, *, retry: bool = False) -> CellState:
    """Where the one cell stands once everything has ended."""
    session = open_session(small.path, small.runs, [])
    session.submit(retry=retry)
    seen = drive.watch(session.store, session.file, session.profile, show=lambda _: None, tick_s=0.2)
    assert seen is not None
    return seen.states[0]


def test_a_failed_training_is_a_failed_run_and_a_finished_one_once_it_succeeds(
    small: SmallStudy, server: WandbServer
) -> None:
    cell_id = small.cells[0].cell_id
    failed = watched(small)
    assert (note(small)["ok"], note(small)["outcome"]) == (True, "failed")
    run = server.runs[cell_id]
    assert (run.state, run.summary["outcome"], run.summary["attempts"]) == ("failed", "failed", 1)
    assert run.summary["cause"] == failed.why
    assert "code-error: " in str(failed.why)

    in_the_way(small).unlink()
    assert watched(small, retry=True).status == "done"
    judged = "downstream/mnist/5shot/accuracy"
    # A cell is done once its result files are there; then its job mirrors them.
    wait_until(lambda: len(run.curve(judged)) == 2 and run.state == "finished", "the results are mirrored")
    assert server.runs == {cell_id: run}
    assert (run.state, run.summary["outcome"], run.summary["attempts"]) == ("finished", "done", 2)
    assert "cause" not in run.summary
    assert run.num_rewritten == 0
    assert len(run.curve("upstream/accuracy")) == 2


def run(small: SmallStudy, error: BaseException, stage: Stage = "train") -> None:
    """Runs the cell's job here, with a body that raises."""
    small.store.write_study(small.path.read_text(), local_profile())
    small.store.write_cells(small.cells)
    given = {"study": "small", "executor": "local", "resources": {}, "submitted": 1.0, "job_id": "1"}
    small.store.write_manifest(Manifest(token="t", stage=stage, tasks=[[small.cells[0].cell_id]], **given))

    def body(_: Work) -> dict[str, Any]:
        raise error

    node.run_task(str(small.store.root), "t", 0, bodies={"train": body, "evaluate": body})


@pytest.mark.parametrize("fault", [401, "hang"])
def test_a_server_that_is_ill_changes_nothing_of_a_failure(
    small: SmallStudy, server: WandbServer, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell_id = small.cells[0].cell_id
    monkeypatch.setattr(bodies.tracking, "mirror_cell", partial(tracking.mirror_cell, timeout_s=1.0))
    server.fail(fault)
    with pytest.raises(CellsFailedError, match=cell_id):
        run(small, MemoryError("no room"))
    assert small.store.attempts(cell_id)[-1]["error"]["type"] == "MemoryError"
    assert (note(small)["ok"], note(small)["outcome"]) == (False, "failed")

    server.recover()
    assert node.mirror_cell(small.store, cell_id, "failed", mode="online").ok
    told = server.runs[cell_id]
    assert (told.state, told.summary["outcome"], told.summary["cause"]) == (
        "failed",
        "failed",
        "oom: MemoryError: no room",
    )
    assert (note(small)["ok"], note(small)["outcome"]) == (True, "failed")


def test_a_mirror_that_raises_is_not_what_a_training_failed_of(
    small: SmallStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    for name in ("write_tensorboard", "mirror_cell"):
        monkeypatch.setattr(bodies.tracking, name, broken)
    with pytest.raises(CellsFailedError):
        run(small, ValueError("its own"))
    assert small.store.attempts(small.cells[0].cell_id)[-1]["error"]["message"] == "its own"


@pytest.mark.parametrize(("error", "stage"), [(KeyboardInterrupt(), "train"), (ValueError("x"), "evaluate")])
def test_what_was_interrupted_and_evaluations_are_not_mirrored_as_failed_trainings(
    small: SmallStudy, server: WandbServer, error: BaseException, stage: Stage
) -> None:
    with pytest.raises((KeyboardInterrupt, CellsFailedError)):
        run(small, error, stage)
    assert server.runs == {}


def test_tensorboard_that_cannot_be_written_leaves_wandb_alone(small: SmallStudy, server: WandbServer) -> None:
    folder = small.store.cell_folder(small.cells[0].cell_id)
    (folder / "tensorboard").write_text("a file where a folder should be")
    with pytest.raises(CellsFailedError):
        run(small, ValueError("x"))
    assert note(small)["ok"]
    assert server.runs[folder.name].state == "failed"
