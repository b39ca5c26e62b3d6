"""The place of the page's own plots: what chooses, the legend, a plot for each task, the pinned cells. Pure."""

from collections.abc import Sequence

from orchestrator.report.facts import Facts
from orchestrator.report.markup import Markup, element, join
from orchestrator.report.panels import Panel
from orchestrator.report.parts import chart_slots

PLOTTED = "frontier"
"""The kind of panel that the page's own script draws."""
KEYS = (
    "Point at a cell to read its values; click or tap to pin it in all plots. With the keyboard: Tab to a plot, arrow "
    "keys to walk its cells in the order of upstream accuracy, Enter to pin, Escape to unpin all."
)


def plots(facts: Facts, panels: Sequence[Panel]) -> Markup:
    """Empty places that the script fills: without it there is nothing to choose."""
    lacking = facts.choices.left_out
    left = f"Not on this page, to keep it small: {'; '.join(lacking)}." if lacking else ""
    return join(
        [
            element("p", KEYS, class_="note", id="plot-keys"),
            element("div", class_="controls", id="plot-controls", role="group", aria_label="Plots", hidden="hidden"),
            element("div", class_="legend", id="plot-legend", role="group"),
            element("p", class_="note", id="plot-choice", aria_live="polite"),
            element("p", left, class_="note") if left else "",
            chart_slots(panels, PLOTTED),
            element("div", class_="pins", id="pins", role="region", aria_label="Pinned cells", hidden="hidden"),
        ]
    )
