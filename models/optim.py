"""Parameter groups and the learning-rate schedule.

The head (upstream classifier) has a learning rate and weight decay of its own: arXiv 2110.02095 section 4 shows
that they set upstream and downstream accuracy at odds.
"""

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from models.recipe import Axes


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


def make_optimizer(model: torch.nn.Module, recipe: "Axes") -> torch.optim.Optimizer:
    """AdamW (decoupled decay, betas 0.9 and 0.999) or SGD with Nesterov momentum 0.9."""
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, momentum=0.9, nesterov=True)


def learning_rate_factor(step: int, num_steps: int, warmup: float) -> float:
    """What multiplies each group's base rate at `step` (0-based): linear warm-up, then a cosine to zero."""
    num_warmup = round(warmup * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Each group's rate becomes its base rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
