"""The report of a study: one page that works offline, figures for a paper, tables.

`facts` tidies the inputs, `panels` says what each chart shows, `sections` writes the text, `page` puts them together.
"""

import datetime
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from orchestrator.files import write_atomically
from orchestrator.reduce import reduce_study
from orchestrator.report.effect_panels import effect_panels
from orchestrator.report.facts import gather
from orchestrator.report.figures import write_figures
from orchestrator.report.page import write_page
from orchestrator.report.panels import study_panels
from orchestrator.report.tables import write_tables
from orchestrator.results import read_results

SUFFIXES = (".svg", ".png", ".pdf", ".csv", ".parquet", ".md")


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
) -> Path:
    """The path of the page, after `folder` was written anew: tables/ and figures/ first, index.html last.

    Files of an earlier report that this one does not write are removed from tables/ and figures/.

    Args:
        folder: made where it is not there.
        title: the study's name.
        results: the results table of DESIGN.md, one that `import` made, or an empty one.
        reduced: what `reduce_study` made of `results`; `{"tasks": []}` where they are empty.
        cells: every cell of the study as `CellState.to_json` writes it; empty for imported results.
        plan_summary: gpu_hours, cpu_hours and sbatch_calls, as far as they are known.
        generated_by: program and version.
        generated: the date that the page carries; today's when it is not given.

    Raises:
        DataError: the results cannot be reduced.
        OSError: the folder cannot be written.
    """
    facts = gather(results, reduced, cells)
    panels = [*study_panels(facts), *effect_panels(facts)]
    written = [*write_tables(facts, folder / "tables"), *write_figures(facts, panels, folder / "figures")]
    _remove_stale(folder, written)
    page = write_page(
        facts,
        panels,
        title=title,
        plan=plan_summary,
        files=[path.relative_to(folder).as_posix() for path in written],
        generated_by=generated_by,
        generated=generated or datetime.datetime.now(datetime.UTC).date().isoformat(),
    )
    write_atomically(folder / "index.html", page)
    return folder / "index.html"


def report_table(path: Path) -> Path:
    """The page of a results table that belongs to no study, in the folder NAME-report beside it.

    Raises:
        DataError: there is no such table, or it cannot be reduced.
        OSError: the folder cannot be written.
    """
    results = read_results(path).collect()
    return write_report(
        path.with_name(f"{path.stem}-report"),
        title=path.stem,
        results=results,
        reduced=reduce_study(results),
        cells=[],
        plan_summary={},
        generated_by=f"upshot {version('upshot')}",
    )


def _remove_stale(folder: Path, written: Sequence[Path]) -> None:
    for kind in ("tables", "figures"):
        for path in (folder / kind).glob("*"):
            if path.suffix in SUFFIXES and path not in written:
                path.unlink()
