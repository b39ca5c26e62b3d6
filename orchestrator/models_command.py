"""`upshot models`: parses, calls `orchestrator.model_table`, prints."""

from typing import Annotated

import typer

from orchestrator.output import CsvOption, JsonOption, print_found

NamesArgument = Annotated[list[str], typer.Argument(help="vit, vit:B, resnet:R50x3, timm:convnext_tiny; default all.")]


def models_command(
    names: NamesArgument = [],
    image_size: Annotated[int, typer.Option(help="Pixels.")] = 224,
    classes: Annotated[int, typer.Option(help="Upstream classes.")] = 1000,
    patch_size: Annotated[int | None, typer.Option(help="Pixels; the published patch when not given.")] = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """List models with parameters, FLOPs and memory: the ladder, or those that are named, timm's too."""
    from orchestrator.model_table import model_rows, print_models

    rows = model_rows(names, image_size=image_size, num_classes=classes, patch_size=patch_size)
    if as_json or as_csv:
        print_found("models", {"models": rows}, as_csv=as_csv)
    else:
        print_models(rows, image_size, classes)
