"""What a model costs: parameters, operations, memory. In closed form, or measured for a timm model.

Sizes are those of one image: `tokens` of a ViT (with the class token) or a Mixer, `side` of a square feature map.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

from models.errors import UnknownNameError, UserError
from models.ladder.measured import measurement
from models.ladder.shapes import SMALL_IMAGE_SIZE, Architecture, Family

Precision = Literal["float32", "bfloat16"]
Optimizer = Literal["adamw", "sgd", "adafactor"]

_BYTES_PER_GB = 10**9
FACTORED_FROM = 16  # Adafactor factors the second moment of a weight whose second-longest side is as long


@dataclass(frozen=True, slots=True)
class _Cost:
    """Counts of a part of a model: parameters, and per image multiply-adds and elements kept for the backward pass.

    `moments` are the elements of Adafactor's second moments. `kept` are the elements that autocast keeps in bfloat16,
    `kept_wide` those that stay in float32 (what enters layer norms, their statistics) or, in a ResNet, the 64-bit
    indices of max pooling, as two elements.
    """

    params: int = 0
    moments: int = 0
    macs: int = 0
    kept: int = 0
    kept_wide: int = 0

    def __add__(self, other: "_Cost") -> "_Cost":
        return _Cost(
            self.params + other.params,
            self.moments + other.moments,
            self.macs + other.macs,
            self.kept + other.kept,
            self.kept_wide + other.kept_wide,
        )

    def __mul__(self, times: int) -> "_Cost":
        return _Cost(
            self.params * times, self.moments * times, self.macs * times, self.kept * times, self.kept_wide * times
        )


def num_params(a: Architecture) -> int:
    """The number of parameters, head included; exactly that of the model `models.build` makes."""
    return _cost(a).params


def forward_flops(a: Architecture) -> int:
    """Floating-point operations of one image's forward pass: two for each multiply-add.

    Matrix products, convolutions and attention count, everything else does not, as in torch's FlopCounterMode.
    """
    if a.family == "timm":
        return measurement(a).forward_flops
    return 2 * _cost(a).macs


def train_flops(a: Architecture) -> int:
    """Floating-point operations of one image's forward and backward pass.

    Three times the forward pass (the gradients of inputs and of weights cost as much again, each) less the gradient of
    the images themselves, which nobody computes. What fused attention or activation checkpointing compute a second time
    is not counted.
    """
    if a.family == "timm":
        return measurement(a).train_flops
    return 3 * forward_flops(a) - 2 * _stem(a).macs


def num_dropped(a: Architecture) -> int:
    """The activations of one image that dropout draws for, where it is on: see `models.recipe.Axes`."""
    if a.family == "timm":
        return measurement(a).num_dropped
    if a.family == "resnet":
        return a.width * int(2 ** (len(a.blocks) - 1)) * (4 if a.bottleneck else 1)
    if a.family == "mixer":
        return a.depth * (a.width * (a.token_mlp_dim + a.num_patches) + a.num_patches * (a.mlp_dim + a.width))
    tokens = a.num_patches + 1
    return tokens * (a.width + a.depth * (2 * a.width + a.mlp_dim))


def num_layers(a: Architecture) -> int:
    """The number of block outputs to probe: the blocks of a ViT or a Mixer, the stem and four stages of a ResNet.

    Of a timm model those that its `forward_intermediates` gives.
    """
    if a.family == "timm":
        return measurement(a).num_layers
    return 1 + len(a.blocks) if a.family == "resnet" else a.depth


def layer_elements(a: Architecture) -> int:
    """At most how many numbers the outputs of all layers to probe hold together, for one image."""
    if a.family == "timm":
        return measurement(a).layer_elements
    if a.family == "resnet":
        # The stem and stages of a bottleneck ResNet with a stride of 2 have 2.1 numbers for each input position and
        # unit of width; all others have fewer.
        return 2 * a.image_size**2 * a.width
    return a.num_patches * a.width * (num_layers(a) + 1)


def can_checkpoint(a: Architecture) -> bool:
    """Whether it is known what a model keeps whose blocks are computed a second time."""
    return a.family != "timm"


def has_batch_norm(a: Architecture) -> bool:
    """Whether what a model learns depends on how a batch is split."""
    return a.family == "resnet" or (a.family == "timm" and measurement(a).batch_norm)


def num_gathered(a: Architecture) -> int:
    """The most parameters that a sharded model has whole at a time: those outside its blocks, a block and the next.

    Where its blocks are not known, all of them.
    """
    if a.family == "timm":
        return num_params(a)
    block = _largest_block(a)
    if a.family == "resnet":
        expansion = 4 if a.bottleneck else 1
        last = a.width * 2 ** (len(a.blocks) - 1) * expansion
        outside = (_stem(a) + _linear(1, last, a.num_classes)).params
    else:
        outside = num_params(a) - a.depth * block
    return min(num_params(a), outside + 2 * block)


def _largest_block(a: Architecture) -> int:
    """Its parameters; of a ResNet it is the first of the last stage."""
    if a.family != "resnet":
        return num_params(a) - num_params(replace(a, depth=a.depth - 1))
    planes = a.width * 2 ** (len(a.blocks) - 1)
    return _block(a, planes // 2 * (4 if a.bottleneck else 1), planes, 2, 1).params


@lru_cache(maxsize=1 << 16)
def _cost(a: Architecture) -> _Cost:
    return _COSTS[a.family](a)


def _weight(*shape: int) -> _Cost:
    """A parameter. Its factored second moment is a row and a column for each pair of its two longest sides."""
    size = math.prod(shape)
    *_, second, longest = sorted((1, *shape))
    return _Cost(params=size, moments=size // second + size // longest if second >= FACTORED_FROM else size)


def _linear(tokens: int, d_in: int, d_out: int) -> _Cost:
    """A linear layer with bias; it keeps its input, which is counted where the input is made."""
    return _weight(d_out, d_in) + _weight(d_out) + _Cost(macs=tokens * d_in * d_out)


def _norm(tokens: int, width: int) -> _Cost:
    """A layer norm keeps its input, a mean and a deviation per token; its output is the next layer's kept input."""
    return _weight(width) * 2 + _Cost(kept=tokens * width, kept_wide=tokens * width + 2 * tokens)


def _mlp(tokens: int, width: int, hidden: int) -> _Cost:
    """Linear, GELU, linear: the hidden layer is kept before and after the GELU."""
    return _linear(tokens, width, hidden) + _linear(tokens, hidden, width) + _Cost(kept=2 * tokens * hidden)


def _stem(a: Architecture) -> _Cost:
    """The first layer: it keeps the images."""
    image = a.in_channels * a.image_size**2
    if a.family == "resnet":
        return _conv(a.in_channels, a.width, 7, _halved(a.image_size)) + _Cost(kept=image)
    patches = _Cost(macs=a.num_patches * a.in_channels * a.patch_size**2 * a.width, kept=image)
    return _weight(a.width, a.in_channels, a.patch_size, a.patch_size) + _weight(a.width) + patches


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
    positions = _weight(1, tokens, a.width) + _weight(1, 1, a.width)  # with the class token itself
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
    weight = _weight(c_out, c_in, kernel, kernel)
    return weight + _weight(c_out) * 2 + _Cost(macs=weight.params * side**2, kept=2 * c_out * side**2)


def _resnet_cost(a: Architecture) -> _Cost:
    total = _stem(a) + _pooled(a)
    for block, _ in _resnet_blocks(a):
        total += block
    channels = a.width * 2 ** (len(a.blocks) - 1) * _expansion(a)
    return total + _linear(1, channels, a.num_classes) + _Cost(kept=channels)


def _pooled(a: Architecture) -> _Cost:
    """Max pooling keeps its outputs and their 64-bit indices; small images are not pooled."""
    if a.image_size <= SMALL_IMAGE_SIZE:
        return _Cost()
    side = _halved(_halved(a.image_size))
    return _Cost(kept=a.width * side**2, kept_wide=2 * a.width * side**2)


def _expansion(a: Architecture) -> int:
    """How many times the width of its convolutions what a block gives has."""
    return 4 if a.bottleneck else 1


def _resnet_blocks(a: Architecture) -> Iterator[tuple[_Cost, int]]:
    """Every residual block, and the elements that go into it."""
    side = _halved(a.image_size)
    side = side if a.image_size <= SMALL_IMAGE_SIZE else _halved(side)
    channels = a.width
    for stage, num_blocks in enumerate(a.blocks):
        planes = a.width * 2**stage
        for number in range(num_blocks):
            out_side = _halved(side) if stage and number == 0 else side
            yield _block(a, channels, planes, side, out_side), channels * side**2
            channels, side = planes * _expansion(a), out_side


def _block(a: Architecture, channels: int, planes: int, side: int, out_side: int) -> _Cost:
    """One residual block; where it changes the shape, a 1 x 1 convolution projects the shortcut."""
    out_channels = planes * _expansion(a)
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


def _timm_cost(a: Architecture) -> _Cost:
    found = measurement(a)
    # Which sides its weights have was not measured: at most, no second moment is factored.
    return _Cost(params=found.params, moments=found.params, kept=found.kept, kept_wide=found.kept_wide)


_COSTS: Mapping[Family, Callable[[Architecture], _Cost]] = {
    "vit": _vit_cost,
    "mixer": _mixer_cost,
    "resnet": _resnet_cost,
    "timm": _timm_cost,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMemory:
    """What one training step keeps on one device, in GB (10**9 bytes).

    Of a sharded model each device has its share of weights, gradients, optimiser state and average; `gathered_gb` are
    the weights and gradients of what is whole at a time.
    """

    weights_gb: float
    gradients_gb: float
    optimizer_gb: float
    average_gb: float
    activations_gb: float
    gathered_gb: float = 0.0

    @property
    def total_gb(self) -> float:
        """The sum of the parts."""
        state = self.weights_gb + self.gradients_gb + self.optimizer_gb + self.average_gb
        return state + self.activations_gb + self.gathered_gb


@lru_cache(maxsize=1 << 16)
def _checkpointed(a: Architecture, dropped: bool) -> _Cost:
    """What is kept of a model whose blocks keep what goes into them alone: that, and all of one block at a time."""
    assert can_checkpoint(a)
    if a.family != "resnet":
        one = replace(a, depth=1)
        tokens = a.num_patches + (a.family == "vit")
        inputs = _Cost(kept_wide=(a.depth - 1) * tokens * a.width)  # that of the one is among what it keeps
        return _cost(one) + inputs + _Cost(kept=num_dropped(one) * dropped)
    blocks = list(_resnet_blocks(a))
    largest = max((block for block, _ in blocks), key=lambda block: block.kept)
    inputs = _Cost(kept=sum(elements for _, elements in blocks[1:]))  # the stem keeps what goes into the first
    rest = _cost(a).kept - sum(block.kept for block, _ in blocks) + num_dropped(a) * dropped
    return largest + inputs + _Cost(kept=rest, kept_wide=_cost(a).kept_wide)


def _optimizer_bytes(cost: _Cost, optimizer: Optimizer) -> int:
    if optimizer == "adafactor":
        return 2 * cost.params + 4 * cost.moments
    return 4 * cost.params * (2 if optimizer == "adamw" else 1)


def training_memory(
    a: Architecture,
    batch_size: int,
    precision: Precision = "float32",
    optimizer: Optimizer = "adamw",
    *,
    dropout: bool = False,
    average: bool = False,
    checkpointed: bool = False,
    num_shards: int = 1,
) -> TrainingMemory:
    """What fills the memory during one training step; the sum is a little more than is ever needed at once.

    Weights, gradients and optimiser state are float32 (AdamW: two moments; SGD: one momentum; Adafactor: one moment in
    bfloat16 and a factored one). Activations are what
    autograd keeps for the backward pass; in bfloat16 (autocast) all of it takes two bytes but what enters layer norms,
    which CUDA computes in float32, and the weights get a bfloat16 copy. Attention is taken to be fused.

    Left out: gradients of activations (about those of one block) and the optimiser's temporaries (about a copy of the
    weights): the weights' gradients are few while the former are needed, and no activations are left beside the latter.
    Left out too, and to be added: the allocator's fragments and the CUDA context.

    Args:
        a: the model.
        batch_size: images on one device in one step.
        precision: "float32", or "bfloat16" by autocast over float32 weights.
        optimizer: "adamw", "sgd" or "adafactor".
        dropout: whether its masks are kept, counted as activations: a CPU keeps them so, CUDA in a byte each.
        average: whether a moving average of the weights is kept.
        checkpointed: whether blocks keep only what goes into them, and are computed again for the backward pass.
        num_shards: among how many devices the model is sharded (see `models.shard`); 1 for one that each has whole.

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
    weights_gb = 4 * cost.params / num_shards / _BYTES_PER_GB
    kept = _checkpointed(a, dropout) if checkpointed else cost + _Cost(kept=num_dropped(a) * dropout)
    if precision == "float32":
        activations = batch_size * 4 * (kept.kept + kept.kept_wide)
    else:
        activations = batch_size * (2 * kept.kept + 4 * kept.kept_wide) + 2 * cost.params
    return TrainingMemory(
        weights_gb=weights_gb,
        gradients_gb=weights_gb,
        optimizer_gb=_optimizer_bytes(cost, optimizer) / num_shards / _BYTES_PER_GB,
        average_gb=weights_gb if average else 0.0,
        activations_gb=activations / _BYTES_PER_GB,
        gathered_gb=2 * 4 * num_gathered(a) / _BYTES_PER_GB if num_shards > 1 else 0.0,
    )
