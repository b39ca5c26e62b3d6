"""`upshot sync`: a study's cells, told to Weights & Biases from the study folder."""

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.arguments import RUNS, STUDY, RunsOption, StudyArgument
from orchestrator.output import CsvOption, JsonOption, print_found

if TYPE_CHECKING:
    from orchestrator.study_sync import StudySync
    from orchestrator.tracking.syncing import Report

MOST_SHOWN = 20  # of cells that failed
INTERRUPTED = 130  # as a shell has it


def sync_command(
    study: StudyArgument = STUDY,
    runs: RunsOption = RUNS,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=64, help="How many cells are told at once.")] = 4,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Ask W&B what it lacks, and write over what it holds otherwise.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until every cell has ended and is mirrored.")] = False,
    every: Annotated[float, typer.Option(min=1.0, help="With --watch: seconds between two rounds.")] = 60.0,
    patience: Annotated[
        float, typer.Option(min=1.0, help="Seconds that W&B may be away before the rest is left for another time.")
    ] = 120.0,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Mirror every cell that has run to Weights & Biases, from the study folder. Repeating it doubles nothing.

    Only cells whose files have changed since are told, then the run of the study as a whole (with --watch at the end).
    With --watch, --json prints a line of JSON a round.
    Exit code 1: some cells were not mirrored; 2: none can be.
    """
    from models.errors import UserError
    from orchestrator.session import open_submitted
    from orchestrator.study_sync import StudySync

    if watch and as_csv:
        raise UserError("--csv: prints the one round of `upshot sync`; with --watch use --json, a line a round")
    sync = StudySync(open_submitted(study, runs), jobs=jobs, patience_s=patience)
    try:
        with _ended_by_sigterm():
            report = _watch(sync, every, rebuild, as_json) if watch else _once(sync, rebuild)
    except KeyboardInterrupt:
        told = f"{len(sync.report.told)} cells were mirrored; the same command goes on from there"
        print(f"interrupted: {told}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if not watch and (as_json or as_csv):
        print_found("sync", report.to_json(), as_csv=as_csv)
    elif not watch:
        print(summary(report))
        _print_troubles(report)
    raise typer.Exit(0 if report.is_good else 1)


def _once(sync: "StudySync", rebuild: bool) -> "Report":
    report = _round(sync, rebuild)
    _tell_study(sync)
    return report


def _tell_study(sync: "StudySync") -> None:
    from orchestrator.bars import bar

    with bar() as tell:
        sync.tell_study(tell)


def _round(sync: "StudySync", rebuild: bool) -> "Report":
    from orchestrator.bars import bar

    with bar() as tell:
        return sync.round(lambda done, of: tell("cells to W&B", done, of), rebuild=rebuild)


def _watch(sync: "StudySync", every_s: float, rebuild: bool, as_json: bool) -> "Report":
    """The last report; one line a round in which something was told, or went wrong in another way."""
    wrong: tuple[object, ...] = ({}, {}, None, None)
    while True:
        report = _round(sync, rebuild)
        rebuild = False  # once is enough
        ends = report.is_whole and sync.is_settled()
        if ends:
            _tell_study(sync)
        now = (report.failed, report.later, report.stopped, report.study)
        if report.told or now != wrong or ends:
            line = json.dumps(report.to_json()) if as_json else f"{time.strftime('%H:%M:%S')}  {summary(report)}"
            print(line, flush=True)
            if now != wrong and not as_json:
                _print_troubles(report)
        if ends:
            return report
        wrong = now
        time.sleep(every_s)


def summary(report: "Report") -> str:
    """'12 cells mirrored (3,400 rows), 88 unchanged, 1 by its job, 2 failed'."""
    parts = [f"{len(report.told):,} cells mirrored ({sum(report.told.values()):,} rows)"]
    failed = len(report.failed) + len(report.later)
    for number, what in ((report.unchanged, "unchanged"), (len(report.busy), "by their jobs"), (failed, "failed")):
        parts += [f"{number:,} {what}"] if number else []
    return ", ".join([*parts, *([f"{len(report.left):,} left"] if report.left else [])])


def _print_troubles(report: "Report") -> None:
    from orchestrator.terminal import print_plain

    failed = {**report.failed, **report.later}
    for cell_id, reason in list(failed.items())[:MOST_SHOWN]:
        print_plain(f"{cell_id}: {reason}", sys.stderr)
    if len(failed) > MOST_SHOWN:
        print_plain(f"and {len(failed) - MOST_SHOWN} more: `upshot sync --json` lists all", sys.stderr)
    if report.study is not None:
        print_plain(f"the run of the study: {report.study}", sys.stderr)
    if report.stopped is not None:
        print_plain(f"{report.stopped}; {len(report.left)} cells are left: the same command goes on", sys.stderr)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Takes SIGTERM for Ctrl-C: the cells under way are given a moment, and nothing stays behind."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
