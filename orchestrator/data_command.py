"""`upshot data`: what is done to images on disk before a study trains on them or is judged by them."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.arguments import STUDY, StudyArgument
from orchestrator.output import CsvOption, JsonOption, print_found

data_app = typer.Typer(
    name="data", help="Prepare images on disk for studies.", no_args_is_help=True, rich_markup_mode=None
)

DatasetArgument = Annotated[
    str, typer.Argument(help="A folder of tar shards, or a pattern: 'laion/train-{000000..012287}.tar'.")
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="A folder for the index, where that of the shards is read-only.")
]


@data_app.callback()
def data() -> None:
    """Images on disk."""


@data_app.command()
def index(
    dataset: DatasetArgument, output: OutputOption = None, as_json: JsonOption = False, as_csv: CsvOption = False
) -> None:
    """List what tar shards hold, once: sizes.json and labels.parquet. Repeating it reads only what is new."""
    from models.data.indexing import write_index
    from orchestrator.bars import bar

    with bar() as tell:
        done = write_index(dataset, output, lambda num_done, of: tell("reading shards", num_done, of))
    if as_json or as_csv:
        found = {"folder": str(done.folder), "examples": done.num_examples, "classes": len(done.classes)}
        found |= {"shards": done.num_shards, "read": done.num_read}
        print_found("data index", found, as_csv=as_csv)
        return
    what = f"{len(done.classes):,} classes" if done.classes else "no labels"
    print(f"{done.num_examples:,} examples of {what} in {done.num_shards:,} shards; {done.num_read:,} shards were read")
    print(f"the index is in {done.folder}" + ("" if output is None else ": name that folder as upstream.dataset"))


@data_app.command()
def check(
    study: StudyArgument = STUDY,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="Look for test images in the train part of large tasks too.")
    ] = False,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Tell of a study's images which are here, in which layout, whether all are, and how to get what is missing."""
    from orchestrator.data_check import check_data, print_checked

    found = check_data(study, every_duplicate=duplicates)
    if as_json or as_csv:
        print_found("data check", {"images": [checked.to_json() for checked in found]}, as_csv=as_csv)
    else:
        print_checked(found)
    raise typer.Exit(0 if all(checked.is_whole for checked in found) else 1)
