"""Causes of death from real study folders and made-up answers of a scheduler: see `scheduler_answers`."""

import pytest

from orchestrator.autopsy import LOG_TAIL_BYTES, examine, marker
from orchestrator.files import append_record
from orchestrator.submissions import GONE, Task
from slurm.failures import Cause
from tests.orchestrator.ledger import EVALUATE, TRAIN
from tests.orchestrator.scheduler_answers import NO_ACCOUNTING, NO_DATABASE, NO_SACCT, SILENT

PREEMPTED = "slurmstepd: error: *** JOB 1 ON cpu0 CANCELLED AT 2026-11-25T15:31:31 DUE TO PREEMPTION ***\n"
MEMORY = "slurmstepd: error: Detected 1 oom_kill event in StepId=1.0. Some of the step tasks have been OOM Killed.\n"


def only(ledger, corpses=None, *, patient=True):
    """The death of the one corpse there is; None if nobody can say yet."""
    findings = examine(ledger.store, ledger.corpses() if corpses is None else corpses, is_patient=lambda _: patient)
    assert len(findings.deaths) + len(findings.undecided) == 1
    return next(iter(findings.deaths.values()), None)


def deaths(ledger, **options):
    """Of the first cell, by attempt."""
    findings = examine(ledger.store, ledger.corpses(**options))
    return {key[3]: death for key, death in findings.deaths.items()}


def log(ledger, *parts, index=0, token=TRAIN):
    """The job's log: text by attempt, each after its marker, and before the first."""
    manifest = ledger.store.manifest(token)
    path = ledger.store.job_folder(token) / f"{manifest.job_id}_{index}_0_log.out"
    path.parent.mkdir(exist_ok=True)
    cell_id = ledger.cells[0].cell_id
    texts = [text if n == 0 else f"{marker('train', n, cell_id)}\n{text}" for n, text in enumerate(parts)]
    path.write_text("".join(texts))


@pytest.fixture
def died(ledger, scheduler):
    """The first cell began and left no end; squeue has forgotten its job."""
    ledger.submit_both()
    ledger.start(time=1000.0, node="cpu0")
    return ledger


# --- accounts ------------------------------------------------------------------------------------------------------


def test_accounts_tell_the_cause_and_the_node(died, scheduler):
    scheduler.accounted("1_0", "OUT_OF_MEMORY", TRAIN, start=999, end=1100, node="cpu0")
    death = only(died)
    assert (death.cause, death.node, death.progressed) == (Cause.OUT_OF_MEMORY, "cpu0", False)
    assert "OUT_OF_MEMORY" in death.detail


@pytest.mark.parametrize("word", ["RUNNING", "PENDING", "REQUEUED", "COMPLETING", "a new word"])
def test_accounts_that_lag_are_waited_for_and_then_done_without(died, scheduler, word):
    scheduler.accounted("1_0", word, TRAIN, start=999)
    assert only(died) is None
    assert only(died, patient=False).cause is Cause.KILLED


@pytest.mark.parametrize("answer", [NO_DATABASE, SILENT])
def test_accounts_that_do_not_answer_are_waited_for(died, scheduler, answer):
    scheduler.accounts = answer
    assert only(died) is None
    log(died, "", MEMORY)
    assert only(died, patient=False).cause is Cause.OUT_OF_MEMORY


@pytest.mark.parametrize("answer", [NO_ACCOUNTING, NO_SACCT])
def test_where_no_accounts_are_kept_the_log_decides(died, scheduler, answer):
    scheduler.accounts = answer
    assert only(died).cause is Cause.KILLED
    log(died, "", PREEMPTED)
    assert only(died).cause is Cause.PREEMPTION


def test_a_stranger_that_had_the_job_id_before_or_has_it_now_tells_nothing(died, scheduler):
    scheduler.accounted("1_0", "TIMEOUT", "somebody-elses", start=999, end=1100)
    assert only(died).cause is Cause.KILLED
    scheduler.accounted("1_0", "NODE_FAIL", TRAIN, start=999, end=1100)
    scheduler.accounted("1_0", "RUNNING", "somebody-elses", start=2000)
    assert only(died).cause is Cause.NODE_FAILURE


def test_each_start_of_a_requeued_job_is_matched_to_its_attempt_by_time(ledger, scheduler):
    ledger.submit_both()
    for number, began in ((1, 1000.0), (2, 2000.0), (3, 3000.0)):
        ledger.start(attempt=number, time=began)
    for state, start, end, node in (
        ("PREEMPTED", 995, 1500, "cpu0"),
        ("NODE_FAIL", 1990, 2500, "cpu1"),
        ("OUT_OF_MEMORY", 2996, 3500, "cpu2"),
    ):
        scheduler.accounted("1_0", state, TRAIN, start=start, end=end, node=node)
    found = deaths(ledger)
    assert [(found[n].cause, found[n].node) for n in (1, 2, 3)] == [
        (Cause.PREEMPTION, "cpu0"),
        (Cause.NODE_FAILURE, "cpu1"),
        (Cause.OUT_OF_MEMORY, "cpu2"),
    ]


def test_a_start_that_never_came_so_far_as_to_record_itself_does_not_shift_the_others(ledger, scheduler):
    ledger.submit_both()
    ledger.start(time=2000.0)
    scheduler.accounted("1_0", "NODE_FAIL", TRAIN, start=990, end=1000)
    scheduler.accounted("1_0", "PREEMPTED", TRAIN, start=1995, end=2500)
    scheduler.accounted("1_0", "PENDING", TRAIN)
    assert {n: d.cause for n, d in deaths(ledger, tasks={(TRAIN, 0): Task("pending")}).items()} == {1: Cause.PREEMPTION}


def test_an_attempt_before_the_last_of_its_job_is_judged_though_the_job_lives(ledger, scheduler):
    ledger.submit_both()
    ledger.start(time=1000.0)
    ledger.start(attempt=2, time=2000.0)
    scheduler.accounted("1_0", "REQUEUED", TRAIN, start=995, end=1500)
    scheduler.accounted("1_0", "RUNNING", TRAIN, start=1995)
    assert {n: d.cause for n, d in deaths(ledger, tasks={(TRAIN, 0): Task("running")}).items()} == {1: Cause.REQUEUE}


def test_a_job_that_never_began_its_work_failed_to_launch_on_its_node(ledger, scheduler):
    ledger.submit(TRAIN, [[ledger.cells[0].cell_id]])
    scheduler.accounted("1", "FAILED", TRAIN, start=999, end=1000, code="127:0", node="cpu3")
    death = only(ledger)
    assert (death.cause, death.node) == (Cause.LAUNCH_FAILURE, "cpu3")
    assert "exit code 127" in death.detail


def test_where_accounts_do_not_know_the_node_the_jobs_script_has_said_it(ledger, scheduler):
    ledger.submit_both()
    scheduler.accounts = NO_ACCOUNTING
    log(ledger, "upshot: on node cpu1\nupshot: on node cpu2\nbash: module: command not found\n")
    death = only(ledger, ledger.corpses()[:1])
    assert (death.cause, death.node) == (Cause.LAUNCH_FAILURE, "cpu2")  # it was requeued once
    log(ledger, "upshot: on node cpu2\n", "upshot: on node cpu1\n")
    ledger.start(time=1000.0, node="cpu0")
    assert only(ledger, ledger.corpses()[:1]).node == "cpu0"


def test_the_queues_reason_is_kept_where_the_accounts_have_the_last_word(ledger, scheduler):
    """squeue still says why; sacct has no column for it."""
    ledger.submit_both()
    ledger.trained()
    scheduler.accounted("2_0", "CANCELLED", EVALUATE, end=1000)
    for reason, cause in (
        ("DependencyNeverSatisfied", Cause.DEPENDENCY),
        ("launch failed requeued held", Cause.LAUNCH_FAILURE),
        ("BadConstraints", Cause.LAUNCH_FAILURE),
        ("None", Cause.CANCELLED),
    ):
        scheduler.queue = []
        scheduler.in_queue("2_0", "CANCELLED", EVALUATE, reason=reason)
        from slurm.jobs import query_queue

        [job] = query_queue("").values()
        [corpse] = ledger.corpses({(EVALUATE, 0): Task("gone", job)})
        assert only(ledger, [corpse]).cause is cause, reason


# --- how often the scheduler is asked ------------------------------------------------------------------------------


def test_however_many_died_accounts_and_nodes_are_asked_once(ledger, scheduler):
    for cell in range(4):
        token = f"{cell:012d}"
        ledger.submit(token, [[ledger.cells[cell].cell_id]])
        ledger.start(cell, token=token)
        scheduler.accounted(str(cell + 1), "TIMEOUT", token)
    corpses = [corpse for cell in range(4) for corpse in ledger.corpses(cell=cell)]
    findings = examine(ledger.store, corpses)
    assert [death.cause for death in findings.deaths.values()] == [Cause.TIME_LIMIT] * 4
    assert "--jobs=1,2,3,4" in scheduler.asked[0]
    assert scheduler.num_asked == {"sacct": 1, "sinfo": 1}


def test_what_the_process_recorded_itself_needs_no_scheduler(ledger, scheduler):
    ledger.submit_both()
    ledger.run("failed", error={"type": "OSError", "errno": 28, "message": "[Errno 28] No space left on device"})
    scheduler.accounts = scheduler.nodes = SILENT
    assert only(ledger).cause is Cause.FILE_SYSTEM
    assert scheduler.num_asked == {}


# --- the log, the node, the process's own word ---------------------------------------------------------------------


def test_each_attempt_is_told_by_its_own_part_of_the_log(ledger, scheduler):
    ledger.submit_both()
    for number in (1, 2, 3):
        ledger.start(attempt=number)
    log(ledger, "module load\n", "step=1\n" + PREEMPTED, "step=2\n", MEMORY)
    found = deaths(ledger)
    assert [found[n].cause for n in (1, 2, 3)] == [Cause.PREEMPTION, Cause.REQUEUE, Cause.OUT_OF_MEMORY]


def test_of_a_long_log_the_end_is_read(died):
    log(died, "", "x" * (2 * LOG_TAIL_BYTES) + "\n" + MEMORY)
    assert only(died).cause is Cause.OUT_OF_MEMORY


def test_the_log_of_a_job_that_is_no_array_has_no_index(died):
    log(died, "", MEMORY)
    folder = died.store.job_folder(TRAIN)
    (folder / "1_0_0_log.out").rename(folder / "1_0_log.out")
    assert only(died).cause is Cause.OUT_OF_MEMORY


@pytest.mark.parametrize(("state", "cause"), [("down*", Cause.NODE_FAILURE), ("idle", Cause.KILLED)])
def test_a_node_that_is_down_explains_what_nothing_else_does(died, scheduler, state, cause):
    scheduler.nodes = [f"cpu0|{state}", "cpu1|down"]
    assert only(died).cause is cause


def test_nodes_that_cannot_be_asked_about_are_no_obstacle(died, scheduler):
    scheduler.nodes = SILENT
    assert only(died).cause is Cause.KILLED


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        ({"type": "SIGUSR2", "early": False, "message": "", "traceback": ""}, Cause.TIME_LIMIT),
        ({"type": "SIGUSR2", "early": True, "message": "", "traceback": ""}, Cause.PREEMPTION),
        ({"type": "SIGTERM", "message": "", "traceback": ""}, Cause.CANCELLED),
        ({"type": "LockLost", "message": "another attempt took over", "traceback": ""}, Cause.KILLED),
    ],
)
def test_a_process_that_stopped_in_good_order_is_believed(ledger, scheduler, error, cause):
    ledger.submit_both()
    ledger.run("interrupted", error=error, step=None)
    assert only(ledger).cause is cause


def test_what_upshot_cancelled_was_cancelled_whatever_the_accounts_say(died, scheduler):
    died.change(TRAIN, cancelled=True)
    scheduler.accounts = NO_DATABASE
    death = only(died)
    assert (death.cause, death.detail) == (Cause.CANCELLED, "upshot cancel")


def test_on_this_machine_only_the_process_and_the_workers_folder_tell(ledger, scheduler):
    ledger.submit_both(executor="local", job_id=TRAIN)
    ledger.start()
    assert only(ledger).cause is Cause.KILLED
    home = ledger.store.job_folder(TRAIN)
    home.mkdir(parents=True)
    (home / "stopped").touch()
    assert only(ledger).cause is Cause.CANCELLED
    ledger.end("failed", error={"type": "MemoryError", "message": "", "traceback": ""})
    assert only(ledger).cause is Cause.OUT_OF_MEMORY
    assert scheduler.num_asked == {}


# --- getting on ----------------------------------------------------------------------------------------------------


def test_an_attempt_got_on_if_it_left_a_checkpoint_beyond_the_one_it_began_from(died, scheduler):
    scheduler.accounted("1_0", "TIMEOUT", TRAIN, start=999, end=1100)
    cell_id = died.cells[0].cell_id
    for step, time in ((0, 500.0), (4, 1001.0)):
        append_record(died.store.train_log(cell_id), {"event": "start", "step": step, "time": time})
    died.finalise(2, 4)
    assert not only(died).progressed
    resume = died.store.checkpoints(cell_id) / "resume" / "step_00000005"
    resume.mkdir(parents=True)
    assert not only(died).progressed  # it is not whole
    (resume / "DONE").touch()
    assert only(died).progressed
    assert only(died).is_free


def test_an_attempt_that_recorded_its_steps_is_believed(ledger, scheduler):
    ledger.submit_both()
    stopped = {"type": "SIGUSR2", "early": False, "message": "", "traceback": ""}
    ledger.start()
    common = {"event": "end", "stage": "train", "attempt": 1, "token": TRAIN, "outcome": "interrupted"}
    ledger.store.record_attempt(ledger.cells[0].cell_id, **common, error=stopped, step=9, first_step=4)
    assert only(ledger).progressed


def test_the_corpses_task_may_be_known_to_have_ended(died, scheduler):
    """The queue's own word that it is over needs no confirmation by accounts that lag."""
    from slurm.jobs import query_queue

    scheduler.in_queue("1_0", "TIMEOUT", TRAIN)
    scheduler.accounted("1_0", "RUNNING", TRAIN, start=999)
    [job] = query_queue("").values()
    assert GONE.job is None
    [corpse] = died.corpses({(TRAIN, 0): Task("gone", job)})
    assert only(died, [corpse]).cause is Cause.TIME_LIMIT
