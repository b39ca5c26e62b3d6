"""Looks at real study folders through made-up answers of a scheduler: see `scheduler_answers`."""

import os
import time
from types import SimpleNamespace

import pytest

from orchestrator import observe
from orchestrator.observe import ACCOUNTS_LAG_S, Observer
from orchestrator.queue import LAG_S, UNANSWERED_S
from orchestrator.state import Status
from slurm.cluster import Profile
from slurm.failures import Cause
from slurm.resources import SlurmError, SlurmUnreachable
from tests.orchestrator.ledger import EVALUATE, TRAIN, Ledger
from tests.orchestrator.plans import CPU, load
from tests.orchestrator.scheduler_answers import NO_DATABASE, SILENT

CLUSTER = Profile(partitions={"cpu": CPU})


def observer(small, *, writes=True, **profile):
    made = Observer(small.store, small.file, CLUSTER.model_copy(update=profile))
    made.writes = writes
    return made


@pytest.fixture
def driver(small, ledger, scheduler):
    """Looks as a driver does: what it finds out is recorded."""
    return observer(small)


def states(observer, **options):
    return observer.read(**options)[0]


def first(observer, **options):
    return states(observer, **options)[0]


def deaths(ledger, cell=0):
    found = ledger.store.attempts(ledger.cells[cell].cell_id)
    return [event["cause"] for event in found if event["event"] == "death"]


# --- the queue -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("PENDING", Status.PENDING),
        ("REQUEUED", Status.PENDING),
        ("RUNNING", Status.RUNNING),
        ("COMPLETING", Status.RUNNING),
        ("SUSPENDED", Status.RUNNING),
        ("REVOKED", Status.UNKNOWN),
        ("A_WORD_OF_TOMORROW", Status.UNKNOWN),
    ],
)
def test_a_cell_stands_as_the_queue_says(driver, ledger, scheduler, word, status):
    ledger.submit_both()
    scheduler.in_queue("1_0", word, TRAIN)
    assert first(driver).status == status
    assert scheduler.num_asked["squeue"] == 1


def test_a_job_that_has_just_been_submitted_may_be_missing_from_the_queue(driver, ledger):
    for age, status in ((LAG_S - 5, Status.UNKNOWN), (LAG_S + 5, Status.FAILED)):
        ledger.submit_both(submitted=time.time() - age)
        assert first(driver).status == status


def test_a_job_with_our_id_and_another_name_is_a_strangers(driver, ledger, scheduler):
    ledger.submit_both()
    scheduler.in_queue("1_0", "RUNNING", "somebody-elses")
    assert first(driver).cause is Cause.LAUNCH_FAILURE


def test_every_task_of_a_long_pending_array_is_seen(small, scheduler):
    study, cells = load(small, [f"grid.seed={list(range(300))}"])
    ledger = Ledger(small.store, study, cells)
    ledger.submit_both()
    for index in range(len(cells)):
        scheduler.queue.append(f"1_{index}|PENDING|1000|N/A||Priority|upshot-small-{TRAIN}")
    looking = Observer(small.store, small.file, CLUSTER, of=cells)
    assert {state.status for state in states(looking)} == {Status.PENDING}
    scheduler.queue = [f"1_[0-{len(cells) - 1}%256]|PENDING|1000|N/A||Priority|upshot-small-{TRAIN}"]
    assert {state.status for state in states(looking)} == {Status.PENDING}
    scheduler.queue = [f"1_[0-5,...]|PENDING|1000|N/A||Priority|upshot-small-{TRAIN}"]
    with pytest.raises(SlurmError, match="cannot read the job id"):  # rather than to take the others for ended
        states(looking)


def test_a_silent_scheduler_is_an_error_for_who_drives_and_unknown_for_who_looks(small, ledger, scheduler):
    ledger.submit_both()
    ledger.start()
    ledger.trained(cell=1)
    ledger.evaluated(4, cell=1)
    scheduler.queue = SILENT
    with pytest.raises(SlurmUnreachable):
        states(observer(small))
    found = states(observer(small, writes=False), strict=False)
    assert [state.status for state in found] == [Status.UNKNOWN, Status.DONE, Status.UNKNOWN, Status.UNKNOWN]
    assert deaths(ledger) == []


def test_a_study_that_nobody_submitted_needs_no_scheduler_to_be_looked_at(small, scheduler):
    scheduler.queue = SILENT
    assert {state.status for state in states(observer(small))} == {Status.NEW}


@pytest.mark.parametrize("reason", ["DependencyNeverSatisfied", "launch failed requeued held", "BadConstraints"])
def test_jobs_that_would_wait_for_ever_are_named(driver, ledger, scheduler, reason):
    ledger.submit_both()
    scheduler.in_queue("1_0", "PENDING", TRAIN, reason="Priority")
    scheduler.in_queue("2_0", "PENDING", EVALUATE, reason=reason)
    scheduler.in_queue("9", "PENDING", "somebody-elses", reason=reason)
    assert driver.look().never_start == ("2_0",)


def test_the_expected_start_is_that_of_the_last_pending_job(driver, ledger, scheduler):
    ledger.submit_both()
    assert driver.look().starts_at is None
    scheduler.in_queue("1_0", "PENDING", TRAIN, start=5000)
    scheduler.in_queue("1_1", "PENDING", TRAIN, start=7000)
    scheduler.in_queue("1_2", "RUNNING", TRAIN, start=9000)
    scheduler.in_queue("1_3", "PENDING", TRAIN)
    assert driver.look().starts_at == 7000


def test_what_has_ended_takes_no_room_in_the_queue(small, ledger, scheduler):
    limited = observer(small, max_submitted=3)
    for index in range(50):
        scheduler.in_queue(f"70_{index}", "COMPLETED", "some-other-study")
    scheduler.in_queue("71", "RUNNING", "some-other-study")
    assert sum(array.num_tasks for array in limited.look().plan.arrays) == 2  # a training and its evaluation
    scheduler.in_queue("72", "PENDING", "some-other-study")
    seen = limited.look()
    assert [array.num_tasks for array in seen.plan.arrays] == [1]  # its evaluation has to wait for room
    scheduler.in_queue("73", "PENDING", "some-other-study")
    seen = limited.look()
    assert seen.plan.arrays == []
    assert seen.num_waiting == 4
    assert not seen.settled


# --- one look, few questions ---------------------------------------------------------------------------------------


def test_a_look_asks_each_command_once_however_many_cells_there_are(small, scheduler, monkeypatch):
    study, cells = load(small, [f"grid.seed={list(range(25))}"])
    ledger = Ledger(small.store, study, cells)
    ledger.submit_both()
    looking = Observer(small.store, small.file, CLUSTER, of=cells)
    looking.writes = True
    for cell in range(50):
        ledger.start(cell)
        scheduler.accounted(f"1_{cell}", "RUNNING", TRAIN)
    looking.look()
    assert scheduler.num_asked == {"squeue": 1, "sacct": 1, "sinfo": 1}
    later = time.monotonic() + ACCOUNTS_LAG_S + 1  # the accounts have had time for the first fifty
    monkeypatch.setattr(observe, "time", SimpleNamespace(time=time.time, monotonic=lambda: later))
    for cell in range(50, 100):
        ledger.start(cell)
        scheduler.accounted(f"1_{cell}", "RUNNING", TRAIN)
    found = states(looking)
    assert scheduler.num_asked == {"squeue": 1, "sacct": 1, "sinfo": 1}
    assert [state.status for state in found] == [Status.FAILED] * 50 + [Status.UNKNOWN] * 50


def test_while_nothing_died_only_the_queue_is_asked(driver, ledger, scheduler):
    ledger.submit_both()
    for index in range(4):
        scheduler.in_queue(f"1_{index}", "RUNNING", TRAIN)
        scheduler.in_queue(f"2_{index}", "PENDING", EVALUATE)
        ledger.start(index)
    for _ in range(3):
        driver.look()
        assert scheduler.num_asked == {"squeue": 1}


def test_a_death_is_recorded_once_and_only_by_who_drives(small, driver, ledger, scheduler):
    ledger.submit_both()
    ledger.start()
    assert first(observer(small, writes=False)).cause is Cause.KILLED
    assert deaths(ledger) == []
    for _ in range(3):
        assert first(driver).cause is Cause.KILLED
    assert deaths(ledger) == ["killed"]
    assert len(first(driver).train.deaths) == 1


# --- accounts that lag ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", ["RUNNING", NO_DATABASE])
def test_what_the_queue_forgot_and_the_accounts_call_live_is_unknown_until_they_had_time(
    driver, ledger, scheduler, monkeypatch, late
):
    ledger.submit_both()
    ledger.start()
    if isinstance(late, str):
        scheduler.accounted("1_0", late, TRAIN)
    else:
        scheduler.accounts = late
    for _ in range(3):
        assert first(driver).status == Status.UNKNOWN
    assert deaths(ledger) == []
    monkeypatch.setattr(observe, "ACCOUNTS_LAG_S", 0.0)
    assert first(driver).cause is Cause.KILLED
    assert deaths(ledger) == ["killed"]


def test_accounts_that_come_late_are_believed(driver, ledger, scheduler):
    ledger.submit_both()
    ledger.start(time=1000.0)
    scheduler.accounted("1_0", "RUNNING", TRAIN, start=999)
    assert first(driver).status == Status.UNKNOWN
    scheduler.accounts = []
    scheduler.accounted("1_0", "OUT_OF_MEMORY", TRAIN, start=999, end=1200)
    assert first(driver).cause is Cause.OUT_OF_MEMORY


# --- submissions whose answer was lost -----------------------------------------------------------------------------


def test_a_job_whose_id_was_never_recorded_is_found_by_its_name(small, driver, ledger, scheduler):
    ledger.submit_both(job_id=None)
    scheduler.in_queue("77_0", "RUNNING", TRAIN)
    assert first(observer(small, writes=False)).status == Status.RUNNING
    assert ledger.store.manifest(TRAIN).job_id is None
    assert first(driver).status == Status.RUNNING
    assert ledger.store.manifest(TRAIN).job_id == "77"
    assert ledger.store.manifest(EVALUATE).abandoned  # long ago, and nowhere to be found


def test_a_job_that_the_queue_has_forgotten_is_found_by_what_its_cells_recorded(driver, ledger, scheduler):
    ledger.submit_both(job_id=None)
    ledger.start(1, job="77_1")
    ledger.end("failed", 1, error={"type": "KeyError", "message": "'x'", "traceback": ""})
    found = states(driver)
    assert ledger.store.manifest(TRAIN).job_id == "77"
    assert found[1].cause is Cause.CODE_ERROR


def test_a_submission_that_appears_nowhere_is_unknown_for_a_while_and_then_given_up(small, driver, ledger):
    ledger.submit_both(job_id=None, submitted=time.time() - UNANSWERED_S + 10)
    assert first(driver).status == Status.UNKNOWN
    assert driver.look().plan.arrays == []
    for token in (TRAIN, EVALUATE):
        ledger.change(token, submitted=time.time() - UNANSWERED_S - 10)
    assert first(observer(small, writes=False)).status == Status.NEW
    assert not ledger.store.manifest(TRAIN).abandoned
    seen = driver.look()
    assert [state.status for state in seen.states] == [Status.NEW] * 4
    assert sum(len(array.tasks[0]) for array in seen.plan.arrays) == 4
    assert ledger.store.manifest(TRAIN).abandoned


def test_a_manifest_that_was_written_twice_in_one_instant_is_read_again(driver, ledger, scheduler):
    ledger.submit_both()
    scheduler.in_queue("1_0", "RUNNING", TRAIN)
    path = ledger.store.root / "jobs" / f"{TRAIN}.json"
    seen = path.stat()
    assert first(driver).status == Status.RUNNING
    ledger.change(TRAIN, abandoned=True)
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert first(driver).status == Status.NEW


# --- packs ---------------------------------------------------------------------------------------------------------


def packed(ledger, **more):
    both = [[ledger.cells[0].cell_id, ledger.cells[1].cell_id]]
    ledger.submit(TRAIN, both, **more)
    ledger.submit(EVALUATE, both, "evaluate", after=TRAIN, **more)


def test_of_a_pack_that_died_the_cell_that_ran_is_guilty_and_the_rest_is_new(driver, ledger):
    packed(ledger)
    ledger.start(0)
    found = states(driver)
    assert [state.train.status for state in found[:2]] == [Status.FAILED, Status.NEW]
    assert (deaths(ledger, 0), deaths(ledger, 1)) == (["killed"], [])


def test_of_a_pack_that_never_began_every_cell_failed_to_launch(driver, ledger):
    packed(ledger)
    found = states(driver)
    assert [state.cause for state in found[:2]] == [Cause.LAUNCH_FAILURE] * 2


def test_of_a_pack_that_was_cancelled_every_cell_that_was_not_done_is_cancelled(driver, ledger):
    packed(ledger, cancelled=True)
    ledger.trained(cell=0)
    found = states(driver)
    assert found[0].train.status == Status.DONE
    assert found[1].cause is Cause.CANCELLED
    assert driver.look().plan.cells[1].action == "skip"


@pytest.mark.parametrize("accounted", [True, False])
def test_a_trained_cell_is_judged_although_another_of_its_pack_failed(driver, ledger, scheduler, accounted):
    """The job failed as a whole, so the evaluation that waited for it was dropped: nobody cancelled it."""
    packed(ledger)
    ledger.trained(cell=0)
    ledger.run("failed", 1, error={"type": "KeyError", "message": "'x'", "traceback": ""})
    if accounted:
        scheduler.accounted("2", "CANCELLED", EVALUATE, end=1000)
    seen = driver.look()
    assert [state.evaluate.status for state in seen.states[:2]] == [Status.NEW, Status.BLOCKED]
    assert (seen.plan.cells[0].action, seen.plan.cells[0].stages) == ("submit", ("evaluate",))
    assert deaths(ledger, 0) == []


# --- what is new is seen -------------------------------------------------------------------------------------------


def test_what_a_running_job_leaves_is_seen_at_the_next_look(driver, ledger, scheduler):
    ledger.submit_both()
    for job, token in (("1_0", TRAIN), ("2_0", EVALUATE)):
        scheduler.in_queue(job, "RUNNING", token)
    ledger.start()
    assert first(driver).steps == ()
    ledger.finalise(2)
    assert first(driver).steps == (2,)
    ledger.end("done")
    ledger.finalise(4)
    state = first(driver)
    assert (state.train.status, state.evaluate.status, len(state.missing)) == (Status.DONE, Status.RUNNING, 6)
    ledger.start(token=EVALUATE)
    ledger.evaluated(2)
    assert len(first(driver).missing) == 3
    ledger.evaluated(4)
    ledger.end("done", token=EVALUATE)
    assert first(driver).status == Status.DONE


def test_the_first_evaluation_is_measured_however_many_trainings_have_ended(driver, ledger):
    ledger.submit_both()
    for cell in (0, 1):
        ledger.run("done", cell, seconds=10.0)
        ledger.finalise(4, cell=cell)
    driver.look()
    ledger.evaluated(2)
    ledger.evaluated(4)
    ledger.run("done", token=EVALUATE, seconds=36_000.0)
    rows = {row["stage"]: row["cells"] for row in driver.look().plan.to_json()["measured"]}
    assert rows == {"train": 2, "evaluate": 1}


def test_measured_times_correct_the_plan(driver, ledger):
    before = driver.look().plan.cells[2].train.hours
    ledger.submit_both()
    for cell in (0, 1):
        ledger.start(cell)
        ledger.end("done", cell, seconds=36_000.0)
        ledger.finalise(4, cell=cell)
    seen = driver.look()
    assert seen.plan.cells[2].train.hours > 100 * before
    assert {row["stage"]: row["cells"] for row in seen.plan.to_json()["measured"]} == {"train": 2}
