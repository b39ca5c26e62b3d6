"""What runs inside a job: cells by array index, each with its own attempt, log and outcome.

Jobs carry only strings and numbers here; this is the one module that calls `models.train` and `evals.runner`.
"""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.errors import UserError
from models.recipe import Axes
from orchestrator import tracking
from orchestrator.files import append_record, read_records
from orchestrator.state import wanted_steps
from orchestrator.store import Manifest, Stage, Store
from slurm import local
from slurm.jobs import requeue

IDLE_S = 0.2  # between two looks for a task whose cell is still being trained


class CellsFailedError(RuntimeError):
    """Some cells of a job failed, so that the scheduler counts the job as failed too."""


class StopRequest:
    """The signal that told this process to end, if one did; work looks at it where it can stop."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def listen(self) -> None:
        """Takes SIGUSR2 (the time limit is near, see `slurm.submit`) and SIGTERM from submitit, which ignores one."""
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, _: object) -> None:
        self.signal = number


def run_task(study_dir: str, token: str, index: int) -> None:
    """Runs array task `index` of a submission; near its time limit it requeues itself, if it came any further.

    Raises:
        CellsFailedError: a cell failed; the others were run all the same.
    """
    store, stop = Store(Path(study_dir)), StopRequest()
    stop.listen()
    manifest = store.manifest(token)
    outcomes = {c: run_cell(store, manifest.stage, c, token, stop) for c in manifest.tasks[index] if not stop}
    failed = [cell_id for cell_id, outcome in outcomes.items() if outcome == "failed"]
    if stop.signal == signal.SIGUSR2 and not failed:
        requeue(_job_id() or "")
        sys.exit("requeued: the time limit was near")
    if stop:
        sys.exit("stopped")
    if failed:
        raise CellsFailedError(f"{manifest.stage} failed: {', '.join(failed)} (`upshot why {failed[0]}` tells why)")


def run_queue(study_dir: str, tokens: str, worker: str) -> None:
    """Works off the array tasks of several submissions, as one of several workers on this machine.

    `tokens` are separated by commas; the claims and the living of a queue are kept in the first one's folder. An
    evaluation is taken once its cell's training has ended, and dropped if that failed.
    """
    store, stop = Store(Path(study_dir)), StopRequest()
    stop.listen()
    queue = [store.manifest(token) for token in tokens.split(",")]
    with local.alive(store.job_folder(queue[0].token), worker):
        waiting = _in_order(queue)
        while waiting and not stop and not local.is_stopped(store.job_folder(queue[0].token)):
            waiting, took = _take_one(store, waiting, queue[0].token, worker, stop)
            if not took and waiting:
                time.sleep(IDLE_S)


def _in_order(queue: list[Manifest]) -> list[tuple[Manifest, int]]:
    """Training and evaluation of a cell side by side, so that results come in as cells finish."""
    tasks = [(manifest, index) for manifest in queue for index in range(len(manifest.tasks))]
    return sorted(tasks, key=lambda task: (task[1], queue.index(task[0])))


def _take_one(
    store: Store, waiting: list[tuple[Manifest, int]], home: str, worker: str, stop: StopRequest
) -> tuple[list[tuple[Manifest, int]], bool]:
    """What is still waiting after one task was run, and whether one was."""
    for position, (manifest, index) in enumerate(waiting):
        ready = _ready(store, manifest, index, home)
        if ready == "later":
            continue
        rest = waiting[:position] + waiting[position + 1 :]
        if not local.claim(store.job_folder(manifest.token), index, worker) or ready == "never":
            return rest, True
        for cell_id in manifest.tasks[index]:
            run_cell(store, manifest.stage, cell_id, manifest.token, stop)
        return rest, True
    return waiting, False


def _ready(store: Store, manifest: Manifest, index: int, home: str) -> str:
    """'now', 'later' or 'never': whether the cells' training lets an evaluation start."""
    if manifest.after is None:
        return "now"
    claimant = local.claimant(store.job_folder(manifest.after), index)
    if claimant is None:
        return "later"
    ended = [_training_ended(store, cell_id, manifest.after) for cell_id in manifest.tasks[index]]
    if all(outcome is not None for outcome in ended):
        return "now" if set(ended) <= {"done", "diverged"} else "never"
    return "later" if local.is_alive(store.job_folder(home), claimant) else "never"


def _training_ended(store: Store, cell_id: str, token: str | None = None) -> str | None:
    """The outcome of the cell's newest training that has ended, of that submission if one is given."""
    for event in reversed(store.attempts(cell_id)):
        if event["stage"] == "train" and event["event"] == "end" and event["token"] == (token or event["token"]):
            return str(event["outcome"])
    return None


def run_cell(store: Store, stage: Stage, cell_id: str, token: str, stop: StopRequest) -> str:
    """Runs one stage of one cell, records how it went, and returns that: done, diverged, interrupted or failed."""
    number = 1 + sum(e.get("stage") == stage and e.get("event") == "start" for e in store.attempts(cell_id))
    attempt = {"stage": stage, "attempt": number, "token": token}
    store.record_attempt(cell_id, event="start", **attempt, **_where())
    began = time.monotonic()
    with _captured(store.log_path(cell_id, stage, number)):
        try:
            outcome = _train(store, cell_id, token, stop) if stage == "train" else _evaluate(store, cell_id, stop)
        except Exception as error:
            traceback.print_exc()
            outcome = {"outcome": "failed", "error": _describe(error)}
        except BaseException as error:
            # A requeue (submitit ends the process) or a cancellation says nothing of the cell.
            outcome = {"outcome": "interrupted", "error": _describe(error)}
            store.record_attempt(cell_id, event="end", **attempt, seconds=time.monotonic() - began, **outcome)
            raise
    store.record_attempt(cell_id, event="end", **attempt, seconds=round(time.monotonic() - began, 3), **outcome)
    return str(outcome["outcome"])


def _train(store: Store, cell_id: str, token: str, stop: StopRequest) -> dict[str, Any]:
    from models.train import train

    cell, study = store.read_cell(cell_id), store.study()

    asked = store.manifest(token).resources.get("accelerators", 0)

    def log(record: dict[str, Any]) -> None:
        if asked and record.get("device") == "cpu" and os.environ.get("UPSHOT_DEVICE") != "cpu":
            raise RuntimeError(
                f"the job asked for {asked} accelerators and torch finds none on {socket.gethostname()}:"
                " see the partition's gres and the environment's torch build (UPSHOT_DEVICE=cpu trains on the CPU)"
            )
        append_record(store.train_log(cell_id), {"time": time.time(), **record})
        print(" ".join(f"{key}={value}" for key, value in record.items()), flush=True)

    result = train(
        cell.recipe,
        store.checkpoints(cell_id),
        num_checkpoints=study.train.checkpoints,
        log=log,
        should_stop=lambda: bool(stop),
    )
    ended = {"outcome": result.outcome, "step": result.step, "examples_seen": result.examples_seen}
    if result.outcome != "interrupted":
        mirror_cell(store, cell_id, result.outcome)
        return ended
    if result.step == result.first_step:
        raise RuntimeError(f"the time limit leaves no time for one step: stopped at step {result.step}, where it began")
    return ended | {"error": _stopped(stop, f"at step {result.step}")}


def _stopped(stop: StopRequest, where: str) -> dict[str, str]:
    assert stop.signal is not None
    name = signal.Signals(stop.signal).name
    return {"type": name, "message": f"stopped by {name} {where}, to go on from there", "traceback": ""}


def _evaluate(store: Store, cell_id: str, stop: StopRequest) -> dict[str, Any]:
    """Judges every wanted checkpoint; where training diverged, the step of divergence gets rows of nulls."""
    from evals.runner import evaluate_checkpoint, write_null_rows
    from models.checkpoint import read_json, step_folder
    from models.train import load_model, recipe_architecture

    trained = _training_ended(store, cell_id)
    if trained not in ("done", "diverged"):
        # A scheduler drops a dependency on a job that it has forgotten, and starts the evaluation at once.
        raise RuntimeError(f"cell {cell_id} cannot be evaluated: its training has not ended well ({trained})")
    recipe, study = store.read_cell(cell_id).recipe, store.study()
    d = study.downstream
    asked = {"tasks": d.tasks, "protocol": d.protocol, "shots": d.shots, "draws": d.draws, "layers": d.layers}

    def about(metrics: dict[str, Any]) -> dict[str, Any]:
        arch = recipe_architecture(recipe, metrics["upstream_num_classes"])
        return {"cell_id": cell_id, "architecture": arch, "checkpoint": metrics, **asked}

    num_files = 0
    for step in wanted_steps(study, store.finalised_steps(cell_id)):
        if stop:
            return {"outcome": "interrupted", "error": _stopped(stop, f"before the checkpoint of step {step}")}
        folder = step_folder(store.checkpoints(cell_id), step)
        subject = about(read_json(folder / "metrics.json"))
        load = load_model(subject["architecture"])
        written = evaluate_checkpoint(folder, store.evals(cell_id, step), **subject, load_model=load)
        num_files += len(written)
        print(f"step {step}: {len(written)} of {len(d.tasks)} tasks evaluated, the others were there", flush=True)
    if trained == "diverged":
        records = read_records(store.train_log(cell_id)).records
        metrics = next(record for record in reversed(records) if record.get("event") == "diverged")
        write_null_rows(store.evals(cell_id, metrics["step"]), **about(metrics))
    mirror_cell(store, cell_id, trained)
    return {"outcome": "done", "num_files": num_files}


def mirror_cell(
    store: Store, cell_id: str, outcome: str, *, mode: tracking.Mode | None = None
) -> tracking.MirrorResult:
    """Writes the cell to W&B and TensorBoard as it stands. Neither can fail the cell: the files are the truth.

    The mode is the study's when it is not given.
    """
    try:
        return _mirror(store, cell_id, outcome, mode)
    except (UserError, OSError) as error:
        print(f"not mirrored: {error}", flush=True)
        return tracking.MirrorResult(ok=False, mode=mode or "offline", error=str(error))


def _mirror(store: Store, cell_id: str, outcome: str, mode: tracking.Mode | None) -> tracking.MirrorResult:
    study, recipe = store.study(), store.read_cell(cell_id).recipe
    started = [r for r in read_records(store.train_log(cell_id)).records if r.get("event") == "start"]
    config = {"cell_id": cell_id, **recipe.model_dump(), "params": started[-1]["params"] if started else None}
    axes = [axis for axis in Axes.model_fields if len({v for t in study.grid for v in t.get(axis, [])}) > 1]
    folder = store.cell_folder(cell_id)
    tracking.write_tensorboard(folder, config=config)
    if mode is None:
        mode = tracking.default_mode() if study.wandb.mode == "auto" else study.wandb.mode
    mirrored = tracking.mirror_cell(
        folder,
        study=study.name,
        project=study.wandb.project,
        entity=study.wandb.entity,
        mode=mode,
        config=config,
        name=" ".join(f"{axis}={config[axis]}" for axis in axes) or cell_id,
        tags=[f"{axis}={config[axis]}" for axis in axes],
        outcome=outcome,
    )
    print(f"W&B {mode}: {'mirrored' if mirrored.ok else mirrored.error}", flush=True)
    return mirrored


def _where() -> dict[str, Any]:
    """The job that an attempt runs in."""
    restarts = os.environ.get("SLURM_RESTART_COUNT")
    return {"host": socket.gethostname(), "pid": os.getpid(), "job": _job_id(), "restarts": restarts}


def _job_id() -> str | None:
    """The Slurm job that this process is in: ARRAY_TASK for an array's, so that a requeue means this task alone."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def _describe(error: BaseException) -> dict[str, str]:
    return {
        "type": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
    }


@contextmanager
def _captured(path: Path) -> Iterator[None]:
    """Everything that this process and its libraries print goes to `path` while the block runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with path.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def main() -> None:
    """Starts workers on this machine: STUDY_DIR TOKEN[,TOKEN...] NUM_WORKERS."""
    from orchestrator import node  # by its import path, so that the workers find the callable
    from slurm.submit import submit_workers

    study_dir, tokens, num_workers = sys.argv[1:]
    folder = Store(Path(study_dir)).job_folder(tokens.split(",")[0])
    submit_workers(node.run_queue, [(study_dir, tokens, f"worker-{i}") for i in range(int(num_workers))], folder=folder)


if __name__ == "__main__":
    main()
