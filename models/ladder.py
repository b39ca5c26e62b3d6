"""The ladder of sizes: what a family and a size stand for, and what one such model costs, in closed form.

Nothing here imports torch: plans are printed on login nodes. `models.build` turns an `Architecture` into the timm model
whose parameters and operations these formulas count.

Sources of the sizes:
    ViT      S, B, L, H: arXiv 2010.11929 table 1 and 2106.04560 table 2; Ti, g, G: 2106.04560 table 2; M: big_vision.
    Mixer    S, B, L, H: arXiv 2105.01601 table 1. From B on these have the depth, width and (channel) MLP size of the ViT
             of the same name, and token MLPs of half the width: g and G continue that. Ti and M are ours (256 x 8 and
             640 x 10, so that they have about the parameters of ViT-Ti and ViT-M).
    ResNet   R50 ... R152x4: arXiv 1912.11370 (batch instead of group normalisation). Ti to 10B are bottleneck ResNets with
             26, 50, 101 or 152 layers and a width that brings them near the ViT and the Mixer of that name.
    All      pico, nano, micro are for 28- to 64-pixel images (about 45, 130 and 400 thousand parameters); 10B is ours.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from models.errors import UnknownNameError, UserError

Family = Literal["vit", "mixer", "resnet"]
Precision = Literal["float32", "bfloat16"]
Optimizer = Literal["adamw", "sgd"]

FAMILIES: tuple[Family, ...] = get_args(Family)
LADDER = ("pico", "nano", "micro", "Ti", "S", "M", "B", "L", "H", "g", "G", "10B")
"""The sizes that every family has, smallest first."""

SMALL_IMAGE_SIZE = 64
"""Images up to this size go into a ResNet without its max pooling, and default patches shrink with the image below 128."""

_PUBLISHED_IMAGE_SIZE = 128
_PATCH_14_SIZES = frozenset({"H", "g", "G", "10B"})
_BYTES_PER_GB = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One model, fully specified.

    Attributes:
        family: "vit", "mixer" or "resnet".
        size: the name or free form that was asked for.
        image_size: side of the square input, in pixels.
        in_channels: channels of the input.
        num_classes: outputs of the linear head.
        patch_size: side of a patch, in pixels; 0 for a ResNet.
        width: embedding dimension; for a ResNet the channels of its stem (stage i has width * 2**i planes).
        depth: blocks; for a ResNet the sum over its stages.
        num_heads: attention heads; 0 for a Mixer or a ResNet.
        mlp_dim: hidden size of the (channel) MLPs; 0 for a ResNet.
        token_mlp_dim: hidden size of a Mixer's token MLPs, else 0.
        blocks: blocks in each of a ResNet's four stages, else empty.
        bottleneck: whether a ResNet has bottleneck (1-3-1) or basic (3-3) blocks; False for the others.
    """

    family: Family
    size: str
    image_size: int
    in_channels: int
    num_classes: int
    patch_size: int = 0
    width: int
    depth: int
    num_heads: int = 0
    mlp_dim: int = 0
    token_mlp_dim: int = 0
    blocks: tuple[int, ...] = ()
    bottleneck: bool = False

    @property
    def num_patches(self) -> int:
        """Patches of one image; 0 for a ResNet."""
        return (self.image_size // self.patch_size) ** 2 if self.patch_size else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """What a size stands for, before an image size is known."""

    width: int
    depth: int
    num_heads: int = 0
    mlp_dim: int = 0
    token_mlp_dim: int = 0
    blocks: tuple[int, ...] = ()
    bottleneck: bool = False


# --- the sizes ---------------------------------------------------------------------------------------------------------


def _vit(width: int, depth: int, num_heads: int | None = None, mlp_dim: int | None = None) -> _Shape:
    return _Shape(width=width, depth=depth, num_heads=num_heads or _default_heads(width), mlp_dim=mlp_dim or 4 * width)


def _default_heads(width: int) -> int:
    """The most heads that divide the width and are at least 64 wide, as published; 32 wide below the width of Ti."""
    wanted = max(1, width // (64 if width >= 192 else 32))
    return max(heads for heads in range(1, wanted + 1) if width % heads == 0)


def _mixer(width: int, depth: int, mlp_dim: int | None = None) -> _Shape:
    return _Shape(width=width, depth=depth, mlp_dim=mlp_dim or 4 * width, token_mlp_dim=width // 2)


def _resnet(width: int, *blocks: int, bottleneck: bool) -> _Shape:
    return _Shape(width=width, depth=sum(blocks), blocks=blocks, bottleneck=bottleneck)


def _basic(width: int) -> _Shape:
    return _resnet(width, 1, 1, 1, 1, bottleneck=False)


def _r(layers: int, width: int = 64) -> _Shape:
    """A bottleneck ResNet with the published number of layers."""
    blocks = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}[layers]
    return _resnet(width, *blocks, bottleneck=True)


_SHAPES: Mapping[Family, Mapping[str, _Shape]] = {
    "vit": {
        "pico": _vit(32, 2),
        "nano": _vit(64, 2),
        "micro": _vit(96, 3),
        "Ti": _vit(192, 12, 3),
        "S": _vit(384, 12, 6),
        "M": _vit(512, 12, 8),
        "B": _vit(768, 12, 12),
        "L": _vit(1024, 24, 16),
        "H": _vit(1280, 32, 16),
        "g": _vit(1408, 40, 16, 6144),
        "G": _vit(1664, 48, 16, 8192),
        "10B": _vit(4096, 50, 32),
    },
    "mixer": {
        "pico": _mixer(32, 2),
        "nano": _mixer(64, 2),
        "micro": _mixer(96, 3),
        "Ti": _mixer(256, 8),
        "S": _mixer(512, 8),
        "M": _mixer(640, 10),
        "B": _mixer(768, 12),
        "L": _mixer(1024, 24),
        "H": _mixer(1280, 32),
        "g": _mixer(1408, 40, 6144),
        "G": _mixer(1664, 48, 8192),
        "10B": _mixer(4096, 72),
    },
    "resnet": {
        "pico": _basic(4),
        "nano": _basic(8),
        "micro": _basic(16),
        "Ti": _r(26, 32),
        "S": _r(50),
        "M": _r(101),
        "B": _r(50, 128),
        "L": _r(152, 128),
        "H": _r(152, 192),
        "g": _r(152, 256),
        "G": _r(152, 320),
        "10B": _resnet(640, 3, 24, 64, 3, bottleneck=True),
        "R50": _r(50),
        "R101": _r(101),
        "R152": _r(152),
        "R50x3": _r(50, 192),
        "R152x2": _r(152, 128),
        "R101x3": _r(101, 192),
        "R152x4": _r(152, 256),
    },
}

_FREE_FORMS: Mapping[Family, str] = {
    "vit": "dim<D>-depth<N>-heads<H>",
    "mixer": "dim<D>-depth<N>",
    "resnet": "width<W>-blocks<A.B.C.D>",
}
_FREE_PATTERNS: Mapping[Family, re.Pattern[str]] = {
    "vit": re.compile(r"dim(?P<width>[1-9]\d*)-depth(?P<depth>[1-9]\d*)(?:-heads(?P<heads>[1-9]\d*))?", re.ASCII),
    "mixer": re.compile(r"dim(?P<width>[1-9]\d*)-depth(?P<depth>[1-9]\d*)", re.ASCII),
    "resnet": re.compile(
        r"width(?P<width>[1-9]\d*)-blocks(?P<blocks>[1-9]\d*(?:\.[1-9]\d*){3})(?P<bottleneck>-bottleneck)?", re.ASCII
    ),
}


def sizes(family: Family) -> tuple[str, ...]:
    """The named sizes of a family: the ladder, smallest first, then names that only this family has.

    Free forms come on top: "dim48-depth3-heads3" (ViT; without heads: 64 wide, 32 below dim 192), "dim48-depth3" (Mixer),
    "width24-blocks1.1.1.1" and "width64-blocks3.24.36.3-bottleneck" (ResNet).
    """
    return tuple(_SHAPES[_known_family(family)])


def architecture(
    family: Family,
    size: str,
    *,
    image_size: int,
    num_classes: int,
    in_channels: int = 3,
    patch_size: int | None = None,
) -> Architecture:
    """The model that a family and a size stand for at this image size.

    Args:
        family: "vit", "mixer" or "resnet".
        size: a name of `sizes(family)` or a free form (see there).
        image_size: side of the square images, in pixels.
        num_classes: outputs of the head.
        in_channels: channels of the images.
        patch_size: side of a patch in pixels. None is the published size (14 for H, g, G, 10B, else 16) for images of 128
            pixels or more, an eighth of the image below; where that does not divide the image, the divisor nearest to it
            (of two the larger), if one lies within a factor of two. A ResNet has no patches: it is not looked at.

    Raises:
        UnknownNameError: no such family or size.
        UserError: the patch does not divide the image, the heads do not divide the width, or a count is below 1.
    """
    family = _known_family(family)
    for name, value in (("image_size", image_size), ("num_classes", num_classes), ("in_channels", in_channels)):
        if value < 1:
            raise UserError(f"{family} {size}: {name} is {value}; it must be at least 1")
    shape = _SHAPES[family].get(size) or _free_shape(family, size)
    return Architecture(
        family=family,
        size=size,
        image_size=image_size,
        in_channels=in_channels,
        num_classes=num_classes,
        patch_size=0 if family == "resnet" else _patch_size(family, size, image_size, patch_size),
        width=shape.width,
        depth=shape.depth,
        num_heads=shape.num_heads,
        mlp_dim=shape.mlp_dim,
        token_mlp_dim=shape.token_mlp_dim,
        blocks=shape.blocks,
        bottleneck=shape.bottleneck,
    )


def _known_family(family: str) -> Family:
    for known in FAMILIES:
        if family == known:
            return known
    raise UnknownNameError("family", family, FAMILIES)


def _free_shape(family: Family, size: str) -> _Shape:
    match = _FREE_PATTERNS[family].fullmatch(size)
    if not match:
        raise UnknownNameError("size", size, (*sizes(family), _FREE_FORMS[family]), where=f"for family {family!r}")
    given = match.groupdict()
    width = int(given["width"])
    if family == "resnet":
        if width % 2:  # the stem is made from timm's deep stem, whose width is two times a whole number
            raise UserError(f"resnet {size}: the width {width} is odd; use {width + 1}")
        return _resnet(width, *map(int, given["blocks"].split(".")), bottleneck=given["bottleneck"] is not None)
    depth = int(given["depth"])
    if family == "mixer":
        if width < 2:  # its token MLPs are half as wide
            raise UserError(f"mixer {size}: the width {width} is below 2")
        return _mixer(width, depth)
    heads = int(given["heads"]) if given["heads"] else _default_heads(width)
    if width % heads:
        raise UserError(f"vit {size}: {heads} heads do not divide the width {width}; leave the heads out for a default")
    return _vit(width, depth, heads)


def _patch_size(family: Family, size: str, image_size: int, given: int | None) -> int:
    divisors = [patch for patch in range(1, image_size + 1) if image_size % patch == 0]
    if given is not None:
        if given not in divisors:
            allowed = ", ".join(map(str, divisors))
            raise UserError(
                f"{family} {size}: patch size {given} does not divide the image size {image_size} (it may be {allowed})"
            )
        return given
    wanted = image_size / 8
    if image_size >= _PUBLISHED_IMAGE_SIZE:
        wanted = 14 if size in _PATCH_14_SIZES else 16
    nearest = min(divisors, key=lambda patch: (abs(patch - wanted), -patch))
    if not wanted / 2 <= nearest <= wanted * 2:  # a prime image size would have patches of one pixel
        raise UserError(
            f"{family} {size}: no patch size near {wanted:g} divides the image size {image_size}; "
            f"resize the images, or set patch_size to one of {', '.join(map(str, divisors))}"
        )
    return nearest


# --- what they cost ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Cost:
    """Counts of a part of a model: parameters, and per image multiply-adds and elements kept for the backward pass.

    `kept` are the elements that autocast keeps in bfloat16, `kept_wide` those that stay in float32 (what enters layer
    norms, their statistics) or, in a ResNet, the 64-bit indices of max pooling, as two elements.
    """

    params: int = 0
    macs: int = 0
    kept: int = 0
    kept_wide: int = 0

    def __add__(self, other: "_Cost") -> "_Cost":
        return _Cost(
            self.params + other.params,
            self.macs + other.macs,
            self.kept + other.kept,
            self.kept_wide + other.kept_wide,
        )

    def __mul__(self, times: int) -> "_Cost":
        return _Cost(self.params * times, self.macs * times, self.kept * times, self.kept_wide * times)


def num_params(a: Architecture) -> int:
    """The number of parameters, head included; exactly that of the model `models.build` makes."""
    return _cost(a).params


def forward_flops(a: Architecture) -> int:
    """Floating-point operations of one image's forward pass: two for each multiply-add.

    Matrix products, convolutions and attention count, everything else does not, as in torch's FlopCounterMode.
    """
    return 2 * _cost(a).macs


def train_flops(a: Architecture) -> int:
    """Floating-point operations of one image's forward and backward pass.

    Three times the forward pass (the gradients of inputs and of weights cost as much again, each) less the gradient of
    the images themselves, which nobody computes. What fused attention or activation checkpointing compute a second time
    is not counted.
    """
    return 3 * forward_flops(a) - 2 * _stem(a).macs


def num_layers(a: Architecture) -> int:
    """The number of block outputs to probe: the blocks of a ViT or a Mixer, the stem and four stages of a ResNet."""
    return 1 + len(a.blocks) if a.family == "resnet" else a.depth


@lru_cache(maxsize=1 << 16)
def _cost(a: Architecture) -> _Cost:
    return _COSTS[a.family](a)


def _linear(tokens: int, d_in: int, d_out: int) -> _Cost:
    """A linear layer with bias; it keeps its input, which is counted where the input is made."""
    return _Cost(params=d_in * d_out + d_out, macs=tokens * d_in * d_out)


def _norm(tokens: int, width: int) -> _Cost:
    """A layer norm keeps its input, a mean and a deviation per token; its output is the next layer's kept input."""
    return _Cost(params=2 * width, kept=tokens * width, kept_wide=tokens * width + 2 * tokens)


def _mlp(tokens: int, width: int, hidden: int) -> _Cost:
    """Linear, GELU, linear: the hidden layer is kept before and after the GELU."""
    return _linear(tokens, width, hidden) + _linear(tokens, hidden, width) + _Cost(kept=2 * tokens * hidden)


def _stem(a: Architecture) -> _Cost:
    """The first layer: it keeps the images."""
    image = a.in_channels * a.image_size**2
    if a.family == "resnet":
        return _conv(a.in_channels, a.width, 7, _halved(a.image_size)) + _Cost(kept=image)
    return _linear(a.num_patches, a.in_channels * a.patch_size**2, a.width) + _Cost(kept=image)


def _vit_cost(a: Architecture) -> _Cost:
    tokens = a.num_patches + 1  # the class token
    attention = _Cost(  # fused: queries, keys, values and outputs are kept, the tokens x tokens weights are not
        macs=2 * tokens**2 * a.width, kept=4 * tokens * a.width, kept_wide=tokens * a.num_heads
    )
    block = (
        _norm(tokens, a.width) * 2
        + _linear(tokens, a.width, 3 * a.width)
        + attention
        + _linear(tokens, a.width, a.width)
        + _mlp(tokens, a.width, a.mlp_dim)
    )
    positions = _Cost(params=(1 + tokens) * a.width)  # with the class token itself
    return _stem(a) + positions + block * a.depth + _norm(tokens, a.width) + _linear(1, a.width, a.num_classes)


def _mixer_cost(a: Architecture) -> _Cost:
    tokens = a.num_patches
    block = _norm(tokens, a.width) * 2 + _mlp(a.width, tokens, a.token_mlp_dim) + _mlp(tokens, a.width, a.mlp_dim)
    pooled = _Cost(kept=a.width - tokens * a.width)  # the head keeps the mean over the last norm's outputs, not these
    return _stem(a) + block * a.depth + _norm(tokens, a.width) + pooled + _linear(1, a.width, a.num_classes)


def _halved(side: int) -> int:
    """The side after a layer of stride 2, padded so that it halves and rounds up."""
    return (side + 1) // 2


def _conv(c_in: int, c_out: int, kernel: int, side: int) -> _Cost:
    """A convolution without bias and its batch norm: outputs of both are kept (ReLU works in place)."""
    weights = c_in * c_out * kernel**2
    return _Cost(params=weights + 2 * c_out, macs=weights * side**2, kept=2 * c_out * side**2)


def _resnet_cost(a: Architecture) -> _Cost:
    side = _halved(a.image_size)
    total = _stem(a)
    if a.image_size > SMALL_IMAGE_SIZE:
        side = _halved(side)
        total += _Cost(kept=a.width * side**2, kept_wide=2 * a.width * side**2)  # max pooling: outputs, 64-bit indices
    expansion = 4 if a.bottleneck else 1
    channels = a.width
    for stage, num_blocks in enumerate(a.blocks):
        planes = a.width * 2**stage
        out_side = _halved(side) if stage else side
        total += _block(a, channels, planes, side, out_side)
        channels = planes * expansion
        total += _block(a, channels, planes, out_side, out_side) * (num_blocks - 1)
        side = out_side
    return total + _linear(1, channels, a.num_classes) + _Cost(kept=channels)


def _block(a: Architecture, channels: int, planes: int, side: int, out_side: int) -> _Cost:
    """One residual block; where it changes the shape, a 1 x 1 convolution projects the shortcut."""
    out_channels = planes * 4 if a.bottleneck else planes
    if a.bottleneck:  # the stride sits in the 3 x 3 convolution
        body = (
            _conv(channels, planes, 1, side)
            + _conv(planes, planes, 3, out_side)
            + _conv(planes, out_channels, 1, out_side)
        )
    else:
        body = _conv(channels, planes, 3, out_side) + _conv(planes, planes, 3, out_side)
    if channels == out_channels and side == out_side:
        return body
    # What the shortcut's norm gives is added at once: only the convolution's output is kept.
    return body + _conv(channels, out_channels, 1, out_side) + _Cost(kept=-out_channels * out_side**2)


_COSTS: Mapping[Family, Callable[[Architecture], _Cost]] = {
    "vit": _vit_cost,
    "mixer": _mixer_cost,
    "resnet": _resnet_cost,
}


# --- memory ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMemory:
    """What one training step keeps, in GB (10**9 bytes); sharding divides all but the activations."""

    weights_gb: float
    gradients_gb: float
    optimizer_gb: float
    activations_gb: float

    @property
    def total_gb(self) -> float:
        """The sum of the parts."""
        return self.weights_gb + self.gradients_gb + self.optimizer_gb + self.activations_gb


def training_memory(
    a: Architecture, batch_size: int, precision: Precision = "float32", optimizer: Optimizer = "adamw"
) -> TrainingMemory:
    """The memory of one training step at its fullest, the start of the backward pass, by what fills it.

    Weights, gradients and optimiser state are float32 (AdamW: two moments; SGD: one momentum). Activations are what
    autograd keeps for the backward pass; in bfloat16 (autocast) all of it takes two bytes but what enters layer norms, which
    CUDA computes in float32, and the weights get a bfloat16 copy. Left out: gradients of activations and the optimiser's temporaries (at most about one block,
    or one copy of the weights when no activations are left), the allocator's fragments, the CUDA context. Attention is
    taken to be fused.

    Raises:
        UnknownNameError: no such precision or optimiser.
        UserError: the batch size is below 1.
    """
    if precision not in get_args(Precision):
        raise UnknownNameError("precision", precision, get_args(Precision))
    if optimizer not in get_args(Optimizer):
        raise UnknownNameError("optimizer", optimizer, get_args(Optimizer))
    if batch_size < 1:
        raise UserError(f"{a.family} {a.size}: batch_size is {batch_size}; it must be at least 1")
    cost = _cost(a)
    weights_gb = 4 * cost.params / _BYTES_PER_GB
    if precision == "float32":
        activations = batch_size * 4 * (cost.kept + cost.kept_wide)
    else:
        activations = batch_size * (2 * cost.kept + 4 * cost.kept_wide) + 2 * cost.params
    return TrainingMemory(
        weights_gb=weights_gb,
        gradients_gb=weights_gb,
        optimizer_gb=weights_gb * (2 if optimizer == "adamw" else 1),
        activations_gb=activations / _BYTES_PER_GB,
    )


def training_memory_gb(
    a: Architecture, batch_size: int, precision: Precision = "float32", optimizer: Optimizer = "adamw"
) -> float:
    """The sum of `training_memory`, in GB (10**9 bytes)."""
    return training_memory(a, batch_size, precision, optimizer).total_gb
