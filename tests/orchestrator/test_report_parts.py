"""Conflicts, layers, axes and measures in the report: numbers recomputed with numpy and scipy, and the switch used."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from orchestrator import charts, heat_charts
from orchestrator.charts import DARK, LIGHT, Multiple, Style, Theme
from orchestrator.conflicts import DIFFERING_SCHEMA, conflicts_by_axis, rank_interval, strongest_pairs
from orchestrator.effects import axis_effects, residuals
from orchestrator.effects.layers import LAST_LOST, best_layers, layer_drift, layer_means
from orchestrator.effects.measures import along, quantities_at_depths
from orchestrator.reduce import reduce_study
from orchestrator.report.axis_panels import axis_panels, spacing_of
from orchestrator.report.effect_panels import seriated
from orchestrator.report.facts import gather
from orchestrator.report.layer_panels import trend
from orchestrator.results import UPSTREAM_SCHEMA
from orchestrator.selection import IN_PART, select_cells
from tests.orchestrator.browser import CHROMIUM
from tests.orchestrator.test_report import Page, measures_of, synthetic, write

pytestmark = pytest.mark.xdist_group("report parts")  # what its tests share is made once

# --- the axes on which conflicting pairs differ


def grid_cells(seed: int, sized: bool) -> pl.DataFrame:
    """36 cells of a grid, a fifth of which are not there; the patch size is unset for a family."""
    rng = np.random.default_rng(seed)
    grid = itertools.product(("vit", "mixer", "resnet"), ("S", "B"), (8, 16), (0.1, 0.3, 1.0))
    rows = [
        {
            "task": "mnist",
            "shots": 5,
            "cell_id": f"c{i:02}",
            "family": family,
            "size": size,
            "fraction": fraction,
            "patch_size": None if family == "resnet" else patch,
            "epochs": patch if family == "resnet" else 0,
            "upstream": rng.integers(0, 12) / 12,
            "downstream": rng.integers(0, 12) / 12,
            "upstream_num_test": 60 if sized else None,
            "downstream_num_test": int(rng.choice([40, 80])) if sized else None,
        }
        for i, (family, size, patch, fraction) in enumerate(grid)
        if rng.random() < 0.8
    ]
    return pl.DataFrame(rows)


def is_conflict(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return bool((a["upstream"] - b["upstream"]) * (a["downstream"] - b["downstream"]) < 0)


def is_beyond(a: dict[str, Any], b: dict[str, Any], side: str) -> bool:
    errors = []
    for cell in (a, b):
        num = cell[f"{side}_num_test"]
        p = min(max(cell[side], 0.5 / (num + 1)), 1 - 0.5 / (num + 1))
        errors.append(p * (1 - p) / num)
    return bool(abs(a[side] - b[side]) > 1.96 * sum(errors) ** 0.5)


@pytest.mark.parametrize(("seed", "sized"), [(0, True), (1, True), (2, True), (3, False)])
def test_conflicts_by_axis_equal_a_look_at_every_pair(seed: int, sized: bool) -> None:
    cells = grid_cells(seed, sized)
    axes = ["family", "size", "fraction", "patch_size", "epochs"]
    expected: dict[str, dict[str, int]] = {axis: dict.fromkeys(list(DIFFERING_SCHEMA)[3:], 0) for axis in axes}
    for a, b in itertools.combinations(cells.rows(named=True), 2):
        counts = {"pairs": True, "conflicts": is_conflict(a, b)}
        counts["significant"] = (
            sized and is_conflict(a, b) and all(is_beyond(a, b, s) for s in ("upstream", "downstream"))
        )
        differ = {axis for axis in axes if a[axis] != b[axis]}
        if None in (a["patch_size"], b["patch_size"]) and "family" in differ:
            alone = differ - {"patch_size"} == {"family"}
        else:
            alone = len(differ) == 1
        for axis in axes:
            for name, value in counts.items():
                expected[axis][name] += value and axis in differ
                expected[axis][f"alone_{name}"] += value and alone and axis in differ
                expected[axis][f"all_{name}"] += value
    found = {row["axis"]: row for row in conflicts_by_axis(cells).rows(named=True)}
    assert set(found) == set(axes)
    for axis in axes:
        wanted = {name: value if sized or "significant" not in name else None for name, value in expected[axis].items()}
        assert {name: found[axis][name] for name in wanted} == wanted
    assert any(counts["alone_conflicts"] for counts in expected.values())


def test_strongest_pairs_are_significant_where_both_differences_are() -> None:
    cells = grid_cells(0, sized=True)
    of = {row["cell_id"]: row for row in cells.rows(named=True)}
    found = strongest_pairs(cells, 500)
    for row in found.rows(named=True):
        a, b = of[row["cell_id_upstream"]], of[row["cell_id_downstream"]]
        assert row["significant"] == all(is_beyond(a, b, side) for side in ("upstream", "downstream"))
    assert set(found["significant"]) == {True, False}
    assert strongest_pairs(grid_cells(0, sized=False), 5)["significant"].null_count() == 5


# --- rank correlations


@pytest.mark.parametrize(("rank", "num"), [(0.0, 10), (0.5, 36), (-0.93, 7), (0.2, 4_800)])
def test_the_interval_of_a_rank_correlation_is_that_of_bonett_and_wright(rank: float, num: int) -> None:
    half = stats.norm.ppf(0.975) * np.sqrt((1 + rank**2 / 2) / (num - 3))
    assert rank_interval(rank, num) == pytest.approx(
        (np.tanh(np.arctanh(rank) - half), np.tanh(np.arctanh(rank) + half))
    )


def test_a_perfect_order_of_few_cells_is_no_proof() -> None:
    low, high = rank_interval(1.0, 4)
    assert low is not None
    assert high is not None
    assert low < 0
    assert high == 1.0, "the interval holds what was measured"
    assert rank_interval(1.0, 3) == rank_interval(None, 9) == (None, None)


def test_tasks_that_are_alike_stand_together() -> None:
    rng = np.random.default_rng(0)
    groups = {name: i % 3 for i, name in enumerate("abcdefghijkl")}  # alphabetical order mixes the three
    bases = rng.normal(size=(3, 200))
    values = {name: bases[group] + 0.3 * rng.normal(size=200) for name, group in groups.items()}
    pairs = [
        {"task": a, "other": b, "spearman": float(stats.spearmanr(values[a], values[b]).statistic)}
        for a, b in itertools.combinations(groups, 2)
    ]
    order = seriated(pl.DataFrame(pairs))
    assert sorted(order) == sorted(groups)
    assert len([1 for _ in itertools.groupby(groups[name] for name in order)]) == 3


# --- what is beyond upstream accuracy


def selected(seed: int = 0, num: int = 60) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    us_N, fraction_N = rng.uniform(0.1, 0.9, num), rng.choice([0.1, 1.0], num)
    return pl.concat(
        pl.DataFrame(
            {
                "task": task,
                "shots": 5,
                "cell_id": [f"c{i:02}" for i in range(num)],
                "upstream": us_N,
                "downstream": np.clip(us_N**power + rng.normal(0, 0.05, num), 0.01, 0.99),
                "fraction": fraction_N,
            },
            schema_overrides={"shots": pl.Int64},
        )
        for task, power in (("mnist", 1.0), ("pets", 2.0))
    )


def logit(p_N: Any) -> Any:
    return np.log(p_N / (1 - p_N))


def test_residuals_are_those_of_a_cubic_in_logits() -> None:
    cells = selected()
    found = residuals(cells)
    for (task,), group in cells.group_by("task"):
        x, y = logit(group["upstream"].to_numpy()), logit(group["downstream"].to_numpy())
        expected = y - np.polyval(np.polyfit(x, y, 3), x)
        ours = dict(found.filter(task=task).select("cell_id", "residual").iter_rows())
        assert [ours[cell_id] for cell_id in group["cell_id"]] == pytest.approx(expected.tolist(), abs=1e-9)
        # The test of an axis starts from the same residuals.
        axis = axis_effects(cells, permutations=9).filter(task=task, axis="fraction").row(0, named=True)
        columns = np.stack([*(x**k for k in range(4)), np.log(group["fraction"].to_numpy())], axis=1)
        rest = y - columns @ np.linalg.lstsq(columns, y, rcond=None)[0]
        assert axis["partial_r2"] == pytest.approx(1 - (rest**2).sum() / (expected**2).sum())
    assert residuals(cells.group_by("task").head(6)).is_empty()


def test_measures_are_held_against_upstream_accuracy_and_what_is_beyond_it() -> None:
    cells = selected()
    rng = np.random.default_rng(1)
    ids = cells["cell_id"].unique().sort().to_list()
    known = {"step": 9, "last_checkpoint": True}
    norm = {cell_id: float(rng.normal()) for cell_id in ids}
    rank = {(cell_id, layer): float(rng.normal()) for cell_id in ids for layer in range(6)}
    rows: list[dict[str, Any]] = []
    for i, cell_id in enumerate(ids):
        rows.append({**known, "cell_id": cell_id, "quantity": "head_weight_norm", "value": norm[cell_id]})
        rows += [
            {**known, "cell_id": cell_id, "quantity": "effective_rank", "layer": layer, "value": rank[cell_id, layer]}
            for layer in range(6 if i % 2 else 3)
        ]
    measures = pl.DataFrame(rows, schema=UPSTREAM_SCHEMA)
    mean = residuals(cells).group_by("shots", "cell_id").agg(pl.col("residual").mean())
    upstream = cells.filter(task="mnist").select("cell_id", "upstream")
    found = along(quantities_at_depths(measures), upstream, mean, [5])
    sides = {"upstream": dict(upstream.iter_rows()), "residual": dict(mean.select("cell_id", "residual").iter_rows())}
    for row in found.rows(named=True):
        of_layers = {
            # Of 3 layers those at 0.2, 0.4, 0.6, 0.8, 1 are 0, 1, 1, 2, 2; of 6: 1, 2, 3, 4, 5.
            cell_id: rank[cell_id, ([1, 2, 3, 4, 5] if i % 2 else [0, 1, 1, 2, 2])[round(row["depth"] * 5) - 1]]
            for i, cell_id in enumerate(ids)
            if row["depth"] is not None
        }
        values = norm if row["depth"] is None else of_layers
        side = sides[row["against"]]
        expected = stats.spearmanr([values[c] for c in ids], [side[c] for c in ids]).statistic
        assert row["spearman"] == pytest.approx(expected)
        assert row["spearman_low"] < expected < row["spearman_high"]
    assert found.height == 2 * (1 + 5)


# --- layers


def layer_rows(values: Any) -> pl.DataFrame:
    """Results of cells x draws x layers; NaN is a draw without a value, which has a reason."""
    rows = [
        {
            "cell_id": f"c{cell}",
            "task": "mnist",
            "shots": 5,
            "draw": draw,
            "layer": layer,
            "num_layers": values.shape[2],
            "last_layer": layer == values.shape[2] - 1,
            "last_checkpoint": True,
            "protocol": "ridge",
            "family": "vit",
            "size": "S",
            "upstream_accuracy": 0.1 + 0.1 * cell,
            "downstream_accuracy": None if np.isnan(values[cell, draw, layer]) else float(values[cell, draw, layer]),
            "reason": "it broke" if np.isnan(values[cell, draw, layer]) else None,
        }
        for cell, draw, layer in np.ndindex(values.shape)
    ]
    return pl.DataFrame(rows)


def test_a_layer_whose_draws_partly_failed_does_not_count_and_is_told(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(0.2, 0.8, (6, 2, 3))
    values[0, :, 1] = [0.99, np.nan]  # over one draw it would be the best
    values[1, 1, 2] = np.nan  # without its last layer there is nothing to gain over
    results = layer_rows(values)
    best = best_layers(results, "ridge")
    assert best["cell_id"].to_list() == ["c0", "c2", "c3", "c4", "c5"]
    whole = values[0].mean(axis=0)
    assert best["layer"][0] == (0 if whole[0] > whole[2] else 2)
    means = layer_means(results, "ridge")
    assert means is not None
    assert {row["reason"]: row["rows"] for row in means.lost.rows(named=True)} == {
        "it broke": 2,
        IN_PART: 2,
        LAST_LOST: 4,
    }
    assert means.accuracies.filter(cell_id="c0")["layer"].to_list() == [0, 2]
    page = write(tmp_path, results, [], draws=5)
    shown = {row["layer"]: row for row in page.rows("layers", "mnist", 5, "layers")}
    assert {layer: row["cells"] for layer, row in shown.items()} == {0: 5, 1: 4, 2: 5}
    assert shown[1]["accuracy"] == pytest.approx(values[2:, :, 1].mean(), abs=6e-5)
    assert f"{IN_PART}: 2 rows; it broke: 2 rows; {LAST_LOST}: 4 rows." in page.text
    # The reducer leaves out the same last layers.
    assert set(select_cells(results).cells["cell_id"]) == {"c0", "c2", "c3", "c4", "c5"}


def test_gain_and_drift_have_the_intervals_of_scipy() -> None:
    rng = np.random.default_rng(0)
    results = layer_rows(rng.uniform(0.2, 0.8, (9, 2, 4)))
    best = best_layers(results, "ridge")
    (row,) = layer_drift(best).filter(pl.col("family").is_null()).rows(named=True)
    gain_N = best["gain"].to_numpy()
    low, high = stats.t.interval(0.95, 8, gain_N.mean(), stats.sem(gain_N))
    assert (row["gain_low"], row["gain_high"]) == pytest.approx((low, high), abs=2e-4)
    drift = stats.spearmanr(best["upstream"], best["depth"]).statistic
    assert (row["drift_low"], row["drift_high"]) == pytest.approx(rank_interval(float(drift), 9))
    (few,) = layer_drift(best.head(4)).filter(pl.col("family").is_null()).rows(named=True)
    assert few["gain_low"] is None


def test_the_trend_of_depth_goes_through_means_of_equally_many_cells() -> None:
    rng = np.random.default_rng(0)
    us_N = rng.permutation(50) / 50
    depth_N = rng.choice([0.25, 0.5, 0.75, 1.0], 50)
    found = trend(pl.DataFrame({"upstream": us_N, "depth": depth_N}))
    assert found["cells"].to_list() == [13, 13, 12, 12]
    first = np.argsort(us_N)[:13]
    low, high = stats.t.interval(0.95, 12, depth_N[first].mean(), stats.sem(depth_N[first]))
    row = found.row(0, named=True)
    assert (row["upstream"], row["depth"]) == pytest.approx((us_N[first].mean(), depth_N[first].mean()))
    assert (row["low"], row["high"]) == pytest.approx((low, min(1.0, high)), rel=5e-3)
    assert trend(pl.DataFrame({"upstream": us_N[:23], "depth": depth_N[:23]})).is_empty()


# --- axes


def many_sets() -> pl.DataFrame:
    """Two families, six settings of each, at three learning rates over two decades."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "cell_id": f"{family} {decay} {rate}",
            "family": family,
            "decay": decay,
            "rate": rate,
            "task": task,
            "upstream_accuracy": 0.3 + 0.05 * decay + 0.02 * np.log10(rate) + rng.normal(0, 0.01),
            "downstream_accuracy": 0.5 + 0.03 * decay + rng.normal(0, 0.02),
        }
        for family in ("vit", "mixer")
        for decay in range(6)
        for rate in (1e-5, 1e-4, 1e-3)
        for task in ("mnist", "pets")
    ]
    frame = pl.DataFrame(rows)
    return frame.with_columns(pl.col("upstream_accuracy").first().over("cell_id"))


def test_the_band_of_an_axis_is_the_interval_within_sets() -> None:
    results = many_sets()
    facts = gather(results, reduce_study(results, draws=5), [])
    panels = {(panel.kind, panel.name): panel for panel in axis_panels(facts)}
    values = {"upstream": "upstream_accuracy", "pets": "downstream_accuracy"}
    for kind, name in (("axis rate", "upstream"), ("axis_tasks rate", "pets")):
        means = panels[kind, name].tables["means"]
        of_vit = results.filter(family="vit", task="pets").sort("decay", "rate")
        values_SV = of_vit[values[name]].to_numpy().reshape(6, 3)
        within_SV = values_SV - values_SV.mean(axis=1, keepdims=True) + values_SV.mean()
        half_V = stats.t.ppf(0.975, 5) * within_SV.std(axis=0, ddof=1) * np.sqrt(3 / 2) / np.sqrt(6)
        found = means.filter(family="vit").sort("rank")
        assert found["value"].to_list() == ["1e-05", "0.0001", "0.001"]
        assert found["accuracy"].to_list() == pytest.approx(values_SV.mean(axis=0).tolist())
        assert found["low"].to_list() == pytest.approx((values_SV.mean(axis=0) - half_V).tolist(), abs=1e-4)
        assert found["high"].to_list() == pytest.approx((values_SV.mean(axis=0) + half_V).tolist(), abs=1e-4)


def test_numbers_that_span_a_decade_have_a_log_scale() -> None:
    results = many_sets().with_columns(
        epochs=pl.col("decay") + 5.0, dropout=pl.when(pl.col("decay") > 2).then(0.0).otherwise(pl.col("rate"))
    )
    facts = gather(results, reduce_study(results, draws=5), [])
    assert {axis: spacing_of(facts, axis) for axis in ("rate", "epochs", "dropout", "decay")} == {
        "rate": "log",
        "epochs": "linear",
        "dropout": "even",
        "decay": "linear",
    }


# --- colours


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_number_of_a_heat_map_can_be_read_on_its_colour(theme: Theme) -> None:
    rows = [
        {"task": f"t{i}", "other": "o", "spearman": value, "low": value, "high": value, "text": f"n{i}", "cells": 9}
        for i, value in enumerate(np.linspace(-1, 1, 41))
    ]
    multiple = Multiple(
        chart=heat_charts.correlations_chart(Style(theme=theme)), title="x", data={"correlations": rows}
    )
    svg = charts.render(charts.figure_spec([multiple], theme, columns=1, width=200, height=9)).svg
    fills = re.findall(r'<path [^>]*fill="([^"]+)" stroke="[^"]+"[^>]*>', svg)
    inks = re.findall(r'<text [^>]*fill="([^"]+)"[^>]*>n\d+</text>', svg)
    fills = [fill for fill in fills if fill not in ("none", "transparent")][-41:]
    assert len(fills) == len(inks) == 41
    contrasts = [contrast(luminance(fill), luminance(ink)) for fill, ink in zip(fills, inks, strict=True)]
    assert min(contrasts) > 3.9
    assert fills[0] != fills[20] != fills[40]


def luminance(colour: str) -> float:
    if colour == "white":
        colour = "#ffffff"
    if colour.startswith("#"):
        parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    else:
        parts = [int(part) for part in re.findall(r"\d+", colour)][:3]
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(a: float, b: float) -> float:
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


# --- the page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    results, states = synthetic(tasks=("mnist", "patches"), shots=(5, 25))
    return write(tmp_path_factory.mktemp("parts"), results, states, draws=5, measures=measures_of(results))


def test_the_page_shows_shares_by_task_and_by_axis(page: Page) -> None:
    results, _ = synthetic(tasks=("mnist", "patches"), shots=(5, 25))
    tasks = [task for task in reduce_study(results, draws=5)["tasks"] if task["shots"] == 25]
    for which, key in (("significant", "significant_conflicts"), ("all", "conflicts")):
        shown = {row["task"]: row["share"] for row in page.rows("conflicts", which, 25, "shares")}
        expected = {task["task"]: task[key] / (task["n"] * (task["n"] - 1) / 2) for task in tasks}
        assert shown == pytest.approx(expected, abs=6e-5)
        assert list(shown.values()) == sorted(shown.values(), reverse=True)
    table = pl.read_parquet(page.folder / "tables/conflict_axes.parquet").filter(shots=25, axis="fraction")
    by_axis = {row["task"]: row for row in page.rows("conflict_axes", "all", 25, "axes") if row["axis"] == "fraction"}
    assert by_axis["all tasks"]["conflicts"] == table["alone_conflicts"].sum()
    assert by_axis["all tasks"]["share"] == pytest.approx(
        table["alone_conflicts"].sum() / table["alone_pairs"].sum(), abs=6e-5
    )


def test_the_switch_shows_significant_conflicts_or_all(page: Page) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page()
        complaints: list[str] = []
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto((page.folder / "index.html").as_uri())

        def shown(which: str) -> list[bool]:
            found = tab.locator(f'#conflicts [data-conflicts="{which}"]')
            return [not found.nth(i).evaluate("part => part.hidden") for i in range(found.count())]

        assert all(shown("significant"))
        assert shown("all")
        assert not any(shown("all"))
        tab.locator("#which-conflicts input[value=significant]").focus()
        tab.keyboard.press("ArrowRight")
        assert all(shown("all"))
        assert not any(shown("significant"))
        figure = tab.locator('#conflicts figure[data-kind="conflicts"][data-name="all"]')
        figure.scroll_into_view_if_needed()
        figure.locator("svg.marks").wait_for(timeout=20_000)
        tab.keyboard.press("ArrowLeft")
        assert all(shown("significant"))
        assert complaints == []
        browser.close()


def test_without_known_noise_there_is_no_switch_and_all_conflicts_are_shown(tmp_path: Path) -> None:
    results = many_sets()
    page = write(tmp_path, results, [], draws=5)
    assert 'id="which-conflicts"' not in page.source
    assert "data-conflicts=" not in page.source
    assert "so all conflicts are shown" in page.text
    assert page.rows("conflicts", "all", None, "shares")


def test_every_part_begins_with_what_was_found(page: Page) -> None:
    for found in (
        r"There are no significant conflicts, 25 shots|[\d.]+ % of all pairs of cells are significant conflicts",
        "One cell for all 2 tasks at 25 shots",
        "Given upstream accuracy, .* adds information on",
        "The last layer is the best in",
        "1 of 1 quantities go along with upstream accuracy",
    ):
        assert re.search(found, page.text), found
