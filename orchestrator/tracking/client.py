"""The door to wandb: a run, looked at, opened and told. wandb is imported where it is used: it takes a second.

Nothing is asked of a person, printed, or sent about this machine, and every wait is bounded.
"""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from models.errors import UserError
from orchestrator.tracking.account import base_url, find_key
from orchestrator.tracking.journal import Row, digest

if TYPE_CHECKING:
    import wandb

MAX_NAME, MAX_TAG = 128, 64  # W&B refuses a run with a longer display name or tag
DRAFT = ".wandb-draft-"
TOLD: Final = "_told"
"""Of the summary: how many lines of the journal the history has, and their digest; W&B's pages hide the name."""
CAUSE: Final = "cause"
"""Of the summary: why the cell failed, where it did."""
GIVEN_UP: Final = ("Fatal error", "Skipped uploading", "metric limit exceeded")
"""What the client says when it sends something, or anything more, no longer."""
HIDDEN: Final = (
    "CONFIG_PATHS",
    "FORK_FROM",
    "LAUNCH",
    "LAUNCH_CONFIG_PATH",
    "RESUME",
    "RESUME_FROM",
    "SWEEP_ID",
    "SWEEP_PARAM_PATH",
    "X_SKIP_TRANSACTION_LOG",
    "X_UPDATE_FINISH_STATE",
)
"""WANDB_* variables of somebody else's run, which would give this one another configuration, history or state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What W&B shows of a cell beside its curves.

    Args:
        study: the run's group.
        project: the W&B project.
        entity: the W&B team or user; None is the key's default.
        config: every axis of the cell, its resources, its jobs.
        name: what people read in W&B's tables.
        tags: such as "family=vit".
        summary: what the cell has cost so far, and where it lies.
        wanted: the names of the evaluation files that a checkpoint must have before its results are told.
        job_type: what W&B tells the runs of a group apart by.
    """

    study: str
    project: str
    entity: str | None
    config: Mapping[str, Any]
    name: str
    tags: Sequence[str] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    wanted: frozenset[str] = frozenset()
    job_type: str = "cell"


class NoKeyError(UserError):
    """Nobody has given a key for the server."""


class RunRefusedError(UserError):
    """W&B has a run of that id that this cell must not go on with."""


class NoAnswerError(RuntimeError):
    """W&B could not be asked about a run."""


@dataclass(frozen=True, slots=True)
class Known:
    """What W&B says of a run.

    Args:
        group: its group.
        config: its configuration.
        num_rows: how many rows its history has.
        num_told: of how many lines of the journal its summary knows, 0 where it does not say.
        digest: what tells those lines from others, "" where it does not say.
        tags: its tags, with those that somebody gave it on its page.
    """

    group: str | None
    config: dict[str, Any]
    num_rows: int
    num_told: int
    digest: str
    tags: Sequence[str]

    def may_be_first_of(self, rows: Sequence[Row]) -> bool:
        """Whether nothing speaks against the history being the first rows of the journal.

        A mirror that was killed has told rows of which the summary does not say yet.
        """
        if not self.num_told <= self.num_rows <= len(rows):
            return False
        return not self.digest or digest(rows[: self.num_told]) == self.digest

    def is_all_of(self, rows: Sequence[Row]) -> bool:
        """Whether the history is the journal, and the summary says so."""
        return self.num_rows == self.num_told == len(rows) and digest(rows) == self.digest


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that can be told, what wandb has said meanwhile, and how many rows W&B had when the run was opened."""

    run: "wandb.Run"
    listener: "Listener"
    num_there: int


class Listener:
    """Takes what wandb would print. An upload that W&B refuses for good, or for now, is told in no other way."""

    def __init__(self) -> None:
        self.fatal: list[str] = []
        self.trouble = ""

    def info(self, msg: str) -> None:
        """Keeps the newest word of a request that has to be repeated."""
        if "retry" in msg:
            self.trouble = one_line(msg.replace("wandb: ", ""))

    def warning(self, msg: str) -> None:
        """Keeps what wandb has given up."""
        if any(sign in msg for sign in GIVEN_UP):
            self.fatal.append(one_line(msg.replace("wandb: ", "")))

    error = warning


def need_key() -> None:
    """Nothing, where there is a key: without one wandb would ask for it on a terminal.

    Raises:
        NoKeyError: there is none.
    """
    if not find_key():
        raise NoKeyError(f"no W&B key for {base_url()}: `wandb login` keeps one, or set WANDB_API_KEY")


def look(run_id: str, description: Description, draft: Path, timeout_s: float, listener: Listener) -> Known | None:
    """What W&B has of that run; None if there is none.

    Raises:
        NoAnswerError: W&B did not answer in time, or refused to.
    """
    import wandb

    path = "/".join(part for part in (description.entity, description.project, run_id) if part)
    settings = settings_of(draft, timeout_s)
    with own_environment(draft):
        try:
            wandb.setup(settings)
            wandb.termsetup(settings, listener)
            run = wandb.Api(timeout=max(1, round(timeout_s))).run(path)
        except Exception as error:  # what wandb raises is no closed set
            if "Could not find run" in str(error):
                return None
            raise NoAnswerError(f"W&B did not answer within {timeout_s:g} s") from error
    return known_of(run, dict(run.summary))


def known_of(run: Any, summary: Mapping[str, Any]) -> Known:
    """What W&B's public API says of a run, its summary apart."""
    number, _, rest = str(summary.get(TOLD, "")).partition(" ")
    told = int(number) if number.isdecimal() else 0
    return Known(run.group, dict(run.config), run.history_line_count or 0, told, rest, run.tags)


def open_run(
    cell_dir: Path, description: Description, root: Path, timeout_s: float, listener: Listener, **how: Any
) -> OpenRun:
    """The run with the cell's id, opened with files below `root`.

    Raises:
        Exception: whatever wandb raises where it cannot.
    """
    import wandb

    settings = settings_of(root, timeout_s)
    with own_environment(root):
        try:
            wandb.setup(settings)
            wandb.termsetup(settings, listener)
            run = wandb.init(
                id=cell_dir.name,
                job_type=description.job_type,
                project=description.project,
                entity=description.entity,
                group=description.study,
                name=description.name[:MAX_NAME],
                tags=list(dict.fromkeys(tag[:MAX_TAG] for tag in description.tags if tag)),
                config=dict(description.config),
                dir=root,
                reinit="create_new",  # other runs of this process are left alone
                settings=settings,
                **how,
            )
        except Exception:
            # The client keeps the id of a run that it could not open, and would call it "in use" the next time.
            close()
            raise
    run.define_metric("examples_seen", hidden=True)
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="examples_seen")
    return OpenRun(run, listener, run.starting_step)


def tell(run: "wandb.Run", rows: Sequence[Row], first: int) -> int:
    """How many lines of the journal were handed to the client: those from number `first` on."""
    for number, row in enumerate(rows[first:], first):
        # A row's own time, so that W&B's wall-clock axis shows the training and not its mirroring.
        about = {"step": row.step, "examples_seen": row.examples_seen, "_timestamp": row.time}
        # Committed at once: a row that waits for the next one would overwrite the summary.
        run.log(about | row.values, step=number, commit=True)
    return len(rows[first:])


def summarise(run: "wandb.Run", summary: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Sets the run's summary; metrics of an earlier checkpoint go, and why an earlier attempt failed."""
    shown = run.summary.keys()  # type: ignore[no-untyped-call]  # wandb leaves its summary untyped
    passing = [key for key in shown if key == CAUSE or key.startswith(("upstream/", "downstream/"))]
    for key in [key for key in passing if key not in summary]:
        del run.summary[key]  # type: ignore[no-untyped-call]  # the same
    run.summary.update({**summary, TOLD: f"{len(rows)} {digest(rows)}"})


def settings_of(root: Path, timeout_s: float) -> "wandb.Settings":
    """Quiet, bounded, and without a word about this machine; what an installed wandb does not know is left out."""
    import wandb

    wanted: dict[str, Any] = {
        "console": "off",
        "silent": True,
        "root_dir": str(root),
        "init_timeout": timeout_s,
        "finish_timeout": timeout_s,
        "finish_timeout_raises": True,
        "stop_fn": _ignore_stop,
        "disable_code": True,
        "disable_git": True,
        "disable_job_creation": True,
        "label_disable": True,
        "program": "upshot",
        "symlink": False,
        "x_disable_machine_info": True,
        "x_disable_meta": True,
        "x_disable_stats": True,
        "x_save_requirements": False,
    }
    return wandb.Settings(**{key: value for key, value in wanted.items() if key in wandb.Settings.model_fields})


def _ignore_stop() -> None:
    """The stop button on a run's page would otherwise interrupt whichever process mirrors it."""


@contextlib.contextmanager
def draft_folder(cell_dir: Path) -> Iterator[Path]:
    """An empty folder beside the cell's files, gone afterwards; a killed mirror's one is cleared first."""
    for left in cell_dir.glob(f"{DRAFT}*"):
        shutil.rmtree(left, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=DRAFT, dir=cell_dir))
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def own_environment(folder: Path | None = None) -> Iterator[None]:
    """Keeps wandb from joining a client, sweep or launch that this process was started by, and from leaving its own.

    The client puts its socket into WANDB_SERVICE; a job that inherits it would look for it on its own node. The public
    API makes an empty folder for every run that it sees: in the `folder` that is given, else below WANDB_DIR.
    """
    names = [f"WANDB_{name}" for name in (*HIDDEN, *(["DIR"] if folder else []))]
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ.pop("WANDB_SERVICE", None)
    if folder:
        os.environ["WANDB_DIR"] = str(folder)
    try:
        yield
    finally:
        for name in ("WANDB_SERVICE", *(["WANDB_DIR"] if folder else [])):
            os.environ.pop(name, None)
        os.environ.update(before)


def close() -> None:
    """Ends this process's client, if it has one. One that has died is let go of: it would be asked again."""
    if "wandb" in sys.modules:
        # It cannot be told; and of one that dies meanwhile, wandb would have us end with its exit code.
        with contextlib.suppress(Exception, SystemExit):
            sys.modules["wandb"].teardown(exit_code=1)


def one_line(error: object) -> str:
    """A message without its line breaks: the first thing said and what it was about."""
    kind = "" if isinstance(error, str | UserError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())
