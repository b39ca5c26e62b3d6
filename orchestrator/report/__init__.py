"""The report of a study: one page that works offline, figures for a paper, tables.

`facts` tidies the inputs, `panels` says what each chart shows, `sections` writes the text, `page` puts them together.
"""

import datetime
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from models.errors import UserError
from orchestrator.bars import Tell, tell_nobody
from orchestrator.files import write_atomically
from orchestrator.operations import Operations
from orchestrator.reduce import reduce_study
from orchestrator.report.axis_panels import axis_panels
from orchestrator.report.conflict_panels import conflict_panels
from orchestrator.report.effect_panels import effect_panels
from orchestrator.report.facts import Facts, gather
from orchestrator.report.figures import write_figures
from orchestrator.report.layer_panels import layer_panels
from orchestrator.report.measure_panels import measure_panels
from orchestrator.report.page import write_page
from orchestrator.report.panels import Panel, frontier_panels
from orchestrator.report.short_tasks import with_short_tasks
from orchestrator.report.tables import write_tables
from orchestrator.report.written import keep_only
from orchestrator.results import read_results


def write_report(
    folder: Path,
    *,
    title: str,
    results: pl.DataFrame,
    reduced: Mapping[str, Any],
    cells: Sequence[Mapping[str, Any]],
    plan_summary: Mapping[str, Any],
    generated_by: str,
    generated: str | None = None,
    measures: pl.DataFrame | None = None,
    operations: Operations | None = None,
    tell: Tell = tell_nobody,
) -> Path:
    """The path of the page, after `folder` was written anew: tables/ and figures/ first, index.html last.

    files.json lists what was written to tables/ and figures/. Of that, what this report does not write is removed; any
    other file stays.

    Args:
        folder: made where it is not there.
        title: the study's name.
        results: the results table of DESIGN.md, one that `import` made, or an empty one.
        reduced: what `reduce_study` made of `results`; `{"tasks": []}` where they are empty.
        cells: every cell of the study as `CellState.to_json` writes it; empty for imported results.
        plan_summary: gpu_hours, cpu_hours and sbatch_calls, as far as they are known.
        generated_by: program and version.
        generated: the date that the page carries; today's when it is not given.
        measures: the study's table of upstream measures (`results.UPSTREAM_SCHEMA`), if it has one.
        operations: what the study took: every attempt with its hours, what was planned.
        tell: hears how far the figures are.

    Raises:
        DataError: the results cannot be reduced.
        UserError: the folder cannot be written.
    """
    facts = gather(results, reduced, cells, measures, operations)
    shown = with_short_tasks(facts)
    panels = _panels(shown)
    about: dict[str, Any] = {"title": title, "plan": plan_summary, "generated_by": generated_by}
    try:
        written = [*write_tables(facts, folder / "tables"), *write_figures(shown, panels, folder / "figures", tell)]
        files = keep_only(folder, written)
        page = write_page(shown, panels, files=files, generated=generated or _today(), **about)
        write_atomically(folder / "index.html", page)
    except OSError as error:
        raise UserError(f"{folder}: the report cannot be written into this folder: {error}") from error
    return folder / "index.html"


def page_alone(facts: Facts, *, title: str, plan_summary: Mapping[str, Any], generated_by: str) -> str:
    """The page as it stands without the folder's tables and figures: it names none of their files.

    Args:
        facts: the study's.
        title: as in `write_report`.
        plan_summary: the same.
        generated_by: the same.
    """
    about: dict[str, Any] = {"title": title, "plan": plan_summary, "generated_by": generated_by}
    facts = with_short_tasks(facts)
    return write_page(facts, _panels(facts), files=[], generated=_today(), **about)


def _panels(facts: Facts) -> list[Panel]:
    makers = (frontier_panels, conflict_panels, effect_panels, axis_panels, layer_panels, measure_panels)
    return [panel for make in makers for panel in make(facts)]


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def report_table(path: Path, tell: Tell = tell_nobody, **options: Any) -> Path:
    """The page of a results table that belongs to no study, in the folder NAME-report beside it.

    Args:
        path: of the table.
        tell: hears how far the work is.
        options: of `reduce_study`.

    Raises:
        DataError: there is no such table, or it cannot be reduced.
        UserError: an option is wrong, or the folder cannot be written.
    """
    results = read_results(path).collect()
    return write_report(
        path.with_name(f"{path.stem}-report"),
        title=path.stem,
        results=results,
        reduced=reduce_study(results, tell=tell, **options),
        cells=[],
        plan_summary={},
        tell=tell,
        generated_by=f"upshot {version('upshot')}",
    )
