"""`upshot reduce`: parses, calls the library, prints."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.arguments import RUNS, STUDY, RunsOption
from orchestrator.completion import complete_source
from orchestrator.output import CsvOption, JsonOption, print_found

MAX_WORKERS = 4  # processes of a reduction: others work on the login node too
TEXT_TABLES = (".csv", ".tsv")

SourceArgument = Annotated[
    Path,
    typer.Argument(help="A study file, a study folder, or a results table (parquet).", autocompletion=complete_source),
]
SeedOption = Annotated[int, typer.Option(help="Of the bootstrap.")]
DrawsOption = Annotated[int, typer.Option(help="Bootstrap draws behind each interval.")]
LossOption = Annotated[str, typer.Option(help="Of the fits: squared or huber.")]
PointsOption = Annotated[
    str, typer.Option(help="Fit the hull's vertices, or 200 equal upstream steps along it: vertices or dense.")
]
ProtocolOption = Annotated[
    str | None,
    typer.Option(
        help="Whose values count; the study's first when it is not given (of a table ridge, or its only one)."
    ),
]


def reduce_command(
    source: SourceArgument = STUDY,
    runs: RunsOption = RUNS,
    protocol: ProtocolOption = None,
    seed: SeedOption = 0,
    draws: DrawsOption = 200,
    loss: LossOption = "squared",
    points: PointsOption = "vertices",
    at: Annotated[str | None, typer.Option(help="Which cells to mix for this upstream accuracy: upstream=0.8.")] = None,
    submit: Annotated[
        bool, typer.Option("--submit", help="As a Slurm job; its answer lands in results/reduced.json.")
    ] = False,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Answer the study: hull, law, interval and verdict, recipe, conflicts, for each task and shot count."""
    # Before numpy is loaded: its threads and the processes of a reduction would only wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from models.errors import UserError
    from orchestrator.answer import parse_at
    from orchestrator.bars import bar
    from orchestrator.reduce import reduce_study
    from orchestrator.reduce_job import answer_path, submit_reduce
    from orchestrator.reduced_tables import print_effects, print_reduced
    from orchestrator.results import read_results
    from orchestrator.session import open_submitted

    how = {"loss": loss, "points": points, "at": None if at is None else parse_at(at)}
    options: dict[str, Any] = {"protocol": protocol, "seed": seed, "draws": draws, **how}
    if submit:
        if is_table(source):
            raise UserError(
                f"--submit reduces a study; {source} is a table, which `upshot reduce {source}` reduces here"
            )
        session = open_submitted(source, runs)
        job, path = submit_reduce(session, options), answer_path(session.store)
        if as_json or as_csv:
            print_found("reduce --submit", {"job": job, "answer": str(path)}, as_csv=as_csv)
        else:
            print(f"job {job} reduces the study; see {path}")
        return
    options["workers"] = min(MAX_WORKERS, os.cpu_count() or 1)
    with bar() as tell:
        if is_table(source):
            reduced = reduce_study(read_results(source), tell=tell, **options)
        else:
            reduced = open_submitted(source, runs).reduced(tell, **options)
    if as_json or as_csv:
        print_found("reduce", reduced, as_csv=as_csv)
        return
    print_reduced(reduced, recipes=at is not None)
    if "effects" in reduced:
        print_effects(reduced["effects"])


def is_table(source: Path) -> bool:
    """Whether a source is a results table, and no study.

    Raises:
        UserError: it is a table of text, which has to be imported.
    """
    if source.suffix.lower() in TEXT_TABLES:
        from models.errors import UserError

        made = source.with_suffix(".parquet").name
        raise UserError(
            f"{source}: no results table yet; import it first: "
            f"upshot import {source} --id COL --upstream COL --downstream COL -o {made}"
        )
    return source.suffix == ".parquet"
