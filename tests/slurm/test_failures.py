import errno
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm.cluster import Partition
from slurm.failures import Budgets, Cause, Death, Evidence, adjusted, cause_of, may_retry
from slurm.jobs import Job, JobState
from slurm.resources import Resources

STEPD = "slurmstepd: error: "
PARTITION = Partition(cpus_per_node=8, memory_gb_per_node=64, max_time_min=600)


def job(words: str, **more: object) -> Job:
    """A job of which Slurm says this; the state is the first word's."""
    told = {"job_id": "5", "array_job_id": "5", "index": None, "name": "upshot-s-0"}
    return Job(**told, state=JobState(words.split()[0]), slurm_state=words, **more)  # type: ignore[arg-type]


def death(cause: Cause, **more: object) -> Death:
    return Death(cause=cause, detail="", **more)  # type: ignore[arg-type]


# ---- the process's own record


@pytest.mark.parametrize(
    ("error_type", "message", "number", "cause"),
    [
        ("ZeroDivisionError", "division by zero", None, Cause.CODE_ERROR),
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB",
         None, Cause.ACCELERATOR_MEMORY),
        ("RuntimeError", "CUDA out of memory. Tried to allocate 2.00 GiB", None, Cause.ACCELERATOR_MEMORY),
        ("RuntimeError", "HIP out of memory. Tried to allocate 2.00 GiB", None, Cause.ACCELERATOR_MEMORY),
        ("RuntimeError", "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm.",
         None, Cause.ACCELERATOR_MEMORY),
        ("MemoryError", "Unable to allocate 30 GiB for an array", None, Cause.OUT_OF_MEMORY),
        ("RuntimeError", "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to"
         " allocate 1 bytes. Error code 12 (Cannot allocate memory)", None, Cause.OUT_OF_MEMORY),
        ("OSError", "[Errno 28] No space left on device", errno.ENOSPC, Cause.FILE_SYSTEM),
        ("OSError", "[Errno 122] Disk quota exceeded: '/home/me/weights'", errno.EDQUOT, Cause.FILE_SYSTEM),
        ("OSError", "[Errno 116] Stale file handle", errno.ESTALE, Cause.FILE_SYSTEM),
        ("OSError", "[Errno 5] Input/output error", errno.EIO, Cause.FILE_SYSTEM),
        ("SafetensorError", "Error while serializing: IoError(Os { code: 28, message: No space left on device })", None,
         Cause.FILE_SYSTEM),
        ("FileNotFoundError", "[Errno 2] No such file or directory: 'wrong'", errno.ENOENT, Cause.CODE_ERROR),
        ("PermissionError", "[Errno 13] Permission denied: 'x'", errno.EACCES, Cause.CODE_ERROR),
        ("RuntimeError", "CUDA error: uncorrectable ECC error encountered", None, Cause.NODE_FAILURE),
        ("LockLost", "another attempt took over at step 3", None, Cause.KILLED),
        ("NoAcceleratorError", "torch finds none", None, Cause.LAUNCH_FAILURE),
        ("MeetingError", "rank 0 did not come", None, Cause.LAUNCH_FAILURE),
    ],
)  # fmt: skip
def test_an_exception_is_told_by_its_class_its_number_and_its_words(
    error_type: str, message: str, number: int | None, cause: Cause
) -> None:
    found, told = cause_of(Evidence(error_type=error_type, error_message=message, error_number=number))
    assert found is cause
    assert error_type in told
    assert message[:20] in told


def test_an_exception_counts_more_than_what_slurm_says_of_the_job() -> None:
    evidence = Evidence(error_type="ValueError", error_message="a bug\nits second line", job=job("TIMEOUT"))
    assert cause_of(evidence) == (Cause.CODE_ERROR, "ValueError: a bug")


def test_an_io_error_on_a_node_that_is_down_is_the_nodes() -> None:
    failing = Evidence(error_type="OSError", error_message="[Errno 5] Input/output error", error_number=errno.EIO)
    assert cause_of(replace(failing, node_is_down=True))[0] is Cause.NODE_FAILURE
    assert cause_of(Evidence(error_type="KeyError", error_message="'x'", node_is_down=True))[0] is Cause.CODE_ERROR


# ---- Slurm's word, and slurmstepd's

LOGS = [
    ("*** STEP 12.0 ON cpu0 CANCELLED AT 2026-11-25T15:31:31 DUE TO TIME LIMIT ***", Cause.TIME_LIMIT),
    ("*** JOB 12 ON cpu0 CANCELLED AT 2026-11-25T15:31:31 DUE TO TIME LIMIT ***", Cause.TIME_LIMIT),
    ("*** JOB 12 ON cpu0 CANCELLED AT 2026-11-25T15:31:31 DUE TO PREEMPTION ***", Cause.PREEMPTION),
    (
        "*** JOB 12 ON cpu0 CANCELLED AT 2026-11-25T15:31:31 DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***",
        Cause.NODE_FAILURE,
    ),
    ("*** JOB 5 ON cpu0 CANCELLED AT 2026-11-25T15:31:31 ***", Cause.CANCELLED),
    ("*** STEP 5.0 ON cpu0 CANCELLED AT 2026-11-25T15:31:31 DUE TO JOB REQUEUE ***", Cause.REQUEUE),
    (
        "Detected 1 oom_kill event in StepId=5.0. Some of the step tasks have been OOM Killed.",
        Cause.OUT_OF_MEMORY,
    ),
    ("Detected 1 oom-kill event(s) in StepId=5.batch cgroup.", Cause.OUT_OF_MEMORY),
    ("Step 5.batch exceeded memory limit (3145728 > 2097152), being killed", Cause.OUT_OF_MEMORY),
    ("Job 5 exceeded memory limit (3145728 > 2097152), being killed", Cause.OUT_OF_MEMORY),
]


@pytest.mark.parametrize(("line", "cause"), LOGS)
def test_without_accounts_slurmstepds_lines_tell(line: str, cause: Cause) -> None:
    log = f"event=train step=3\n{STEPD}{line}\nsrun: error: cpu0: task 0: Terminated\n"
    assert cause_of(Evidence(log=log)) == (cause, f"{STEPD}{line}")


def test_a_full_disk_that_only_the_log_tells_of() -> None:
    log = "Exception ignored in: <_io.TextIOWrapper>\nOSError: [Errno 28] No space left on device\n"
    assert cause_of(Evidence(log=log)) == (Cause.FILE_SYSTEM, "OSError: [Errno 28] No space left on device")


def test_memory_that_ran_out_counts_more_than_the_cancelled_step_that_follows() -> None:
    log = f"{STEPD}*** STEP 5.0 ON cpu0 CANCELLED AT 2026-11-25T15:31:31 ***\n{STEPD}Detected 1 oom_kill event in"
    assert cause_of(Evidence(log=f"{log} StepId=5.0. Some of the step tasks have been OOM Killed."))[0] is (
        Cause.OUT_OF_MEMORY
    )


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("OUT_OF_MEMORY", Cause.OUT_OF_MEMORY),
        ("TIMEOUT", Cause.TIME_LIMIT),
        ("NODE_FAIL", Cause.NODE_FAILURE),
        ("PREEMPTED", Cause.PREEMPTION),
        ("REQUEUED", Cause.REQUEUE),
        ("CANCELLED by 1000", Cause.CANCELLED),
    ],
)
def test_the_schedulers_word_for_the_end_tells(words: str, cause: Cause) -> None:
    assert cause_of(Evidence(job=job(words))) == (cause, f"Slurm says {words}")


def test_a_cancelled_job_whose_log_knows_better_died_of_what_the_log_says() -> None:
    evidence = Evidence(job=job("CANCELLED by 0"), log=STEPD + LOGS[0][0])
    assert cause_of(evidence)[0] is Cause.TIME_LIMIT


def test_a_dependency_that_was_never_met_is_no_cancellation_by_a_person() -> None:
    never = Evidence(began=False, job=job("CANCELLED", reason="DependencyNeverSatisfied"))
    assert cause_of(never)[0] is Cause.DEPENDENCY
    assert cause_of(replace(never, began=True))[0] is Cause.CANCELLED


@pytest.mark.parametrize("words", ["FAILED", "COMPLETED", "UNKNOWN"])
def test_a_word_that_says_nothing_of_the_cause_leaves_it_to_the_log_and_the_node(words: str) -> None:
    evidence = Evidence(job=job(words, exit_code=0, signal=9))
    assert cause_of(replace(evidence, log=STEPD + LOGS[3][0]))[0] is Cause.NODE_FAILURE
    assert cause_of(replace(evidence, node_is_down=True)) == (Cause.NODE_FAILURE, "its node is down")
    cause, told = cause_of(evidence)
    assert cause is Cause.KILLED
    assert f"Slurm says {words}, signal 9" in told


# ---- a job that starts again


@pytest.mark.parametrize(
    ("evidence", "cause"),
    [
        (Evidence(stopped_by="SIGUSR2"), Cause.TIME_LIMIT),
        (Evidence(stopped_by="SIGUSR2", history=job("PREEMPTED")), Cause.TIME_LIMIT),
        (Evidence(stopped_by="SIGUSR2", stopped_early=True), Cause.PREEMPTION),
        (Evidence(stopped_by="SIGUSR2", stopped_early=True, history=job("NODE_FAIL")), Cause.NODE_FAILURE),
        (Evidence(history=job("PREEMPTED")), Cause.PREEMPTION),
        (Evidence(history=job("NODE_FAIL")), Cause.NODE_FAILURE),
        (Evidence(history=job("REQUEUED")), Cause.REQUEUE),
        (Evidence(history=job("REQUEUED"), log=STEPD + LOGS[2][0]), Cause.REQUEUE),
        (Evidence(log=STEPD + LOGS[2][0]), Cause.PREEMPTION),
        (Evidence(log=STEPD + LOGS[5][0]), Cause.REQUEUE),
        (Evidence(node_is_down=True), Cause.NODE_FAILURE),
        (Evidence(), Cause.REQUEUE),
        (Evidence(job=job("COMPLETED")), Cause.REQUEUE),  # the last start's word is not about an earlier one
    ],
)
def test_a_start_that_was_followed_by_another_of_the_same_job(evidence: Evidence, cause: Cause) -> None:
    assert cause_of(replace(evidence, started_again=True))[0] is cause


# ---- silence


def test_a_job_that_ended_before_the_work_began_failed_to_launch() -> None:
    cause, told = cause_of(Evidence(began=False, job=job("FAILED", exit_code=127)))
    assert cause is Cause.LAUNCH_FAILURE
    assert "exit code 127" in told
    assert cause_of(Evidence(began=False))[0] is Cause.LAUNCH_FAILURE
    assert cause_of(Evidence(began=False, job=job("NODE_FAIL")))[0] is Cause.NODE_FAILURE


@pytest.mark.parametrize(
    ("signal", "early", "cause"),
    [
        ("SIGUSR2", False, Cause.TIME_LIMIT),
        ("SIGUSR2", True, Cause.PREEMPTION),
        ("SIGTERM", False, Cause.CANCELLED),
        ("SIGTERM", True, Cause.CANCELLED),
    ],
)
def test_a_process_that_stopped_in_good_order_says_by_which_signal(signal: str, early: bool, cause: Cause) -> None:
    found, told = cause_of(Evidence(stopped_by=signal, stopped_early=early))
    assert found is cause
    assert signal in told


def test_nothing_at_all_is_killed_and_never_success() -> None:
    assert cause_of(Evidence()) == (Cause.KILLED, "it ended without a record; nothing says why")


texts = st.sampled_from(["", STEPD, *(STEPD + line for line, _ in LOGS)]) | st.text()


@given(
    st.builds(
        Evidence,
        began=st.booleans(),
        error_type=st.none() | st.sampled_from(["OSError", "RuntimeError", "OutOfMemoryError"]),
        error_message=texts,
        error_number=st.none() | st.integers(0, 200),
        stopped_by=st.none() | st.sampled_from(["SIGUSR2", "SIGTERM"]),
        stopped_early=st.booleans(),
        job=st.none() | st.sampled_from(JobState).map(job),
        history=st.none() | st.sampled_from(JobState).map(job),
        log=texts,
        node_is_down=st.booleans(),
        started_again=st.booleans(),
    )
)
def test_whatever_is_known_there_is_a_cause_and_a_line_that_tells_of_it(evidence: Evidence) -> None:
    cause, told = cause_of(evidence)
    assert isinstance(cause, Cause)
    assert told
    assert "\n" not in told


# ---- budgets

RETRIED = st.sampled_from([c for c in Cause if c is not Cause.TIME_LIMIT])


@given(RETRIED, st.integers(0, 6), st.lists(st.sampled_from(Cause), max_size=20))
def test_a_budget_is_spent_by_deaths_of_its_own_cause(cause: Cause, budget: int, others: list[Cause]) -> None:
    strangers = [death(other) for other in others if other is not cause]
    within = [*strangers, *[death(cause)] * budget]
    budgets: Budgets = {cause: budget}
    if budget:
        assert may_retry(within, budgets)[0]
    assert not may_retry([*within, death(cause)], budgets)[0]


@given(RETRIED, st.integers(1, 100))
def test_a_cause_without_a_limit_is_answered_any_number_of_times(cause: Cause, times: int) -> None:
    assert may_retry([death(cause)] * times, {cause: None})[0]
    assert not may_retry([death(cause)] * times, {})[0]


def test_a_time_limit_costs_only_where_nothing_was_gained() -> None:
    budgets: Budgets = {Cause.TIME_LIMIT: 1}
    gained, lost = death(Cause.TIME_LIMIT, progressed=True), death(Cause.TIME_LIMIT)
    assert may_retry([gained] * 50, budgets)[0]
    assert may_retry([*[gained] * 50, lost], budgets)[0]
    assert not may_retry([lost, gained, lost], budgets)[0]
    assert may_retry([lost, lost, gained], budgets)[0]


def test_other_causes_cost_even_where_something_was_gained() -> None:
    assert not may_retry([death(Cause.KILLED, progressed=True)] * 2, {Cause.KILLED: 1})[0]


# ---- what the next start asks for


@st.composite
def requests(draw: st.DrawFn) -> tuple[Resources, Partition]:
    memory, minutes = draw(st.floats(0.5, 4096)), draw(st.integers(1, 20_000))
    partition = Partition(memory_gb_per_node=memory, max_time_min=minutes)
    asked = Resources(
        mem_gb=draw(st.floats(0.1, memory)),
        time_min=draw(st.integers(1, minutes)),
        exclude=draw(st.sampled_from([(), ("cpu7",)])),
    )
    return asked, partition


deaths = st.lists(
    st.builds(
        Death,
        cause=st.sampled_from(Cause),
        detail=st.just(""),
        node=st.sampled_from(["", "cpu0", "cpu1"]),
        progressed=st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


@given(requests(), deaths)
def test_the_next_start_asks_for_no_less_and_for_no_more_than_there_is(
    request: tuple[Resources, Partition], history: list[Death]
) -> None:
    asked, partition = request
    now, _ = adjusted(asked, history, partition)
    assert asked.mem_gb <= now.mem_gb <= partition.memory_gb_per_node
    assert asked.time_min <= now.time_min <= partition.max_time_min
    assert set(asked.exclude) <= set(now.exclude)
    same = {"mem_gb": asked.mem_gb, "time_min": asked.time_min, "exclude": asked.exclude}
    assert replace(now, **same) == asked


@given(requests(), deaths, deaths)
def test_a_longer_history_never_asks_for_less(
    request: tuple[Resources, Partition], before: list[Death], after: list[Death]
) -> None:
    asked, partition = request
    one, two = (adjusted(asked, history, partition)[0] for history in (before, [*before, *after]))
    assert one.mem_gb <= two.mem_gb
    assert one.time_min <= two.time_min
    assert set(asked.exclude) <= set(two.exclude)


@given(requests(), deaths)
def test_another_start_is_in_vain_only_after_a_death_with_all_that_there_is(
    request: tuple[Resources, Partition], history: list[Death]
) -> None:
    asked, partition = request
    vain = adjusted(asked, history, partition)[1]
    died_with = adjusted(asked, [*history[:-1], death(Cause.KILLED)], partition)[0]
    most = {
        Cause.OUT_OF_MEMORY: died_with.mem_gb >= partition.memory_gb_per_node,
        Cause.TIME_LIMIT: died_with.time_min >= partition.max_time_min and not history[-1].progressed,
    }
    assert (vain is not None) == most.get(history[-1].cause, False)


def test_memory_is_doubled_up_to_the_nodes_and_then_in_vain() -> None:
    asked, oom = Resources(mem_gb=24, time_min=10), death(Cause.OUT_OF_MEMORY)
    found = [adjusted(asked, [oom] * times, PARTITION) for times in (1, 2, 3)]
    assert [resources.mem_gb for resources, _ in found] == [48, 64, 64]
    assert [vain is not None for _, vain in found] == [False, False, True]
    assert "64" in str(found[2][1])


def test_nodes_that_failed_are_left_out_and_others_are_not() -> None:
    asked = Resources(mem_gb=1, time_min=1, exclude=("old",))
    history = [
        death(Cause.NODE_FAILURE, node="long ago"),
        death(Cause.PREEMPTION, node="busy"),
        death(Cause.NODE_FAILURE, node="bad"),
        death(Cause.LAUNCH_FAILURE, node="worse"),
        death(Cause.LAUNCH_FAILURE),
    ]
    assert adjusted(asked, history, PARTITION)[0].exclude == ("bad", "old", "worse")
    assert adjusted(asked, [*history, death(Cause.KILLED)], PARTITION)[0].exclude == ("old",)
