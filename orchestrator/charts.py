"""Chart specifications, one for page and paper, and their pictures.

All but `render`, `svg` and `browser_script` is pure. A chart is a Vega-Lite specification without values: it names its
data sets ("points", "hull" ...), and whoever shows it supplies them. Accuracies are fractions in [0, 1].
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import altair as alt
import vl_convert

Rows = Sequence[Mapping[str, Any]]
Spec = dict[str, Any]
"""A Vega-Lite specification, or a part of one."""

TICKS = 5
LEGEND_COLUMNS = 4
PADDING = 20  # pixels round a figure: where it is shown in a wider font than it was laid out in, labels grow
CROWD = 200  # points of a chart from which they become smaller
# Vega-Lite's own names; a family has one colour and one shape everywhere.
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """Colours of one appearance; families have those of Okabe and Ito, which the colour-blind can tell apart."""

    ink: str
    muted: str
    grid: str
    band: str
    middle: str
    families: tuple[str, ...]
    falling: str
    rising: str
    background: str = "transparent"


LIGHT = Theme(
    ink="#1b1b1b",
    muted="#5c5c5c",
    grid="#e6e6e6",
    band="#8c8c8c",
    middle="#f4f4f2",
    families=("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6b6b6b"),
    falling="#D55E00",
    rising="#0072B2",
)
DARK = Theme(
    ink="#ececec",
    muted="#a9a9a9",
    grid="#333638",
    band="#8c8c8c",
    middle="#2a2d2f",
    families=("#56B4E9", "#E69F00", "#2fbf95", "#CC79A7", "#F0E442", "#D55E00", "#a0a0a0"),
    falling="#D55E00",
    rising="#2b8fd0",
)
PAPER = Theme(
    ink=LIGHT.ink,
    muted=LIGHT.ink,
    grid=LIGHT.grid,
    band=LIGHT.band,
    middle=LIGHT.middle,
    families=LIGHT.families,
    falling=LIGHT.falling,
    rising=LIGHT.rising,
    background="white",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """What the charts of one report share.

    Args:
        theme: the colours.
        families: names in the order of their colours and shapes; empty where cells have none.
        params: smallest and largest parameter count, shown by size; None where unknown.
        cells: how many points crowd a frontier chart; many are drawn smaller and fainter.
        legend: whether charts carry their own; the page has one for all of them.
    """

    theme: Theme
    families: tuple[str, ...] = ()
    params: tuple[int, int] | None = None
    cells: int = 0
    legend: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """One figure in the formats that papers take; text is text in `svg` and `pdf`."""

    svg: str
    png: bytes
    pdf: bytes


# --- the charts ----------------------------------------------------------------------------------------------------


def frontier_chart(style: Style) -> Spec:
    """Downstream against upstream accuracy of one task: cells, hull, fitted law, saturation value with its interval.

    Data: `points` (upstream, downstream, cell, axes, family, params), `hull` (upstream, downstream), `law` (upstream,
    downstream, part: "fit", "beyond" or "unsure") and `band` (value, low, high, text; no row where not identifiable).
    """
    theme = style.theme
    x, y = (
        accuracy_channel(alt.X, "upstream", "upstream accuracy"),
        accuracy_channel(alt.Y, "downstream", "downstream accuracy"),
    )
    band = alt.Chart(alt.NamedData("band"))
    law = alt.Chart(alt.NamedData("law"))
    layers = [
        band.mark_rect(color=theme.band, opacity=0.22).encode(y="low:Q", y2="high:Q"),
        band.mark_rule(color=theme.muted, strokeWidth=1).encode(y="value:Q", tooltip=alt.Tooltip("text:N", title=" ")),
        alt.Chart(alt.NamedData("hull"))
        .mark_line(color=theme.muted, strokeWidth=1, point={"color": theme.muted, "size": 14, "shape": "circle"})
        .encode(x=x, y=y),
        alt.Chart(alt.NamedData("points"))
        .mark_point(filled=True, opacity=1, **crowd(style))
        .encode(x=x, y=y, tooltip=POINT_TOOLTIP, **family_encoding(style), **size_encoding(style)),
        law.mark_line(color=theme.ink, strokeWidth=2).encode(x=x, y=y, strokeDash=_law_dash()),
    ]
    return layered(*layers)


def layers_chart(style: Style) -> Spec:
    """Probe accuracy of one task against depth, a line for each family and size, the best layer ringed.

    Data: `layers` (depth in (0, 1], accuracy, layer, num_layers, best, series, family, params, cells).
    """
    x = alt.X("depth:Q", title="depth (layer / layers)", axis=alt.Axis(format=".1~f", tickCount=TICKS))
    x = x.scale(domain=[0, 1.02], nice=False)
    y = accuracy_channel(alt.Y, "accuracy", "downstream accuracy")
    base = alt.Chart(alt.NamedData("layers"))
    tooltip = [
        alt.Tooltip("series:N", title="model"),
        alt.Tooltip("layer:Q"),
        alt.Tooltip("num_layers:Q", title="of"),
        alt.Tooltip("accuracy:Q", format=".4f"),
        alt.Tooltip("cells:Q"),
    ]
    family = family_encoding(style)
    width = {} if style.params is None else {"strokeWidth": _params(alt.StrokeWidth, style, [0.8, 2.6], legend=False)}
    return layered(
        base.mark_line(strokeOpacity=0.75).encode(x=x, y=y, detail="series:N", **without_shape(family), **width),
        base.mark_point(filled=True, size=16).encode(x=x, y=y, tooltip=tooltip, **family),
        base.transform_filter("datum.best")
        .mark_point(size=90, strokeWidth=1.5, filled=False)
        .encode(x=x, y=y, tooltip=tooltip, **family),
    )


# --- what shows them -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Multiple:
    """One of the small multiples of a figure: the data of a chart, by name, under a title."""

    chart: Spec
    title: str
    subtitle: str = ""
    data: Mapping[str, Rows]


def page_spec(chart: Spec, theme: Theme, height: int) -> Spec:
    """A chart for the page, as wide as its place unless it has a size of its own; the page supplies its data."""
    return {
        "width": "container",
        "height": height,
        **chart,
        "config": config(theme),
    }


def figure_spec(multiples: Sequence[Multiple], theme: Theme, *, columns: int, width: int, height: int) -> Spec:
    """Small multiples side by side with one legend, of this size unless they have their own, and their data."""
    datasets: dict[str, Rows] = {}
    parts = []
    for i, multiple in enumerate(multiples):
        subtitle = {"subtitle": _wrapped(multiple.subtitle, width // 5)} if multiple.subtitle else {}
        title = {"text": _wrapped(multiple.title, width // 7), "anchor": "start", **subtitle}
        chart = _with_own_data(multiple.chart, f"_{i}")
        size = {} if "vconcat" in chart else {"width": width, "height": height}
        parts.append({**size, **chart, "title": title})
        datasets |= {f"{name}_{i}": rows for name, rows in multiple.data.items()}
    return {
        "$schema": alt.SCHEMA_URL,
        "concat": parts,
        "columns": columns,
        "spacing": 18,
        "padding": PADDING,
        "datasets": datasets,
        # What a screen reader says of each mark would be most of a picture's bytes.
        "config": {**config(theme), "aria": False},
    }


def render(spec: Spec) -> Picture:
    """The figure as SVG, PNG (twice its nominal size) and PDF, without a browser."""
    drawn = svg(spec)
    return Picture(drawn, vl_convert.svg_to_png(drawn, scale=2), vl_convert.svg_to_pdf(drawn))


def svg(spec: Spec) -> str:
    """The figure as SVG alone."""
    drawn: str = vl_convert.vegalite_to_svg(spec, vl_version=_vega_lite_version())
    return drawn


@cache
def browser_script() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script of about 0.9 MB, which sets `vegaEmbed`."""
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_vega_lite_version())
    return script.replace("</script", "<\\/script")


def config(theme: Theme) -> Spec:
    """Vega-Lite's configuration for a theme."""
    text = {"labelColor": theme.muted, "titleColor": theme.muted, "labelFontSize": 10, "titleFontSize": 11}
    lines = {"gridColor": theme.grid, "domainColor": theme.muted, "tickColor": theme.muted, "tickSize": 4}
    title = {"color": theme.ink, "subtitleColor": theme.muted, "fontSize": 12, "subtitleFontSize": 10, "offset": 6}
    return {
        "background": theme.background,
        "font": "Helvetica, Arial, sans-serif",
        "view": {"stroke": None},
        "axis": {**text, **lines, "titleFontWeight": "normal", "labelLimit": 160},
        "legend": {**text, "titleFontWeight": "bold", "symbolStrokeWidth": 1, "symbolOpacity": 1},
        "title": title,
    }


# --- parts ---------------------------------------------------------------------------------------------------------

POINT_TOOLTIP = [
    alt.Tooltip("cell:N"),
    alt.Tooltip("axes:N"),
    alt.Tooltip("params:Q", format=",d", title="parameters"),
    alt.Tooltip("upstream:Q", format=".4f"),
    alt.Tooltip("downstream:Q", format=".4f"),
]


def _vega_lite_version() -> str:
    """Major and minor version of the Vega-Lite that altair writes."""
    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


def layered(*layers: alt.Chart, **properties: Any) -> Spec:
    """Layers as one chart without a look of its own."""
    spec: Spec = alt.layer(*layers).properties(**properties).to_dict()
    # Altair's own look; a theme takes its place.
    del spec["config"]
    return spec


def _with_own_data(part: Any, suffix: str) -> Any:
    """A chart whose data sets are named apart from those of its neighbours in a figure."""
    if isinstance(part, dict):
        names = {"data": {"name": part["data"]["name"] + suffix}} if "data" in part else {}
        return {key: _with_own_data(value, suffix) for key, value in part.items() if key != "data"} | names
    return [_with_own_data(value, suffix) for value in part] if isinstance(part, list) else part


def accuracy_channel(channel: Any, field: str, title: str) -> Any:
    """An axis of accuracies that spans the data, with a little room."""
    return channel(
        f"{field}:Q",
        title=title,
        scale=alt.Scale(zero=False, nice=False, padding=8),
        axis=alt.Axis(tickCount=TICKS),
    )


def labels(**options: Any) -> alt.Axis:
    """An axis of names alone."""
    return alt.Axis(domain=False, ticks=False, labelPadding=6, **options)


def _law_dash() -> alt.StrokeDash:
    scale = alt.Scale(domain=["fit", "beyond", "unsure"], range=[[1, 0], [6, 4], [2, 3]])
    return alt.StrokeDash("part:N", scale=scale, legend=None)


def family_encoding(style: Style) -> dict[str, Any]:
    """Colour and shape by family, or one colour where there is none."""
    if not style.families:
        return {"color": alt.value(style.theme.families[0])}
    names, colours = list(style.families), style.theme.families
    columns = min(LEGEND_COLUMNS, len(names))
    legend = alt.Legend(title="family", orient="bottom", symbolSize=70, columns=columns) if style.legend else None
    palette = [colours[i % len(colours)] for i in range(len(names))]
    shapes = [SHAPES[i % len(SHAPES)] for i in range(len(names))]
    return {
        "color": alt.Color("family:N", scale=alt.Scale(domain=names, range=palette), legend=legend),
        "shape": alt.Shape("family:N", scale=alt.Scale(domain=names, range=shapes), legend=legend),
    }


def without_shape(encoding: dict[str, Any]) -> dict[str, Any]:
    """The colour of an encoding, for lines."""
    return {"color": encoding["color"]}


def size_encoding(style: Style) -> dict[str, Any]:
    """Size by parameters, where they are known."""
    shrink = min(1.0, (CROWD / max(1, style.cells)) ** 0.5)
    if style.params is None:
        return {"size": alt.value(40 * shrink)}
    return {"size": _params(alt.Size, style, [20 * shrink, 110 * shrink], legend=style.legend)}


def crowd(style: Style) -> dict[str, Any]:
    """How solid a point is. Its fill is translucent, not the point as a whole, which would swell a PDF fivefold."""
    if style.cells > CROWD:
        return {"fillOpacity": 0.5, "strokeWidth": 0}
    return {"fillOpacity": 0.8, "stroke": style.theme.middle, "strokeWidth": 0.5}


def _params(channel: Any, style: Style, sizes: list[float], *, legend: bool) -> Any:
    assert style.params is not None
    low, high = style.params
    # A log scale needs two different ends.
    scale = alt.Scale(type="log", domain=[low, max(high, low + 1)], range=sizes)
    values = sorted({low, round(math.sqrt(low * high)), high})
    shown = alt.Legend(title="parameters", orient="bottom", values=values, format=".2~s") if legend else None
    return channel("params:Q", scale=scale, legend=shown)


def _wrapped(text: str, room: int) -> list[str]:
    """Lines of at most `room` characters, three at most; words that are longer break, after punctuation if they can."""
    pieces = re.findall(rf"[^-_/.\s]{{1,{room - 1}}}[-_/.]?\s*|[-_/.]\s*", text)
    lines = [""]
    for piece in pieces:
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > room:
            lines.append("")
        lines[-1] += piece
    lines = [line.rstrip() for line in lines]
    return lines if len(lines) <= 3 else [*lines[:2], lines[2][: room - 4] + " ..."]
