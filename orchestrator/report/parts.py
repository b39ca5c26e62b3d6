"""Parts that several sections of the page share. Pure."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from orchestrator.report.anchors import anchor_of, told_of
from orchestrator.report.facts import Facts
from orchestrator.report.markup import Markup, bar, element, escape, join
from orchestrator.report.panels import Panel, shots_text
from orchestrator.report.words import percent, si

# Charts as wide as they need, alone.
WIDE = ("conflicts", "conflict_axes", "changes", "added", "correlations", "gains", "along")
NUM_SYMBOLS = 7  # colours and shapes in the style sheet


def folded(summary: object, *content: object) -> Markup:
    """What is there when it is asked for, and on paper."""
    return element("details", element("summary", summary), *content)


def folded_on_paper(summary: object, *content: object) -> Markup:
    """What is there when it is asked for: it would fill many pages with numbers."""
    return element("details", element("summary", summary), *content, class_="long")


def chart_slots(panels: Sequence[Panel], *kinds: str) -> Markup:
    """A place for each chart of these kinds; the script fills it with the panel of the chosen shots."""
    slots = dict.fromkeys((panel.kind, panel.name) for panel in panels if panel.kind in kinds)
    figures = [
        element(
            "figure",
            element("figcaption", _heading(kind, name), element("p", class_="note")),
            # What scrolls must be reachable by keyboard.
            element("div", class_="plot", tabindex="0" if kind in WIDE else None),
            data_kind=kind,
            data_name=name,
        )
        for kind, name in slots
    ]
    return element("div", *figures, class_="wide" if set(kinds) & set(WIDE) else "charts")


def _heading(kind: str, name: str) -> Markup:
    if kind in WIDE:
        return Markup("")
    axis = kind.removeprefix("axis ")
    return element("h3", name if axis == kind else f"{axis}: {name}")


def per_shots(facts: Facts, make: Callable[[Facts, int | None], Markup]) -> Markup:
    """A part for each number of shots, of which the page shows the chosen one."""
    return join(element("div", make(facts, shots), data_shots=shots_key(shots)) for shots in facts.shots)


def findings(sentences: Sequence[str]) -> Markup:
    """What was found, a sentence each."""
    return element("ul", *(element("li", sentence) for sentence in sentences), class_="findings")


def legend(facts: Facts) -> Markup:
    """Families by colour, shape and name; the smallest and the largest model."""
    families = [
        element("span", element("i", class_=f"symbol shape{i % NUM_SYMBOLS} family{i % NUM_SYMBOLS}"), name)
        for i, name in enumerate(facts.families)
    ]
    sizes = []
    if facts.params is not None:
        small, large = (element("i", class_=f"symbol shape0 {size}") for size in ("small", "large"))
        sizes = [element("span", small, si(facts.params[0]), large, si(facts.params[1]), " parameters")]
    return element("p", *families, *sizes, class_="legend") if families or sizes else Markup("")


def tasks_at(facts: Facts, shots: int | None) -> list[dict[str, Any]]:
    """The reducer's tasks with this number of shots."""
    return [task for task in facts.tasks if task["shots"] == shots]


def cell_names(facts: Facts) -> Callable[[str], Markup]:
    """How a cell is named: its id with its axes under it, and a link where the page has a place for it."""
    names, told = dict(facts.cells.select("cell_id", "text").iter_rows()), told_of(facts)
    return lambda cell_id: element(
        "div", linked(cell_id, told), element("br"), element("small", names.get(cell_id, "")), class_="cell"
    )


def linked(cell_id: str, told: Collection[str], title: str | None = None, shown: str | None = None) -> Markup:
    """A cell's id or what is shown for it, to be hovered; a link to its section where it is one that is told of."""
    name = code(cell_id) if shown is None else escape(shown)
    if cell_id in told:
        return element("a", name, href=f"#{anchor_of(cell_id)}", title=title)
    return name if title is None else element("span", name, title=title)


def linking(sentence: str, words: str, link: Markup) -> Markup:
    """The sentence with a link in the place of words, where it has them."""
    before, found, after = sentence.partition(words)
    return join([before, link if found else "", after])


def code(text: str) -> Markup:
    """Text as it would be typed."""
    return element("code", text)


def share(part: int, whole: int) -> Markup:
    """`23 (4.4 %)` with a bar behind it."""
    return bar(part / whole, f"{part:,} ({percent(part / whole)})") if whole else bar(0.0, str(part))


def shots_key(shots: int | None) -> str:
    """How the page's script knows a number of shots."""
    return "none" if shots is None else str(shots)


def at(shots: int | None) -> str:
    """The end of a caption: `, 10 shots`, or nothing."""
    return f", {shots_text(shots)}" if shots is not None else ""


def empty(text: str) -> Markup:
    """A sentence in place of a section's content."""
    return element("p", text, class_="empty")
