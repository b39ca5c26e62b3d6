"""The `upshot` command: each subcommand parses, calls the library, prints.

Heavy modules are imported inside the commands, so that `upshot --help` answers at once.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.collect_command import collect_command
from orchestrator.data_command import data_app
from orchestrator.evaluate_command import evaluate_command
from orchestrator.import_command import import_command
from orchestrator.models_command import models_command
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

StudyArgument = Annotated[Path, typer.Argument(help="A study file, or the folder of a study that was submitted.")]
RunsOption = Annotated[Path, typer.Option("--runs", envvar="UPSHOT_RUNS", help="Where study folders are kept.")]
SetOption = Annotated[list[str], typer.Option("--set", help="Override a key: grid.epochs=[1,2]. May be repeated.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
CellsArgument = Annotated[list[str], typer.Argument(help="Only these cells: axis=value, or the beginning of an id.")]
StatusOption = Annotated[list[str], typer.Option("--status", "-s", help="Only cells of this status, such as FAILED.")]
CauseOption = Annotated[list[str], typer.Option("--cause", help="Only cells that failed of this, such as oom.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

STUDY = Path("study.toml")
RUNS = Path("runs")
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
    study: StudyArgument = STUDY, sets: SetOption = [], runs: RunsOption = RUNS, as_json: JsonOption = False
) -> None:
    """Show what a submission would do: cells, parameters, FLOPs, resources, hours. Changes nothing."""
    from orchestrator import tables

    session = _open(study, runs, sets)
    seen = session.observe(limits=True)
    if as_json:
        _print_json(seen.plan.to_json())
    else:
        tables.print_plan(seen.plan, session)


@app.command()
def submit(
    study: StudyArgument = STUDY,
    sets: SetOption = [],
    runs: RunsOption = RUNS,
    yes: YesOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what sbatch would be told, and stop.")] = False,
) -> None:
    """Submit what is not submitted yet, and return at once. Doing it twice starts nothing twice."""
    from orchestrator import tables

    session = _open(study, runs, sets)
    seen = session.observe(limits=True)
    tables.print_plan(seen.plan, session)
    if dry_run:
        tables.print_scripts(seen.plan, session)
        return
    _confirm(seen, yes)
    _tell_submitted(session.submit())


@app.command()
def retry(
    study: StudyArgument = STUDY,
    cells: CellsArgument = [],
    statuses: StatusOption = [],
    causes: CauseOption = [],
    runs: RunsOption = RUNS,
    yes: YesOption = False,
) -> None:
    """Start failed cells again, whatever their budgets say; training resumes from the newest checkpoint."""
    from orchestrator.select import selection

    study, cells = _study_and_cells(study, cells)
    session = _open_submitted(study, runs)
    keep = selection(cells, statuses or ["FAILED"], causes)
    _confirm(session.observe(retry=True, keep=keep), yes)
    _tell_submitted(session.submit(retry=True, keep=keep))


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
    study: StudyArgument = STUDY,
    cells: CellsArgument = [],
    statuses: StatusOption = [],
    causes: CauseOption = [],
    runs: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Show where every cell stands: done, running, pending, failed by cause."""
    from orchestrator import tables
    from orchestrator.select import selection

    study, cells = _study_and_cells(study, cells)
    session = _open_submitted(study, runs)
    seen = session.observe(keep=selection(cells, statuses, causes))
    if as_json:
        _print_json(tables.status_json(seen, session))
    else:
        tables.print_status(seen, session, each=bool(cells or statuses or causes))
    _exit_by(seen)


@app.command()
def why(
    cell: Annotated[str, typer.Argument(help="A cell id, or its beginning.")],
    study: StudyArgument = STUDY,
    runs: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Tell a cell's story: every attempt, its cause, node and log, and what to do next."""
    from orchestrator import tables
    from orchestrator.select import only_cell

    session = _open_submitted(study, runs)
    seen = session.observe()
    state = only_cell(seen.states, cell)
    if as_json:
        _print_json({**state.to_json(), "attempts": session.store.attempts(state.cell.cell_id)})
    else:
        tables.print_why(state, next(p for p in seen.plan.cells if p.cell is state.cell), session)


@app.command()
def logs(
    cell: Annotated[str, typer.Argument(help="A cell id, or its beginning.")],
    study: StudyArgument = STUDY,
    runs: RunsOption = RUNS,
) -> None:
    """Print everything that a cell printed, attempt by attempt."""
    from orchestrator.select import only_cell

    session = _open_submitted(study, runs)
    state = only_cell(session.observe().states, cell)
    folder = session.store.cell_folder(state.cell.cell_id) / "logs"
    for path in sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime):
        print(f"==> {path} <==")
        print(path.read_text(errors="replace"))


@app.command()
def cancel(study: StudyArgument = STUDY, runs: RunsOption = RUNS, yes: YesOption = False) -> None:
    """Stop everything of a study that is pending or running. Checkpoints and results stay."""
    session = _open_submitted(study, runs)
    if not yes:
        typer.confirm(f"Stop all jobs of {session.file.study.name}?", abort=True)
    print(f"stopped {session.cancel()} jobs")


@app.command()
def clean(
    study: StudyArgument = STUDY,
    runs: RunsOption = RUNS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would go.")] = False,
    yes: YesOption = False,
) -> None:
    """Remove what finished cells no longer need; never weights, a last checkpoint, a result or a ledger."""
    from orchestrator import tables
    from orchestrator.clean import clean, leftovers

    session = _open_submitted(study, runs)
    found = leftovers(session.store)
    if dry_run or not found:
        return tables.print_leftovers(found, "would free")
    if not yes:
        tables.print_leftovers(found, "would free")
        typer.confirm(f"Remove this from {session.store.root}?", abort=True)
    return tables.print_leftovers(clean(session.store), "freed")


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
) -> None:
    """Look at Slurm, its limits, the profile, folders and W&B, and say what to mend. Changes nothing."""
    from orchestrator.doctor import examine, print_findings

    findings = examine(study if study.exists() or study != STUDY else None, profile, runs)
    if as_json:
        _print_json(findings.to_json())
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
        typer.confirm(f"Submit {num} cells?", abort=True)


def _tell_submitted(seen: "Observation") -> None:
    asked = {cell.cell.cell_id for cell in seen.plan.cells if cell.action in ("submit", "retry")}
    taken = {text.partition("@")[0] for array in seen.plan.arrays for units in array.tasks for text in units}
    if seen.plan.halted:
        print(seen.plan.halted)
    elif not asked:
        print("nothing to submit")
    else:
        waiting = (
            f"; {len(asked - taken)} wait for room in the queue: `upshot watch` feeds them" if asked - taken else ""
        )
        print(f"submitted {len(taken)} cells{waiting}")


def _exit_by(seen: "Observation") -> None:
    raise typer.Exit(1 if seen.num_failed else 0)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, default=str))


def _fail(error: Exception, code: int) -> None:
    print(f"upshot: {error}", file=sys.stderr)
    sys.exit(code)
