"""Figures as people see them: drawn of nasty data, measured in a browser. Nothing overlaps, is cut, or is empty."""

import hashlib
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from orchestrator.charts import svg
from orchestrator.reduce import reduce_study
from orchestrator.report import write_report
from orchestrator.report.axis_panels import axis_panels
from orchestrator.report.conflict_panels import conflict_panels
from orchestrator.report.effect_panels import effect_panels
from orchestrator.report.facts import gather
from orchestrator.report.figures import figure_specs
from orchestrator.report.layer_panels import layer_panels
from orchestrator.report.measure_panels import measure_panels
from orchestrator.report.panels import frontier_panels
from orchestrator.report.short_tasks import with_short_tasks
from tests.orchestrator.browser import CHROMIUM
from tests.orchestrator.test_report import HOSTILE, measures_of, synthetic, with_linear

pytestmark = pytest.mark.xdist_group("figures")  # what its tests share is made once

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

LONG = tuple(f"/datasets/of/the/whole/group/images/2026-11/task_{i}/a_rather_long_name_of_a_folder" for i in range(3))
MANY = tuple(f"public_benchmark_number_{i}" for i in range(25))
# As wide as what the figures were laid out with; a machine without any such font would show them wider.
FONT = "text{font-family:'Liberation Sans','Arimo','Nimbus Sans','DejaVu Sans Condensed'!important}"
MEASURE = """() => {
  const shown = [...document.querySelectorAll('svg text')].filter(text =>
    text.textContent.trim() && getComputedStyle(text).opacity !== '0' && getComputedStyle(text).fill !== 'none');
  // A turned label's box is its own, in its own coordinates, moved by its matrix.
  const corners = text => {
    const box = text.getBBox(), at = text.getScreenCTM();
    const x = [box.x, box.x + box.width], y = [box.y + box.height * 0.15, box.y + box.height * 0.85];
    return [[0, 0], [1, 0], [1, 1], [0, 1]].map(([i, j]) =>
      [at.a * x[i] + at.c * y[j] + at.e, at.b * x[i] + at.d * y[j] + at.f]);
  };
  const frame = document.querySelector('svg').getBoundingClientRect();
  return {
    size: [frame.left, frame.top, frame.right, frame.bottom],
    texts: shown.map(text => ({text: text.textContent, corners: corners(text)})),
  };
}"""


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """By how many pixels two convex boxes overlap (separating axes); negative where they lie apart."""
    depth = np.inf
    for box in (a, b):
        for side in (box[1] - box[0], box[3] - box[0]):
            length = np.hypot(*side)
            normal = np.array([-side[1], side[0]]) / length if length else np.array([1.0, 0.0])
            (a_low, a_high), (b_low, b_high) = (((c @ normal).min(), (c @ normal).max()) for c in (a, b))
            depth = min(depth, min(a_high, b_high) - max(a_low, b_low))
    return float(depth)


def imported_families() -> tuple[pl.DataFrame, list[Any]]:
    """One shot, many families with long names, accuracies that crowd at 1 and large values of an axis."""
    rng = np.random.default_rng(0)
    us_N = 1 - rng.exponential(1e-4, 300)
    names = [f"family_with_a_long_name_{i % 19}" for i in range(300)]
    table = pl.DataFrame(
        {
            "cell_id": [f"m{i}" for i in range(300)],
            "task": HOSTILE,
            "shots": 1,
            "family": names,
            "images": pl.Series(rng.choice([1e7, 123_456_789.0, 3e9, 4.5e12], 300)),
            "params": rng.integers(10**6, 10**10, 300),
            "upstream_accuracy": us_N,
            "downstream_accuracy": np.clip(us_N - rng.exponential(1e-3, 300), 0, 1),
        }
    )
    return table, []


def many_cells() -> tuple[pl.DataFrame, list[Any]]:
    """4,800 cells with one number of shots."""
    rng = np.random.default_rng(1)
    us_N = rng.uniform(0.01, 0.8, 4800)
    about = {"cell_id": [hashlib.sha256(str(i).encode()).hexdigest()[:16] for i in range(4800)]}
    about |= {
        "family": [("vit", "mixer", "resnet")[i % 3] for i in range(4800)],
        "params": 10 ** rng.integers(6, 10, 4800),
    }
    frames = [
        pl.DataFrame(
            {
                **about,
                "task": task,
                "shots": 25,
                "upstream_accuracy": us_N,
                "downstream_accuracy": np.clip(us_N ** (1 + i / 9) - rng.exponential(0.05, 4800), 0, 1),
            }
        )
        for i, task in enumerate(MANY[:4])
    ]
    return pl.concat(frames), []


def one_cell() -> tuple[pl.DataFrame, list[Any]]:
    results, states = synthetic(tasks=LONG[:1], shots=(1,))
    return results.filter(cell_id=states[0]["cell_id"]), states[:1]


STUDIES = {
    "long paths": lambda: (
        with_linear(synthetic(tasks=LONG, shots=(1, 25))[0]),
        synthetic(tasks=LONG, shots=(1, 25))[1],
    ),
    "25 tasks": lambda: synthetic(tasks=MANY, shots=(1,)),
    "one cell": one_cell,
    "many families, one shot": imported_families,
    "4,800 cells": many_cells,
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module", params=STUDIES)
def drawn(request: pytest.FixtureRequest) -> dict[str, str]:
    """Every figure of a study as SVG."""
    results, states = STUDIES[request.param]()
    measures = measures_of(results) if "last_checkpoint" in results.columns and len(states) > 1 else None
    facts = with_short_tasks(gather(results, reduce_study(results, draws=2), states, measures))
    makers = (frontier_panels, conflict_panels, effect_panels, axis_panels, layer_panels, measure_panels)
    panels = [panel for make in makers for panel in make(facts)]
    assert {panel.kind for panel in panels} >= {"frontier"}
    return {name: svg(spec) for name, spec in figure_specs(facts, panels)}


def test_no_label_overlaps_another_or_is_cut(drawn: dict[str, str], browser: Any) -> None:
    page, faults = browser.new_page(), []
    for name, picture in drawn.items():
        page.set_content(f"<style>{FONT}</style><body style='margin:0'>{picture}</body>")
        seen = page.evaluate(MEASURE)
        left, top, right, bottom = seen["size"]
        boxes = [(text["text"], np.array(text["corners"])) for text in seen["texts"]]
        for i, (text, box) in enumerate(boxes):
            if not (
                left - 1 <= box[:, 0].min()
                and box[:, 0].max() <= right + 1
                and top - 1 <= box[:, 1].min()
                and box[:, 1].max() <= bottom + 1
            ):
                faults.append(f"{name}: {text!r} is cut")
            low, high = box.min(axis=0), box.max(axis=0)
            for other, theirs in boxes[i + 1 :]:
                if (
                    (low < theirs.max(axis=0)).all()
                    and (high > theirs.min(axis=0)).all()
                    and overlap(box, theirs) > 1.0
                ):
                    faults.append(f"{name}: {text!r} and {other!r} overlap by {overlap(box, theirs):.1f}")
    page.close()
    assert not faults, "\n".join(faults[:40])


def test_no_panel_is_empty(drawn: dict[str, str]) -> None:
    for name, picture in drawn.items():
        marks = dict.fromkeys(re.findall(r"(concat_\d+)_group", picture), 0)
        assert marks, name
        for panel, items in re.findall(
            r'class="mark-\w+ role-mark (concat_\d+)_\w*marks"[^>]*>(.*?)</g>', picture, re.DOTALL
        ):
            marks[panel] += len(re.findall(r"<(?:path|text)", items))
        assert all(marks.values()), (name, marks)


def test_texts_of_pictures_are_texts(tmp_path: Path) -> None:
    results, states = synthetic(tasks=("mnist", "/a/pets"), shots=(5,))
    reduced = reduce_study(results, draws=5)
    write_report(
        tmp_path, title="t", results=results, reduced=reduced, cells=states, plan_summary={}, generated_by="Upshot"
    )
    for path in (tmp_path / "figures").glob("*.svg"):
        num_texts, pdf = path.read_text().count("<text"), path.with_suffix(".pdf").read_bytes()
        assert num_texts
        assert b"/Font" in pdf
        streams = [inflated(stream) for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL)]
        assert sum(len(re.findall(rb"\bT[jJ]\b", stream)) for stream in streams) >= num_texts / 2
    assert ">pets, 5 shots<" in (tmp_path / "figures/frontier_5_shots.svg").read_text()
    assert "/a/pets" not in (tmp_path / "index.html").read_text()
    assert set(pl.read_parquet(tmp_path / "tables/results.parquet")["task"]) == {"mnist", "/a/pets"}


def inflated(stream: bytes) -> bytes:
    try:
        return zlib.decompress(stream)
    except zlib.error:
        return b""
