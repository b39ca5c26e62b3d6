"""From stored images to what a model takes.

Shape suffixes: B images, H and W pixels, C channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from models.data import Square

Channels = tuple[float, float, float]
"""One number for each of red, green and blue, where values go from 0 to 1."""

HALF: Channels = (0.5, 0.5, 0.5)
"""Mean and deviation that all models of a study have: values go from -1 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """How a model wants images: made square so, then less `mean` and divided by `std`, channel by channel."""

    square: Square
    mean: Channels = HALF
    std: Channels = HALF

    @property
    def to_input(self) -> "ToInput":
        """What gives it such images."""
        return partial(to_input, mean=self.mean, std=self.std)


ToInput = Callable[[torch.Tensor], torch.Tensor]
"""uint8 [B, H, W, C] to float32 [B, 3, H, W], as a model takes them."""


def to_input(images_BHWC: torch.Tensor, mean: Channels = HALF, std: Channels = HALF) -> torch.Tensor:
    """[B, 3, H, W] float32, (value / 255 - mean) / std, from uint8 [B, H, W, C]; one channel is repeated to three.

    Every model takes three channels, so a network trained on grey icons can be probed on coloured tasks. Channel after
    channel in memory, whichever way the images lie: as fast or faster for all families, and what narrow ResNets need.
    """
    x_BCHW = images_BHWC.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    if len({*zip(mean, std, strict=True)}) > 1:
        factor_C11, offset_C11 = (
            x_BCHW.new_tensor(values)[:, None, None]
            for values in ([1 / (255 * s) for s in std], [m / s for m, s in zip(mean, std, strict=True)])
        )
        return x_BCHW * factor_C11 - offset_C11  # three channels of one, too
    x_BCHW = x_BCHW.mul_(1 / (255 * std[0])).sub_(mean[0] / std[0])
    return x_BCHW.expand(-1, 3, -1, -1) if x_BCHW.shape[1] == 1 else x_BCHW
