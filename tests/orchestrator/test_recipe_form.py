"""The page's recipe for a chosen upstream accuracy, in a browser, against `find_recipe`."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from orchestrator.frontier import find_recipe
from orchestrator.reduce import reduce_study
from orchestrator.report import page_alone
from orchestrator.report.facts import gather
from tests.orchestrator.browser import CHROMIUM
from tests.orchestrator.test_reduce import row, table

HOSTILE = "<b>no'cell\"&"


def cells() -> list[tuple[str, float, float]]:
    rng = np.random.default_rng(4)
    us_N = rng.uniform(0.1, 0.8, 14).round(5)
    return [
        (f"{HOSTILE}{i}", us, 1 - 0.7 * (1 - us) ** 3 - rng.exponential(0.02)) for i, us in enumerate(us_N.tolist())
    ]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    path = tmp_path_factory.mktemp("form") / "index.html"
    results = table(*(row(name, us, ds) for name, us, ds in cells()))
    reduced = reduce_study(results, draws=10)
    facts = gather(results, reduced, [])
    path.write_text(page_alone(facts, title="form", plan_summary={}, generated_by="Upshot"), encoding="utf-8")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM)
        try:
            shown = browser.new_page()
            shown.goto(path.as_uri())
            yield shown
        finally:
            browser.close()


def chosen(page: Any, upstream: float) -> tuple[str, list[str], list[float]]:
    """The sentence, the cells and the exact numbers after the slider was moved."""
    slider = page.locator(".choose input").first
    slider.evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }", str(upstream)
    )
    mix = page.locator(".mix").first
    numbers = [float(value) for value in mix.locator("data").evaluate_all("all => all.map(one => one.value)")]
    return mix.inner_text(), mix.locator("code").all_inner_texts(), numbers


def test_the_page_mixes_as_the_reducer_does(page: Any) -> None:
    known = cells()
    us_N, ds_N = (np.array([cell[side] for cell in known]) for side in (1, 2))
    slider = page.locator(".choose input").first
    low, high = float(slider.get_attribute("min")), float(slider.get_attribute("max"))
    for part in (0.0, 0.21, 0.5, 0.77, 1.0):
        upstream = round(low + part * (high - low), 4)
        expected = find_recipe(us_N, ds_N, upstream)
        text, names, numbers = chosen(page, upstream)
        assert names == [known[expected.left][0], known[expected.right][0]]
        shares = [expected.p_left, 1 - expected.p_left]
        assert numbers == pytest.approx([*shares, expected.downstream, upstream], abs=1e-12)
        assert f"(p = {expected.p_left:.3f}) with " in text
        assert text.endswith(f"for {expected.downstream:.3f} as measured at {upstream:.3f} upstream.")


def test_on_a_vertex_one_cell_is_taken(page: Any) -> None:
    slider = page.locator(".choose input").first
    hull = json.loads(slider.get_attribute("data-hull"))
    slider.evaluate("input => { input.step = 'any'; }")
    text, names, numbers = chosen(page, hull[1][0])
    assert text.startswith("take <b>no'cell\"&")
    assert len(names) == 1
    assert numbers == pytest.approx([hull[1][1], hull[1][0]])


def test_the_slider_is_reached_and_moved_by_keyboard(page: Any) -> None:
    slider = page.locator(".choose input").first
    slider.focus()
    before = page.locator(".mix").first.inner_text()
    page.keyboard.press("Home")
    assert page.locator(".mix").first.inner_text() != before
    assert slider.get_attribute("aria-label") == "Upstream accuracy of a recipe for mnist"
