"""Jobs that train and judge for real, and are ended at moments that a test has drawn: run on the nodes."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from orchestrator import node, tracking
from orchestrator.files import append_record, read_records, write_atomically
from orchestrator.node.bodies import BODIES
from orchestrator.node.work import Work, own_job_id
from orchestrator.store import Stage
from orchestrator.tracking import live

PERIOD_S: Final = 1.0
"""In place of a minute, for the cells that are told so: theirs last a few seconds."""

How = Literal["kill", "requeue", "stop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """One end of one attempt: `delay_s` after so many training records of it, wherever the job is by then."""

    stage: Stage
    after: int
    delay_s: float
    how: How


def order(study_dir: Path, cell_id: str, strikes: Sequence[Strike]) -> None:
    """Has the cell's attempts ended, the first one by the first strike; its curves are shown while it trains."""
    write_atomically(_orders(study_dir) / cell_id, json.dumps([asdict(strike) for strike in strikes]))


def struck(study_dir: Path) -> list[dict[str, Any]]:
    """The strikes that came, each with its cell."""
    return read_records(_orders(study_dir) / "struck.ndjson").records


def _orders(study_dir: Path) -> Path:
    return study_dir.parent / "strikes"


def run_task(study_dir: str, token: str, index: int) -> None:
    node.run_task(study_dir, token, index, bodies={"train": _train, "evaluate": _evaluate})


def _train(work: Work) -> dict[str, Any]:
    ordered = (_orders(work.store.root) / work.cell_id).exists()
    tracking.following = _often if ordered else live.following
    _await_strike(work)
    return BODIES["train"](work)


def _evaluate(work: Work) -> dict[str, Any]:
    _await_strike(work)
    return BODIES["evaluate"](work)


def _often(folder: Path, *, hurried: Callable[[], bool]) -> Any:
    return live.following(folder, hurried=hurried, period_s=PERIOD_S)


def _await_strike(work: Work) -> None:
    """Has the process, or its job, ended in the middle of whatever it does then."""
    path = _orders(work.store.root) / work.cell_id
    strikes = json.loads(path.read_text()) if path.exists() else []
    if strikes and strikes[0]["stage"] == work.stage:
        before = len(_trained(work))
        threading.Thread(target=_strike, args=(work, Strike(**strikes[0]), before), daemon=True).start()


def _trained(work: Work) -> list[dict[str, Any]]:
    return [r for r in read_records(work.store.train_log(work.cell_id)).records if r["event"] == "train"]


def _strike(work: Work, strike: Strike, before: int) -> None:
    while len(_trained(work)) < before + strike.after:
        time.sleep(0.02)
    time.sleep(strike.delay_s)
    orders = _orders(work.store.root)
    write_atomically(orders / work.cell_id, json.dumps(json.loads((orders / work.cell_id).read_text())[1:]))
    append_record(orders / "struck.ndjson", {"cell_id": work.cell_id, "time": time.time(), **asdict(strike)})
    job = str(own_job_id())
    if strike.how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif strike.how == "requeue":
        subprocess.run(["scontrol", "requeue", job], check=True)
    else:
        subprocess.run(["scancel", "--signal=USR2", job], check=True)  # what --signal does before the limit
