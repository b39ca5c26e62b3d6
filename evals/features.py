"""Frozen features of every layer, in one forward pass an image.

Shape suffixes: B batch, N images, H and W pixels, C channels, T tokens, D features.
"""

from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models.device import Device, device_of
from models.errors import DataError
from models.inputs import HALF, Channels, to_input


class _Backbone(Protocol):
    """What timm's models share, and `torch.nn.Module` does not declare."""

    def forward_intermediates(self, x: torch.Tensor, **options: object) -> tuple[torch.Tensor, list[torch.Tensor]]: ...

    def forward_head(self, x: torch.Tensor, *, pre_logits: bool) -> torch.Tensor: ...


class _TokenBackbone(Protocol):
    """timm's ViT with a class token, asked for the prefix tokens too."""

    def forward_intermediates(
        self, x: torch.Tensor, **options: object
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]: ...


def extract_features(
    model: nn.Module,
    images_NHWC: npt.NDArray[np.uint8],
    *,
    batch_size: int,
    mean: Channels = HALF,
    std: Channels = HALF,
) -> list[npt.NDArray[np.float32]]:
    """Features [N, D] of every layer, first to last: each block's output, pooled, and then the pre-logits features.

    A block of a ViT with a class token gives that token; other ViT and MLP-Mixer blocks give the mean over tokens. A
    ResNet gives its stem and its four stages, each the mean over positions; any other timm model that of each map
    which its `forward_intermediates` gives. Block outputs are taken before any final norm. Each image is encoded once,
    in evaluation mode; the model's mode is restored.

    Args:
        model: a timm model, on any device.
        images_NHWC: uint8, with one channel or three, of the size that the model takes.
        batch_size: images a forward pass; the last pass may have fewer. It changes results by rounding only.
        mean: of each channel, which the model wants subtracted, where values go from 0 to 1.
        std: what it wants them divided by after that.

    Raises:
        DataError: no images, or not uint8 with one channel or three.
    """
    _check_images(images_NHWC)
    was_training, device = model.training, device_of(model)
    model.eval()
    try:
        batches = [
            _encode(model, images_NHWC[start : start + batch_size], batch_size, device, mean, std)
            for start in range(0, len(images_NHWC), batch_size)
        ]
    finally:
        model.train(was_training)
    return [np.concatenate(layer) for layer in zip(*batches, strict=True)]


def _check_images(images_NHWC: npt.NDArray[np.uint8]) -> None:
    shape = images_NHWC.shape
    if images_NHWC.dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3):
        raise DataError(f"images: {images_NHWC.dtype} {list(shape)} given, uint8 [N, H, W, 1 or 3] needed")
    if shape[0] == 0:
        raise DataError("images: none given, there is nothing to encode")


@torch.no_grad()  # torch-xla makes no views in inference mode
def _encode(
    model: nn.Module,
    images_BHWC: npt.NDArray[np.uint8],
    batch_size: int,
    device: Device,
    mean: Channels,
    std: Channels,
) -> list[npt.NDArray[np.float32]]:
    # A copy, because torch warns about tensors on arrays that are read-only, as cached images are.
    x_BCHW = to_input(device.put(device.filled(torch.tensor(images_BHWC), batch_size)), mean, std)
    layers = _layers(model, x_BCHW)
    device.end_step()  # one program for all layers
    return [layer_BD.float().cpu().numpy()[: len(images_BHWC)] for layer_BD in layers]


def _layers(model: nn.Module, x_BCHW: torch.Tensor) -> list[torch.Tensor]:
    if getattr(model, "has_class_token", False):
        final, blocks = cast("_TokenBackbone", model).forward_intermediates(
            x_BCHW, output_fmt="NLC", return_prefix_tokens=True
        )
        # timm puts the class token before the other prefix tokens.
        pooled = [prefix_BTD[:, 0] for _, prefix_BTD in blocks]
    else:
        final, maps_BDHW = cast("_Backbone", model).forward_intermediates(x_BCHW)
        pooled = [map_BDHW.mean(dim=(2, 3)) for map_BDHW in maps_BDHW]
    return [*pooled, cast("_Backbone", model).forward_head(final, pre_logits=True)]
