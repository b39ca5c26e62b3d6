"""Charts of coloured cells with a number in each: what axes do and tell, which tasks are alike. Pure.

Specifications without values, like those of `orchestrator.charts`. Blue is more and vermilion less (Okabe and Ito),
which the colour-blind can tell apart; the number stands in every cell, in the ink that can be read on its colour.
"""

from collections.abc import Sequence

import altair as alt

from orchestrator.charts import Spec, Style, Theme, labels, layered

STEP = {"width": alt.Step(36), "height": alt.Step(22)}
LONGEST_NAME = 200  # pixels of a row's or a column's name; what does not fit ends in dots, and the tooltip has it


def changes_chart(style: Style, largest: float) -> Spec:
    """Mean change of accuracy by raising one axis (rows), upstream and by task (columns), in their data's order.

    Data: `changes` (change, column, value, text, pairs, against). `largest` is the greatest absolute change that the
    colours must tell.
    """
    bound = max(largest, 1e-6)
    tooltip = [
        alt.Tooltip("change:N", title="raising"),
        alt.Tooltip("column:N", title="accuracy"),
        alt.Tooltip("value:Q", title="mean change", format="+.4f"),
        alt.Tooltip("pairs:Q", title="pairs of cells"),
        alt.Tooltip("against:N", title="against upstream"),
    ]
    base = _grid("changes", "change", "column", tooltip)
    return _heat(base, style.theme, "value", (-bound, bound))


def conflict_axes_chart(style: Style) -> Spec:
    """The share of conflicts among pairs that differ on one axis only (rows), by task (columns).

    Data: `axes` (axis, task, share, text, conflicts, pairs), in the order of rows and columns.
    """
    tooltip = [
        alt.Tooltip("axis:N"),
        alt.Tooltip("task:N"),
        alt.Tooltip("conflicts:Q", format=",d"),
        alt.Tooltip("pairs:Q", title="of pairs", format=",d"),
        alt.Tooltip("share:Q", format=".1%"),
    ]
    return _heat(_grid("axes", "axis", "task", tooltip), style.theme, "share", (0.0, 1.0), falling=True)


def added_chart(style: Style) -> Spec:
    """Partial R^2 of one axis (rows) on each task (columns), given upstream accuracy.

    Data: `added` (axis, task, partial_r2, p_value, text, cells).
    """
    tooltip = [
        alt.Tooltip("axis:N"),
        alt.Tooltip("task:N"),
        alt.Tooltip("partial_r2:Q", title="partial R²", format=".3f"),
        alt.Tooltip("p_value:Q", title="p", format=".4f"),
        alt.Tooltip("cells:Q"),
    ]
    return _heat(_grid("added", "axis", "task", tooltip), style.theme, "partial_r2", (0.0, 1.0))


def correlations_chart(style: Style) -> Spec:
    """Rank correlation of every two tasks over the cells that have both, in their data's order.

    Data: `correlations` (task, other, spearman, low, high, text, cells), each pair both ways.
    """
    tooltip = [
        alt.Tooltip("task:N"),
        alt.Tooltip("other:N", title="and"),
        alt.Tooltip("spearman:Q", title="Spearman", format=".3f"),
        alt.Tooltip("low:Q", title="95 % from", format=".3f"),
        alt.Tooltip("high:Q", title="to", format=".3f"),
        alt.Tooltip("cells:Q"),
    ]
    return _heat(_grid("correlations", "task", "other", tooltip), style.theme, "spearman", (-1.0, 1.0))


def _grid(data: str, row: str, column: str, tooltip: Sequence[alt.Tooltip]) -> alt.Chart:
    side = {"labelLimit": LONGEST_NAME}
    return alt.Chart(alt.NamedData(data)).encode(
        x=alt.X(f"{column}:N", title=None, sort=None, axis=labels(orient="top", labelAngle=-45, **side)),
        y=alt.Y(f"{row}:N", title=None, sort=None, axis=labels(**side)),
        tooltip=list(tooltip),
    )


def _heat(base: alt.Chart, theme: Theme, field: str, domain: tuple[float, float], *, falling: bool = False) -> Spec:
    """Coloured cells, a colour for each end of a scale whose middle is 0, and the number in each."""
    low, high = domain
    rising = theme.falling if falling else theme.rising
    stops = {low: theme.falling, 0.0: theme.middle, high: rising} if low < 0 else {0.0: theme.middle, high: rising}
    scale = alt.Scale(domain=list(stops), range=list(stops.values()), interpolate="rgb")
    others = {value: _other_ink_from(theme, colour) for value, colour in stops.items() if value}
    beyond = " || ".join(
        f"datum.{field} {'<' if value < 0 else '>'} {value * part:.4g}" for value, part in others.items() if part < 1
    )
    ink = alt.condition(beyond, alt.value(_other(theme)), alt.value(theme.ink)) if beyond else alt.value(theme.ink)
    return layered(
        base.mark_rect(stroke=theme.middle).encode(color=alt.Color(f"{field}:Q", scale=scale, legend=None)),
        base.mark_text(fontSize=10).encode(text="text:N", color=ink),
        **STEP,
    )


def _other(theme: Theme) -> str:
    """What is read on colours that are too near to the theme's ink."""
    return "#ffffff" if _luminance(theme.ink) < 0.5 else "#101010"


def _other_ink_from(theme: Theme, colour: str) -> float:
    """From which part of the way from the middle to a colour the other ink is easier to read; 1 for nowhere."""
    for percent in range(100):
        mixed = _mixed(theme.middle, colour, percent / 100)
        if _contrast(mixed, _luminance(_other(theme))) > _contrast(mixed, _luminance(theme.ink)):
            return percent / 100
    return 1.0


def _mixed(one: str, other: str, part: float) -> float:
    """The luminance of a mixture of two colours."""
    return _weighted([a + (b - a) * part for a, b in zip(_channels(one), _channels(other), strict=True)])


def _luminance(colour: str) -> float:
    return _weighted(_channels(colour))


def _channels(colour: str) -> list[float]:
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def _weighted(channels: Sequence[float]) -> float:
    """Relative luminance of sRGB channels (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: float, other: float) -> float:
    """Contrast of two luminances (WCAG 2.2)."""
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)
