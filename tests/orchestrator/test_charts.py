"""The charts, drawn without a browser: what they show, in every format, with any amount of data."""

import io
import re
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from orchestrator import charts, effect_charts, heat_charts
from orchestrator.charts import DARK, LIGHT, PAPER, Multiple, Picture, Spec, Style
from orchestrator.report import figures

FAMILIES = ("mixer", "resnet", "vit")
STYLE = Style(theme=PAPER, families=FAMILIES, params=(1_000, 4_000_000), cells=6, legend=True)

POINTS = [
    {
        "cell": f"c{i}",
        "axes": "x",
        "family": f,
        "params": 10 ** (3 + i % 4),
        "upstream": 0.1 * i,
        "downstream": 0.15 * i,
    }
    for i, f in enumerate(FAMILIES * 2)
]
FRONTIER: dict[str, list[dict[str, Any]]] = {
    "points": POINTS,
    "hull": [{"upstream": 0.0, "downstream": 0.0}, {"upstream": 0.5, "downstream": 0.75}],
    "law": [{"upstream": u / 10, "downstream": 0.14 * u, "part": "fit"} for u in range(6)],
    "band": [{"value": 0.8, "low": 0.7, "high": 0.9, "text": "saturates"}],
}
LAYERS = [
    {
        "depth": (layer + 1) / 4,
        "accuracy": 0.5 + 0.1 * layer,
        "layer": layer,
        "num_layers": 4,
        "best": layer == 2,
        "series": f"{family} S",
        "family": family,
        "params": 22_000_000,
        "cells": 2,
    }
    for family in FAMILIES
    for layer in range(4)
]
SIZES = ["Ti", "S", "B", "L"]  # not in the order of the alphabet
LINES = [
    {"value": size, "rank": i, "accuracy": 0.2 + 0.1 * i, "line": 1, "family": "vit", "axes": ""}
    for i, size in enumerate(SIZES)
]
MEANS = [{**row, "lines": 1} for row in LINES]
CHANGES = [
    {"change": f"axis {i}", "column": column, "value": value, "text": f"{value:+.3f}", "pairs": 3, "against": "1 of 3"}
    for i, value in enumerate((-0.1, 0.0, 0.2))
    for column in ("upstream", "mnist")
]


def all_charts(style: Style) -> dict[str, tuple[Spec, dict[str, list[dict[str, Any]]]]]:
    return {
        "frontier": (charts.frontier_chart(style), FRONTIER),
        "layers": (charts.layers_chart(style), {"layers": LAYERS}),
        "axis": (effect_charts.axis_chart(style, "size", SIZES, "even"), {"lines": LINES, "means": MEANS, "bands": []}),
        "changes": (heat_charts.changes_chart(style, 0.2), {"changes": CHANGES}),
    }


def drawn(chart: Spec, data: dict[str, list[dict[str, Any]]], title: str = "a title", copies: int = 1) -> Picture:
    multiples = [Multiple(chart=chart, title=title, subtitle="not identifiable", data=data) for _ in range(copies)]
    return charts.render(charts.figure_spec(multiples, PAPER, columns=2, width=170, height=140))


def colours(png: bytes) -> set[tuple[int, int, int]]:
    found = Image.open(io.BytesIO(png)).convert("RGB").getcolors(maxcolors=1 << 24)
    assert found is not None
    return {colour for _, colour in found}


def rgb(text: str) -> tuple[int, int, int]:
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


@pytest.mark.parametrize("name", ["frontier", "layers", "axis", "changes"])
def test_every_chart_is_a_picture_in_three_formats_with_its_title_as_text(name: str) -> None:
    picture = drawn(*all_charts(STYLE)[name], title="mnist, 5 shots")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", picture.svg)
    assert "mnist, 5 shots" in texts
    assert "not identifiable" in texts
    assert picture.pdf.startswith(b"%PDF")
    assert b"/Font" in picture.pdf
    assert len(colours(picture.png)) > 20


@pytest.mark.parametrize("name", ["frontier", "axis", "changes"])
def test_png_has_twice_the_size_of_the_svg(name: str) -> None:
    picture = drawn(*all_charts(STYLE)[name])
    size = re.search(r'<svg[^>]* width="([\d.]+)" height="([\d.]+)"', picture.svg)
    assert size is not None
    width, height = Image.open(io.BytesIO(picture.png)).size
    assert width == pytest.approx(2 * float(size[1]), abs=2)
    assert height == pytest.approx(2 * float(size[2]), abs=2)


def test_each_family_has_its_colour_and_its_name() -> None:
    without_legend = Style(theme=PAPER, families=FAMILIES)
    seen = colours(drawn(*all_charts(without_legend)["axis"]).png)
    assert [rgb(colour) in seen for colour in PAPER.families[:3]] == [False, False, True]  # only vit has lines
    svg = drawn(*all_charts(STYLE)["frontier"]).svg
    assert all(f">{family}</text>" in svg for family in FAMILIES)


def test_each_family_has_its_shape() -> None:
    svg = drawn(*all_charts(STYLE)["frontier"]).svg
    shapes = {
        colour: {re.sub(r"[\d.,-]+", "", path) for path in re.findall(rf'd="([^"]*)" fill="{colour}"', svg)}
        for colour in PAPER.families[:3]
    }
    assert all(shapes.values())
    assert not shapes[PAPER.families[0]] & shapes[PAPER.families[1]]
    assert not shapes[PAPER.families[1]] & shapes[PAPER.families[2]]


def test_an_axis_line_runs_through_its_values_in_their_order() -> None:
    shuffled = {"lines": [LINES[i] for i in (2, 0, 3, 1)], "means": [MEANS[i] for i in (1, 3, 0, 2)], "bands": []}
    svg = drawn(effect_charts.axis_chart(STYLE, "size", SIZES, "even"), shuffled).svg
    paths = [re.findall(r"[ML]([\d.]+),", path) for path in re.findall(r'd="(M[^"]*)"', svg)]
    lines = [[float(x) for x in path] for path in paths if len(path) == len(SIZES)]
    assert len(lines) >= 2
    assert all(line == sorted(line) for line in lines)


def test_the_interval_is_drawn_only_where_there_is_one() -> None:
    chart = charts.frontier_chart(STYLE)
    assert rgb_in_svg(drawn(chart, FRONTIER).svg, PAPER.band)
    assert not rgb_in_svg(drawn(chart, {**FRONTIER, "band": []}).svg, PAPER.band)


def rgb_in_svg(svg: str, colour: str) -> bool:
    return f'fill="{colour}"' in svg


def test_law_is_dotted_where_it_is_not_identified() -> None:
    chart = charts.frontier_chart(STYLE)
    unsure = [{**row, "part": "unsure"} for row in FRONTIER["law"]]
    assert 'stroke-dasharray="2,3"' not in drawn(chart, FRONTIER).svg
    assert 'stroke-dasharray="2,3"' in drawn(chart, {**FRONTIER, "law": unsure}).svg


def test_panels_of_a_figure_keep_their_own_data() -> None:
    chart = heat_charts.changes_chart(STYLE, 0.2)
    panels = [
        Multiple(chart=chart, title=name, data={"changes": [{**CHANGES[0], "text": f"text of {name}"}]})
        for name in ("left", "right")
    ]
    svg = charts.render(charts.figure_spec(panels, PAPER, columns=2, width=100, height=100)).svg
    assert svg.count(">text of left<") == 1
    assert svg.count(">text of right<") == 1


@pytest.mark.parametrize(
    "points",
    [
        [],
        POINTS[:1],
        [{**point, "upstream": 0.5, "downstream": 0.5} for point in POINTS],
        [{**point, "family": None, "params": None} for point in POINTS],
    ],
    ids=["none", "one", "all equal", "no family and size"],
)
def test_a_frontier_chart_of_little_data_is_drawn(points: list[dict[str, Any]]) -> None:
    style = Style(theme=PAPER, families=() if points and points[0]["family"] is None else FAMILIES, legend=True)
    picture = drawn(charts.frontier_chart(style), {"points": points, "hull": [], "law": [], "band": []})
    assert "upstream accuracy" in picture.svg
    assert "NaN" not in picture.svg


def test_more_families_than_colours_are_drawn() -> None:
    families = tuple(f"family {i}" for i in range(12))
    points = [{**POINTS[0], "family": family, "upstream": 0.05 * i} for i, family in enumerate(families)]
    picture = drawn(charts.frontier_chart(Style(theme=PAPER, families=families)), {**FRONTIER, "points": points})
    assert len(colours(picture.png)) > 20


def test_light_and_dark_differ_in_colours_only() -> None:
    def without_colours(style: Style) -> str:
        specs = {name: charts.page_spec(chart, style.theme, 100) for name, (chart, _) in all_charts(style).items()}
        # From where a number needs the other ink is a matter of its colour too.
        return re.sub(r"#[0-9A-Fa-f]{6}|datum\.value [^']*", "#", str(specs))

    light, dark = (Style(theme=theme, families=FAMILIES) for theme in (LIGHT, DARK))
    assert without_colours(light) == without_colours(dark)
    assert charts.config(LIGHT) != charts.config(DARK)


def contrast(a: str, b: str) -> float:
    """Contrast ratio of WCAG 2.2."""

    def luminance(colour: str) -> float:
        parts = [c / 255 for c in rgb(colour)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("theme", "background"), [(LIGHT, "#ffffff"), (DARK, "#1c1f20")])
def test_text_is_readable_and_the_first_families_stand_out(theme: charts.Theme, background: str) -> None:
    assert contrast(theme.ink, background) > 7
    assert contrast(theme.muted, background) > 4.5
    assert all(contrast(colour, background) > 3 for colour in theme.families[:3])


def test_the_script_of_the_page_cannot_end_its_element() -> None:
    script = charts.browser_script()
    assert "vegaEmbed" in script
    assert "</script" not in script.lower()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), num=st.integers(0, 3000))
def test_thinning_leaves_a_point_of_the_family_near_every_point(seed: int, num: int) -> None:
    table = pl.DataFrame({"i": range(num)}, schema={"i": pl.Int64})
    table = table.with_columns(
        cell=pl.format("c{}", "i"),
        family=pl.lit(pl.Series(FAMILIES * 1000)[:num]),
        upstream=pl.col("i").hash(seed) % 10_000 / 10_000,
        downstream=(pl.col("i").hash(seed + 1) % 100) ** 2 / 10_000,
    )
    thin = figures.thinned(table)
    assert thin.height <= num
    assert num > figures.DENSE or thin.height == num
    near = table.join_where(
        thin.rename(lambda name: f"kept_{name}"),
        pl.col("family") == pl.col("kept_family"),
        (pl.col("upstream") - pl.col("kept_upstream")).abs() <= 1.001 / figures.GRID["upstream"],
        (pl.col("downstream") - pl.col("kept_downstream")).abs() <= 1.001 / figures.GRID["downstream"],
    )
    assert near["cell"].n_unique() == num
