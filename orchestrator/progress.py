"""`watch` for people: a live table on a terminal, a line now and then elsewhere."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator import drive
from orchestrator.observe import Observation
from orchestrator.session import Session
from orchestrator.state import ENDED_WELL, CellState, Status
from orchestrator.terminal import duration, harmless, print_plain

LOCAL_TICK_S = 1.0
SLURM_TICK_S = 30.0
LINE_EVERY_S = 15.0
KINDS = ("done", "running", "pending", "failed")


def watch_with_table(session: Session, every_s: float | None = None) -> Observation:
    """The last observation, once every cell has ended; meanwhile what is done, running, failed and left is shown."""
    tick_s = every_s or (LOCAL_TICK_S if session.profile.scheduler == "local" else SLURM_TICK_S)
    with _shown() as show:
        seen = drive.watch(session.store, session.file, session.profile, show=show, tick_s=tick_s)
    assert seen is not None, "nothing tells this watch to stop before the end"
    return seen


def counts_line(seen: Observation) -> str:
    """'12 done, 2 running, 22 pending, 0 failed, about 3 min left'."""
    counts = Counter(kind(state) for state in seen.states)
    left = seconds_left(seen)
    eta = "" if left is None or seen.settled else f", about {duration(left)} left"
    if left is None and any(stage.status == Status.RUNNING for s in seen.states for stage in (s.train, s.evaluate)):
        eta = ", – left"  # nothing has ended yet that would tell
    diverged = f", {counts['diverged']} diverged" if counts["diverged"] else ""
    return ", ".join(f"{counts[kind]} {kind}" for kind in KINDS) + diverged + eta


def kind(state: CellState) -> str:
    """The column that a cell is counted in."""
    return "pending" if state.status in (Status.NEW, Status.UNKNOWN, Status.BLOCKED) else state.status.value


def seconds_left(seen: Observation) -> float | None:
    """The time until all is done, from what the ended stages took; None before the first has ended.

    As many stages run at once as are running, and nothing runs before the scheduler expects to start it.
    """
    if not seen.plan.speeds.lines:
        return None
    left, num_running = 0.0, 0
    for state, planned in zip(seen.states, seen.plan.cells, strict=True):
        for stage, cost in ((state.train, planned.own_train), (state.evaluate, planned.evaluate)):
            if stage.status not in (*ENDED_WELL, Status.FAILED, Status.BLOCKED):
                left += cost.hours * 3600
                num_running += stage.status == Status.RUNNING
    waits = max(0.0, (seen.starts_at or 0.0) - time.time())
    return max(left / max(1, num_running), waits)


def failures_by_cause(seen: Observation) -> list[tuple[str, list[CellState]]]:
    """(cause in words, its cells) of what failed, the most frequent first."""
    by_cause: dict[str, list[CellState]] = defaultdict(list)
    for state in seen.states:
        if state.status == Status.FAILED:
            by_cause[state.why or "unknown"].append(state)
    return sorted(by_cause.items(), key=lambda item: -len(item[1]))


def hours_used(seen: Observation) -> tuple[float, float]:
    """(GPU-hours used, CPU-core-hours used) by attempts that ended, as far as their ends were recorded."""
    gpu = cpu = 0.0
    for state, planned in zip(seen.states, seen.plan.cells, strict=True):
        for stage, cost in ((state.train, planned.train), (state.evaluate, planned.evaluate)):
            gpu += stage.seconds / 3600 * cost.resources.num_accelerators
            cpu += stage.seconds / 3600 * cost.resources.num_cpus * cost.resources.num_nodes
    return gpu, cpu


def hours_line(seen: Observation) -> str:
    """'3.2 of 41.0 GPU-hours used', or CPU-hours where no cell uses an accelerator."""
    gpu, cpu = hours_used(seen)
    planned = seen.plan.hours("gpu_hours", of_all=True)
    if planned:
        return f"{gpu:.2f} GPU-hours used, {planned:.2f} expected for the whole study"
    return f"{cpu:.2f} CPU-hours used, {seen.plan.hours('cpu_hours', of_all=True):.2f} expected for the whole study"


def live_table(seen: Observation) -> Group:
    """Everything of a study on a few lines."""
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for state in seen.states:
        groups[f"{state.cell.recipe.family} {state.cell.recipe.size}"][kind(state)] += 1
    columns = [*KINDS, *(["diverged"] if any(counts["diverged"] for counts in groups.values()) else [])]
    table = Table(box=None, pad_edge=False)
    for i, name in enumerate(("model", *columns)):
        table.add_column(name, justify="left" if i == 0 else "right")
    for name, counts in groups.items():
        table.add_row(Text(name), *(str(counts[column] or "") for column in columns))
    told = (Text(harmless(line)) for line in notes(seen))
    return Group(Text(f"{seen.study.name}: {counts_line(seen)}"), table, *told)


def notes(seen: Observation) -> list[str]:
    """What else is worth a line: failures by cause, hours, what waits and why."""
    lines = [
        f"{len(states)} failed: {cause} (upshot why {states[0].cell.cell_id})"
        for cause, states in failures_by_cause(seen)
    ]
    lines.append(hours_line(seen))
    if seen.num_waiting:
        lines.append(f"{seen.num_waiting} cells wait for room in the queue")
    if seen.starts_at is not None and seen.starts_at > time.time():
        lines.append(f"the scheduler expects the last job to start in {duration(seen.starts_at - time.time())}")
    if seen.plan.halted:
        lines.append(seen.plan.halted)
    return lines


@contextmanager
def _shown() -> Iterator[Callable[[Observation], None]]:
    console = Console()
    if not console.is_terminal:
        yield lines_of(time.monotonic)
        return
    with Live(console=console, auto_refresh=False, transient=False) as live:
        yield lambda seen: live.update(live_table(seen), refresh=True)


def lines_of(clock: Callable[[], float]) -> Callable[[Observation], None]:
    """Prints a line when it has changed, at most every few seconds; and at the end."""
    last: tuple[float, str] = (-LINE_EVERY_S, "")

    def show(seen: Observation) -> None:
        nonlocal last
        line = counts_line(seen)
        if (clock() - last[0] >= LINE_EVERY_S and line != last[1]) or seen.settled:
            print(line, flush=True)
            last = (clock(), line)
            for note in notes(seen) if seen.settled and (seen.num_failed or seen.plan.halted) else ():
                print_plain(note)

    return show
