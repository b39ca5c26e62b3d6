"""Why a job died, and what is to be done about it.

What tells: the error that the process recorded itself, Slurm's word for the job's end, what slurmstepd wrote into the
job's log (all that is left where no accounts are kept), whether the node is down. What none of them tells is KILLED or
LAUNCH_FAILURE, never success.
"""

import errno
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from slurm.cluster import Partition
from slurm.jobs import Job, JobState
from slurm.resources import Resources

NODE_MARKER = "upshot: on node"
"""Begins the first line that a job's script writes, before any set-up line can fail; the node's name follows."""


class Cause(StrEnum):
    """What ended an attempt before its work was done."""

    CODE_ERROR = "code-error"  # an exception: it would come again
    OUT_OF_MEMORY = "oom"  # the node's memory
    ACCELERATOR_MEMORY = "accelerator-oom"
    TIME_LIMIT = "time-limit"
    PREEMPTION = "preemption"
    REQUEUE = "requeue"  # taken off its node to start again: by hand, or by a scheduler that does not say why
    NODE_FAILURE = "node-failure"
    CANCELLED = "cancelled"  # by a person
    DEPENDENCY = "dependency"  # the job that it waited for will never end well
    LAUNCH_FAILURE = "launch-failure"  # the job ended before any work of ours began
    FILE_SYSTEM = "file-system"
    KILLED = "killed"  # by a signal, and nothing says who sent it


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of an attempt that did not end well.

    Args:
        began: whether the process came so far as to record its start.
        error_type: the class of the exception that it recorded.
        error_message: its text.
        error_number: the errno of an OSError.
        stopped_by: the signal that it recorded when it stopped in good order ("SIGUSR2", "SIGTERM").
        stopped_early: whether that signal came long before the time limit's own.
        job: the scheduler's last word on the job.
        history: the words on its earlier starts, oldest first, where the scheduler keeps them.
        log: what the job's log holds of this attempt.
        node_is_down: whether the node that it ran on does not answer now.
        started_again: whether the same job started another attempt afterwards, or waits to.
    """

    began: bool = True
    error_type: str | None = None
    error_message: str = ""
    error_number: int | None = None
    stopped_by: str | None = None
    stopped_early: bool = False
    job: Job | None = None
    history: Job | None = None
    log: str = ""
    node_is_down: bool = False
    started_again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """The end of an attempt: why, where, and whether it had left more to go on from than it found."""

    cause: Cause
    detail: str
    node: str = ""
    progressed: bool = False

    @property
    def is_free(self) -> bool:
        """A time limit that was met while getting on: the next start goes on from where this one stopped."""
        return self.cause is Cause.TIME_LIMIT and self.progressed


# What a full or failing file system answers; anything else that is an OSError is a bug or a wrong path.
_FILE_SYSTEM_ERRORS: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENOLCK}
)
_CAUSE_OF_ERROR: Final[Mapping[str, Cause]] = {
    "OutOfMemoryError": Cause.ACCELERATOR_MEMORY,  # torch's, of any accelerator
    "MemoryError": Cause.OUT_OF_MEMORY,
    "LockLost": Cause.KILLED,  # it was taken for dead, and another attempt took over
    "NoAcceleratorError": Cause.LAUNCH_FAILURE,
    "MeetingError": Cause.LAUNCH_FAILURE,
}
_CAUSE_OF_MESSAGE: Final = (
    (
        re.compile(r"out of memory.*(cuda|hip|xla|tpu)|(cuda|hip|xla|tpu).*out of memory", re.I),
        Cause.ACCELERATOR_MEMORY,
    ),
    (re.compile(r"RESOURCE_EXHAUSTED|ran out of memory in memory space hbm", re.I), Cause.ACCELERATOR_MEMORY),
    (re.compile(r"can't allocate memory|cannot allocate memory", re.I), Cause.OUT_OF_MEMORY),
    (re.compile(r"uncorrectable ECC|fallen off the bus|GPU is lost|NVLink error", re.I), Cause.NODE_FAILURE),
    (re.compile(r"no space left on device|disk quota exceeded|stale file handle", re.I), Cause.FILE_SYSTEM),
)
# slurmstepd's own lines in a job's log; the wording has been the same from 17.x on.
_CAUSE_OF_LOG: Final = (
    (re.compile(r"oom[-_ ]kill|OOM Killed|exceeded (job |step )?memory limit|memory limit.*being killed", re.I),
     Cause.OUT_OF_MEMORY),
    (re.compile(r"DUE TO TIME ?(LIMIT|OUT)"), Cause.TIME_LIMIT),
    (re.compile(r"DUE TO PREEMPTION"), Cause.PREEMPTION),
    (re.compile(r"DUE TO NODE FAILURE"), Cause.NODE_FAILURE),
    (re.compile(r"DUE TO JOB REQUEUE"), Cause.REQUEUE),
    (re.compile(r"CANCELLED AT \S+( \*\*\*)?\s*$", re.M), Cause.CANCELLED),
    (re.compile(r"No space left on device|Disk quota exceeded|Stale file handle"), Cause.FILE_SYSTEM),
)  # fmt: skip
_CAUSE_OF_STATE: Final[Mapping[JobState, Cause]] = {
    JobState.OUT_OF_MEMORY: Cause.OUT_OF_MEMORY,
    JobState.TIMEOUT: Cause.TIME_LIMIT,
    JobState.NODE_FAIL: Cause.NODE_FAILURE,
    JobState.PREEMPTED: Cause.PREEMPTION,
    JobState.REQUEUED: Cause.REQUEUE,
    JobState.CANCELLED: Cause.CANCELLED,
}
NEVER_STARTS: Final[Mapping[str, Cause]] = {
    "DependencyNeverSatisfied": Cause.DEPENDENCY,
    "launch failed requeued held": Cause.LAUNCH_FAILURE,
    "JobHoldMaxRequeue": Cause.LAUNCH_FAILURE,
    "BadConstraints": Cause.LAUNCH_FAILURE,
    "PartitionTimeLimit": Cause.LAUNCH_FAILURE,
    "PartitionNodeLimit": Cause.LAUNCH_FAILURE,
    "AccountNotAllowed": Cause.LAUNCH_FAILURE,
    "QOSNotAllowed": Cause.LAUNCH_FAILURE,
    "InvalidAccount": Cause.LAUNCH_FAILURE,
    "InvalidQOS": Cause.LAUNCH_FAILURE,
}
"""Slurm's reasons for which a pending job would wait for ever; who cancels it for one does so in nobody's name."""


def cause_of(e: Evidence) -> tuple[Cause, str]:
    """(cause, what it was read from, in words) of an attempt that did not end well."""
    if e.error_type is not None:
        return _cause_of_error(e), f"{e.error_type}: {_first_line(e.error_message)}".rstrip(": ")
    told = _cause_of_log(e.log)
    if e.started_again:
        return _cause_of_restart(e, told)
    if e.job is not None and e.job.state in _CAUSE_OF_STATE:
        return _cause_of_state(e, e.job)
    if told is not None:
        return told
    if e.node_is_down:
        return Cause.NODE_FAILURE, "its node is down"
    return _cause_of_silence(e)


def _cause_of_error(e: Evidence) -> Cause:
    named = _CAUSE_OF_ERROR.get(e.error_type or "")
    if named is not None:
        return named
    if e.error_number in _FILE_SYSTEM_ERRORS:
        return Cause.NODE_FAILURE if e.node_is_down else Cause.FILE_SYSTEM
    for pattern, cause in _CAUSE_OF_MESSAGE:
        if pattern.search(e.error_message):
            return cause
    return Cause.CODE_ERROR


def _cause_of_log(log: str) -> tuple[Cause, str] | None:
    for pattern, cause in _CAUSE_OF_LOG:
        match = pattern.search(log)
        if match is not None:
            start, end = log.rfind("\n", 0, match.start()) + 1, log.find("\n", match.end())
            return cause, log[start : end if end >= 0 else len(log)].strip()[:200]
    return None


def _cause_of_restart(e: Evidence, told: tuple[Cause, str] | None) -> tuple[Cause, str]:
    """Slurm took the job off its node and starts it again under the same id."""
    lost_its_node = e.history is not None and e.history.state is JobState.NODE_FAIL
    if e.stopped_by == "SIGUSR2" and not (e.stopped_early and lost_its_node):  # the requeue was its own doing
        if e.stopped_early:
            return Cause.PREEMPTION, "told to stop long before its time limit, it requeued itself"
        return Cause.TIME_LIMIT, "near its time limit it requeued itself"
    if e.history is not None and e.history.state in _CAUSE_OF_STATE:
        return _CAUSE_OF_STATE[e.history.state], f"Slurm says {e.history.slurm_state}"
    if told is not None:
        return told
    if e.node_is_down:
        return Cause.NODE_FAILURE, "its node is down"
    return Cause.REQUEUE, "Slurm requeued it, and does not say why"


def _cause_of_state(e: Evidence, job: Job) -> tuple[Cause, str]:
    said = f"Slurm says {job.slurm_state}" + (f", {job.reason}" if job.reason else "")
    if job.state is JobState.CANCELLED and not e.began and job.reason in NEVER_STARTS:
        return NEVER_STARTS[job.reason], said
    if job.state is JobState.CANCELLED:
        # A time limit or a preemption that the process survived for long can end as CANCELLED: the log knows better.
        return _cause_of_log(e.log) or (Cause.CANCELLED, said)
    return _CAUSE_OF_STATE[job.state], said


def _cause_of_silence(e: Evidence) -> tuple[Cause, str]:
    job = e.job
    said = f"Slurm says {job.slurm_state}" if job is not None else "nothing says why"
    if job is not None and (job.exit_code or job.signal):
        said += f", signal {job.signal}" if job.signal else f", exit code {job.exit_code}"
    if not e.began:
        return Cause.LAUNCH_FAILURE, f"its job ended before the work began; {said}"
    if e.stopped_by == "SIGUSR2":
        return (Cause.PREEMPTION if e.stopped_early else Cause.TIME_LIMIT), f"stopped by SIGUSR2; {said}"
    if e.stopped_by is not None:
        return Cause.CANCELLED, f"stopped by {e.stopped_by}; {said}"
    return Cause.KILLED, f"it ended without a record; {said}"


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "")[:200]


# --- what to do ----------------------------------------------------------------------------------------------------

Budgets = Mapping[Cause, int | None]
"""How many deaths of a cause are answered by another start; None for any number."""


def may_retry(deaths: Sequence[Death], budgets: Budgets) -> tuple[bool, str]:
    """(whether the last death is answered by another start, why or why not in words).

    `deaths` are those since a person last asked for a retry.
    """
    cause = deaths[-1].cause
    budget = budgets.get(cause, 0)
    if deaths[-1].is_free:
        return True, "it goes on from its checkpoint"
    if budget is None:
        return True, f"{cause} is retried any number of times"
    spent = sum(death.cause is cause and not death.is_free for death in deaths)
    if spent > budget:
        return False, f"{cause}: {budget} of {budget} retries used" if budget else f"{cause} is not retried"
    return True, f"{cause}: retry {spent} of {budget}"


def _is_of_its_node(death: Death) -> bool:
    return death.cause in (Cause.NODE_FAILURE, Cause.LAUNCH_FAILURE)


def adjusted(asked: Resources, deaths: Sequence[Death], partition: Partition) -> tuple[Resources, str | None]:
    """What the next start asks for, and why it would be in vain, if it would.

    Twice the memory for each time that it did not suffice, twice the time for each limit met without getting on, and
    none of the nodes that it failed on since anything else became of it. (An accelerator's memory is the caller's
    affair: it halves the micro-batch.)
    """
    factors = {"mem_gb": Cause.OUT_OF_MEMORY, "time_min": Cause.TIME_LIMIT}
    most: dict[str, float] = {"mem_gb": partition.memory_gb_per_node, "time_min": partition.max_time_min}
    changed: dict[str, float] = {}
    vain = None
    for field, cause in factors.items():
        in_vain = [death for death in deaths if death.cause is cause and not death.is_free]
        before = min(most[field], getattr(asked, field) * 2 ** max(0, len(in_vain) - 1))
        changed[field] = min(most[field], getattr(asked, field) * 2 ** len(in_vain))
        if in_vain and deaths[-1] is in_vain[-1] and changed[field] <= before:
            vain = f"{cause} with all that the partition has ({field} {most[field]:g})"
    failed = {d.node for d in itertools.takewhile(_is_of_its_node, reversed(deaths)) if d.node}
    resources = replace(
        asked,
        mem_gb=changed["mem_gb"],
        time_min=int(changed["time_min"]),
        exclude=(*asked.exclude, *failed),
    )
    return resources, vain
