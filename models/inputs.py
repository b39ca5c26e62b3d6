"""From stored images to what a model takes."""

import torch


def to_input(images_BHWC: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] float32 in [-1, 1], from uint8 [B, H, W, C]; one channel is repeated to three.

    Every model takes three channels, so a network trained on grey icons can be probed on coloured tasks.
    """
    x_BCHW = images_BHWC.permute(0, 3, 1, 2).to(torch.float32).mul_(2 / 255).sub_(1)
    return x_BCHW.expand(-1, 3, -1, -1) if x_BCHW.shape[1] == 1 else x_BCHW
