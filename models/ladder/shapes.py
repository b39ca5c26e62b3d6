"""What a family and a size stand for.

Sources of the sizes:
    ViT      S, B, L, H: arXiv 2010.11929 table 1 and 2106.04560 table 2; Ti, g, G: 2106.04560 table 2; M: big_vision.
    Mixer    S, B, L, H: arXiv 2105.01601 table 1. From B on these have the depth, width and (channel) MLP size of the
             ViT of the same name, and token MLPs of half the width: g and G continue that. Ti and M are ours (256 x 8
             and 640 x 10, so that they have about the parameters of ViT-Ti and ViT-M).
    ResNet   R50, R101, R152: arXiv 1512.03385, with widths arXiv 1912.11370 (batch instead of group normalisation).
             Ti to 10B are bottleneck ResNets with 26, 50, 101 or 152 layers and a width that brings them near the ViT
             and the Mixer of that name; the 152 layers of 10B are spread otherwise over the stages.
    All      pico, nano, micro are for images of 28 to 64 pixels (about 50, 130 and 400 thousand parameters with 700
             classes; the ResNets have basic blocks). 10B is ours.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from models.errors import UnknownNameError, UserError

Family = Literal["vit", "mixer", "resnet", "timm"]

FAMILIES: tuple[Family, ...] = ("vit", "mixer", "resnet")
"""The families that have the ladder. The sizes of family "timm" are timm's own names of its models."""

LADDER = ("pico", "nano", "micro", "Ti", "S", "M", "B", "L", "H", "g", "G", "10B")
"""The sizes that every family has, smallest first."""

WITHOUT_PATCH: tuple[Family, ...] = ("resnet", "timm")
"""Families whose models take no patch size."""

SMALL_IMAGE_SIZE = 64
"""Images up to this side, in pixels, go into a ResNet without its max pooling."""

_PUBLISHED_IMAGE_SIZE = 128
_PATCH_14_SIZES = frozenset({"H", "g", "G", "10B"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One model, fully specified.

    Attributes:
        family: "vit", "mixer", "resnet", or "timm", of which all fields but the first five are 0.
        size: the name or free form that was asked for; the name that timm gives a model.
        image_size: side of the square input, in pixels.
        in_channels: channels of the input.
        num_classes: outputs of the linear head.
        patch_size: side of a patch, in pixels; 0 for a ResNet or a timm model.
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
        """Patches of one image; 0 for a ResNet or a timm model."""
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

FREE_FORMS: Mapping[Family, str] = {
    "vit": "dim<D>-depth<N>[-heads<H>]",
    "mixer": "dim<D>-depth<N>",
    "resnet": "width<W>-blocks<A.B.C.D>[-bottleneck]",
}
"""How sizes that have no name are written."""
_SOURCES: Mapping[Family, Mapping[str, str]] = {
    "vit": {
        **dict.fromkeys(("B", "L", "H"), "arXiv 2010.11929"),
        **dict.fromkeys(("Ti", "S", "g", "G"), "arXiv 2106.04560"),
        "M": "big_vision",
    },
    "mixer": dict.fromkeys(("S", "B", "L", "H"), "arXiv 2105.01601"),
    "resnet": {
        **dict.fromkeys(("S", "M", "R50", "R101", "R152"), "arXiv 1512.03385"),
        **dict.fromkeys(("L", "g", "R50x3", "R152x2", "R101x3", "R152x4"), "arXiv 1912.11370"),
    },
}
_FREE_PATTERNS: Mapping[Family, re.Pattern[str]] = {
    "vit": re.compile(r"dim(?P<width>[1-9]\d*)-depth(?P<depth>[1-9]\d*)(?:-heads(?P<heads>[1-9]\d*))?", re.ASCII),
    "mixer": re.compile(r"dim(?P<width>[1-9]\d*)-depth(?P<depth>[1-9]\d*)", re.ASCII),
    "resnet": re.compile(
        r"width(?P<width>[1-9]\d*)-blocks(?P<blocks>[1-9]\d*(?:\.[1-9]\d*){3})(?P<bottleneck>-bottleneck)?", re.ASCII
    ),
}


def sizes(family: Family) -> tuple[str, ...]:
    """The named sizes of a family of the ladder: the ladder, smallest first, then names that only this family has.

    Free forms come on top: "dim48-depth3-heads3" (ViT; where no heads are given they are 64 wide, 32 below dim 192),
    "dim48-depth3" (Mixer), "width24-blocks1.1.1.1" and "width64-blocks3.24.36.3-bottleneck" (ResNet).
    """
    return tuple(_SHAPES[_known_family(family)])


def source(family: Family, size: str) -> str:
    """Where a size of the ladder was published; "upshot" for one that was not."""
    return _SOURCES[family].get(size, "upshot" if size in _SHAPES[family] else "free size")


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
        family: "vit", "mixer", "resnet" or "timm".
        size: a name of `sizes(family)` or a free form (see there); for "timm" the name of any of its models.
        image_size: side of the square images, in pixels.
        num_classes: outputs of the head.
        in_channels: channels of the images.
        patch_size: side of a patch in pixels. None is the published size (14 for H, g, G, 10B, else 16) for images of
            128 pixels or more, an eighth of the image below; where that does not divide the image, the divisor nearest
            to it (of two the larger), if one lies within a factor of two. A ResNet has no patches: it is not looked at.
            The patches of a timm model are those of its name.

    Raises:
        UnknownNameError: no such family or size.
        UserError: the patch does not divide the image, the heads do not divide the width, a count is below 1, or what
            is given is no timm name. Whether timm knows the name, `models.ladder.measure` finds out.
    """
    family = _known_family(family)
    for name, value in (("image_size", image_size), ("num_classes", num_classes), ("in_channels", in_channels)):
        if value < 1:
            raise UserError(f"{family} {size}: {name} is {value}; it must be at least 1")
    if family == "timm":
        _check_timm(size, patch_size)
        shape = _Shape(width=0, depth=0)
    else:
        shape = _SHAPES[family].get(size) or _free_shape(family, size)
    return Architecture(
        family=family,
        size=size,
        image_size=image_size,
        in_channels=in_channels,
        num_classes=num_classes,
        patch_size=0 if family in WITHOUT_PATCH else _patch_size(family, size, image_size, patch_size),
        width=shape.width,
        depth=shape.depth,
        num_heads=shape.num_heads,
        mlp_dim=shape.mlp_dim,
        token_mlp_dim=shape.token_mlp_dim,
        blocks=shape.blocks,
        bottleneck=shape.bottleneck,
    )


def _known_family(family: str) -> Family:
    for known in get_args(Family):
        if family == known:
            return known  # type: ignore[no-any-return]  # get_args knows no types
    raise UnknownNameError("family", family, get_args(Family))


def _check_timm(size: str, patch_size: int | None) -> None:
    name, _, weights = size.partition(".")
    if not re.fullmatch(r"\w+", name, re.ASCII):
        raise UserError(f"timm {size}: is no name of a timm model, such as convnext_tiny.")
    if weights:
        raise UserError(f"timm {size}: cells are trained from scratch, so leave the weights {weights!r} out: {name}.")
    if patch_size is not None:
        raise UserError(f"timm {size}: takes no patch_size: a timm model has the patches of its name.")


def _free_shape(family: Family, size: str) -> _Shape:
    if size.startswith("timm:"):
        raise UserError(
            f"size {size!r} for family {family!r}: timm's models are a family of their own: give them a"
            f' [[grid]] table with family = "timm".'
        )
    match = _FREE_PATTERNS[family].fullmatch(size)
    if not match:
        raise UnknownNameError("size", size, (*sizes(family), FREE_FORMS[family]), where=f"for family {family!r}")
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
