"""Frozen features of every layer, in one forward pass an image, batch by batch.

A layer's features are the output of its block, pooled, before any final norm; the last layer's are what the classifier
sees (the pre-logits features). A ViT or MLP-Mixer has one layer a block, a ResNet its stem and four stages, any other
timm model what its `forward_intermediates` gives; the pre-logits features come on top.

Shape suffixes: B batch, N images, H and W pixels, C channels or classes, T tokens, D features, L layers.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from itertools import pairwise
from typing import Final, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from evals.protocol import Layers
from models.device import Device, device_of
from models.errors import DataError
from models.inputs import ToInput, to_input

Features = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Forward = Callable[[torch.Tensor], tuple[torch.Tensor, list[torch.Tensor]]]
Pooling = Literal["class token", "mean over tokens", "mean over positions"]

CLASS_TOKEN: Final = "class token"  # noqa: S105 - no password


class _Backbone(Protocol):
    """What timm's models share, and `torch.nn.Module` does not declare."""

    def forward_features(self, x: torch.Tensor) -> torch.Tensor: ...

    def forward_intermediates(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]: ...

    def forward_head(self, x: torch.Tensor, *, pre_logits: bool = False) -> torch.Tensor: ...


class _TokenBackbone(Protocol):
    """Those with a class token, asked for the tokens before the patches' too."""

    def forward_intermediates(
        self, x: torch.Tensor, **options: object
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Of one batch: features [B, D] by layer, first to last, and logits [B, C]."""

    layers: list[Features]
    logits_BC: Features


def encode(
    model: nn.Module,
    batches: Iterable[Pixels],
    *,
    batch_size: int,
    layers: Layers = "all",
    to_input: ToInput = to_input,
) -> Iterator[list[Features]]:
    """Features [B, D] of each batch in turn, by layer, first to last; of the last layer alone where that is asked.

    Blocks are pooled as they come (see `pooling`), so that the block outputs of a batch need not be in memory together;
    those of models other than ViT, MLP-Mixer and ResNet are. The model is in evaluation mode until the last batch, and
    as it was then. Results depend on batch size and order by float32 rounding only.

    Args:
        model: a timm model, on any device.
        batches: uint8 [B, H, W, C], with one channel or three, of the size that the model takes.
        batch_size: the most images of a batch; where programs are compiled, smaller ones are filled up to it.
        layers: "all", or "last" for the pre-logits features.
        to_input: what makes of a batch of images what the model takes.

    Raises:
        DataError: a batch without images, or one that is not uint8 with one channel or three.
    """
    return _outputs(model, batches, batch_size, layers, to_input, logits=False)


def encode_with_logits(model: nn.Module, batches: Iterable[Pixels], *, batch_size: int) -> Iterator[Encoded]:
    """Features of every layer and the logits of each batch in turn, as `encode` gives them, from one forward pass.

    Raises:
        DataError: as `encode`.
    """
    for *layers, logits_BC in _outputs(model, batches, batch_size, "all", to_input, logits=True):
        yield Encoded(layers, logits_BC)


def pooling(model: nn.Module) -> Pooling:
    """How a block's output becomes one vector: the class token where the classifier reads it, else a mean.

    The mean is over the patches' tokens, or over the positions of a map.
    """
    reads_class_token = getattr(model, "global_pool", None) == "token"
    if isinstance(model, VisionTransformer):
        return CLASS_TOKEN if reads_class_token and model.has_class_token else "mean over tokens"
    if isinstance(model, MlpMixer):
        return "mean over tokens"
    takes = signature(cast("_Backbone", model).forward_intermediates).parameters
    return CLASS_TOKEN if reads_class_token and "return_prefix_tokens" in takes else "mean over positions"


def _check_images(images_BHWC: Pixels) -> None:
    shape = images_BHWC.shape
    if images_BHWC.dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3):
        raise DataError(f"images: {images_BHWC.dtype} {list(shape)} given, uint8 [N, H, W, 1 or 3] needed")
    if shape[0] == 0:
        raise DataError("images: none given, there is nothing to encode")


def _outputs(
    model: nn.Module, batches: Iterable[Pixels], batch_size: int, layers: Layers, to_input: ToInput, *, logits: bool
) -> Iterator[list[Features]]:
    """What was asked for of each batch, the logits last."""
    device, backbone = device_of(model), cast("_Backbone", model)
    forward = _with_blocks(model) if layers == "all" else lambda x_BCHW: (backbone.forward_features(x_BCHW), [])
    with _evaluating(model):
        for images_BHWC in batches:
            _check_images(images_BHWC)
            assert len(images_BHWC) <= batch_size, f"a batch of {len(images_BHWC)} images, {batch_size} at most"
            with torch.no_grad():  # torch-xla makes no views in inference mode
                # A copy, because torch warns about tensors on arrays that are read-only, as cached images are.
                x_BCHW = to_input(device.put(device.filled(torch.tensor(images_BHWC), batch_size)))
                final, outputs = forward(x_BCHW)
                outputs.append(backbone.forward_head(final, pre_logits=True))
                if logits:
                    outputs.append(backbone.forward_head(final))
                fetched = _fetched(outputs, len(images_BHWC), device)
            yield fetched


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, and afterwards as it was."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _fetched(outputs: list[torch.Tensor], num_images: int, device: Device) -> list[Features]:
    """All of them in one transfer: an accelerator is waited for once a batch."""
    whole_BD = torch.cat(outputs, dim=1).float()
    device.end_step()  # one program for all layers
    fetched_BD = whole_BD.cpu().numpy()[:num_images]
    ends = np.cumsum([0, *(output.shape[1] for output in outputs)])
    return [np.ascontiguousarray(fetched_BD[:, start:end]) for start, end in pairwise(ends)]


# --- blocks -----------------------------------------------------------------------------------------------------------


def _with_blocks(model: nn.Module) -> Forward:
    """What gives (what goes into the head, the pooled output of every block)."""
    blocks, backbone = _blocks(model), cast("_Backbone", model)
    if blocks:
        return partial(_hooked, backbone, blocks, _pool_of(model))
    return partial(_with_class_tokens if pooling(model) == CLASS_TOKEN else _with_maps, backbone)


def _hooked(
    backbone: _Backbone, blocks: list[nn.Module], pool: Callable[[torch.Tensor], torch.Tensor], x_BCHW: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    outputs: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda *call: outputs.append(pool(call[-1]))) for block in blocks]
    try:
        return backbone.forward_features(x_BCHW), outputs
    finally:
        for hook in hooks:
            hook.remove()


def _with_class_tokens(backbone: _Backbone, x_BCHW: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    final, tokens = cast("_TokenBackbone", backbone).forward_intermediates(x_BCHW, return_prefix_tokens=True)
    # timm puts the class token before the other prefix tokens.
    return final, [prefix_BTD[:, 0] for _, prefix_BTD in tokens]


def _with_maps(backbone: _Backbone, x_BCHW: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    final, maps_BDHW = backbone.forward_intermediates(x_BCHW)
    return final, [_mean_of_map(map_BDHW) for map_BDHW in maps_BDHW]


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The modules whose outputs are the layers, as timm's `forward_intermediates` has them; empty for other models."""
    if isinstance(model, VisionTransformer | MlpMixer):
        return list(model.blocks)
    if isinstance(model, ResNet):
        stem_and_stages = (model.act1, model.layer1, model.layer2, model.layer3, model.layer4)
        return [cast("nn.Module", module) for module in stem_and_stages]
    return []


def layer_modules(model: nn.Module) -> list[list[nn.Module]]:
    """The modules of each layer but the last; empty where they are not known.

    Of models other than ViT, MLP-Mixer and ResNet they are known where timm's `feature_info` names all children of one
    container: elsewhere it leaves out blocks between its layers.
    """
    if isinstance(model, ResNet):  # the stem's convolution comes before the module whose output it gives
        return [[cast("nn.Module", model.conv1), cast("nn.Module", model.bn1)], *([b] for b in _blocks(model)[1:])]
    return [[block] for block in _blocks(model) or _children_in_feature_info(model)]


def _children_in_feature_info(model: nn.Module) -> list[nn.Module]:
    names = [str(info["module"]) for info in getattr(model, "feature_info", None) or ()]
    parents = {name.rpartition(".")[0] for name in names}
    parent = dict(model.named_modules()).get(parents.pop()) if len(parents) == 1 else None
    children = dict(parent.named_children()) if parent is not None else {}
    return list(children.values()) if [name.rpartition(".")[2] for name in names] == list(children) else []


def _pool_of(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    how = pooling(model)
    if how == CLASS_TOKEN:
        return lambda x_BTD: x_BTD[:, 0].clone()  # a view would keep all of the block's output
    if how == "mean over tokens":
        num_prefix_tokens = getattr(model, "num_prefix_tokens", 0)
        return lambda x_BTD: x_BTD[:, num_prefix_tokens:].mean(dim=1)
    return _mean_of_map


def _mean_of_map(map_BDHW: torch.Tensor) -> torch.Tensor:
    return map_BDHW.mean(dim=(2, 3))
