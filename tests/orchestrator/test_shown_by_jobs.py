"""What a job shows at W&B of a cell once a stage of it has ended: the real client, bodies that only write files."""

import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import tracking
from orchestrator.node import run_task
from orchestrator.node.jobs import CellsFailedError
from orchestrator.node.work import Work
from orchestrator.store import Manifest, Store
from orchestrator.tracking.patience import Patience
from tests.orchestrator import test_tracking as tracked
from tests.orchestrator.preempted import CHECKPOINTS, NUM_STEPS, PreemptedCell
from tests.orchestrator.test_many_cells import store_of
from tests.wandb_server import WandbServer

_bare_machine, server = tracked._bare_machine, tracked.server


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A job of its own: what a test before has waited for does not count."""
    signals = [signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)]
    monkeypatch.setattr(tracking, "PATIENCE", Patience())
    yield
    for number, handler in zip((signal.SIGUSR2, signal.SIGTERM), signals, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = store_of(tmp_path, 8)
    cell_ids = [cell.cell_id for cell in made.cells()][:2]
    for stage in ("train", "evaluate"):
        work: dict[str, Any] = {"study": "many", "executor": "local", "tasks": [[i] for i in cell_ids]}
        made.write_manifest(Manifest(token=stage, stage=stage, resources={}, submitted=0.0, **work))  # type: ignore[arg-type]  # a literal in a tuple
    return made


def trains(work: Work) -> dict[str, Any]:
    cell = PreemptedCell(work.store, work.cell_id, random.Random(1))
    cell.train(NUM_STEPS)
    return {"outcome": "done"}


def judges(work: Work) -> dict[str, Any]:
    cell = PreemptedCell(work.store, work.cell_id, random.Random(2))
    for step in CHECKPOINTS:
        cell.evaluate(step)
    return {"outcome": "done"}


def breaks(_: Work) -> dict[str, Any]:
    raise ZeroDivisionError("a bug")


def run(store: Store, stage: str, index: int = 0, train: Any = trains, evaluate: Any = judges) -> None:
    run_task(str(store.root), stage, index, bodies={"train": train, "evaluate": evaluate})


def noted(store: Store, cell_id: str) -> dict[str, Any]:
    return dict(json.loads((store.cell_folder(cell_id) / "mirror.json").read_text()))


def test_the_end_is_on_record_before_anybody_is_told(store: Store, server: WandbServer) -> None:
    cell_id = store.manifest("train").tasks[0][0]
    seen: list[list[str]] = []
    answer = server.answer

    def looking(*request: Any) -> Any:
        seen.append([str(e["event"]) for e in store.attempts(cell_id) if e["token"] == "train"])
        return answer(*request)

    server.answer = looking  # type: ignore[method-assign]
    run(store, "train")
    assert seen
    assert all(events == ["start", "end"] for events in seen)
    assert (server.runs[cell_id].state, server.runs[cell_id].summary["outcome"]) == ("finished", "done")
    run(store, "evaluate")
    assert noted(store, cell_id)["ok"]
    assert "downstream/mnist/5shot/accuracy" in server.runs[cell_id].summary


def test_a_start_that_finds_the_stage_done_tells_what_the_one_before_could_not(
    store: Store, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell_id = store.manifest("train").tasks[0][0]
    server.fail(401)
    run(store, "train")
    assert (noted(store, cell_id)["ok"], server.runs) == (False, {})
    server.recover()
    monkeypatch.setattr(tracking, "PATIENCE", Patience())  # the next start is another process
    run(store, "train")
    assert noted(store, cell_id)["ok"]
    assert [e["event"] for e in store.attempts(cell_id) if e["token"] == "train"] == ["start", "end"]
    before = len(server.operations)
    run(store, "train")
    assert len(server.operations) == before


def test_a_training_that_failed_is_shown_as_failed(store: Store, server: WandbServer) -> None:
    cell_id = store.manifest("train").tasks[0][0]
    with pytest.raises(CellsFailedError):
        run(store, "train", train=breaks)
    assert (server.runs[cell_id].state, server.runs[cell_id].summary["outcome"]) == ("failed", "failed")
    with pytest.raises(CellsFailedError):
        run(store, "evaluate", evaluate=breaks)
    assert server.runs[cell_id].num_opened == 1


def test_after_a_wait_in_vain_the_next_cell_does_not_wait(
    store: Store, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (tasks[0] for tasks in store.manifest("train").tasks)
    monkeypatch.setattr(tracking, "ANSWER_S", 1.0)
    server.fail(500)
    run(store, "train", 0)
    server.recover()
    before = len(server.operations)
    run(store, "train", 1)
    assert len(server.operations) == before
    assert "HTTP 500" in noted(store, one)["error"]
    assert noted(store, other)["error"].startswith("not tried so soon after: ")
    assert "HTTP 500" in noted(store, other)["error"]
    assert list((store.cell_folder(other) / "tensorboard").iterdir())
    assert os.environ["WANDB_API_KEY"] not in noted(store, other)["error"]
