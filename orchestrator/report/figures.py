"""The figures of a report: every chart as SVG, PNG and PDF, grouped into small multiples."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import altair as alt
import polars as pl

from orchestrator import charts
from orchestrator.charts import PAPER, Style
from orchestrator.files import write_atomically
from orchestrator.report.facts import Facts
from orchestrator.report.panels import Panel, axis_panels, changes_panels, frontier_panels, layers_panels, line_axes

COLUMNS, WIDTH, HEIGHT = 4, 170, 140
# Points that would cover one another on this grid (about half a pixel) are drawn once: 4,800 cells stay a small file.
GRID_X, GRID_Y = 2 * WIDTH, 2 * HEIGHT


def chart_of(kind: str, style: Style, axes: dict[str, list[str]], suffix: str = "") -> alt.LayerChart:
    """The chart that draws panels of a kind; `axes` are the values of each ordered axis."""
    makers: dict[str, Callable[[], alt.LayerChart]] = {
        "frontier": lambda: charts.frontier_chart(style, suffix),
        "layers": lambda: charts.layers_chart(style, suffix),
    }
    if kind in makers:
        return makers[kind]()
    axis = kind.removeprefix("axis ")
    return charts.axis_chart(style, axis, axes[axis], suffix)


def changes_of(panel: Panel, style: Style) -> alt.LayerChart:
    """The chart of a changes panel, whose columns and rows are its data's."""
    rows = panel.tables["changes"]
    names = [rows[name].unique(maintain_order=True).to_list() for name in ("column", "change")]
    return charts.changes_chart(style, *names, largest=float(rows["value"].abs().max() or 0.0))  # type: ignore[arg-type]  # of a Float64 column


def write_figures(facts: Facts, folder: Path) -> list[Path]:
    """Writes every figure in three formats; the paths written, in order.

    Raises:
        OSError: the folder cannot be written.
    """
    written = []
    for name, spec in figure_specs(facts):
        picture = charts.render(spec)
        for suffix, data in (("svg", picture.svg), ("png", picture.png), ("pdf", picture.pdf)):
            path = folder / f"{name}.{suffix}"
            write_atomically(path, data)
            written.append(path)
    return written


def figure_specs(facts: Facts) -> Iterator[tuple[str, dict[str, object]]]:
    """(file name without suffix, specification) of every figure."""
    style = Style(theme=PAPER, families=facts.families, params=facts.params, legend=True)
    axes = line_axes(facts)
    for kind, panels in (("frontier", frontier_panels(facts)), ("layers", layers_panels(facts))):
        for shots, group in _by_shots(panels):
            yield f"{kind}{_suffix(shots)}", _multiples(group, style, axes)
    for axis in axes:
        panels = [panel for panel in axis_panels(facts) if panel.kind == f"axis {axis}"]
        if panels:
            yield f"axis_{axis}", _multiples(panels, style, axes)
    for panel in changes_panels(facts):
        chart = changes_of(panel, style)
        title = "Mean change of accuracy" + (f", {panel.title}" if panel.title else "")
        yield f"changes{_suffix(panel.shots)}", charts.single_spec(chart, PAPER, title, _rows(panel, ""))


def _multiples(panels: Sequence[Panel], style: Style, axes: dict[str, list[str]]) -> dict[str, object]:
    shown = [
        charts.Panel(chart_of(panel.kind, style, axes, f"_{i}"), panel.title, _subtitle(panel), _rows(panel, f"_{i}"))
        for i, panel in enumerate(panels)
    ]
    columns = min(COLUMNS, len(shown))
    return charts.figure_spec(shown, PAPER, columns=columns, width=WIDTH, height=HEIGHT)


def _subtitle(panel: Panel) -> str:
    return panel.note.partition(":")[0].partition(";")[0] if panel.kind == "frontier" else ""


def _rows(panel: Panel, suffix: str) -> dict[str, list[dict[str, object]]]:
    tables = dict(panel.tables)
    if panel.kind == "frontier":
        tables["points"] = thinned(tables["points"])
        tables["law"] = tables["law"].filter(pl.col("part") != "beyond")
    return {f"{name}{suffix}": table.to_dicts() for name, table in tables.items()}


def thinned(points: pl.DataFrame) -> pl.DataFrame:
    """Points with both accuracies, one for each family and place on the figure's grid."""
    seen = points.filter(pl.col("upstream").is_not_null(), pl.col("downstream").is_not_null())
    places = [
        ((pl.col(name) - pl.col(name).min()) / (pl.col(name).max() - pl.col(name).min()) * grid)
        .round()
        .alias(f"{name}_at")
        for name, grid in (("upstream", GRID_X), ("downstream", GRID_Y))
    ]
    return (
        seen.with_columns(places)
        .unique(["family", "upstream_at", "downstream_at"], keep="first", maintain_order=True)
        .drop("upstream_at", "downstream_at")
    )


def _by_shots(panels: Sequence[Panel]) -> Iterator[tuple[int | None, list[Panel]]]:
    key: Callable[[Panel], int] = lambda panel: -1 if panel.shots is None else panel.shots
    for _, group in groupby(sorted(panels, key=key), key):
        members = list(group)
        yield members[0].shots, members


def _suffix(shots: int | None) -> str:
    return "" if shots is None else f"_{shots}_shots"
