"""Parameter groups and the learning-rate schedule.

The head (upstream classifier) has a learning rate and weight decay of its own: arXiv 2110.02095 section 4 shows
that they set upstream and downstream accuracy at odds.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from timm.optim.adafactor_bv import AdafactorBigVision

from models.ladder import FACTORED_FROM
from models.recipe import cooldown_start

if TYPE_CHECKING:
    from models.recipe import Axes, Schedule


def parameter_groups(model: torch.nn.Module, recipe: "Axes") -> list[dict[str, object]]:
    """Four groups (body and head, decayed and not), each with `lr`, `base_lr` and `weight_decay`.

    Biases, norms and other one-dimensional parameters are not decayed, nor are position and class embeddings
    (timm's `no_weight_decay`).
    """
    head_lr = recipe.learning_rate if recipe.head_learning_rate is None else recipe.head_learning_rate
    head_wd = recipe.weight_decay if recipe.head_weight_decay is None else recipe.head_weight_decay
    head = {id(p) for p in model.get_classifier().parameters()}  # type: ignore[operator]  # every timm model has it
    undecayed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]  # timm
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decayed = parameter.ndim > 1 and name not in undecayed
        groups.setdefault((id(parameter) in head, decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": head_lr if in_head else recipe.learning_rate,
            "base_lr": head_lr if in_head else recipe.learning_rate,
            "weight_decay": (head_wd if in_head else recipe.weight_decay) if decayed else 0.0,
        }
        for (in_head, decayed), parameters in sorted(groups.items())
    ]


def make_optimizer(model: torch.nn.Module, recipe: "Axes", *, capturable: bool = False) -> torch.optim.Optimizer:
    """AdamW (decoupled decay, betas 0.9 and 0.999), SGD with Nesterov momentum 0.9, or Adafactor as ViTs are trained.

    That is the variant of arXiv 2106.04560, section 3.4: a factored second moment whose decay grows to 0.999, momentum
    0.9 in bfloat16, steps scaled neither by the weights nor cut by their own length. Other than there, weight decay is
    multiplied with the learning rate, so that it means the same for every optimiser. torch.optim.Adafactor is that of
    arXiv 1804.04235, which has no momentum, caps the rate at 1 / sqrt(step) and multiplies it with the weights' size.

    A `capturable` AdamW counts its steps on the device, so that each of its steps is the same program.
    """
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, capturable=capturable)
    if recipe.optimizer == "adafactor":
        optimizer: torch.optim.Optimizer = AdafactorBigVision(groups, min_dim_size_to_factor=FACTORED_FROM)
        return optimizer
    return torch.optim.SGD(groups, momentum=0.9, nesterov=True)


def learning_rate_factor(step: int, num_steps: int, num_warmup: int, schedule: "Schedule" = "cosine") -> float:
    """What multiplies each group's base rate at `step` (0-based): linear warm-up, then the schedule's way to zero.

    "cosine" and "linear" fall over all steps after the warm-up. "rsqrt" falls as sqrt(`num_warmup` / step) (arXiv
    2106.04560, which has a warm-up and a timescale of 10,000 steps each), whatever the number of steps, and a linear
    cooldown over the last fifth of them multiplies it.
    """
    if schedule == "rsqrt":
        return _reciprocal_square_root(step, num_steps, num_warmup)
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    return 1 - progress if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))


def _reciprocal_square_root(step: int, num_steps: int, num_warmup: int) -> float:
    timescale = max(1, num_warmup)
    rising = min(1.0, (step + 1) / timescale)
    falling = 1 / math.sqrt(1 + max(0, step - num_warmup) / timescale)
    start = cooldown_start(num_steps)
    cooling = min(1.0, (num_steps - step) / (num_steps - start))
    return rising * falling * cooling


def set_learning_rate(
    optimizer: torch.optim.Optimizer, factor: float, scalar: Callable[[float], float | torch.Tensor] = float
) -> None:
    """Each group's rate becomes its base rate times `factor`, in the form that `scalar` gives where torch takes it."""
    for group in optimizer.param_groups:
        rate = group["base_lr"] * factor
        # SGD would wait for a rate on the device; under torch-xla its own form, a negative number, changes no program.
        group["lr"] = scalar(rate) if group.get("capturable") else rate
