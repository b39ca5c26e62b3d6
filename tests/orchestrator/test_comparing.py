"""Two studies side by side: numbers against a plain reference, coverage of a known truth, page and command."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.errors import UserError
from orchestrator.comparing import Cells, Comparison, Side, compare, find_difference, sentence, to_json
from orchestrator.comparing.difference import NUM_STEPS, REACH, difference_of_values
from orchestrator.comparing.sides import open_sides
from orchestrator.comparing.writing import folder_name, write_comparison
from orchestrator.frontier import NumTest
from orchestrator.importing import write_results
from orchestrator.names import short_names
from tests.orchestrator.upshot_command import upshot

pytestmark = pytest.mark.xdist_group("comparing")  # what its tests share is made once

LAW_A, LAW_B = (0.8, 3.0, 0.1), (0.5, 3.0, 0.3)
HOSTILE = """</p><script>alert(1)</script><img src=x onerror="alert('2')">"""


def law(parameters: tuple[float, float, float], us_N: np.ndarray) -> np.ndarray:
    k, alpha, e_ir = parameters
    return 1 - (k * (1 - us_N) ** alpha + e_ir)


def made(parameters: tuple[float, float, float], num: int, seed: int, test: int | None = None) -> Cells:
    """Cells below a law; measured on `test` images up and down where that is given."""
    rng = np.random.default_rng([5, seed])
    us_N = rng.uniform(0.05, 0.9, num)
    ds_N = np.clip(law(parameters, us_N) - rng.exponential(0.03, num), 0, 1)
    if test is None:
        return Cells(us_N=us_N, ds_N=ds_N)
    measured = [rng.binomial(test, side_N) / test for side_N in (us_N, ds_N)]
    sizes = NumTest(us_N=np.full(num, test), ds_N=np.full(num, test))
    return Cells(us_N=measured[0], ds_N=measured[1], sizes=sizes)


def highest_mix(us_N: np.ndarray, ds_N: np.ndarray, at: float) -> float:
    """The best downstream accuracy of any mix of two cells with this upstream accuracy: the hull, by brute force."""
    best = -np.inf
    for i, j in ((i, j) for i in range(us_N.size) for j in range(us_N.size)):
        if us_N[i] <= at <= us_N[j]:
            part = 0.0 if us_N[i] == us_N[j] else (at - us_N[i]) / (us_N[j] - us_N[i])
            best = max(best, (1 - part) * ds_N[i] + part * ds_N[j])
    return best


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), num=st.integers(12, 20))
def test_the_measured_difference_is_that_of_the_best_mixes(seed: int, num: int) -> None:
    a, b = made(LAW_A, num, seed), made(LAW_B, num + 3, seed + 1)
    found = find_difference(a, b, draws=20)
    if isinstance(found, str):
        return
    assert found.us_S[0] == max(a.us_N.min(), b.us_N.min())
    assert found.us_S[-1] == min(a.us_N.max(), b.us_N.max())
    for step in range(0, NUM_STEPS, 20):
        at = found.us_S[step]
        expected = highest_mix(a.us_N, a.ds_N, at) - highest_mix(b.us_N, b.ds_N, at)
        assert found.measured_S[step] == pytest.approx(expected, abs=1e-9)


def reference_band(a: Cells, b: Cells, us_S: np.ndarray, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Curves of the corrected difference (draws x steps) and the share of draws that reach, made one by one.

    Its draws are others than those of the product, so that only their distribution can agree.
    """
    rng = np.random.default_rng([9, seed])

    def hull(us_N: np.ndarray, ds_N: np.ndarray) -> np.ndarray:
        order = np.argsort(us_N)
        us_N, ds_N = us_N[order], ds_N[order]
        lines = np.full(us_S.size, -np.inf)
        for i in range(us_N.size):
            for j in range(i + 1, us_N.size):
                inside = (us_S >= us_N[i]) & (us_S <= us_N[j])
                part = (us_S - us_N[i]) / (us_N[j] - us_N[i])
                lines = np.where(inside, np.maximum(lines, (1 - part) * ds_N[i] + part * ds_N[j]), lines)
        left, right = us_S < us_N[0], us_S > us_N[-1]
        return np.where(left, ds_N[0], np.where(right, ds_N[-1], lines))

    curves, reach = np.zeros((draws, us_S.size)), np.zeros((2, us_S.size))
    for sign, row, cells in ((1, 0, a), (-1, 1, b)):
        num = cells.us_N.size
        part = max(-(-num // 4), min(10, num // 2))
        whole = hull(cells.us_N, cells.ds_N)
        wider = 1 / ((num / part) ** 0.4 - 1)
        for draw in range(draws):
            pick = rng.choice(num, part, replace=False)
            curves[draw] += sign * (whole + wider * (whole - hull(cells.us_N[pick], cells.ds_N[pick])))
            reach[row] += (us_S >= cells.us_N[pick].min()) & (us_S <= cells.us_N[pick].max())
    return curves, reach.min(axis=0) / draws


def test_the_band_is_that_of_a_plain_reference() -> None:
    a, b = made(LAW_A, 40, 1), made(LAW_B, 24, 2)
    found = find_difference(a, b, draws=1500)
    assert not isinstance(found, str)
    curves, reach = reference_band(a, b, found.us_S, draws=400, seed=0)
    sure = np.abs(reach - REACH) > 0.06
    assert ((reach >= REACH) == found.judged)[sure].all()
    both = found.judged & (reach >= REACH - 0.05)
    spread = (found.high_S - found.low_S)[both]
    assert np.abs(np.median(curves, axis=0)[both] - found.value_S[both]).max() < 0.15 * spread.max()
    inside = ((curves[:, both] >= found.low_S[both]) & (curves[:, both] <= found.high_S[both])).all(axis=1)
    assert 0.91 < inside.mean() < 0.985
    assert found.mean == pytest.approx(np.median(curves[:, both].mean(axis=1)), abs=0.01)


@pytest.mark.parametrize("test", [None, 2000])
def test_the_band_holds_the_truth_and_finds_the_difference(test: int | None) -> None:
    covered, told = [], []
    for seed in range(40):
        a, b = made(LAW_A, 100, 2 * seed, test), made(LAW_B, 60, 2 * seed + 1, test)
        found = find_difference(a, b, seed=seed, draws=100)
        assert not isinstance(found, str)
        assert found.over_noise == (test is not None)
        true_S = (law(LAW_A, found.us_S) - law(LAW_B, found.us_S))[found.judged]
        covered.append(((found.low_S[found.judged] <= true_S) & (true_S <= found.high_S[found.judged])).all())
        told.append(bool(found.regions))
        assert all(region.mean_low <= region.mean <= region.mean_high for region in found.regions)
    assert np.mean(covered) > 0.9
    assert np.mean(told) > 0.9


@pytest.mark.parametrize("num", [12, 36, 200])
def test_equal_frontiers_seldom_differ_however_many_cells_each_has(num: int) -> None:
    found = [
        find_difference(made(LAW_A, num, 2 * i), made(LAW_A, 200, 2 * i + 1), draws=100, seed=i) for i in range(25)
    ]
    assert sum(bool(each.regions) for each in found if not isinstance(each, str)) <= 2
    assert sum(isinstance(each, str) for each in found) < 5


def test_a_region_ends_where_the_band_takes_in_zero() -> None:
    """Two frontiers that cross: each is told to be higher on its side."""
    a, b = made((0.9, 1.0, 0.05), 800, 1), made((0.25, 1.0, 0.35), 800, 2)
    found = find_difference(a, b)
    assert not isinstance(found, str)
    left, right = found.regions
    crossing = 1 - 0.3 / 0.65
    assert left.high < crossing < right.low
    assert left.mean < 0 < right.mean
    judged_S = found.us_S[found.judged]
    assert (left.low, right.high) == (judged_S[0], judged_S[-1])
    for region in (left, right):
        inside = (found.us_S >= region.low) & (found.us_S <= region.high)
        assert (np.sign(found.low_S[inside]) == np.sign(found.high_S[inside])).all()


def test_swapping_the_two_turns_the_sign() -> None:
    a, b = made(LAW_A, 300, 1), made(LAW_B, 300, 2)
    one, other = find_difference(a, b, draws=800), find_difference(b, a, draws=800)
    assert not isinstance(one, str)
    assert not isinstance(other, str)
    assert one.measured_S == pytest.approx(-other.measured_S)
    assert one.mean == pytest.approx(-other.mean)
    assert one.mean_low == pytest.approx(-other.mean_high)
    assert one.mean_high == pytest.approx(-other.mean_low)
    assert one.low_S == pytest.approx(-other.high_S, nan_ok=True)


def test_what_cannot_be_compared_says_why() -> None:
    few = made(LAW_A, 11, 0)
    assert find_difference(few, made(LAW_B, 50, 1)) == (
        "one study has 11 cells here, and 12 are needed for an interval"
    )
    a, b = made(LAW_A, 50, 0), made(LAW_B, 50, 1)
    above = Cells(us_N=0.95 + b.us_N / 100, ds_N=b.ds_N)
    assert find_difference(a, above) == "the two have no range of upstream accuracy in common"
    touching = Cells(us_N=np.append(above.us_N, a.us_N.max() - 1e-4), ds_N=np.append(b.ds_N, 0.5))
    assert find_difference(a, touching) == "the range of upstream accuracy that the two have in common is too short"


def test_equal_upstream_accuracies_are_no_range() -> None:
    flat = Cells(us_N=np.full(20, 0.5), ds_N=np.linspace(0.1, 0.9, 20))
    assert find_difference(flat, flat) == "the two have no range of upstream accuracy in common"


def test_the_interval_of_a_difference_of_values_covers() -> None:
    """Normal estimates with their own intervals: the recovered one must be the normal one."""
    value, low, high = difference_of_values((0.9, 0.9 - 0.03, 0.9 + 0.03), (0.8, 0.8 - 0.04, 0.8 + 0.04))
    assert (value, low, high) == pytest.approx((0.1, 0.05, 0.15))
    lopsided = difference_of_values((0.9, 0.9, 0.95), (0.8, 0.7, 0.8))
    assert lopsided == pytest.approx((0.1, 0.1, 0.1 + np.hypot(0.05, 0.1)))


# --- whole comparisons ---------------------------------------------------------------------------------------------


def table(cells: Cells, task: str, prefix: str, shots: int | None = None) -> pl.DataFrame:
    num = cells.us_N.size
    sizes = [None] * num if cells.sizes is None else cells.sizes.us_N
    return pl.DataFrame(
        {
            "cell_id": [f"{prefix}{i}" for i in range(num)],
            "task": task,
            "shots": pl.Series([shots] * num, dtype=pl.Int64),
            "upstream_accuracy": cells.us_N,
            "downstream_accuracy": cells.ds_N,
            "upstream_num_test": pl.Series(sizes, dtype=pl.Int64),
            "downstream_num_test": pl.Series(sizes, dtype=pl.Int64),
        }
    )


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.parquet and b.parquet: pets with a difference, cars with none, one task each that the other lacks."""
    folder = tmp_path_factory.mktemp("tables")
    pets, cars = (pl.concat([table(made(LAW_A, 150, seed), "x", "a") for seed in (1,)]) for _ in range(2))
    write_results(
        pl.concat([pets.with_columns(task=pl.lit("pets")), cars.with_columns(task=pl.lit("cars"))]),
        folder / "a.parquet",
    )
    others = [table(made(LAW_B, 90, 2), "pets", "b"), table(made(LAW_A, 90, 3), "cars", "b")]
    write_results(pl.concat([*others, table(made(LAW_A, 90, 4), "only/here", "b")]), folder / "b.parquet")
    return folder


def opened(tables: Path) -> Comparison:
    sides = open_sides([tables / "a.parquet", tables / "b.parquet"], Path("runs"), draws=50)
    return compare(*sides, draws=100)


def test_common_tasks_are_compared_and_others_listed(tables: Path) -> None:
    found = to_json(opened(tables))
    assert [task["task"] for task in found["tasks"]] == ["cars", "pets"]
    assert (found["only_a"], found["only_b"]) == ([], [{"task": "only/here", "shots": None}])
    cars, pets = found["tasks"]
    assert pets["regions"]
    assert {region["higher"] for region in pets["regions"]} == {"a"}
    assert pets["verdict"].startswith("the frontier of a lies 0.")
    assert cars["verdict"].startswith("no difference can be told between ")
    rows = pl.read_parquet(tables / "b.parquet").filter(task="pets")
    best = rows.sort("downstream_accuracy").row(-1, named=True)
    assert pets["best_b"]["cell_id"] == best["cell_id"]
    assert found["warnings"] == [
        "No results table says which upstream set its accuracies are on (a and b): make sure that it is one set."
    ]


def test_saturation_values_have_a_difference_where_both_are_identified(tmp_path: Path) -> None:
    for i, (name, e_ir) in enumerate((("a", 0.1), ("b", 0.2))):
        rng = np.random.default_rng(i)
        us_N = rng.uniform(0.1, 0.9, 200)
        ds_N = law((0.6, 4.0, e_ir), us_N) - rng.exponential(0.005, us_N.size)
        write_results(table(Cells(us_N=us_N, ds_N=ds_N), "pets", name), tmp_path / f"{name}.parquet")
    (pets,) = to_json(opened(tmp_path))["tasks"]
    a, b, less = (pets[f"saturation_{name}"] for name in ("a", "b", "difference"))
    assert less["value"] == pytest.approx(a["value"] - b["value"])
    assert 0 < less["low"] < 0.1 < less["high"] < 0.2
    assert pets["saturation_a"]["low"] < 0.9 < pets["saturation_a"]["high"]


def test_the_page_the_tables_and_the_figure_tell_the_same(tables: Path, tmp_path: Path) -> None:
    comparison = opened(tables)
    page = write_comparison(comparison, tmp_path / "out", generated="2026-11-26").read_text()
    found = to_json(comparison)
    rows = pl.read_parquet(tmp_path / "out/tables/comparison.parquet")
    for task, row in zip(found["tasks"], rows.iter_rows(named=True), strict=True):
        assert task["verdict"] in page
        assert (row["task"], row["verdict"]) == (task["task"], task["verdict"])
        assert row["difference_low"] == task["difference"]["low"]
    regions = pl.read_parquet(tmp_path / "out/tables/regions.parquet")
    assert regions.height == sum(len(task["regions"]) for task in found["tasks"])
    assert pl.read_parquet(tmp_path / "out/tables/curves.parquet").height == 2 * NUM_STEPS
    assert "Only in b, and left out: only/here." in page
    assert page.count("<svg") == 2
    assert "<script" not in page
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").glob("*/*")}
    assert written == set(re.findall(r'href="([^"#]*)"', page))
    assert {path.suffix for path in (tmp_path / "out/figures").iterdir()} == {".svg", ".png", ".pdf"}
    with Image.open(tmp_path / "out/figures/comparison.png") as picture:
        assert picture.width > 800


def test_colours_of_the_pages_pictures_are_those_of_the_page(tables: Path, tmp_path: Path) -> None:
    page = write_comparison(opened(tables), tmp_path / "out").read_text()
    pictures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert pictures
    for picture in pictures:
        assert "var(--f0)" in picture
        assert "var(--f1)" in picture
        assert not re.search(r'(?:fill|stroke)="(?:white|#1b1b1b|#e6e6e6)"', picture)


def test_hostile_names_stay_text(tables: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        rows = pl.read_parquet(tables / f"{name}.parquet").with_columns(
            pl.col("cell_id") + HOSTILE, pl.col("task").replace("pets", HOSTILE)
        )
        write_results(rows, tmp_path / f"{name} {'x' if name == 'b' else '<b>'}.parquet")
    sides = open_sides(sorted(tmp_path.glob("*.parquet")), Path("runs"), draws=50)
    comparison = compare(*sides, draws=50)
    assert folder_name(comparison) == "a-b-vs-b-x-report"
    page = write_comparison(comparison, tmp_path / "out").read_text()
    assert "<script" not in page
    assert "<img" not in page
    assert "<b>.parquet" not in page
    assert page.count("&lt;script&gt;") > 4


def test_two_sources_of_one_name_are_told_apart(tables: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_results(pl.read_parquet(tables / "a.parquet"), tmp_path / name / "results.parquet")
    sides = open_sides([tmp_path / name / "results.parquet" for name in ("one", "two")], Path("runs"), draws=50)
    assert [side.name for side in sides] == ["one/results", "two/results"]
    comparison = compare(*sides, draws=20)
    assert folder_name(comparison) == "one-results-vs-two-results-report"
    assert any("150 cells are in both" in warning for warning in comparison.warnings)


def side(name: str, tasks: dict[tuple[str, int | None], pl.DataFrame], **about: Any) -> Side:
    rows = [
        frame.rename({"upstream_accuracy": "upstream", "downstream_accuracy": "downstream"}).with_columns(
            task=pl.lit(task), shots=pl.lit(shots, pl.Int64)
        )
        for (task, shots), frame in tasks.items()
    ]
    known = {"upstream": None, "protocol": "ridge", **about}
    nothing = {"fits": {"hull": None}, "identifiable": False}
    return Side(name=name, source=Path(name), cells=pl.concat(rows), tasks=dict.fromkeys(tasks, nothing), **known)


def test_other_upstream_sets_test_sets_and_protocols_are_warned_of() -> None:
    a, b = (table(made(LAW_A, 20, i, test), "x", name) for i, (name, test) in enumerate((("a", 500), ("b", 600))))
    key = ("mnist", 5)
    one = side("one", {key: a}, upstream="icons")
    (warning, protocols, sizes) = compare(
        one, side("two", {key: b}, upstream="latin62", protocol="linear"), draws=5
    ).warnings
    assert warning == (
        "The two x axes are not the same quantity: upstream accuracy is that on icons in one and on latin62 in two. "
        "The comparison takes equal upstream accuracies for equally good upstream."
    )
    assert protocols == "The protocols differ: ridge in one, linear in two."
    assert sizes == "The test sets differ in size, so they may not be the same images: mnist, 5 shots."
    assert (
        compare(one, side("two", {key: a.with_columns(pl.col("cell_id") + "x")}, upstream="icons"), draws=5).warnings
        == []
    )
    (unknown, _) = compare(one, side("two", {key: b}), draws=5).warnings
    assert unknown.startswith("The upstream test sets differ in size, so the two x axes are not the same quantity.")


def test_nothing_in_common_is_an_error_that_lists_both() -> None:
    cells = table(made(LAW_A, 20, 0), "x", "a")
    one = side("one", {("mnist", 1): cells, ("mnist", 5): cells})
    two = side("two", {("mnist", None): cells, ("pets", 1): cells})
    with pytest.raises(UserError, match=r"one has mnist \(1 and 5 shots\); two has mnist, pets \(1 shot\)"):
        compare(one, two)


def test_few_cells_still_have_a_page(tmp_path: Path) -> None:
    cells = table(made(LAW_A, 3, 0), "x", "a")
    lone = table(made(LAW_A, 1, 0), "x", "b")
    comparison = compare(side("one", {("mnist", 1): cells}), side("two", {("mnist", 1): lone}))
    page = write_comparison(comparison, tmp_path / "out").read_text()
    assert "cannot be compared: one study has 1 cell here" in page
    assert "NaN" not in page
    assert sentence(comparison.tasks[0], ["one", "two"]) in page


def test_the_command_compares_and_refuses(tables: Path, tmp_path: Path) -> None:
    said = upshot("report", tables / "a.parquet", tables / "b.parquet", "--draws", 60, cwd=tmp_path)
    assert "pets: the frontier of a lies 0." in said
    assert "only in b, and left out: only/here" in said
    assert said.endswith("a-vs-b-report/index.html\n")
    words = ("report", tables / "a.parquet", tables / "b.parquet", "--draws", 60, "--json", "-o", tmp_path / "o")
    found = json.loads(upshot(*words, cwd=tmp_path))
    assert found["page"] == str(tmp_path / "o/index.html")
    assert [task["task"] for task in found["tasks"]] == ["cars", "pets"]
    three = [tables / f"{name}.parquet" for name in "abb"]
    assert "or two to compare them; 3 given" in upshot("report", *three, cwd=tmp_path, code=2)
    assert "are the same" in upshot("report", three[1], three[2], cwd=tmp_path, code=2)
    assert "--wandb" in upshot("report", *three[:2], "--wandb", cwd=tmp_path, code=2)
    assert "belongs to a comparison" in upshot("report", three[0], "-o", "x", cwd=tmp_path, code=2)
    rows = upshot("report", *three[:2], "--draws", 60, "--csv", cwd=tmp_path).splitlines()
    assert [row.split(",")[0] for row in rows] == ["task", "cars", "pets"]
    pl.read_parquet(three[0]).clear().write_parquet(tmp_path / "none.parquet")
    assert "none.parquet: the table has no rows" in upshot("report", three[0], "none.parquet", cwd=tmp_path, code=2)
    (tmp_path / "full").write_text("a file")
    assert "cannot be written" in upshot("report", *three[:2], "--draws", 5, "-o", "full", cwd=tmp_path, code=2)


def test_the_commands_of_the_page_run_as_they_stand(tables: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "comparing.md").read_text()
    (block,) = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    said = [upshot(*line.split()[1:], cwd=tables) for line in block.splitlines()]
    assert said[0].endswith("a-vs-b-report/index.html\n")
    assert json.loads(said[1])["page"] == "a-against-b/index.html"
    assert (tables / "a-against-b/index.html").exists()


def test_short_names_are_as_short_as_tell_apart() -> None:
    assert short_names(["/data/pets", "mnist", "./a/cars/"]) == {
        "/data/pets": "pets",
        "mnist": "mnist",
        "./a/cars/": "cars",
    }
    assert short_names(["/x/a/pets", "/x/b/pets", "cars"]) == {
        "/x/a/pets": "a/pets",
        "/x/b/pets": "b/pets",
        "cars": "cars",
    }
    assert list(short_names(["/pets", "pets", "x/pets"]).values()) == ["/pets", "pets", "x/pets"]
    assert short_names([]) == {}
    assert short_names(["/", ""]) == {"/": "/", "": ""}
