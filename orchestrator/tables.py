"""What plan, status, why and clean print."""

import shlex
import textwrap
import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.text import Text

from evals import tasks
from orchestrator.arrays import PlannedCell
from orchestrator.attempts import death_event, read_attempts
from orchestrator.clean import Leftover
from orchestrator.evaluation_cost import VTAB_IMAGES
from orchestrator.files import read_records
from orchestrator.observe import Observation
from orchestrator.plan import Plan
from orchestrator.progress import counts_line, notes
from orchestrator.session import Session
from orchestrator.state import CellState, Status
from orchestrator.study import Study
from orchestrator.terminal import duration, harmless, hours_text, log_lines, print_sentence, print_table, si
from orchestrator.tracking import Mirrored, mirrored

STYLES = {Status.DONE: "green", Status.RUNNING: "cyan", Status.DIVERGED: "yellow", Status.FAILED: "bold red"}
LOG_TAIL = 15
MOST_OF_ERROR = 300  # characters
WORTH_SAYING = 0.005  # hours: fewer are 0.00 where they are told


# --- plan and tasks ------------------------------------------------------------------------------------------------


def print_plan(plan: Plan, session: Session) -> None:
    """The plan by family and size, then what it comes to."""
    groups = defaultdict(list)
    for planned in plan.cells:
        recipe = planned.cell.recipe
        groups[recipe.family, recipe.size, recipe.patch_size, recipe.image_size].append(planned)
    rows = []
    for (family, size, patch, pixels), members in groups.items():
        costs = [cost for m in members for cost in m.to_do]
        where = members[0].train.resources
        asks = f"{where.num_nodes}x{where.accelerators} {where.accelerator}" if where.accelerators else "1 cpu"
        hours = sum(c.gpu_hours if where.accelerators else c.cpu_hours for c in costs)
        rows.append(
            (
                f"{family} {size}{f'/{patch}' if patch else ''} @{pixels}",
                len(members),
                si(members[0].params),
                si(sum(m.flops for m in members)),
                asks,
                f"{where.mem_gb:.3g} GB",
                duration(max(m.train.resources.time_min for m in members) * 60),
                hours_text(hours),
            )
        )
    columns = ("model", "cells", "params", "FLOPs", "a job asks", "memory", "limit", "hours")
    print_table(f"Plan of {session.file.study.name} on {session.profile.scheduler}", columns, rows)
    actions = Counter(planned.action for planned in plan.cells)
    print(f"{len(plan.cells):,} cells: " + ", ".join(f"{count:,} to {action}" for action, count in actions.items()))
    _print_shards(plan)
    _print_limits(plan)
    _print_absent(session)
    _print_scarce(session)
    _print_shared(plan)
    others = session.store.cell_ids() - {planned.cell.cell_id for planned in plan.cells}
    if others:
        print_sentence(f"{len(others):,} cells in the study's folder are not of this study: kept, not reported")
    if plan.num_excluded:
        print(f"{plan.num_excluded:,} combinations left out by [[exclude]]")
    print_sentence(_expected(plan, session.profile.currency))
    _print_measured(plan)
    if plan.halted:
        print_sentence(plan.halted)


def _print_shared(plan: Plan) -> None:
    """How many cells take steps over from a shorter one of their job, and the hours that this saves."""
    saved = [planned.train.times(planned.shared) for planned in plan.cells if planned.shared]
    if not saved:
        return
    gpu, cpu = (sum(getattr(cost, name) for cost in saved) for name in ("gpu_hours", "cpu_hours"))
    hours, unit = (gpu, "GPU") if gpu else (cpu, "CPU")
    cells = "1 cell goes" if len(saved) == 1 else f"{len(saved):,} cells go"
    so_much = f", which saves {hours_text(hours)} {unit}-hours" if hours >= WORTH_SAYING else ""
    print_sentence(f"{cells} on from the state of a shorter one: hours count the steps in common once{so_much}")


def _expected(plan: Plan, currency: str) -> str:
    """The hours, the price and the jobs of what is to be submitted."""
    expected, most = hours_text(plan.hours("gpu_hours")), hours_text(plan.gpu_hours_max)
    told = [f"{hours_text(plan.hours('cpu_hours'))} CPU-hours expected"]
    if plan.gpu_hours_max:
        told = [f"{expected} GPU-hours expected, at most {most}"]
    if plan.hours("price"):
        told.append(f"{plan.hours('price'):,.2f} {currency} expected")
    num_jobs = sum(array.num_tasks for array in plan.arrays)
    return "; ".join([*told, f"{plan.sbatch_calls:,} sbatch calls for {num_jobs:,} jobs"])


def _print_limits(plan: Plan) -> None:
    """Which cells meet a limit of their partition."""
    said = {
        "memory": "need more memory than a node of their partition has, and are refused",
        "accelerator": "do not fit the accelerators of their partition even in shards, and are refused",
        "time": "take longer than their partition allows, and go on in another job from their checkpoint",
    }
    for limit, words in said.items():
        over = [planned for planned in plan.cells if limit in (*planned.train.over, *planned.evaluate.over)]
        if over:
            print_sentence(f"{len(over):,} cells {words}; the first is {over[0].cell.cell_id}")


def _print_shards(plan: Plan) -> None:
    """What each accelerator holds of the cells that are too large for one, a line for each kind of them."""
    kinds = {}
    for planned in plan.cells:
        if planned.train.sharded:
            recipe = planned.cell.recipe
            kinds[recipe.family, recipe.size, planned.train.memory, planned.train.resources] = planned.train
    for (family, size, _, resources), cost in kinds.items():
        parts = [f"{name} {gb:.3g}" for name, gb in cost.memory_gb.items() if gb and name != "total"]
        total, among = cost.memory_gb["total"], f"{resources.num_accelerators} accelerators"
        print_sentence(f"{family} {size} is sharded over {among}; GB on each: {', '.join(parts)}; in all {total:.3g}")


def _print_absent(session: Session) -> None:
    """Public tasks whose images are not on this machine: the nodes may have them."""
    downstream = session.file.study.downstream
    root, absent = tasks.data_root(downstream.data), tasks.absent(downstream.tasks, downstream.data)
    if absent:
        where = f"not below {root} here" if root else "in no folder that is named ([downstream] data, or $UPSHOT_DATA)"
        print_sentence(
            f"images of {', '.join(absent)} are {where}: planned by their published numbers; the nodes need them"
            " (`upshot data check` tells where)"
        )


def _print_scarce(session: Session) -> None:
    """Where a task has too few training images for a protocol: its accuracies will be null."""
    study = session.file.study
    named = [session.file.images.task(name) for name in study.downstream.tasks]
    most = max((shots for protocol in study.protocols for shots in protocol.shots), default=0)
    few = [f"{t.name} {t.max_shots}" for t in named if t.max_shots is not None and t.max_shots < most]
    if few:
        print_sentence(f"the most shots that every class serves: {', '.join(few)}; what takes more will be null")
    vtab = [protocol.name for protocol in study.protocols if protocol.method.training == "vtab1k"]
    small = [t.name for t in named if t.num_train < VTAB_IMAGES]
    if vtab and small:
        why = f"they have fewer than {VTAB_IMAGES:,} training images"
        print_sentence(f"{', '.join(vtab)} will be null on {', '.join(small)}: {why}")


def _print_measured(plan: Plan) -> None:
    """Planned against measured hours, once anything has ended; the plan rests on the measured ones."""
    rows = [
        (
            f"{row['stage']} {row['family']}",
            row["cells"],
            f"{row['planned_hours']:.3f}",
            f"{row['measured_hours']:.3f}",
            f"{row['measured_hours'] / row['planned_hours']:.2f}" if row["planned_hours"] else "",
        )
        for row in plan.speeds.summary()
    ]
    if rows:
        print_table("Hours planned and measured", ("stage", "ended", "planned", "measured", "ratio"), rows)


# --- status and why ------------------------------------------------------------------------------------------------


def print_status(seen: Observation, session: Session, *, each: bool) -> None:
    """The study by family and size, then failures by cause; with `each`, a line a cell."""
    if each:
        _print_each(seen, session)
        return
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for state in seen.states:
        groups[f"{state.cell.recipe.family} {state.cell.recipe.size}"][state.status] += 1
    present = [status for status in Status if any(status in counts for counts in groups.values())]
    rows = (
        (name, *(Text(f"{counts[status]:,}" if counts[status] else "", STYLES.get(status, "")) for status in present))
        for name, counts in groups.items()
    )
    print_table(session.file.study.name, ("model", *present), rows)
    for line in (counts_line(seen), *notes(seen)):
        print_sentence(line)
    _print_measured(seen.plan)
    for line in wandb_lines(mirrored(session.store, seen.study, seen.states, time.time())):
        print_sentence(line)
    print(f"tensorboard --logdir {shlex.quote(_from_here(session.store.root / 'cells'))}")


def _print_each(seen: Observation, session: Session) -> None:
    """A line a cell: the axes that tell it from the others, its status and what it died of."""
    varied = varied_axes(session.file.study)
    rows = (
        (s.cell.cell_id, axes_text(s, varied), Text(s.status, STYLES.get(s.status, "")), s.why or "")
        for s in seen.states
    )
    title = f"{len(seen.states):,} cells of {session.file.study.name}"
    print_table(title, ("cell", "axes", "status", "cause"), rows, prose=("axes", "status", "cause"))


def status_json(seen: Observation, session: Session) -> dict[str, Any]:
    """What `upshot status --json` prints."""
    return {
        "cells": [state.to_json() for state in seen.states],
        "measured": seen.plan.speeds.summary(),
        "wandb": mirrored(session.store, seen.study, seen.states, time.time()).to_json(),
        "tensorboard": str(session.store.root / "cells"),
    }


def wandb_lines(found: Mirrored) -> list[str]:
    """How far W&B has the cells, then the newest trouble, and what mends it."""
    if found.mode == "disabled" and found.num_never == found.num_ran:
        return ["W&B: disabled"]
    lines = [f"W&B {found.mode}: no cell has run yet"]
    if found.num_ran and not found.num_waiting:
        lines = [f"W&B {found.mode}: all {found.num_ran:,} cells that ran are up to date"]
    elif 0 < found.num_offline == found.num_ran:
        lines = [f"W&B {found.mode}: {found.num_ran:,} cells that ran wait in their folders: `upshot sync` tells W&B"]
    elif found.num_ran:
        words = {"behind": found.num_behind, "wait as offline runs": found.num_offline, "not mirrored": found.num_never}
        others = ", ".join(f"{number:,} {word}" for word, number in words.items() if number)
        current = f"{found.num_current:,} of {found.num_ran:,} cells that ran are up to date"
        lines = [f"W&B {found.mode}: {current}, {others}: `upshot sync` mends that"]
    if found.trouble is not None:
        error = textwrap.shorten(found.trouble.error, MOST_OF_ERROR, placeholder=" ...")
        lines.append(f"W&B trouble, the newest of {found.trouble.num_cells:,} cells: {error}")
    return lines


def _from_here(path: Path) -> str:
    """The path, from the current folder where it lies below: it is to be copied from a terminal."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def varied_axes(study: Study) -> list[str]:
    """The axes besides family and size of which the study's cells have several values."""
    values: dict[str, set[str]] = defaultdict(set)
    for table in study.grid:
        for axis, given in table.items():
            values[axis].update(map(str, given))
    return [axis for axis, given in values.items() if len(given) > 1 and axis not in ("family", "size")]


def axes_text(state: CellState, varied: Sequence[str]) -> str:
    """What tells a cell from its neighbours: family, size and these axes."""
    r = state.cell.recipe
    others = ((axis, getattr(r, axis)) for axis in varied)
    told = (f"{axis}={value:g}" if isinstance(value, float) else f"{axis}={value}" for axis, value in others)
    return " ".join((r.family, r.size, *told))


LEFTOVERS = {
    "resume": "states to resume from",
    "draft": "half-written folders",
    "damaged": "damaged checkpoints set aside",
    "optimizer": "optimizer states of earlier checkpoints",
    "trunk": "states of trunks that no cell needs any more",
    "submission": "files of ended submissions",
    "code": "code that no live or unfinished job runs",
    "lock": "links of dead drivers' locks",
}


def leftovers_json(found: list[Leftover], *, removed: bool) -> dict[str, Any]:
    """What `clean --json` prints."""
    rows = [asdict(leftover) for leftover in found]
    return {"removed": removed, "num_bytes": sum(leftover.num_bytes for leftover in found), "leftovers": rows}


def print_leftovers(found: list[Leftover], does: str) -> None:
    """What finished cells no longer need, by kind, and how much room it takes."""
    rows = []
    for kind, name in LEFTOVERS.items():
        sizes = [leftover.num_bytes for leftover in found if leftover.kind == kind]
        if sizes:
            rows.append((name, len(sizes), f"{sum(sizes) / 1e6:.1f}"))
    if rows:
        print_table("What finished cells no longer need", ("what", "number", "MB"), rows)
    print(f"{does} {sum(leftover.num_bytes for leftover in found) / 1e6:.1f} MB")


def print_why(state: CellState, planned: PlannedCell, session: Session) -> None:
    """The story of one cell."""
    store, cell_id = session.store, state.cell.cell_id
    print_sentence(f"{cell_id}: {axes_text(state, varied_axes(session.file.study))}")
    print_sentence(f"status: {state.status}" + (f" ({state.why})" if state.why else ""))
    for event in [*store.attempts(cell_id), *_unrecorded_deaths(state, session)]:
        print_sentence(_event_line(event))
        if event.get("outcome") == "failed":
            print(textwrap.indent(harmless(event["error"]["traceback"].rstrip()), "    "))
    corrupt = [r for r in read_records(store.train_log(cell_id)).records if r.get("event") == "corrupt_images"]
    if corrupt:
        first = "; ".join(corrupt[-1]["first"])
        print_sentence(f"images that could not be read: {corrupt[-1]['count']:,}, the first: {first}")
    log = _newest_log(state, session)
    if log is not None and log.exists():
        print(f"log: {log}")
        print("\n".join(f"    {line}" for line in deque(log_lines(log), maxlen=LOG_TAIL)))
    print(f"folder: {store.cell_folder(cell_id)}")
    print_sentence(f"next: {_next_step(state, planned, session)}")


def _unrecorded_deaths(state: CellState, session: Session) -> list[dict[str, Any]]:
    """Deaths that this look found out, and that no driver has put into the ledger yet."""
    recorded = {
        (a.stage, a.number, a.token)
        for a in read_attempts(session.store.attempts(state.cell.cell_id))
        if a.death is not None
    }
    found = [stage.last for stage in (state.train, state.evaluate) if stage.last is not None]
    return [
        {"time": time.time(), **death_event(last, last.death)}
        for last in found
        if last.death is not None and (last.stage, last.number, last.token) not in recorded
    ]


def _event_line(event: dict[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
    if event["event"] == "retry":
        return f"{when}  {event['stage']}: somebody asked for a retry"
    step = event.get("step_to_evaluate")
    what = event["stage"] if step is None else f"{event['stage']} of step {step}"
    if event["event"] == "death":
        which = f"attempt {event['attempt']}" if event["attempt"] else "job"
        where = f" on {event['node']}" if event.get("node") else ""
        return f"{when}  {what} {which} died{where}: {event['cause']} ({event['detail']})"
    head = f"{when}  {what} attempt {event['attempt']} {event['event']}"
    if event["event"] == "start":
        node = event.get("node") or event["host"]
        return f"{head} on {node}" + (f", job {event['job']}" if event.get("job") else f", pid {event['pid']}")
    told = f" ({event['error']['message']})" if event["outcome"] == "interrupted" else ""
    return f"{head}: {event['outcome']} after {event['seconds']:.1f} s{told}"


def _newest_log(state: CellState, session: Session) -> Any:
    stage = state.evaluate if state.evaluate.last else state.train
    if stage.last is None:
        return None
    return session.store.log_path(state.cell.cell_id, stage.last.stage, stage.last.number)


def _next_step(state: CellState, planned: PlannedCell, session: Session) -> str:
    if state.status == Status.FAILED and planned.action == "retry":
        return f"upshot watch starts it again ({planned.reason.rpartition('; ')[2]})"
    return {
        Status.NEW: "upshot submit or upshot watch starts it",
        Status.FAILED: f"mend the cause, then: upshot retry {session.store.root} {state.cell.cell_id[:8]}",
        Status.DONE: "nothing; it is done",
        Status.DIVERGED: "nothing; that its loss diverged is its result",
    }.get(state.status, "wait; upshot watch shows it")
