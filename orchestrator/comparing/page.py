"""The page of a comparison: one file without scripts that asks no host for anything. Pure."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import groupby

from orchestrator.charts import PAPER
from orchestrator.comparing.answer import Compared, Comparison, best_of, named, sentence
from orchestrator.comparing.difference import Difference
from orchestrator.report.markup import Column, Markup, element, join, table
from orchestrator.report.panels import shots_text
from orchestrator.report.parts import code
from orchestrator.report.words import count, fixed

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'"
STYLE = (
    ".charts{grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr))}.charts svg{width:100%;height:auto}"
    ".warning{border-left:4px solid var(--f1);padding-left:.75rem}"
)
# A picture's colours, which follow light and dark on the page.
COLOURS = {
    PAPER.ink: "--ink",
    PAPER.muted: "--ink",
    PAPER.grid: "--line",
    PAPER.band: "--muted",
    PAPER.families[0]: "--f0",
    PAPER.families[1]: "--f1",
}
NOTE = (
    "Each point is a cell; the lines are the upper hulls, the frontiers of both. Below, the solid line is the first "
    "frontier less the second, corrected for what samples of cells miss of a frontier, and the band holds that "
    "difference everywhere at once with 95 %; where the band leaves out 0 the higher one's colour lies behind it. The "
    "dotted line is the difference of the hulls as measured, which the study with more cells leads by that alone. "
    "Places that too few samples of either study's cells reach have no band."
)
HOW = (
    "A quarter of each study's cells is drawn without replacement, again and again, and how far the hulls of these "
    "samples lie below that of all cells says how far that one may lie below the frontier. Evaluation noise is in it "
    "where the sizes of the test sets are known. Cells must be a fair sample of what each study could have trained: a "
    "frontier that was tuned for a task is higher for that. Numbers over a region are means with their own 95 % "
    "interval; of tasks without any difference, one in twenty or fewer shows a region by chance. Saturation values are "
    "those of the reports of both, and their difference has an interval by the method of Zou and Donner (2008)."
)


def write_page(
    comparison: Comparison,
    pictures: Mapping[tuple[str, int | None], str],
    *,
    files: Sequence[str],
    generated_by: str,
    generated: str,
) -> str:
    """The whole HTML file.

    Args:
        comparison: what it shows.
        pictures: the chart of every task and number of shots as SVG.
        files: the paths, relative to the page, of tables and figures.
        generated_by: program and version.
        generated: the date.
    """
    title = " against ".join(side.name for side in comparison.sides)
    parts = {
        "The answer": _answer(comparison),
        "Frontiers": _frontiers(comparison, pictures),
        "Saturation and best cells": _values(comparison),
        "Only in one": _only(comparison),
        "Methods and files": join([element("p", HOW), _files(files)]),
    }
    anchors = {heading: heading.lower().replace(" ", "-") for heading in parts}
    links = [element("a", heading, href=f"#{anchor}") for heading, anchor in anchors.items()]
    sections = [element("section", element("h2", name), body, id=anchors[name]) for name, body in parts.items()]
    by = element("p", f"Written by {generated_by} on {generated}.", class_="by")
    body = [
        element("header", element("h1", title), by, element("nav", *links, aria_label="Sections")),
        element("main", *sections),
        element("footer", f"{title}. {generated_by}, {generated}."),
    ]
    page = element("html", _head(title), element("body", *body), lang="en")
    return f"<!doctype html>\n{page}\n"


def _head(title: str) -> Markup:
    style = files("orchestrator.report").joinpath("page.css").read_text(encoding="utf-8")
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("title", f"{title}: Upshot comparison"),
        element("style", Markup(style + STYLE)),
    )


def _answer(comparison: Comparison) -> Markup:
    a, b = comparison.sides
    numbers = [count(side.cells["cell_id"].n_unique(), "cell") for side in (a, b)]
    told = sum(map(_differs, comparison.tasks))
    paragraph = (
        f"{a.name} ({numbers[0]}) and {b.name} ({numbers[1]}) have {count(len(comparison.tasks), 'task')} in common, "
        f"counting each number of shots; a difference of the frontiers can be told on {told}."
    )
    warnings = [element("p", text, class_="warning") for text in comparison.warnings]
    names = (a.name, b.name)
    sentences = [
        element(
            "li",
            element("b", task.title),
            f": {sentence(task, names)}.",
            class_=None if _differs(task) else "unsure",
        )
        for task in comparison.tasks
    ]
    return join([element("p", paragraph), *warnings, element("ul", *sentences, class_="answers")])


def _differs(task: Compared) -> bool:
    """Whether one frontier lies higher somewhere."""
    return isinstance(task.difference, Difference) and bool(task.difference.regions)


def _frontiers(comparison: Comparison, pictures: Mapping[tuple[str, int | None], str]) -> Markup:
    """The charts; of several numbers of shots the largest one's first, and the others to be opened."""
    names = [side.name for side in comparison.sides]
    symbols = [element("span", element("i", class_=f"symbol shape{i} family{i}"), name) for i, name in enumerate(names)]
    tasks = sorted(comparison.tasks, key=lambda task: -(task.key[1] or 0))
    groups = [(shots, list(group)) for shots, group in groupby(tasks, key=lambda task: task.key[1])]
    shown = []
    for i, (shots, group) in enumerate(groups):
        figures = element("div", *(_figure(task, names, pictures[task.key]) for task in group), class_="charts")
        opened = "open" if i == 0 else None
        shown.append(figures if len(groups) == 1 else element("details", _summary(shots), figures, open=opened))
    return join([element("p", NOTE), element("p", *symbols, class_="legend"), *shown])


def _summary(shots: int | None) -> Markup:
    return element("summary", shots_text(shots) or "all images")


def _figure(task: Compared, names: Sequence[str], picture: str) -> Markup:
    said = sentence(task, names)
    caption = element("figcaption", element("h3", task.title), element("p", said, class_="note"))
    chart = element("div", _on_page(picture), role="img", aria_label=f"{task.title}: {said}")
    return element("figure", caption, chart)


def _on_page(picture: str) -> Markup:
    """A picture in the colours of the page."""
    picture = picture.replace('fill="white"', 'fill="none"', 1)
    for colour, name in COLOURS.items():
        picture = picture.replace(f'"{colour}"', f'"var({name})"')
    return Markup(picture)


def _values(comparison: Comparison) -> Markup:
    names = [side.name for side in comparison.sides]
    columns = [Column("task"), *(Column(f"saturation, {name}", "number") for name in names)]
    columns += [Column("difference", "number"), *(Column(f"best cell, {name}") for name in names)]
    columns += [Column(f"cells, {name}", "number") for name in names]
    rows = [
        [
            task.title,
            *(_value(value) for value in task.saturation),
            *(_best(task, i) for i in range(len(names))),
            *(cells.height for cells in task.cells),
        ]
        for task in comparison.tasks
    ]
    note = "A dash: the data do not identify the value, or not that of both."
    caption = "Saturation values with 95 % intervals, the first less the second, and the cells that are best downstream"
    return join([element("p", note), table(columns, rows, caption)])


def _value(found: tuple[float, float, float] | None) -> str:
    if found is None:
        return "–"
    value, low, high = (fixed(number, 3).replace("-", "−") for number in found)
    return f"{value} [{low}, {high}]"


def _best(task: Compared, side: int) -> Markup:
    best = best_of(task.cells[side])
    if best["cell_id"] is None:
        return Markup("–")
    where = f"{best['downstream']:.3f}, at {best['upstream']:.3f} upstream"
    return element("div", code(best["cell_id"]), element("br"), element("small", where), class_="cell")


def _only(comparison: Comparison) -> Markup:
    told = [
        element("p", f"Only in {side.name}, and left out: {named(keys)}.")
        for side, keys in zip(comparison.sides, comparison.only, strict=True)
        if keys
    ]
    return join(told) if told else element("p", "Both have the same tasks and numbers of shots.")


def _files(paths: Sequence[str]) -> Markup:
    listed_files = [element("li", element("a", path, href=path)) for path in paths]
    return join([element("h3", "Files"), element("ul", *listed_files, class_="files")])
