"""A study's report among the reports of its Weights & Biases project, written with W&B's own report library.

The same report is written again each time: the study folder holds its id. What people wrote into it on the website goes
with that, but for their comments.
"""

import importlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from models.errors import UserError
from orchestrator.files import write_whole
from orchestrator.tracking.account import need_key
from orchestrator.tracking.client import one_line
from orchestrator.tracking.reading import public_api, refusal
from orchestrator.tracking.summary_run import run_id

KEPT: Final = "wandb-report.json"
"""Of a study folder: which report at W&B is the study's."""
TIMEOUT_S: Final = 60.0
NUM_RETRIES: Final = 2
MAX_CURVES: Final = 100
"""Runs in a chart of curves; W&B's own default is 10."""
MAX_TITLE: Final = 128
ARTIFACTS: Final = {
    "results": "all results (parquet)",
    "measures": "upstream measures (parquet)",
    "report": "the whole report (a page)",
}
"""By type, what the study's artifacts are called."""
PANEL: Final = {"w": 8, "h": 8}  # three beside each other
WIDE: Final = {"w": 24, "h": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportContent:
    """What the report says, without W&B's words for it.

    Args:
        study: the group of its runs.
        project: the W&B project.
        entity: the W&B team or user; None is the key's default.
        lead: the study in numbers.
        answers: a sentence for each task and number of shots.
        scatters: for each chart of downstream against upstream accuracy its title and downstream metric.
        axes: those in which cells differ.
        metrics: downstream ones, beside the axes in the chart of all cells.
        colours: of the runs, by their ids.
        legend: what the colours mean.
        tables: by heading, a table as Markdown.
        notes: how the numbers were made.
    """

    study: str
    project: str
    entity: str | None
    lead: str
    answers: Sequence[str]
    scatters: Sequence[tuple[str, str]]
    axes: Sequence[str]
    metrics: Sequence[str]
    colours: Mapping[str, str]
    legend: str
    tables: Mapping[str, str]
    notes: Sequence[str]


@dataclass(frozen=True, slots=True)
class Published:
    """Where the report is, and whether it is the old one, a first one, or one in place of a report that is gone."""

    url: str
    how: Literal["updated", "made", "made anew"]


class ReportRefusedError(UserError):
    """W&B did not take the report."""


def need_library() -> None:
    """Raises where W&B's report library is missing.

    Raises:
        UserError: it is.
    """
    _library()


def publish(folder: Path, content: ReportContent, *, timeout_s: float = TIMEOUT_S) -> Published:
    """Publishes the report, or what it has become; one call at a time for a study.

    Args:
        folder: the study's, which keeps the report's id in `wandb-report.json`.
        content: what it says.
        timeout_s: how long one request may take.

    Raises:
        UserError: no library, no key.
        ReportRefusedError: W&B refused the report, or did not answer; if there was one it is as it was.
    """
    wr = _library()
    need_key()
    try:
        with public_api(timeout_s, NUM_RETRIES) as api, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's own, about itself
            return _publish(wr, api, folder, content)
    except UserError:
        raise
    except Exception as error:  # what wandb and its library raise is no closed set
        of_wandb = type(error).__module__.startswith(("wandb", "requests"))
        told = refusal(error) if of_wandb else one_line(error)
        raise ReportRefusedError(f"the report is not published: {told}") from error


def _library() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("wandb_workspaces.reports.v2")
    except ModuleNotFoundError as error:
        told = 'W&B\'s report library is missing: pip install "upshot[reports]"'
        raise UserError(f"{told} ({one_line(str(error))})") from error


def _publish(wr: Any, api: Any, folder: Path, content: ReportContent) -> Published:
    entity = content.entity or api.default_entity
    path = f"{entity}/{content.project}"
    kept = _kept(folder, path)
    there = kept is not None and any(report.id == kept["id"] for report in api.reports(path))
    # Loaded, so that comments stay.
    report = wr.Report.from_url(kept["url"]) if there and kept else wr.Report(project=content.project, entity=entity)
    report.title = content.study[:MAX_TITLE]
    report.description = f"Study {content.study}, by Upshot"
    report.width = "fluid"
    report.blocks = list(_blocks(wr, content, entity, _links(wr, api, path, content.study)))
    report.save()
    write_whole(folder / KEPT, json.dumps({"id": report.id, "url": report.url, "project": path}))
    return Published(report.url, "updated" if there else "made anew" if kept else "made")


def _kept(folder: Path, path: str) -> dict[str, str] | None:
    """The report that this study published in this project; None where there is none yet, or its file is damaged."""
    try:
        kept = json.loads((folder / KEPT).read_bytes())
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) and kept.get("project") == path and {"id", "url"} <= kept.keys() else None


def _links(wr: Any, api: Any, path: str, study: str) -> list[Any]:
    """Links to the study's run and to the newest version of each of its artifacts."""
    run = api.run(f"{path}/{run_id(study)}")
    newest = {one.type: one for one in run.logged_artifacts() if "latest" in one.aliases and one.type != "run_table"}
    links = [wr.Link("the study's run, with these tables in full", run.url)]
    base = run.url.partition("/runs/")[0]
    for kind, one in sorted(newest.items()):
        name, _, number = one.name.partition(":")
        links.append(wr.Link(ARTIFACTS.get(kind, kind), f"{base}/artifacts/{kind}/{name}/{number}"))
    return links


def _blocks(wr: Any, content: ReportContent, entity: str, links: Sequence[Any]) -> Iterator[Any]:
    yield wr.P(content.lead)
    if content.answers:
        yield wr.H2("The answer")
        yield wr.UnorderedList(list(content.answers))
    yield wr.H2("Downstream against upstream accuracy")
    if content.legend:
        yield wr.P(content.legend)
    yield wr.PanelGrid(runsets=[_run_set(wr, content, entity)], panels=list(_panels(wr, content)))
    for heading, table in content.tables.items():
        yield wr.H2(heading)
        yield wr.MarkdownBlock(table)
    yield wr.H2("Methods and files")
    yield from (wr.P(note) for note in content.notes)
    yield wr.UnorderedList([[link] for link in links])


def _run_set(wr: Any, content: ReportContent, entity: str) -> Any:
    """The study's cells: neither other studies of the project nor the run that sums this one up."""
    expr = importlib.import_module("wandb_workspaces.expr")
    return wr.Runset(
        entity=entity,
        project=content.project,
        name=f"cells of {content.study}",
        filters=[expr.Metric("Group") == content.study, expr.Metric("JobType") == "cell"],
        run_settings={cell_id: wr.RunSettings(color=colour) for cell_id, colour in content.colours.items()},
    )


def _panels(wr: Any, content: ReportContent) -> Iterator[Any]:
    upstream = wr.SummaryMetric("upstream/accuracy")
    for title, metric in content.scatters:
        yield wr.ScatterPlot(title=title, x=upstream, y=wr.SummaryMetric(metric), layout=wr.Layout(**PANEL))
    yield wr.LinePlot(
        title="upstream accuracy over examples seen",
        x="examples_seen",
        y=["upstream/accuracy"],
        max_runs_to_show=MAX_CURVES,
        layout=wr.Layout(**WIDE),
    )
    if content.axes:
        columns = [wr.ParallelCoordinatesPlotColumn(wr.Config(axis), display_name=axis) for axis in content.axes]
        names = ["upstream/accuracy", *content.metrics]
        columns += [wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(name), display_name=name) for name in names]
        yield wr.ParallelCoordinatesPlot(title="all cells", columns=columns, layout=wr.Layout(**WIDE))
