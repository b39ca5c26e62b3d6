"""The report's page in a real browser: what readers see, point at, choose, print, and that nothing leaves the page."""

import base64
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from orchestrator.frontier.hull import upper_hull
from orchestrator.reduce import reduce_study
from orchestrator.report import page_alone
from orchestrator.report.facts import Facts, gather
from orchestrator.report.panels import frontier_panels
from tests.orchestrator.browser import CHROMIUM
from tests.orchestrator.test_report import HOSTILE, measures_of, synthetic, with_linear

pytest.importorskip("playwright", reason="Playwright is not installed (it is in the extra `dev`)")
pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed (it is in the extra `dev`)")
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, sync_playwright

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.xdist_group("page in browser"),
]

TASKS = ("digits", "fashion", "mnist")
PLOT = 'figure[data-kind="frontier"]'


@dataclass
class Study:
    """A page on disk, and what it is about."""

    path: Path
    facts: Facts
    results: pl.DataFrame

    def value(self, cell_id: str, task: str, shots: int | None, column: str = "downstream") -> float:
        rows = self.facts.points.filter(cell_id=cell_id, task=task).filter(
            pl.col("shots").eq_missing(pl.lit(shots, pl.Int64))
        )
        return float(rows[column][0])


@dataclass
class Seen:
    """An open page with all that it complained of and asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def plot(self, task: str) -> Locator:
        return self.page.locator(f'{PLOT}[data-name="{task}"] .plot')

    def until_drawn(self) -> None:
        self.page.wait_for_function("document.documentElement.dataset.drawn === 'near'")
        self.page.evaluate("new Promise(go => requestAnimationFrame(() => requestAnimationFrame(go)))")

    def point_at(self, task: str) -> str:
        """Walks to the last cell in upstream order by keyboard; its id."""
        self.plot(task).scroll_into_view_if_needed()
        self.plot(task).focus()
        self.page.keyboard.press("End")
        return self.page.locator("#tip b").inner_text()

    def hull_of(self, task: str) -> list[str]:
        """The ids of the vertices that the page lists."""
        details = self.page.locator(f'{PLOT}[data-name="{task}"] details.vertices')
        details.scroll_into_view_if_needed()
        if details.get_attribute("open") is None:
            details.locator("summary").click()
        details.locator("li").first.wait_for()
        return details.locator("li code").all_inner_texts()


def write_study(folder: Path, results: pl.DataFrame, states: list[dict[str, Any]], title: str = "quickstart") -> Study:
    reduced = reduce_study(results, draws=20)
    facts = gather(results, reduced, states, measures_of(results))
    path = folder / "index.html"
    path.write_text(page_alone(facts, title=title, plan_summary={}, generated_by="Upshot"), encoding="utf-8")
    return Study(path, facts, results)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    results, states = synthetic(tasks=TASKS, shots=(5, 25))
    last = results.filter("last_layer")
    # A third protocol, with ridge's numbers of shots, that ranks the cells the other way round.
    other = last.with_columns(protocol=pl.lit("prototype"), downstream_accuracy=1 - pl.col("downstream_accuracy"))
    return write_study(tmp_path_factory.mktemp("page"), pl.concat([with_linear(results), other]), states)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Browser, study: Study) -> Iterator[Seen]:
    yield from opened_page(browser, study.path)


def opened_page(browser: Browser, path: Path, **options: Any) -> Iterator[Seen]:
    """The page until the test ends, which must leave no complaint and no request behind."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    seen = Seen(context.new_page())
    seen.page.set_default_timeout(20_000)
    seen.page.on("console", lambda message: seen.complaints.append(message.text))
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.on("dialog", lambda dialog: (seen.complaints.append(dialog.message), dialog.dismiss()))
    seen.page.on("request", lambda request: seen.requests.append(request.url))
    seen.page.goto(path.as_uri())
    seen.until_drawn()
    yield seen
    assert seen.complaints == []
    assert [url for url in seen.requests if not url.startswith(("file:", "data:"))] == []
    context.close()


def colours_of(plot: Locator) -> set[tuple[int, ...]]:
    """The colours of a plot's points, of which each has a good many pixels."""
    data = plot.locator("canvas").evaluate("canvas => canvas.toDataURL()")
    picture = Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGBA")
    found = picture.getcolors(maxcolors=1 << 24)
    assert found is not None
    return {colour[:3] for count, colour in found if count >= 6 and colour[3] > 150}


# --- reading ---------------------------------------------------------------------------------------------------------


def test_every_chart_is_drawn_when_it_comes_near_and_vega_not_before(opened: Seen) -> None:
    assert opened.page.evaluate("typeof vegaEmbed") == "undefined", "nothing of Vega's is read at first"
    figures = opened.page.locator("figure[data-kind]:visible")
    assert figures.count() > 15
    for i in range(figures.count()):
        figures.nth(i).scroll_into_view_if_needed()
        figures.nth(i).locator("canvas, svg.marks").first.wait_for()
    assert opened.page.evaluate("typeof vegaEmbed") == "function"
    assert opened.page.locator("text=no values at this").count() == 0


def test_pointing_at_a_cell_tells_of_it(opened: Seen, study: Study) -> None:
    plot = opened.plot("mnist")
    cell = opened.point_at("mnist")
    ring = opened.page.locator(f'{PLOT}[data-name="mnist"] .pointed circle').bounding_box()
    assert ring is not None
    opened.page.keyboard.press("Home")
    opened.page.mouse.move(ring["x"] + ring["width"] / 2 + 3, ring["y"] + ring["height"] / 2 + 2)
    told = opened.page.locator("#tip")
    assert told.locator("b").inner_text() == cell
    assert told.is_visible()
    text = told.inner_text()
    about = study.facts.cells.filter(cell_id=cell).row(0, named=True)
    assert about["text"] in text
    assert f"{about['params']:,}" in text
    assert f"{study.value(cell, 'mnist', 25):.4f}" in text
    assert f"{study.value(cell, 'mnist', 25, 'upstream'):.4f}" in text
    opened.page.mouse.move(5, 5)
    assert told.is_hidden()
    assert plot.locator(".pointed").count() == 0


def test_a_click_pins_a_cell_in_every_task(opened: Seen, study: Study) -> None:
    cell = opened.point_at("digits")
    ring = opened.plot("digits").locator(".pointed circle").bounding_box()
    assert ring is not None
    opened.page.mouse.click(ring["x"] + ring["width"] / 2, ring["y"] + ring["height"] / 2)
    for task in TASKS:
        assert opened.plot(task).locator(".pinned text").all_text_contents() == ["A"]
    row = opened.page.locator("#pins tbody tr")
    assert row.locator("code").all_inner_texts() == [cell]
    for task in TASKS:
        accuracy = study.value(cell, task, 25)
        others = study.facts.points.filter(task=task, shots=25)["downstream"]
        expected = f"{accuracy:.4f} ({(others > accuracy).sum() + 1}/{others.len()})"
        assert row.locator(f'td[data-name="{task}"]').inner_text() == expected
    opened.page.mouse.click(ring["x"] + ring["width"] / 2, ring["y"] + ring["height"] / 2)
    assert opened.page.locator("#pins").is_hidden()


def test_the_keyboard_walks_pins_and_clears(opened: Seen, study: Study) -> None:
    points = study.facts.points.filter(task="mnist", shots=25).sort("upstream", "downstream")
    order = points["cell_id"].to_list()
    last = opened.point_at("mnist")
    opened.page.keyboard.press("Enter")
    opened.page.keyboard.press("Home")
    said = opened.page.locator("#said")
    assert re.match(rf"1 of {len(order)}: upstream {points['upstream'][0]:.4f}, mnist ", said.inner_text())
    opened.page.keyboard.press("ArrowRight")
    second = opened.page.locator("#tip b").inner_text()
    assert points.filter(cell_id=second)["upstream"][0] == points["upstream"].sort()[1]
    opened.page.keyboard.press("Enter")
    assert said.inner_text().startswith("pinned as B, 2 of ")
    assert opened.page.locator("#pins tbody code").all_inner_texts() == [last, second]
    opened.page.locator('#pins [aria-label="Unpin A"]').click()
    assert opened.page.locator("#pins tbody code").all_inner_texts() == [second]
    opened.page.keyboard.press("Escape")
    assert opened.page.locator(".pinned").count() == 0
    assert opened.page.locator("#pins").is_hidden()
    assert said.inner_text() == "all cells unpinned"


def test_a_pinned_cell_leads_to_the_part_about_it(opened: Seen) -> None:
    cell = opened.point_at("mnist")
    opened.page.evaluate(
        "id => { document.querySelectorAll('[id^=cell-]').forEach(one => one.removeAttribute('id')); }"
    )
    opened.page.keyboard.press("Enter")
    assert opened.page.locator("#pins a").count() == 0
    opened.page.keyboard.press("Enter")
    opened.page.evaluate(
        "id => { document.querySelector('#cells').append(Object.assign(document.createElement('p'), {id})) }",
        f"cell-{cell}",
    )
    opened.page.keyboard.press("Enter")
    assert opened.page.locator("#pins a").get_attribute("href") == f"#cell-{cell}"


# --- choosing --------------------------------------------------------------------------------------------------------


def test_colours_are_by_any_axis_with_text_beside_them(opened: Seen) -> None:
    select, legend = opened.page.locator("#colour"), opened.page.locator("#plot-legend")
    assert select.locator("option").all_inner_texts() == ["family", "size", "fraction", "head_weight_decay"]
    assert legend.locator(".entry").all_inner_texts() == ["mixer", "resnet", "vit"]
    opened.plot("mnist").scroll_into_view_if_needed()
    opened.until_drawn()
    by_family = colours_of(opened.plot("mnist"))
    for colour in ((0, 114, 178), (213, 94, 0), (0, 158, 115)):  # those of the families in every figure
        assert min(np.abs(np.array(other) - colour).max() for other in by_family) <= 3
    select.select_option("fraction")
    opened.until_drawn()
    assert legend.locator(".entry").all_inner_texts() == ["0.1", "0.3"]
    assert by_family != colours_of(opened.plot("mnist"))
    shapes = legend.locator(".symbol").evaluate_all("all => all.map(one => one.className)")
    assert len(set(shapes[:2])) == 2, "shape beside colour"


def test_an_axis_with_many_values_has_a_scale(browser: Browser, tmp_path: Path) -> None:
    results, states = synthetic(tasks=("mnist",), shots=(5,))
    for i, state in enumerate(states):
        state["epochs"] = float(i + 1)
    epochs = pl.DataFrame({"cell_id": [s["cell_id"] for s in states], "epochs": [s["epochs"] for s in states]})
    results = results.drop("epochs").join(epochs, on="cell_id", how="left")
    for seen in opened_page(browser, write_study(tmp_path, results, states).path):
        seen.page.locator("#colour").select_option("epochs")
        assert re.fullmatch(r"epochs 1\s+36 \(middle: 19\)", seen.page.locator(".scalebar").inner_text())
        seen.plot("mnist").scroll_into_view_if_needed()
        seen.until_drawn()
        assert len(colours_of(seen.plot("mnist"))) > 7


def test_legend_and_filter_leave_only_what_matches(opened: Seen, study: Study) -> None:
    cells = study.facts.cells
    resnets, note = cells.filter(family="resnet").height, opened.page.locator("#plot-choice")
    opened.page.locator("#plot-legend .entry", has_text="resnet").click()
    assert f"{36 - resnets} of 36 cells match" in note.inner_text()
    assert opened.page.locator("#plot-legend .entry").nth(1).get_attribute("aria-pressed") == "false"
    ids = {opened.point_at("mnist")}
    for _ in range(40):
        opened.page.keyboard.press("ArrowLeft")
        ids.add(opened.page.locator("#tip b").inner_text())
    measured = set(study.facts.points.filter(task="mnist", shots=25)["cell_id"])
    assert ids == set(cells.filter(pl.col("family") != "resnet")["cell_id"]) & measured
    opened.page.locator("#plot-legend .entry", has_text="resnet").click()
    opened.page.locator("#filter").fill("vit fraction=0.1")
    assert f"{cells.filter(family='vit', fraction=0.1).height} of 36 cells match" in note.inner_text()
    opened.page.locator("#filter").fill("fraction=0")
    assert "0 of 36 cells match" in note.inner_text()
    opened.page.locator("#filter").fill(cells["cell_id"][0][:6])
    assert "1 of 36 cells match" in note.inner_text()
    opened.page.locator("#filter").fill("")
    assert note.inner_text() == ""


def expected_hull(study: Study, task: str, protocol: str, shots: int | None, layer: int | None) -> list[str]:
    """By Python, of the means over draws at the precision of the page."""
    rows = study.results.filter("last_checkpoint", task=task, protocol=protocol).filter(
        pl.col("shots").eq_missing(pl.lit(shots, pl.Int64)),
        pl.col("last_layer") if layer is None else pl.col("layer") == layer,
    )
    means = rows.group_by("cell_id").agg(pl.col("upstream_accuracy").first(), pl.col("downstream_accuracy").mean())
    means = means.drop_nulls().sort("cell_id")
    us_N, ds_N = ((means[name] * 60_000).round().to_numpy() / 60_000 for name in means.columns[1:])
    return [means["cell_id"][int(i)] for i in upper_hull(us_N, ds_N)]


def test_other_layers_and_protocols_have_the_hull_that_python_finds(opened: Seen, study: Study) -> None:
    note = opened.page.locator("#plot-choice")
    assert opened.page.locator("#layer option").all_inner_texts() == ["each cell's last", "0", "1", "2", "3", "4"]
    assert opened.page.locator(".law").count() > 0
    hulls = [(task, expected_hull(study, task, "ridge", 25, None)) for task in TASKS]
    assert all(opened.hull_of(task) == hull for task, hull in hulls)
    opened.page.locator("#layer").select_option("1")
    opened.until_drawn()
    assert "Law, interval and verdict belong to ridge at each cell's last layer" in note.inner_text()
    assert opened.page.locator(".law").count() == 0
    at_layer = [(task, expected_hull(study, task, "ridge", 25, 1)) for task in TASKS]
    assert at_layer != hulls
    assert all(opened.hull_of(task) == hull for task, hull in at_layer)
    opened.page.locator('#shots input[value="5"]').check(force=True)
    opened.until_drawn()
    assert opened.hull_of("mnist") == expected_hull(study, "mnist", "ridge", 5, 1)
    opened.page.locator("#layer").select_option("each cell's last")
    opened.page.locator("#protocol").select_option("linear")
    opened.until_drawn()
    assert opened.hull_of("mnist") == expected_hull(study, "mnist", "linear", None, None)
    opened.page.locator("#protocol").select_option("prototype")
    opened.until_drawn()
    assert opened.hull_of("mnist") == expected_hull(study, "mnist", "prototype", 5, None)
    opened.page.locator("#layer").select_option("1")
    opened.until_drawn()
    assert opened.page.locator(f"{PLOT} .note").all_inner_texts() == ["no values at this choice"] * len(TASKS)


def test_hulls_are_pythons_on_ties_and_lines(opened: Seen) -> None:
    """The page's function itself, on coarse grids where many points are equal or lie on one line."""
    source = files("orchestrator.report").joinpath("hull.js").read_text(encoding="utf-8")
    rng = np.random.default_rng(0)
    tables = [
        (rng.integers(0, steps, (2, number)) / steps).tolist() for steps in (3, 10, 1000) for number in (1, 2, 9, 60)
    ]
    tables.append([[i / 10 for i in range(11)], [0.1 + i * 0.07 for i in range(11)]])
    found = opened.page.evaluate(
        f"tables => {{ {source}; return tables.map(([us, ds]) => upperHull(us, ds, us.map((_, i) => i))) }}", tables
    )
    assert found == [upper_hull(np.array(us), np.array(ds)).tolist() for us, ds in tables]


def test_shots_change_points_and_answers(opened: Seen, study: Study) -> None:
    cell = opened.point_at("mnist")
    assert f"{study.value(cell, 'mnist', 25):.4f}" in opened.page.locator("#tip").inner_text()
    opened.page.locator('#shots input[value="5"]').check(force=True)
    opened.until_drawn()
    assert opened.point_at("mnist") == cell
    assert f"{study.value(cell, 'mnist', 5):.4f}" in opened.page.locator("#tip").inner_text()
    assert opened.page.locator('#answer [data-shots="25"]').first.is_hidden()
    assert opened.page.locator('#answer [data-shots="5"]').first.is_visible()
    notes = {panel.shots: panel.note for panel in frontier_panels(study.facts) if panel.name == "mnist"}
    assert opened.page.locator(f'{PLOT}[data-name="mnist"] .note').inner_text() == notes[5]
    links = opened.page.locator(f'{PLOT}[data-name="mnist"] li a')
    assert len(opened.hull_of("mnist")) == links.count(), "every vertex has a part of its own"


def test_the_law_can_be_shown_up_to_upstream_accuracy_one(opened: Seen) -> None:
    assert opened.page.locator(".law.beyond").count() == 0
    last = opened.plot("mnist").locator('svg text[text-anchor="middle"]')
    before = last.all_text_contents()
    opened.page.locator("#beyond").check()
    opened.until_drawn()
    assert opened.plot("mnist").locator(".law.beyond").count() == 1
    assert "1.0" in last.all_text_contents()
    assert "1.0" not in before


# --- appearance ------------------------------------------------------------------------------------------------------


def background(seen: Seen) -> tuple[int, ...]:
    rgb = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    return tuple(map(int, re.findall(r"\d+", rgb)))[:3]


def test_theme_follows_the_system_or_the_button_for_this_visit(browser: Browser, study: Study) -> None:
    for seen in opened_page(browser, study.path, color_scheme="dark"):
        button = seen.page.locator("#theme")
        assert button.inner_text() == "Theme: system"
        assert max(background(seen)) < 50
        seen.plot("mnist").scroll_into_view_if_needed()
        seen.until_drawn()
        dark = colours_of(seen.plot("mnist"))
        button.click()
        assert button.inner_text() == "Theme: light"
        assert min(background(seen)) > 240
        seen.until_drawn()
        assert colours_of(seen.plot("mnist")) != dark
        seen.page.reload()
        seen.until_drawn()
        assert min(background(seen)) > 240, "remembered"
        seen.page.locator("#theme").click()
        assert max(background(seen)) < 50
        later = seen.page.context.new_page()
        later.goto(study.path.as_uri())
        assert later.locator("#theme").inner_text() == "Theme: system", "forgotten by the next visit"


@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_no_width_scrolls_sideways(browser: Browser, study: Study, width: int) -> None:
    for seen in opened_page(browser, study.path, viewport={"width": width, "height": 844}):
        seen.point_at("mnist")
        seen.page.keyboard.press("Enter")
        tip = seen.page.locator("#tip").bounding_box()
        assert tip is not None
        assert tip["x"] >= 0
        assert tip["x"] + tip["width"] <= width
        for part in seen.page.locator("main > section").all():
            part.scroll_into_view_if_needed()
        seen.until_drawn()
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width


def test_long_names_do_not_widen_a_phones_page(browser: Browser, tmp_path: Path) -> None:
    results, states = synthetic(tasks=TASKS, shots=(5,))
    long = "a_family_of_models_with_a_very_long_name_that_has_no_place_to_break_"
    results = results.with_columns(cell_id=long + pl.col("cell_id"))
    study = write_study(tmp_path, results, [state | {"cell_id": long + state["cell_id"]} for state in states])
    for seen in opened_page(browser, study.path, viewport={"width": 390, "height": 844}):
        seen.page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_task_that_is_a_path_is_drawn_under_its_short_name(browser: Browser, tmp_path: Path) -> None:
    study = write_study(tmp_path, *synthetic(tasks=("mnist", "/a/pets"), shots=(5,)))
    for seen in opened_page(browser, study.path):
        assert len(seen.hull_of("pets")) > 1


def test_a_hull_that_is_unfolded_before_its_plot_is_drawn_is_listed(opened: Seen) -> None:
    opened.page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    for task in TASKS:
        opened.page.locator(f'{PLOT}[data-name="{task}"] .vertices li').first.wait_for()


def test_a_tap_pins(browser: Browser, study: Study) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    for seen in opened_page(browser, study.path, **phone):
        seen.point_at("digits")
        ring = seen.plot("digits").locator(".pointed circle").bounding_box()
        assert ring is not None
        seen.page.touchscreen.tap(ring["x"] + ring["width"] / 2 + 8, ring["y"] + ring["height"] / 2 + 6)
        seen.page.locator("#pins tbody tr").wait_for()
        assert seen.page.locator("#tip").is_visible()
        assert seen.page.locator("#pins tbody tr").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_stands_in_the_way_of_people_with_impairments(browser: Browser, study: Study, scheme: str) -> None:
    for seen in opened_page(browser, study.path, color_scheme=scheme):
        seen.point_at("mnist")
        seen.page.keyboard.press("Enter")
        seen.hull_of("digits")
        seen.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
        found = Axe().run(seen.page).response["violations"]
        grave = [
            (one["id"], [node["html"][:200] for node in one["nodes"]][:3])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert grave == []


def test_one_can_skip_to_the_content(opened: Seen) -> None:
    opened.page.keyboard.press("Tab")
    assert opened.page.evaluate("document.activeElement.textContent") == "Skip to content"
    assert opened.page.locator(".skip").bounding_box()["x"] >= 0  # type: ignore[index]  # it is to be seen
    opened.page.keyboard.press("Enter")
    assert opened.page.url.endswith("#content")
    for landmark in ("header", "nav[aria-label]", "main#content", "footer"):
        assert opened.page.locator(f"body {landmark}").count() == 1


# What the page has made of itself when it has heard the first of the events of printing; no task runs until the second,
# so that what is drawn by then is on paper.
PRINTED = """() => {
    let figures;
    addEventListener('beforeprint', () => {
        figures = [...document.querySelectorAll('figure[data-kind]')].filter(figure => figure.checkVisibility());
        window.folded = [...document.querySelectorAll('details:not([open])')].map(part => part.className);
    });
    addEventListener('afterprint', () => {
        window.printed = figures.map(figure => {
            const canvas = figure.querySelector('canvas'), sharp = 2.9 * figure.querySelector('.plot').clientWidth;
            const drawn = figure.querySelector('svg.marks path, svg.marks text') !== null;
            return [figure.dataset.kind, drawn || (canvas !== null && canvas.width >= sharp)];
        });
    });
}"""
OPEN = "[...document.querySelectorAll('details')].map(part => part.open)"


def test_all_of_it_is_printed(browser: Browser, study: Study, tmp_path: Path) -> None:
    for seen in opened_page(browser, study.path, color_scheme="dark"):
        # Straight after opening: most charts have not been near yet.
        seen.page.evaluate(PRINTED)
        pdf = seen.page.pdf(format="A4", print_background=True)
        (tmp_path / "page.pdf").write_bytes(pdf)
        printed = seen.page.evaluate("window.printed")
        assert len(printed) > 15
        assert [kind for kind, drawn in printed if not drawn] == []
        pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
        assert 4 <= pages <= 40
        seen.page.emulate_media(media="print")
        for hidden in ("#shots", "nav", "#plot-controls", "#theme", ".skip", ".choose"):
            assert seen.page.locator(hidden).first.is_hidden()


def test_folded_parts_are_unfolded_on_paper_alone(browser: Browser, study: Study) -> None:
    for seen in opened_page(browser, study.path):
        seen.page.locator("#fits summary:visible").first.click()
        seen.page.locator(".cell-section summary").first.click()
        before = seen.page.evaluate(OPEN)
        assert sum(before) == 2
        seen.page.evaluate(PRINTED)
        seen.page.pdf()
        folded, printed = seen.page.evaluate("[window.folded, window.printed]")
        cells = seen.page.locator(".cell-section").count()
        long = 1 + len(TASKS) * 2  # all cells, and the strongest conflicts by task and shots
        assert sorted(folded) == [*["cell-section"] * (cells - 1), *["long"] * long, *["vertices"] * len(TASKS)]
        by_task = [drawn for kind, drawn in printed if kind == "axis_tasks size"]
        assert by_task == [True] * len(TASKS), "charts in what was folded are drawn"
        assert seen.page.evaluate(OPEN) == before


# --- hostile names ---------------------------------------------------------------------------------------------------


def hostile(folder: Path, *, imported: bool) -> Study:
    """A study whose names are HTML: imported ones have an axis of such a name too, a study's own have tracebacks."""
    results, states = synthetic(tasks=("mnist",), shots=(5,))
    named = pl.when(pl.col("family") == "vit").then(pl.lit(HOSTILE + "family")).otherwise("family")
    results = results.with_columns(pl.format("{}{}", pl.lit(HOSTILE), "cell_id"), task=pl.lit(HOSTILE), family=named)
    if imported:
        return write_study(folder, results.rename({"head_weight_decay": HOSTILE + "axis"}), [], HOSTILE + "title")
    for state in states:
        state["cell_id"] = HOSTILE + state["cell_id"]
        state["family"] = state["family"].replace("vit", HOSTILE + "family")
        state["cause"] = state["cause"] and f"Traceback:\n{HOSTILE}cause"
    return write_study(folder, results, states, HOSTILE + "title")


@pytest.mark.parametrize("imported", [True, False], ids=["imported", "own"])
def test_hostile_names_are_text_and_run_nothing(browser: Browser, tmp_path: Path, imported: bool) -> None:
    study = hostile(tmp_path, imported=imported)
    for seen in opened_page(browser, study.path):
        plot = seen.page.locator(f"{PLOT} .plot")
        plot.scroll_into_view_if_needed()
        plot.focus()
        for key in ("End", "Enter"):
            seen.page.keyboard.press(key)
        for told in (seen.page.locator("#tip").inner_text(), seen.page.locator("#pins").inner_text()):
            assert HOSTILE in told
            assert (HOSTILE + "axis" in told) == imported
        assert HOSTILE + "family" in seen.page.locator("#plot-legend").inner_text()
        assert (HOSTILE + "axis" in seen.page.locator("#colour").inner_text()) == imported
        assert (HOSTILE + "cause" in seen.page.locator("#missing").inner_text()) != imported
        seen.page.locator("details.vertices summary").click()
        assert HOSTILE in seen.page.locator("details.vertices li").first.inner_text()
        for figure in seen.page.locator("figure[data-kind]:visible").all():
            figure.scroll_into_view_if_needed()
        seen.until_drawn()
        assert seen.page.locator("img, [onerror], [onclick]").count() == 0
        assert seen.page.title() == HOSTILE + "title: Upshot report"
