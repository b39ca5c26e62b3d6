import os
import shlex
import stat
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm.jobs import (
    Job,
    JobKey,
    JobState,
    find_job,
    parse_job_id,
    parse_state,
    parse_time,
    query_history,
    query_live,
    query_queue,
    run_slurm,
)
from slurm.resources import SlurmError, SlurmUnreachable
from tests.private_slurm import PrivateSlurm, wait_until

# Every state and flag of https://slurm.schedmd.com/job_state_codes.html, written down independently of the module.
WAITING = {"PENDING", "RESV_DEL_HOLD"}
ON_NODES = {"RUNNING", "CONFIGURING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "POWER_UP_NODE"}
STOPPED = {"SUSPENDED", "STOPPED"}
STARTS_AGAIN = {"REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "EXPEDITING"}
OVER = {
    "COMPLETED": JobState.COMPLETED,
    "FAILED": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
    "TIMEOUT": JobState.TIMEOUT,
    "DEADLINE": JobState.TIMEOUT,
    "OUT_OF_MEMORY": JobState.OUT_OF_MEMORY,
    "NODE_FAIL": JobState.NODE_FAIL,
    "BOOT_FAIL": JobState.NODE_FAIL,
    "PREEMPTED": JobState.PREEMPTED,
}
SAYS_NOTHING = {"REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL", "UPDATE_DB", "UNKNOWN"}
KNOWN_WORDS = WAITING | ON_NODES | STOPPED | STARTS_AGAIN | set(OVER) | SAYS_NOTHING
Standing = dict[JobKey, tuple[JobState, str]]  # state and reason
SINCE = datetime(2026, 11, 1, tzinfo=UTC)


def query_ended(**asked: Any) -> dict[JobKey, Job] | None:
    """The last starts that have ended."""
    history = query_history(**asked)
    if history is None:
        return None
    return {key: starts[-1] for key, starts in history.items() if starts[-1].state.is_over}


def answers(text: str) -> Callable[[Sequence[str]], str]:
    return lambda _: text


# ---- reading words, ids and times


def test_every_state_of_slurm_is_told_apart() -> None:
    assert {parse_state(word) for word in WAITING} == {JobState.PENDING}
    assert {parse_state(word) for word in ON_NODES} == {JobState.RUNNING}
    assert {parse_state(word) for word in STOPPED} == {JobState.SUSPENDED}
    assert {parse_state(word) for word in STARTS_AGAIN} == {JobState.REQUEUED}
    assert {word: parse_state(word) for word in OVER} == OVER
    assert {parse_state(word) for word in SAYS_NOTHING} == {JobState.UNKNOWN}


@given(st.sampled_from(sorted(KNOWN_WORDS)), st.sampled_from(("", "+", " by 1000", " by 0")))
def test_what_slurm_adds_to_a_state_does_not_change_it(word: str, addition: str) -> None:
    assert parse_state(word + addition) is parse_state(word)


@given(st.text().filter(lambda words: words.split(maxsplit=1)[:1] != [] and words.split()[0] not in KNOWN_WORDS))
def test_a_word_that_is_new_is_unknown(words: str) -> None:
    if words.split()[0].rstrip("+").upper() not in KNOWN_WORDS:
        assert parse_state(words) is JobState.UNKNOWN


def test_no_words_are_unknown() -> None:
    assert parse_state("") is JobState.UNKNOWN
    assert parse_state("  ") is JobState.UNKNOWN


def test_unknown_is_neither_live_nor_over_and_the_rest_is_one_of_them() -> None:
    assert not JobState.UNKNOWN.is_live
    assert not JobState.UNKNOWN.is_over
    assert all(state.is_live != state.is_over for state in JobState if state is not JobState.UNKNOWN)
    assert {state for state in JobState if state.is_over} == set(OVER.values())


@st.composite
def written_ranges(draw: st.DrawFn) -> tuple[str, list[int]]:
    """A part of an array expression as Slurm writes it, and its indices by the definition of sbatch --array."""
    first, count, step = draw(st.integers(0, 5000)), draw(st.integers(1, 40)), draw(st.integers(1, 9))
    indices = [first + step * n for n in range(count)]
    if count == 1:
        return str(first), indices
    return f"{first}-{indices[-1]}" + ("" if step == 1 else f":{step}"), indices


@given(st.integers(1, 10**9), st.lists(written_ranges(), min_size=1, max_size=6), st.none() | st.integers(1, 512))
def test_ranges_are_expanded(array: int, parts: list[tuple[str, list[int]]], throttle: int | None) -> None:
    limit = "" if throttle is None else f"%{throttle}"
    expected: list[JobKey] = [(str(array), index) for _, indices in parts for index in indices]
    assert parse_job_id(f"{array}_[{','.join(text for text, _ in parts)}{limit}]") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", [("5", None)]),
        ("5_0", [("5", 0)]),
        ("5_4000000", [("5", 4000000)]),
        ("5_[1-3,7%2]", [("5", 1), ("5", 2), ("5", 3), ("5", 7)]),
        ("5_[0-9:3]", [("5", 0), ("5", 3), ("5", 6), ("5", 9)]),
        ("5_[4]", [("5", 4)]),
    ],
)
def test_job_ids(text: str, expected: list[JobKey]) -> None:
    assert parse_job_id(text) == expected


UNREADABLE = ("", "x", "5_", "5_[]", "5_[1,3,...]", "5_[1-]", "5_[1-3:0]", "5_[,]", "5.batch", "5+1")


@pytest.mark.parametrize("text", UNREADABLE)
def test_an_id_that_cannot_be_read_in_full_is_an_error(text: str) -> None:
    with pytest.raises(SlurmError, match="cannot read the job id"):
        parse_job_id(text)


def test_times() -> None:
    assert parse_time("1795473674") == datetime(2026, 11, 23, 22, 41, 14, tzinfo=UTC)
    assert [parse_time(text) for text in ("N/A", "Unknown", "None", "", "0")] == [None] * 5


# ---- queries, on answers as Slurm 22.05 gave them


def test_only_jobs_of_the_prefix_are_read() -> None:
    # The stranger's id is one that could not be read: names are compared first.
    text = "7_3|PENDING|1795473674|N/A||Priority|up-x|y\n5+1|RUNNING|1795473674|1795473675|n1|None|stranger\n"
    assert query_live("up-", run=answers(text)) == {
        ("7", 3): Job(
            job_id="7_3",
            array_job_id="7",
            index=3,
            name="up-x|y",
            state=JobState.PENDING,
            slurm_state="PENDING",
            reason="Priority",
            submit_time=datetime(2026, 11, 23, 22, 41, 14, tzinfo=UTC),
        )
    }


def test_live_keeps_what_it_does_not_understand_and_leaves_out_what_is_over() -> None:
    rows = [f"{n}|{word}|1795473674|N/A||None|up" for n, word in enumerate(sorted(KNOWN_WORDS | {"NEW_WORD"}))]
    live = query_live("up", run=answers("\n".join(rows)))
    assert {job.slurm_state for job in live.values()} == (KNOWN_WORDS | {"NEW_WORD"}) - set(OVER)
    assert len(query_queue("up", run=answers("\n".join(rows)))) == len(rows)


def test_one_query_carries_the_asked_user() -> None:
    asked: list[Sequence[str]] = []

    def run(command: Sequence[str]) -> str:
        asked.append(command)
        return ""

    assert query_live("up", run=run) == {}
    assert query_live("up", user="ada", run=run) == {}
    assert [[word for word in command if word.startswith("--user=")] for command in asked] == [
        [f"--user={os.getuid()}"],
        ["--user=ada"],
    ]


def test_a_torn_answer_is_an_error() -> None:
    with pytest.raises(SlurmError, match="cannot read this line"):
        query_live("up", run=answers("5_1|PENDING|17954"))


def test_ended_reads_outcomes_and_shared_records() -> None:
    text = (
        "5_0|COMPLETED|1795473674|1795473675|1795473678|0:0|cpu0|up-a\n"
        "5_1|OUT_OF_MEMORY|1795473674|1795473675|1795473678|0:125|cpu[0-1]|up-a\n"
        "5_[2-3]|CANCELLED by 0|1795473674|None|1795473678|0:0|None assigned|up-a\n"
        "5_4|RUNNING|1795473674|1795473675|Unknown|0:0|cpu0|up-a\n"
        "6|CANCELLED by 0|1795473674|1795473678|1795473678|0:0|None assigned|up-b\n"
    )
    ended = query_ended(job_ids=["5", "6"], since=SINCE, run=answers(text))
    assert ended is not None
    assert {key: (job.state, job.exit_code, job.signal, job.node) for key, job in ended.items()} == {
        ("5", 0): (JobState.COMPLETED, 0, 0, "cpu0"),
        ("5", 1): (JobState.OUT_OF_MEMORY, 0, 125, "cpu[0-1]"),
        ("5", 2): (JobState.CANCELLED, 0, 0, ""),
        ("5", 3): (JobState.CANCELLED, 0, 0, ""),
        ("6", None): (JobState.CANCELLED, 0, 0, ""),
    }
    assert ended["5", 3].job_id == "5_3"
    assert ended["5", 3].start_time is None
    assert ended["5", 0].end_time == datetime(2026, 11, 23, 22, 41, 18, tzinfo=UTC)
    found = find_job(ended, "6", 17)
    assert found is not None
    assert found.job_id == "6"
    assert find_job(ended, "5", 4) is None


def test_nothing_asked_is_nothing_ended() -> None:
    def run(_: Sequence[str]) -> str:
        raise AssertionError("Slurm is asked although there is no question")

    assert query_ended(since=SINCE, run=run) == {}


# ---- Slurm commands that fail


def fake_command(folder: Path, name: str, *, says: str, exit_code: int) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\nprintf '%s\\n' {shlex.quote(says)} >&2\nexit {exit_code}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    "says",
    [
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "slurm_load_jobs error: Socket timed out on send/recv operation",
        "slurm_load_jobs error: Zero Bytes were transmitted or received",
        "slurm_load_jobs error: Slurm backup controller in standby mode",
        "sacct: error: Problem talking to the database: Connection refused",
        "slurm_load_jobs error: Protocol authentication error",
        "squeue: fatal: Could not establish a configuration source",
    ],
)
def test_silence_is_told_from_refusal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says: str) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    fake_command(tmp_path, "squeue", says=says, exit_code=1)
    with pytest.raises(SlurmUnreachable) as caught:
        query_live("up")
    assert says in str(caught.value)


@pytest.mark.parametrize("exit_code", [0, 1])
def test_a_refusal_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exit_code: int) -> None:
    # squeue 22.05 ends with code 0 and an empty list when it does not know the user.
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    fake_command(tmp_path, "squeue", says="squeue: error: Invalid user: nobody-here", exit_code=exit_code)
    with pytest.raises(SlurmError, match="Invalid user: nobody-here") as caught:
        query_live("up", user="nobody-here")
    assert not isinstance(caught.value, SlurmUnreachable)


def test_a_missing_command_is_silence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmUnreachable, match="squeue: not found on PATH"):
        query_live("up")


def test_an_endless_command_is_silence() -> None:
    with pytest.raises(SlurmUnreachable, match=r"sleep: no answer in 0\.1 s"):
        run_slurm(["sleep", "100"], timeout_s=0.1)


# ---- against a real Slurm


def sbatch(cluster: PrivateSlurm, script: str, *options: str) -> str:
    """The id of a job that runs a line of shell."""
    return cluster.run("sbatch", "--parsable", "--output=/dev/null", *options, f"--wrap={script}").strip()


def wait_for(query: Callable[[], dict[JobKey, Job]], expected: Standing) -> None:
    """Poll until the jobs have those states and reasons; a failure shows those that they have."""
    seen: Standing = {}

    def is_so() -> bool:
        seen.clear()
        seen.update({key: (job.state, job.reason) for key, job in query().items()})
        return seen == expected

    try:
        wait_until(is_so, "the expected states")
    except TimeoutError:
        assert seen == expected


@pytest.mark.slurm
def test_tasks_of_an_array_in_every_state(on_slurm: PrivateSlurm, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    script = f"case $SLURM_ARRAY_TASK_ID in 0) ;; 1) exit 3 ;; *) while [ ! -e {gate} ]; do sleep 0.05; done ;; esac"
    job = sbatch(on_slurm, script, "--array=0-3", "--job-name=up-states-a")
    held = sbatch(on_slurm, "true", "--hold", "--job-name=up-states-b")
    sbatch(on_slurm, "true", "--hold", "--job-name=other")

    def queue() -> dict[JobKey, Job]:
        return query_queue("up-states")

    expected: Standing = {
        (job, 0): (JobState.COMPLETED, ""),
        (job, 1): (JobState.FAILED, "NonZeroExitCode"),
        (job, 2): (JobState.RUNNING, ""),
        (job, 3): (JobState.RUNNING, ""),
        (held, None): (JobState.PENDING, "JobHeldUser"),
    }
    wait_for(queue, expected)
    assert set(query_live("up-states")) == {(job, 2), (job, 3), (held, None)}
    running = queue()[job, 2]
    assert running.job_id == f"{job}_2"
    assert running.node in on_slurm.cpu_nodes
    assert running.submit_time is not None
    assert running.start_time is not None
    assert timedelta(0) <= running.start_time - running.submit_time < timedelta(minutes=2)
    assert abs(datetime.now(UTC) - running.submit_time) < timedelta(minutes=5)

    on_slurm.run("scancel", f"{job}_3")
    gate.touch()
    wait_for(queue, expected | {(job, 2): (JobState.COMPLETED, ""), (job, 3): (JobState.CANCELLED, "")})


@pytest.mark.slurm
def test_a_throttled_array_runs_one_task_at_a_time(on_slurm: PrivateSlurm, tmp_path: Path) -> None:
    script = f"while [ ! -e {tmp_path}/gate$SLURM_ARRAY_TASK_ID ]; do sleep 0.05; done"
    job = sbatch(on_slurm, script, "--array=0-2%1", "--job-name=up-throttle")
    waits = (JobState.PENDING, "JobArrayTaskLimit")
    runs = (JobState.RUNNING, "")
    wait_for(lambda: query_live("up-throttle"), {(job, 0): runs, (job, 1): waits, (job, 2): waits})
    (tmp_path / "gate0").touch()
    wait_for(lambda: query_live("up-throttle"), {(job, 1): runs, (job, 2): waits})


@pytest.mark.slurm
def test_a_sparse_array_is_read_alike_expanded_or_not(on_slurm: PrivateSlurm) -> None:
    indices = sorted({n * n % 997 for n in range(400)} | set(range(40, 80)) | set(range(900, 960, 3)))
    job = sbatch(on_slurm, "true", "--hold", f"--array={','.join(map(str, indices))}%7", "--job-name=up-sparse")

    def run_unexpanded(command: Sequence[str]) -> str:
        return run_slurm([word for word in command if word != "--array"])

    expanded = query_live("up-sparse")
    assert set(expanded) == {(job, index) for index in indices}
    unexpanded = query_live("up-sparse", run=run_unexpanded)
    assert len(run_unexpanded(["squeue", "-h", "--name=up-sparse"]).splitlines()) == 1
    assert unexpanded == expanded


@pytest.mark.slurm
def test_the_child_of_a_failed_task_is_cancelled_and_the_others_run(on_slurm: PrivateSlurm) -> None:
    parent = sbatch(on_slurm, "[ $SLURM_ARRAY_TASK_ID != 1 ]", "--array=0-2", "--job-name=up-parent")
    after = f"--dependency=aftercorr:{parent}"
    options = (after, "--array=0-2", "--kill-on-invalid-dep=yes", "--job-name=up-child-kill")
    child = sbatch(on_slurm, "true", *options)
    stuck = sbatch(on_slurm, "true", after, "--array=0-2", "--job-name=up-child-stay")
    done = (JobState.COMPLETED, "")
    dropped: Standing = {
        (child, 0): done,
        (child, 1): (JobState.CANCELLED, "DependencyNeverSatisfied"),
        (child, 2): done,
    }
    wait_for(lambda: query_queue("up-child-kill"), dropped)
    assert query_live("up-child-kill") == {}
    wait_for(lambda: query_live("up-child-stay"), {(stuck, 1): (JobState.PENDING, "DependencyNeverSatisfied")})


@pytest.mark.slurm
def test_tasks_cancelled_before_they_start_are_found(on_slurm: PrivateSlurm) -> None:
    job = sbatch(on_slurm, "true", "--hold", "--array=0-4", "--job-name=up-cancelled")
    other = sbatch(on_slurm, "true", "--hold", "--array=0-4", "--job-name=up-cancelled-by-name")
    assert len(query_live("up-cancelled")) == 10
    on_slurm.run("scancel", job)
    on_slurm.run("scancel", "--name=up-cancelled-by-name")
    cancelled = (JobState.CANCELLED, "JobHeldUser")
    expected: Standing = {(job, index): cancelled for index in range(5)} | {(other, None): cancelled}
    wait_for(lambda: query_queue("up-cancelled"), expected)
    found = find_job(query_queue("up-cancelled"), other, 3)
    assert found is not None
    assert found.state is JobState.CANCELLED


@pytest.mark.slurm
def test_a_users_own_settings_hide_nothing(on_slurm: PrivateSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    job = sbatch(on_slurm, "true", "--hold", "--job-name=up-settings")
    for name, value in (("PARTITION", "tpu-v5e"), ("STATES", "RUNNING"), ("FORMAT", "%i"), ("NAMES", "x")):
        monkeypatch.setenv(f"SQUEUE_{name}", value)
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    queue = query_live("up-settings")
    assert set(queue) == {(job, None)}
    assert queue[job, None].submit_time is not None


@pytest.mark.slurm
def test_a_requeued_job_is_live(on_slurm: PrivateSlurm, tmp_path: Path) -> None:
    script = f"while [ ! -e {tmp_path}/gate ]; do sleep 0.05; done"
    job = sbatch(on_slurm, script, "--requeue", "--job-name=up-requeue")
    wait_for(lambda: query_live("up-requeue"), {(job, None): (JobState.RUNNING, "")})
    on_slurm.run("scontrol", "requeue", job)
    wait_for(lambda: query_live("up-requeue"), {(job, None): (JobState.PENDING, "BeginTime")})


@pytest.mark.slurm
def test_a_cluster_that_is_gone_is_silence(
    on_slurm: PrivateSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = (on_slurm.folder / "slurm.conf").read_text().replace("munge.sock", "nothing.sock")
    (tmp_path / "slurm.conf").write_text(conf)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    with pytest.raises(SlurmUnreachable, match="squeue"):
        query_live("up")


@pytest.mark.slurm
def test_an_unknown_user_is_refused(on_slurm: PrivateSlurm) -> None:
    with pytest.raises(SlurmError, match="Invalid user"):
        query_live("up", user="nobody-here")


@pytest.mark.slurm
def test_without_accounts_files_decide(on_slurm: PrivateSlurm) -> None:
    assert query_ended(job_ids=["1"], since=SINCE) is None


@pytest.mark.slurm
def test_accounts_tell_what_has_ended(on_accounting_slurm: PrivateSlurm, tmp_path: Path) -> None:
    since = datetime.now(UTC)
    script = f"[ $SLURM_ARRAY_TASK_ID = 0 ] || exit 3; while [ ! -e {tmp_path}/gate ]; do sleep 0.05; done"
    job = sbatch(on_accounting_slurm, script, "--array=0-1", "--job-name=up-ended")
    stopped = sbatch(on_accounting_slurm, "sleep 100", "--array=0-3%1", "--job-name=up-stopped")
    running: Standing = {(job, 0): (JobState.RUNNING, ""), (stopped, 0): (JobState.RUNNING, "")}
    waits: Standing = {(stopped, index): (JobState.PENDING, "JobArrayTaskLimit") for index in range(1, 4)}
    wait_for(lambda: query_live("up-"), running | waits)
    on_accounting_slurm.run("scancel", stopped)

    def ended(*, since: datetime = since) -> dict[JobKey, Job]:
        found = query_ended(job_ids=[job, stopped], since=since)
        assert found is not None
        return found

    expected: Standing = {(stopped, index): (JobState.CANCELLED, "") for index in range(4)}
    expected[job, 1] = (JobState.FAILED, "")
    wait_for(ended, expected)
    assert ended()[job, 1].exit_code == 3
    assert ended()[job, 1].submit_time is not None
    assert ended()[stopped, 3].slurm_state == f"CANCELLED by {os.getuid()}"
    # An hour is allowed for: what ended earlier than that is another job that had the same id.
    wait_for(lambda: ended(since=datetime.now(UTC) + timedelta(hours=1)), {})
    (tmp_path / "gate").touch()
    wait_for(ended, expected | {(job, 0): (JobState.COMPLETED, "")})
    by_name = query_ended(names=["up-ended"], since=since)
    assert by_name is not None
    assert set(by_name) == {(job, 0), (job, 1)}


@pytest.mark.slurm
def test_accounts_that_do_not_answer_are_silence(
    on_accounting_slurm: PrivateSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (on_accounting_slurm.folder / "slurm.conf").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("AccountingStoragePort")] + ["AccountingStoragePort=9"]
    (tmp_path / "slurm.conf").write_text("\n".join(lines))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    with pytest.raises(SlurmUnreachable, match="Problem talking to the database"):
        query_ended(job_ids=["1"], since=SINCE)
