"""Effects against independent references: numpy's lstsq, scipy's F, brute force over subsets, pairs and layers."""

import itertools
import json
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from orchestrator.conflicts import AXES, CONTROLLED_SCHEMA, NO_AXES, STRONGEST_SCHEMA, controlled_pairs
from orchestrator.effects import (
    SCHEMAS,
    agreement,
    axis_effects,
    best_cells,
    best_layer_cells,
    best_layers,
    best_of_k,
    correlations,
    coverage,
    effects_of,
    frames_of,
    layer_drift,
    regrets,
)
from orchestrator.effects.layers import BEST_LAYERS_SCHEMA
from orchestrator.effects.summary import axis_summary, parting, sentences
from orchestrator.frontier import find_frontier
from orchestrator.reduce import reduce_study, select_cells
from orchestrator.reduced_tables import print_effects
from tests.orchestrator.timm_tables import top1

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

TASKS = ("cars", "mnist", "pets")


def cells_of(rows: list[dict[str, Any]], **constant: Any) -> pl.DataFrame:
    kinds = {"shots": pl.Int64, "upstream": pl.Float64, "downstream": pl.Float64}
    named = [{"task": "mnist", "shots": 5, "cell_id": f"c{i:04d}", **constant, **row} for i, row in enumerate(rows)]
    return pl.DataFrame(named, schema_overrides=kinds, infer_schema_length=None)


def gaussian(seed: int, n: int = 60, *, effect: float = 0.0, levels: int = 3) -> pl.DataFrame:
    """Cells on a curve in logits with normal noise; `effect` of the number axis, and of a name axis."""
    rng = np.random.default_rng(seed)
    x_N, epochs_N, family_N = rng.normal(0.5, 1, n), 2.0 ** rng.integers(0, 4, n), rng.integers(0, levels, n)
    y_N = 0.3 + 0.8 * x_N - 0.1 * x_N**2 + effect * (np.log(epochs_N) + family_N) + rng.normal(0, 0.3, n)
    return cells_of(
        [
            {"upstream": u, "downstream": d, "epochs": e, "family": f"f{f}"}
            for u, d, e, f in zip(special.expit(x_N), special.expit(y_N), epochs_N, family_N, strict=True)
        ]
    )


def reference_f(cells: pl.DataFrame, columns_NQ: "Floats") -> tuple[float, float, int, int]:
    """F, partial R^2 and its degrees of freedom by two least-squares fits."""
    x_N, y_N = special.logit(cells["upstream"].to_numpy()), special.logit(cells["downstream"].to_numpy())
    base = np.stack([np.ones_like(x_N), x_N, x_N**2, x_N**3], axis=1)
    full = np.concatenate([base, columns_NQ], axis=1)
    small, large = (
        float(((y_N - design @ np.linalg.lstsq(design, y_N, rcond=None)[0]) ** 2).sum()) for design in (base, full)
    )
    q, freedom = columns_NQ.shape[1], x_N.size - full.shape[1]
    return (small - large) / q / (large / freedom), 1 - large / small, q, freedom


# --- axes


@pytest.mark.parametrize(("seed", "effect"), [(0, 0.0), (1, 0.05), (2, 0.1), (3, 0.3)])
def test_f_equals_two_least_squares_fits_and_p_that_of_the_f_distribution(seed: int, effect: float) -> None:
    cells = gaussian(seed, effect=effect)
    found = {row["axis"]: row for row in axis_effects(cells, permutations=4000).rows(named=True)}
    names = cells["family"].to_numpy()
    columns = {
        "epochs": np.log(cells["epochs"].to_numpy())[:, None],
        "family": np.stack([names == "f1", names == "f2"], axis=1).astype(float),
    }
    assert set(found) == set(columns)
    for axis, row in found.items():
        f, r2, numerator, denominator = reference_f(cells, columns[axis])
        assert (row["numerator"], row["denominator"]) == (numerator, denominator)
        assert row["f"] == pytest.approx(f, rel=1e-8)
        assert row["partial_r2"] == pytest.approx(r2, abs=1e-10)
        # Three standard errors of 4,000 draws, and 0.01 for noise that is not quite normal in so few cells.
        p = float(stats.f.sf(f, numerator, denominator))
        assert row["p_value"] == pytest.approx(p, abs=0.01 + 3 * (p * (1 - p) / 4000) ** 0.5)


def test_the_slope_of_a_number_is_that_of_least_squares() -> None:
    cells = gaussian(4, effect=0.2)
    x_N, y_N = special.logit(cells["upstream"].to_numpy()), special.logit(cells["downstream"].to_numpy())
    design = np.stack([np.ones_like(x_N), x_N, x_N**2, x_N**3, np.log(cells["epochs"].to_numpy())], axis=1)
    found = {row["axis"]: row for row in axis_effects(cells, permutations=9).rows(named=True)}
    assert found["epochs"]["slope"] == pytest.approx(np.linalg.lstsq(design, y_N, rcond=None)[0][-1])
    assert found["epochs"]["form"] == "log"
    assert (found["family"]["form"], found["family"]["slope"]) == ("categories", None)


def test_p_is_uniform_where_the_axis_does_nothing() -> None:
    """With noise that is far from normal, which is what permutations are for."""
    rng = np.random.default_rng(5)
    frames = []
    for i in range(300):
        cells = gaussian(1000 + i, n=24)
        skewed = special.logit(cells["upstream"].to_numpy()) + rng.exponential(0.5, 24)
        frames.append(cells.with_columns(task=pl.lit(f"t{i:03d}"), downstream=pl.Series(special.expit(skewed))))
    found = axis_effects(pl.concat(frames), permutations=199)
    for axis in ("epochs", "family"):
        p_values = found.filter(axis=axis)["p_value"].to_numpy()
        assert stats.kstest(p_values, "uniform").pvalue > 0.01
        assert 0.02 < (p_values <= 0.05).mean() < 0.09


def test_tasks_with_the_same_cells_and_tasks_on_their_own_get_the_same_answer() -> None:
    cells = gaussian(6, effect=0.1)
    other = cells.with_columns(task=pl.lit("pets"), downstream=pl.col("downstream") ** 2)
    both = axis_effects(pl.concat([cells, other]), permutations=99)
    alone = pl.concat([axis_effects(cells, permutations=99), axis_effects(other, permutations=99)])
    assert both.drop("f", "partial_r2", "slope").equals(alone.drop("f", "partial_r2", "slope"))
    assert both["f"].to_list() == pytest.approx(alone["f"].to_list(), rel=1e-9)
    assert axis_effects(cells.sample(fraction=1.0, shuffle=True, seed=1), permutations=99).equals(
        axis_effects(cells, permutations=99)
    )


def test_cells_without_a_value_of_the_axis_are_left_out() -> None:
    cells = gaussian(7)
    holes = cells.with_columns(epochs=pl.when(pl.col("family") != "f0").then("epochs"))
    (row,) = axis_effects(holes, permutations=9).filter(axis="epochs").rows(named=True)
    kept = holes.filter(pl.col("epochs").is_not_null())
    assert row["n"] == kept.height < cells.height
    assert row["f"] == pytest.approx(reference_f(kept, np.log(kept["epochs"].to_numpy())[:, None])[0], rel=1e-8)


def test_size_is_the_logarithm_of_parameters_where_they_are_known() -> None:
    cells = gaussian(8).with_columns(size=pl.col("family"), params=pl.col("epochs") * 1000)
    row = axis_effects(cells, permutations=9).filter(axis="size").row(0, named=True)
    assert (row["form"], row["numerator"]) == ("log params", 1)
    unknown = axis_effects(cells.drop("params"), permutations=9).filter(axis="size").row(0, named=True)
    assert (unknown["form"], unknown["numerator"]) == ("categories", 2)


def test_what_cannot_be_compared_says_why() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            "upstream": 0.2 + 0.01 * i,
            "downstream": rng.uniform(0.2, 0.8),
            "epochs": 7.0,
            "patch_size": None,
            "batch_size": 32 if i else 64,
            "optimizer": f"name{i}",
            "weight_decay": 0.1 * (i % 2),
        }
        for i in range(60)
    ]
    reasons = dict(axis_effects(cells_of(rows), permutations=9).select("axis", "reason").iter_rows())
    assert reasons == {
        "epochs": "one value",
        "batch_size": None,
        "patch_size": "no value",
        "optimizer": "60 categories, at most 50 are compared",
        "weight_decay": None,
    }
    few = axis_effects(cells_of(rows[:7]), permutations=9).filter(pl.col("axis").is_in(["optimizer", "batch_size"]))
    assert dict(few.select("axis", "reason").iter_rows()) == {
        "optimizer": "7 cells are too few for 7 parameters",
        "batch_size": "7 cells are too few for 5 parameters",
    }
    assert few["p_value"].null_count() == few.height
    # Upstream accuracy itself, as an axis, and a task that lies on the curve.
    copied = cells_of([row | {"epochs": float(i % 4), "upstream": 0.2 + 0.1 * (i % 4)} for i, row in enumerate(rows)])
    assert axis_effects(copied, permutations=9).filter(axis="epochs")["reason"].to_list() == [
        "its value follows from upstream accuracy"
    ]
    exact = cells_of([row | {"downstream": row["upstream"]} for row in rows])
    assert axis_effects(exact, permutations=9).filter(axis="batch_size")["reason"].to_list() == [
        "upstream accuracy leaves nothing to explain"
    ]


# --- the choice of a cell


LEVELS = st.one_of(st.none(), st.integers(0, 6).map(lambda i: i / 6))
TABLES = st.lists(st.tuples(st.integers(0, 6).map(lambda i: i / 6), LEVELS, LEVELS, LEVELS), min_size=1, max_size=9)


def tasks_of(table: list[tuple[float | None, ...]]) -> pl.DataFrame:
    rows = [
        {"cell_id": f"c{i}", "task": task, "upstream": us, "downstream": ds}
        for i, (us, *values) in enumerate(table)
        for task, ds in zip(TASKS, values, strict=True)
        if ds is not None
    ]
    kinds = {"cell_id": pl.String, "task": pl.String, "upstream": pl.Float64, "downstream": pl.Float64}
    return pl.DataFrame(rows, schema=kinds).with_columns(shots=pl.lit(None, pl.Int64))


@settings(deadline=None)
@given(TABLES, st.integers(1, 4))
def test_regrets_equal_brute_force(table: list[tuple[float | None, ...]], limit: int) -> None:
    cells = tasks_of(table)
    known = [task for task in range(3) if any(row[task + 1] is not None for row in table)]
    found = regrets(cells, limit)
    if len(known) < 2:
        assert found.is_empty()
        return
    whole = {
        f"c{i}": [row[t + 1] for t in known]
        for i, row in enumerate(table)
        if all(row[t + 1] is not None for t in known)
    }
    counted = sum(any(value is not None for value in row[1:]) for row in table)
    assert set(found["complete_cells"]) == {len(whole)}
    assert set(found["incomplete_cells"]) == {counted - len(whole)}
    if not whole:
        assert found.select("cell_id", "mean_regret", "not_listed").rows() == [(None, None, 0)]
        return
    best = np.max(list(whole.values()), axis=0)
    expected = {cell: best - np.array(values) for cell, values in whole.items()}
    assert found["mean_regret"][0] == pytest.approx(min(r.mean() for r in expected.values()))
    assert found["worst_regret"].min() == pytest.approx(min(r.max() for r in expected.values()))
    assert found.height + found["not_listed"][0] == len(whole)
    assert found.height <= limit + 1
    for row in found.rows(named=True):
        assert row["mean_regret"] == pytest.approx(expected[row["cell_id"]].mean())
        assert row["worst_regret"] == pytest.approx(expected[row["cell_id"]].max())
        assert expected[row["cell_id"]][[TASKS[t] for t in known].index(row["worst_task"])] == row["worst_regret"]


@settings(deadline=None)
@given(TABLES)
def test_correlations_of_tasks_equal_scipy_over_the_cells_that_have_both(table: list[tuple[float | None, ...]]) -> None:
    found = {(row["task"], row["other"]): row for row in correlations(tasks_of(table)).rows(named=True)}
    for a, b in itertools.combinations(range(3), 2):
        both = [(row[a + 1], row[b + 1]) for row in table if row[a + 1] is not None and row[b + 1] is not None]
        row = found.get((TASKS[a], TASKS[b]), {"n": 0, "spearman": None})
        assert row["n"] == len(both)
        if len({x for x, _ in both}) < 2 or len({y for _, y in both}) < 2:
            assert row["spearman"] is None
        else:
            assert row["spearman"] == pytest.approx(stats.spearmanr(*zip(*both, strict=True)).statistic)


def test_the_best_cell_of_a_task_and_what_upstream_accuracy_would_have_chosen() -> None:
    cells = cells_of(
        [
            {"upstream": 0.9, "downstream": 0.5},
            {"upstream": 0.9, "downstream": 0.6},
            {"upstream": 0.5, "downstream": 0.7},
            {"upstream": 0.4, "downstream": 0.7},
        ]
    )
    (row,) = best_cells(cells).rows(named=True)
    assert (row["cell_id"], row["downstream"], row["equally_good"], row["cells"]) == ("c0002", 0.7, 1, 4)
    assert (row["upstream_rank"], row["highest_upstream"]) == (3, 2)
    assert row["lost_by_upstream"] == pytest.approx(0.15)


def test_cells_that_share_the_highest_upstream_accuracy_are_counted_and_none_is_the_one() -> None:
    upstreams = {"cars": (0.9, 0.9, 0.5, 0.4), "pets": (0.9, 0.9, 0.9, 0.4), "sun": (0.9, 0.8, 0.5, 0.4)}
    cells = pl.concat(
        [
            cells_of([{"upstream": u, "downstream": d} for u, d in zip(us, (0.7, 0.5, 0.7, 0.1), strict=True)], task=t)
            for t, us in upstreams.items()
        ]
    )
    told = sentences({**frames_of({}), "best_cells": best_cells(cells)})
    assert told == [
        "The cell with the highest upstream accuracy is the best one on 1 of 1 task; "
        "taking it everywhere loses 0.000 of accuracy on average and 0.000 at worst.",
        "On 2 tasks, 2 to 3 cells share the highest upstream accuracy, so that it chooses none; "
        "taking any of them loses 0.083 of accuracy on average and 0.100 at worst (means over these cells).",
    ]


def test_a_task_may_be_called_like_a_column() -> None:
    table = [(0.1 * i, 0.1 * i, 0.9 - 0.1 * i, None) for i in range(5)]
    names = {"cars": "cell_id", "mnist": "task", "pets": "0"}
    plain, renamed = tasks_of(table), tasks_of(table).with_columns(pl.col("task").replace(names))
    assert correlations(renamed)["spearman"].to_list() == correlations(plain)["spearman"].to_list() == [-1.0]
    assert regrets(renamed, 3).drop("worst_task").equals(regrets(plain, 3).drop("worst_task"))


# --- layers


def layered(values: "NDArray[np.float64]", upstream: list[float] | None = None, **more: Any) -> pl.DataFrame:
    """Results of cells x draws x layers."""
    rows = [
        {
            "cell_id": f"c{cell}",
            "task": "mnist",
            "shots": 5,
            "draw": draw,
            "layer": layer,
            "last_layer": layer == values.shape[2] - 1,
            "num_layers": values.shape[2],
            "upstream_accuracy": upstream[cell] if upstream else 0.5,
            "downstream_accuracy": float(values[cell, draw, layer]),
            **more,
        }
        for cell, draw, layer in np.ndindex(values.shape)
    ]
    return pl.DataFrame(rows)


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 4), st.randoms(use_true_random=False))
def test_best_layers_equal_brute_force(seed: int, num_draws: int, num_layers: int, random: Any) -> None:
    values = np.random.default_rng(seed).integers(0, 9, (3, num_draws, num_layers)) / 8
    results = layered(values)
    found = best_layers(results, None)
    assert found.schema == pl.Schema(BEST_LAYERS_SCHEMA)
    if num_layers == 1:
        assert found.is_empty()
        return
    assert found["cell_id"].to_list() == ["c0", "c1", "c2"]

    def best(means: "Floats") -> int:
        return max(range(num_layers), key=lambda layer: (round(float(means[layer]), 9), layer))

    for row, draws in zip(found.rows(named=True), values, strict=True):
        mean = draws.mean(axis=0)
        assert row["layer"] == best(mean)
        assert row["depth"] == (best(mean) + 1) / num_layers
        assert row["split"] == (num_draws > 1)
        first, second = draws[0::2], draws[1::2]
        if num_draws > 1:
            a, b = first.mean(axis=0), second.mean(axis=0)
            expected = (a[best(b)] + b[best(a)]) / 2
        else:
            expected = mean.max()
        assert row["accuracy"] == pytest.approx(expected)
        assert row["gain"] == pytest.approx(expected - mean[-1])
        assert row["is_last"] == (row["layer"] == num_layers - 1)
    order = list(range(results.height))
    random.shuffle(order)
    assert best_layers(results[order], None).equals(found)


def test_a_layer_chosen_by_luck_alone_gains_nothing_on_the_other_draws() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.05, (400, 4, 12)).clip(0, 1)
    honest, naive = (layer_drift(best_layers(layered(values[:, :draws]), None)).row(0, named=True) for draws in (4, 1))
    assert abs(honest["gain"]) < 0.01
    assert honest["optimistic"] == 0
    assert naive["gain"] > 0.05
    assert naive["optimistic"] == 400


def test_only_the_last_checkpoint_and_the_chosen_probe_count() -> None:
    values = np.array([[[0.2, 0.8, 0.5]]])
    right = layered(values, last_checkpoint=True, protocol="ridge")
    early = layered(1 - values, last_checkpoint=False, protocol="ridge")
    other = layered(1 - values, last_checkpoint=True, protocol="knn")
    assert best_layers(pl.concat([right, early, other]), "ridge").equals(best_layers(right, None))
    assert best_layers(right.drop("layer"), None).is_empty()
    assert best_layers(right.with_columns(downstream_accuracy=pl.lit(None, pl.Float64)), None).is_empty()


def test_protocols_are_compared_over_the_cells_that_have_both_at_the_same_shots_or_without() -> None:
    rng = np.random.default_rng(0)
    accuracy = {name: rng.uniform(0.2, 0.8, 12) for name in ("ridge 1", "ridge 5", "knn 1", "knn 5", "linear")}
    rows = [
        {
            "cell_id": f"c{i:02}",
            "task": "mnist",
            "protocol": name.split()[0],
            "shots": int(name.split()[1]) if " " in name else None,
            "draw": draw,
            "layer": layer,
            "last_layer": layer == 1,
            "last_checkpoint": step == 2,
            "upstream_accuracy": 0.5,
            "downstream_accuracy": float(value) + (draw - 0.5) / 10 if (layer, step) == (1, 2) else 0.9,
        }
        for name, values in accuracy.items()
        for i, value in enumerate(values)
        for draw, layer, step in itertools.product((0, 1), (0, 1), (1, 2))
        if not (name == "linear" and i < 4)
    ]
    results = pl.DataFrame(rows, schema_overrides={"shots": pl.Int64})
    found = agreement(results, select_cells(results, "ridge").cells, "ridge")
    expected = []
    for one, other in (
        ("ridge 1", "knn 1"), ("ridge 1", "linear"), ("ridge 5", "knn 5"), ("ridge 5", "linear"),
        ("knn 1", "linear"), ("knn 5", "linear"),
    ):  # fmt: skip
        a, b = (accuracy[name][4 if "linear" in (one, other) else 0 :] for name in (one, other))
        ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
        (name, shots), (other_name, other_shots) = ((*(text.split()), None)[:2] for text in (one, other))
        expected.append(
            {
                "task": "mnist",
                "shots": shots and int(shots),
                "protocol": name,
                "other_shots": other_shots and int(other_shots),
                "other": other_name,
                "n": len(a),
                "spearman": pytest.approx(np.corrcoef(ranks)[0, 1]),
                "mean_difference": pytest.approx((b - a).mean()),
            }
        )
    assert found.to_dicts() == expected
    one = results.filter(protocol="ridge")
    assert agreement(one, select_cells(one).cells, "ridge").is_empty()


def test_drift_is_the_rank_correlation_of_depth_with_upstream_accuracy() -> None:
    layer_of = [0, 1, 1, 2, 3, 3]
    values = np.zeros((6, 1, 4))
    values[np.arange(6), 0, layer_of] = 1.0
    upstream = [0.1, 0.3, 0.2, 0.4, 0.6, 0.5]
    results = layered(values, upstream).with_columns(
        family=pl.when(pl.col("cell_id") < "c3").then(pl.lit("vit")).otherwise(pl.lit("mixer"))
    )
    found = {row["family"]: row for row in layer_drift(best_layers(results, None)).rows(named=True)}
    assert list(found) == [None, "mixer", "vit"]
    assert found[None]["drift"] == pytest.approx(stats.spearmanr(layer_of, upstream).statistic)
    assert (found[None]["n"], found[None]["cells"], found[None]["last_best"]) == (6, 6, 2)
    assert found["vit"]["depth"] == 0.5


def test_the_frontier_runs_on_best_layers() -> None:
    rng = np.random.default_rng(1)
    values = rng.uniform(0.3, 0.7, (20, 2, 3))
    results = layered(values, rng.uniform(0.2, 0.9, 20).tolist())
    cells = select_cells(results).cells
    best = best_layer_cells(cells, best_layers(results, None))
    assert (best.columns, best.height) == (cells.columns, cells.height)
    assert set(best["cell_id"]) == set(cells["cell_id"])
    assert find_frontier(best["upstream"].to_numpy(), best["downstream"].to_numpy(), draws=5).hull.size >= 2


# --- coverage


def tuned() -> pl.DataFrame:
    """A large model with one learning rate, small ones with three; two fractions and two seeds each."""
    rng = np.random.default_rng(2)
    rows = [
        {
            "family": "vit",
            "size": size,
            "params": params,
            "learning_rate": rate,
            "fraction": fraction,
            "seed": seed,
            "epochs": 7.0,
            "upstream": 0.5,
            "downstream": rng.uniform(),
        }
        for size, params, rates in (("S", 22, (1e-3, 3e-3, 1e-2)), ("B", 86, (1e-3,)))
        for rate, fraction, seed in itertools.product(rates, (0.1, 1.0), (0, 1))
    ]
    return cells_of(rows)


def test_sizes_that_were_tuned_less_are_marked() -> None:
    found = coverage(tuned()).select("size", "cells", "axis", "values", "most", "fewer").rows()
    assert found == [
        ("S", 12, None, 3, 3, False),
        ("S", 12, "learning_rate", 3, 3, False),
        ("B", 4, None, 1, 3, True),
        ("B", 4, "learning_rate", 1, 3, True),
    ]


def test_a_column_that_no_study_has_is_no_hyper_parameter() -> None:
    cells = tuned().with_columns(pretrain=pl.col("cell_id"))
    assert coverage(cells).equals(coverage(tuned()))
    assert best_of_k(cells)["settings"].to_list() == [1] * cells.height, "another pre-training is no other setting"
    untuned = cells.drop("learning_rate")
    assert coverage(untuned).is_empty()
    assert best_of_k(untuned).is_empty()
    assert not any("uned" in sentence for sentence in sentences({**frames_of({}), "coverage": coverage(untuned)}))


NAMES = sorted(
    {
        name
        for schema in (*SCHEMAS.values(), BEST_LAYERS_SCHEMA, CONTROLLED_SCHEMA, STRONGEST_SCHEMA)
        for name in schema
    }.union(
        ("self", "best", "deepest", "curve", "setting", "number", "second", "0", "", "index", "literal", "len")
    ).difference(NO_AXES, AXES)
)


def test_an_axis_may_be_called_like_any_column() -> None:
    values = np.random.default_rng(3).uniform(size=(8, 2, 3))
    number = pl.col("cell_id").str.tail(1).cast(pl.Int64)
    plain = layered(values, np.linspace(0.2, 0.8, 8).tolist()).with_columns(
        family=pl.lit("vit"), size=pl.lit("S"), epochs=number % 2 + 1
    )

    def numbers(name: str) -> list[str]:
        results = plain.with_columns((number // 4).alias(name))
        cells = select_cells(results).cells
        effects = effects_of(results, cells, None, permutations=9)
        pairs, best = controlled_pairs(cells), best_layer_cells(cells, best_layers(results, None))
        rows = [*itertools.chain(*effects.values()), *pairs.to_dicts(), *best.drop(name).to_dicts()]
        return sorted(repr(value) for row in rows for value in row.values() if not isinstance(value, str))

    expected = numbers("zoo")
    assert len(expected) > 50
    for name in NAMES:
        assert numbers(name) == expected, name


def test_the_expected_best_of_k_is_the_mean_over_all_subsets() -> None:
    cells = tuned()
    found = best_of_k(cells)
    assert found.select("size", "fixed", "settings", "k").rows() == [
        ("B", "fraction 0.1", 1, 1),
        ("B", "fraction 1", 1, 1),
        *(("S", f"fraction {fraction}", 3, k) for fraction in ("0.1", "1") for k in (1, 2, 3)),
    ]
    for row in found.rows(named=True):
        settings_of = defaultdict(list)
        for cell in cells.filter(size=row["size"], fraction=float(row["fixed"].split()[1])).rows(named=True):
            settings_of[cell["learning_rate"]].append(cell["downstream"])
        values = [float(np.mean(seeds)) for seeds in settings_of.values()]
        subsets = [max(subset) for subset in itertools.combinations(values, row["k"])]
        assert row["expected_best"] == pytest.approx(np.mean(subsets))


@given(st.lists(st.integers(0, 20).map(lambda i: i / 20), min_size=1, max_size=9))
def test_curves_rise_from_the_mean_to_the_best(values: list[float]) -> None:
    rows = [
        {"family": "vit", "size": "S", "epochs": float(i), "upstream": 0.5, "downstream": v}
        for i, v in enumerate(values)
    ]
    other = {"family": "vit", "size": "B", "epochs": -1.0, "upstream": 0.5, "downstream": 0.5}
    curve = best_of_k(cells_of([*rows, other])).filter(size="S")
    assert curve["k"].to_list() == sorted({1, 2, 4, 8, len(values)} & set(range(1, len(values) + 1)))
    for k, expected in curve.select("k", "expected_best").iter_rows():
        subsets = [max(subset) for subset in itertools.combinations(values, k)]
        assert expected == pytest.approx(np.mean(subsets))


# --- the whole


def test_effects_are_strict_json_with_declared_columns_whatever_the_table_knows() -> None:
    bare = pl.DataFrame(
        {"cell_id": ["a", "b"], "task": "real", "upstream_accuracy": [0.5, 0.6], "downstream_accuracy": [0.4, 0.5]}
    )
    one = bare.head(1)
    nothing = bare.with_columns(downstream_accuracy=pl.lit(None, pl.Float64))
    whole = layered(np.random.default_rng(0).uniform(size=(8, 3, 3)), np.linspace(0.2, 0.8, 8).tolist()).with_columns(
        family=pl.lit("vit"), size=pl.lit("S"), epochs=pl.col("cell_id").str.tail(1).cast(pl.Float64) % 2 + 1
    )
    for results in (bare, one, nothing, whole):
        selection = select_cells(results)
        effects = effects_of(results, selection.cells, selection.protocol, permutations=19)
        assert list(effects) == list(SCHEMAS)
        assert json.loads(json.dumps(effects, allow_nan=False)) == effects
        for name, frame in frames_of(effects).items():
            assert frame.schema == pl.Schema(SCHEMAS[name])
            assert frame.to_dicts() == effects[name]
    assert {name for name in SCHEMAS if not effects[name]} == {"regret", "correlations", "protocols"}
    assert frames_of({})["axes"].is_empty()


def test_reducing_a_public_table_gives_its_effects() -> None:
    timm = top1().select(
        "task",
        cell_id=pl.format("{}@{}", "model", "img_size"),
        image_size="img_size",
        upstream_accuracy=pl.col("upstream") / 100,
        downstream_accuracy=pl.col("downstream") / 100,
    )
    effects = frames_of(reduce_study(timm, draws=5)["effects"])
    axis = effects["axes"].filter(task="sketch").row(0, named=True)
    cells = select_cells(timm).cells.filter(task="sketch")
    # Sketch has accuracies within [0.001, 0.999], so that nothing is clipped.
    f, r2, *_ = reference_f(cells, np.log(cells["image_size"].to_numpy())[:, None])
    assert (axis["f"], axis["partial_r2"]) == (pytest.approx(f, rel=1e-6), pytest.approx(r2, rel=1e-6))
    assert (axis["n"], axis["p_value"]) == (1556, 0.001)
    regret = effects["regret"].row(0, named=True)
    assert (regret["complete_cells"], regret["incomplete_cells"], regret["tasks"]) == (1555, 1, 5)
    pair = effects["correlations"].filter(task="imagenet-r", other="sketch").row(0, named=True)
    wide = timm.pivot("task", index="cell_id", values="downstream_accuracy")
    assert pair["spearman"] == pytest.approx(stats.spearmanr(wide["imagenet-r"], wide["sketch"]).statistic, abs=1e-12)


def test_findings_are_told_in_sentences() -> None:
    results = pl.concat(
        [
            layered(np.random.default_rng(i).uniform(size=(30, 2, 3)), np.linspace(0.2, 0.8, 30).tolist(), task=task)
            for i, task in enumerate(TASKS)
        ]
    ).with_columns(
        family=pl.lit("vit"),
        size=pl.when(pl.col("cell_id") == "c7").then(pl.lit("B")).otherwise(pl.lit("S")),
        epochs=pl.col("cell_id").str.slice(1).cast(pl.Float64) % 3 + 1,
    )
    results = results.filter((pl.col("cell_id") != "c9") | (pl.col("task") != "pets"))
    selection = select_cells(results)
    frames = frames_of(effects_of(results, selection.cells, selection.protocol, permutations=19))
    told = " ".join(sentences(frames))
    best = frames["regret"].row(0, named=True)
    for part in (
        "Given upstream accuracy, epochs adds information on",
        f"One cell for all 3 tasks at 5 shots: {best['cell_id']} loses {best['mean_regret']:.3f} of accuracy",
        "1 cell without all tasks left out.",
        "The cell with the highest upstream accuracy is the best one on",
        "The last layer is the best in",
        "Tuned with fewer hyper-parameter settings than the most (3): vit B (1).",
    ):
        assert part in told
    summary = axis_summary(frames["axes"])
    assert dict(summary.select("axis", "tests").iter_rows()) == {"epochs": 3, "size": 3}
    assert parting(frames["directions"]).height <= frames["directions"].height
    assert sentences(frames_of({})) == []


def test_the_command_prints_findings(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "cell_id": f"{i} {epochs}",
            "task": "real",
            "epochs": epochs,
            "batch_size": i,
            "upstream_accuracy": 0.3 + 0.02 * i + 0.01 * epochs,
            "downstream_accuracy": 0.7 + 0.01 * i - 0.02 * epochs,
        }
        for i in range(1, 16)
        for epochs in (1.0, 2.0)
    ]
    print_effects(reduce_study(pl.DataFrame(rows), draws=5)["effects"])
    printed = capsys.readouterr().out
    assert "What an axis adds, given upstream accuracy" in printed
    assert re.search(r"epochs +real +15 +15 +0 +6.1e-05", printed)
