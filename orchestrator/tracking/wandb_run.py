"""A cell as a Weights & Biases run: the run has the cell's id, and is told what the study folder says.

The history is the cell's journal (`tracking.journal`), line by line; `examples_seen` is the x-axis.
"""

import contextlib
import errno
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from orchestrator.files import write_whole
from orchestrator.tracking.account import Mode
from orchestrator.tracking.client import (
    CAUSE,
    Description,
    Listener,
    OpenRun,
    close,
    draft_folder,
    one_line,
    open_run,
    summarise,
    tell,
)
from orchestrator.tracking.curves import COSTS, final_metrics, read_curve
from orchestrator.tracking.journal import Row, advance
from orchestrator.tracking.opening import open_online
from orchestrator.tracking.stamps import Place, stamp_of, stamped
from orchestrator.tracking.transaction_log import num_rows_kept
from orchestrator.tracking.trouble import DELETED, Trouble, trouble_in, trouble_of

TIMEOUT_S = 30.0
WRITTEN_S: Final = 5.0
NOTE: Final = "mirror.json"
"""Of a cell's folder: how its last mirror went."""
Opens = Callable[[Path, Description, Sequence[Row], Path, float], OpenRun]
"""`opening.open_online`, or `open_over` where W&B may hold another history."""
ENDED: Final = ("done", "diverged", "failed")
"""The outcomes after which nothing more comes, unless somebody wants it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorResult:
    """How a mirror went. `error` is one line and None when `ok`; nothing is lost when it went wrong.

    Args:
        trouble: of which kind the error is.
        num_records: the curve's records in the files, repeated steps counted each time.
        num_rows: the lines of the journal, which the run's history is to have.
        num_sent: how many went into W&B's history this time.
        num_unreadable: lines of `train.ndjson` that are torn, or curve records without a step.
        folder: the offline run, to be given to `wandb sync`.
        url: the online run's page.
    """

    ok: bool
    mode: Mode
    error: str | None = None
    trouble: Trouble | None = None
    num_records: int = 0
    num_rows: int = 0
    num_sent: int = 0
    num_unreadable: int = 0
    folder: Path | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CellFiles:
    """What a mirror is written from."""

    folder: Path
    rows: list[Row]
    num_records: int
    num_unreadable: int
    summary: dict[str, Any]
    description: Description
    outcome: str


def mirror_cell(
    cell_dir: Path,
    description: Description,
    *,
    mode: Mode,
    outcome: str,
    timeout_s: float = TIMEOUT_S,
    opens: Opens = open_online,
) -> MirrorResult:
    """Writes the whole of a cell, as it stands, to its W&B run; idempotent, one call at a time for a cell.

    Offline, the run under `cell_dir/wandb/` is replaced once the new one is complete. Online, the run with the cell's
    id is made or continued, and told only what it has not heard. How it went stands in `cell_dir/mirror.json` too.

    Args:
        cell_dir: the cell's folder; its name is the run's id.
        description: what is shown beside the curves.
        mode: see above; "disabled" does nothing.
        outcome: done, failed, diverged or running.
        timeout_s: how long looking at the run, opening it and uploading may take, each; where W&B does not answer the
            first, two seconds more are all.
        opens: how the run is opened online.

    Returns:
        What was done. Nothing that goes wrong here is raised: a mirror must not take down the cell that it shows.
    """
    if mode == "disabled":
        return MirrorResult(ok=True, mode=mode)
    try:
        stamp = stamp_of(cell_dir, outcome)
        cell = read_files(cell_dir, description, outcome)
    except Exception as error:  # see Returns
        result = MirrorResult(ok=False, mode=mode, error=one_line(error), trouble=Trouble.CELL)
        note(cell_dir, ok=False, mode=mode, error=result.error, rows=None, outcome=outcome)
        return result
    try:
        result = _mirror_online(cell, timeout_s, opens) if mode == "online" else _mirror_offline(cell, timeout_s)
    except Exception as error:  # what wandb raises is no closed set
        close()
        result = _result(cell, problem_of(error), trouble_of(error), mode=mode)
    rows = result.num_rows if result.ok else None
    more: dict[str, Any] = {"url": result.url} if mode == "online" else {}
    if result.ok and mode == "online":
        more |= stamped(Place.of(description.project, description.entity), stamp)
    note(cell_dir, ok=result.ok, mode=mode, error=result.error, rows=rows, outcome=outcome, **more)
    return result


def read_files(cell_dir: Path, description: Description, outcome: str) -> CellFiles:
    """The cell as its files have it now, its journal brought up to date.

    Raises:
        DataError: an evaluation's file cannot be read.
        OSError: the journal cannot be written.
    """
    curve = read_curve(cell_dir)
    config = description.config
    summary = final_metrics(cell_dir, curve) | {key: config[key] for key in COSTS if key in config}
    summary = {key: _storable(v) for key, v in {**summary, **description.summary}.items() if v is not None}
    if outcome != "failed":  # a failed attempt went before
        summary.pop(CAUSE, None)
    return CellFiles(
        folder=cell_dir,
        rows=advance(cell_dir, curve, description.wanted),
        num_records=len(curve.points),
        num_unreadable=curve.num_unreadable,
        summary={**summary, "outcome": outcome},
        description=description,
        outcome=outcome,
    )


def _storable(value: float | str) -> float | str:
    """W&B drops a summary value that is no number without a word, so it is written as its JavaScript name."""
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def problem_of(error: Exception) -> str:
    """One line of what went wrong, with what mends it where that is known."""
    problem = one_line(error)
    if "failed to rewind" in problem:
        problem += " (W&B could not empty this run, and what it shows is left: give the study another wandb.project)"
    if DELETED in problem:
        problem += " (restore the run on its W&B page, or give the study another wandb.project)"
    return problem


def note(
    cell_dir: Path, *, ok: bool, mode: Mode, error: str | None, rows: int | None, outcome: str = "running", **more: Any
) -> None:
    """Leaves in `mirror.json` how a mirror went: `rows` is how many lines of the journal the run has, None if unknown.

    The folder may be full or gone: then nothing is left.
    """
    told = {"time": time.time(), "ok": ok, "mode": mode, "error": error, "rows": rows, "outcome": outcome, **more}
    with contextlib.suppress(OSError):
        write_whole(cell_dir / NOTE, json.dumps(told))


def is_unchanged(cell_dir: Path, place: Place, stamp: str) -> bool:
    """Whether the cell's last mirror was a good one, to that place and of the very files that are there now."""
    try:
        noted = json.loads((cell_dir / NOTE).read_bytes())
    except (OSError, ValueError):
        return False
    if not isinstance(noted, dict):
        return False
    wanted = {"ok": True, "mode": "online", **stamped(place, stamp)}
    return {key: noted.get(key) for key in wanted} == wanted


def mirrored_since(cell_dir: Path, changed: Path) -> bool:
    """Whether the cell's last mirror went well, and that file is no newer."""
    try:
        noted = json.loads((cell_dir / NOTE).read_bytes())
        return bool(noted["ok"]) and (cell_dir / NOTE).stat().st_mtime_ns >= changed.stat().st_mtime_ns
    except (OSError, ValueError, TypeError, KeyError):  # none yet, or left empty by a crash
        return False


def _mirror_offline(cell: CellFiles, timeout_s: float) -> MirrorResult:
    with draft_folder(cell.folder) as draft:
        opened = open_run(cell.folder, cell.description, draft, timeout_s, Listener(), mode="offline")
        sent = _tell_all(opened, cell)
        (made,) = (draft / "wandb").glob("offline-run-*")
        shutil.rmtree(made / "logs")  # wandb's own, with a link into the home folder; `wandb sync` needs none of it
        home = cell.folder / "wandb"
        home.mkdir(exist_ok=True)
        for old in home.glob("offline-run-*"):
            # Aside before the new one comes: two of the same second have the same name.
            old.rename(draft / old.name)
        folder = made.rename(home / made.name)
    return _result(cell, None, mode="offline", num_sent=sent, folder=folder)


def _mirror_online(cell: CellFiles, timeout_s: float, opens: Opens) -> MirrorResult:
    with draft_folder(cell.folder) as draft:
        opened = opens(cell.folder, cell.description, cell.rows, draft, timeout_s)
        url = opened.run.url
        try:
            sent = _tell_all(opened, cell)
        except TimeoutError:
            problem = f"W&B took longer than {timeout_s:g} s to take the upload"
            return _result(cell, problem, Trouble.PASSING, mode="online", url=url)
    fields: dict[str, Any] = {"mode": "online", "num_sent": sent, "url": url}
    if opened.listener.fatal:
        words = opened.listener.fatal[0]
        return _result(cell, f"W&B refused a part: {words}", trouble_in(words), **fields)
    _mark_synced(cell.folder)
    return _result(cell, None, **fields)


def _mark_synced(folder: Path) -> None:
    """Has `wandb sync` leave the cell's offline runs out: it would tell their rows a second time."""
    for path in (folder / "wandb").glob("offline-run-*/*.wandb"):
        path.with_name(f"{path.name}.synced").touch()


def _tell_all(opened: OpenRun, cell: CellFiles) -> int:
    """How many lines were new to the run; finishes it.

    Raises:
        TimeoutError: the upload took too long.
        OSError: the client could not write all of it down, and so did not send it.
    """
    finished = False
    try:
        sent = tell(opened.run, cell.rows, opened.num_there)
        summarise(opened.run, cell.summary, cell.rows)
        if cell.outcome not in ENDED:
            opened.run.mark_preempting()  # or W&B would call it finished
        finished = True
    finally:
        opened.run.finish(exit_code=0 if finished and cell.outcome in ("done", "diverged") else 1)
    _check_kept(Path(opened.run.dir).parent, sent)
    return sent


def _check_kept(folder: Path, sent: int) -> None:
    """Waits for what the client writes after it said that it was finished: milliseconds, where there is room."""
    (path,) = folder.glob("*.wandb")
    deadline = time.monotonic() + WRITTEN_S
    while (kept := num_rows_kept(path)) is not None and kept < sent:
        if time.monotonic() > deadline:
            problem = "not all rows were written down for W&B: is the disk full, or a quota used up?"
            raise OSError(errno.ENOSPC, problem, str(folder))
        time.sleep(0.01)


def _result(cell: CellFiles, problem: str | None, trouble: Trouble | None = None, **fields: Any) -> MirrorResult:
    return MirrorResult(
        ok=problem is None,
        error=problem,
        trouble=trouble,
        num_records=cell.num_records,
        num_rows=len(cell.rows),
        num_unreadable=cell.num_unreadable,
        **fields,
    )
