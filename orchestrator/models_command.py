"""`upshot models`: parses, calls `orchestrator.model_table`, prints."""

import json
from typing import Annotated

import typer

NamesArgument = Annotated[list[str], typer.Argument(help="vit, vit:B, resnet:R50x3, timm:convnext_tiny; default all.")]


def models_command(
    names: NamesArgument = [],
    image_size: Annotated[int, typer.Option(help="Pixels.")] = 224,
    classes: Annotated[int, typer.Option(help="Upstream classes.")] = 1000,
    patch_size: Annotated[int | None, typer.Option(help="Pixels; the published patch when not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List models with parameters, FLOPs and memory: the ladder, or those that are named, timm's too."""
    from orchestrator.model_table import model_rows, print_models

    rows = model_rows(names, image_size=image_size, num_classes=classes, patch_size=patch_size)
    if as_json:
        print(json.dumps({"models": rows}, indent=1))
    else:
        print_models(rows, image_size, classes)
