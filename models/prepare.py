"""What a run needs before its first step: data, model, optimiser, on the device and among the processes it has."""

import torch

from models.average import averaged
from models.build import build_model
from models.device import Device, pick_device
from models.distributed import World
from models.errors import UserError
from models.ladder import Architecture, architecture
from models.optim import make_optimizer
from models.recipe import Recipe, num_steps, num_warmup_steps
from models.shard import sharded_average, sharded_model
from models.step import Run, compiled_forward, parallel, synchronised
from models.upstream import load_upstream


def recipe_architecture(recipe: Recipe, num_classes: int) -> Architecture:
    """The recipe's model with a head for `num_classes` upstream classes."""
    return architecture(
        recipe.family,
        recipe.size,
        image_size=recipe.image_size,
        num_classes=num_classes,
        patch_size=recipe.patch_size,
    )


def prepare(
    recipe: Recipe,
    micro_batch: int | None,
    max_corrupt: float,
    world: World,
    peak_teraflops: float | None,
    *,
    sharded: bool,
    checkpointed: bool,
    compiled: bool,
) -> Run:
    """The run at step 0; its arguments are those of `models.train.train`.

    Raises:
        UserError: the data or the recipe cannot be used, or the processes or chips cannot train this family.
    """
    if micro_batch is not None and micro_batch < 1:
        raise UserError(f"micro_batch: must be at least 1 image, or None, not {micro_batch}")
    device = _common_device(world)
    if device.compiles:  # torch-xla compiles by itself, and computes again what it has no memory for
        checkpointed = compiled = False
    data = load_upstream(recipe, max_corrupt=max_corrupt)
    torch.manual_seed(recipe.seed)
    arch = recipe_architecture(recipe, data.num_classes)
    model, average = _build(recipe, arch, device, world, sharded=sharded, checkpointed=checkpointed)
    forward = model if sharded else parallel(model, device, world)
    num_images = len(data.train)
    steps, batch = num_steps(num_images, batch_size=recipe.batch_size, epochs=recipe.epochs)
    _check_chips(device, world, batch)
    return Run(
        recipe=recipe,
        data=data,
        architecture=arch,
        model=model,
        forward=compiled_forward(forward) if compiled and not sharded else forward,
        optimizer=make_optimizer(model, recipe, capturable=device.compiles),
        average=average,
        device=device,
        world=world,
        sharded=sharded,
        num_steps=steps,
        num_warmup=num_warmup_steps(recipe, num_steps=steps, steps_an_epoch=num_images // batch),
        batch_size=batch,
        peak_teraflops=peak_teraflops,
        checkpointed=checkpointed,
        micro_batch=min((micro_batch or batch) * device.num_chips, -(-batch // world.size)),
    )


def _check_chips(device: Device, world: World, batch: int) -> None:
    if device.compiles and world.size > 1:
        raise UserError(
            f"{world.size} processes, but torch-xla trains a cell in one, on the chips of one host: give the cell at"
            " most a host's accelerators"
        )
    if batch % device.num_chips:
        raise UserError(
            f"a batch of {batch} images cannot be split among the {device.num_chips} chips of {device.name}: let"
            " batch_size be a multiple (a training set smaller than a batch is one batch)"
        )


def _build(
    recipe: Recipe, arch: Architecture, device: Device, world: World, *, sharded: bool, checkpointed: bool
) -> tuple[torch.nn.Module, torch.nn.Module | None]:
    """(the model, the average of its weights or None), on the device."""

    def build() -> torch.nn.Module:
        model = build_model(arch, dropout=recipe.dropout, drop_path=recipe.drop_path, checkpointed=checkpointed)
        return synchronised(model, device, world).train()

    if sharded:
        model = sharded_model(build, device.torch_device, world)
        return model, sharded_average(model, build, device.torch_device, world) if recipe.ema else None
    model = build().to(device.torch_device)
    return model, averaged(model) if recipe.ema else None


def _common_device(world: World) -> Device:
    device = pick_device(world.local_rank)
    num_cuda = world.sum(device.torch_device.type == "cuda")
    if num_cuda not in (0, world.size):
        raise RuntimeError(f"{num_cuda:.0f} of {world.size} processes found an accelerator; this one {device.name}")
    device.reset_peak()
    return device
