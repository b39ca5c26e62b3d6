"""`watch` for people: a bar on a terminal, a line now and then elsewhere."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from orchestrator import drive
from orchestrator.drive import Observation
from orchestrator.session import Session
from orchestrator.state import ENDED_WELL, CellState, StageState, Status
from orchestrator.store import STAGES, Stage

LOCAL_TICK_S = 1.0
SLURM_TICK_S = 30.0
LINE_EVERY_S = 15.0


def watch_with_bar(session: Session, every_s: float | None = None) -> Observation:
    """The last observation, once every cell has ended; meanwhile done, running, failed and the time left are shown."""
    tick_s = every_s or (LOCAL_TICK_S if session.profile.scheduler == "local" else SLURM_TICK_S)
    with _shown() as show:
        return drive.watch(session.store, session.file, session.profile, show=show, tick_s=tick_s)


def counts_line(seen: Observation) -> str:
    """'12 done, 2 running, 22 pending, 0 failed, about 3 min left'."""
    counts = Counter(_kind(state) for state in seen.states)
    left = seconds_left(seen)
    eta = "" if left is None or seen.settled else f", about {duration(left)} left"
    diverged = f", {counts['diverged']} diverged" if counts["diverged"] else ""
    parts = (f"{counts[kind]} {kind}" for kind in ("done", "running", "pending", "failed"))
    return ", ".join(parts) + diverged + eta


def _kind(state: CellState) -> str:
    return "pending" if state.status in (Status.NEW, Status.UNKNOWN, Status.BLOCKED) else state.status.value


def seconds_left(seen: Observation) -> float | None:
    """The time until all is done, from what the ended stages took for their FLOPs; None before the first has ended.

    A stage takes a + b x FLOPs seconds. Training and evaluation have a line each, from their own that ended (the
    other's until then), and as many run at once as are running.
    """
    spent: dict[Stage, list[tuple[float, float]]] = {stage: [] for stage in STAGES}
    left: list[tuple[Stage, float]] = []
    num_running = 0
    for state, planned in zip(seen.states, seen.plan.cells, strict=True):
        stages: list[tuple[Stage, StageState, float]] = [
            ("train", state.train, planned.train.flops),
            ("evaluate", state.evaluate, planned.evaluate.flops),
        ]
        for name, stage, flops in stages:
            if stage.status in ENDED_WELL and stage.seconds:
                spent[name].append((flops, stage.seconds))
            elif stage.status not in (*ENDED_WELL, Status.FAILED, Status.BLOCKED):
                left.append((name, flops))
                num_running += stage.status == Status.RUNNING
    known = spent["train"] or spent["evaluate"]
    if not known:
        return None
    lines = {stage: _line(points or known) for stage, points in spent.items()}
    return sum(lines[stage][0] + lines[stage][1] * flops for stage, flops in left) / max(1, num_running)


def _line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Intercept and slope of least squares, neither below zero; proportional where one point is all there is."""
    mean_x, mean_y = (sum(column) / len(points) for column in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = max(0.0, sum((x - mean_x) * (y - mean_y) for x, y in points) / spread) if spread else mean_y / mean_x
    base = mean_y - slope * mean_x
    return (base, slope) if base >= 0 else (0.0, mean_y / mean_x)


def duration(seconds: float) -> str:
    """'40 s', '3 min', '5.2 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def _shown() -> Iterator[Callable[[Observation], None]]:
    console = Console()
    if not console.is_terminal:
        yield _lines(time.monotonic)
        return
    columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("")
        yield lambda seen: bar.update(
            task,
            total=len(seen.states),
            completed=sum(state.status in (*ENDED_WELL, Status.FAILED) for state in seen.states),
            description=counts_line(seen),
        )


def _lines(clock: Callable[[], float]) -> Callable[[Observation], None]:
    last: tuple[float, str] = (-LINE_EVERY_S, "")

    def show(seen: Observation) -> None:
        nonlocal last
        line = counts_line(seen)
        if (clock() - last[0] >= LINE_EVERY_S and line != last[1]) or seen.settled:
            print(line, flush=True)
            last = (clock(), line)

    return show
