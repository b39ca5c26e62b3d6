"""The report on studies of every kind: whole, partial, imported, hostile."""

import base64
import hashlib
import io
import itertools
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import polars as pl
import pytest
from PIL import Image
from scipy import stats

from models.errors import UserError
from orchestrator.effects import SCHEMAS, best_layers
from orchestrator.pairs import pairs_of
from orchestrator.reduce import reduce_study
from orchestrator.report import write_report
from orchestrator.report.anchors import anchor_of
from orchestrator.report.answer_section import HEADINGS
from orchestrator.report.facts import gather
from orchestrator.results import SCHEMA, UPSTREAM_SCHEMA
from orchestrator.selection import select_cells
from tests.orchestrator.timm_tables import top1

pytestmark = pytest.mark.xdist_group("report")  # what its tests share is made once

Study = tuple[pl.DataFrame, list[dict[str, Any]]]
Tasks = list[dict[str, Any]]

KINDS = (
    *("frontier", "conflicts", "conflict_axes", "changes", "correlations", "added", "best_of_k"),
    *("layers", "depths", "gains", "measures"),
)
TASKS = ("digits", "fashion", "hiragana", "kanji_radical", "landcover", "mnist", "noto_script", "patches")
SHOTS = (1, 5, 10, 25)
SIZES = {"pico": (2, 20_000), "nano": (3, 90_000), "micro": (4, 400_000)}
FAMILIES = {"vit": 1.0, "mixer": 1.3, "resnet": 2.2}


def synthetic(tasks: tuple[str, ...] = TASKS, shots: tuple[int, ...] = SHOTS, seed: int = 0) -> Study:
    """A study like the quickstart: 36 cells, two failed, one diverged, one running; the results and the states."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    states: list[dict[str, Any]] = []
    for family, size, fraction, decay in itertools.product(FAMILIES, SIZES, (0.1, 0.3), (0.03, 3.0)):
        cell_id = hashlib.sha256(f"{family} {size} {fraction} {decay}".encode()).hexdigest()[:16]
        axes = {
            "family": family,
            "size": size,
            "fraction": fraction,
            "classes": 1.0,
            "epochs": 3.0,
            "patch_size": None if family == "resnet" else 8,
            "learning_rate": 2e-3,
            "head_weight_decay": decay,
            "seed": 0,
        }
        status, cause = "done", None
        if (family, size, fraction) == ("resnet", "micro", 0.3) and decay == 3.0:
            status, cause = "failed", "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
        if (family, size, fraction, decay) == ("mixer", "micro", 0.3, 0.03):
            status = "diverged"
        if (family, size, fraction, decay) == ("vit", "micro", 0.3, 3.0):
            status = "running"
        states.append(
            {
                "cell_id": cell_id,
                **axes,
                "dataset": "icons",
                "status": status,
                "cause": cause,
                "train": status,
                "evaluate": "done",
                "attempts": 3 if status == "failed" else 2,
                "seconds": float(rng.uniform(10, 90)),
                "checkpoints": [50, 100],
                "missing_evaluations": 0,
            }
        )
        if status in ("done", "diverged"):
            rows += _rows(cell_id, axes, tasks, shots, rng, diverged=status == "diverged")
    return pl.DataFrame(rows, infer_schema_length=None), states


def _rows(
    cell_id: str,
    axes: dict[str, Any],
    tasks: tuple[str, ...],
    shots: tuple[int, ...],
    rng: np.random.Generator,
    *,
    diverged: bool,
) -> list[dict[str, Any]]:
    depth, params = SIZES[axes["size"]]
    depth = 5 if axes["family"] == "resnet" else depth
    strength = FAMILIES[axes["family"]] * (params / 20_000) ** 0.45 * axes["fraction"] ** 0.3
    upstream = 1 - 1 / (1 + 0.15 * strength * (0.9 if axes["head_weight_decay"] > 1 else 1.0))
    rows = []
    for step, task, shot, draw, layer in itertools.product((50, 100), tasks, shots, range(3), range(depth + 1)):
        where = tasks.index(task)
        end, slope = 1 - 0.04 * (where + 1) / shot**0.3, 2.0 + 0.8 * where
        error = (1 - end) + 0.6 / shot**0.2 * (1 - upstream) ** slope
        error += 0.05 * abs((layer + 1) / (depth + 1) - (0.75 if where % 2 else 1.0)) + 0.03 * (step == 50)
        accuracy = float(np.clip(1 - error + rng.normal(0, 0.012), 0, 1))
        rows.append(
            {
                "cell_id": cell_id,
                **axes,
                "params": params,
                "flops": params * 6.0 * 128 * step,
                "step": step,
                "examples_seen": step * 128,
                "last_checkpoint": step == 100,
                "upstream_accuracy": None if diverged else upstream - 0.05 * (step == 50),
                "upstream_num_test": 4000,
                "task": task,
                "protocol": "ridge",
                "shots": shot,
                "draw": draw,
                "layer": layer,
                "num_layers": depth + 1,
                "last_layer": layer == depth,
                "downstream_accuracy": None if diverged else accuracy,
                "downstream_num_test": 2000,
                "method": "ridge on frozen features, lambda by leave-one-out",
                "reason": "training diverged at step 40" if diverged else None,
            }
        )
    return rows


VOID = {"meta", "br", "input", "link", "img", "hr", "source"}
CODE = {"script", "style"}


@dataclass
class Page(HTMLParser):
    """A report's page as a browser reads it: every tag closed, texts unescaped."""

    folder: Path
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    code: list[str] = field(default_factory=list)
    stack: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.source = (self.folder / "index.html").read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.stack, "elements are open at the end"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.code if self.stack and self.stack[-1] in CODE else self.texts).append(data)

    @cached_property
    def text(self) -> str:
        return "".join(self.texts)

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the page's script draws."""
        scripts = iter(self.code)
        inside = [next(scripts) for tag, _ in self.tags if tag in CODE]
        kinds = [attributes.get("type") for tag, attributes in self.tags if tag in CODE]
        data: dict[str, Any] = json.loads(inside[kinds.index("application/json")])
        return data

    def rows(self, kind: str, name: str, shots: int | None, table: str) -> list[dict[str, Any]]:
        """One panel's data, unpacked without the page's script."""
        if kind == "frontier":
            return self._plotted(name, shots, table)
        panels = [p for p in self.data["panels"] if (p["kind"], p["name"], p["shots"]) == (kind, name, shots)]
        assert len(panels) == 1
        columns = {key: self._column(number) for key, number in panels[0]["tables"][table].items()}
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def _plotted(self, task: str, shots: int | None, table: str) -> list[dict[str, Any]]:
        """The points of a task at last layers, or the reducer's law or interval."""
        plots = self.data["plots"]
        if table == "points":
            choice = next(one for one in plots["choices"] if (one["shots"], one["layer"]) == (shots, None))
            place = choice["tasks"].index(plots["tasks"].index(task))
            up = self._fractions(plots["upstreams"][choice["upstreams"][place]])
            num = len(plots["cells"]["ids"])
            down = self._fractions(choice["values"])[place * num : (place + 1) * num]
            columns = zip(plots["cells"]["ids"], up, down, strict=True)
            return [dict(zip(("cell", "upstream", "downstream"), row, strict=True)) for row in columns]
        (answer,) = (one for one in plots["answers"] if (one["task"], one["shots"]) == (task, shots))
        if table == "band":
            return [dict(zip(("value", "low", "high"), answer["band"], strict=True))] if answer["band"] else []
        return [
            {"part": part, "upstream": up, "downstream": down}
            for part, curve in answer["law"].items()
            for up, down in zip(*curve, strict=True)
        ]

    def _fractions(self, packed: str) -> list[float | None]:
        wholes = np.frombuffer(base64.b64decode(packed), dtype="<u2").tolist()
        return [None if whole == 65_535 else whole / self.data["plots"]["scale"] for whole in wholes]

    def _column(self, number: int) -> list[Any]:
        packed = self.data["columns"][number]
        if isinstance(packed, list):
            return packed
        if "n" in packed:
            return [None if value is None else value / self.data["scale"] for value in packed["n"]]
        return [packed["same"]] * packed["len"]


def write(
    folder: Path,
    results: pl.DataFrame,
    states: list[dict[str, Any]],
    title: str = "quickstart",
    draws: int = 50,
    protocol: str | None = None,
    measures: pl.DataFrame | None = None,
) -> Page:
    reduced = reduce_study(results, protocol=protocol, draws=draws) if results.height else {"tasks": []}
    write_report(
        folder,
        title=title,
        results=results,
        reduced=reduced,
        cells=states,
        plan_summary={"gpu_hours": 1.25, "cpu_hours": 0.0, "sbatch_calls": 3},
        generated_by="Upshot 0.1.0",
        generated="2026-11-23",
        measures=measures,
    )
    return Page(folder)


@pytest.fixture(scope="module")
def study() -> Study:
    return synthetic(shots=(5, 25))


@pytest.fixture(scope="module")
def tasks(study: Study) -> Tasks:
    found: Tasks = reduce_study(study[0], draws=50)["tasks"]
    return found


@pytest.fixture(scope="module")
def page(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return write(tmp_path_factory.mktemp("report"), *study)


# --- a whole study -------------------------------------------------------------------------------------------------


def test_names_every_cell_and_every_verdict(page: Page, study: Study, tasks: Tasks) -> None:
    for state in study[1]:
        assert state["cell_id"] in page.text
    for task in tasks:
        assert task["verdict"] in page.text
    for task in tasks:
        answer = page.text.partition(f"At {task['shots']} shots no task of 8 says where")[2].partition("At ")[0]
        group = answer.partition(f"Not identifiable: {HEADINGS[task['reason']]}")[2].partition("Not identifiable")[0]
        assert f"{task['task']}: best cell " in group


def test_an_axis_of_names_or_of_truths_is_shown_like_any_other(tmp_path: Path) -> None:
    results, states = synthetic(tasks=TASKS[:1], shots=(5,))
    larger = pl.col("fraction") > 0.2
    named = results.with_columns(
        schedule=pl.when(larger).then(pl.lit("rsqrt")).otherwise(pl.lit("cosine")), flip=larger, fraction=1.0
    )
    for state in states:
        larger_one = state["fraction"] > 0.2
        state |= {"schedule": "rsqrt" if larger_one else "cosine", "flip": larger_one, "fraction": 1.0}
    shown = write(tmp_path, named, states, draws=10).source
    assert "schedule" in shown
    assert "rsqrt" in shown
    assert "flip" in shown


def test_headline_counts_the_study(page: Page) -> None:
    for fact in (
        "36 cells of 3 families (mixer, resnet and vit) over size, fraction and head_weight_decay.",
        "33 done, 1 diverged, 1 failed and 1 running.",
        "From 20 k to 400 k parameters",
        "Judged on 8 tasks with 5 and 25 images a class, 3 draws each.",
    ):
        assert fact in page.text


def test_points_are_the_means_of_last_layer_and_checkpoint(page: Page, study: Study) -> None:
    raw = study[0].filter("last_checkpoint", "last_layer", pl.col("downstream_accuracy").is_not_null())
    for task, shots in (("mnist", 5), ("patches", 25)):
        expected = {
            cell_id: group["downstream_accuracy"].mean()
            for (cell_id,), group in raw.filter(task=task, shots=shots).group_by("cell_id")
        }
        shown = {
            row["cell"]: row["downstream"]
            for row in page.rows("frontier", task, shots, "points")
            if row["downstream"] is not None
        }
        assert shown == pytest.approx(expected, abs=6e-5)


def test_law_passes_through_the_saturation_value_at_upstream_one(tmp_path: Path) -> None:
    results = on_a_law()
    page, (task,) = write(tmp_path, results, []), reduce_study(results, draws=50)["tasks"]
    assert task["identifiable"]
    law = page.rows("frontier", task["task"], task["shots"], "law")
    end = max(law, key=lambda row: row["upstream"])
    assert (end["upstream"], end["part"]) == (1.0, "beyond")
    assert end["downstream"] == pytest.approx(1 - task["fits"]["hull"]["e_ir"], abs=1e-4)
    (band,) = page.rows("frontier", task["task"], task["shots"], "band")
    assert band["low"] <= band["value"] <= band["high"]
    assert band["low"] == pytest.approx(1 - task["fits"]["hull"]["e_ir_high"], abs=1e-4)
    assert f"{1 - task['fits']['hull']['e_ir']:.3f}" in page.text


def on_a_law() -> pl.DataFrame:
    """An imported table of 200 cells whose frontier is the law."""
    rng = np.random.default_rng(0)
    us_N = rng.uniform(0.1, 0.9, 200)
    lost_N = rng.exponential(0.005, 200)
    return pl.DataFrame(
        {
            "cell_id": [f"m{i}" for i in range(200)],
            "task": "real",
            "upstream_accuracy": us_N,
            "downstream_accuracy": 1 - (0.6 * (1 - us_N) ** 4 + 0.2) - lost_N,
        }
    )


def test_fits_that_the_data_do_not_identify_have_no_number(page: Page, tasks: Tasks) -> None:
    section = page.text.partition("Fits and verdicts")[2].partition("What predicts best")[0]
    for task in tasks:
        for fit in task["fits"].values():
            value = f"{1 - fit['e_ir']:.3f} ["
            assert fit["verdict"] in section
            assert value in section or not fit["identifiable"]
    numbers = {f"{1 - task['fits']['hull']['e_ir']:.3f} [" for task in tasks}
    sure = {f"{1 - f['e_ir']:.3f} [" for task in tasks for f in task["fits"].values() if f["identifiable"]}
    assert not any(number in section for number in numbers - sure)


def test_the_report_says_what_predicts_best_and_which_cell_to_take(page: Page, tasks: Tasks) -> None:
    section = page.text.partition("What predicts best")[2].partition("Conflicts")[0]
    assert "Best on all cells beyond, by number of tasks and shots: " in section
    for task in tasks:
        assert f"{min(filter(None, task['held_out']['rmse'].values())):.4f}" in section
        recipe = task["recipe"]
        taken = f"take {recipe['cells'][0]['cell_id']} for {recipe['downstream']:.3f} as measured ("
        assert f"{task['task']}: {taken}" in page.text


def test_degenerate_laws_and_too_few_points_win_nothing(tmp_path: Path) -> None:
    results = imported()[0].filter(task="imagenet-a")
    page = write(tmp_path, results, [], draws=5)
    (task,) = reduce_study(results, draws=5)["tasks"]
    held = task["held_out"]
    assert held["degenerate"] == ["hull"]
    assert held["frontier"]["num_points"] < 3
    section = page.text.partition("What predicts best")[2].partition("Conflicts")[0]
    assert f"imagenet-aline of logitscells({held['rmse']['hull']:.4f})" in section
    assert f"imagenet-a–vertices({held['frontier']['rmse']['hull']:.4f})" in section


def test_an_unidentified_task_has_no_band_and_a_dotted_law(page: Page, tasks: Tasks) -> None:
    unsure = [task for task in tasks if not task["identifiable"]]
    assert unsure
    for task in unsure:
        assert page.rows("frontier", task["task"], task["shots"], "band") == []
        assert {row["part"] for row in page.rows("frontier", task["task"], task["shots"], "law")} == {
            "unsure",
            "beyond",
        }


def test_layers_show_the_best_one_of_each_model(page: Page, study: Study) -> None:
    raw = study[0].filter("last_checkpoint", pl.col("downstream_accuracy").is_not_null())
    one = raw.filter(task="fashion", shots=25, family="vit", size="micro")
    means = dict(one.group_by("layer").agg(pl.col("downstream_accuracy").mean()).iter_rows())
    shown = [row for row in page.rows("layers", "fashion", 25, "layers") if row["series"] == "vit micro"]
    assert {row["layer"]: row["accuracy"] for row in shown} == pytest.approx(means, abs=6e-5)
    assert [row["layer"] for row in shown if row["best"]] == [max(means, key=lambda layer: means[layer])]
    assert shown[-1]["depth"] == 1.0


def test_axis_lines_join_cells_that_differ_in_nothing_else(page: Page, study: Study) -> None:
    lines = pl.DataFrame(page.rows("axis size", "upstream", None, "lines"))
    assert lines["value"].unique().sort().to_list() == ["micro", "nano", "pico"]
    assert lines.sort("rank")["value"].unique(maintain_order=True).to_list() == ["pico", "nano", "micro"]
    assert lines["line"].n_unique() == 12  # 3 families x 2 fractions x 2 decays
    fractions = pl.DataFrame(page.rows("axis fraction", "upstream", None, "lines"))
    assert fractions.group_by("line").len()["len"].to_list() == [2] * 15  # three cells have no partner with results
    upstream = study[0].filter("last_checkpoint").group_by("family", "size", "fraction", "head_weight_decay")
    known = {key: frame["upstream_accuracy"][0] for key, frame in upstream}
    for (_, axes), line in lines.group_by("line", "axes"):
        family, fraction, decay = re.fullmatch(r"(\w+), fraction (.*), head_weight_decay (.*)", str(axes)).groups()  # type: ignore[union-attr]
        for row in line.iter_rows(named=True):
            assert row["accuracy"] == pytest.approx(
                known[family, row["value"], float(fraction), float(decay)], abs=6e-5
            )


def test_a_cell_without_one_task_has_no_mean_over_tasks(tmp_path: Path) -> None:
    results, states = synthetic(tasks=("mnist", "patches"), shots=(5,))
    results = results.filter((pl.col("cell_id") != states[0]["cell_id"]) | (pl.col("task") == "mnist"))
    page = write(tmp_path, results, states, draws=10)
    fixed = "vit, fraction 0.1, head_weight_decay 0.03"  # the other axes of that cell, which is the smallest
    for quantity, shots, sizes in (("upstream", None, ["pico", "nano", "micro"]), ("downstream", 5, ["nano", "micro"])):
        lines = page.rows("axis size", quantity, shots, "lines")
        assert [row["value"] for row in lines if row["axes"] == fixed] == sizes


def test_families_with_sizes_of_their_own_have_their_own_means(tmp_path: Path) -> None:
    results, states = synthetic(tasks=("mnist",), shots=(5,))
    own = {"pico": "w16", "nano": "w32"}
    is_resnet = pl.col("family") == "resnet"
    results = results.with_columns(size=pl.when(is_resnet).then(pl.col("size").replace(own)).otherwise("size"))
    for state in states:
        state["size"] = own.get(state["size"], state["size"]) if state["family"] == "resnet" else state["size"]
    means = pl.DataFrame(write(tmp_path, results, states).rows("axis size", "upstream", None, "means"))
    values = {str(family): rows["value"].to_list() for (family,), rows in means.sort("rank").group_by("family")}
    assert values == {
        "mixer": ["pico", "nano", "micro"],
        "resnet": ["w16", "w32", "micro"],
        "vit": ["pico", "nano", "micro"],
    }


def test_changes_are_means_over_controlled_pairs(page: Page, study: Study) -> None:
    cells = (
        study[0]
        .filter("last_checkpoint", "last_layer", task="mnist", shots=5)
        .group_by("family", "size", "fraction", "head_weight_decay")
        .agg(pl.col("downstream_accuracy").mean(), pl.col("upstream_accuracy").first())
        .drop_nulls()
    )
    sides = [cells.filter(pl.col("head_weight_decay") == decay) for decay in (0.03, 3.0)]
    pairs = sides[0].join(sides[1], on=["family", "size", "fraction"], suffix="_high")
    change = pairs.select(
        mnist=(pl.col("downstream_accuracy_high") - pl.col("downstream_accuracy")).mean(),
        upstream=(pl.col("upstream_accuracy_high") - pl.col("upstream_accuracy")).mean(),
    ).row(0, named=True)
    shown = {
        row["column"]: row["value"]
        for row in page.rows("changes", "changes", 5, "changes")
        if row["change"] == "head_weight_decay 0.03 to 3"
    }
    assert shown["mnist"] == pytest.approx(change["mnist"], abs=6e-5)
    assert shown["upstream"] == pytest.approx(change["upstream"], abs=6e-5)


def test_counts_what_is_not_there(page: Page, study: Study) -> None:
    used = pl.col("last_checkpoint") & pl.col("last_layer")
    nulls = study[0].filter(used, pl.col("downstream_accuracy").is_null()).height
    assert nulls
    assert f"training diverged at step 40: {nulls:,} rows" in page.text
    assert "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB" in page.text


def test_lists_few_conflicts_and_counts_the_others(page: Page, tasks: Tasks) -> None:
    for task in tasks:
        significant, all_of_them = task["significant_conflicts"], task["conflicts"]
        noun = "conflict" if all_of_them == 1 else "conflicts"
        if all_of_them:
            assert f"{task['task']}: {significant:,} significant of {all_of_them:,} {noun}; the strongest" in page.text
        if all_of_them > 6:
            assert f"{all_of_them - 5:,} further conflicts not listed here" in page.text
    assert any(task["conflicts"] > 6 for task in tasks)


def test_hours_and_attempts_add_up(page: Page, study: Study) -> None:
    hours = sum(state["seconds"] for state in study[1]) / 3600
    attempts = sum(state["attempts"] for state in study[1])
    assert f"{hours:.2f} job-hours used in {attempts} attempts." in page.text
    assert "Planned: 1.25 GPU-hours, 3 sbatch calls." in page.text


def test_cells_of_the_frontier_are_told_of_and_the_others_counted(
    page: Page, tasks: Tasks, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vertices = {vertex["cell_id"] for task in tasks for vertex in task["hull"]}
    top = page_points(page).group_by("task", "shots").agg(pl.col("cell_id").sort_by("downstream", "cell_id").last())
    wanted = {anchor_of(cell_id) for cell_id in vertices | set(top["cell_id"])}
    assert cell_anchors(page) == wanted
    monkeypatch.setattr("orchestrator.report.cell_sections.MOST_CELLS", 3)
    few = write(tmp_path, *study)
    assert len(cell_anchors(few)) == 3
    assert cell_anchors(few) < wanted
    assert f"{len(wanted) - 3} further cells of frontiers not shown here" in few.text


def test_an_imported_cell_has_axes_and_numbers_alone(tmp_path: Path) -> None:
    page = write(tmp_path, *imported())
    assert cell_anchors(page)
    assert "upstream accuracy" in page.texts
    assert not {"checkpoint", "TensorBoard", "W&B", "took"} & set(page.texts)


def test_best_cells_lead_to_their_sections(page: Page, study: Study) -> None:
    facts = gather(study[0], reduce_study(study[0], draws=5), study[1])
    answers = page.source.partition('id="answer"')[2].partition("</section>")[0]
    top = facts.points.group_by("task", "shots").agg(pl.col("cell_id").sort_by("downstream", "cell_id").last())
    for task, shots, cell_id in top.iter_rows():
        of_shots = answers.partition(f'data-shots="{shots}"')[2].partition("data-shots")[0]
        (listed,) = re.findall(rf"<li><b>{task}[ <].*?</li>", of_shots)
        link = f'<a href="#{anchor_of(cell_id)}" title="{cell_id}: '
        assert (link in listed) == ("best cell" in listed)
        assert listed.count(">best cell</a>") == listed.count("best cell")
    (cell_id,) = facts.effects["regret"].filter(mean_rank=1, shots=25)["cell_id"]
    assert f': <a href="#{anchor_of(cell_id)}"><code>{cell_id}</code></a> loses ' in page.source


def test_a_cell_without_a_section_is_plain_text(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("anchors", "cell_sections"):
        monkeypatch.setattr(f"orchestrator.report.{module}.MOST_CELLS", 0)
    page = write(tmp_path, *study)
    assert "best cell" in page.text
    assert "#cell-" not in page.source


@pytest.mark.parametrize("cell_id", ["a/b c", "ü", "x'(y)*!~", "50%", 'q"<b>'])
def test_any_id_of_a_cell_makes_an_anchor_as_a_browser_would(cell_id: str) -> None:
    assert re.fullmatch(r"cell-[A-Za-z0-9_.!~*'()%-]+", anchor_of(cell_id))
    assert unquote(anchor_of(cell_id)) == f"cell-{cell_id}"


def page_points(page: Page) -> pl.DataFrame:
    return pl.read_parquet(page.folder / "tables/results.parquet")


def cell_anchors(page: Page) -> set[str]:
    return {name for _, attributes in page.tags if (name := attributes.get("id") or "").startswith("cell-")}


# --- files ---------------------------------------------------------------------------------------------------------


def test_page_is_small_and_holds_each_column_once(page: Page) -> None:
    assert len(page.source.encode()) < 3e6
    columns = [json.dumps(column) for column in page.data["columns"]]
    assert len(columns) == len(set(columns))
    plots = json.dumps(page.data["plots"])
    assert {plots.count(cell) for cell in page.data["plots"]["cells"]["ids"]} == {1}
    assert len(page.data["plots"]["upstreams"]) == 1


def test_asks_no_host_for_anything(page: Page) -> None:
    loads = [
        attributes[key]
        for _, attributes in page.tags
        for key in ("src", "srcset", "data", "poster")
        if key in attributes
    ]
    assert loads == []
    assert not {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object", "embed", "base", "form", "source"}
    for _, attributes in page.tags:
        href = attributes.get("href") or "#"
        assert href.startswith("#") or (page.folder / href).is_file()
    styles = [
        code for code, (tag, _) in zip(page.code, [t for t in page.tags if t[0] in CODE], strict=True) if tag == "style"
    ]
    assert styles
    assert not any(re.search(r"url\(|@import|https?:", style) for style in styles)
    policy = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert len(policy) == 1
    assert str(policy[0]).startswith("default-src 'none'")
    assert "http" not in str(policy[0])


def test_anchors_lead_somewhere(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [str(attributes["href"]) for tag, attributes in page.tags if tag == "a"]
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)


def test_links_every_table_and_figure(page: Page) -> None:
    linked = {str(attributes["href"]) for tag, attributes in page.tags if tag == "a"}
    written = {path.relative_to(page.folder).as_posix() for path in page.folder.glob("*/*")}
    assert written
    assert written <= linked


BARS = ("conflicts_", "gains_")  # drawn in few colours


def test_figures_are_real_pictures(page: Page) -> None:
    names = {path.stem for path in (page.folder / "figures").iterdir()}
    assert names == {
        *(f"{kind}_{shots}_shots" for kind in KINDS for shots in (5, 25)),
        *(f"axis_{axis}" for axis in ("size", "fraction", "head_weight_decay")),
        *(f"axis_tasks_{axis}_{n}_shots" for axis in ("size", "fraction", "head_weight_decay") for n in (5, 25)),
    }
    for name in names:
        picture = Image.open(io.BytesIO((page.folder / f"figures/{name}.png").read_bytes())).convert("RGB")
        found = picture.getcolors(maxcolors=1 << 24)
        assert found is not None
        assert len(found) > (20 if name.startswith(BARS) else 50)
        assert max(count for count, _ in found) < 0.99 * picture.width * picture.height
        assert "<text" in (page.folder / f"figures/{name}.svg").read_text(encoding="utf-8")
        assert (page.folder / f"figures/{name}.pdf").read_bytes().startswith(b"%PDF")


def test_tables_agree_in_all_formats(page: Page, study: Study, tasks: Tasks) -> None:
    tables = page.folder / "tables"
    assert {path.stem for path in tables.iterdir()} == {
        *(
            "summary",
            "fits",
            "results",
            "conflicts",
            "conflict_axes",
            "axes",
            "layers",
            "measures",
            "measures_along",
            "cells",
        ),
        *(f"effects_{name}" for name in SCHEMAS),
    }
    for path in tables.glob("*.parquet"):
        parquet = pl.read_parquet(path)
        csv = pl.read_csv(path.with_suffix(".csv"), schema=parquet.schema)
        assert csv.equals(parquet)
        rows = [line for line in path.with_suffix(".md").read_text().splitlines() if line.startswith("|")]
        assert len(rows) == min(parquet.height, 1000) + 2
    fits = pl.read_parquet(tables / "fits.parquet")
    for task in tasks:
        for name, fit in task["fits"].items():
            row = fits.filter(task=task["task"], shots=task["shots"], fit=name).row(0, named=True)
            assert row["verdict"] == (fit or task)["verdict"]
            assert row["e_ir"] == (fit or {}).get("e_ir")
            assert row["held_out_rmse"] == (fit or {}).get("held_out_rmse")
    cells = pl.read_parquet(tables / "cells.parquet")
    assert sorted(cells["cell_id"]) == sorted(state["cell_id"] for state in study[1])


def contents(folder: Path) -> dict[str, bytes | int]:
    """Of a PDF its length: the renderer lists a page's resources in any order."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.stat().st_size if path.suffix == ".pdf" else path.read_bytes() for name, path in files.items()}


def test_writing_again_changes_nothing_and_removes_what_is_stale(tmp_path: Path) -> None:
    results, states = synthetic(tasks=("mnist",), shots=(1, 5))
    results, states = results.filter(family="vit"), states[:12]
    write(tmp_path, results, states)
    first = contents(tmp_path)
    write(tmp_path, results.sample(fraction=1.0, shuffle=True, seed=1), states[::-1])
    assert contents(tmp_path) == first
    write(tmp_path, results.filter(shots=5), states)
    assert {name for name in first if "_1_shots" in name}
    assert not {name for name in contents(tmp_path) if "_1_shots" in name}


def test_files_that_no_report_wrote_stay(tmp_path: Path) -> None:
    results, states = one_cell()
    mine = [tmp_path / "tables" / "mine.csv", tmp_path / "figures" / "talk.pdf"]
    for path in mine:
        path.parent.mkdir()
        path.write_text("not ours")
    outside = tmp_path / "notes.md"
    outside.write_text("not ours")
    for damaged in ("[", "{}", json.dumps(["notes.md", "tables/../notes.md", 3, "figures/gone.png"])):
        (tmp_path / "files.json").write_text(damaged)
        write(tmp_path, results, states, draws=5)
        assert {path.read_text() for path in (*mine, outside)} == {"not ours"}
    listed = json.loads((tmp_path / "files.json").read_text())
    assert {*listed, "index.html", "files.json", "notes.md", "tables/mine.csv", "figures/talk.pdf"} == {
        *contents(tmp_path)
    }


def test_a_file_in_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "report").write_text("a file")
    with pytest.raises(UserError, match="report: the report cannot be written into this folder"):
        write(tmp_path / "report", *one_cell(), draws=5)


# --- partial, imported and hostile studies -------------------------------------------------------------------------


def only_states(status: str) -> Study:
    states = [
        {**state, "status": status, "cause": "killed" if status == "failed" else None} for state in synthetic()[1]
    ]
    return pl.DataFrame(schema=SCHEMA), states


def one_cell() -> Study:
    results, states = synthetic(tasks=("mnist",), shots=(5,))
    return results.filter(cell_id=states[0]["cell_id"]), states[:1]


def all_null() -> Study:
    results, states = synthetic(tasks=("mnist",), shots=(5,))
    return results.with_columns(
        downstream_accuracy=pl.lit(None, pl.Float64), reason=pl.lit("5 shots asked, class 'a' has 3")
    ), states


def last_layer_only() -> Study:
    results, states = synthetic(tasks=("mnist",), shots=(5,))
    return results.filter("last_layer", "last_checkpoint"), states


def imported() -> Study:
    return top1().select(
        pl.format("{} {}", "model", "img_size").alias("cell_id"),
        "task",
        upstream_accuracy=pl.col("upstream") / 100,
        downstream_accuracy=pl.col("downstream") / 100,
    ).filter(pl.col("cell_id").hash(0) % 5 == 0), []


def unequal_tasks() -> Study:
    results, states = synthetic(tasks=("mnist", "fashion"), shots=(1, 5))
    return results.filter((pl.col("task") == "mnist") | (pl.col("shots") == 5)), states


PARTIAL = {
    "no cells": lambda: (pl.DataFrame(schema=SCHEMA), []),
    "a table without columns": lambda: (pl.DataFrame(), []),
    "nothing ran": lambda: only_states("new"),
    "all failed": lambda: only_states("failed"),
    "one cell": one_cell,
    "all null": all_null,
    "last layer only": last_layer_only,
    "imported": imported,
    "unequal tasks": unequal_tasks,
}


@pytest.mark.parametrize("name", PARTIAL)
def test_partial_studies_have_a_report(name: str, tmp_path: Path) -> None:
    results, states = PARTIAL[name]()
    page = write(tmp_path, results, states, draws=10)
    known = {state["cell_id"] for state in states} | (set(results["cell_id"]) if results.width else set())
    assert all(cell_id in page.text for cell_id in known)
    for table in ("fits", "results", "conflicts", "axes", "layers", "cells"):
        assert pl.read_parquet(tmp_path / f"tables/{table}.parquet").width > 1
    for path in (tmp_path / "figures").glob("*.svg"):
        assert "NaN" not in path.read_text()
    assert "None" not in page.text.replace("None.", "")
    assert "nan" not in re.findall(r"[a-z]+", page.text)


def test_all_failed_is_told_with_its_cause(tmp_path: Path) -> None:
    page = write(tmp_path, *only_states("failed"))
    assert "36 failed." in page.text
    assert "killed" in page.texts
    assert "No checkpoint has been judged downstream yet." in page.text


def test_nulls_are_counted_by_reason_as_the_reducer_counts_them(tmp_path: Path) -> None:
    results, states = all_null()
    page = write(tmp_path, results, states)
    (task,) = reduce_study(results, draws=5)["tasks"]
    ((reason, dropped),) = task["dropped"].items()
    assert f"{reason}: {dropped:,} rows" in page.text
    assert re.search(rf"mnist\s*5\s*5 shots asked, class 'a' has 3\s*{dropped}", page.text)
    assert f"{results.height:,} rows" not in page.text, "one count, not two that differ"
    assert "not identifiable: no cell has both accuracies" in page.text


ODD = {
    "accuracies as text": lambda table: table.with_columns(pl.col("upstream_accuracy").cast(pl.String)),
    "families by number": lambda table: table.with_columns(family=pl.int_range(pl.len()) % 3),
    "a duration as axis": lambda table: table.with_columns(time=pl.duration(hours=pl.int_range(pl.len()) % 4)),
    "a binary axis": lambda table: table.with_columns(code=pl.concat_str(pl.int_range(pl.len()) % 2).cast(pl.Binary)),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_columns_that_the_reducer_takes_have_a_report(name: str, tmp_path: Path) -> None:
    results = ODD[name](on_a_law())
    assert {pair["task"] for pair in pairs_of(select_cells(results).cells)["strongest"]} == {"real"}
    page = write(tmp_path, results, [], draws=5)
    assert "200 cells" in page.text
    if name == "families by number":
        assert "3 families (0, 1 and 2)" in page.text


def test_many_failed_cells_are_counted_beyond_the_listed_ones(tmp_path: Path) -> None:
    states = [
        {**synthetic(tasks=(), shots=())[1][0], "cell_id": f"{i:016x}", "status": "failed", "cause": "x"}
        for i in range(70)
    ]
    page = write(tmp_path, pl.DataFrame(schema=SCHEMA), states)
    assert "20 further cells not listed here; tables/cells.csv has all." in page.text


HOSTILE = """</script><script>alert(1)</script><img src=x onerror="alert('2')">" onclick="alert(3)" '&amp;|`${x}`"""


def with_linear(results: pl.DataFrame) -> pl.DataFrame:
    """The results, and those of a protocol without shots: half of what ridge has at most shots, draw 0, last layer."""
    most = pl.col("shots") == pl.col("shots").max()
    linear = results.filter("last_layer", most, pl.col("draw") == 0).with_columns(
        protocol=pl.lit("linear"),
        shots=pl.lit(None, pl.Int64),
        downstream_accuracy=pl.col("downstream_accuracy") / 2,
    )
    return pl.concat([results, linear])


def measures_of(results: pl.DataFrame) -> pl.DataFrame:
    """Upstream measures of every cell: a head norm that falls as accuracy rises, ranks of layers, an unknown margin."""
    cells = results.filter("last_checkpoint").group_by("cell_id").agg(pl.col("upstream_accuracy").first())
    rows = []
    for cell_id, upstream in cells.sort("cell_id").iter_rows():
        known = {"cell_id": cell_id, "step": 100, "last_checkpoint": True}
        rows += [
            {**known, "quantity": "head_weight_norm", "value": None if upstream is None else 1 - upstream},
            {**known, "quantity": "effective_rank", "layer": 0, "value": 99.0},
            {**known, "quantity": "effective_rank", "layer": 1, "value": 7.0},
            {**known, "quantity": "margin_mean", "reason": "diverged"},
            {**known, "quantity": "accuracy", "label": "sea", "value": 0.5},
            {**known, "quantity": "head_weight_norm", "value": -1.0, "step": 50, "last_checkpoint": False},
        ]
    return pl.DataFrame(rows, schema=UPSTREAM_SCHEMA)


@pytest.fixture(scope="module")
def two_protocols(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, pl.DataFrame]:
    results, states = synthetic(tasks=("digits", "mnist"), shots=(5, 25))
    both = with_linear(results)
    folder = tmp_path_factory.mktemp("protocols")
    return write(folder, both, states, draws=10, measures=measures_of(results)), both


def test_protocols_are_compared_at_every_number_of_shots(two_protocols: tuple[Page, pl.DataFrame]) -> None:
    page, results = two_protocols
    assert "about one protocol (ridge)" in page.text
    last = results.filter("last_checkpoint", "last_layer").drop_nulls(["upstream_accuracy", "downstream_accuracy"])
    for shots in (5, 25):
        mean = last.filter(task="mnist", shots=shots).group_by("cell_id").agg(pl.col("downstream_accuracy").mean())
        other = last.filter(task="mnist", protocol="linear").select("cell_id", linear="downstream_accuracy")
        both = mean.join(other, on="cell_id")
        rank = stats.spearmanr(both["downstream_accuracy"], both["linear"]).statistic
        difference = f"{(both['linear'] - both['downstream_accuracy']).mean():+.3f}".replace("-", "−")
        assert f"mnistridge, {shots} shotslinear{both.height}{rank:.3f}{difference}" in page.text
    assert pl.read_parquet(page.folder / "tables/effects_protocols.parquet").height == 2 * 2


def test_another_protocol_is_reported_on_when_it_is_named(tmp_path: Path) -> None:
    results, states = synthetic(tasks=("digits", "mnist"), shots=(5, 25))
    page = write(tmp_path, with_linear(results), states, draws=10, protocol="linear")
    assert "about one protocol (linear)" in page.text
    assert "shots: " not in page.text.partition("Fits and verdicts")[0]
    points = {row["cell"]: row["downstream"] for row in page.rows("frontier", "mnist", None, "points")}
    halves = results.filter("last_checkpoint", "last_layer", task="mnist", shots=25, draw=0)
    for cell_id, accuracy in halves.drop_nulls("downstream_accuracy").select("cell_id", "downstream_accuracy").rows():
        assert points[cell_id] == pytest.approx(accuracy / 2, abs=6e-5)
    assert {name.stem for name in (page.folder / "figures").glob("frontier*")} == {"frontier"}


def test_a_table_of_one_protocol_has_nothing_to_compare(page: Page) -> None:
    assert "All values are of one protocol, ridge." in page.text


def test_measures_are_those_of_the_last_checkpoint_and_layer_over_all_classes(
    two_protocols: tuple[Page, pl.DataFrame],
) -> None:
    page, results = two_protocols
    upstream = dict(
        results.filter("last_checkpoint").drop_nulls("upstream_accuracy").select("cell_id", "upstream_accuracy").rows()
    )
    shown = {row["cell"]: row for row in page.rows("measures", "head weight norm", None, "points")}
    assert set(shown) == set(upstream)
    for cell_id, accuracy in upstream.items():
        assert shown[cell_id]["value"] == pytest.approx(1 - accuracy, abs=6e-5)
        assert shown[cell_id]["upstream"] == pytest.approx(accuracy, abs=6e-5)
    assert {row["value"] for row in page.rows("measures", "effective rank", None, "points")} == {7.0}
    notes = {panel["name"]: panel["note"] for panel in page.data["panels"] if panel["kind"] == "measures"}
    assert notes["head weight norm"] == f"{len(upstream)} cells; rank correlation −1.00 [−1.00, −1.00]"
    assert "margin mean" not in notes
    assert f"head weight norm{len(upstream)}" in page.text
    assert f"margin meandiverged{results['cell_id'].n_unique()}" in page.text
    best = best_layers(results, "ridge").filter(shots=5).group_by("cell_id").agg(pl.col("depth").mean())
    depth = {row["cell"]: row["value"] for row in page.rows("measures", "depth of the best layer", 5, "points")}
    assert depth == pytest.approx(dict(best.filter(pl.col("cell_id").is_in(list(upstream))).iter_rows()), abs=6e-5)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    results, states = synthetic(tasks=("mnist",), shots=(5,))
    results = results.with_columns(
        task=pl.lit(HOSTILE),
        method=pl.lit(HOSTILE + "method"),
        family=pl.when(pl.col("family") == "vit").then(pl.lit(HOSTILE + "family")).otherwise("family"),
        reason=pl.when(pl.col("reason").is_null()).then(None).otherwise(pl.lit(HOSTILE + "reason")),
    )
    for state in states:
        state["family"] = state["family"].replace("vit", HOSTILE + "family")
        state["cause"] = state["cause"] and "Traceback:\n" + HOSTILE + "cause"
    clean = write(tmp_path / "clean", *synthetic(tasks=("mnist",), shots=(5,)))
    page = write(tmp_path / "hostile", results, states, title=HOSTILE + "title")
    assert Counter(tag for tag, _ in page.tags) == Counter(tag for tag, _ in clean.tags)  # rows have another order
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    for ending in ("", "method", "family", "reason", "cause", "title"):
        assert HOSTILE + ending in page.text
    assert page.data["plots"]["tasks"] == [HOSTILE]
    assert {attributes["data-name"] for tag, attributes in page.tags if tag == "figure"} >= {HOSTILE}
    for path in (page.folder / "tables").glob("*.md"):
        rows = [line for line in path.read_text().splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
        assert "<script" not in path.read_text()
