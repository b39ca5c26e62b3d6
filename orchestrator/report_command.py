"""`upshot report`: parses, calls the library, prints."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.arguments import RUNS, STUDY, RunsOption
from orchestrator.output import CsvOption, JsonOption, print_found
from orchestrator.reduce_command import (
    DrawsOption,
    LossOption,
    PointsOption,
    ProtocolOption,
    SeedOption,
    SourceArgument,
    is_table,
)


def report_command(
    source: SourceArgument = STUDY,
    runs: RunsOption = RUNS,
    protocol: ProtocolOption = None,
    seed: SeedOption = 0,
    draws: DrawsOption = 200,
    loss: LossOption = "squared",
    points: PointsOption = "vertices",
    to_wandb: Annotated[
        bool, typer.Option("--wandb", help="Also publish it among the reports of the study's W&B project.")
    ] = False,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Write the report: one page that works offline, figures and tables. A table's goes to NAME-report beside it."""
    options: dict[str, Any] = {"protocol": protocol, "seed": seed, "draws": draws, "loss": loss, "points": points}
    is_told = as_json or as_csv
    if to_wandb:
        found = _publish(source, runs, options, is_told=is_told)
    else:
        found = {"page": str(_write(source, runs, options)), "published": None}
        if not is_told:
            print(found["page"])
    if is_told:
        print_found("report", found, as_csv=as_csv)
    if found.get("refused"):
        print(f"upshot: {found['refused']}", file=sys.stderr)
        raise typer.Exit(1)


def _write(source: Path, runs: Path, options: dict[str, Any]) -> Path:
    """The page of a study or a table."""
    from orchestrator.bars import bar
    from orchestrator.report import report_table
    from orchestrator.session import open_submitted

    with bar() as tell:
        if is_table(source):
            return report_table(source, tell, **options)
        return open_submitted(source, runs).report(tell, **options)


def _publish(source: Path, runs: Path, options: dict[str, Any], *, is_told: bool) -> dict[str, str | None]:
    """The page, and where at W&B it is or why it is not; unless a program is to be told, both are printed at once."""
    from models.errors import UserError
    from orchestrator.published_report import need_wandb, publish_study
    from orchestrator.session import open_submitted
    from orchestrator.tracking.wandb_report import ReportRefusedError

    if is_table(source):
        raise UserError(f"--wandb publishes the report of a study; {source} is a table, which has no runs at W&B")
    session = open_submitted(source, runs)
    need_wandb(session)
    page = str(_write(source, runs, options))
    if not is_told:
        print(page, flush=True)
    try:
        published = publish_study(session, **options)
    except ReportRefusedError as error:
        return {"page": page, "published": None, "refused": str(error)}
    if not is_told:
        told = {"made anew": " (the one published before is gone there, or was moved: this is a new one)"}
        print(f"{published.url}{told.get(published.how, '')}")
    return {"page": page, "published": published.url, "how": published.how}
