"""A cell as a Weights & Biases run: the run has the cell's id, and is told what the study folder says.

The history's `_step` counts the curve's records in `train.ndjson`; `examples_seen` is the x-axis. This is the one door
to wandb, which is imported where it is used: it takes a second, and most commands never need it.
"""

import configparser
import contextlib
import math
import netrc
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

from models.errors import UserError
from orchestrator.tracking.curves import COSTS, Curve, current_points, final_metrics, read_curve

if TYPE_CHECKING:
    import wandb

Mode = Literal["offline", "online", "disabled"]

DEFAULT_URL: Final = "https://api.wandb.ai"
MAX_NAME, MAX_TAG = 128, 64  # W&B refuses a run with a longer display name or tag
TIMEOUT_S = 30.0
DRAFT = ".wandb-draft-"


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorResult:
    """How a mirror went. `error` is one line and None when `ok`; nothing is lost when it went wrong.

    Args:
        num_records: the curve's records in the files, repeated steps counted each time.
        num_sent: how many went into W&B's history this time.
        num_unreadable: lines of `train.ndjson` that are torn, or curve records without a step.
        folder: the offline run, to be given to `wandb sync`.
        url: the online run's page.
    """

    ok: bool
    mode: Mode
    error: str | None = None
    num_records: int = 0
    num_sent: int = 0
    num_unreadable: int = 0
    folder: Path | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cell:
    """What a mirror is written from."""

    folder: Path
    curve: Curve
    summary: dict[str, Any]
    config: dict[str, Any]
    outcome: str


def default_mode() -> Mode:
    """What W&B's own settings ask for (`WANDB_MODE`, `wandb offline`), else online where a key is found, else offline.

    Raises:
        UserError: `WANDB_MODE` is no mode that wandb knows.
    """
    asked = _wandb_setting("mode")
    modes: dict[str, Mode] = {
        "online": "online",
        "run": "online",
        "shared": "online",
        "offline": "offline",
        "dryrun": "offline",
        "disabled": "disabled",
    }
    if asked is None:
        return "online" if find_key() else "offline"
    if asked not in modes:
        raise UserError(f"WANDB_MODE: {asked!r} given (known: online, offline, disabled)")
    return modes[asked]


def mirror_cell(
    cell_dir: Path,
    *,
    study: str,
    project: str,
    entity: str | None,
    mode: Mode,
    config: dict[str, Any],
    name: str,
    tags: list[str],
    outcome: str,
    timeout_s: float = TIMEOUT_S,
) -> MirrorResult:
    """Writes the whole of a cell, as it stands, to its W&B run; idempotent, one call at a time for a cell.

    Offline, the run under `cell_dir/wandb/` is replaced once the new one is complete. Online, the run with the cell's
    id is made or continued, and told only what it has not heard.

    Args:
        cell_dir: the cell's folder; its name is the run's id.
        study: the run's group.
        project: the W&B project.
        entity: the W&B team or user; None is the key's default.
        mode: see above; "disabled" does nothing.
        config: every axis of the cell, and `params` and `flops` (else the newest checkpoint's stand in the summary).
        name: what people read in W&B's tables.
        tags: such as "family=vit".
        outcome: done, failed, diverged or running.
        timeout_s: how long opening the run and how long uploading may take, each.

    Returns:
        What was done. Nothing that goes wrong here is raised: a mirror must not take down the cell that it shows.
    """
    if mode == "disabled":
        return MirrorResult(ok=True, mode=mode)
    try:
        cell = _read_cell(cell_dir, config, outcome)
    except Exception as error:  # see Returns
        return MirrorResult(ok=False, mode=mode, error=_one_line(error))
    labels = {
        "project": project,
        "entity": entity,
        "group": study,
        "name": name[:MAX_NAME],
        "tags": [tag[:MAX_TAG] for tag in tags if tag],
    }
    try:
        return (_mirror_online if mode == "online" else _mirror_offline)(cell, labels, timeout_s)
    except Exception as error:  # what wandb raises is no closed set
        problem = _one_line(error)
        if "previously created and deleted" in problem:  # wandb #1192: W&B never gives an id again
            problem += " (restore the run on its W&B page, or give the study another wandb.project)"
        return _result(cell, problem, mode=mode)


def _read_cell(cell_dir: Path, config: dict[str, Any], outcome: str) -> _Cell:
    curve = read_curve(cell_dir)
    summary = final_metrics(cell_dir, curve) | {key: config[key] for key in COSTS if key in config}
    summary = {key: _storable(value) for key, value in summary.items() if value is not None}
    return _Cell(folder=cell_dir, curve=curve, summary={**summary, "outcome": outcome}, config=config, outcome=outcome)


def _storable(value: float | str) -> float | str:
    """W&B drops a summary value that is no number without a word, so it is written as its JavaScript name."""
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def _mirror_offline(cell: _Cell, labels: dict[str, Any], timeout_s: float) -> MirrorResult:
    with _draft_folder(cell.folder) as draft:
        run, _ = _open_run(cell, labels, draft, timeout_s, mode="offline")
        sent = _tell(run, cell)
        (made,) = (draft / "wandb").glob("offline-run-*")
        shutil.rmtree(made / "logs")  # wandb's own, with a link into the home folder; `wandb sync` needs none of it
        home = cell.folder / "wandb"
        home.mkdir(exist_ok=True)
        for old in home.glob("offline-run-*"):
            # Aside before the new one comes: two of the same second have the same name.
            old.rename(draft / old.name)
        folder = made.rename(home / made.name)
    return _result(cell, None, mode="offline", num_sent=sent, folder=folder)


def _mirror_online(cell: _Cell, labels: dict[str, Any], timeout_s: float) -> MirrorResult:
    if not find_key():  # wandb would ask for one on a terminal
        return _result(
            cell, f"no W&B key for {_base_url()}: `wandb login` keeps one, or set WANDB_API_KEY", mode="online"
        )
    with _draft_folder(cell.folder) as draft:
        run, listener = _open_run(cell, labels, draft, timeout_s, mode="online", resume="allow")
        known, url = run.starting_step, run.url
        try:
            sent = _tell(run, cell)
        except TimeoutError:
            return _result(cell, f"W&B took longer than {timeout_s:g} s to take the upload", mode="online", url=url)
    problem = None
    if listener.fatal:
        problem = f"W&B refused a part: {listener.fatal[0]}"
    elif known > len(cell.curve.points):
        problem = (
            f"W&B holds {known} records of this run and the study folder {len(cell.curve.points)}: it shows an earlier "
            "training of the cell (`wandb sync` of an offline mirror replaces it)"
        )
    return _result(cell, problem, mode="online", num_sent=sent, url=url)


def _result(cell: _Cell, problem: str | None, **fields: Any) -> MirrorResult:
    records, unreadable = len(cell.curve.points), cell.curve.num_unreadable
    return MirrorResult(ok=problem is None, error=problem, num_records=records, num_unreadable=unreadable, **fields)


class _Listener:
    """Takes what wandb would print. An upload that W&B refuses for good is told in no other way."""

    def __init__(self) -> None:
        self.fatal: list[str] = []

    def info(self, msg: str) -> None:
        pass

    def warning(self, msg: str) -> None:
        if "Fatal error" in msg:
            self.fatal.append(_one_line(msg.replace("wandb: ", "")))

    error = warning


def _open_run(
    cell: _Cell, labels: dict[str, Any], root: Path, timeout_s: float, **how: Any
) -> "tuple[wandb.Run, _Listener]":
    import wandb

    listener = _Listener()
    settings = _settings(root, timeout_s)
    with _own_environment():
        try:
            wandb.setup(settings)
            wandb.termsetup(settings, listener)
            run = wandb.init(
                id=cell.folder.name,
                job_type="cell",
                config=cell.config,
                dir=root,
                reinit="create_new",  # other runs of this process are left alone
                settings=settings,
                **labels,
                **how,
            )
        except Exception:
            # The client keeps the id of a run that it could not open, and would call it "in use" the next time.
            wandb.teardown(exit_code=1)
            raise
    return run, listener


def _settings(root: Path, timeout_s: float) -> "wandb.Settings":
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


def _tell(run: "wandb.Run", cell: _Cell) -> int:
    """How many records were new to the run; finishes it.

    Raises:
        TimeoutError: the upload took too long.
    """
    finished = False
    try:
        points = current_points(cell.curve.points, first=run.starting_step)
        run.define_metric("examples_seen", hidden=True)
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="examples_seen")
        for point in points:
            # A point's own time, so that W&B's wall-clock axis shows the training and not its mirroring.
            row = {"step": point.step, "examples_seen": point.examples_seen, "_timestamp": point.time}
            # Committed at once: a row that waits for the next one would overwrite the summary below.
            run.log(row | point.values, step=point.index, commit=True)
        shown = run.summary.keys()  # type: ignore[no-untyped-call]  # wandb leaves its summary untyped
        stale = [key for key in shown if key.startswith("downstream/") and key not in cell.summary]
        for key in stale:
            del run.summary[key]  # type: ignore[no-untyped-call]  # the same
        run.summary.update(cell.summary)
        finished = True
    finally:
        run.finish(exit_code=1 if cell.outcome == "failed" or not finished else 0)
    return len(points)


@contextlib.contextmanager
def _draft_folder(cell_dir: Path) -> Iterator[Path]:
    """An empty folder beside the cell's files, gone afterwards; a killed mirror's one is cleared first."""
    for left in cell_dir.glob(f"{DRAFT}*"):
        shutil.rmtree(left, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=DRAFT, dir=cell_dir))
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def _own_environment() -> Iterator[None]:
    """Keeps wandb from joining a client, sweep or launch that this process was started by, and from leaving its own.

    The client puts its socket into WANDB_SERVICE; a job that inherits it would look for it on its own node.
    """
    hidden = {name: os.environ.pop(name) for name in ("WANDB_SWEEP_ID", "WANDB_LAUNCH") if name in os.environ}
    os.environ.pop("WANDB_SERVICE", None)
    try:
        yield
    finally:
        os.environ.pop("WANDB_SERVICE", None)
        os.environ.update(hidden)


def find_key() -> str | None:
    """Where wandb would find credentials, looked up as wandb does but without importing it; None if nowhere."""
    for name in ("api_key", "identity_token_file"):
        if _wandb_setting(name):
            variable = f"WANDB_{name.upper()}"
            return variable if os.environ.get(variable) else f"{name} in W&B's settings file"
    candidates = (os.environ.get("NETRC"), "~/.netrc", "~/_netrc")
    paths = [Path(path).expanduser() for path in candidates if path]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        return None
    try:
        found = netrc.netrc(path).authenticators(urlsplit(_base_url()).netloc)
    except (OSError, netrc.NetrcParseError):
        return None
    return str(path) if found is not None and found[2] else None


def _base_url() -> str:
    return _wandb_setting("base_url") or DEFAULT_URL


def _wandb_setting(name: str) -> str | None:
    """One of wandb's settings: the environment, then ./wandb/settings, then the user's settings file."""
    if value := os.environ.get(f"WANDB_{name.upper()}"):
        return value
    user = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    parser = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(configparser.Error, OSError, UnicodeDecodeError):
        parser.read([user / "settings", Path("wandb") / "settings"], encoding="utf-8")
    return parser.get("default", name, fallback=None)


def _one_line(error: object) -> str:
    """A message without its line breaks: the first thing said and what it was about."""
    kind = "" if isinstance(error, str | UserError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())
