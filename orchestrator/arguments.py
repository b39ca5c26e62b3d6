"""The arguments and options that several commands take, with what a shell offers for them."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.completion import (
    complete_cause,
    complete_cell,
    complete_filter,
    complete_status,
    complete_study,
    complete_study_or_filter,
)

STUDY = Path("study.toml")
RUNS = Path("runs")

STUDY_HELP = "A study file, or the folder of a study that was submitted."
StudyArgument = Annotated[Path, typer.Argument(help=STUDY_HELP, autocompletion=complete_study)]
StudyOrFilter = Annotated[Path, typer.Argument(help=STUDY_HELP, autocompletion=complete_study_or_filter)]
CellArgument = Annotated[str, typer.Argument(help="A cell id, or its beginning.", autocompletion=complete_cell)]
RunsOption = Annotated[Path, typer.Option("--runs", envvar="UPSHOT_RUNS", help="Where study folders are kept.")]
SetOption = Annotated[list[str], typer.Option("--set", help="Override a key: grid.epochs=[1,2]. May be repeated.")]
CellsArgument = Annotated[
    list[str],
    typer.Argument(help="Only these cells: axis=value, or the beginning of an id.", autocompletion=complete_filter),
]
StatusesOption = Annotated[
    list[str],
    typer.Option("--status", "-s", help="Only cells of this status, such as FAILED.", autocompletion=complete_status),
]
CausesOption = Annotated[
    list[str],
    typer.Option("--cause", help="Only cells that failed of this, such as oom.", autocompletion=complete_cause),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
