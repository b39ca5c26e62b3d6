"""Cells told to W&B, many at once, past the failures of some and the moods of the server."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from models.errors import UserError
from orchestrator.tracking.stamps import Place
from orchestrator.tracking.trouble import Trouble, mended
from orchestrator.tracking.wandb_run import TIMEOUT_S
from orchestrator.tracking.workers import Answer, Became, Task, Workers

PATIENCE_S: Final = 120.0
"""How long W&B may be away before the rest is left for another time."""
FIRST_PAUSE_S: Final = 2.0
MOST_PAUSE_S: Final = 30.0
MOST_TRIES: Final = 5
"""Of one cell."""
MOST_DEATHS: Final = 5
"""Of processes, one after another: then it is not the cells."""
LOOK_S: Final = 0.5


class StudyRefusedError(UserError):
    """W&B takes no cell of this study: the key, the entity or the project is wrong."""


@dataclass(slots=True, kw_only=True)
class Report:
    """What became of the cells of a study.

    Args:
        place: where they are mirrored to.
        told: by cell, how many rows were new to W&B.
        unchanged: how many had nothing new.
        busy: those that their jobs, or another sync, are mirroring.
        failed: by cell, why it cannot be told as it is.
        later: by cell, why it was not told although another time it may be.
        left: those that were not tried, because of `stopped`.
        stopped: why the rest was left.
        study: why the run of the whole study was not told.
    """

    place: Place
    told: dict[str, int] = field(default_factory=dict)
    unchanged: int = 0
    busy: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    later: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    stopped: str | None = None
    study: str | None = None

    @property
    def is_good(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.failed or self.later or self.stopped or self.study)

    @property
    def is_whole(self) -> bool:
        """Whether another round would have nothing more to do, as long as no file changes."""
        return not (self.busy or self.later or self.stopped)

    def to_json(self) -> dict[str, Any]:
        """The report as `upshot sync --json` prints it."""
        return {
            "server": self.place.server,
            "entity": self.place.entity,
            "project": self.place.project,
            "mirrored": len(self.told),
            "rows": sum(self.told.values()),
            "unchanged": self.unchanged,
            "by_others": self.busy,
            "failed": {**self.failed, **self.later},
            "left": self.left,
            "stopped": self.stopped,
            "study": self.study,
            "cells": list(self._cells()),
        }

    def _cells(self) -> Iterator[dict[str, Any]]:
        """What became of each cell of which something was to be told."""
        for cell_id, rows in self.told.items():
            yield {"cell_id": cell_id, "outcome": "mirrored", "rows": rows, "reason": None}
        troubles: list[tuple[str, str, str | None]] = [
            *(("failed", cell_id, reason) for cell_id, reason in {**self.failed, **self.later}.items()),
            *(("by_others", cell_id, None) for cell_id in self.busy),
            *(("left", cell_id, self.stopped) for cell_id in self.left),
        ]
        for outcome, cell_id, why in troubles:
            yield {"cell_id": cell_id, "outcome": outcome, "rows": None, "reason": why}


@dataclass(slots=True)
class _Pace:
    """How many cells W&B is told at once: one until it answers well; after trouble nothing for ever longer pauses."""

    patience_s: float
    is_steady: bool = False
    resumes_at: float = 0.0
    troubled_since: float | None = None
    num_pauses: int = 0

    def answered(self) -> None:
        self.is_steady, self.troubled_since, self.num_pauses = True, None, 0

    def troubled(self) -> None:
        now = time.monotonic()
        self.is_steady = False
        if self.troubled_since is None:
            self.troubled_since = now
        if now < self.resumes_at:
            return  # of the same moment as the trouble that the pause is for
        self.num_pauses += 1
        pause = min(FIRST_PAUSE_S * 2 ** (self.num_pauses - 1), MOST_PAUSE_S)
        self.resumes_at = min(now + pause, max(now, self.troubled_since + self.patience_s))

    @property
    def is_away(self) -> bool:
        """Whether W&B has been asked in vain for too long."""
        return self.troubled_since is not None and time.monotonic() >= self.troubled_since + self.patience_s

    def room(self, number: int) -> int:
        """How many cells may be under way now, of so many."""
        return 0 if time.monotonic() < self.resumes_at else number if self.is_steady else 1


class Sync:
    """One round: cells given to processes, put back after passing trouble, and counted in `report`.

    Args:
        root: the study folder.
        tasks: the cells.
        report: what it adds to.
        jobs: how many processes.
        patience_s: how long W&B may be away before the rest is left.
    """

    def __init__(
        self, root: Path, tasks: Sequence[Task], report: Report, *, jobs: int, patience_s: float = PATIENCE_S
    ) -> None:
        self.report = report
        self._waiting = deque(tasks)
        self._tries: Counter[str] = Counter()
        self._num_deaths = 0
        self._pace = _Pace(patience_s)
        self._number = min(jobs, len(tasks))
        self._workers = Workers(root, min(TIMEOUT_S, max(1.0, patience_s)))

    def run(self, show: Callable[[int], None]) -> None:
        """Tells the cells; `show` is called with how many are done.

        Raises:
            StudyRefusedError: W&B takes none of them. What was told before stays told.
        """
        num_tasks = len(self._waiting)
        with self._workers as workers:
            while (self._waiting or workers.under_way) and self.report.stopped is None:
                while self._waiting and len(workers.under_way) < self._pace.room(self._number):
                    workers.give(self._waiting.popleft())
                for task, answer in workers.answers(LOOK_S):
                    self._take(task, answer)
                show(num_tasks - len(self._waiting) - len(workers.under_way))
            if self.report.stopped is not None:
                self.report.left += [task.cell_id for task in (*workers.under_way, *self._waiting)]

    def _take(self, task: Task, answer: Answer | None) -> None:
        if answer is None:
            self._died(task)
            return
        self._num_deaths = 0
        if answer.trouble is Trouble.PASSING:
            self._put_back(task, answer.error)
        elif answer.trouble is Trouble.STUDY:
            raise StudyRefusedError(mended(answer.error, self.report.place))
        elif answer.became is Became.FAILED:
            self._pace.answered()
            self.report.failed[task.cell_id] = answer.error
        elif answer.became is Became.TOLD:
            self._pace.answered()
            self.report.told[task.cell_id] = answer.num_sent
        elif answer.became is Became.BUSY:
            self.report.busy.append(task.cell_id)
        else:
            self.report.unchanged += 1

    def _put_back(self, task: Task, error: str) -> None:
        self._pace.troubled()
        self._tries[task.cell_id] += 1
        if self._pace.is_away:
            self.report.stopped = f"W&B at {self.report.place.server} is away, or in no state to answer: {error}"
        if self._tries[task.cell_id] < MOST_TRIES or self.report.stopped is not None:
            self._waiting.append(task)
        else:
            self.report.later[task.cell_id] = f"not told in {MOST_TRIES} tries: {error}"

    def _died(self, task: Task) -> None:
        self._num_deaths += 1
        self.report.later[task.cell_id] = "the process that told it was killed; is there memory enough?"
        if self._num_deaths == MOST_DEATHS:
            self.report.stopped = f"{MOST_DEATHS} processes were killed one after another"
