"""The report's page of a large study in Chromium: bytes, time to write, time until it answers, memory; and a rival.

The study is made up: 4,800 cells on 25 tasks with 4 numbers of shots and some layers. The rival is what the usual tools
give: the same points of one number of shots as 25 altair charts in one page, drawn by vega-embed on canvases.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import polars as pl
from playwright.sync_api import Browser, sync_playwright

from orchestrator.charts import browser_script
from orchestrator.reduce import reduce_study
from orchestrator.report import page_alone
from orchestrator.report.facts import Facts, gather
from tests.orchestrator.browser import CHROMIUM

SHOTS = (1, 5, 10, 25)
RUNS = 5

DRAWN = "document.documentElement.dataset.drawn"
# Two frames after all that was asked for is drawn, the page has painted and takes the next event.
ANSWERS = "new Promise(tell => requestAnimationFrame(() => requestAnimationFrame(() => tell(performance.now()))))"


def made_up(num_cells: int, num_tasks: int, layers: int, seed: int = 0) -> pl.DataFrame:
    """A results table with one draw, of cells that differ in family, size, fraction, decay and seed."""
    rng = np.random.default_rng(seed)
    cell, task, shots, layer = (axis.ravel() for axis in np.indices((num_cells, num_tasks, len(SHOTS), layers)))
    upstream = (1 - np.exp(-3 * rng.beta(2, 2, num_cells)))[cell]
    tops, alphas = np.linspace(0.55, 0.95, num_tasks)[task], np.linspace(1, 8, num_tasks)[task]
    law = tops * (1 - (1 - upstream) ** alphas) * (0.7 + 0.1 * shots) * (0.6 + 0.4 * (layer + 1) / layers)
    downstream = np.clip(law - rng.gamma(1.5, 0.02, cell.size), 0, 1)
    names = {
        "cell_id": [f"{i * 2654435761 % 2**32:08x}{i:08x}" for i in range(num_cells)],
        "family": [("vit", "mixer", "resnet")[i % 3] for i in range(num_cells)],
        "size": [("Ti", "S", "B", "L")[i // 3 % 4] for i in range(num_cells)],
    }
    numbers = np.arange(num_cells)
    return pl.DataFrame(
        {
            **{name: pl.Series(values)[cell] for name, values in names.items()},
            "fraction": np.array([0.1, 0.3, 1.0])[numbers // 12 % 3][cell],
            "head_weight_decay": np.array([0.03, 3.0])[numbers // 36 % 2][cell],
            "seed": (numbers // 72)[cell],
            "params": (10**7 * 4 ** (numbers // 3 % 4))[cell],
            "upstream_accuracy": upstream,
            "upstream_num_test": 50_000,
            "task": pl.Series([f"task{i:02d}" for i in range(num_tasks)])[task],
            "protocol": "ridge",
            "shots": np.array(SHOTS)[shots],
            "draw": 0,
            "layer": layer,
            "num_layers": layers,
            "last_layer": layer == layers - 1,
            "last_checkpoint": True,
            "downstream_accuracy": downstream.round(4),
            "downstream_num_test": 10_000,
        }
    )


def rival_page(facts: Facts) -> str:
    """The points of the largest number of shots as altair charts, a small multiple for each task."""
    about = facts.cells.select("cell_id", "text", "family", "params")
    points = facts.points.filter(shots=facts.shots[-1]).join(about, on="cell_id")
    charts = []
    for (task,), rows in points.group_by("task", maintain_order=True):
        chart = alt.Chart(alt.NamedData("points"), title=str(task), width=250, height=190).mark_point(filled=True)
        tooltip = ["cell_id:N", "text:N", "params:Q", "upstream:Q", "downstream:Q"]
        x, y = alt.X("upstream:Q").scale(zero=False), alt.Y("downstream:Q").scale(zero=False)
        spec = chart.encode(x=x, y=y, color="family:N", size="params:Q", tooltip=tooltip).to_dict()
        charts.append({**spec, "datasets": {"points": rows.drop("task", "shots").to_dicts()}})
    program = f"""
        const charts = {json.dumps(charts)};
        (async () => {{
          for (const chart of charts) {{
            const place = document.body.appendChild(document.createElement('div'));
            await vegaEmbed(place, chart, {{actions: false, renderer: 'canvas'}});
            {DRAWN} = 'near';
          }}
          {DRAWN} = 'all';
        }})();
    """
    return f"<!doctype html><meta charset=utf-8><body><script>{browser_script()}</script><script>{program}</script>"


@contextmanager
def opened(browser: Browser, path: Path) -> Iterator[tuple[Any, Any]]:
    """A page of its own, and the door to what Chromium counts."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    door = context.new_cdp_session(page)
    door.send("Performance.enable")
    page.goto(path.as_uri(), wait_until="commit")
    yield page, door
    context.close()


def measure(browser: Browser, path: Path, name: str, *, whole: str) -> float:
    """Prints and gives back the seconds until the page answers, `whole` being its state by then."""
    first, answers, heaps = [], [], []
    for _ in range(RUNS):
        with opened(browser, path) as (page, door):
            page.wait_for_function(f"{DRAWN}")
            first.append(page.evaluate("performance.now()") / 1000)
            page.wait_for_function(f"{DRAWN} === '{whole}'", timeout=300_000)
            answers.append(page.evaluate(ANSWERS) / 1000)
            door.send("HeapProfiler.collectGarbage")
            counted = {one["name"]: one["value"] for one in door.send("Performance.getMetrics")["metrics"]}
            heaps.append(counted["JSHeapUsedSize"] / 2**20)
    middle = statistics.median(answers)
    size, seen, heap = path.stat().st_size / 1e6, statistics.median(first), statistics.median(heaps)
    spread = f"{middle:.2f} s ({min(answers):.2f} to {max(answers):.2f})"
    print(f"{name}: {size:.2f} MB; charts after {seen:.2f} s, answers after {spread}, JavaScript heap {heap:.0f} MiB")
    return middle


def main() -> None:
    """Prints one line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=4800)
    parser.add_argument("--tasks", type=int, default=25)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--draws", type=int, default=20, help="bootstrap draws of the reduction, which is not timed")
    parser.add_argument("--keep", type=Path, help="a folder that the two pages are left in")
    options = parser.parse_args()
    results = made_up(options.cells, options.tasks, options.layers)
    reduced = reduce_study(results, draws=options.draws)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        began = time.perf_counter()
        facts = gather(results, reduced, [])
        gathered = time.perf_counter()
        page = page_alone(facts, title="made up", plan_summary={}, generated_by="upshot")
        (folder / "page.html").write_text(page, encoding="utf-8")
        written = time.perf_counter()
        print(f"facts in {gathered - began:.1f} s, page written in {written - gathered:.1f} s", flush=True)
        (folder / "rival.html").write_text(rival_page(facts), encoding="utf-8")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            ours = measure(browser, folder / "page.html", "upshot", whole="near")
            theirs = measure(browser, folder / "rival.html", "vega-embed, the same points of one choice", whole="all")
            browser.close()
        print(f"ratio {theirs / ours:.1f}")


if __name__ == "__main__":
    main()
