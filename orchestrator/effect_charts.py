"""The charts of effects: what axes add, tasks that rank cells alike, the best of k settings, upstream measures. Pure.

Specifications without values, like those of `orchestrator.charts`.
"""

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


def added_chart(style: Style) -> Spec:
    """Partial R^2 of one axis (rows) on each task (columns), given upstream accuracy; faint where chance would do.

    Data: `added` (axis, task, partial_r2, p_value, text, cells).
    """
    theme = style.theme
    base = alt.Chart(alt.NamedData("added")).encode(
        x=alt.X("task:N", title=None, sort=None, axis=labels(orient="top", labelAngle=-40)),
        y=alt.Y("axis:N", title=None, sort=None, axis=labels(labelLimit=260)),
        tooltip=[
            alt.Tooltip("axis:N"),
            alt.Tooltip("task:N"),
            alt.Tooltip("partial_r2:Q", title="partial R²", format=".3f"),
            alt.Tooltip("p_value:Q", title="p", format=".4f"),
            alt.Tooltip("cells:Q"),
        ],
    )
    scale = alt.Scale(domain=[0, 1], range=[theme.middle, theme.rising], interpolate="rgb")
    ink = alt.condition("datum.partial_r2 > 0.55", alt.value("white"), alt.value(theme.ink))
    sure = alt.condition("datum.p_value <= 0.05", alt.value(1.0), alt.value(0.35))
    return layered(
        base.mark_rect(stroke=theme.middle).encode(color=alt.Color("partial_r2:Q", scale=scale, legend=None)),
        base.mark_text(fontSize=10).encode(text="text:N", color=ink, opacity=sure),
        width=alt.Step(46),
        height=alt.Step(22),
    )


def correlations_chart(style: Style) -> Spec:
    """Rank correlation of every two tasks over the cells that have both.

    Data: `correlations` (task, other, spearman, text, cells), each pair both ways.
    """
    theme = style.theme
    base = alt.Chart(alt.NamedData("correlations")).encode(
        x=alt.X("other:N", title=None, sort="ascending", axis=labels(orient="top", labelAngle=-40)),
        y=alt.Y("task:N", title=None, sort="ascending", axis=labels(labelLimit=260)),
        tooltip=[
            alt.Tooltip("task:N"),
            alt.Tooltip("other:N", title="and"),
            alt.Tooltip("spearman:Q", title="Spearman", format=".3f"),
            alt.Tooltip("cells:Q"),
        ],
    )
    scale = alt.Scale(domain=[-1, 0, 1], range=[theme.falling, theme.middle, theme.rising], interpolate="rgb")
    ink = alt.condition("abs(datum.spearman) > 0.55", alt.value("white"), alt.value(theme.ink))
    return layered(
        base.mark_rect(stroke=theme.middle).encode(color=alt.Color("spearman:Q", scale=scale, legend=None)),
        base.mark_text(fontSize=10).encode(text="text:N", color=ink),
        width=alt.Step(46),
        height=alt.Step(22),
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
    tooltip = [
        alt.Tooltip("cell:N"),
        alt.Tooltip("axes:N"),
        alt.Tooltip("upstream:Q", format=".4f"),
        alt.Tooltip("value:Q", format=".4g"),
    ]
    points = alt.Chart(alt.NamedData("points")).mark_point(filled=True, opacity=1, **crowd(style))
    return layered(points.encode(x=x, y=y, tooltip=tooltip, **family_encoding(style), **size_encoding(style)))
