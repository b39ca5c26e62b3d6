"""`upshot reduce`: parses, calls the library, prints."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

MAX_WORKERS = 4  # processes of a reduction: others work on the login node too


def reduce_command(
    source: Annotated[Path, typer.Argument(help="A study file, a study folder, or a results table (parquet).")] = Path(
        "study.toml"
    ),
    runs: Annotated[Path, typer.Option("--runs", envvar="UPSHOT_RUNS", help="Where study folders are kept.")] = Path(
        "runs"
    ),
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    draws: Annotated[int, typer.Option(help="Bootstrap draws behind each interval.")] = 200,
    loss: Annotated[str, typer.Option(help="Of the fits: squared or huber.")] = "squared",
    points: Annotated[
        str, typer.Option(help="Fit the hull's vertices, or 200 equal upstream steps along it: vertices or dense.")
    ] = "vertices",
    at: Annotated[str | None, typer.Option(help="Which cells to mix for this upstream accuracy: upstream=0.8.")] = None,
    submit: Annotated[
        bool, typer.Option("--submit", help="As a Slurm job; its answer lands in results/reduced.json.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Answer the study: hull, law, interval and verdict, recipe, conflicts, for each task and shot count."""
    from models.errors import UserError
    from orchestrator import tables
    from orchestrator.answer import parse_at
    from orchestrator.reduce import reduce_study
    from orchestrator.reduce_job import answer_path, submit_reduce
    from orchestrator.results import read_results
    from orchestrator.session import open_submitted

    how = {"loss": loss, "points": points, "at": None if at is None else parse_at(at)}
    options: dict[str, Any] = {"seed": seed, "draws": draws, **how}
    is_table = source.suffix == ".parquet"
    if submit:
        if is_table:
            raise UserError(
                f"--submit reduces a study; {source} is a table, which `upshot reduce {source}` reduces here"
            )
        session = open_submitted(source, runs)
        print(f"job {submit_reduce(session, options)} reduces the study; see {answer_path(session.store)}")
        return
    options["workers"] = min(MAX_WORKERS, os.cpu_count() or 1)
    reduced = (
        reduce_study(read_results(source), **options) if is_table else open_submitted(source, runs).reduced(**options)
    )
    if as_json:
        print(json.dumps(reduced, indent=1))
        return
    tables.print_reduced(reduced, recipes=at is not None)
    if "effects" in reduced:
        tables.print_effects(reduced["effects"])
