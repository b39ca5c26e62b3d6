"""The page's recipe for a chosen upstream accuracy, in a browser, against `upshot reduce --at`."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pytest

from orchestrator.answer import recipe_text
from orchestrator.reduce import reduce_study
from orchestrator.report import page_alone
from orchestrator.report.facts import gather
from tests.orchestrator.browser import CHROMIUM
from tests.orchestrator.test_reduce import row, table

HOSTILE = "<b>no'cell\"&"
VERTEX = 0.82  # the upstream accuracy of the hull's last vertex, a step of the slider


def cells() -> list[tuple[str, float, float]]:
    rng = np.random.default_rng(4)
    us_N = np.append(rng.uniform(0.1, 0.8, 13).round(5), VERTEX)
    return [
        (f"{HOSTILE}{i}", us, 1 - 0.7 * (1 - us) ** 3 - rng.exponential(0.02)) for i, us in enumerate(us_N.tolist())
    ]


def results(**more: Any) -> pl.DataFrame:
    return table(*(row(name, us, ds, **more) for name, us, ds in cells()))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    path = tmp_path_factory.mktemp("form") / "index.html"
    # The second task's test set is of unknown size.
    tasks = pl.concat([results(), results(task="pets", downstream_num_test=None)], how="vertical_relaxed")
    facts = gather(tasks, reduce_study(tasks, draws=10), [])
    path.write_text(page_alone(facts, title="form", plan_summary={}, generated_by="Upshot"), encoding="utf-8")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM)
        try:
            shown = browser.new_page()
            shown.goto(path.as_uri())
            yield shown
        finally:
            browser.close()


def chosen(page: Any, upstream: float, task: str = "mnist") -> tuple[str, list[str], list[float]]:
    """The sentence, the cells and the exact numbers after the slider was moved."""
    form = page.locator(".recipes li", has_text=task)
    slider = form.locator(".choose input")
    slider.evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }", str(upstream)
    )
    mix = form.locator(".mix")
    numbers = [float(value) for value in mix.locator("data").evaluate_all("all => all.map(one => one.value)")]
    return mix.inner_text(), mix.locator("code").all_inner_texts(), numbers


def test_the_page_mixes_as_the_reducer_does(page: Any) -> None:
    slider = page.locator(".choose input").first
    low, high, step = (float(slider.get_attribute(name)) for name in ("min", "max", "step"))
    assert step == 0.01
    for part in (0.0, 0.21, 0.5, 0.77, 1.0):
        upstream = round(low + round(part * (high - low) / step) * step, 4)
        (task,) = reduce_study(results(), draws=10, at=upstream)["tasks"]
        recipe = task["recipe"]
        text, names, numbers = chosen(page, upstream)
        assert names == [cell["cell_id"] for cell in recipe["cells"]]
        shares = [cell["p"] for cell in recipe["cells"]]
        reached = [recipe["downstream"], recipe["upstream"]]
        assert numbers == pytest.approx([*(shares if len(names) > 1 else []), *reached], abs=1e-12)
        # From the first number that follows the cells on, it is the sentence of the command.
        assert text.partition(" for ")[2] == recipe_text(task).partition(" reach")[2].partition(" ")[2] + "."
        assert f"(truly {recipe['downstream_low']:.3f} to {recipe['downstream_high']:.3f}) at {upstream:.3f}" in text


def test_on_a_vertex_one_cell_is_taken(page: Any) -> None:
    text, names, numbers = chosen(page, VERTEX)
    name, us, ds = cells()[-1]
    assert text.startswith(f"take {name} for {ds:.3f} as measured (truly ")
    assert names == [name]
    assert numbers == pytest.approx([ds, us])


def test_without_test_sizes_what_was_measured_stands_alone(page: Any) -> None:
    text, _, numbers = chosen(page, 0.5, "pets")
    assert text.endswith(f"for {numbers[-2]:.3f} as measured at 0.500 upstream.")


def test_the_slider_is_reached_and_moved_by_keyboard(page: Any) -> None:
    slider = page.locator(".choose input").first
    slider.focus()
    before = page.locator(".mix").first.inner_text()
    page.keyboard.press("Home")
    assert page.locator(".mix").first.inner_text() != before
    assert slider.get_attribute("aria-label") == "Upstream accuracy of a recipe for mnist"
