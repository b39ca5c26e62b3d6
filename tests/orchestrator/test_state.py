import pytest

from orchestrator.plan import decide
from orchestrator.state import Status, read_states
from orchestrator.store import Manifest

TRAIN, EVALUATE = "a" * 12, "b" * 12


def submitted(small, *, job_id="1", stages=("train", "evaluate")):
    for token, stage in ((TRAIN, "train"), (EVALUATE, "evaluate")):
        if stage in stages:
            manifest = Manifest(
                token=token,
                study="small",
                stage=stage,
                executor="slurm",
                tasks=[[cell.cell_id] for cell in small.cells],
                resources={},
                submitted=0.0,
                job_id=job_id,
            )
            small.store.write_manifest(manifest)
    for cell in small.cells:
        small.store.write_cell(cell)


def record(small, stage, event, **more):
    token = TRAIN if stage == "train" else EVALUATE
    common = {"stage": stage, "event": event, "attempt": 1, "token": token, "host": "node1"}
    small.store.record_attempt(small.cells[0].cell_id, **(common | more))


def first(small, live=()):
    return read_states(small.store, small.file.study, small.cells, dict(live))[0]


def ended_well(small):
    record(small, "train", "start")
    record(small, "train", "end", outcome="done", seconds=2.0)
    folder = small.store.checkpoints(small.cells[0].cell_id) / "step_00000004"
    folder.mkdir(parents=True)
    (folder / "DONE").touch()


def evaluated(small, tasks=("mnist", "patches")):
    folder = small.store.evals(small.cells[0].cell_id, 4)
    folder.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        (folder / f"{small.file.study.protocol.eval_id(task)}.parquet").touch()


def test_a_cell_that_no_one_submitted_is_new(small):
    state = first(small)
    assert state.status == Status.NEW
    assert decide(state, retry=False)[::2] == ("submit", ("train", "evaluate"))


def test_what_the_scheduler_holds_is_waited_for(small):
    submitted(small)
    for word in ("pending", "running", "unknown"):
        state = first(small, {(TRAIN, 0): word, (EVALUATE, 0): "pending"})
        assert state.status == word
        assert decide(state, retry=True)[0] == "wait"


def test_a_requeued_attempt_is_running_not_failed(small):
    submitted(small)
    record(small, "train", "start")
    assert first(small, {(TRAIN, 0): "pending"}).status == Status.RUNNING


def test_an_attempt_without_an_end_failed_once_its_job_is_gone(small):
    submitted(small)
    record(small, "train", "start")
    state = first(small)
    assert state.status == Status.FAILED
    assert "without a record" in state.cause
    assert state.evaluate.status == Status.BLOCKED
    assert decide(state, retry=False)[0] == "skip"
    assert decide(state, retry=True)[::2] == ("retry", ("train", "evaluate"))


def test_a_job_that_ended_before_its_cell_began_failed(small):
    submitted(small)
    assert "before the cell began" in first(small).cause


def test_a_submission_that_the_scheduler_never_took_is_new_again(small):
    submitted(small, job_id=None)
    assert first(small).status == Status.NEW


def test_an_exception_is_the_cause(small):
    submitted(small)
    record(small, "train", "start")
    error = {"type": "CheckpointError", "message": "torn\nsecond line", "traceback": "..."}
    record(small, "train", "end", outcome="failed", seconds=1.0, error=error)
    assert first(small, {(TRAIN, 0): "running"}).cause == "CheckpointError: torn"


def test_an_interrupted_attempt_runs_on_once_it_is_requeued_and_failed_if_not(small):
    submitted(small)
    record(small, "train", "start")
    error = {"type": "SystemExit", "message": "-1", "traceback": "..."}
    record(small, "train", "end", outcome="interrupted", seconds=1.0, error=error)
    assert first(small, {(TRAIN, 0): "pending"}).status == Status.RUNNING
    assert decide(first(small, {(TRAIN, 0): "pending"}), retry=True)[0] == "wait"
    assert first(small).status == Status.FAILED
    assert "interrupted" in first(small).cause


def test_a_diverged_cell_without_its_rows_is_not_done(small):
    submitted(small)
    record(small, "train", "start")
    record(small, "train", "end", outcome="diverged", step=3, seconds=2.0)
    state = first(small)
    assert state.missing == ((3, "mnist"), (3, "patches"))
    assert decide(state, retry=False)[0] == "skip"
    assert decide(state, retry=True)[::2] == ("retry", ("evaluate",))


def test_a_trained_cell_whose_checkpoints_are_gone_failed(small):
    submitted(small)
    record(small, "train", "start")
    record(small, "train", "end", outcome="done", step=4, seconds=2.0)
    assert first(small).cause == "its checkpoints are gone"


def test_a_trained_cell_is_running_until_its_results_are_there(small):
    submitted(small)
    ended_well(small)
    waiting = first(small, {(EVALUATE, 0): "pending"})
    assert (waiting.status, waiting.train.status, len(waiting.missing)) == (Status.RUNNING, Status.DONE, 2)
    evaluated(small, ["mnist"])
    assert first(small, {(EVALUATE, 0): "running"}).missing == ((4, "patches"),)
    evaluated(small)
    assert first(small).status == Status.DONE


def test_a_diverged_cell_that_is_evaluated_is_a_result(small):
    submitted(small)
    record(small, "train", "start")
    record(small, "train", "end", outcome="diverged", step=4, seconds=2.0)
    evaluated(small)
    record(small, "evaluate", "start")
    record(small, "evaluate", "end", outcome="done", seconds=2.0)
    state = first(small)
    assert state.status == Status.DIVERGED
    assert decide(state, retry=True)[0] == "skip"


def test_a_new_task_is_evaluated_without_training_again(small):
    submitted(small)
    ended_well(small)
    evaluated(small)
    record(small, "evaluate", "start")
    record(small, "evaluate", "end", outcome="done", seconds=2.0)
    study = small.file.study
    wider = study.model_copy(update={"downstream": study.downstream.model_copy(update={"tasks": ["mnist", "cells"]})})
    state = read_states(small.store, wider, small.cells, {})[0]
    action, reason, stages = decide(state, retry=False)
    assert (action, stages) == ("submit", ("evaluate",))
    assert "1 evaluations are missing" in reason


def test_the_newest_submission_counts(small):
    submitted(small)
    record(small, "train", "start")
    again = Manifest(
        token="c" * 12,
        study="small",
        stage="train",
        executor="slurm",
        tasks=[[small.cells[0].cell_id]],
        resources={},
        submitted=1.0,
        job_id="2",
    )
    small.store.write_manifest(again)
    assert first(small, {("c" * 12, 0): "pending"}).train.status == Status.PENDING


@pytest.mark.parametrize("text", ["", "{", "[]", '{"token": 1}'])
def test_a_damaged_manifest_is_named(small, text):
    from models.errors import DataError

    submitted(small)
    (small.store.root / "jobs" / f"{TRAIN}.json").write_text(text)
    with pytest.raises(DataError, match=TRAIN):
        first(small)
