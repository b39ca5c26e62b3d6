"""A comparison as a folder: one page that works offline, figures for a paper, tables."""

import datetime
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

from models.errors import UserError
from orchestrator.charts import PAPER, Multiple, Spec, Style, figure_spec, svg
from orchestrator.comparing.answer import Comparison
from orchestrator.comparing.charts import HEIGHT, WIDTH, multiple
from orchestrator.comparing.page import write_page
from orchestrator.comparing.sides import TaskKey
from orchestrator.comparing.tables import CAPTIONS, tables
from orchestrator.files import write_atomically
from orchestrator.report.figures import write_figure
from orchestrator.report.tables import write_table
from orchestrator.report.written import keep_only

COLUMNS = 3


def folder_name(comparison: Comparison) -> str:
    """`A-vs-B-report`, of characters that every file system takes."""
    a, b = (re.sub(r"[^\w.+-]+", "-", side.name).strip("-.") for side in comparison.sides)
    return f"{a}-vs-{b}-report"


def write_comparison(comparison: Comparison, folder: Path, *, generated: str | None = None) -> Path:
    """The path of the page, after `folder` was written: tables/ and figures/ first, index.html last.

    Args:
        comparison: what it shows.
        folder: made where it is not there; of what lies in it, only files of an earlier report are removed.
        generated: the date that the page carries; today's when it is not given.

    Raises:
        UserError: the folder cannot be written.
    """
    style = Style(theme=PAPER, families=tuple(side.name for side in comparison.sides))
    charts = {task.key: multiple(task, replace(style, legend=True), task.title) for task in comparison.tasks}
    pictures = {task.key: svg(_figure(multiple(task, style))) for task in comparison.tasks}
    try:
        written = [*_write_tables(comparison, folder / "tables"), *_write_figures(charts, folder / "figures")]
        page = write_page(
            comparison,
            pictures,
            files=keep_only(folder, written),
            generated_by=f"upshot {version('upshot')}",
            generated=generated or datetime.datetime.now(datetime.UTC).date().isoformat(),
        )
        write_atomically(folder / "index.html", page)
    except OSError as error:
        raise UserError(f"{folder}: the comparison cannot be written into this folder: {error}") from error
    return folder / "index.html"


def _write_tables(comparison: Comparison, folder: Path) -> list[Path]:
    made = tables(comparison)
    return [path for name, table in made.items() for path in write_table(table, name, CAPTIONS[name], folder)]


def _write_figures(charts: Mapping[TaskKey, Multiple], folder: Path) -> list[Path]:
    """One figure for each number of shots."""
    by_shots = sorted(charts, key=_shots)
    written = []
    for shots, keys in groupby(by_shots, key=_shots):
        name = "comparison" + (f"_{shots}_shots" if shots >= 0 else "")
        written += write_figure(_figure(*(charts[key] for key in keys)), folder / name)
    return written


def _shots(key: TaskKey) -> int:
    return -1 if key[1] is None else key[1]


def _figure(*charts: Multiple) -> Spec:
    return figure_spec(charts, PAPER, columns=min(COLUMNS, len(charts)), width=WIDTH, height=HEIGHT)
