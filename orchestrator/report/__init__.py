"""The report of a study: one page that works offline, figures for a paper, tables.

`facts` tidies the inputs, `panels` says what each chart shows, `sections` writes the text, `page` puts them together.
"""

import datetime
import json
import re
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
from orchestrator.report.tables import write_tables
from orchestrator.results import read_results

LISTED = re.compile(r"(?:tables|figures)/[^/]+")


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
    panels = _panels(facts)
    about: dict[str, Any] = {"title": title, "plan": plan_summary, "generated_by": generated_by}
    try:
        files = _write_files(folder, facts, panels, tell)
        page = write_page(facts, panels, files=files, generated=generated or _today(), **about)
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


def _write_files(folder: Path, facts: Facts, panels: Sequence[Panel], tell: Tell) -> list[str]:
    """The paths of tables and figures, relative to the folder, after they are written and stale ones removed."""
    written = [*write_tables(facts, folder / "tables"), *write_figures(facts, panels, folder / "figures", tell)]
    files = [path.relative_to(folder).as_posix() for path in written]
    for name in set(_listed(folder / "files.json")).difference(files):
        if (folder / name).is_file():
            (folder / name).unlink()
    write_atomically(folder / "files.json", json.dumps(files, indent=1))
    return files


def _listed(path: Path) -> list[str]:
    """The files that an earlier report says it wrote; none where it left no list, or a damaged one."""
    try:
        names = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return []
    return [name for name in names if LISTED.fullmatch(str(name))] if isinstance(names, list) else []
