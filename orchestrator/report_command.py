"""`upshot report`: parses, calls the library, prints."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

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
    source: SourceArgument = Path("study.toml"),
    runs: Annotated[Path, typer.Option("--runs", envvar="UPSHOT_RUNS", help="Where study folders are kept.")] = Path(
        "runs"
    ),
    protocol: ProtocolOption = None,
    seed: SeedOption = 0,
    draws: DrawsOption = 200,
    loss: LossOption = "squared",
    points: PointsOption = "vertices",
    to_wandb: Annotated[
        bool, typer.Option("--wandb", help="Also publish it among the reports of the study's W&B project.")
    ] = False,
) -> None:
    """Write the report: one page that works offline, figures and tables. A table's goes to NAME-report beside it."""
    options: dict[str, Any] = {"protocol": protocol, "seed": seed, "draws": draws, "loss": loss, "points": points}
    if is_table(source):
        from orchestrator.report import report_table

        if to_wandb:
            from models.errors import UserError

            raise UserError(f"--wandb publishes the report of a study; {source} is a table, which has no runs at W&B")
        print(report_table(source, **options))
        return
    _report_study(source, runs, options, to_wandb=to_wandb)


def _report_study(source: Path, runs: Path, options: dict[str, Any], *, to_wandb: bool) -> None:
    from orchestrator.session import open_submitted

    session = open_submitted(source, runs)
    if not to_wandb:
        print(session.report(**options))
        return
    from orchestrator.published_report import need_wandb, publish_study
    from orchestrator.tracking.wandb_report import ReportRefusedError

    need_wandb(session)
    print(session.report(**options))
    try:
        published = publish_study(session, **options)
    except ReportRefusedError as error:
        print(f"upshot: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    told = {"made anew": " (the one published before is gone there, or was moved: this is a new one)"}
    print(f"{published.url}{told.get(published.how, '')}")
