"""A cell's run at W&B: made, gone on with, or emptied, and left alone where it is another one's."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from models.recipe import Recipe
from orchestrator.tracking.client import (
    Description,
    Known,
    Listener,
    NoAnswerError,
    OpenRun,
    RunRefusedError,
    look,
    need_key,
    open_run,
)
from orchestrator.tracking.journal import Row, digest

REASON_S: Final = 2.0  # for a client that found no answer to say why
SAME: Final = ("cell_id", *Recipe.model_fields)
"""Of the configuration, what makes a run this cell's."""
PAUSES_S: Final = (1.0, 2.0, 4.0)
"""Before a run is opened again whose rows W&B had not counted yet; it takes a few seconds (wandb #12421)."""


def open_online(
    cell_dir: Path, description: Description, rows: Sequence[Row], draft: Path, timeout_s: float
) -> OpenRun:
    """The cell's run at W&B, made or continued.

    Raises:
        RunRefusedError: the run is another cell's or study's, or was told another history.
        NoAnswerError: W&B does not say how many rows the run has.
        Exception: whatever wandb raises where it cannot open a run.
    """
    need_key()
    listener = Listener()
    try:
        known = look(cell_dir.name, description, draft, timeout_s, listener)
    except NoAnswerError:
        # Opening tells better what is wrong, and "never" lets no run be overwritten that is there.
        known, timeout_s = None, min(timeout_s, REASON_S)
    if known is None:
        return open_run(cell_dir, description, draft, timeout_s, listener, mode="online", resume="never")
    _check_same(cell_dir.name, known, description)
    described = _with_their_tags(description, known)
    return _go_on(cell_dir, described, rows, known, draft, timeout_s, listener)


def _with_their_tags(description: Description, known: Known) -> Description:
    """The description with the tags that people gave the run, but not an earlier grid's axes."""
    others = [tag for tag in known.tags if tag.partition("=")[0] not in SAME]
    return replace(description, tags=[*description.tags, *others])


def _go_on(
    cell_dir: Path,
    description: Description,
    rows: Sequence[Row],
    known: Known,
    draft: Path,
    timeout_s: float,
    listener: Listener,
) -> OpenRun:
    """The run that is there, opened while W&B's count of its rows stood still.

    W&B counts rows some seconds after they came, and tells how many there are, and which was the last, in answers that
    are of different age (wandb #12421, #12668). A client that was told too few puts new rows over old ones, or old ones
    behind them.
    """
    for pause_s in (*PAUSES_S, None):
        _check_told(known, rows)
        opened = open_run(cell_dir, description, draft, timeout_s, listener, mode="online", resume="allow")
        again = _look_again(opened, description, draft, timeout_s)
        if opened.num_there <= known.num_rows == again.num_rows:
            return replace(opened, num_there=again.num_rows)
        _leave(opened)
        if pause_s is not None:
            time.sleep(pause_s)
        known = again
    raise NoAnswerError(
        "W&B has not counted the rows of this run yet; nothing was told, the next mirror goes on (if it stays so, some"
        " were lost on the way: `upshot sync --rebuild` tells it anew)"
    )


def _look_again(opened: OpenRun, description: Description, draft: Path, timeout_s: float) -> Known:
    """What W&B has of the run that was just opened, which ends where W&B does not say."""
    try:
        known = look(opened.run.id, description, draft, timeout_s, opened.listener)
        if known is None:
            raise NoAnswerError("W&B does not know the run that it has just opened")
    except NoAnswerError:
        _leave(opened)
        raise
    return known


def _leave(opened: OpenRun) -> None:
    """Ends a run that was told nothing; W&B calls it preempted, until somebody goes on with it."""
    opened.run.mark_preempting()
    opened.run.finish(exit_code=1)


def open_over(cell_dir: Path, description: Description, rows: Sequence[Row], draft: Path, timeout_s: float) -> OpenRun:
    """The cell's run at W&B, as `open_online`, but emptied where its history cannot be the journal's first rows.

    That takes W&B's rewind (docs.wandb.ai/models/runs/rewind: a preview of its clouds since May 2026). Without it what
    is told goes behind what is there: a client of today begins at the number of rows that W&B says it has, however the
    run is opened, and so does `wandb sync`.

    Raises:
        RunRefusedError: the run is another cell's or study's.
        Exception: whatever wandb raises where it cannot open a run, rewind it, or say what it has of it.
    """
    need_key()
    listener = Listener()
    known = look(cell_dir.name, description, draft, timeout_s, listener)
    if known is None:
        return open_run(cell_dir, description, draft, timeout_s, listener, mode="online", resume="never")
    _check_same(cell_dir.name, known, description)
    described = _with_their_tags(description, known)
    if known.may_be_first_of(rows):
        return _go_on(cell_dir, described, rows, known, draft, timeout_s, listener)
    emptied = f"{cell_dir.name}?_step=-1"  # exclusive: no row stays
    return open_run(cell_dir, described, draft, timeout_s, listener, mode="online", resume_from=emptied)


def _check_same(run_id: str, known: Known, description: Description) -> None:
    ours = {**description.config, "study": description.study}
    theirs = {**known.config, "study": known.group}
    different = [
        f"{key} is {theirs[key]!r} there and {ours[key]!r} here"
        for key in ("study", *SAME)
        if theirs.get(key) is not None and key in ours and theirs[key] != ours[key]
    ]
    if different:
        raise RunRefusedError(
            f"W&B project {description.project} has a run {run_id} of another study or cell: {', '.join(different)};"
            " it is left as it is (give this study another wandb.project, or delete that run there)"
        )


def _check_told(known: Known, rows: Sequence[Row]) -> None:
    if known.num_rows > len(rows):
        raise RunRefusedError(
            f"W&B holds {known.num_rows} records of this run and the study folder {len(rows)}: it shows an earlier"
            " training of the cell; the run is left as it is (`upshot sync --rebuild` tells it anew)"
        )
    if known.digest and known.num_told <= len(rows) and digest(rows[: known.num_told]) != known.digest:
        raise RunRefusedError(
            f"W&B's {known.num_told} rows of this run are not the first of the cell's journal, which must have been"
            " lost and made anew; the run is left as it is (`upshot sync --rebuild` writes it over)"
        )
