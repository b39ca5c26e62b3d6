"""The chart of a comparison: two frontiers with their cells, and below them the difference with its band. Pure."""

from collections.abc import Sequence
from typing import Any, Final

import altair as alt
import polars as pl

from orchestrator.charts import TICKS, Multiple, Spec, Style, layered
from orchestrator.comparing.answer import Compared
from orchestrator.comparing.difference import Difference
from orchestrator.frontier import upper_hull
from orchestrator.report.figures import thinned

WIDTH, HEIGHT, HEIGHT_BELOW = 250, 150, 80
SHAPES: Final = ("circle", "square")
MARGIN = 42  # pixels for the labels of both y axes, so that both x axes begin at one place


def multiple(compared: Compared, style: Style, title: str = "") -> Multiple:
    """The chart of one task with its data.

    Args:
        compared: the task.
        style: `families` are the names of the two studies.
        title: its heading.
    """
    tables = tables_of(compared, style.families)
    spans = pl.concat([tables["points"]["upstream"], tables["difference"]["upstream"]])
    domain = [spans.min(), spans.max()]
    chart: Spec = {"vconcat": [_frontiers(style, domain), _difference(style, domain)], "spacing": 6}
    return Multiple(chart=chart, title=title, data={name: table.to_dicts() for name, table in tables.items()})


def tables_of(compared: Compared, names: Sequence[str]) -> dict[str, pl.DataFrame]:
    """The chart's data by name.

    `points` and `hulls` have upstream, downstream and study, `difference` the columns of `curve`, and `regions` low,
    high and study.
    """
    schema = {"upstream": pl.Float64, "downstream": pl.Float64, "family": pl.String}
    points, hulls = [], []
    for cells, name in zip(compared.cells, names, strict=True):
        known = cells.select("upstream", "downstream", family=pl.lit(name)).cast(schema)  # type: ignore[arg-type]  # a mapping of names to types
        points.append(thinned(known))
        rows = upper_hull(known["upstream"].to_numpy(), known["downstream"].to_numpy())
        hulls.append(known[rows.tolist()])
    found = compared.difference
    return {
        "points": pl.concat(points).rename({"family": "study"}),
        "hulls": pl.concat(hulls).rename({"family": "study"}),
        "difference": curve(found),
        "regions": _regions(found, names),
    }


def curve(found: Difference | str) -> pl.DataFrame:
    """The difference at every step; no row where there is none, null where it is not judged."""
    if isinstance(found, str):
        return pl.DataFrame(schema=dict.fromkeys(("upstream", "measured", "value", "low", "high"), pl.Float64))
    columns = {
        "upstream": found.us_S,
        "measured": found.measured_S,
        "value": found.value_S,
        "low": found.low_S,
        "high": found.high_S,
    }
    return pl.DataFrame(columns).fill_nan(None)


def _regions(found: Difference | str, names: Sequence[str]) -> pl.DataFrame:
    regions = [] if isinstance(found, str) else found.regions
    rows = [(region.low, region.high, names[0 if region.mean > 0 else 1]) for region in regions]
    return pl.DataFrame(rows, schema={"low": pl.Float64, "high": pl.Float64, "study": pl.String}, orient="row")


def _frontiers(style: Style, domain: Sequence[Any]) -> Spec:
    x, colour = _upstream("upstream", domain, labelled=False), _study(style)
    y = alt.Y("downstream:Q", title="downstream accuracy", scale=_scale(), axis=_side_axis())
    shapes = alt.Scale(domain=list(style.families), range=list(SHAPES))
    points = alt.Chart(alt.NamedData("points")).mark_point(filled=True, size=14, opacity=1, fillOpacity=0.35)
    hulls = alt.Chart(alt.NamedData("hulls")).mark_line(strokeWidth=2, point={"size": 24, "filled": True})
    return layered(
        points.encode(x=x, y=y, color=colour, shape=alt.Shape("study:N", scale=shapes, legend=_legend(style))),
        hulls.encode(x=x, y=y, color=colour),
        width=WIDTH,
        height=HEIGHT,
    )


def _difference(style: Style, domain: Sequence[Any]) -> Spec:
    theme, x = style.theme, _upstream("upstream", domain, labelled=True)
    axis = _side_axis(3, gridColor=alt.condition("datum.value === 0", alt.value(theme.ink), alt.value(theme.grid)))
    y = alt.Y("value:Q", title="difference", scale=_scale(zero=True), axis=axis)
    base = alt.Chart(alt.NamedData("difference"))
    judged = base.transform_filter("isValid(datum.low)")
    regions = alt.Chart(alt.NamedData("regions")).mark_rect(opacity=0.25)
    return layered(
        regions.encode(x=_upstream("low", domain, labelled=True), x2="high:Q", color=_study(style)),
        judged.mark_area(color=theme.band, opacity=0.35).encode(x=x, y="low:Q", y2="high:Q"),
        base.mark_line(color=theme.muted, strokeWidth=1, strokeDash=[2, 3]).encode(x=x, y="measured:Q"),
        judged.mark_line(color=theme.ink, strokeWidth=1.5).encode(x=x, y=y),
        width=WIDTH,
        height=HEIGHT_BELOW,
    )


def _upstream(field: str, domain: Sequence[Any], *, labelled: bool) -> alt.X:
    """Upstream accuracy on the same scale in both parts of the chart."""
    scale = alt.Scale(domain=list(domain), nice=False, padding=8)
    axis = alt.Axis(tickCount=TICKS, labels=labelled)
    return alt.X(f"{field}:Q", title="upstream accuracy" if labelled else None, scale=scale, axis=axis)


def _study(style: Style) -> alt.Color:
    scale = alt.Scale(domain=list(style.families), range=list(style.theme.families[: len(style.families)]))
    return alt.Color("study:N", scale=scale, legend=_legend(style))


def _legend(style: Style) -> alt.Legend | None:
    return alt.Legend(title=None, orient="bottom", symbolSize=70, labelLimit=WIDTH) if style.legend else None


def _scale(*, zero: bool = False) -> alt.Scale:
    return alt.Scale(zero=zero, nice=False, padding=6)


def _side_axis(ticks: int = TICKS, **options: Any) -> alt.Axis:
    return alt.Axis(tickCount=ticks, minExtent=MARGIN, maxExtent=MARGIN, **options)
