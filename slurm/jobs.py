"""What Slurm knows about our jobs: one squeue or one sacct for all of them, never a call per job.

squeue tells what is live and, for MinJobAge seconds (300 by default), what has just ended; sacct tells what has ended
where the site keeps accounts. A word that Slurm may say tomorrow is UNKNOWN, and unknown is neither done nor failed.
"""

import os
import re
import subprocess
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from slurm.resources import SlurmError, SlurmUnreachable

JobKey = tuple[str, int | None]
"""(id of the array or the job, index in the array; None for a job that is no array)"""
Run = Callable[[Sequence[str]], str]


class JobState(StrEnum):
    """Where a job stands, in as many words as a decision about it needs."""

    PENDING = "PENDING"  # waits for its first start
    RUNNING = "RUNNING"  # holds its nodes: starting, running, or ending without an outcome yet
    SUSPENDED = "SUSPENDED"  # holds its nodes, but is stopped
    REQUEUED = "REQUEUED"  # was taken off its nodes and waits to start again
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    NODE_FAIL = "NODE_FAIL"
    PREEMPTED = "PREEMPTED"
    UNKNOWN = "UNKNOWN"  # neither live for certain nor over for certain

    @property
    def is_over(self) -> bool:
        """Whether it will not run again under this id. False for UNKNOWN."""
        return self in _OVER

    @property
    def is_live(self) -> bool:
        """Whether it waits, runs, or will run again. False for UNKNOWN."""
        return not self.is_over and self is not JobState.UNKNOWN


_OVER: Final = frozenset(
    {
        JobState.COMPLETED,
        JobState.FAILED,
        JobState.CANCELLED,
        JobState.TIMEOUT,
        JobState.OUT_OF_MEMORY,
        JobState.NODE_FAIL,
        JobState.PREEMPTED,
    }
)
# Base states and flags of https://slurm.schedmd.com/job_state_codes.html. squeue and sacct show a flag in place of the
# base state; REVOKED (a federation's sibling runs elsewhere), LAUNCH_FAILED, RECONFIG_FAIL and UPDATE_DB do not tell
# how the job stands, so they are left out and become UNKNOWN.
_STATE_OF_WORD: Final = {
    **{state.value: state for state in JobState},
    "RESV_DEL_HOLD": JobState.PENDING,
    "CONFIGURING": JobState.RUNNING,
    "POWER_UP_NODE": JobState.RUNNING,
    "RESIZING": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "STAGE_OUT": JobState.RUNNING,
    "COMPLETING": JobState.RUNNING,
    "STOPPED": JobState.SUSPENDED,
    "REQUEUE_FED": JobState.REQUEUED,
    "REQUEUE_HOLD": JobState.REQUEUED,
    "SPECIAL_EXIT": JobState.REQUEUED,
    "EXPEDITING": JobState.REQUEUED,
    "BOOT_FAIL": JobState.NODE_FAIL,
    "DEADLINE": JobState.TIMEOUT,
}

# What the commands print when the controller, the database or munge does not answer.
_SILENCE: Final = re.compile(
    r"unable to contact|connection (refused|failure|reset)|connect failure|timed out|zero bytes|standby mode"
    r"|problem talking to the database|authentication (error|credential)|no route to host|unreachable"
    r"|could not establish a configuration source|unable to process configuration file",
    re.IGNORECASE,
)
_JOB_ID: Final = re.compile(r"(?P<array>\d+)(?:_(?P<index>\d+)|_\[(?P<ranges>[\d,:-]+)(?:%\d+)?\])?")
_RANGE: Final = re.compile(r"(?P<first>\d+)(?:-(?P<last>\d+)(?::(?P<step>[1-9]\d*))?)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job or array task, as Slurm last described it.

    Times are in UTC, None where Slurm gave none; `end_time`, `exit_code` and `signal` are known only from sacct.
    """

    job_id: str  # "123_4", or "123" for a job that is no array
    array_job_id: str
    index: int | None
    name: str
    state: JobState
    slurm_state: str  # Slurm's own words, such as "CANCELLED by 1000"
    reason: str = ""  # why it waits ("Priority", "DependencyNeverSatisfied"), or why it ended; from squeue
    node: str = ""  # Slurm's list expression, such as "cpu[0-3]"
    submit_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    exit_code: int | None = None
    signal: int | None = None


def query_queue(name_prefix: str, user: str | None = None, run: Run | None = None) -> dict[JobKey, Job]:
    """Everything the controller remembers of the user's jobs whose name starts so, also what ended a moment ago.

    Where waiting tasks were cancelled by name or user they share one record, under the index None: see `find_job`.

    Args:
        name_prefix: the start of the job names, such as the study's token.
        user: a user's name or number; None for the user who asks.
        run: what runs a command and returns its output.

    Raises:
        SlurmUnreachable: Slurm did not answer.
        SlurmError: it answered something that cannot be read.
    """
    # --array puts every task on its own line, --all shows hidden partitions, and --states=all leaves the choice to us:
    # which flags squeue shows by default has changed over the years. The name is last: it may hold the separator.
    fields = "%i|%T|%V|%S|%N|%r|%j"
    who = user if user is not None else str(os.getuid())
    command = ["squeue", "--array", "--all", "--noheader", "--states=all", f"--user={who}", f"--format={fields}"]
    rows = _rows((run or run_slurm)(command), fields)
    return dict(_keyed((row for row in rows if row["%j"].startswith(name_prefix)), "%i", _from_squeue))


def query_live(name_prefix: str, user: str | None = None, run: Run | None = None) -> dict[JobKey, Job]:
    """The part of `query_queue` that is not over: pending, running, requeued, and what we have no word for."""
    queue = query_queue(name_prefix, user, run)
    return {key: job for key, job in queue.items() if not job.state.is_over}


def query_history(
    *,
    since: datetime,
    job_ids: Collection[str] = (),
    names: Collection[str] = (),
    user: str | None = None,
    run: Run | None = None,
) -> dict[JobKey, list[Job]] | None:
    """Every start of those jobs that the site's accounts know, oldest first; None where it keeps none (files decide).

    A job that was requeued has a record for each start. Prefer ids: sacct does not find a task that was cancelled
    before it became eligible by its name. Accounts lag by some seconds.

    Args:
        since: the earliest submission among them; keeps strangers out whose ids have been used again.
        job_ids: of jobs and of whole arrays.
        names: of jobs, in full; used where there are no ids.
        user: a user's name or number; None for the user who asks.
        run: what runs a command and returns its output.

    Raises:
        SlurmUnreachable: the accounts did not answer.
        SlurmError: they answered something that cannot be read.
    """
    if not job_ids and not names:
        return {}
    which = f"--jobs={','.join(sorted(job_ids))}" if job_ids else f"--name={','.join(sorted(names))}"
    fields = "JobID,State,Submit,Start,End,ExitCode,NodeList,JobName"
    command = ["sacct", "--allocations", "--duplicates", "--parsable2", "--noheader", which, f"--format={fields}"]
    # Local time is what every version of sacct reads; an hour covers clocks that disagree and the end of summer time.
    start = (since - timedelta(hours=1)).astimezone().strftime("%Y-%m-%dT%H:%M:%S")
    command += [f"--user={user if user is not None else os.getuid()}", f"--starttime={start}"]
    try:
        output = (run or run_slurm)(command)
    except SlurmError as error:
        if "accounting storage is disabled" in str(error):
            return None
        raise
    history: dict[JobKey, list[Job]] = {}
    for key, job in _keyed(_rows(output, fields.replace(",", "|")), "JobID", _from_sacct):
        history.setdefault(key, []).append(job)
    return {key: sorted(jobs, key=_by_submission) for key, jobs in history.items()}


def _by_submission(job: Job) -> tuple[datetime, datetime]:
    never = datetime.max.replace(tzinfo=UTC)
    return job.submit_time or never, job.start_time or never


def query_down_nodes(run: Run | None = None) -> frozenset[str]:
    """The nodes that do not answer, were taken down, or are drained: what ran there may have died of it.

    Raises:
        SlurmUnreachable: Slurm did not answer.
        SlurmError: it refused.
    """
    output = (run or run_slurm)(["sinfo", "--noheader", "--Node", "--format=%N|%T"])
    rows = (line.partition("|") for line in output.splitlines())
    return frozenset(
        node for node, _, state in rows if re.match(r"(down|fail|drain|unknown|error)", state) or "*" in state
    )


def find_job(jobs: Mapping[JobKey, Job], array_job_id: str, index: int | None) -> Job | None:
    """The record of a task, the one that it shares with other tasks of its array, or that of a job that is no array.

    `scancel ID` leaves a record for every waiting task, `scancel --name` or `--user` one without indices for all of
    them, `scancel ID_INDEX` none at all. An array of one task that was submitted as a plain job has no index either.
    """
    return jobs.get((array_job_id, index)) or jobs.get((array_job_id, None))


def cancel(job_ids: Sequence[str], run: Run | None = None) -> None:
    """Ends jobs and whole arrays; those that have ended are left as they are.

    Raises:
        SlurmUnreachable: Slurm did not answer.
        SlurmError: it refused.
    """
    (run or run_slurm)(["scancel", "--quiet", *job_ids])


def requeue(job_id: str, run: Run | None = None) -> None:
    """Ends a running job and lets it wait for another start under the same id.

    Raises:
        SlurmUnreachable: Slurm did not answer.
        SlurmError: it refused, as where jobs may not be requeued.
    """
    (run or run_slurm)(["scontrol", "requeue", job_id])


def run_slurm(command: Sequence[str], *, timeout_s: float = 120.0) -> str:
    """Standard output of a Slurm command that only asks.

    Raises:
        SlurmUnreachable: it is not installed, or nobody answered it.
        SlurmError: Slurm refused it.
    """
    # A user's own SQUEUE_PARTITION or SACCT_FORMAT would hide jobs. Without SLURM_BITSTR_LEN=0 the indices of sparse
    # arrays end in "..."; seconds since 1970 spare us the time zones of login node and controller.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SACCT_"))}
    env |= {"SLURM_BITSTR_LEN": "0", "SLURM_TIME_FORMAT": "%s"}
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
        )
    except FileNotFoundError as error:
        raise SlurmUnreachable(f"{command[0]}: not found on PATH; is this a login node of the cluster?") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmUnreachable(f"{command[0]}: no answer in {timeout_s:g} s") from error
    # squeue answers an unknown user with an empty list and exit code 0.
    if done.returncode or "error: Invalid user" in done.stderr:
        said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise (SlurmUnreachable if _SILENCE.search(said) else SlurmError)(f"{command[0]}: {said}")
    return done.stdout


def parse_state(words: str) -> JobState:
    """The state of Slurm's words for it ("RUNNING", "CANCELLED by 1000"); UNKNOWN for words that are new to us."""
    first = words.split(maxsplit=1)[:1]
    return _STATE_OF_WORD.get(first[0].rstrip("+").upper(), JobState.UNKNOWN) if first else JobState.UNKNOWN


def parse_job_id(text: str) -> list[JobKey]:
    """The jobs that an id stands for: "5", "5_3", or the waiting tasks of an array, "5_[1-3,7%2]" and "5_[0-30:3]".

    Raises:
        SlurmError: the id has another form, such as a range that Slurm cut short ("5_[1,3,...]"): a task left out
            would be taken for missing.
    """
    match = _JOB_ID.fullmatch(text)
    if match is None:
        raise SlurmError(f"cannot read the job id {text!r}")
    if match["index"] is not None:
        return [(match["array"], int(match["index"]))]
    if match["ranges"] is None:
        return [(match["array"], None)]
    return [(match["array"], index) for part in match["ranges"].split(",") for index in _expand(part, text)]


def parse_time(text: str) -> datetime | None:
    """The moment of a time in seconds since 1970; None for "N/A", "Unknown", "None" and the like."""
    return datetime.fromtimestamp(int(text), UTC) if text.isdecimal() and int(text) > 0 else None


def _expand(part: str, text: str) -> range:
    match = _RANGE.fullmatch(part)
    if match is None:
        raise SlurmError(f"cannot read the job id {text!r}")
    first = int(match["first"])
    return range(first, int(match["last"] or first) + 1, int(match["step"] or 1))


def _rows(output: str, fields: str) -> list[dict[str, str]]:
    names = fields.split("|")
    rows = []
    for line in filter(None, output.split("\n")):  # a name may hold what splitlines would split at
        values = line.split("|", maxsplit=len(names) - 1)
        if len(values) != len(names):
            raise SlurmError(f"cannot read this line of Slurm's answer (wanted {fields}): {line!r}")
        rows.append(dict(zip(names, values, strict=True)))
    return rows


def _from_squeue(row: Mapping[str, str], key: JobKey) -> Job:
    return Job(
        job_id=_job_id(key),
        array_job_id=key[0],
        index=key[1],
        name=row["%j"],
        state=parse_state(row["%T"]),
        slurm_state=row["%T"],
        reason=_known(row["%r"]),
        node=_known(row["%N"]),
        submit_time=parse_time(row["%V"]),
        start_time=parse_time(row["%S"]),
    )


def _from_sacct(row: Mapping[str, str], key: JobKey) -> Job:
    exit_code, signal = _exit_code(row["ExitCode"])
    return Job(
        job_id=_job_id(key),
        array_job_id=key[0],
        index=key[1],
        name=row["JobName"],
        state=parse_state(row["State"]),
        slurm_state=row["State"],
        node=_known(row["NodeList"]),
        submit_time=parse_time(row["Submit"]),
        start_time=parse_time(row["Start"]),
        end_time=parse_time(row["End"]),
        exit_code=exit_code,
        signal=signal,
    )


def _keyed(
    rows: Iterable[Mapping[str, str]], id_field: str, to_job: Callable[[Mapping[str, str], JobKey], Job]
) -> Iterator[tuple[JobKey, Job]]:
    """The jobs with their keys; a row may carry an id that stands for several."""
    for row in rows:
        for key in parse_job_id(row[id_field]):
            yield key, to_job(row, key)


def _job_id(key: JobKey) -> str:
    return key[0] if key[1] is None else f"{key[0]}_{key[1]}"


def _exit_code(text: str) -> tuple[int | None, int | None]:
    code, _, signal = text.partition(":")
    return (int(code), int(signal)) if code.isdecimal() and signal.isdecimal() else (None, None)


def _known(text: str) -> str:
    return "" if text in ("None", "None assigned", "Unknown") else text
