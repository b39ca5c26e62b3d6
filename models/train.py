"""The training loop, in named phases: prepare, resume, step, measure, save.

Shape suffixes: B batch, N examples, H and W pixels, C channels or classes.

A run is a pure function of its recipe on one machine: images are drawn by (seed, epoch), so a run that was killed and
resumed from a checkpoint ends, on a CPU, with the same bits as one that was not.
"""

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch.nn import functional

from models.build import build_model
from models.checkpoint import finalised_steps, load_checkpoint, load_weights, save_checkpoint, step_folder
from models.data import load_images, split, subset
from models.device import Device, pick_device
from models.inputs import to_input
from models.ladder import Architecture, architecture, num_params, train_flops
from models.optim import learning_rate_factor, make_optimizer, set_learning_rate
from models.recipe import Recipe, num_steps

Log = Callable[[dict[str, Any]], None]

NUM_RECORDS = 50  # training records a cell: enough for a curve, few enough for 4,800 cells
EVAL_BATCH = 512
RESUME = "resume"  # the folder, beside the numbered checkpoints, of what is only for going on from
RESUME_EVERY_S = 600.0


@dataclass(frozen=True, slots=True)
class UpstreamData:
    """Training images and the held-out images of the same classes, resident, as uint8 [N, H, W, C]."""

    train_images_NHWC: torch.Tensor
    train_labels_N: torch.Tensor
    test_images_NHWC: torch.Tensor
    test_labels_N: torch.Tensor
    num_classes: int


@dataclass(frozen=True, slots=True)
class Run:
    """What the loop works on."""

    recipe: Recipe
    data: UpstreamData
    architecture: Architecture
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    device: Device
    num_steps: int
    batch_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """How training ended, and where this attempt began.

    Divergence is a result: `step` is where the loss stopped being a number. An interrupted run goes on from `step`.
    """

    outcome: Literal["done", "diverged", "interrupted"]
    step: int
    first_step: int
    steps: tuple[int, ...]
    examples_seen: int


def train(
    recipe: Recipe,
    folder: Path,
    *,
    num_checkpoints: int,
    log: Log,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Trains one cell, resuming from its newest finalised checkpoint under `folder`.

    Every ten minutes, and when it is told to stop, it leaves a checkpoint in `folder`/resume that is only for going on
    from; the next numbered one removes it.

    Args:
        recipe: what to train.
        folder: where checkpoints go, one folder a step.
        num_checkpoints: how many, evenly spaced, the last one at the last step.
        log: takes each record: `event` is "start", "train", "checkpoint" or "diverged".
        should_stop: asked after each step; true once the job is about to end.

    Raises:
        UserError: the data or the recipe cannot be used.
        CheckpointError: the newest finalised checkpoint is torn or of another model.
        OSError: a checkpoint could not be written.
    """
    run = _prepare(recipe)
    state = _resume(run, folder)
    log(_start_record(run, state["step"]))
    steps = checkpoint_steps(run.num_steps, num_checkpoints)
    outcome, last = _loop(run, state, steps, folder, log, should_stop)
    return TrainResult(
        outcome=outcome, step=last, first_step=state["step"], steps=steps, examples_seen=last * run.batch_size
    )


def checkpoint_steps(total: int, count: int) -> tuple[int, ...]:
    """At most `count` distinct steps, evenly spaced, ending with `total`."""
    return tuple(sorted({max(1, round(total * (i + 1) / count)) for i in range(count)}))


def load_upstream(recipe: Recipe) -> UpstreamData:
    """The recipe's share of the upstream images, labels renumbered over the classes that were kept."""
    images = load_images(recipe.dataset, recipe.image_size)
    train_all, test_all = split(images)
    kept = subset(images.labels_N, train_all, fraction=recipe.fraction, classes=recipe.classes, seed=recipe.seed)
    classes = np.unique(images.labels_N[kept])
    test = test_all[np.isin(images.labels_N[test_all], classes)]
    return UpstreamData(
        torch.from_numpy(images.images_NHWC[kept]),
        torch.from_numpy(np.searchsorted(classes, images.labels_N[kept])),
        torch.from_numpy(images.images_NHWC[test]),
        torch.from_numpy(np.searchsorted(classes, images.labels_N[test])),
        len(classes),
    )


def recipe_architecture(recipe: Recipe, num_classes: int) -> Architecture:
    """The recipe's model with a head for `num_classes` upstream classes."""
    return architecture(
        recipe.family,
        recipe.size,
        image_size=recipe.image_size,
        num_classes=num_classes,
        patch_size=recipe.patch_size,
    )


def _prepare(recipe: Recipe) -> Run:
    device = pick_device()
    data = load_upstream(recipe)
    torch.manual_seed(recipe.seed)
    arch = recipe_architecture(recipe, data.num_classes)
    model = build_model(arch).to(device.torch_device).train()
    steps, batch = num_steps(len(data.train_labels_N), batch_size=recipe.batch_size, epochs=recipe.epochs)
    return Run(recipe, data, arch, model, make_optimizer(model, recipe), device, steps, batch)


def _resume(run: Run, folder: Path) -> dict[str, Any]:
    """The state of the newest checkpoint, loaded; that of step 0 where there is none."""
    found = [(step, root) for root in (folder, folder / RESUME) for step in finalised_steps(root)]
    if not found:
        return {"step": 0}
    step, root = max(found, key=lambda pair: pair[0])
    return load_checkpoint(step_folder(root, step), model=run.model, optimizer=run.optimizer)


def _start_record(run: Run, first_step: int) -> dict[str, Any]:
    return {
        "event": "start",
        "step": first_step,
        "num_steps": run.num_steps,
        "batch_size": run.batch_size,
        "num_train": len(run.data.train_labels_N),
        "num_classes": run.data.num_classes,
        "params": num_params(run.architecture),
        "device": run.device.name,
    }


@dataclass(slots=True)
class _Progress:
    """The loss summed since the last record, and when that was; what a resumed run needs to write the same records."""

    loss_sum: torch.Tensor
    since: int
    began: float
    began_at: int

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Self:
        step = int(state["step"])
        return cls(torch.tensor(state.get("loss_sum", 0.0)), state.get("since", step), time.perf_counter(), step)


def _loop(
    run: Run,
    state: dict[str, Any],
    steps: tuple[int, ...],
    folder: Path,
    log: Log,
    should_stop: Callable[[], bool],
) -> tuple[Literal["done", "diverged", "interrupted"], int]:
    """How it ended, and after which step."""
    every = max(1, run.num_steps // NUM_RECORDS)
    progress, saved = _Progress.restored(state), time.monotonic()
    order, order_epoch = np.empty(0, np.int64), -1
    for step in range(int(state["step"]), run.num_steps):
        epoch, within = divmod(step, len(run.data.train_labels_N) // run.batch_size)
        if epoch != order_epoch:
            order, order_epoch = epoch_order(len(run.data.train_labels_N), seed=run.recipe.seed, epoch=epoch), epoch
        rate = learning_rate_factor(step, run.num_steps, run.recipe.warmup)
        set_learning_rate(run.optimizer, rate)
        progress.loss_sum += _step(run, order[within * run.batch_size : (within + 1) * run.batch_size])
        done = step + 1
        if done % every == 0 or done in steps:
            finite = _report(run, progress, done, rate, folder if done in steps else None, log)
            if not finite:
                return "diverged", done
            progress = _Progress.restored({"step": done})
        stopping = should_stop() and done < run.num_steps
        if done not in steps and (stopping or time.monotonic() - saved > RESUME_EVERY_S):
            _save_to_resume(run, done, progress, folder)
            saved = time.monotonic()
        if stopping:
            return "interrupted", done
    return "done", run.num_steps


def _report(run: Run, progress: _Progress, done: int, rate: float, folder: Path | None, log: Log) -> bool:
    """Logs the records of a step and, where there is a folder, leaves its checkpoint; False once training diverged."""
    loss = float(progress.loss_sum) / (done - progress.since)
    images_per_second = (done - progress.began_at) * run.batch_size / (time.perf_counter() - progress.began)
    log(_train_record(run, done, loss, rate, images_per_second))
    # The last update may have broken the weights while its own loss was still a number: upstream tells.
    measured = measure_upstream(run.model, run.data, run.device) if folder and math.isfinite(loss) else (None, loss)
    if not math.isfinite(measured[1]):
        log({"event": "diverged", **_metrics(run, done, loss, None, None)})
        return False
    if folder:
        metrics = _metrics(run, done, loss, *measured)
        save_checkpoint(folder, done, model=run.model, optimizer=run.optimizer, state={}, metrics=metrics)
        shutil.rmtree(folder / RESUME, ignore_errors=True)
        log({"event": "checkpoint", **metrics})
    return True


def _save_to_resume(run: Run, step: int, progress: _Progress, folder: Path) -> None:
    """A checkpoint only for going on from; earlier ones of the kind go once it is there."""
    state = {"loss_sum": float(progress.loss_sum), "since": progress.since}
    kept = save_checkpoint(
        folder / RESUME, step, model=run.model, optimizer=run.optimizer, state=state, metrics={"step": step}
    )
    for path in kept.parent.glob("step_*"):
        if path != kept:
            shutil.rmtree(path, ignore_errors=True)


def epoch_order(num_images: int, *, seed: int, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The order in which an epoch visits the images: the same for every run of this seed."""
    return np.random.default_rng((seed, epoch)).permutation(num_images)


def _step(run: Run, indices: np.ndarray[tuple[int], np.dtype[np.int64]]) -> torch.Tensor:
    """The batch's mean loss, detached; it is left on the device so that a step does not wait for it."""
    index_B = torch.from_numpy(indices)
    x_BCHW = to_input(run.data.train_images_NHWC[index_B].to(run.device.torch_device))
    y_B = run.data.train_labels_N[index_B].to(run.device.torch_device)
    with run.device.autocast(run.recipe.precision):
        logits_BC = run.model(x_BCHW)
        loss = functional.cross_entropy(logits_BC.float(), y_B, label_smoothing=run.recipe.label_smoothing)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    run.optimizer.step()
    return loss.detach()


def _train_record(run: Run, step: int, loss: float, rate: float, images_per_second: float) -> dict[str, Any]:
    return {
        "event": "train",
        "step": step,
        "examples_seen": step * run.batch_size,
        "train_loss": loss,
        "learning_rate": run.recipe.learning_rate * rate,
        "images_per_second": round(images_per_second, 1),
    }


def _metrics(run: Run, step: int, train_loss: float, accuracy: float | None, loss: float | None) -> dict[str, Any]:
    return {
        "step": step,
        "examples_seen": step * run.batch_size,
        "train_loss": train_loss,
        "upstream_accuracy": accuracy,
        "upstream_loss": loss,
        "upstream_num_test": len(run.data.test_labels_N),
        "upstream_num_classes": run.data.num_classes,
        "params": num_params(run.architecture),
        "flops": train_flops(run.architecture) * step * run.batch_size,
    }


def load_model(arch: Architecture) -> Callable[[Path], torch.nn.Module]:
    """What makes the trained model of a checkpoint folder, in evaluation mode on this job's device.

    Raises:
        CheckpointError: (when called) the weights are missing, torn, or of another model.
    """

    def load(folder: Path) -> torch.nn.Module:
        model = build_model(arch)
        load_weights(folder, model)
        return model.to(pick_device().torch_device).eval()

    return load


@torch.inference_mode()
def measure_upstream(model: torch.nn.Module, data: UpstreamData, device: Device) -> tuple[float, float]:
    """(top-1 accuracy, mean cross-entropy) on the held-out upstream images of the classes that were trained."""
    training = model.training
    model.eval()
    correct, loss = 0, 0.0
    for start in range(0, len(data.test_labels_N), EVAL_BATCH):
        x_BCHW = to_input(data.test_images_NHWC[start : start + EVAL_BATCH].to(device.torch_device))
        y_B = data.test_labels_N[start : start + EVAL_BATCH].to(device.torch_device)
        logits_BC = model(x_BCHW).float()
        correct += int((logits_BC.argmax(1) == y_B).sum())
        loss += float(functional.cross_entropy(logits_BC, y_B, reduction="sum"))
    model.train(training)
    return correct / len(data.test_labels_N), loss / len(data.test_labels_N)
