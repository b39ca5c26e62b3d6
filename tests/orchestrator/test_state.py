import pytest

from models.errors import DataError
from orchestrator.attempts import read_attempts, work_seconds
from orchestrator.plan import decide
from orchestrator.state import Status
from orchestrator.submissions import Task
from orchestrator.wanted import UPSTREAM, MissingFile
from slurm.failures import Cause
from tests.orchestrator.ledger import EVALUATE, TRAIN

PENDING, RUNNING, UNKNOWN, GONE = (Task(word) for word in ("pending", "running", "unknown", "gone"))
AGAIN = "c" * 12


def ids(ledger, *cells):
    return [[ledger.cells[cell].cell_id] for cell in cells]


# --- training ------------------------------------------------------------------------------------------------------


def test_a_cell_that_no_one_submitted_is_new(ledger):
    state = ledger.state()
    assert state.status == Status.NEW
    assert decide(ledger.study, state)[::2] == ("submit", ("train", "evaluate"))


@pytest.mark.parametrize("task", [PENDING, RUNNING, UNKNOWN])
def test_what_the_scheduler_holds_is_waited_for(ledger, task):
    ledger.submit_both()
    state = ledger.state({(TRAIN, 0): task, (EVALUATE, 0): PENDING})
    assert state.status == task.state
    assert decide(ledger.study, state, retry=True)[0] == "wait"


def test_a_requeued_attempt_is_running_not_failed(ledger):
    ledger.submit_both()
    ledger.start()
    assert ledger.state({(TRAIN, 0): PENDING}).status == Status.RUNNING


def test_an_attempt_without_an_end_failed_once_its_job_is_gone(ledger):
    ledger.submit_both()
    ledger.start()
    state = ledger.state()
    assert (state.status, state.cause) == (Status.FAILED, Cause.KILLED)
    assert state.evaluate.status == Status.BLOCKED
    assert decide(ledger.study, state)[0] == "skip"
    assert decide(ledger.study, state, retry=True)[::2] == ("retry", ("train", "evaluate"))


def test_a_cell_failed_of_what_is_on_record(ledger):
    ledger.submit_both()
    ledger.start()
    ledger.die(Cause.NODE_FAILURE, detail="Slurm says NODE_FAIL", node="cpu3")
    state = ledger.state()
    assert (state.status, state.cause) == (Status.FAILED, Cause.NODE_FAILURE)
    assert state.why == "node-failure: Slurm says NODE_FAIL"
    assert [death.node for death in state.train.deaths] == ["cpu3"]


def test_an_exception_fails_the_cell_while_its_job_still_does_others(ledger):
    ledger.submit_both()
    ledger.run("failed", error={"type": "CheckpointError", "message": "torn", "traceback": "..."})
    assert ledger.state({(TRAIN, 0): RUNNING}).status == Status.FAILED


def test_an_interrupted_attempt_runs_on_once_it_is_requeued_and_failed_if_not(ledger):
    ledger.submit_both()
    ledger.run("interrupted", error={"type": "SIGUSR2", "message": "", "traceback": ""})
    requeued = ledger.state({(TRAIN, 0): PENDING})
    assert requeued.status == Status.RUNNING
    assert decide(ledger.study, requeued, retry=True)[0] == "wait"
    assert ledger.state().status == Status.FAILED


def test_a_submission_that_the_scheduler_never_took_is_new_again(ledger):
    ledger.submit_both(job_id=None)
    assert ledger.state().status == Status.NEW


def test_an_abandoned_submission_counts_for_nothing(ledger):
    ledger.submit_both(abandoned=True)
    ledger.die(Cause.LAUNCH_FAILURE, attempt=0)
    state = ledger.state({(TRAIN, 0): RUNNING})
    assert (state.status, state.train.recent) == (Status.NEW, ())
    assert ledger.corpses() == []


def test_a_trained_cell_whose_checkpoints_are_gone_failed_and_is_not_trained_again_unasked(ledger):
    ledger.submit_both()
    ledger.start()
    ledger.die(Cause.PREEMPTION)
    ledger.run("done", attempt=2, step=None)
    state = ledger.state()
    assert state.why == "file-system: its checkpoints are gone"
    assert decide(ledger.study, state)[0] == "skip"
    assert decide(ledger.study, state, retry=True)[::2] == ("retry", ("train", "evaluate"))


def test_the_newest_submission_counts(ledger):
    ledger.submit_both()
    ledger.start()
    ledger.submit(AGAIN, ids(ledger, 0))
    assert ledger.state({(AGAIN, 0): PENDING}).train.status == Status.PENDING


def test_a_cell_that_an_older_job_trained_after_all_is_trained(ledger):
    ledger.submit_both()
    ledger.start()
    ledger.die(Cause.NODE_FAILURE)  # its node was only cut off
    ledger.submit(AGAIN, ids(ledger, 0))
    ledger.end("done")
    ledger.finalise(4)
    assert ledger.state().train.status == Status.DONE  # the newer job found nothing to do, and recorded nothing
    assert "train" not in {corpse.attempt.stage for corpse in ledger.corpses()}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"token": 1}'])
def test_a_damaged_manifest_is_named(ledger, text):
    ledger.submit_both()
    (ledger.store.root / "jobs" / f"{TRAIN}.json").write_text(text)
    with pytest.raises(DataError, match=TRAIN):
        ledger.state()


# --- evaluation ----------------------------------------------------------------------------------------------------


def test_a_trained_cell_is_running_until_its_results_are_there(ledger):
    ledger.submit_both()
    ledger.trained()
    waiting = ledger.state({(EVALUATE, 0): PENDING})
    assert (waiting.status, waiting.train.status, len(waiting.missing)) == (Status.RUNNING, Status.DONE, 3)
    ledger.evaluated(4, tasks=["mnist"])
    assert ledger.state({(EVALUATE, 0): RUNNING}).missing == (MissingFile(4, "patches", "ridge"),)
    ledger.evaluated(4)
    assert ledger.state().status == Status.DONE


def test_a_protocol_that_is_asked_for_later_lacks_its_own_files_only(ledger):
    ledger.submit_both()
    ledger.trained(2, 4)
    ledger.evaluated(2, 4)
    assert ledger.state().status == Status.DONE
    downstream = ledger.study.downstream.model_copy(update={"protocol": ["ridge", "linear"]})
    more = ledger.study.model_copy(update={"downstream": downstream})
    state = ledger.state(study=more)
    assert state.missing == tuple(MissingFile(step, task, "linear") for step in (2, 4) for task in ("mnist", "patches"))
    assert state.to_json()["missing_evaluations"] == 4
    assert decide(more, state)[::2] == ("submit", ("evaluate",))
    assert decide(more, state)[3] == (2, 4)


def test_upstream_measures_are_wanted_unless_the_study_declines_them(ledger):
    ledger.submit_both()
    ledger.trained()
    ledger.evaluated(4, measures=False)
    assert ledger.state().missing == (MissingFile(4, UPSTREAM),)
    for given, missing in ((False, 0), ("by_class", 1)):
        downstream = ledger.study.downstream.model_copy(update={"upstream": given})
        state = ledger.state(study=ledger.study.model_copy(update={"downstream": downstream}))
        assert len(state.missing) == missing
    ledger.evaluated(4)
    assert len(state.missing) == 1, "the accuracy of each class is in a file of its own"


def test_a_diverged_cell_without_its_rows_is_not_done(ledger):
    ledger.submit_both()
    ledger.run("diverged", step=None)
    ledger.store.record_attempt(
        ledger.cells[0].cell_id, event="end", stage="train", attempt=1, token=TRAIN, outcome="diverged", step=3
    )
    state = ledger.state()
    assert [(file.step, file.task) for file in state.missing] == [(3, "mnist"), (3, "patches"), (3, UPSTREAM)]
    assert decide(ledger.study, state)[::2] == ("submit", ("evaluate",))


def test_a_diverged_cell_that_is_evaluated_is_a_result(ledger):
    ledger.submit_both()
    ledger.start()
    ledger.store.record_attempt(
        ledger.cells[0].cell_id, event="end", stage="train", attempt=1, token=TRAIN, outcome="diverged", step=4
    )
    ledger.evaluated(4)
    ledger.run("done", token=EVALUATE)
    state = ledger.state()
    assert state.status == Status.DIVERGED
    assert decide(ledger.study, state, retry=True)[0] == "skip"


def test_a_new_task_is_evaluated_without_training_again(ledger):
    ledger.submit_both()
    ledger.trained()
    ledger.evaluated(4)
    ledger.run("done", token=EVALUATE)
    wider = ledger.study.model_copy(
        update={"downstream": ledger.study.downstream.model_copy(update={"tasks": ["mnist", "cells"]})}
    )
    action, reason, stages, steps = decide(wider, ledger.state(study=wider))
    assert (action, stages, steps) == ("submit", ("evaluate",), (4,))
    assert "1 evaluations are missing" in reason


def test_the_failed_evaluation_of_one_checkpoint_fails_the_cell_by_its_own_deaths(ledger):
    cell_id = ledger.cells[0].cell_id
    ledger.submit_both()
    ledger.trained(2, 4)
    ledger.submit(AGAIN, [[f"{cell_id}@2"], [f"{cell_id}@4"]], "evaluate")
    ledger.start(token=AGAIN, step=2)
    ledger.start(token=AGAIN, step=4, attempt=2)
    ledger.die(Cause.KILLED, token=AGAIN, step=2, detail="two")
    ledger.die(Cause.KILLED, token=AGAIN, step=4, attempt=2, detail="four")
    ledger.evaluated(2)
    state = ledger.state()
    assert (state.status, state.evaluate.detail) == (Status.FAILED, "four")
    assert [death.detail for death in state.evaluate.recent] == ["four"]
    assert len(state.evaluate.deaths) == 2


def test_two_checkpoints_that_are_judged_at_once_may_have_the_same_number(ledger):
    cell_id = ledger.cells[0].cell_id
    ledger.submit_both()
    ledger.trained(2, 4)
    ledger.submit(AGAIN, [[f"{cell_id}@2"], [f"{cell_id}@4"]], "evaluate")
    ledger.start(token=AGAIN, step=2)
    ledger.start(token=AGAIN, step=4)
    ledger.end("done", token=AGAIN, step=2)
    ledger.evaluated(2)
    [corpse] = [corpse for corpse in ledger.corpses() if corpse.attempt.token == AGAIN]
    assert corpse.attempt.step == 4
    assert ledger.state().evaluate.status == Status.FAILED


def test_an_evaluation_that_lost_its_training_is_new(ledger):
    ledger.submit_both()
    ledger.trained()
    ledger.die(Cause.DEPENDENCY, token=EVALUATE, attempt=0)
    assert ledger.state().evaluate.status == Status.NEW
    assert decide(ledger.study, ledger.state())[::2] == ("submit", ("evaluate",))


def test_results_that_never_appear_are_no_endless_work(ledger):
    ledger.submit_both()
    ledger.trained()
    for number in range(1, 5):
        assert ledger.state().evaluate.status == Status.NEW
        token = f"{number:012d}"
        ledger.submit(token, ids(ledger, 0), "evaluate")
        ledger.run("done", token=token, attempt=number, num_files=0)
    state = ledger.state()
    assert (state.status, state.cause) == (Status.FAILED, Cause.FILE_SYSTEM)
    assert decide(ledger.study, state)[0] == "skip"


def test_a_cell_that_was_judged_checkpoint_by_checkpoint_can_be_judged_on_a_new_task(ledger):
    cell_id, steps = ledger.cells[0].cell_id, (1, 2, 3, 4, 5, 6)
    ledger.submit_both()
    ledger.trained(*steps)
    ledger.submit(AGAIN, [[f"{cell_id}@{step}"] for step in steps], "evaluate")
    for step in steps:
        ledger.run("done", token=AGAIN, attempt=step, step=step, num_files=1)
    ledger.evaluated(*steps, tasks=["mnist"])
    assert ledger.state().evaluate.status == Status.NEW


# --- corpses -------------------------------------------------------------------------------------------------------


def test_a_job_that_ended_before_its_cell_began_is_a_corpse(ledger):
    ledger.submit_both()
    assert ledger.corpses({(TRAIN, 0): PENDING}) == []
    assert ledger.corpses({(TRAIN, 0): UNKNOWN}) == []
    [corpse] = ledger.corpses()
    assert (corpse.attempt.stage, corpse.attempt.number, corpse.attempt.token) == ("train", 0, TRAIN)


def test_an_evaluation_whose_training_died_never_had_its_turn(ledger):
    ledger.submit_both()
    ledger.start()
    assert [corpse.attempt.stage for corpse in ledger.corpses()] == ["train"]
    ledger.end("done")
    ledger.finalise(4)
    assert [corpse.attempt.stage for corpse in ledger.corpses()] == ["evaluate"]


def test_a_start_that_was_followed_by_another_died_though_its_job_lives(ledger):
    ledger.submit_both()
    ledger.start()
    assert ledger.corpses({(TRAIN, 0): RUNNING}) == []
    assert [c.started_again for c in ledger.corpses({(TRAIN, 0): PENDING})] == [True]
    ledger.start(attempt=2)
    corpses = ledger.corpses({(TRAIN, 0): RUNNING})
    assert [(c.attempt.number, c.started_again) for c in corpses] == [(1, True)]


def test_a_death_on_record_is_not_examined_again(ledger):
    ledger.submit_both()
    ledger.start()
    assert len(ledger.corpses()) == 1
    ledger.die(Cause.KILLED)
    assert ledger.corpses() == []


def test_in_a_pack_what_never_began_is_innocent_unless_the_whole_was_cancelled(ledger):
    both = [[ledger.cells[0].cell_id, ledger.cells[1].cell_id]]
    ledger.submit(TRAIN, both)
    ledger.start(0)
    began = [(TRAIN, 0)]
    assert [c.attempt.number for c in ledger.corpses(innocent=began)] == [1]
    assert ledger.corpses(cell=1, innocent=began) == []
    assert ledger.state(cell=1).status == Status.NEW
    ledger.change(TRAIN, cancelled=True)
    [corpse] = ledger.corpses(cell=1, innocent=began)
    assert corpse.attempt.number == 0


def test_deaths_before_somebody_asked_again_are_no_longer_recent(ledger):
    ledger.submit_both()
    ledger.start()
    ledger.die(Cause.KILLED)
    ledger.ask_again()
    assert ledger.state().train.status == Status.NEW
    assert ledger.state().train.recent == ()
    ledger.submit(AGAIN, ids(ledger, 0))
    ledger.start(token=AGAIN, attempt=2)
    ledger.die(Cause.OUT_OF_MEMORY, token=AGAIN, attempt=2)
    state = ledger.state().train
    assert [death.cause for death in state.deaths] == [Cause.KILLED, Cause.OUT_OF_MEMORY]
    assert [death.cause for death in state.recent] == [Cause.OUT_OF_MEMORY]


def _ended(number: int, outcome: str, seconds: float, **more: int) -> list[dict[str, object]]:
    common = {"stage": "train", "attempt": number, "token": "t"}
    start, end = {"event": "start", "time": 0.0}, {"event": "end", "outcome": outcome, "seconds": seconds, **more}
    return [{**common, **start}, {**common, **end}]


def test_what_the_work_takes_leaves_out_failures_and_steps_taken_twice():
    killed = [{"event": "start", "time": 0.0, "stage": "train", "attempt": 2, "token": "t"}]
    failed, stopped = _ended(1, "failed", 500.0), _ended(3, "interrupted", 40.0, first_step=20, step=60)
    again, whole = _ended(4, "done", 80.0, first_step=20, step=100), _ended(1, "done", 100.0, first_step=0, step=100)

    def measured(*events):
        return work_seconds(read_attempts([event for attempt in events for event in attempt]))

    assert measured(whole) == 100.0
    assert measured(failed, killed, stopped, again) == 100.0
    assert measured(failed) == 0.0
    assert measured(_ended(1, "done", 7.0)) == 7.0
    assert measured(_ended(1, "interrupted", 3.0, first_step=0, step=0)) == 3.0
