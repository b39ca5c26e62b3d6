"""Why attempts died: gathers what the ledger, the queue, the accounts, the job's log and the nodes tell of each.

Whatever their number, the accounts and the nodes are asked once.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from orchestrator.attempts import Attempt
from orchestrator.files import read_records
from orchestrator.state import Corpse, CorpseKey
from orchestrator.store import RESUME, Store
from slurm import jobs, local
from slurm.failures import NODE_MARKER, Cause, Death, Evidence, cause_of
from slurm.jobs import Job, JobKey, JobState
from slurm.resources import SlurmError, SlurmUnreachable

Accounts = dict[JobKey, list[Job]] | SlurmError | None

LOG_TAIL_BYTES = 64 * 1024
SLACK = timedelta(seconds=5)  # between the clocks of the nodes and the scheduler's
MARKER = "upshot: attempt"
"""Begins the line that an attempt writes into its job's log when it starts; what follows is that attempt's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """The deaths that could be explained, and the corpses of which nobody can say yet whether they are dead."""

    deaths: Mapping[CorpseKey, Death]
    undecided: Sequence[Corpse]


def marker(stage: str, number: int, cell_id: str) -> str:
    """The line that an attempt begins with in its job's log."""
    return f"{MARKER} {number} of {stage} of {cell_id}"


def examine(
    store: Store, corpses: Sequence[Corpse], *, is_patient: Callable[[Corpse], bool] = lambda _: True
) -> Findings:
    """What each died of.

    Args:
        store: the study.
        corpses: attempts that did not end well.
        is_patient: whether to wait for accounts that lag or do not answer, rather than to judge without them.
    """
    on_slurm = [c for c in corpses if c.submitted.manifest.executor == "slurm" and c.attempt.outcome != "failed"]
    accounts = _accounts(on_slurm)
    down = _down_nodes(on_slurm)
    deaths: dict[CorpseKey, Death] = {}
    undecided = []
    keys = {corpse.key for corpse in on_slurm}
    for corpse in corpses:
        starts = _starts(corpse, accounts)
        if corpse.key in keys and _is_undecided(corpse, accounts, starts) and is_patient(corpse):
            undecided.append(corpse)
        else:
            deaths[corpse.key] = _death(store, corpse, starts, down)
    return Findings(deaths=deaths, undecided=undecided)


def _accounts(corpses: Sequence[Corpse]) -> Accounts:
    """The scheduler's records of the jobs, None where it keeps none, the error where it does not answer now."""
    ids = {c.submitted.manifest.job_id for c in corpses if c.submitted.manifest.job_id}
    since = min((c.submitted.manifest.submitted for c in corpses), default=0.0)
    try:
        return jobs.query_history(since=datetime.fromtimestamp(since, UTC), job_ids=ids)
    except SlurmUnreachable as error:
        return None if "not found on PATH" in str(error) else error
    except SlurmError as error:
        return error


def _down_nodes(corpses: Sequence[Corpse]) -> frozenset[str]:
    if not corpses:
        return frozenset()
    try:
        return jobs.query_down_nodes()
    except SlurmError:
        return frozenset()


def _starts(corpse: Corpse, accounts: Accounts) -> list[Job]:
    """The records of the corpse's job; a stranger's that has had the id before or after is told by its name."""
    if not isinstance(accounts, dict):
        return []
    manifest = corpse.submitted.manifest
    job_id = manifest.job_id or ""
    found = accounts.get((job_id, corpse.submitted.index)) or accounts.get((job_id, None)) or []
    return [job for job in found if job.name == manifest.job_name]


_OVER_BADLY = frozenset(state for state in JobState if state.is_over) - {JobState.COMPLETED}


def _is_undecided(corpse: Corpse, accounts: Accounts, starts: Sequence[Job]) -> bool:
    """Neither the queue nor the accounts say that it is over: the accounts lag, or do not answer."""
    if (
        corpse.started_again
        or corpse.submitted.manifest.cancelled
        or (corpse.task.job is not None and corpse.task.job.state in _OVER_BADLY)
    ):
        return False
    if corpse.task.job is not None and corpse.task.job.state is JobState.COMPLETED:
        return True  # it ended well: what it recorded is not to be seen yet, as NFS has it
    if isinstance(accounts, SlurmError):
        return True
    return bool(starts) and not starts[-1].state.is_over


def _death(store: Store, corpse: Corpse, starts: Sequence[Job], down: Iterable[str]) -> Death:
    attempt = corpse.attempt
    node = attempt.node or attempt.host
    of_attempt = _start_of(attempt, starts)
    if corpse.submitted.manifest.cancelled and attempt.outcome != "failed" and not corpse.started_again:
        cause, detail = Cause.CANCELLED, "upshot cancel"
    elif corpse.submitted.manifest.executor == "local":
        cause, detail = _cause_here(store, corpse)
    else:
        cause, detail = cause_of(_evidence(store, corpse, starts, of_attempt, node in down))
        node = attempt.node or _node_in_log(store, corpse) or (of_attempt.node if of_attempt is not None else node)
    return Death(cause=cause, detail=detail, node=node, progressed=_progressed(store, corpse))


def _evidence(
    store: Store, corpse: Corpse, starts: Sequence[Job], of_attempt: Job | None, node_is_down: bool
) -> Evidence:
    last = queued = corpse.task.job
    if starts and starts[-1].state.is_over:  # accounts know the end best, but no reason
        last = replace(starts[-1], reason=queued.reason if queued is not None else "")
    return replace(
        _recorded(corpse.attempt),
        job=None if corpse.started_again else last,
        history=of_attempt,
        log=_log(store, corpse),
        node_is_down=node_is_down,
        started_again=corpse.started_again,
    )


def _recorded(attempt: Attempt) -> Evidence:
    """What the process itself recorded of its start and end."""
    began, error = attempt.number > 0, attempt.error
    if error is None:
        return Evidence(began=began)
    if attempt.outcome == "interrupted" and error.get("type") != "LockLost":
        return Evidence(began=began, stopped_by=str(error.get("type")), stopped_early=bool(error.get("early")))
    return Evidence(
        began=began,
        error_type=str(error.get("type")),
        error_message=str(error.get("message")),
        error_number=error.get("errno"),
    )


def _cause_here(store: Store, corpse: Corpse) -> tuple[Cause, str]:
    """On this machine there is no scheduler to ask: only the process's own record, and whether somebody stopped it."""
    recorded = _recorded(corpse.attempt)
    if recorded.error_type is not None:
        return cause_of(recorded)
    manifest = corpse.submitted.manifest
    if local.is_stopped(store.job_folder(manifest.job_id or manifest.token)):
        return Cause.CANCELLED, "the workers were stopped"
    if recorded.stopped_by is not None:
        return Cause.CANCELLED, f"stopped by {recorded.stopped_by}"
    return Cause.KILLED, f"its worker on {corpse.attempt.host or 'this machine'} ended without a record"


def _start_of(attempt: Attempt, starts: Sequence[Job]) -> Job | None:
    """The record of the job's start that the attempt belongs to; the last one where times do not tell."""
    began = datetime.fromtimestamp(attempt.started, UTC)
    for job in starts:
        if job.start_time is None or job.start_time > began + SLACK:
            continue
        if job.end_time is None or job.end_time >= began - SLACK:
            return job
    return starts[-1] if starts else None


def _log(store: Store, corpse: Corpse) -> str:
    """What the job's log holds of the attempt: from its marker to that of the next; all of it, if it never began."""
    manifest = corpse.submitted.manifest
    name = manifest.job_id or ""
    for stem in (f"{name}_{corpse.submitted.index}", name):
        text = _tail(store.job_folder(manifest.token) / f"{stem}_0_log.out")
        if text:
            break
    if corpse.attempt.number == 0:
        return text
    mine = marker(corpse.attempt.stage, corpse.attempt.number, corpse.cell_id)
    _, found, rest = text.partition(mine)
    return re.split(rf"^{MARKER}", rest if found else text, maxsplit=1, flags=re.MULTILINE)[0]


def _node_in_log(store: Store, corpse: Corpse) -> str | None:
    """Where a job last began, as its script says: accounts may not have heard of it, and the queue soon forgets."""
    said = re.findall(rf"^{NODE_MARKER} (\S+)$", _log(store, corpse), flags=re.MULTILINE)
    return said[-1] if said else None


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _progressed(store: Store, corpse: Corpse) -> bool:
    """Whether the attempt left a checkpoint beyond the one that it began from."""
    attempt = corpse.attempt
    if attempt.stage != "train" or attempt.number == 0:
        return False
    end = attempt.end or {}
    if "step" in end and "first_step" in end:
        return bool(end["step"] > end["first_step"])
    records = read_records(store.train_log(corpse.cell_id)).records
    began = [r["step"] for r in records if r.get("event") == "start" and r.get("time", 0.0) >= attempt.started]
    newest = [*store.finalised_steps(corpse.cell_id), *store.finalised_steps(corpse.cell_id, RESUME)]
    return bool(began) and max(newest, default=0) > began[0]
