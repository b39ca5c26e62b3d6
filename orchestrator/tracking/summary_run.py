"""A study as one Weights & Biases run: headline numbers in its summary, tables, and as artifacts results and report.

The run is told anew only when the study has changed: a digest of what it was told last, and well, stands in the study
folder and in the run's summary.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from orchestrator.files import write_whole
from orchestrator.tracking.account import Mode, need_key
from orchestrator.tracking.client import (
    TOLD,
    Description,
    Known,
    Listener,
    NoAnswerError,
    OpenRun,
    RunRefusedError,
    draft_folder,
    look,
    open_run,
    own_environment,
)
from orchestrator.tracking.wandb_run import NOTE, TIMEOUT_S, MirrorResult, problem_of

if TYPE_CHECKING:
    import wandb

MODE: Final[Mode] = "online"
PAGE: Final = "report"
"""The type of the artifact that holds the report's page."""
UPLOAD_BYTES_PER_S: Final = 1_000_000
"""A slow connection, which an upload may wait for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySummary:
    """What a study's run is told.

    Args:
        numbers: by the names that W&B's summary shows.
        tables: by name, each a W&B table.
        files: tables too long for that, by the type of their artifact; it is named STUDY-TYPE.
        page: the report's page, an artifact too.
    """

    numbers: Mapping[str, str | float]
    tables: Mapping[str, pl.DataFrame]
    files: Mapping[str, Path]
    page: str


def run_id(study: str) -> str:
    """The id of the study's run; names of studies have no character that W&B refuses in ids."""
    return f"study-{study}"


def artifact_name(study: str, kind: str) -> str:
    """The name of one of the study's artifacts; a project may hold several studies, and a name is of one artifact."""
    return f"{study}-{kind}"


def mirror_summary(
    folder: Path,
    description: Description,
    digest: str,
    make: Callable[[], StudySummary],
    *,
    timeout_s: float = TIMEOUT_S,
) -> MirrorResult:
    """Tells W&B what the study says, unless it was told just that; idempotent, one call at a time for a study.

    Artifacts get a new version where their contents changed. How it went stands in `folder/mirror.json` too.

    Args:
        folder: the study's folder.
        description: of its run, whose config has the table `upstream` of the study.
        digest: what changes whenever the study says something else.
        make: what is told; called only if it has to be.
        timeout_s: how long looking at the run, opening it and ending it may take, each, and an upload beside its size.

    Returns:
        What was done; `num_sent` is 1 where something was told. Nothing that goes wrong with W&B is raised.
    """
    try:
        with draft_folder(folder) as draft, _staged(draft):
            result = _mirror(folder, description, digest, make, draft, timeout_s)
    except Exception as error:  # what wandb raises is no closed set
        result = MirrorResult(ok=False, mode=MODE, error=problem_of(error))
    told = {"time": time.time(), "ok": result.ok, "mode": MODE, "error": result.error, "digest": digest}
    with contextlib.suppress(OSError):  # the folder may be full or gone
        write_whole(folder / NOTE, json.dumps(told))
    return result


def was_told(folder: Path) -> bool:
    """Whether the last time went well, of the study in that folder; what has changed since does not count."""
    try:
        return json.loads((folder / NOTE).read_bytes())["ok"] is True
    except (OSError, ValueError, TypeError, KeyError):  # none yet, or left empty by a crash
        return False


def _mirror(
    folder: Path,
    description: Description,
    digest: str,
    make: Callable[[], StudySummary],
    draft: Path,
    timeout_s: float,
) -> MirrorResult:
    need_key()
    name, listener = run_id(description.study), Listener()
    try:
        known = look(name, description, draft, timeout_s, listener)
    except NoAnswerError:
        known = None  # opening tells better what is wrong, and "never" lets no run be overwritten that is there
    if known is not None:
        _check_same(name, known, description)
        if known.digest == digest == _told_well(folder):
            return MirrorResult(ok=True, mode=MODE)
    resume = "never" if known is None else "allow"
    opened = open_run(folder / name, description, draft, timeout_s, listener, mode=MODE, resume=resume)
    _tell(opened, description.study, make, digest, draft, timeout_s)
    problem = f"W&B refused a part: {listener.fatal[0]}" if listener.fatal else None
    return MirrorResult(ok=problem is None, mode=MODE, error=problem, num_sent=1, url=opened.run.url)


def _told_well(folder: Path) -> str | None:
    """The digest of what W&B took whole, by the note that the last mirror left."""
    try:
        told = json.loads((folder / NOTE).read_bytes())
    except (OSError, ValueError):
        return None
    return told.get("digest") if isinstance(told, dict) and told.get("ok") else None


def _check_same(name: str, known: Known, description: Description) -> None:
    """Refuses a run that is of another study: by its group, or by the images that its cells were trained on."""
    theirs, ours = known.config.get("upstream"), description.config["upstream"]
    data = theirs.get("dataset") if isinstance(theirs, Mapping) else None
    if known.group == description.study and data == ours["dataset"]:
        return
    raise RunRefusedError(
        f"W&B project {description.project} has a run {name} of another study: group {known.group!r}, upstream data "
        f"{data!r} there, {description.study!r} and {ours['dataset']!r} here; it is left as it is (give this study "
        "another wandb.project, or another name)"
    )


def _tell(
    opened: OpenRun, study: str, make: Callable[[], StudySummary], digest: str, draft: Path, timeout_s: float
) -> None:
    """Tells the run everything, and ends it.

    Raises:
        Exception: whatever wandb raises where it cannot, or not in time.
    """
    finished = False
    try:
        told = make()
        _log_files(opened.run, study, told, draft, timeout_s)
        _summarise(opened.run, told, digest)
        finished = True
    finally:
        with contextlib.nullcontext() if finished else contextlib.suppress(Exception):  # what went wrong first is told
            opened.run.finish(exit_code=0 if finished else 1)
    _check_tables(opened.run, told.tables, timeout_s)


def _log_files(run: "wandb.Run", study: str, told: StudySummary, draft: Path, timeout_s: float) -> None:
    """Uploads the artifacts, one after the other.

    Raises:
        Exception: whatever wandb raises where it cannot, or not in time.
    """
    import wandb

    page = draft / "index.html"
    page.write_text(told.page, encoding="utf-8")
    for kind, path in {**told.files, PAGE: page}.items():
        copy = draft / path.name
        if path != page:
            shutil.copyfile(path, copy)  # another process may collect the results meanwhile
        artifact = wandb.Artifact(artifact_name(study, kind), kind)
        artifact.add_file(str(copy), policy="immutable", skip_cache=True)
        run.log_artifact(artifact)
        artifact.wait(round(timeout_s + copy.stat().st_size / UPLOAD_BYTES_PER_S))


def _summarise(run: "wandb.Run", told: StudySummary, digest: str) -> None:
    """Sets the run's summary; what the study no longer says goes."""
    new: dict[str, Any] = {**told.numbers, **{name: _table(frame) for name, frame in told.tables.items()}}
    shown = run.summary.keys()  # type: ignore[no-untyped-call]  # wandb leaves its summary untyped
    for key in [key for key in shown if not key.startswith("_") and key not in new]:
        del run.summary[key]  # type: ignore[no-untyped-call]  # the same
    run.summary.update({**new, TOLD: f"0 {digest}"})


def _check_tables(run: "wandb.Run", tables: Mapping[str, pl.DataFrame], timeout_s: float) -> None:
    """Looks at what W&B has of the tables: wandb uploads them beside the summary, and tells nobody if that fails.

    Raises:
        RuntimeError: it lacks one.
    """
    import wandb

    with own_environment():
        api = wandb.Api(timeout=max(1, round(timeout_s)))
        for name, frame in tables.items():
            expected = wandb.Artifact(name, "table")
            expected.add(_table(frame), name)
            versions = api.artifacts("run_table", f"{run.entity}/{run.project}/run-{run.id}-{name}")
            try:
                # A table that is as it once was is that earlier version.
                there = any(version.digest == expected.digest for version in versions)
            except ValueError:  # there is no such table at all
                there = False
            if not there:
                raise RuntimeError(f"W&B has not taken the table {name}")


def _table(frame: pl.DataFrame) -> "wandb.Table":
    """A W&B table; what is no number is null there, since JSON has no NaN."""
    import wandb

    finite = [
        pl.when(pl.col(name).is_finite()).then(name).alias(name)
        for name, kind in frame.schema.items()
        if kind.is_float()
    ]
    rows = [list(row) for row in frame.with_columns(finite).iter_rows()]
    return wandb.Table(columns=[*frame.columns], data=rows)


@contextlib.contextmanager
def _staged(folder: Path) -> Iterator[None]:
    """Lets wandb copy what it uploads into this folder and not into the home folder, where it may stay."""
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("WANDB_DATA_DIR")
        if before is not None:
            os.environ["WANDB_DATA_DIR"] = before
