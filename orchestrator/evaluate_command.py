"""`upshot evaluate`: judges a public model, or a checkpoint folder outside its study, and adds it to a results table.

It is meant for a node or a workstation: torch is imported where the evaluation begins, not before.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from models.errors import UserError
from orchestrator.output import CsvOption, JsonOption, print_found

if TYPE_CHECKING:
    from orchestrator.evaluating import Published


def evaluate_command(
    checkpoint_folder: Annotated[
        Path | None, typer.Argument(help="A checkpoint folder of a study (step_00001000), judged outside it.")
    ] = None,
    timm: Annotated[str | None, typer.Option("--timm", help="A timm model: vit_small_patch16_224.dino.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Its weights: .safetensors, or a state dict in .pth, .pt, .bin or .tar.")
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Its weights are those that timm downloads.")
    ] = False,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Pixels; timm's own for the model if not given.")
    ] = None,
    tasks: Annotated[list[str] | None, typer.Option("--task", help="A downstream task. May be repeated.")] = None,
    shots: Annotated[str, typer.Option(help="Shots a class: 1,5,10,25.")] = "1,5,10,25",
    draws: Annotated[int, typer.Option(help="How many times they are drawn.")] = 3,
    protocols: Annotated[
        list[str] | None, typer.Option("--protocol", help="How features are judged: ridge (the default). Repeatable.")
    ] = None,
    layers: Annotated[str, typer.Option(help="Every probed layer, or the last one: all or last.")] = "all",
    upstream_accuracy: Annotated[
        float | None, typer.Option(help="The published accuracy upstream, a fraction.")
    ] = None,
    upstream_num_test: Annotated[int | None, typer.Option(min=1, help="Number of images behind it.")] = None,
    upstream: Annotated[
        str | None, typer.Option(help="Or measure it: the image set whose held-out part its own head classifies.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The cell's id in the table; the model's name if not given.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The results table (parquet).")] = Path(
        "evaluated.parquet"
    ),
    append: Annotated[
        bool, typer.Option("--append", help="Add to the table; a cell of that id that is there is replaced.")
    ] = False,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Judge a public model, or a checkpoint outside its study; the results table is for reduce and report."""
    from orchestrator.bars import bar
    from orchestrator.evaluating import add_rows, asked_for, check_output, evaluate_folder, evaluate_timm, summary

    asked = asked_for(tasks or [], protocols or ["ridge"], shots, draws, layers)
    check_output(output, append=append)
    own: dict[str, object] = {
        "--checkpoint": checkpoint,
        "--pretrained": pretrained,
        "--image-size": image_size,
        "--upstream": upstream,
    }
    own |= {"--upstream-accuracy": upstream_accuracy, "--upstream-num-test": upstream_num_test}
    if (timm is None) == (checkpoint_folder is None):
        raise UserError("evaluate: give either --timm NAME or the checkpoint folder of a study")
    if checkpoint_folder is not None:
        _refuse(own, f"{checkpoint_folder}: a checkpoint of a study has its own")
        with bar() as tell:
            rows = evaluate_folder(checkpoint_folder, cell_id=name, asked=asked, tell=tell)
    else:
        assert timm is not None
        weights = _weights(timm, checkpoint, pretrained=pretrained)
        known = _upstream(upstream, upstream_accuracy, upstream_num_test)
        with bar() as tell:
            rows = evaluate_timm(
                timm,
                weights=weights,
                image_size=image_size,
                cell_id=name or timm,
                asked=asked,
                upstream=known,
                tell=tell,
            )
    replaced = add_rows(rows, output, append=append)
    found = {"output": str(output), "replaced": replaced, **summary(rows)}
    if as_json or as_csv:
        print_found("evaluate", found, as_csv=as_csv)
    else:
        _print(found)


def _refuse(options: Mapping[str, object], why: str) -> None:
    given = [option for option, value in options.items() if value is not None and value is not False]
    if given:
        raise UserError(f"{why}: leave {', '.join(given)} out")


def _weights(name: str, checkpoint: Path | None, *, pretrained: bool) -> Path | None:
    """The file of the weights; None where timm is to download them."""
    if (checkpoint is None) != pretrained:
        raise UserError(
            f"timm {name}: its weights are those of --checkpoint FILE, or with --pretrained those that timm downloads:"
            " give one of the two (weights of chance would tell nothing)"
        )
    return checkpoint


def _upstream(dataset: str | None, accuracy: float | None, num_test: int | None) -> "Published | str | None":
    from orchestrator.evaluating import Published

    if dataset is not None:
        _refuse(
            {"--upstream-accuracy": accuracy, "--upstream-num-test": num_test},
            f"--upstream {dataset} measures the accuracy",
        )
        return dataset
    if accuracy is None:
        _refuse({"--upstream-num-test": num_test}, "no --upstream-accuracy is given")
        return None
    return Published(accuracy=accuracy, num_test=num_test)


def _print(found: Mapping[str, Any]) -> None:
    from orchestrator.terminal import print_sentence

    output, replaced = found["output"], found["replaced"]
    again = f", in place of {replaced:,} that were there" if replaced else ""
    print_sentence(f"{found['rows']:,} rows of {found['cell_id']} in {output}{again}")
    accuracy = found["upstream_accuracy"]
    print_sentence(f"upstream accuracy: {'not known' if accuracy is None else f'{accuracy:.4f}'}")
    for task in found["tasks"]:
        shots = "all images" if task["shots"] is None else f"{task['shots']} shot{'' if task['shots'] == 1 else 's'}"
        mean = task["downstream_accuracy"]
        told = f"null ({task['reason']})" if mean is None else f"{mean:.4f}"
        print_sentence(f"{task['task']}, {task['protocol']}, {shots}: {told}")
    print_sentence(f"next: upshot reduce {output}; upshot report {output}")
