"""What an attempt does: trains a cell, judges its checkpoints, mirrors it. Torch is imported inside the functions."""

import json
import os
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from models.errors import UserError
from orchestrator import lock, tracking
from orchestrator.files import append_record, read_records
from orchestrator.grid import Cell
from orchestrator.node.work import Body, StopRequest, Work
from orchestrator.state import read_files
from orchestrator.store import Stage, Store
from orchestrator.study import Study
from orchestrator.wanted import wanted_steps

if TYPE_CHECKING:
    from torch import nn

    from evals.measures import Row
    from evals.runner import Subject
    from models.ladder import Architecture
    from models.trunk import Trunk


class NoAcceleratorError(RuntimeError):
    """The job asked for accelerators, and torch finds none."""


def training_ended(store: Store, cell_id: str, token: str | None = None) -> str | None:
    """How the cell's training has ended, of that submission if one is given; a good end counts whatever came after."""
    ends = [
        str(event["outcome"])
        for event in store.attempts(cell_id)
        if event["stage"] == "train" and event["event"] == "end" and event["token"] == (token or event["token"])
    ]
    return next((outcome for outcome in ends if outcome in ("done", "diverged")), ends[-1] if ends else None)


def _train(work: Work) -> dict[str, Any]:
    from models.distributed import World
    from models.train import train

    store, cell_id = work.store, work.cell_id
    cell, study = store.read_cell(cell_id), store.study()
    asked = work.manifest.resources.get("accelerators", 0)

    def log(record: dict[str, Any]) -> None:
        if asked and record.get("accelerators") == 0 and os.environ.get("UPSHOT_DEVICE") != "cpu":
            raise NoAcceleratorError(
                f"the job asked for {asked} accelerators and torch finds none on {socket.gethostname()}:"
                " see the partition's gres and the torch of its environment, the profile's `python`"
                " (UPSHOT_DEVICE=cpu trains on the CPU)"
            )
        append_record(store.train_log(cell_id), {"time": time.time(), **record})
        print(" ".join(f"{key}={value}" for key, value in record.items()), flush=True)

    with _followed(work):
        result = train(
            cell.recipe,
            store.checkpoints(cell_id),
            num_checkpoints=study.train.checkpoints,
            log=log,
            should_stop=work.should_stop,
            micro_batch=work.manifest.micro_batch,
            max_corrupt=study.train.max_corrupt,
            world=work.world or World.alone(),
            trunk=_trunk(work, cell),
            checkpointed=work.manifest.checkpointed,
            compiled=work.manifest.compiled,
            peak_teraflops=work.manifest.peak_teraflops,
            sharded=work.manifest.sharded,
        )
    work.agree_to_stop()
    ended = {
        "outcome": result.outcome,
        "step": result.step,
        "first_step": result.first_step,
        "examples_seen": result.examples_seen,
        "peak_memory_gb": result.peak_memory_gb,
        "peak_accelerator_gb": result.peak_accelerator_gb,
    }
    if result.outcome != "interrupted":
        return ended
    return ended | {"error": _stopped(work.stop, f"at step {result.step}")}


def _followed(work: Work) -> AbstractContextManager[None]:
    """Shows the curves at W&B while the cell trains, where the study is mirrored online."""
    try:
        if work.leads and tracking.mode_of(work.store) == "online":
            return tracking.following(work.store.cell_folder(work.cell_id), hurried=lambda: bool(work.stop))
    except UserError as error:  # a mode that wandb does not know
        print(f"not mirrored while it trains: {error}", flush=True)
    return nullcontext()


def _trunk(work: Work, cell: Cell) -> "Trunk | None":
    """What the cell has in common with others: the lengths are of those that are not trained yet."""
    from models.trunk import Trunk

    if cell.recipe.schedule != "rsqrt":
        return None
    lengths = work.store.lengths(cell)
    others = sorted(epochs for cell_id, epochs in lengths.items() if not _is_trained(work.store, cell_id))
    # Another cell may end while the processes look one after the other: they must save at the same steps.
    return Trunk(folder=work.store.trunk(cell.recipe), epochs=tuple(json.loads(work.decided(json.dumps(others)))))


def _is_trained(store: Store, cell_id: str) -> bool:
    return training_ended(store, cell_id) in ("done", "diverged")


def _stopped(stop: StopRequest, where: str) -> dict[str, Any]:
    if stop.signal is None:
        return {"type": "LockLost", "message": f"another attempt took over {where}", "traceback": ""}
    name = signal.Signals(stop.signal).name
    message = f"stopped by {name} {where}, to go on from there"
    return {"type": name, "early": stop.early, "message": message, "traceback": ""}


def _evaluate(work: Work) -> dict[str, Any]:
    """Judges the checkpoint, or every wanted one that nobody else is judging.

    Where training diverged, the step of divergence gets rows of nulls.
    """
    from evals.runner import write_null_rows

    store, cell_id = work.store, work.cell_id
    trained = training_ended(store, cell_id)
    if trained not in ("done", "diverged") and work.step is None:
        # A scheduler drops a dependency on a job that it has forgotten, and starts the evaluation at once.
        raise RuntimeError(f"cell {cell_id} cannot be evaluated: its training has not ended well ({trained})")
    study = store.study()
    steps = wanted_steps(study, store.finalised_steps(cell_id)) if work.step is None else [work.step]
    num_files = 0
    for step in steps:
        if work.should_stop():
            return {"outcome": "interrupted", "error": _stopped(work.stop, f"before the checkpoint of step {step}")}
        if step in store.finalised_steps(cell_id):
            num_files += _evaluate_step(work, study, step)
    if trained == "diverged":
        records = read_records(store.train_log(cell_id)).records
        metrics = next(record for record in reversed(records) if record.get("event") == "diverged")
        d = study.downstream
        write_null_rows(
            store.evals(cell_id, metrics["step"]),
            _subject(work, metrics),
            tasks=d.tasks,
            protocols=study.protocols,
            upstream=bool(d.upstream),
            by_class=d.upstream == "by_class",
        )
    return {"outcome": "done", "num_files": num_files}


def _evaluate_step(work: Work, study: Study, step: int) -> int:
    """How many files were written for one checkpoint; none if somebody else is at it."""
    from evals.datasets import load_task
    from evals.runner import evaluate_checkpoint
    from evals.tasks import data_root
    from models.checkpoint import read_json, step_folder
    from models.train import load_model

    d, evals = study.downstream, work.store.evals(work.cell_id, step)
    folder = step_folder(work.store.checkpoints(work.cell_id), step)
    metrics = read_json(folder / "metrics.json")
    try:
        with lock.holding(evals / ".lock"):
            written = evaluate_checkpoint(
                folder,
                evals,
                _subject(work, metrics),
                tasks=d.tasks,
                protocols=study.protocols,
                load_model=load_model(_architecture(work, metrics)),
                load_task=partial(load_task, root=data_root(d.data)),
                upstream=partial(_upstream_rows, work, study) if d.upstream else None,
                by_class=d.upstream == "by_class",
                keep_features=d.keep_features,
            )
    except lock.LockBusyError as error:
        print(f"step {step}: {error.owner} is at it", flush=True)
        return 0
    print(f"step {step}: {len(written)} files written, the others were there", flush=True)
    return len(written)


def _upstream_rows(work: Work, study: Study, model: "nn.Module", batch_size: int) -> "list[Row]":
    from evals.upstream import upstream_measures
    from models.upstream import held_out_batches, load_held_out

    held_out = load_held_out(work.store.read_cell(work.cell_id).recipe, max_corrupt=study.train.max_corrupt)
    batches = held_out_batches(held_out, batch_size)
    by_class = study.downstream.upstream == "by_class"
    return upstream_measures(model, batches, held_out.classes, batch_size=batch_size, by_class=by_class)


def _subject(work: Work, metrics: dict[str, Any]) -> "Subject":
    from evals.runner import Backbone, Subject

    backbone = Backbone.of(_architecture(work, metrics))
    return Subject(cell_id=work.cell_id, backbone=backbone, checkpoint=metrics)


def _architecture(work: Work, metrics: dict[str, Any]) -> "Architecture":
    from models.prepare import recipe_architecture

    return recipe_architecture(work.store.read_cell(work.cell_id).recipe, metrics["upstream_num_classes"])


BODIES: Mapping[Stage, Body] = {"train": _train, "evaluate": _evaluate}


def show(work: Work, outcome: str) -> None:
    """Mirrors the cell once a stage of it has ended; that is on record by then, whatever becomes of the mirror.

    A start that finds the stage done mirrors the cell where the one before was ended too early for it.
    """
    try:
        trained = _to_show(work, outcome)
    except (UserError, OSError) as error:
        print(f"not mirrored: {error}", flush=True)
        return
    if trained is not None:
        _mirror_in_passing(work.store, work.cell_id, trained)


def _to_show(work: Work, outcome: str) -> str | None:
    """How the cell's training ended, where that, or a new evaluation, is to be shown."""
    store, cell_id = work.store, work.cell_id
    shown = {"train": ("done", "diverged", "failed", "skipped"), "evaluate": ("done", "skipped")}
    if outcome not in shown[work.stage]:
        return None
    trained, folder = training_ended(store, cell_id), store.cell_folder(cell_id)
    if work.stage == "evaluate" and read_files(store, store.study(), cell_id).missing:
        return None
    if outcome == "skipped" and tracking.mirrored_since(folder, folder / "attempts.ndjson"):
        return None
    return trained


def _mirror_in_passing(store: Store, cell_id: str, outcome: str) -> None:
    """Mirrors the cell; where W&B does not answer, all cells of a job wait for it a small share of its time at most."""
    if tracking.PATIENCE.is_over:
        mirror_cell(store, cell_id, outcome, mode="disabled")  # for TensorBoard
        problem = f"not tried so soon after: {tracking.PATIENCE.problem} (`upshot sync` tells W&B the rest)"
        tracking.note(store.cell_folder(cell_id), ok=False, mode="online", error=problem, rows=None, outcome=outcome)
        return
    began = time.monotonic()
    mirrored = mirror_cell(store, cell_id, outcome, timeout_s=tracking.ANSWER_S, wait_s=tracking.ANSWER_S)
    if mirrored.mode == "online":
        tracking.PATIENCE.wait(time.monotonic() - began)
        tracking.PATIENCE.judge(mirrored.error)


def mirror_cell(
    store: Store,
    cell_id: str,
    outcome: str,
    *,
    mode: tracking.Mode | None = None,
    timeout_s: float = tracking.TIMEOUT_S,
    wait_s: float = 0.0,
) -> tracking.MirrorResult:
    """Writes the cell to W&B and TensorBoard as it stands. Neither can fail the cell: the files are the truth.

    Checkpoints of a cell may be judged by several jobs at once, and what an attempt that was killed has left behind may
    mirror the last of it: one mirrors at a time, another waits up to `wait_s` for it. The mode is the study's when it
    is not given; `timeout_s` is that of `tracking.mirror_cell`.
    """
    try:
        with lock.holding(store.cell_folder(cell_id) / "mirror.lock", wait_s=wait_s):
            return _mirror(store, cell_id, outcome, mode, timeout_s)
    except Exception as error:  # whatever it is, the cell is what counts
        print(f"not mirrored: {error}", flush=True)
        return tracking.MirrorResult(ok=False, mode=mode or "offline", error=str(error))


def _mirror(
    store: Store, cell_id: str, outcome: str, mode: tracking.Mode | None, timeout_s: float
) -> tracking.MirrorResult:
    description, folder = tracking.describe(store, cell_id), store.cell_folder(cell_id)
    try:
        tracking.write_tensorboard(folder, description, outcome=outcome)
    except Exception as error:  # W&B may have it all the same
        print(f"TensorBoard: {error}", flush=True)
    mode = mode or tracking.mode_of(store)
    mirrored = tracking.mirror_cell(folder, description, mode=mode, outcome=outcome, timeout_s=timeout_s)
    if mode != "disabled":
        print(f"W&B {mode}: {'mirrored' if mirrored.ok else mirrored.error}", flush=True)
    return mirrored
