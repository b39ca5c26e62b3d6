"""A cell's ledger, read: its attempts, and the deaths among them with their causes."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.store import Stage
from slurm.failures import Cause, Death

Event = dict[str, Any]
REACHED = ("start", "train", "checkpoint", "diverged")  # records whose step an attempt was at


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One start of one stage of a cell. `outcome` is None while it runs, and for ever where it was killed.

    `step` is the checkpoint of an evaluation that judges one alone. `number` is 0 where a job ended before it began.
    It is `forgiven` once somebody has asked for a retry: budgets begin anew, and the work is to be done again.
    """

    stage: Stage
    number: int
    token: str
    step: int | None = None
    started: float = 0.0
    host: str = ""
    node: str = ""
    job: str | None = None
    outcome: str | None = None
    error: dict[str, Any] | None = None
    end: Event | None = None
    death: Death | None = None
    forgiven: bool = False

    @property
    def seconds(self) -> float:
        """How long it took, as far as it was recorded."""
        return float((self.end or {}).get("seconds", 0.0))

    @property
    def ended_badly(self) -> bool:
        """It failed, was stopped, or left no record of its end."""
        return self.outcome not in ("done", "diverged")


def read_attempts(events: Iterable[Event]) -> list[Attempt]:
    """The attempts of a ledger, oldest first; records of a form that is not ours are left out."""
    # Checkpoints that are judged at the same time may take the same number.
    found: dict[tuple[str, int, str, int | None], Attempt] = {}
    for event in events:
        kind, stage = event.get("event"), event.get("stage")
        if stage not in ("train", "evaluate") or kind not in ("start", "end", "death", "retry"):
            continue
        if kind == "retry":
            found = {key: replace(a, forgiven=True) if a.stage == stage else a for key, a in found.items()}
            continue
        key = (stage, int(event.get("attempt") or 0), str(event.get("token")), event.get("step_to_evaluate"))
        new = Attempt(stage=stage, number=key[1], token=key[2], step=key[3])
        found[key] = _with_event(found.get(key, new), kind, event)
    return list(found.values())


def work_seconds(attempts: Iterable[Attempt]) -> float:
    """What a stage takes from its first step to its last, by what its attempts recorded; 0 where none did.

    Failed attempts do not count, steps that were taken twice count once, and those of a killed attempt, whose time
    nobody recorded, take as long as the others.
    """
    ends = [attempt.end for attempt in attempts if attempt.end and attempt.outcome != "failed"]
    seconds = sum(float(end.get("seconds", 0.0)) for end in ends)
    spans = [(end["first_step"], end["step"]) for end in ends if "first_step" in end and "step" in end]
    taken = sum(last - first for first, last in spans)
    return seconds * max(last for _, last in spans) / taken if taken > 0 else seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What an attempt took: seconds, and of a training the steps that it began and ended at, where records tell."""

    seconds: float
    first_step: int | None = None
    last_step: int | None = None


def taken(attempts: Iterable[Attempt], records: Sequence[Event]) -> list[Taken]:
    """What each of a cell's attempts took; a training whose end nobody recorded, up to its last record.

    Args:
        attempts: of the cell.
        records: of its training log.
    """
    attempts = list(attempts)
    starts = sorted(attempt.started for attempt in attempts if attempt.stage == "train" and attempt.number)
    found = []
    for attempt in attempts:
        if attempt.stage != "train" or not attempt.number:
            found.append(Taken(seconds=attempt.seconds))
            continue
        until = next((start for start in starts if start > attempt.started), math.inf)
        found.append(_taken(attempt, [r for r in records if attempt.started <= _time(r) < until]))
    return found


def _taken(attempt: Attempt, records: Sequence[Event]) -> Taken:
    end, steps = attempt.end or {}, [r["step"] for r in records if r.get("event") in REACHED]
    return Taken(
        seconds=attempt.seconds if attempt.end else max((_time(r) - attempt.started for r in records), default=0.0),
        first_step=end.get("first_step", next((r["step"] for r in records if r.get("event") == "start"), None)),
        last_step=end.get("step", max(steps, default=None)),
    )


def _time(record: Event) -> float:
    """When a record was written; before all, where it does not say."""
    time = record.get("time")
    return float(time) if isinstance(time, int | float) else -math.inf


def _with_event(attempt: Attempt, kind: str, event: Event) -> Attempt:
    values: dict[str, Any] = {}
    if kind == "start":
        values |= {"started": event["time"], "host": event.get("host", ""), "job": event.get("job")}
        values |= {"node": event.get("node") or ""}
    elif kind == "end":
        values |= {"outcome": event["outcome"], "error": event.get("error"), "end": event}
    else:
        values["death"] = Death(
            cause=Cause(event["cause"]),
            detail=event.get("detail", ""),
            node=event.get("node") or "",
            progressed=bool(event.get("progressed")),
        )
    return replace(attempt, **values)


def retry_event(stage: Stage) -> Event:
    """The record of somebody's wish that what became of a stage be forgotten and its work done again."""
    return {"event": "retry", "stage": stage}


def death_event(attempt: Attempt, death: Death, number: int | None = None) -> Event:
    """The record of a death, for the ledger."""
    return {
        "event": "death",
        "stage": attempt.stage,
        "attempt": attempt.number if number is None else number,
        "token": attempt.token,
        "step_to_evaluate": attempt.step,
        "cause": death.cause.value,
        "detail": death.detail,
        "node": death.node,
        "progressed": death.progressed,
    }
