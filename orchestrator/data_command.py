"""`upshot data`: what is done once to images on disk, before a study trains on them."""

import sys
from pathlib import Path
from typing import Annotated

import typer

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
    """Keeps `index` a command of a group, though it is the only one."""


@data_app.command()
def index(dataset: DatasetArgument, output: OutputOption = None) -> None:
    """List what tar shards hold, once: sizes.json and labels.parquet. Repeating it reads only what is new."""
    from models.data.indexing import write_index

    done = write_index(dataset, output, _tell if sys.stderr.isatty() else None)
    what = f"{len(done.classes)} classes" if done.classes else "no labels"
    print(f"{done.num_examples} examples of {what} in {done.num_shards} shards; {done.num_read} shards were read")
    print(f"the index is in {done.folder}" + ("" if output is None else ": name that folder as upstream.dataset"))


def _tell(num_done: int, num_shards: int) -> None:
    end = "\n" if num_done == num_shards else ""
    print(f"\r{num_done} of {num_shards} shards", end=end, file=sys.stderr, flush=True)
