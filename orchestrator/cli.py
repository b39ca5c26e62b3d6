"""The `upshot` command: each subcommand parses, calls the library, prints.

Heavy modules are imported inside the commands, so that `upshot --help` answers at once.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.arguments import (
    RUNS,
    STUDY,
    CausesOption,
    CellArgument,
    CellsArgument,
    RunsOption,
    SetOption,
    StatusesOption,
    StudyArgument,
    StudyOrFilter,
    YesOption,
)
from orchestrator.collect_command import collect_command
from orchestrator.completion import values_in_bash
from orchestrator.data_command import data_app
from orchestrator.evaluate_command import evaluate_command
from orchestrator.import_command import import_command
from orchestrator.models_command import models_command
from orchestrator.output import CsvOption, JsonOption, print_found
from orchestrator.reduce_command import reduce_command
from orchestrator.report_command import report_command
from orchestrator.sync_command import sync_command
from orchestrator.tasks_command import tasks_command

if TYPE_CHECKING:
    from orchestrator.observe import Observation
    from orchestrator.session import Session

app = typer.Typer(
    name="upshot",
    help="From one study file to the saturation frontier: plan, submit, watch, report.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ASK_ABOVE_CELLS = 100


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = STUDY,
    sweep: Annotated[Path | None, typer.Option("--from-sweep", help="A W&B sweep definition: its grid.")] = None,
    axes: Annotated[list[str], typer.Option("--axis", help="With --from-sweep: AXIS=PARAMETER.")] = [],
) -> None:
    """Write a commented study file that plans as it stands."""
    from models.errors import UserError
    from orchestrator.template import write_template

    if sweep is None:
        if axes:
            raise UserError("--axis: belongs to --from-sweep SWEEP.yaml")
        print(f"wrote {write_template(path)}; next: upshot plan {path}")
        return
    from orchestrator.sweep import convert_sweep

    converted = convert_sweep(sweep, path, axes)
    if converted.left_out:
        print(f"left out, a study has no place for them: {', '.join(converted.left_out)}")
    print(f"wrote {path} with the grid of {sweep}; look at [upstream] and [downstream]; next: upshot plan {path}")


@app.command()
def plan(
    study: StudyArgument = STUDY,
    sets: SetOption = [],
    runs: RunsOption = RUNS,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Show what a submission would do: cells, parameters, FLOPs, resources, hours. Changes nothing."""
    from orchestrator import tables

    session = _open(study, runs, sets)
    seen = session.observe(limits=True)
    if as_json or as_csv:
        print_found("plan", seen.plan.to_json(), as_csv=as_csv)
    else:
        tables.print_plan(seen.plan, session)


@app.command()
def submit(
    study: StudyArgument = STUDY,
    sets: SetOption = [],
    runs: RunsOption = RUNS,
    yes: YesOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what sbatch would be told, and stop.")] = False,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Submit what is not submitted yet, and return at once. Doing it twice starts nothing twice."""
    from orchestrator import submit_tables, tables

    session = _open(study, runs, sets)
    seen = session.observe(limits=True)
    is_told = as_json or as_csv
    if not is_told:
        tables.print_plan(seen.plan, session)
    if dry_run and is_told:
        print_found("submit", submit_tables.dry_run_json(seen.plan, session), as_csv=as_csv)
    elif dry_run:
        submit_tables.print_scripts(seen.plan, session)
    else:
        _confirm(seen, yes)
        _tell_submitted("submit", session.submit(), as_json=as_json, as_csv=as_csv)


@app.command()
def retry(
    study: StudyOrFilter = STUDY,
    cells: CellsArgument = [],
    statuses: StatusesOption = [],
    causes: CausesOption = [],
    runs: RunsOption = RUNS,
    yes: YesOption = False,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Start failed cells again, whatever their budgets say; training resumes from the newest checkpoint."""
    from orchestrator.select import selection

    study, cells = _study_and_cells(study, cells)
    session = _open_submitted(study, runs)
    keep = selection(cells, statuses or ["FAILED"], causes)
    _confirm(session.observe(retry=True, keep=keep), yes)
    _tell_submitted("retry", session.submit(retry=True, keep=keep), as_json=as_json, as_csv=as_csv)


@app.command()
def watch(
    study: StudyArgument = STUDY,
    runs: RunsOption = RUNS,
    every: Annotated[float | None, typer.Option(help="Seconds between two looks; 1 here, 30 on Slurm.")] = None,
    as_job: Annotated[bool, typer.Option("--as-job", help="Watch from a one-CPU job, and return at once.")] = False,
) -> None:
    """Drive the study until every cell has ended: submit as room appears, answer deaths, show where it stands."""
    session = _open_submitted(study, runs)
    if as_job:
        from orchestrator.watch_job import submit_watch

        print(f"job {submit_watch(session, every)} watches {session.file.study.name}")
        return
    from orchestrator.progress import watch_with_table

    _exit_by(watch_with_table(session, every))


@app.command()
def status(
    study: StudyOrFilter = STUDY,
    cells: CellsArgument = [],
    statuses: StatusesOption = [],
    causes: CausesOption = [],
    runs: RunsOption = RUNS,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Show where every cell stands: done, running, pending, failed by cause."""
    from orchestrator import tables
    from orchestrator.select import selection

    study, cells = _study_and_cells(study, cells)
    session = _open_submitted(study, runs)
    seen = session.observe(keep=selection(cells, statuses, causes))
    if as_json or as_csv:
        print_found("status", tables.status_json(seen, session), as_csv=as_csv)
    else:
        tables.print_status(seen, session, each=bool(cells or statuses or causes))
    _exit_by(seen)


@app.command()
def why(
    cell: CellArgument,
    study: StudyArgument = STUDY,
    runs: RunsOption = RUNS,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Tell a cell's story: every attempt, its cause, node and log, and what to do next."""
    from orchestrator import tables
    from orchestrator.select import only_cell

    session = _open_submitted(study, runs)
    seen = session.observe()
    state = only_cell(seen.states, cell)
    if as_json or as_csv:
        found = {**state.to_json(), "attempts": session.store.attempts(state.cell.cell_id)}
        print_found("why", found, as_csv=as_csv)
    else:
        tables.print_why(state, next(p for p in seen.plan.cells if p.cell is state.cell), session)


@app.command()
def logs(
    cell: CellArgument,
    study: StudyArgument = STUDY,
    runs: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Print everything that a cell printed, attempt by attempt; in a pipe or a file byte for byte."""
    from orchestrator.select import only_cell
    from orchestrator.terminal import print_log

    session = _open_submitted(study, runs)
    cell_id = only_cell(session.observe().states, cell).cell.cell_id
    folder = session.store.cell_folder(cell_id) / "logs"
    paths = sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)
    if as_json:
        texts = [{"path": str(path), "text": path.read_bytes().decode(errors="replace")} for path in paths]
        print_found("logs", {"cell_id": cell_id, "logs": texts}, as_csv=False)
        return
    if not paths:
        print(f"cell {cell_id} has printed nothing: it has not started yet", file=sys.stderr)
    for path in paths:
        print_log(path)


@app.command()
def cancel(
    study: StudyArgument = STUDY,
    runs: RunsOption = RUNS,
    yes: YesOption = False,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Stop everything of a study that is pending or running. Checkpoints and results stay."""
    session = _open_submitted(study, runs)
    if not yes:
        _ask(f"Stop all jobs of {session.file.study.name}?")
    stopped = session.cancel()
    if as_json or as_csv:
        print_found("cancel", {"study": session.file.study.name, "stopped": stopped}, as_csv=as_csv)
    else:
        print(f"stopped {stopped} jobs")


@app.command()
def clean(
    study: StudyArgument = STUDY,
    runs: RunsOption = RUNS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would go.")] = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Remove what finished cells no longer need; never weights, a last checkpoint, a result or a ledger."""
    from orchestrator import tables
    from orchestrator.bars import bar
    from orchestrator.clean import clean, leftovers

    session = _open_submitted(study, runs)
    found, is_told = leftovers(session.store), as_json or as_csv
    goes = found and not dry_run
    if goes and not yes:
        if not is_told:
            tables.print_leftovers(found, "would free")
        _ask(f"Remove this from {session.store.root}?")
    if goes:
        with bar() as tell:
            found = clean(session.store, tell)
    if is_told:
        print_found("clean", tables.leftovers_json(found, removed=bool(goes)), as_csv=as_csv)
    else:
        tables.print_leftovers(found, "freed" if goes else "would free")


app.command("collect")(collect_command)


app.add_typer(data_app)
app.command("import")(import_command)
app.command("evaluate")(evaluate_command)
app.command("reduce")(reduce_command)
app.command("report")(report_command)
app.command("models")(models_command)
app.command("tasks")(tasks_command)
app.command("sync")(sync_command)


@app.command()
def doctor(
    study: StudyArgument = STUDY,
    profile: Annotated[str | None, typer.Option(help="A cluster profile, in place of the study's.")] = None,
    runs: RunsOption = RUNS,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Look at Slurm, its limits, the profile, folders and W&B, and say what to mend. Changes nothing."""
    from orchestrator.doctor import examine, print_findings

    findings = examine(study if study.exists() or study != STUDY else None, profile, runs)
    if as_json or as_csv:
        print_found("doctor", findings.to_json(), as_csv=as_csv)
    else:
        print_findings(findings)
    raise typer.Exit(findings.exit_code)


@app.command()
def demo(
    cluster: Annotated[str, typer.Option(help="A cluster profile; this machine when it is not given.")] = "local",
    runs: RunsOption = RUNS,
) -> None:
    """Run the quickstart study whole: train, evaluate, reduce, report."""
    from orchestrator.demo import run_demo

    _exit_by(run_demo(cluster, runs))


def main() -> None:
    """The console script.

    Exit codes: 0 fine, 1 some cells failed, 2 usage or study error, 3 no scheduler, 4 refused by a limit or budget.
    """
    from models.errors import UserError

    values = values_in_bash(os.environ)
    if values is not None:
        print("\n".join(values))
        return
    try:
        app()
    except UserError as error:
        _fail(error, 2)
    except Exception as error:
        from slurm.cluster import ProfileError
        from slurm.resources import LimitReachedError, SlurmError

        if not isinstance(error, SlurmError):
            raise
        _fail(error, 2 if isinstance(error, ProfileError) else 4 if isinstance(error, LimitReachedError) else 3)


def _open(study: Path, runs: Path, sets: list[str] | None = None) -> "Session":
    from orchestrator.session import open_session

    return open_session(study, runs, sets or [])


def _open_submitted(study: Path, runs: Path) -> "Session":
    from orchestrator.session import open_submitted

    return open_submitted(study, runs)


def _study_and_cells(study: Path, cells: list[str]) -> tuple[Path, list[str]]:
    """A first word that is no path but reads as a filter is one, of the study file here."""
    word = str(study)
    is_filter = "=" in word or not set(word.lower()) - set("0123456789abcdef")
    return (STUDY, [word, *cells]) if is_filter and not study.exists() else (study, cells)


def _confirm(seen: "Observation", yes: bool) -> None:
    num = sum(cell.action in ("submit", "retry") for cell in seen.plan.cells)
    if num > ASK_ABOVE_CELLS and not yes:
        _ask(f"Submit {num:,} cells?")


def _ask(question: str) -> None:
    """Returns if somebody says yes; asks on standard error, since standard output may be read by a program."""
    typer.confirm(question, abort=True, err=True)


def _tell_submitted(command: str, seen: "Observation", *, as_json: bool, as_csv: bool) -> None:
    from orchestrator.submit_tables import submitted_json, submitted_text

    found = submitted_json(seen)
    if as_json or as_csv:
        print_found(command, found, as_csv=as_csv)
    elif seen.plan.halted:
        print(seen.plan.halted)
    else:
        print(submitted_text(found["cells"]))


def _exit_by(seen: "Observation") -> None:
    raise typer.Exit(1 if seen.num_failed else 0)


def _fail(error: Exception, code: int) -> None:
    from orchestrator.terminal import print_plain

    print_plain(f"upshot: {error}", sys.stderr)
    sys.exit(code)
