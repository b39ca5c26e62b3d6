"""Runs as W&B holds them, read back through its public API: listed in pages, and only those that changed in full.

What was read is kept in the user's cache folder (`kept_runs`) page by page, so a call that was cut off goes on.
"""

import contextlib
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from models.errors import UserError
from orchestrator.bars import Tell, tell_nobody
from orchestrator.tracking.account import base_url, need_key
from orchestrator.tracking.client import close, one_line, own_environment, settings_of
from orchestrator.tracking.kept_runs import KeptRuns, LoggedRun, Scalar
from orchestrator.tracking.trouble import KEY, STATUS

if TYPE_CHECKING:
    import wandb

LISTED: Final = 500
"""Runs a request where only their names and states are asked for."""
READ: Final = 50
"""Runs a request with config and summary, which may be long."""
TIMEOUT_S: Final = 120.0
NUM_RETRIES: Final = 5
"""Of a request that is answered 429 or 5xx; the client waits longer before each, at most half a minute."""
MOST_WAIT_S: Final = 30.0
"""Between two requests of which the first was refused."""
SLOWEST: Final = 100_000
"""Bytes a second below which a file that comes is given up."""
CHUNK: Final = 4096
"""Bytes after which that is looked at."""
SUMMARY_JOB: Final = "summary"
RESULTS: Final = "results"
"""A study's own results table is an artifact of this name and type, of a run of that job type."""


class Patience(NamedTuple):
    """How long one request may take in all, and how often one that is refused is repeated."""

    timeout_s: float
    num_retries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRuns:
    """What a project holds, in the order in which the runs were made.

    Args:
        runs: every run, but those that only sum a study up.
        tables: by group, the study's own results table, where it was logged; the newest of it.
        num_read: how many runs had to be read; the others were kept.
        folder: where they are kept.
    """

    runs: list[LoggedRun]
    tables: dict[str, Path]
    num_read: int
    folder: Path


def read_runs(
    entity: str,
    project: str,
    *,
    group: str | None = None,
    tables: bool = True,
    timeout_s: float = TIMEOUT_S,
    num_retries: int = NUM_RETRIES,
    tell: Tell = tell_nobody,
) -> ReadRuns:
    """The runs of a project, or of one group of it.

    Args:
        entity: the W&B team or user.
        project: its project.
        group: the only group; the server filters.
        tables: whether results tables that studies logged are fetched.
        timeout_s: how long one request may take, with what the client waits after a refusal.
        num_retries: how often the client asks again after 429 or 5xx.
        tell: hears how many of the runs that have changed are read.

    Raises:
        UserError: no key, a refused one, no such project, no runs, a server that stays busy, broken or silent, a cache
            folder that cannot be written. What was read before stays kept.
    """
    need_key()
    kept = KeptRuns.of(base_url(), entity, project)
    path = f"{entity}/{project}"
    with _refusals(path, kept), public_api(timeout_s, num_retries) as api:
        listed = list(api.runs(path, filters={"group": group} if group else {}, per_page=LISTED, lazy=True))
        if not listed:
            raise UserError(f"W&B: {path} has no runs{f' of group {group!r}' if group else ''}")
        changed = [run.id for run in listed if not kept.has(run.id, _stamp(run))]
        for first in range(0, len(changed), READ):
            tell("reading runs", first, len(changed))
            _read(api, path, changed[first : first + READ], kept)
        summaries = [run for run in listed if run.job_type == SUMMARY_JOB] if tables else []
        patience = Patience(timeout_s, num_retries)
        found = {run.group or "": table for run in summaries for table in _tables(run, kept.folder, patience)}
    kept.tidy()
    runs = [kept.runs[run.id] for run in listed if run.id in kept.runs]
    runs = [run for run in runs if run.job_type != SUMMARY_JOB]
    return ReadRuns(runs=runs, tables=found, num_read=len(changed), folder=kept.folder)


def _stamp(run: Any) -> list[Any]:
    """What differs once a run has gone on; of a listed run and of one that was read in full."""
    return [run.heartbeat_at, run.state, run.history_line_count]


def _read(api: "wandb.Api", path: str, ids: Sequence[str], kept: KeptRuns) -> None:
    for run in api.runs(path, filters={"name": {"$in": list(ids)}}, per_page=READ, lazy=False):
        logged = LoggedRun(
            run_id=run.id,
            name=run.name or "",
            group=run.group,
            job_type=run.job_type,
            state=run.state,
            config=scalars(run.config),
            summary=scalars(run.summary_metrics or {}),
        )
        kept.add(logged, _stamp(run))


def scalars(values: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """The texts, numbers and truth values of a config or a summary; nested ones under dotted names, as W&B shows."""
    found: dict[str, Scalar] = {}
    for key, value in values.items():
        if isinstance(value, str | int | float):
            found[f"{prefix}{key}"] = value
        elif isinstance(value, Mapping) and "_type" not in value:  # with it: a table, a picture
            found |= scalars(value, f"{prefix}{key}.")
    return found


def _tables(run: Any, folder: Path, patience: Patience) -> Iterator[Path]:
    """The results table that a run logged last, fetched once; none where it logged none."""
    versions = [artifact for artifact in run.logged_artifacts() if artifact.type == RESULTS]
    if not versions:
        return
    # A table that is as it once was is that earlier version, which W&B then calls the latest.
    newest = max(
        versions, key=lambda one: ("latest" in one.aliases, one.created_at, int(one.version.removeprefix("v")))
    )
    path = folder / f"results-{hashlib.sha256(newest.digest.encode()).hexdigest()[:16]}.parquet"
    if not path.exists():
        files = [file for file in newest.files() if file.name.endswith(".parquet")]
        if len(files) != 1:
            raise UserError(f"W&B: artifact {newest.name} holds {len(files)} parquet files, one is expected")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as draft:
            problem = _fetch(files[0], Path(draft) / path.name, patience)
            if problem:
                raise UserError(
                    f"W&B: artifact {newest.name} cannot be fetched: {problem}; the same command tries again"
                )
            (Path(draft) / path.name).replace(path)
    yield path


def _fetch(file: Any, path: Path, patience: Patience) -> str | None:
    """What went wrong, if anything did, with fetching an artifact's file; without its address, which is signed.

    `Artifact.download` would ask for twenty minutes, and wait for ever for a server that is silent.
    """
    import requests
    import wandb
    from urllib3.util.retry import Retry

    waits = Retry(
        total=patience.num_retries,
        backoff_factor=1,
        backoff_max=MOST_WAIT_S,
        status_forcelist=(408, 409, 429, 500, 502, 503, 504),
        raise_on_status=False,
        respect_retry_after_header=False,  # a server may name any time
    )
    deadline = time.monotonic() + patience.timeout_s + file.size / SLOWEST
    try:
        with requests.Session() as session:
            session.headers.update(getattr(wandb.setup().settings, "x_extra_http_headers", None) or {})
            for scheme in ("http://", "https://"):
                session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=waits))
            answer = session.get(file.direct_url, stream=True, timeout=patience.timeout_s / (patience.num_retries + 1))
            if not answer.ok:
                return f"the server answers {answer.status_code} {answer.reason}"
            with path.open("wb") as written:
                for chunk in answer.iter_content(CHUNK):
                    written.write(chunk)
                    if time.monotonic() > deadline:
                        return f"it came slower than {SLOWEST / 1e3:g} kB a second"
    except requests.RequestException as error:
        return f"no answer, or half of one ({type(error).__name__})"
    return None if path.stat().st_size == file.size else f"{path.stat().st_size:,} of {file.size:,} bytes came"


@contextlib.contextmanager
def public_api(timeout_s: float, num_retries: int) -> Iterator["wandb.Api"]:
    """The public API, for requests of which each may take so long; nothing of it stays behind."""
    import wandb

    with tempfile.TemporaryDirectory(prefix="upshot-wandb-") as folder, own_environment(), _folder(folder):
        settings = settings_of(Path(folder), timeout_s)
        settings.x_graphql_retry_max = num_retries
        settings.x_graphql_retry_wait_max_seconds = MOST_WAIT_S
        # Or the client would wait for a silent server when it is taken down, long after we have given up.
        settings.x_graphql_timeout_seconds = timeout_s / (num_retries + 1)
        wandb.setup(settings)
        try:
            # Whole seconds are what it takes; half a second must not become none.
            yield wandb.Api(timeout=max(1, round(timeout_s)))
        finally:
            close()


@contextlib.contextmanager
def _folder(folder: str) -> Iterator[None]:
    """WANDB_DIR for a while: the API makes an empty folder there for every run that it lists."""
    before = os.environ.get("WANDB_DIR")
    os.environ["WANDB_DIR"] = folder
    try:
        yield
    finally:
        os.environ.pop("WANDB_DIR")
        if before is not None:
            os.environ["WANDB_DIR"] = before


@contextlib.contextmanager
def _refusals(path: str, kept: KeptRuns) -> Iterator[None]:
    """Failures as messages for the user."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # what wandb raises is no closed set
        if "Could not find project" in str(error):
            raise UserError(f"W&B: there is no project {path}, or this key may not see it") from error
        if type(error).__module__.startswith(("wandb", "requests")):
            so_far = f"What was read of {path} is kept ({len(kept.runs)} runs): the same command goes on from there."
            raise UserError(f"{refusal(error)} {so_far}") from error
        if isinstance(error, OSError):
            raise UserError(f"{kept.folder}: {error}; XDG_CACHE_HOME names another cache folder") from error
        raise


def refusal(error: Exception) -> str:
    """What went wrong with a request, as a sentence."""
    words = one_line(str(error)).rstrip(".")
    if KEY.search(words) or re.search(STATUS.format("403"), words):
        return f"W&B at {base_url()} refuses the key: {words}."
    if re.search(STATUS.format("429"), words):
        return f"W&B at {base_url()} limits the rate: {words}. Wait some minutes."
    return f"W&B at {base_url()} does not answer: {words}."
