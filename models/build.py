"""The timm model of an `Architecture`."""

from collections.abc import Callable, Mapping

import torch
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models.ladder import SMALL_IMAGE_SIZE, Architecture, Family
from models.timm_models import timm_model

CHANNELS_OF_A_REGISTER = 16  # of 512 bits, in float32


def build_model(
    a: Architecture, *, dropout: float = 0.0, drop_path: float = 0.0, checkpointed: bool = False
) -> nn.Module:
    """A freshly initialised model, on torch's default device (10 B parameters take no memory under "meta").

    Its parameters and operations are those that `models.ladder` counts. Of the ladder's families it has
    `forward_intermediates` (one output a block; for a ResNet the stem and four stages),
    `forward_head(x, pre_logits=True)` and `get_classifier()`. Draws from torch's global random generator, and does so
    in every training step with `dropout` or `drop_path` (see `models.recipe.Axes`), which change no parameter.

    The blocks of a `checkpointed` model keep what goes into them alone and are computed again, with the same masks, for
    the backward pass (arXiv 1604.06174): a third more operations for a fraction of the memory.
    """
    model = in_its_layout(_BUILDERS[a.family](a, dropout, drop_path))
    if checkpointed:
        model.set_grad_checkpointing()  # type: ignore[operator]  # every timm model has it
    return model


def in_its_layout(model: nn.Module) -> nn.Module:
    """The model, taking no images channels last where oneDNN would then write past its workspace in training.

    It does in strided 1 x 1 convolutions of fewer channels than a register holds (uxlfoundation/oneDNN issue 6035). The
    layout of the first convolution's input is that of all that follow.
    """
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    if any(map(_is_written_past, convolutions)):
        model.to(memory_format=torch.contiguous_format)
        convolutions[0].register_forward_pre_hook(_contiguous)
    return model


def _is_written_past(convolution: nn.Conv2d) -> bool:
    strided = convolution.kernel_size == (1, 1) and max(convolution.stride) > 1
    return strided and convolution.in_channels < CHANNELS_OF_A_REGISTER


def _contiguous(_: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
    return inputs[0].contiguous()


def _build_vit(a: Architecture, dropout: float, drop_path: float) -> nn.Module:
    return VisionTransformer(
        img_size=a.image_size,
        patch_size=a.patch_size,
        in_chans=a.in_channels,
        num_classes=a.num_classes,
        embed_dim=a.width,
        depth=a.depth,
        num_heads=a.num_heads,
        mlp_ratio=_ratio(a.mlp_dim, a.width),
        pos_drop_rate=dropout,
        proj_drop_rate=dropout,
        drop_path_rate=drop_path,
    )


def _build_mixer(a: Architecture, dropout: float, drop_path: float) -> nn.Module:
    model = MlpMixer(
        img_size=a.image_size,
        patch_size=a.patch_size,
        in_chans=a.in_channels,
        num_classes=a.num_classes,
        embed_dim=a.width,
        num_blocks=a.depth,
        mlp_ratio=(_ratio(a.token_mlp_dim, a.width), _ratio(a.mlp_dim, a.width)),
        proj_drop_rate=dropout,
        drop_path_rate=drop_path,
    )
    if drop_path:  # timm gives all blocks one rate; the published Mixers rise linearly, as its ViTs and ResNets do
        for number, block in enumerate(model.blocks):
            block.drop_path.drop_prob = drop_path * number / max(1, a.depth - 1)  # type: ignore[union-attr]
    return model


def _ratio(hidden: int, width: int) -> float:
    """A ratio that gives exactly `hidden` when timm multiplies it with the width and cuts off the fraction."""
    return (hidden + 0.5) / width


def _build_resnet(a: Architecture, dropout: float, drop_path: float) -> nn.Module:
    # timm's plain stem has 64 channels at any width. Its deep stem follows `stem_width`, and is then replaced by the
    # plain 7 x 7 convolution of that width, with which the published ResNets, wide ones included, begin.
    model = ResNet(
        Bottleneck if a.bottleneck else BasicBlock,  # type: ignore[arg-type]  # timm's annotation lacks the type[]
        layers=a.blocks,
        channels=tuple(a.width * 2**stage for stage in range(len(a.blocks))),
        in_chans=a.in_channels,
        num_classes=a.num_classes,
        stem_type="deep",
        stem_width=a.width // 2,
        drop_rate=dropout,
        drop_path_rate=drop_path,
    )
    stem = nn.Conv2d(a.in_channels, a.width, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    model.add_module("conv1", stem)
    if a.image_size <= SMALL_IMAGE_SIZE:
        model.add_module("maxpool", nn.Identity())
    # 1.1 to 1.4 x as fast on a CPU, and what tensor cores want.
    return model.to(memory_format=torch.channels_last)


def _build_timm(a: Architecture, dropout: float, drop_path: float) -> nn.Module:
    return timm_model(a, dropout=dropout, drop_path=drop_path)


_BUILDERS: Mapping[Family, Callable[[Architecture, float, float], nn.Module]] = {
    "vit": _build_vit,
    "mixer": _build_mixer,
    "resnet": _build_resnet,
    "timm": _build_timm,
}
