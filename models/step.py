"""One optimiser step: a batch, shared among the ranks and cut into micro-batches, moves the weights once.

Shape suffixes: B images of a batch, P of a piece of it, H and W pixels, C channels or classes.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from models.augment import Indices, StepImages
from models.average import update_average
from models.device import Device
from models.distributed import World
from models.errors import UserError
from models.ladder import Architecture
from models.recipe import Recipe
from models.shard import whole
from models.upstream import UpstreamData

LAYERS = 1  # tells these random numbers from others of the same seed and step


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What the loop works on.

    `batch_size` counts the images of a step on all ranks, `micro_batch` the most in one forward pass of one rank.
    `forward` is what a training step calls: the model itself or, among several ranks, what averages its gradients.
    `average` holds the moving average of the model's weights, where the recipe asks for it. Of a `sharded` model and
    its average each rank has some rows alone.
    """

    recipe: Recipe
    data: UpstreamData
    architecture: Architecture
    model: torch.nn.Module
    forward: torch.nn.Module
    optimizer: torch.optim.Optimizer
    average: torch.nn.Module | None
    device: Device
    world: World
    sharded: bool
    num_steps: int
    num_warmup: int
    batch_size: int
    micro_batch: int
    peak_teraflops: float | None
    checkpointed: bool


def synchronised(model: torch.nn.Module, device: Device, world: World) -> torch.nn.Module:
    """The model, with batch statistics over all ranks; to be called before there is an optimiser.

    Raises:
        UserError: several ranks on a CPU, and the model has batch norm: torch synchronises it only on accelerators.
    """
    if world.size == 1 or not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return model
    if device.torch_device.type == "cpu":
        raise UserError(
            f"a model with batch norm (like a ResNet) cannot be trained by {world.size} processes on CPUs, where torch"
            " does not synchronise batch statistics: give the cell one node, or accelerators"
        )
    # timm's own, because torch's would drop the activations of timm's fused norms.
    converted: torch.nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return converted


def parallel(model: torch.nn.Module, device: Device, world: World) -> torch.nn.Module:
    """The model itself for one rank, else what averages the ranks' gradients."""
    if world.size == 1:
        return model
    devices = [device.torch_device] if device.torch_device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices)


def compiled_forward(forward: torch.nn.Module) -> torch.nn.Module:
    """The same, compiled at its first call; the model itself stays as it is, for measuring and saving.

    Each number of images in a forward pass is compiled by itself: there are at most two, those of unequal pieces.
    """
    if isinstance(forward, DistributedDataParallel):
        forward.compile(dynamic=False)
        return forward
    compiled: torch.nn.Module = torch.compile(forward, dynamic=False)  # type: ignore[assignment]  # a module for one
    return compiled


def micro_batches(batch_B: Indices, *, rank: int, size: int, at_most: int, chips: int = 1) -> list[Indices]:
    """The rank's share of a batch in pieces of at most `at_most` images: as many on every rank, so some may be empty.

    Ranks that took different numbers of forward passes would wait for each other in synchronised batch norm. Where a
    rank has several `chips`, which divide the batch, they divide each piece.
    """
    largest_share = -(-len(batch_B) // size)
    groups_GC = np.array_split(batch_B, size)[rank].reshape(-1, chips)
    return [piece_GC.ravel() for piece_GC in np.array_split(groups_GC, -(-largest_share // at_most))]


def take_step(run: Run, step: int, images: StepImages) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(this rank's part of the batch's mean loss, the norm of the batch's gradient before clipping); both detached.

    The parts of all ranks add up to the loss; the norm is the same on all, and None where nothing is clipped. They are
    left on the device so that a step does not wait for them.
    """
    if run.recipe.dropout or run.recipe.drop_path:
        run.device.seed(layer_seed(run.recipe.seed, step, run.world.rank))
    run.optimizer.zero_grad(set_to_none=True)
    place_B = np.arange(len(images))
    if run.world.size == 1 and len(place_B) <= run.micro_batch:
        loss = _loss(run, images, place_B, "mean")
        _backward(run, loss)
    else:
        loss = _accumulated(run, images, place_B)
    norm = _clipped(run)
    run.optimizer.step()
    if run.average is not None:
        update_average(run.average, run.model, decay=run.recipe.ema, step=step, scalar=run.device.scalar)
    return loss.detach(), norm


def _clipped(run: Run) -> torch.Tensor | None:
    """The norm over all parameters, head included, of a gradient that is no longer than the recipe allows from now on.

    It is that of the whole batch: micro-batches are added up and ranks averaged by now (arXiv 1211.5063, section 3.2).
    """
    if not run.recipe.clip_norm:
        return None
    return whole(torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.recipe.clip_norm))


def layer_seed(seed: int, step: int, rank: int) -> int:
    """What a rank's random layers draw from in one step; it does not depend on what was drawn before."""
    return int(np.random.SeedSequence((seed, step, LAYERS, rank)).generate_state(1, np.uint64)[0])


def _accumulated(run: Run, images: StepImages, place_B: Indices) -> torch.Tensor:
    total = torch.zeros((), device=run.device.torch_device)
    world, chips = run.world, run.device.num_chips
    pieces = micro_batches(place_B, rank=world.rank, size=world.size, at_most=run.micro_batch, chips=chips)
    for number, place_P in enumerate(pieces, start=1):
        with _unsent(run.forward) if number < len(pieces) else nullcontext():
            loss = _loss(run, images, place_P, "sum") / len(place_B)
            # The ranks' gradients are averaged: the factor makes that their sum, whatever the sizes of their shares.
            _backward(run, loss * world.size)
        total += loss.detach()
        run.device.end_step()  # or nothing would be freed between the pieces
    return total


def _backward(run: Run, loss: torch.Tensor) -> None:
    with _statistics_as_they_are(run.model) if run.checkpointed else nullcontext():
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped


@contextmanager
def _statistics_as_they_are(model: torch.nn.Module) -> Iterator[None]:
    """Blocks that are computed again show batch norm the same images again: its running statistics count them once."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, num_batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches


def _unsent(forward: torch.nn.Module) -> AbstractContextManager[None]:
    """Gradients add up without being sent to the other ranks.

    Those of a sharded model are sent for each micro-batch: until then every rank has the whole of them.
    """
    return forward.no_sync() if isinstance(forward, DistributedDataParallel) else nullcontext()


def _loss(run: Run, images: StepImages, place_P: Indices, reduction: Literal["mean", "sum"]) -> torch.Tensor:
    batch, x_PCHW = images.batch, images.inputs(place_P, run.device)
    with run.device.autocast(run.recipe.precision):
        logits_PC = run.forward(x_PCHW).float()
        loss = _cross_entropy(run, logits_PC, images.labels(place_P), reduction)
        if batch.partner_B is None:
            return loss
        of_partners = _cross_entropy(run, logits_PC, images.labels(batch.partner_B[place_P]), reduction)
        share = run.device.scalar(batch.share)
        return share * loss + (1 - share) * of_partners


def _cross_entropy(
    run: Run, logits_PC: torch.Tensor, y_P: torch.Tensor, reduction: Literal["mean", "sum"]
) -> torch.Tensor:
    y_P = run.device.put(y_P)
    smoothing = run.recipe.label_smoothing
    return functional.cross_entropy(logits_PC, y_P, label_smoothing=smoothing, reduction=reduction)
