"""Conflicts against brute force, scipy and published tables."""

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from orchestrator.conflicts import (
    AXES,
    CONTROLLED_SCHEMA,
    DIRECTIONS_SCHEMA,
    NO_AXES,
    STRONGEST_SCHEMA,
    axes_of,
    binomial,
    controlled_directions,
    controlled_pairs,
    count_pairs,
    count_significant,
    crowded_axes,
    kendall,
    noise_of,
    significant,
    significant_of,
    spearman,
    strongest_pairs,
)
from orchestrator.conflicts.counts import count_from
from orchestrator.conflicts.noise import student_95
from orchestrator.report.facts import STATE_SCHEMA
from orchestrator.results import SCHEMA
from tests.orchestrator.timm_tables import NUM_TEST, REFERENCE, accuracies

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Few levels, so that ties are common.
POINTS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=50)


def arrays(points: "Sequence[tuple[int, int]]") -> tuple["Floats", "Floats"]:
    us_N, ds_N = np.array(points, dtype=np.float64).reshape(-1, 2).T / 20
    return us_N, ds_N


def cells_of(rows: list[dict[str, Any]], **constant: Any) -> pl.DataFrame:
    defaults = {"task": "mnist", "shots": 5, "upstream_num_test": 1000, "downstream_num_test": 1000, **constant}
    kinds = {"shots": pl.Int64, "upstream_num_test": pl.Int64, "downstream_num_test": pl.Int64}
    named = [{**defaults, "cell_id": f"cell{i:03d}", **row} for i, row in enumerate(rows)]
    return pl.DataFrame(named, schema_overrides=kinds)


# --- counts and correlations


@given(POINTS)
def test_counts_equal_brute_force(points: list[tuple[int, int]]) -> None:
    signs = [(a[0] - b[0]) * (a[1] - b[1]) for a, b in combinations(points, 2)]
    counts = count_pairs(*arrays(points))
    assert counts.conflicts == sum(sign < 0 for sign in signs)
    assert counts.concordant == sum(sign > 0 for sign in signs)
    assert counts.tied == sum(sign == 0 for sign in signs)
    assert counts.tied_upstream == sum(a[0] == b[0] for a, b in combinations(points, 2))
    assert counts.tied_downstream == sum(a[1] == b[1] for a, b in combinations(points, 2))


@pytest.mark.parametrize("n", [2, 3, 64, 65, 1000])
def test_a_reversed_order_conflicts_everywhere(n: int) -> None:
    us_N = np.linspace(0, 1, n)
    assert count_pairs(us_N, us_N[::-1]).conflicts == n * (n - 1) // 2
    assert count_pairs(us_N, us_N).conflicts == 0


def variance(accuracy: float, num_test: int) -> float:
    """Binomial; at least half an answer of one more image is right, and half of one is wrong."""
    p = min(max(accuracy, 0.5 / (num_test + 1)), 1 - 0.5 / (num_test + 1))
    return p * (1 - p) / num_test


def is_significant(us: "Sequence[float]", ds: "Sequence[float]", n_us: "Sequence[int]", n_ds: "Sequence[int]") -> bool:
    def differ(p: "Sequence[float]", n: "Sequence[int]") -> bool:
        return bool(abs(p[0] - p[1]) > 1.96 * (variance(p[0], n[0]) + variance(p[1], n[1])) ** 0.5)

    conflicting = (us[0] - us[1]) * (ds[0] - ds[1]) < 0
    return bool(conflicting and differ(us, n_us) and differ(ds, n_ds))


@given(POINTS, st.integers(1, 500), st.integers(1, 500))
def test_significant_counts_equal_brute_force(points: list[tuple[int, int]], num_us: int, num_ds: int) -> None:
    us_N, ds_N = arrays(points)
    expected = sum(
        is_significant((us_N[i], us_N[j]), (ds_N[i], ds_N[j]), (num_us, num_us), (num_ds, num_ds))
        for i, j in combinations(range(us_N.size), 2)
    )
    assert count_significant(us_N, ds_N, binomial(us_N, num_us), binomial(ds_N, num_ds)) == expected


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(2, 90), st.integers(1, 40), st.sampled_from([(0, 1), (16, 2), (16, 64)]))
def test_test_sets_may_differ_between_cells(seed: int, n: int, num_sizes: int, how: tuple[int, int]) -> None:
    """By groups of equal test sets, and by blocks of 1, 2 or all cells."""
    rng = np.random.default_rng(seed)
    us_N, ds_N = rng.integers(0, 51, (2, n)) / 50
    num_us_N, num_ds_N = rng.integers(5, 300, (2, num_sizes))[:, rng.integers(0, num_sizes, n)]
    expected = sum(
        is_significant(us_N[[i, j]], ds_N[[i, j]], num_us_N[[i, j]], num_ds_N[[i, j]])
        for i, j in combinations(range(n), 2)
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(significant, "MAX_GROUPS", how[0])
        patched.setattr(significant, "BLOCK_CELLS", how[1])
        found = count_significant(us_N, ds_N, binomial(us_N, num_us_N), binomial(ds_N, num_ds_N))
    assert found == expected


@given(st.permutations(range(13)), st.lists(st.tuples(st.integers(0, 13), st.integers(0, 13)), min_size=1))
def test_counts_in_a_prefix_equal_brute_force(values: list[int], queries: list[tuple[int, int]]) -> None:
    prefix_Q, floor_Q = np.array(queries).T
    found = count_from(np.array(values), prefix_Q, floor_Q)
    assert found.tolist() == [sum(value >= floor for value in values[:prefix]) for prefix, floor in queries]


# --- noise from seeds


def test_without_test_sizes_the_spread_of_seeds_is_the_noise() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"epochs": float(epochs), "seed": seed, "upstream": 0.3 + 0.02 * epochs, "downstream": 0.7 - 0.02 * epochs}
        for epochs in range(6)
        for seed in range(4)
    ]
    for row in rows:
        row["upstream"] += rng.normal(0, 0.01)
        row["downstream"] += rng.normal(0, 0.01)
    cells = cells_of(rows, upstream_num_test=None)
    noise = noise_of(cells, "upstream", ["epochs", "seed"])
    assert noise is not None
    assert noise.source == "seeds, 18 degrees of freedom"
    groups = [group["upstream"].to_numpy() for _, group in cells.group_by("epochs")]
    assert noise.variance_N == pytest.approx(np.full(24, np.mean([group.var(ddof=1) for group in groups])))
    # The downstream side knows its test sets, so that each side has its own noise.
    bound = noise.num_errors * (2 * noise.variance_N[0]) ** 0.5
    expected = sum(
        (a["upstream"] - b["upstream"]) * (a["downstream"] - b["downstream"]) < 0
        and abs(a["upstream"] - b["upstream"]) > bound
        and abs(a["downstream"] - b["downstream"])
        > 1.96 * (sum(c["downstream"] * (1 - c["downstream"]) for c in (a, b)) / 1000) ** 0.5
        for a, b in combinations(rows, 2)
    )
    assert expected > 0
    assert significant_of(cells) == (expected, "seeds, 18 degrees of freedom and binomial")


@pytest.mark.parametrize("freedom", [4, 5, 8, 30, 1000])
def test_quantiles_of_student_are_those_of_scipy(freedom: int) -> None:
    assert student_95(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.005)


def test_few_seeds_or_seeds_that_agree_tell_no_noise() -> None:
    one = [{"seed": seed, "upstream": 0.1 * seed, "downstream": 0.5} for seed in range(4)]
    same = [{"seed": seed, "upstream": 0.5, "downstream": 0.5} for seed in range(9)]
    for rows in (one, same):
        cells = cells_of(rows, upstream_num_test=None)
        assert noise_of(cells, "upstream", ["seed"]) is None
        assert significant_of(cells) == (None, "unknown: neither test-set sizes nor enough seeds")


def test_cells_that_repeat_a_seed_are_no_replicates() -> None:
    rows = [{"seed": i % 3, "upstream": i / 30, "downstream": 0.5} for i in range(30)]
    assert noise_of(cells_of(rows, upstream_num_test=None), "upstream", ["seed"]) is None
    told = [row | {"model": i // 3} for i, row in enumerate(rows)]
    untold = [row | {"model": None if i < 3 else 9} for i, row in enumerate(rows[:6])]
    noise = noise_of(cells_of([*told, *untold], upstream_num_test=None), "upstream", ["model", "seed"])
    assert noise is not None
    assert noise.source == "seeds, 18 degrees of freedom", "nine models of three seeds; the tenth has two of each"


def test_no_noise_is_shown_by_no_right_answer_and_by_no_wrong_one() -> None:
    rows = [{"upstream": 0.0, "downstream": 1.0}, {"upstream": 0.5, "downstream": 0.0}]
    (row,) = strongest_pairs(cells_of(rows), 1).rows(named=True)
    half = 0.5 / 1001
    assert row["downstream_z"] == pytest.approx(1 / (2 * half * (1 - half) / 1000) ** 0.5)
    assert binomial(np.array([0.001, 0.5]), 1000).variance_N == pytest.approx([0.001 * 0.999 / 1000, 0.25 / 1000])


@pytest.mark.parametrize("task", REFERENCE)
def test_public_tables_agree_with_the_reference(task: str) -> None:
    (us_N, ds_N), expected = accuracies(task), REFERENCE[task]
    counts = count_pairs(us_N, ds_N)
    assert (counts.conflicts, counts.concordant, counts.tied) == tuple(
        expected[name] for name in ("conflict", "concord", "tied")
    )
    noises = binomial(us_N, 50_000), binomial(ds_N, NUM_TEST[task])
    assert count_significant(us_N, ds_N, *noises) == expected["conflict_sig"]
    assert spearman(us_N, ds_N) == pytest.approx(expected["spearman"], abs=1e-12)
    assert kendall(us_N, ds_N) == pytest.approx(expected["kendall"], abs=1e-12)


@given(POINTS)
def test_correlations_equal_scipy_and_are_unknown_for_constants(points: list[tuple[int, int]]) -> None:
    us_N, ds_N = arrays(points)
    if len(set(us_N)) < 2 or len(set(ds_N)) < 2:
        assert spearman(us_N, ds_N) is None
        assert kendall(us_N, ds_N) is None
        return
    assert spearman(us_N, ds_N) == pytest.approx(stats.spearmanr(us_N, ds_N).statistic, abs=1e-12)
    assert kendall(us_N, ds_N) == pytest.approx(stats.kendalltau(us_N, ds_N).statistic, abs=1e-12)


# --- controlled conflicts


def test_columns_that_nobody_else_uses_are_axes() -> None:
    table = cells_of([{"seed": 1, "tint": 0.9, "family": "vit", "params": 5, "model": "a", "tags": ["x"]}])
    assert axes_of(table) == ["family", "seed", "tint", "model"]
    assert not set(AXES) & NO_AXES
    assert {*SCHEMA, *STATE_SCHEMA} - set(AXES) <= NO_AXES


def test_axes_of_an_imported_table_may_have_any_name_and_gaps() -> None:
    cells = cells_of(
        [
            {"low": 1, "low_high": "a", "never": None, "upstream": 0.4, "downstream": 0.4},
            {"low": 2, "low_high": "a", "never": None, "upstream": 0.5, "downstream": 0.3},
            {"low": 2, "low_high": "b", "never": None, "upstream": 0.6, "downstream": 0.2},
            {"low": 1, "low_high": None, "never": None, "upstream": 0.6, "downstream": 0.2},
            {"low": 3, "low_high": None, "never": None, "upstream": 0.7, "downstream": 0.1},
        ]
    )
    rows = controlled_pairs(cells).select("axis", "low", "high", "ordered", "upstream_up_downstream_down").rows()
    assert rows == [("low", "1", "2", True, 1), ("low_high", "a", "b", False, 1)]
    assert controlled_directions(cells).select("axis", "pairs").rows() == [("low", 1)]
    assert strongest_pairs(cells, 1)["differs_on"].to_list() == ["low, low_high"]


def test_what_is_unknown_of_two_cells_is_not_held_equal() -> None:
    rows = [
        {"size_m": 10 * i, "optim_lr": 0.1 if i == 4 else None, "upstream": i / 10, "downstream": 1 - i / 10}
        for i in range(1, 5)
    ]
    assert controlled_pairs(cells_of(rows)).is_empty()
    assert controlled_directions(cells_of(rows)).is_empty()
    of_a_study = [{"learning_rate" if name == "optim_lr" else name: row[name] for name in row} for row in rows]
    assert controlled_pairs(cells_of(of_a_study))["pairs"].sum() == 3, "null is a value there: not set"
    assert controlled_directions(cells_of(of_a_study)).select("axis", "pairs").rows() == [("size_m", 1)]


def test_columns_of_this_program_may_be_the_names_of_axes() -> None:
    names = ("setting", "setting_high", "alike", "order", "value", "loose", "line", "place", "group", "axis", "ordered")
    rows = [
        {"upstream": i / 10, "downstream": 1 - i / 10, "lr": i, **dict.fromkeys(names, "same")} for i in range(1, 3)
    ]
    cells = cells_of(rows)
    assert controlled_pairs(cells).select("axis", "pairs").rows() == [("lr", 1)]
    assert controlled_directions(cells).select("axis", "pairs").rows() == [("lr", 1)]
    assert strongest_pairs(cells, 1)["differs_on"].to_list() == ["lr"]


def test_one_axis_at_a_time_is_counted() -> None:
    cells = cells_of(
        [
            {"head_weight_decay": 0.03, "epochs": 4.0, "upstream": 0.5, "downstream": 0.5},
            {"head_weight_decay": 3.0, "epochs": 4.0, "upstream": 0.4, "downstream": 0.6},
            {"head_weight_decay": 0.03, "epochs": 8.0, "upstream": 0.6, "downstream": 0.55},
            {"head_weight_decay": 3.0, "epochs": 8.0, "upstream": 0.7, "downstream": 0.5},
            {"head_weight_decay": 10.0, "epochs": 8.0, "upstream": 0.7, "downstream": 0.4},
        ]
    )
    table = controlled_pairs(cells)
    assert table.schema == pl.Schema(CONTROLLED_SCHEMA)
    columns = ["axis", "low", "high", "pairs", "upstream_up_downstream_down", "upstream_down_downstream_up"]
    assert table.select(*columns, "both_up", "both_down", "tied").rows() == [
        ("epochs", "4.0", "8.0", 2, 1, 0, 1, 0, 0),
        ("head_weight_decay", "0.03", "3.0", 2, 1, 1, 0, 0, 0),
        ("head_weight_decay", "0.03", "10.0", 1, 1, 0, 0, 0, 0),
        ("head_weight_decay", "3.0", "10.0", 1, 0, 0, 0, 0, 1),
    ]
    means = table.filter(pl.col("low") == "4.0").row(0, named=True)
    assert means["mean_upstream_change"] == pytest.approx(0.2)
    assert means["mean_downstream_change"] == pytest.approx(-0.025)


@settings(deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "size": st.sampled_from(["S", "B"]),
                "fraction": st.sampled_from([0.1, 1.0]),
                "seed": st.integers(0, 2),
                "upstream": st.integers(0, 5).map(lambda i: i / 5),
                "downstream": st.integers(0, 5).map(lambda i: i / 5),
            }
        ),
        min_size=1,
        max_size=12,
        unique_by=lambda row: (row["size"], row["fraction"], row["seed"]),
    )
)
def test_controlled_counts_equal_brute_force(rows: list[dict[str, Any]]) -> None:
    table = controlled_pairs(cells_of(rows))
    for axis in ("size", "fraction", "seed"):
        others = [name for name in ("size", "fraction", "seed") if name != axis]
        pairs = [
            (a, b) for a in rows for b in rows if a[axis] < b[axis] and all(a[other] == b[other] for other in others)
        ]
        bought = sum(a["upstream"] < b["upstream"] and a["downstream"] > b["downstream"] for a, b in pairs)
        found = table.filter(pl.col("axis") == axis)
        assert found["pairs"].sum() == len(pairs)
        assert found["upstream_up_downstream_down"].sum() == bought


def test_cells_that_agree_on_all_axes_count_as_one_with_their_mean() -> None:
    cells = cells_of(
        [
            {"fraction": 0.1, "upstream": 0.25, "downstream": 0.5},
            {"fraction": 0.1, "upstream": 0.75, "downstream": 0.25},
            {"fraction": 1.0, "upstream": 0.625, "downstream": 0.25},
        ]
    )
    (row,) = controlled_pairs(cells).rows(named=True)
    assert (row["pairs"], row["upstream_up_downstream_down"]) == (1, 1)
    assert (row["mean_upstream_change"], row["mean_downstream_change"]) == (0.125, -0.125)


def test_an_axis_of_many_values_is_not_compared_value_by_value() -> None:
    rows = [{"millions": float(i), "family": "ab"[i % 2], "upstream": i / 60, "downstream": 0.5} for i in range(51)]
    cells = cells_of(rows)
    assert crowded_axes(cells) == {"millions": 51}
    assert controlled_pairs(cells).is_empty(), "no two cells differ on family only"
    assert crowded_axes(cells.head(50)) == {}
    assert controlled_pairs(cells.head(50)).height == 2 * (25 * 24 // 2)


def test_sizes_are_ordered_by_parameters_and_names_have_no_order() -> None:
    cells = cells_of(
        [
            {"family": "vit", "size": "S", "params": 22, "patch_size": 16, "upstream": 0.4, "downstream": 0.4},
            {"family": "vit", "size": "B", "params": 86, "patch_size": 16, "upstream": 0.5, "downstream": 0.3},
            {"family": "mixer", "size": "B", "params": 60, "patch_size": 16, "upstream": 0.5, "downstream": 0.2},
        ]
    )
    rows = controlled_pairs(cells).select("axis", "low", "high", "ordered", "upstream_up_downstream_down").rows()
    assert rows == [("family", "mixer", "vit", False, 0), ("size", "S", "B", True, 1)]


def test_a_family_without_patches_is_compared_with_one_that_has_them() -> None:
    cells = cells_of(
        [
            {"family": "vit", "patch_size": 16, "upstream": 0.4, "downstream": 0.4},
            {"family": "vit", "patch_size": 8, "upstream": 0.5, "downstream": 0.5},
            {"family": "resnet", "patch_size": None, "upstream": 0.6, "downstream": 0.3},
            {"family": "mixer", "patch_size": 8, "upstream": 0.6, "downstream": 0.3},
        ]
    )
    found = controlled_pairs(cells).select("axis", "low", "high", "pairs").rows()
    assert found == [
        ("family", "mixer", "resnet", 1),
        ("family", "mixer", "vit", 1),
        ("family", "resnet", "vit", 2),
        ("patch_size", "8", "16", 1),
    ]


def test_tasks_and_shots_are_kept_apart_and_a_missing_value_makes_no_pair() -> None:
    cell = {"fraction": 0.1, "upstream": 0.4, "downstream": 0.4}
    other = {"fraction": 1.0, "upstream": 0.5, "downstream": 0.3}
    cells = pl.concat(
        [cells_of([cell, other], shots=1), cells_of([cell], shots=5), cells_of([cell, other], task="cars", shots=None)]
    )
    found = controlled_pairs(cells).select("task", "shots", "pairs").rows()
    assert found == [("cars", None, 1), ("mnist", 1, 1)]


def test_without_axes_there_are_no_controlled_conflicts() -> None:
    table = controlled_pairs(cells_of([{"upstream": 0.1, "downstream": 0.2}, {"upstream": 0.2, "downstream": 0.1}]))
    assert table.is_empty()
    assert table.schema == pl.Schema(CONTROLLED_SCHEMA)


# --- directions


@settings(deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "epochs": st.sampled_from([1.0, 2.0, 4.0]),
                "head_weight_decay": st.sampled_from([0.03, 3.0]),
                "family": st.sampled_from(["vit", "mixer"]),
                "upstream": st.integers(0, 5).map(lambda i: i / 5),
                "downstream": st.integers(0, 5).map(lambda i: i / 5),
            }
        ),
        min_size=1,
        max_size=30,
        unique_by=lambda row: (row["epochs"], row["head_weight_decay"], row["family"]),
    )
)
def test_directions_take_each_line_of_cells_once_from_its_lowest_to_its_highest_value(
    rows: list[dict[str, Any]],
) -> None:
    found = {row["axis"]: row for row in controlled_directions(cells_of(rows)).rows(named=True)}
    assert "family" not in found
    for axis, others in {
        "epochs": ("head_weight_decay", "family"),
        "head_weight_decay": ("epochs", "family"),
    }.items():
        signs = []
        for key in {tuple(row[other] for other in others) for row in rows}:
            line = sorted((r for r in rows if tuple(r[o] for o in others) == key), key=lambda r: r[axis])
            if len(line) > 1:
                signs.append(tuple(np.sign(line[-1][side] - line[0][side]) for side in ("upstream", "downstream")))
        assert (axis in found) == bool(signs)
        if not signs:
            continue
        row = found[axis]
        up, down = signs.count((1, -1)), signs.count((-1, 1))
        assert (row["pairs"], row["upstream_up_downstream_down"], row["upstream_down_downstream_up"]) == (
            len(signs),
            up,
            down,
        )
        assert (row["both_up"], row["both_down"]) == (signs.count((1, 1)), signs.count((-1, -1)))
        assert row["tied"] == sum(0 in sign for sign in signs)
        assert row["p_value"] == pytest.approx(stats.binomtest(up, up + down).pvalue if up + down else 1.0)
        wilson = stats.binomtest(up, len(signs)).proportion_ci(0.95, "wilson")
        assert (row["share_low"], row["share_high"]) == pytest.approx(tuple(wilson), abs=1e-9)


def test_one_of_two_is_no_finding_and_twenty_of_twenty_are() -> None:
    def parting(pairs: int) -> dict[str, Any]:
        rows = [
            {"epochs": epochs, "batch_size": i, "upstream": 0.3 + epochs / 10, "downstream": 0.7 - epochs / 10}
            for i in range(pairs)
            for epochs in (1.0, 2.0)
        ]
        (row,) = (row for row in controlled_directions(cells_of(rows)).rows(named=True) if row["axis"] == "epochs")
        return row

    few, many = parting(2), parting(20)
    assert (few["share"], few["p_value"]) == (1.0, 0.5)
    assert many["p_value"] == pytest.approx(2 * 0.5**20)
    assert controlled_directions(cells_of([{"upstream": 0.1, "downstream": 0.2}])).schema == pl.Schema(
        DIRECTIONS_SCHEMA
    )


# --- strongest conflicts


@settings(deadline=None)
@given(POINTS.filter(lambda points: len(points) > 0), st.integers(1, 10), st.booleans(), st.integers(1, 60))
def test_strongest_conflicts_equal_brute_force(
    points: list[tuple[int, int]], limit: int, sized: bool, block: int
) -> None:
    us_N, ds_N = arrays(points)
    rows = [{"upstream": u, "downstream": d} for u, d in zip(us_N.tolist(), ds_N.tolist(), strict=True)]
    cells = cells_of(rows, upstream_num_test=50 if sized else None)
    strengths = []
    for a in rows:
        for b in rows:
            gain, loss = a["upstream"] - b["upstream"], b["downstream"] - a["downstream"]
            if gain <= 0 or loss <= 0:
                continue
            us_se, ds_se = (
                sum(variance(c[side], n) for c in (a, b)) ** 0.5 for side, n in (("upstream", 50), ("downstream", 1000))
            )
            strengths.append(min(gain / us_se, loss / ds_se) if sized else min(gain, loss))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(significant, "BLOCK_CELLS", block)
        table = strongest_pairs(cells, limit)
    left, right = ["upstream_z", "downstream_z"] if sized else ["upstream_gain", "downstream_loss"]
    found = table.select(pl.min_horizontal(left, right)).to_series().to_list()
    assert table.schema == pl.Schema(STRONGEST_SCHEMA)
    assert found == pytest.approx(sorted(strengths, reverse=True)[:limit])
    assert table["conflicts"].to_list() == [len(strengths)] * table.height
    assert table["not_listed"].to_list() == [len(strengths) - table.height] * table.height


def test_a_listed_conflict_names_both_cells_and_how_they_differ() -> None:
    cells = cells_of(
        [
            {"size": "B", "epochs": 4.0, "seed": 0, "upstream": 0.6, "downstream": 0.5},
            {"size": "S", "epochs": 8.0, "seed": 0, "upstream": 0.5, "downstream": 0.7},
        ]
    )
    (row,) = strongest_pairs(cells, 5).rows(named=True)
    assert (row["cell_id_upstream"], row["cell_id_downstream"]) == ("cell000", "cell001")
    assert row["differs_on"] == "size, epochs"
    assert row["upstream_gain"] == pytest.approx(0.1)
    assert row["downstream_loss"] == pytest.approx(0.2)
    assert row["upstream_z"] == pytest.approx(0.1 / (0.49 / 1000) ** 0.5)


def test_unknown_test_sizes_leave_standard_errors_null() -> None:
    rows = [{"upstream": 0.6, "downstream": 0.5}, {"upstream": 0.5, "downstream": 0.7}]
    (row,) = strongest_pairs(cells_of(rows, downstream_num_test=None), 5).rows(named=True)
    assert row["upstream_z"] is not None
    assert (row["downstream_z"], row["differs_on"]) == (None, None)
