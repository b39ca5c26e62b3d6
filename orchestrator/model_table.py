"""What models cost, for `upshot models`: the ladder, or those that are named."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, get_args

from models import ladder
from models.errors import UnknownNameError, UserError
from orchestrator.terminal import print_sentence, print_table, si


def model_rows(
    names: Sequence[str] = (), *, image_size: int, num_classes: int, patch_size: int | None = None
) -> list[dict[str, Any]]:
    """What each model costs; the whole ladder where none is named.

    Raises:
        UserError: a name that no family knows, a patch that does not divide the image, or a timm model that does not
            take such images.
    """
    found = [
        ladder.architecture(
            family,
            size,
            image_size=image_size,
            num_classes=num_classes,
            patch_size=None if family in ladder.WITHOUT_PATCH else patch_size,
        )
        for name in names or ladder.FAMILIES
        for family, size in _named(name)
    ]
    for fault in ladder.measure(arch for arch in found if arch.family == "timm").values():
        raise UserError(fault)
    return [_row(arch) for arch in found]


def _named(name: str) -> list[tuple[ladder.Family, str]]:
    """The family and size of FAMILY:SIZE, or all named sizes of FAMILY."""
    given, _, size = name.partition(":")
    for family in get_args(ladder.Family):
        if family == given and size:
            return [(family, size)]
        if family == given and family in ladder.FAMILIES:
            return [(family, size) for size in ladder.sizes(family)]
        if family == given:
            raise UserError("timm: name the model, such as timm:convnext_tiny; timm.list_models() lists them")
    raise UnknownNameError("family", given, get_args(ladder.Family))


def _row(arch: ladder.Architecture) -> dict[str, Any]:
    one = ladder.training_memory(arch, 1)
    halves = [ladder.training_memory(arch, n, "bfloat16").activations_gb for n in (1, 2)]
    return {
        "family": arch.family,
        "size": arch.size,
        "patch_size": arch.patch_size or None,
        "params": ladder.num_params(arch),
        "forward_flops": ladder.forward_flops(arch),
        "train_flops": ladder.train_flops(arch),
        "layers": ladder.num_layers(arch) + 1,
        "state_gb": one.total_gb - one.activations_gb,
        "image_gb": {"float32": one.activations_gb, "bfloat16": halves[1] - halves[0]},
        "source": f"timm {version('timm')}" if arch.family == "timm" else ladder.source(arch.family, arch.size),
    }


def print_models(rows: list[dict[str, Any]], image_size: int, num_classes: int) -> None:
    """The rows, and how to read them."""
    columns = ("model", "params", "FLOPs", "state", "+ image", "in bf16", "source")
    shown = (
        (
            f"{row['family']} {row['size']}" + (f"/{row['patch_size']}" if row["patch_size"] else ""),
            si(row["params"]),
            si(row["forward_flops"]),
            f"{si(1e9 * row['state_gb'])}B",
            f"{si(1e9 * row['image_gb']['float32'])}B",
            f"{si(1e9 * row['image_gb']['bfloat16'])}B",
            row["source"],
        )
        for row in rows
    )
    print_table(f"Models at {image_size} pixels and {num_classes:,} classes", columns, shown, prose=("source",))
    print_sentence(
        "FLOPs: one image's forward pass, two for a multiply-add. state: float32 weights, gradients, AdamW's moments. "
        "+ image: what each image that is trained on at once adds. --json has training FLOPs too."
    )
    free = ", ".join(f"{family}:{form}" for family, form in ladder.FREE_FORMS.items())
    print_sentence(f"Free sizes: {free}. Any other timm model: timm:NAME.")
