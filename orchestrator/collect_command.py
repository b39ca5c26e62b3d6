"""`upshot collect`: a study's result files, or the runs that W&B holds, to one results table."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.arguments import RUNS, STUDY, RunsOption, StudyArgument
from orchestrator.output import CsvOption, JsonOption, print_found

if TYPE_CHECKING:
    from orchestrator.collecting import Collected
    from orchestrator.tracking.reading import ReadRuns


def collect_command(
    study: StudyArgument = STUDY,
    runs: RunsOption = RUNS,
    source: Annotated[
        str | None, typer.Option("--from", help="wandb:ENTITY/PROJECT: the runs of a W&B project, in place of a study.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="With --from: only runs of this group, such as a study.")] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            help="With --from, for runs that others logged: OURS=THEIRS, such as upstream_accuracy=val/acc1 or "
            "downstream_accuracy:{task}:{shots}=fewshot/{task}_{shots}shot. May be repeated.",
        ),
    ] = None,
    columns_file: Annotated[
        Path | None, typer.Option("--columns", help='With --from: a TOML file of such columns, OURS = "THEIRS".')
    ] = None,
    percent: Annotated[
        bool, typer.Option("--percent", help="With --column: the accuracies are per cents, not fractions.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="With --from: the results table to write; PROJECT[-GROUP].parquet."),
    ] = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Gather every result file into results/results.parquet, upstream measures into results/measures.parquet.

    With --from, read the runs of a W&B project back into a results table.
    """
    from models.errors import UserError

    if source is None:
        given = {"--group": group, "--column": columns, "--columns": columns_file, "--output": output}
        for name, value in {**given, "--percent": percent}.items():
            if value:
                raise UserError(f"{name}: belongs to --from wandb:ENTITY/PROJECT")
        _collect_study(study, runs, as_json=as_json, as_csv=as_csv)
        return
    if study != STUDY:
        raise UserError(f"{study}: --from reads W&B and no study; leave one of them out (--group names a study)")
    read, collected, output = _collect_wandb(source, group, columns or [], columns_file, percent, output)
    if as_json or as_csv:
        print_found("collect", _found(read, collected, output), as_csv=as_csv)
    else:
        _print(read, collected, output)


def _collect_study(study: Path, runs: Path, *, as_json: bool, as_csv: bool) -> None:
    import polars as pl

    from orchestrator.bars import bar
    from orchestrator.session import open_submitted

    session = open_submitted(study, runs)
    with bar() as tell:
        results = session.collect(tell)
        num_rows, num_cells = results.select(pl.len(), pl.col("cell_id").n_unique().alias("cells")).collect().row(0)
    if as_json or as_csv:
        found = {"output": str(session.store.results_path), "rows": num_rows, "cells": num_cells}
        print_found("collect", found, as_csv=as_csv)
        return
    print(f"{num_rows:,} rows of {num_cells:,} cells in {session.store.results_path}")


def _collect_wandb(
    source: str, group: str | None, columns: list[str], file: Path | None, percent: bool, output: Path | None
) -> tuple["ReadRuns", "Collected", Path]:
    """What was read of W&B, the table that it gave, and where that was written."""
    from orchestrator.bars import bar
    from orchestrator.collecting import collect_runs, project_of, read_columns
    from orchestrator.importing import write_results
    from orchestrator.tracking.reading import read_runs

    entity, project = project_of(source)
    mapping = read_columns(columns, file)
    output = output or Path(f"{project}-{group}.parquet".replace("/", "-") if group else f"{project}.parquet")
    with bar() as tell:
        read = read_runs(entity, project, group=group, tables=not mapping, tell=tell)
    collected = collect_runs(read, mapping, percent=percent)
    write_results(collected.results, output)
    return read, collected, output


def _found(read: "ReadRuns", collected: "Collected", output: Path) -> dict[str, Any]:
    results = collected.results
    return {
        "output": str(output),
        "rows": results.height,
        "cells": results["cell_id"].n_unique(),
        "runs": len(read.runs),
        "read": read.num_read,
        "tasks": results["task"].unique().sort().to_list(),
        "studies": collected.studies,
        "without_accuracy": collected.reasons,
        "without": collected.empty,
        "unfinished": collected.unfinished,
        "left_out": collected.left_out,
    }


def _print(read: "ReadRuns", collected: "Collected", output: Path) -> None:
    from orchestrator.terminal import print_sentence

    results = collected.results
    print_sentence(f"{len(read.runs):,} runs; {read.num_read:,} were read, the others are kept in {read.folder}")
    print_sentence(f"{results.height:,} rows of {results['cell_id'].n_unique():,} cells in {output}")
    print_sentence(f"tasks: {', '.join(results['task'].unique().sort())}")
    for study in collected.studies:
        name = study or "(no group)"
        print_sentence(f"study {name}: the results table that it logged, with every draw, layer and checkpoint")
    for reason, number in collected.reasons.items():
        print_sentence(f"    {number:,} rows without an accuracy: {reason}")
    for name, number in collected.empty.items():
        print_sentence(f"    {number:,} rows without {name}")
    for state, number in collected.unfinished.items():
        print_sentence(f"    {number:,} runs {state}: their rows are of no last checkpoint, so they do not count")
    for reason, number in collected.left_out.items():
        print_sentence(f"    {number:,} runs left out: {reason}")
    print_sentence(f"next: upshot reduce {output}; upshot report {output}")
