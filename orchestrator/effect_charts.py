"""The charts of effects: conflicts by task, what an axis does, best layers, the best of k settings, measures. Pure.

Specifications without values, like those of `orchestrator.charts`.
"""

from collections.abc import Sequence
from typing import Any, Literal

import altair as alt

from orchestrator.charts import (
    Spec,
    Style,
    accuracy_channel,
    crowd,
    family_encoding,
    labels,
    layered,
    size_encoding,
    without_shape,
)

AXIS_WIDTH = 170  # pixels that the values of an axis have in a figure
SIDES = ("upstream accuracy", "downstream beyond it")
"""What a measure is held against, in the order of colours and shapes."""

Spacing = Literal["log", "linear", "even"]
"""How an axis's values stand: by their logarithm, as they are, or evenly in their order."""


def conflicts_chart(style: Style) -> Spec:
    """The share of conflicting pairs of each task, in the order of the data.

    Data: `shares` (task, share, text, conflicts, pairs, spearman).
    """
    theme = style.theme
    tooltip = [
        alt.Tooltip("task:N"),
        alt.Tooltip("conflicts:Q", format=",d"),
        alt.Tooltip("pairs:Q", title="of pairs", format=",d"),
        alt.Tooltip("spearman:Q", title="Spearman, upstream and downstream", format=".3f"),
    ]
    base = alt.Chart(alt.NamedData("shares")).encode(
        x=alt.X("share:Q", title="share of pairs of cells", axis=alt.Axis(format=".0%", tickCount=4, grid=False)),
        y=alt.Y("task:N", title=None, sort=None, axis=labels(labelLimit=200)),
        tooltip=tooltip,
    )
    return layered(
        base.mark_bar(color=theme.families[0]),
        base.mark_text(align="left", dx=4, fontSize=10, color=theme.ink).encode(text="text:N"),
        width=200,
        height=alt.Step(20),
    )


def axis_chart(style: Style, axis: str, values: Sequence[str], spacing: Spacing) -> Spec:
    """What one axis does, all else equal: a thin line for each set of cells, a thick one for a family's mean.

    Data: `lines` (value, accuracy, line, family, axes), `means` (value, accuracy, low, high, family, lines) and
    `bands`, which is those of the means that have an interval. Values are text. `values` are the axis's, in order.
    """
    band, *means = _mean_layers(style, axis, values, spacing)
    lines = _numbered("lines", spacing).mark_line(strokeOpacity=0.4, strokeWidth=1)
    lines = lines.encode(
        x=_axis_values(axis, values, spacing),
        y=accuracy_channel(alt.Y, "accuracy", "accuracy"),
        detail="line:N",
        tooltip=[alt.Tooltip("axes:N", title="fixed")],
        **without_shape(family_encoding(style)),
    )
    return layered(band, lines, *means)


def axis_tasks_chart(style: Style, axis: str, values: Sequence[str], spacing: Spacing) -> Spec:
    """What one axis does on one task: `means` and `bands` of `axis_chart` alone, at a size of their own."""
    return layered(*_mean_layers(style, axis, values, spacing), width=190, height=120)


def _mean_layers(style: Style, axis: str, values: Sequence[str], spacing: Spacing) -> list[alt.Chart]:
    """The band, the thick line and its points."""
    x = _axis_values(axis, values, spacing)
    y = accuracy_channel(alt.Y, "accuracy", "accuracy")
    family, means, bands = family_encoding(style), _numbered("means", spacing), _numbered("bands", spacing)
    shown = [
        alt.Tooltip("family:N"),
        alt.Tooltip("value:N", title=axis),
        alt.Tooltip("accuracy:Q", format=".4f"),
        alt.Tooltip("low:Q", title="95 % from", format=".4f"),
        alt.Tooltip("high:Q", title="to", format=".4f"),
        alt.Tooltip("lines:Q", title="sets of cells"),
    ]
    return [
        bands.mark_area(fillOpacity=0.15).encode(
            x=x, y=alt.Y("low:Q", title="accuracy"), y2="high:Q", **without_shape(family)
        ),
        means.mark_line(strokeWidth=2.5).encode(x=x, y=y, **without_shape(family)),
        means.mark_point(filled=True, size=50, opacity=1).encode(x=x, y=y, tooltip=shown, **family),
    ]


def _numbered(data: str, spacing: Spacing) -> alt.Chart:
    chart = alt.Chart(alt.NamedData(data))
    # The page packs numbers to four decimals, which would make 0 of a small learning rate: values travel as text.
    return chart if spacing == "even" else chart.transform_calculate(number="toNumber(datum.value)")


def _axis_values(axis: str, values: Sequence[str], spacing: Spacing) -> alt.X:
    if spacing == "even":
        return alt.X(
            "value:N",
            title=axis,
            scale=alt.Scale(domain=list(values), padding=0.25),
            axis=alt.Axis(labelAngle=-40 if _crowded(values) else 0, labelOverlap="greedy", labelLimit=90),
        )
    # Vega warns of a log scale that is told about zero.
    is_log = spacing == "log"
    zero = alt.Undefined if is_log else False
    scale = alt.Scale(type=spacing, nice=False, padding=12, zero=zero)
    return alt.X(
        "number:Q",
        title=f"{axis} (log scale)" if is_log else axis,
        scale=scale,
        axis=alt.Axis(values=[float(value) for value in values], format="~g", labelOverlap="greedy"),
    )


def _crowded(values: Sequence[str]) -> bool:
    """Whether an axis's values do not fit side by side."""
    return sum(len(value) + 2 for value in values) * 6 > AXIS_WIDTH


def depths_chart(style: Style) -> Spec:
    """The depth of each cell's best layer against its upstream accuracy, and means by upstream accuracy.

    Data: `points` (upstream, depth, cell, axes, family) and `trend` (upstream, depth, low, high, cells).
    """
    theme = style.theme
    x = accuracy_channel(alt.X, "upstream", "upstream accuracy")
    y = alt.Y("depth:Q", title="depth of the best layer", scale=alt.Scale(domain=[0, 1.05], nice=False))
    y = y.axis(tickCount=5, format=".1~f")
    points, trend = alt.Chart(alt.NamedData("points")), alt.Chart(alt.NamedData("trend"))
    about = [alt.Tooltip("cell:N"), alt.Tooltip("axes:N"), alt.Tooltip("upstream:Q", format=".4f")]
    told = [alt.Tooltip("depth:Q", title="mean depth", format=".2f"), alt.Tooltip("cells:Q", format=",d")]
    return layered(
        points.mark_point(filled=True, size=22, fillOpacity=0.55).encode(
            x=x, y=y, tooltip=[*about, alt.Tooltip("depth:Q", format=".2f")], **family_encoding(style)
        ),
        trend.mark_rule(strokeWidth=1.5, color=theme.ink).encode(x=x, y=alt.Y("low:Q"), y2="high:Q"),
        trend.mark_line(strokeWidth=2, color=theme.ink).encode(x=x, y=y),
        trend.mark_point(filled=True, shape="diamond", size=45, color=theme.ink, opacity=1).encode(
            x=x, y=y, tooltip=told
        ),
    )


def gains_chart(style: Style) -> Spec:
    """What the chosen layer gains over the last, mean over cells with its 95 % interval, by task.

    Data: `gains` (task, gain, low, high, cells), and `intervals`, which is those that have one.
    """
    theme = style.theme
    y = alt.Y("task:N", title=None, sort=None, axis=labels(labelLimit=200))
    base, intervals = (alt.Chart(alt.NamedData(name)).encode(y=y) for name in ("gains", "intervals"))
    x = alt.X("gain:Q", title="gain of accuracy over the last layer", axis=alt.Axis(tickCount=3, format="+.2~f"))
    tooltip = [
        alt.Tooltip("task:N"),
        alt.Tooltip("gain:Q", format="+.4f"),
        alt.Tooltip("low:Q", title="95 % from", format="+.4f"),
        alt.Tooltip("high:Q", title="to", format="+.4f"),
        alt.Tooltip("cells:Q", format=",d"),
    ]
    return layered(
        base.mark_rule(color=theme.muted, strokeDash=[3, 3]).encode(x=alt.X(datum=0)),
        intervals.mark_rule(strokeWidth=1.5, color=theme.families[0]).encode(x=alt.X("low:Q"), x2="high:Q"),
        base.mark_point(filled=True, size=50, opacity=1, color=theme.families[0]).encode(x=x, tooltip=tooltip),
        width=200,
        height=alt.Step(20),
    )


def along_chart(style: Style) -> Spec:
    """How the rank of each quantity (rows) goes with the two sides of `SIDES`, with 95 % intervals.

    Data: `along` (quantity, against, spearman, low, high, cells).
    """
    y = alt.Y("quantity:N", title=None, sort=None, axis=labels(labelLimit=200))
    offset = alt.YOffset("against:N", sort=list(SIDES))
    return _ranks(style, alt.X, y=y, yOffset=offset, width=180, height=alt.Step(13, **{"for": "offset"}))


def layers_along_chart(style: Style) -> Spec:
    """How the rank of one quantity of layers goes with the two sides of `SIDES`, by depth.

    Data: `along` (depth, against, spearman, low, high, cells).
    """
    x = alt.X("depth:Q", title="depth (layer / layers)", scale=alt.Scale(domain=[0, 1.05], nice=False))
    return _ranks(style, alt.Y, x=x.axis(format=".1~f", tickCount=5))


def _ranks(style: Style, channel: type[alt.X] | type[alt.Y], **place: Any) -> Spec:
    """Rank correlations in [-1, 1] along one channel, a colour and a shape for each side."""
    theme = style.theme
    size = {name: place.pop(name) for name in ("width", "height") if name in place}
    data = alt.Chart(alt.NamedData("along"))
    name = "x" if channel is alt.X else "y"
    scale = alt.Scale(domain=[-1, 1], nice=False)
    rank = channel("spearman:Q", title="rank correlation", scale=scale, axis=alt.Axis(values=[-1, -0.5, 0, 0.5, 1]))
    ends = {name: channel("low:Q", scale=scale), f"{name}2": "high:Q"}
    legend = alt.Legend(title=None, orient="bottom", columns=1, symbolSize=60)
    colour = alt.Color("against:N", scale=alt.Scale(domain=list(SIDES), range=list(theme.families[:2])), legend=legend)
    shape = alt.Shape("against:N", scale=alt.Scale(domain=list(SIDES), range=["circle", "square"]), legend=legend)
    tooltip = [
        alt.Tooltip("against:N"),
        alt.Tooltip("spearman:Q", title="rank correlation", format="+.3f"),
        alt.Tooltip("low:Q", title="95 % from", format="+.3f"),
        alt.Tooltip("high:Q", title="to", format="+.3f"),
        alt.Tooltip("cells:Q", format=",d"),
    ]
    return layered(
        data.mark_rule(color=theme.muted, strokeDash=[3, 3]).encode(**{name: channel(datum=0, scale=scale)}),
        data.mark_rule(strokeWidth=1.5).encode(color=colour, **ends, **place),
        data.mark_point(filled=True, size=45, opacity=1).encode(
            color=colour, shape=shape, tooltip=tooltip, **{name: rank}, **place
        ),
        **size,
    )


def best_of_k_chart(style: Style) -> Spec:
    """Expected best accuracy of k random settings of each family and size.

    Data: `curves` (k, accuracy, series, family, settings).
    """
    base = alt.Chart(alt.NamedData("curves"))
    x = alt.X("k:Q", title="k settings, drawn at random", scale=alt.Scale(type="log", base=2, nice=False, padding=8))
    x = x.axis(tickCount=5, format="d")
    y = accuracy_channel(alt.Y, "accuracy", "expected best accuracy")
    family = family_encoding(style)
    tooltip = [
        alt.Tooltip("series:N", title="model"),
        alt.Tooltip("k:Q"),
        alt.Tooltip("accuracy:Q", format=".4f"),
        alt.Tooltip("settings:Q"),
    ]
    return layered(
        base.mark_line(strokeOpacity=0.75).encode(x=x, y=y, detail="series:N", **without_shape(family)),
        base.mark_point(filled=True, size=22, opacity=1).encode(x=x, y=y, tooltip=tooltip, **family),
    )


def measures_chart(style: Style) -> Spec:
    """A quantity of each cell's last checkpoint against its upstream accuracy.

    Data: `points` (upstream, value, cell, axes, family, params).
    """
    x = accuracy_channel(alt.X, "upstream", "upstream accuracy")
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False, nice=False, padding=8), axis=alt.Axis(tickCount=5))
    return _cells(style, x, y, alt.Tooltip("upstream:Q", format=".4f"), alt.Tooltip("value:Q", format=".4g"))


def residuals_chart(style: Style) -> Spec:
    """What each cell does downstream beyond its upstream accuracy, against a quantity of its last checkpoint.

    Data: `points` (value, residual, cell, axes, family, params).
    """
    x = alt.X("value:Q", title=None, scale=alt.Scale(zero=False, nice=False, padding=8), axis=alt.Axis(tickCount=5))
    y = alt.Y("residual:Q", title="downstream beyond upstream (logit)", axis=alt.Axis(tickCount=5))
    y = y.scale(zero=False, nice=False, padding=8)
    return _cells(style, x, y, alt.Tooltip("value:Q", format=".4g"), alt.Tooltip("residual:Q", format="+.3f"))


def _cells(style: Style, x: alt.X, y: alt.Y, *values: alt.Tooltip) -> Spec:
    """A point for each cell, which tells its id, its axes and these values."""
    points = alt.Chart(alt.NamedData("points")).mark_point(filled=True, opacity=1, **crowd(style))
    tooltip = [alt.Tooltip("cell:N"), alt.Tooltip("axes:N"), *values]
    return layered(points.encode(x=x, y=y, tooltip=tooltip, **family_encoding(style), **size_encoding(style)))
