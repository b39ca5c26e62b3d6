"""An exponential moving average of a model's weights, beside the weights that training goes on from."""

import copy
from collections.abc import Callable

import torch


def averaged(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of the model that holds the average and is never trained; it begins at the model's own weights."""
    return copy.deepcopy(model).requires_grad_(False).eval()


@torch.no_grad()
def update_average(
    average: torch.nn.Module,
    model: torch.nn.Module,
    *,
    decay: float,
    step: int,
    scalar: Callable[[float], float | torch.Tensor] = float,
) -> None:
    """Moves the average towards the model as it is after `step` (0-based): average = d * average + (1 - d) * model.

    d is the smaller of `decay` and (1 + n) / (10 + n) after n = `step` + 1 updates, so that a short run is no average
    of its beginning (the `num_updates` of TensorFlow's ExponentialMovingAverage). Batch norm's running statistics are
    averaged too; counters are copied. `scalar` gives 1 - d the form that the device wants.
    """
    moved = scalar(1 - min(decay, (2 + step) / (11 + step)))
    for mean, now in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(now, moved)
        else:
            mean.copy_(now)
