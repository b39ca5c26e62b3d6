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
    is_table,
)


def report_command(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(help="A study file, a study folder, or a results table (parquet); two of them to compare them."),
    ] = None,
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
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder of a comparison; A-vs-B-report here if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a comparison as JSON.")] = False,
) -> None:
    """Write the report: one page that works offline, figures and tables. A table's goes to NAME-report beside it.

    Of two studies or tables it tells which frontier lies higher where.
    """
    options: dict[str, Any] = {"protocol": protocol, "seed": seed, "draws": draws, "loss": loss, "points": points}
    if sources and len(sources) > 1:
        from orchestrator.compare_command import run_comparison

        _refuse(**{"--wandb": to_wandb}, why="publishes the report of one study, and compares none")
        run_comparison(sources, runs, output, options, as_json=as_json)
        return
    _refuse(**{"--output": output is not None, "--json": as_json}, why="belongs to a comparison: upshot report A B")
    source = sources[0] if sources else Path("study.toml")
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


def _refuse(why: str, **given: bool) -> None:
    """Raises where an option is given that has no place here.

    Raises:
        UserError: it says which one, and why.
    """
    from models.errors import UserError

    for option, is_given in given.items():
        if is_given:
            raise UserError(f"{option} {why}")
