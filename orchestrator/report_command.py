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
    is_table,
)


def report_command(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(help="A study file, a study folder, or a results table (parquet); two of them to compare them."),
    ] = None,
    runs: RunsOption = RUNS,
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
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Write the report: one page that works offline, figures and tables. A table's goes to NAME-report beside it.

    Of two studies or tables it tells which frontier lies higher where.
    """
    options: dict[str, Any] = {"protocol": protocol, "seed": seed, "draws": draws, "loss": loss, "points": points}
    if sources and len(sources) > 1:
        from orchestrator.compare_command import run_comparison

        _refuse("--wandb", to_wandb, "publishes the report of one study, and compares none")
        return run_comparison(sources, runs, output, options, as_json=as_json, as_csv=as_csv)
    _refuse("--output", output is not None, "belongs to a comparison: upshot report A B")
    source = sources[0] if sources else STUDY
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
    return None


def _refuse(option: str, is_given: bool, why: str) -> None:
    """Raises where an option is given that has no place here."""
    from models.errors import UserError

    if is_given:
        raise UserError(f"{option} {why}")


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
