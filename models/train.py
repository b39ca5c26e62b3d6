"""The training loop, in named phases: prepare, resume, step, measure, save.

A run is a pure function of its recipe on one machine: images are drawn by (seed, epoch), so a run that was killed and
resumed from a checkpoint ends, on a CPU, with the same bits as one that was not. Over several processes, or in
micro-batches, the same numbers are added up in another order: the results agree to rounding.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal, Self

import torch

from models.augment import StepImages
from models.build import build_model
from models.checkpoint import RESUME, load_checkpoint, load_newest, load_weights, read_json, step_folder
from models.data.corrupt import MAX_CORRUPT
from models.device import pick_device
from models.distributed import World
from models.errors import CorruptCheckpointError
from models.ladder import Architecture, has_batch_norm
from models.optim import learning_rate_factor, set_learning_rate
from models.origin import check_origins, origin
from models.prepare import prepare
from models.recipe import Recipe, checkpoint_steps, cooldown_start
from models.records import checkpoint_metrics, peaks, start_record, train_record
from models.saver import Saver
from models.step import Run, take_step
from models.trunk import Trunk, steps_to_leave, take_states
from models.upstream import measure_upstream, training_images

Log = Callable[[dict[str, Any]], None]

NUM_RECORDS = 50  # training records a cell: enough for a curve, few enough for 4,800 cells
RESUME_EVERY_S = 600.0
ALONE = World.alone()


class Wish(IntEnum):
    """What a rank wants after a step; the greatest wish is everyone's."""

    GO_ON = 0
    SAVE = 1
    STOP = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """How training ended, and where this attempt began.

    Divergence is a result: `step` is where the loss stopped being a number. An interrupted run goes on from `step`.
    Memory is this process's, in GiB, and None where it is not known: that of the host since the process began, that of
    the accelerator since training did.
    """

    outcome: Literal["done", "diverged", "interrupted"]
    step: int
    first_step: int
    steps: tuple[int, ...]
    examples_seen: int
    peak_memory_gb: float | None
    peak_accelerator_gb: float | None


def train(
    recipe: Recipe,
    folder: Path,
    *,
    num_checkpoints: int,
    log: Log,
    should_stop: Callable[[], bool] = lambda: False,
    micro_batch: int | None = None,
    max_corrupt: float = MAX_CORRUPT,
    world: World = ALONE,
    sharded: bool = False,
    trunk: Trunk | None = None,
    peak_teraflops: float | None = None,
    checkpointed: bool = False,
    compiled: bool = False,
) -> TrainResult:
    """Trains one cell, resuming from its newest readable checkpoint under `folder`.

    Every ten minutes, and when it is told to stop, it leaves a checkpoint in `folder`/resume that is only for going on
    from; the next numbered one removes it. A checkpoint that cannot be read is moved aside, as
    `folder`/corrupt-step_XXXXXXXX, and training goes on from the one before.

    A world of several processes trains one model: each calls this with the same arguments, takes its share of every
    batch and gets the same result, but rank 0 alone logs, measures and writes. Checkpoints are the same whatever the
    number of processes, so another number can go on from them.

    Where runs share a `trunk`, it also goes on from the furthest state there that it would come to itself, takes the
    checkpoints up to there that it would have made, and leaves states for the others: the weights are the same bits.
    `train_loss` alone may be the mean over other steps: those since the record before, in whichever run took them.

    Batch norm sees the images of one micro-batch on all ranks, not those of the batch: models that
    have it, such as ResNets, change with `micro_batch`, ViTs and MLP-Mixers do not. Dropout and stochastic depth draw
    other masks where a batch is split in another way.

    Args:
        recipe: what to train.
        folder: where checkpoints go, one folder a step; all processes see it.
        num_checkpoints: how many, evenly spaced, the last one at the last step.
        log: takes each record: `event` is "corrupt_checkpoint", "start", "train", "corrupt_images", "checkpoint" or
            "diverged".
        should_stop: asked after each step; true once the job is about to end. One process that stops, stops all.
        micro_batch: the most images in one forward pass of one accelerator; None sets no limit.
        max_corrupt: the share of the images that may be unreadable; others then stand for these.
        world: the processes that train together.
        sharded: whether each process holds a part of the model alone, for what one accelerator cannot hold; all of
            them measure then, and write, and nothing is compiled.
        trunk: what runs with schedule "rsqrt" that differ in their length alone have in common.
        checkpointed: whether blocks are computed a second time, for want of memory: the weights are the same bits.
        compiled: whether torch.compile makes the steps faster, which takes it a minute; results change by rounding, and
            the masks of dropout and stochastic depth are others.
        peak_teraflops: of all processes' accelerators; where it is given, records say what share of it the model used.

    Raises:
        UserError: the data or the recipe cannot be used, or the processes cannot train this family.
        CheckpointError: a checkpoint is of another model or optimiser, or cannot be reached.
        OSError: a checkpoint could not be written.
        PeerFailedError: another process failed; this one's world is of no more use.
        torch.OutOfMemoryError: the accelerator has too little memory.
    """
    log = log if world.rank == 0 else _silent
    with world.failing_together():
        run = prepare(
            recipe,
            micro_batch,
            max_corrupt,
            world,
            peak_teraflops,
            sharded=sharded and world.size > 1,
            checkpointed=checkpointed,
            compiled=compiled,
        )
        places = _places(run, folder, num_checkpoints, trunk)
        _take_states(run, places, log)
        state = _resume(run, folder, log)
        run.device.spread(run.model, run.optimizer)
        if run.average is not None:
            run.device.spread(run.average)
        log(start_record(run, state["step"]))
        with Saver(folder, world, log, sharded=run.sharded) as saver:
            outcome, last = _loop(run, state, places, saver, should_stop)
    return TrainResult(
        outcome=outcome,
        step=last,
        first_step=state["step"],
        steps=places.steps,
        examples_seen=last * run.batch_size,
        **peaks(run),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """Where the checkpoints of a run go, and after which steps: its own, and those that it leaves in the trunk."""

    folder: Path
    steps: tuple[int, ...]
    trunk: Path | None = None
    shared: frozenset[int] = frozenset()


def _places(run: Run, folder: Path, num_checkpoints: int, trunk: Trunk | None) -> _Places:
    steps = checkpoint_steps(run.num_steps, num_checkpoints)
    if trunk is None:
        return _Places(folder=folder, steps=steps)
    # What batch norm has seen depends on how a batch is split: such runs have a trunk for each way to split it.
    name = f"norm-of-{run.micro_batch * run.world.size}" if has_batch_norm(run.architecture) else ""
    shared = steps_to_leave(run.recipe, trunk, num_images=len(run.data.train), num_checkpoints=num_checkpoints)
    return _Places(folder=folder, steps=steps, trunk=trunk.folder / name, shared=shared)


def _take_states(run: Run, places: _Places, log: Log) -> None:
    """Rank 0 takes from the trunk what this run need not do itself; checkpoints so got are logged as made."""
    if places.trunk is None or run.world.rank > 0:
        return
    taken = take_states(places.trunk, places.folder, steps=places.steps, before=cooldown_start(run.num_steps))
    for step in taken:
        log({"event": "checkpoint", **read_json(step_folder(places.folder, step) / "metrics.json")})


def _resume(run: Run, folder: Path, log: Log) -> dict[str, Any]:
    """The state of the newest readable checkpoint, loaded; that of step 0 where there is none. Rank 0 chooses it."""

    def on_corrupt(step: int, error: CorruptCheckpointError, moved_to: Path) -> None:
        log({"event": "corrupt_checkpoint", "step": step, "error": str(error), "moved_to": str(moved_to)})

    place, state = "", {"step": 0}
    if run.world.rank == 0:
        roots = (folder, folder / RESUME)
        check_origins(roots, run.recipe)
        found = load_newest(roots, **_kept(run), on_corrupt=on_corrupt)
        place, state = (str(found[0].relative_to(folder)), found[1]) if found else (place, state)
    place = run.world.decide(place)
    if place and run.world.rank > 0:
        state = load_checkpoint(folder / place, **_kept(run))
    return state


def _kept(run: Run) -> dict[str, Any]:
    """What a checkpoint holds of a run beside its state."""
    return {"model": run.model, "optimizer": run.optimizer, "average": run.average}


@dataclass(slots=True)
class _Progress:
    """The loss summed since the last record, and when that was; what a resumed run needs to write the same records.

    `gradient_norm` is that of the last step, before clipping; None where nothing is clipped.
    """

    loss_sum: torch.Tensor
    since: int
    began: float
    began_at: int
    gradient_norm: torch.Tensor | None = None

    @classmethod
    def restored(cls, state: dict[str, Any], run: Run) -> Self:
        step = int(state["step"])
        # What was saved is the sum of all ranks, so one of them takes it up.
        saved = state.get("loss_sum", 0.0) if run.world.rank == 0 else 0.0
        # One-dimensional: torch-xla would compile a 0 without dimensions into the program of the next step.
        loss_sum = torch.tensor([saved], device=run.device.torch_device)
        return cls(loss_sum, state.get("since", step), time.perf_counter(), step)


def _loop(
    run: Run,
    state: dict[str, Any],
    places: _Places,
    saver: Saver,
    should_stop: Callable[[], bool],
) -> tuple[Literal["done", "diverged", "interrupted"], int]:
    """How it ended, and after which step; the same on all ranks."""
    left = range(int(state["step"]), run.num_steps)
    feed = training_images(run.data, run.recipe, left, world=run.world, device=run.device)
    with feed as batches:
        return _steps(run, zip(left, batches, strict=True), state, places, saver, should_stop)


def _steps(
    run: Run,
    batches: Iterable[tuple[int, StepImages]],
    state: dict[str, Any],
    places: _Places,
    saver: Saver,
    should_stop: Callable[[], bool],
) -> tuple[Literal["done", "diverged", "interrupted"], int]:
    every = max(1, run.num_steps // NUM_RECORDS)
    progress, saved = _Progress.restored(state, run), time.monotonic()
    for step, images in batches:
        rate = learning_rate_factor(step, run.num_steps, run.num_warmup, run.recipe.schedule)
        set_learning_rate(run.optimizer, rate, run.device.scalar)
        loss, progress.gradient_norm = take_step(run, step, images)
        progress.loss_sum += loss
        run.device.end_step()
        done = step + 1
        if done % every == 0 or done in places.steps or done in places.shared:
            finite = _report(run, progress, done, rate, places, saver)
            if not finite:
                return "diverged", done
            progress = _Progress.restored({"step": done}, run)
        wish = Wish.SAVE if time.monotonic() - saved > RESUME_EVERY_S else Wish.GO_ON
        wish, any_writes = _agreed(run, Wish.STOP if should_stop() and done < run.num_steps else wish, saver)
        if done not in places.steps and wish != Wish.GO_ON:
            state = {"loss_sum": run.world.sum(float(progress.loss_sum)), "since": progress.since}
            state |= origin(run.recipe)
            saver.save_to_resume(done, **_kept(run), state=state, metrics={"step": done})
            saved = time.monotonic()
        elif not any_writes:
            saver.settle()
        if wish == Wish.STOP:
            return "interrupted", done
    return "done", run.num_steps


def _agreed(run: Run, wish: Wish, saver: Saver) -> tuple[Wish, bool]:
    """(what is done, whether a rank still writes a checkpoint), the same on all ranks.

    Where one wishes for more than to go on, that others write may not be told: what is wished for waits for it anyway.
    """
    greatest, any_writes = divmod(run.world.most(2 * wish + saver.is_writing), 2)
    return Wish(greatest), bool(any_writes)


def _report(run: Run, progress: _Progress, done: int, rate: float, places: _Places, saver: Saver) -> bool:
    """Logs the records of a step and begins the checkpoints that are due; False once training diverged."""
    loss = run.world.sum(float(progress.loss_sum)) / (done - progress.since)
    images_per_second = (done - progress.began_at) * run.batch_size / (time.perf_counter() - progress.began)
    norm = None if progress.gradient_norm is None else float(progress.gradient_norm)
    record = train_record(run, done, loss, rate, images_per_second)
    saver.log(record | ({} if norm is None else {"gradient_norm": norm}))
    due = done in places.steps or done in places.shared
    measured = _measured(run, loss) if due else (None, loss)
    _tell_corrupt(run, done, saver.log)
    if run.world.any(not math.isfinite(measured[1])):
        saver.log({"event": "diverged", **checkpoint_metrics(run, done, loss, None, None)})
        return False
    if due:
        _leave_checkpoints(run, done, checkpoint_metrics(run, done, loss, *measured), places, saver)
    return True


def _leave_checkpoints(run: Run, done: int, metrics: dict[str, Any], places: _Places, saver: Saver) -> None:
    """The run's own checkpoint, the one that others go on from, or both as one."""
    kept = {**_kept(run), "state": origin(run.recipe), "metrics": metrics}
    trunk = places.trunk if done in places.shared else None
    if done in places.steps:
        saver.save(done, {"event": "checkpoint", **metrics}, trunk=trunk, **kept)
    else:
        saver.save_to_resume(done, trunk=trunk, **kept)


def _tell_corrupt(run: Run, done: int, log: Log) -> None:
    """Logs how many images no rank could read, where they have become more; those named are rank 0's own."""
    corrupt = run.data.corrupt
    count = int(run.world.sum(len(corrupt)))
    if count > corrupt.told:
        log({"event": "corrupt_images", "step": done, "count": count, "first": corrupt.first})
    corrupt.told = count


def _measured(run: Run, loss: float) -> tuple[float | None, float]:
    """(upstream accuracy, upstream loss), measured by rank 0; (None, the training loss) elsewhere and once it is none.

    No rank has all of a sharded model: there all of them measure, the same images, to the same result. The last update
    may have broken the weights while its own loss was still a number: upstream tells.
    """
    if (run.world.rank > 0 and not run.sharded) or not math.isfinite(loss):
        return None, loss
    return measure_upstream(run.model if run.average is None else run.average, run.data, run.device)


def _silent(_: dict[str, Any]) -> None:
    """The log of every rank but the first."""


def load_model(arch: Architecture) -> Callable[[Path], torch.nn.Module]:
    """What makes the trained model of a checkpoint folder, in evaluation mode on this job's device.

    Raises:
        CheckpointError: (when called) the weights are missing, torn, or of another model.
    """

    def load(folder: Path) -> torch.nn.Module:
        model, device = build_model(arch), pick_device()
        load_weights(folder, model)
        model = model.to(device.torch_device).eval()
        device.spread(model)
        return model

    return load
