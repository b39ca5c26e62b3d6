"""The page: sections, data, style and scripts in one file that asks no host for anything."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from orchestrator.charts import DARK, LIGHT, Spec, Style, browser_script, page_spec
from orchestrator.report.facts import Facts
from orchestrator.report.figures import charts_of
from orchestrator.report.markup import Markup, element
from orchestrator.report.packing import pack
from orchestrator.report.panels import Panel
from orchestrator.report.plot_data import plot_data
from orchestrator.report.plots import PLOTTED
from orchestrator.report.sections import sections

HEIGHT = 190
SCRIPTS = (
    *("data.js", "hull.js", "theme.js", "colours.js", "plot.js"),
    *("pins.js", "pointer.js", "controls.js", "vega.js", "page.js", "conflicts.js", "recipe.js"),
)
CANVAS_FROM = 2_000  # points: SVG is sharper and can be read aloud, a canvas copes with more

# The browser itself then refuses every request; Vega compiles its expressions, hence unsafe-eval.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "img-src data:",
        "style-src 'unsafe-inline'",
        "script-src 'unsafe-inline' 'unsafe-eval'",
        "base-uri 'none'",
    )
)


def write_page(
    facts: Facts,
    panels: Sequence[Panel],
    *,
    title: str,
    plan: Mapping[str, Any],
    files: Sequence[str],
    generated_by: str,
    generated: str,
) -> str:
    """The whole HTML file."""
    parts = sections(facts, panels, plan, files)
    links = element(
        "nav", *(element("a", part.heading, href=f"#{part.anchor}") for part in parts), aria_label="Sections"
    )
    by = element("p", f"Written by {generated_by} on {generated}.", class_="by")
    theme = element("button", "Theme", type="button", id="theme", hidden="hidden")
    body = [
        element("a", "Skip to content", href="#content", class_="skip"),
        element("header", element("h1", title), by, theme, links),
        element(
            "main",
            _shots_control(facts),
            element("noscript", element("p", "The charts need JavaScript; figures/ has the same ones as pictures.")),
            *(element("section", element("h2", part.heading), part.body, id=part.anchor) for part in parts),
            id="content",
        ),
        element("footer", f"{title}. {generated_by}, {generated}."),
        *_scripts(facts, panels),
        element("script", Markup(_part("anchors.js"))),
    ]
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("title", f"{title}: Upshot report"),
        element("style", Markup(_part("page.css"))),
    ]
    page = element("html", element("head", *head), element("body", *body), lang="en")
    return f"<!doctype html>\n{page}\n"


def _part(name: str) -> str:
    """A file of the page that lies beside this module."""
    return files("orchestrator.report").joinpath(name).read_text(encoding="utf-8")


def default_shots(facts: Facts) -> int | None:
    """The largest number of shots, as in the paper's main figure."""
    return facts.shots[-1] if facts.shots else None


def _shots_control(facts: Facts) -> Markup:
    known = [shots for shots in facts.shots if shots is not None]
    if len(known) < 2:
        return Markup("")
    choices = []
    for shots in known:
        checked = "checked" if shots == default_shots(facts) else None
        radio = element("input", type="radio", name="shots", value=shots, checked=checked)
        choices.append(element("label", radio, str(shots)))
    return element(
        "fieldset", element("span", "Shots a class:"), *choices, id="shots", aria_label="Shots a class", hidden="hidden"
    )


def _scripts(facts: Facts, panels: Sequence[Panel]) -> list[Markup]:
    drawn = [panel for panel in panels if panel.kind != PLOTTED]
    about: dict[str, Any] = {"shots": default_shots(facts), "canvas_from": CANVAS_FROM}
    data = pack(drawn, _specs(facts, drawn), plot_data(facts, panels), **about)
    # A script of a type that browsers do not know is text: the page's own script runs it when it is needed.
    vega = [element("script", Markup(browser_script()), type="text/plain", id="vega")] if drawn else []
    holder = element("script", Markup(data), type="application/json", id="data")
    code = "\n".join(_part(name) for name in SCRIPTS)
    return [holder, *vega, element("script", Markup(f"(() => {{\n'use strict';\n{code}}})();"))]


def _specs(facts: Facts, panels: Sequence[Panel]) -> dict[str, dict[str, Spec]]:
    """Specifications by theme and kind."""
    specs = {}
    for name, theme in (("light", LIGHT), ("dark", DARK)):
        style = Style(theme=theme, families=facts.families, params=facts.params, cells=facts.cells.height)
        made = charts_of(facts, panels, style)
        specs[name] = {kind: page_spec(chart, theme, HEIGHT) for kind, chart in made.items()}
    return specs
