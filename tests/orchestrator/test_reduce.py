"""The reducer: which rows count, what is dropped, what is refused, and the JSON that comes out."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import DataError, UserError
from orchestrator import reduce
from orchestrator.answer import parse_at
from orchestrator.conflicts import controlled_pairs, strongest_pairs
from orchestrator.kept import read_kept, write_kept
from orchestrator.reduce import reduce_study
from orchestrator.selection import select_cells
from tests.orchestrator.timm_tables import NUM_TEST, NUM_UPSTREAM, REFERENCE, top1

TASK_KEYS = {
    "task",
    "shots",
    "n",
    "hull_vertices",
    "hull",
    "fits",
    "identifiable",
    "verdict",
    "reason",
    "reasons",
    "held_out",
    "recipe",
    "more_cells",
    "recipe_reason",
    "recipes_along",
    "spearman",
    "kendall",
    "conflicts",
    "conflict_share",
    "significant_conflicts",
    "significant_against",
    "dropped",
    "method",
}
FIT_KEYS = {
    "k",
    "alpha",
    "e_ir",
    "e_ir_low",
    "e_ir_high",
    "rmse",
    "held_out_rmse",
    "alpha_low",
    "alpha_high",
    "draws_failed",
    "interval_over",
    "at_bound",
    "loss",
    "huber_delta",
    "points",
    "identifiable",
    "verdict",
    "reason",
    "reasons",
}


def timm() -> pl.DataFrame:
    return top1().select(
        "task",
        cell_id=pl.format("{}@{}", "model", "img_size"),
        upstream_accuracy=pl.col("upstream") / 100,
        downstream_accuracy=pl.col("downstream") / 100,
        upstream_num_test=pl.lit(NUM_UPSTREAM),
        downstream_num_test=pl.col("task").replace_strict(NUM_TEST),
    )


def row(
    cell_id: str = "a", upstream: float | None = 0.5, downstream: float | None = 0.4, **more: Any
) -> dict[str, Any]:
    """One row of a study's results table, of the last layer and the last checkpoint."""
    return {
        "cell_id": cell_id,
        "task": "mnist",
        "shots": 5,
        "draw": 0,
        "layer": 12,
        "last_layer": True,
        "step": 1000,
        "last_checkpoint": True,
        "protocol": "ridge",
        "upstream_accuracy": upstream,
        "downstream_accuracy": downstream,
        "upstream_num_test": 1000,
        "downstream_num_test": 500,
        "reason": None,
        **more,
    }


def table(*rows: dict[str, Any]) -> pl.DataFrame:
    kinds = {"upstream_accuracy": pl.Float64, "downstream_accuracy": pl.Float64, "shots": pl.Int64, "reason": pl.String}
    return pl.DataFrame(rows, schema_overrides=kinds)


def only_task(results: pl.DataFrame, **options: Any) -> dict[str, Any]:
    (task,) = reduce_study(results, **options)["tasks"]
    assert isinstance(task, dict)
    return task


# --- the whole


@pytest.fixture(scope="module")
def reduced() -> dict[str, Any]:
    return {task["task"]: task for task in reduce_study(timm())["tasks"]}


def test_tasks_come_sorted_with_the_promised_keys_as_strict_json(reduced: dict[str, Any]) -> None:
    assert list(reduced) == sorted(REFERENCE)
    for task in reduced.values():
        assert set(task) == TASK_KEYS
        assert set(task["fits"]) == {"hull", "rising", "all"}
        assert all(fit is None or set(fit) == FIT_KEYS for fit in task["fits"].values())
        assert all(set(vertex) == {"cell_id", "upstream", "downstream"} for vertex in task["hull"])
        assert json.loads(json.dumps(task, allow_nan=False)) == task


@pytest.mark.parametrize("name", REFERENCE)
def test_public_tables_agree_with_the_reference(name: str, reduced: dict[str, Any]) -> None:
    task, expected = reduced[name], REFERENCE[name]
    assert (task["n"], task["hull_vertices"], len(task["hull"])) == (expected["n"], expected["hull"], expected["hull"])
    assert (task["conflicts"], task["significant_conflicts"]) == (expected["conflict"], expected["conflict_sig"])
    assert (task["spearman"], task["kendall"]) == pytest.approx((expected["spearman"], expected["kendall"]), abs=1e-12)
    assert (task["shots"], task["dropped"]) == (None, {})
    fit = task["fits"]["hull"]
    assert (fit is None) == (expected["hull_rmse"] is None)
    if fit:
        assert (fit["alpha"], fit["e_ir"]) == pytest.approx((expected["hull_alpha"], expected["hull_eIR"]), abs=1e-5)
        assert fit["e_ir_low"] < fit["e_ir_high"]
        assert fit["interval_over"] == "models and evaluation noise"
        assert fit["held_out_rmse"] == pytest.approx(expected["holdout_hull_rmse"], abs=1e-8)


def test_hull_names_its_cells_from_left_to_right(reduced: dict[str, Any]) -> None:
    left, right = reduced["imagenet-a"]["hull"]
    assert left == {"cell_id": "test_vit.r160_in1k@160", "upstream": 0.40982, "downstream": pytest.approx(0.0228)}
    assert right["cell_id"] == "eva02_large_patch14_448.mim_m38m_ft_in22k_in1k@448"


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 50)] * 5), min_size=1, max_size=15),
    st.randoms(use_true_random=False),
)
def test_order_of_the_rows_does_not_matter(points: list[tuple[int, ...]], random: Any) -> None:
    rows = [
        row(f"c{i}", us / 50, ds / 50, draw=draw)
        for i, (us, *draws) in enumerate(points)
        for draw, ds in enumerate(draws)
    ]
    expected = reduce_study(table(*rows), draws=5)
    random.shuffle(rows)
    assert reduce_study(table(*rows), draws=5) == expected


def test_each_number_of_shots_is_a_task_of_its_own() -> None:
    results = table(row("a", 0.5, 0.4, shots=1), row("a", 0.5, 0.6, shots=5), row("b", 0.6, 0.7, shots=5))
    tasks = reduce_study(results)["tasks"]
    assert [(task["task"], task["shots"], task["n"]) for task in tasks] == [("mnist", 1, 1), ("mnist", 5, 2)]


def test_loss_and_points_are_in_every_fit_and_in_the_method() -> None:
    results = timm().filter(task="imagenet-real")
    plain, other = (only_task(results, draws=5, **options) for options in ({}, {"loss": "huber", "points": "dense"}))
    assert {(fit["loss"], fit["points"], fit["huber_delta"]) for fit in plain["fits"].values()} == {
        ("squared", "vertices", None)
    }
    for fit in other["fits"].values():
        assert (fit["loss"], fit["points"]) == ("huber", "dense")
        assert fit["huber_delta"] > 0
    assert "least squares on its vertices" in plain["method"]
    assert "Huber loss (delta in each fit) on 200 equal upstream steps along it" in other["method"]


def test_held_out_errors_name_the_best_model_of_this_data(reduced: dict[str, Any]) -> None:
    assert {name: task["held_out"]["best_model"] for name, task in reduced.items()} == {
        "imagenet-a": "line",
        "imagenet-r": "hull",
        "imagenet-real": "all",
        "imagenetv2-matched-frequency": "line",
        "sketch": "line",
    }
    held = reduced["sketch"]["held_out"]
    assert set(held["rmse"]) == set(held["frontier"]["rmse"])
    assert (held["num_points"], held["frontier"]["num_points"]) == (310, 3)


def test_a_recipe_says_which_cells_to_mix() -> None:
    results = timm().filter(task="imagenet-a")
    recipe = only_task(results, at=0.8, draws=20)["recipe"]
    assert recipe["upstream"] == 0.8
    assert sum(cell["p"] for cell in recipe["cells"]) == pytest.approx(1)
    assert sum(cell["p"] * cell["upstream"] for cell in recipe["cells"]) == pytest.approx(0.8)
    assert sum(cell["p"] * cell["downstream"] for cell in recipe["cells"]) == pytest.approx(recipe["downstream"])
    assert recipe["downstream_low"] < recipe["downstream"] < recipe["downstream_high"]
    (best,) = only_task(results, draws=20)["recipe"]["cells"]
    assert (best["cell_id"], best["p"]) == ("eva02_large_patch14_448.mim_m38m_ft_in22k_in1k@448", 1.0)


def test_a_recipe_that_no_hull_reaches_is_refused_and_one_that_some_reach_is_not() -> None:
    far = [row(f"c{i}", us, us, shots=shots) for shots in (1, 5) for i, us in enumerate((0.2, 0.3, 0.1 * shots + 0.35))]
    with pytest.raises(UserError, match=r"upstream=0\.9: the hull does not reach there; it reaches from 0\.2 to 0\.45"):
        reduce_study(table(*far), at=0.9, draws=5)
    few, many = reduce_study(table(*far), at=0.8, draws=5)["tasks"]
    assert few["recipe"] is None
    assert "from 0.2 to 0.45" in few["recipe_reason"]
    assert many["recipe"]["downstream"] == pytest.approx(0.8)


def test_processes_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    results = timm().filter(pl.col("task").is_in(["imagenet-real", "sketch"]))
    alone = reduce_study(results, draws=5)
    monkeypatch.setattr(reduce, "MUCH_WORK", 1)
    assert reduce_study(results, draws=5, workers=2) == alone


# --- which rows count


def test_a_cell_of_which_a_draw_has_no_value_does_not_count_with_the_others() -> None:
    results = table(
        row("a", draw=0, downstream=0.4),
        row("a", draw=1, downstream=None, reason="fine-tuning diverged"),
        row("a", draw=0, shots=None),
        row("b", draw=0, downstream=0.5),
        row("b", draw=1, downstream=0.7),
        row("c", draw=0, shots=None),
        row("c", draw=1, shots=None, downstream=None),
    )
    all_images, few = reduce_study(results)["tasks"]
    assert [hull["cell_id"] for hull in few["hull"]] == ["b"]
    assert few["dropped"] == {"another draw of the cell has no value": 1, "fine-tuning diverged": 1}
    assert [hull["cell_id"] for hull in all_images["hull"]] == ["a"]
    assert all_images["dropped"] == {"another draw of the cell has no value": 1, "no downstream accuracy": 1}


def test_numbers_of_shots_and_of_images_may_be_written_as_fractions() -> None:
    floats = table(row("a"), row("b", 0.6, 0.6)).cast({"shots": pl.Float64, "upstream_num_test": pl.Float32})
    selection = select_cells(floats.with_columns(draw=pl.lit(float("nan"))))
    assert selection.cells.select("shots", "upstream_num_test").rows() == [(5, 1000)] * 2


def test_draws_are_averaged() -> None:
    results = table(
        row("a", draw=0, downstream=0.4), row("a", draw=1, downstream=0.5), row("a", draw=2, downstream=0.9)
    )
    assert only_task(results)["hull"] == [{"cell_id": "a", "upstream": 0.5, "downstream": pytest.approx(0.6)}]


def test_only_last_checkpoint_last_layer_and_ridge_count() -> None:
    results = table(
        row(downstream=0.4),
        row(downstream=0.1, step=500, last_checkpoint=False, upstream=0.2),
        row(downstream=0.9, layer=3, last_layer=False),
        row(downstream=0.8, protocol="knn"),
        row(downstream=0.7, protocol="knn", last_layer=False),
    )
    task = only_task(results)
    assert (task["n"], task["hull"][0]["downstream"]) == (1, 0.4)
    assert task["dropped"] == {"another protocol (knn)": 1}
    assert "protocol ridge" in task["method"]


def test_a_table_of_one_other_protocol_is_taken_as_it_is() -> None:
    task = only_task(table(row(protocol="ridge-fixed")))
    assert task["n"] == 1
    assert "protocol ridge-fixed" in task["method"]


def test_the_protocol_that_is_named_counts_and_others_are_no_loss() -> None:
    results = table(
        row("a", 0.5, 0.4),
        row("b", 0.6, 0.5),
        row("a", 0.5, 0.7, protocol="linear", shots=None),
        row("b", 0.6, 0.6, protocol="linear", shots=None),
    )
    for read in (results, results.lazy()):
        linear = reduce_study(read, protocol="linear", draws=5)
        (task,) = linear["tasks"]
        assert (linear["protocol"], task["shots"], task["n"], task["conflicts"]) == ("linear", None, 2, 1)
        assert task["dropped"] == {}
    default = reduce_study(results, draws=5)
    assert default["protocol"] == "ridge"
    assert [(task["shots"], task["conflicts"], task["dropped"]) for task in default["tasks"]] == [(5, 0, {})]


def test_a_protocol_that_no_row_is_of_is_refused_with_those_there_are() -> None:
    results = table(row(), row(protocol="linear", shots=None), row(protocol="knn", last_checkpoint=False))
    with pytest.raises(DataError, match=r"protocol 'liner' \(those there are: linear, ridge\). Did you mean 'linear'"):
        reduce_study(results, protocol="liner")
    with pytest.raises(DataError, match=r"is of protocol 'knn' \(those"):
        reduce_study(results, protocol="knn")
    with pytest.raises(DataError, match="no column protocol"):
        reduce_study(results.drop("protocol"), protocol="ridge")


def test_an_imported_table_needs_four_columns_only() -> None:
    results = pl.DataFrame(
        {
            "cell_id": ["a", "b", "c"],
            "task": ["real"] * 3,
            "upstream_accuracy": [0.5, 0.6, 0.7],
            "downstream_accuracy": [0.5, 0.45, 0.8],
        }
    )
    task = only_task(results)
    assert (task["shots"], task["n"], task["conflicts"], task["significant_conflicts"]) == (None, 3, 1, None)
    assert controlled_pairs(select_cells(results).cells).is_empty()
    (conflict,) = strongest_pairs(select_cells(results).cells, 20).rows(named=True)
    assert (conflict["cell_id_upstream"], conflict["cell_id_downstream"]) == ("b", "a")


def test_one_unknown_test_size_makes_significance_unknown() -> None:
    rows = [row("a", 0.4, 0.8), row("b", 0.8, 0.4)]
    known = only_task(table(*rows))
    assert (known["significant_conflicts"], known["significant_against"]) == (1, "binomial")
    assert known["conflict_share"] == 1.0
    rows[1]["downstream_num_test"] = None
    unknown = only_task(table(*rows))
    assert unknown["significant_conflicts"] is None
    assert unknown["significant_against"] == "unknown: neither test-set sizes nor enough seeds"


# --- what is dropped


def test_rows_without_a_value_are_counted_by_reason() -> None:
    results = table(
        row("a"),
        row("b", upstream=None, downstream=None, reason="the loss became NaN"),
        row("c", upstream=None, downstream=None, reason="the loss became NaN"),
        row("d", upstream=None),
        row("e", downstream=None),
        row("f", downstream=float("nan")),
        row("g", upstream=None, downstream=None),
        row("e", downstream=None, shots=1, reason="fewer than 1 image in class 'seven'"),
    )
    few, many = reduce_study(results)["tasks"]
    assert (few["n"], few["dropped"]) == (0, {"fewer than 1 image in class 'seven'": 1})
    assert few["verdict"] == "not identifiable: no cell has both accuracies"
    assert many["n"] == 1
    assert many["dropped"] == {
        "no downstream accuracy": 2,
        "no upstream accuracy": 1,
        "no upstream and no downstream accuracy": 1,
        "the loss became NaN": 2,
    }


def test_cells_that_have_no_row_that_counts_are_dropped_and_counted() -> None:
    early = {"last_checkpoint": False, "step": 500}
    results = table(
        row("a"),
        row("a", **early),
        row("a", last_layer=False, layer=3),
        row("b", protocol="knn"),
        row("b", protocol="knn", **early),
        row("c", protocol=None),
        row("d", **early),
        row("d", draw=1, **early),
        row("d", last_layer=False, layer=3, **early),
        row("e", last_layer=False, layer=3),
        row("f", downstream=None),
        row("a", task="pets", **early),
        row("a", task="cars", protocol="knn"),
    )
    for read in (results, results.lazy(), results.drop("reason").lazy()):
        selection = select_cells(read)
        assert selection.dropped == {
            ("cars", 5): {"another protocol (knn)": 1},
            ("mnist", 5): {
                "another protocol (knn)": 1,
                "another protocol (unknown)": 1,
                "no downstream accuracy": 1,
                "no last checkpoint": 2,
                "no last layer": 1,
            },
            ("pets", 5): {"no last checkpoint": 1},
        }
    tasks = reduce_study(results, draws=5)["tasks"]
    assert [(task["task"], task["n"]) for task in tasks] == [("cars", 0), ("mnist", 1), ("pets", 0)]


def test_what_is_no_number_of_an_axis_is_unknown() -> None:
    rows = [
        row(f"c{i}", 0.1 * i, 0.1 * i, lr=lr, params=i or None) for i, lr in enumerate((float("nan"), 0.1, 0.2, 0.3))
    ]
    cells = select_cells(table(*rows)).cells
    assert cells.sort("cell_id")["lr"].to_list() == [None, 0.1, 0.2, 0.3]
    assert controlled_pairs(select_cells(table(*rows)).cells).select("low", "high").rows() == [
        ("0.1", "0.2"),
        ("0.1", "0.3"),
        ("0.2", "0.3"),
    ]
    assert reduce_study(table(*rows), draws=5)["effects"]["axes"][0]["n"] == 3


@pytest.mark.parametrize(("n", "cells"), [(1, "1 cell is"), (2, "2 cells are")])
def test_too_few_cells_have_null_fits_and_a_verdict(n: int, cells: str) -> None:
    task = only_task(table(*[row(f"c{i}", i / 10, i / 10) for i in range(n)]))
    assert task["fits"] == {"hull": None, "rising": None, "all": None}
    assert (task["identifiable"], task["verdict"]) == (
        False,
        f"not identifiable: {cells} too few to see how it bends",
    )
    assert (task["reason"], task["more_cells"]) == ("too few cells", None)
    assert (task["spearman"] is None) == (n == 1)


# --- what is refused


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (table(row()).clear(), "the table is empty"),
        (table(row()).drop("task", "upstream_accuracy"), "no column task, upstream_accuracy"),
        (
            table(row(downstream=88.6)),
            r"downstream_accuracy 88.6 of cell 'a', task 'mnist' is outside \[0, 1\].*--percent",
        ),
        (table(row(upstream=-0.1)), "upstream_accuracy -0.1"),
        (table(row(upstream=float("inf"))), "upstream_accuracy inf"),
        (table(row(), row(downstream=0.3)), "cell 'a' has 2 rows of the same draw for task 'mnist', 5 shots"),
        (table(row(shots=None), row(shots=None)), "cell 'a' has 2 rows of the same draw for task 'mnist' "),
        (table(row(), row(upstream=0.6, draw=1)), "cell 'a' has 2 different upstream accuracies"),
        (table(row(cell_id=None)), "1 rows have no cell_id"),  # type: ignore[arg-type] # the point of the test
        (
            table(row(protocol="knn"), row("b", protocol="probe")),
            r"rows of several protocols \(knn, probe\); choose one with --protocol NAME",
        ),
        (table(row(last_layer=False)), "no row is of a last checkpoint and a last layer"),
        (table(row(downstream_num_test=0)), "downstream_num_test 0 .* at least 1 test image"),
        (table(row()).with_columns(shots=pl.lit("five")), "values of a wrong kind"),
        (table(row()).with_columns(shots=pl.lit(5.5)), "shots 5.5 of cell 'a', task 'mnist': a whole number is needed"),
        (
            table(row(), row("b")).with_columns(downstream_num_test=pl.lit(500.5)),
            r"downstream_num_test 500.5 of cell 'a', task 'mnist' \(2 such rows\): a whole number",
        ),
        (table(row(lr=float("-inf"))), "lr -inf of cell 'a', task 'mnist': a finite number is needed"),
        (table(row(params=0)), "params 0 of cell 'a', task 'mnist': a number above 0"),
        (table(row(params=float("inf"))), "params inf of cell 'a'"),
        (table(row(params="1,014.45")), "params '1,014.45' of cell 'a', task 'mnist': a number is needed"),
        (
            table(row(), row("b", lr=0.1), row("b", lr=0.2, draw=1)),
            r"lr is 0.1 and 0.2 in two draws of cell 'b', task 'mnist': a cell has one value of it",
        ),
        (table(row(), row(task=None, last_layer=False)), "1 rows have no task"),
    ],
)
def test_tables_that_make_no_sense_are_refused(results: pl.DataFrame, message: str) -> None:
    for read in (reduce_study, select_cells):
        with pytest.raises(DataError, match=message):
            read(results)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "l1"}, "loss: 'l1' is not known; choose squared or huber"),
        ({"points": "edges"}, "points: 'edges' is not known; choose vertices or dense"),
        ({"seed": -1}, "seed: -1 given, at least 0 is needed"),
        ({"at": 80.0}, r"upstream=80 is no accuracy; give a fraction in \[0, 1\]"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        reduce_study(table(row()), **options)


@pytest.mark.parametrize("text", ["0.8", "upstream", "upstream=much", "downstream=0.8", "upstream=nan"])
def test_a_place_for_a_recipe_is_an_upstream_accuracy(text: str) -> None:
    assert parse_at("upstream=0.8") == 0.8
    with pytest.raises(UserError, match=r"such as --at upstream=0\.8"):
        parse_at(text)


def test_counts_below_one_are_refused() -> None:
    with pytest.raises(UserError, match="draws: 0 given"):
        reduce_study(table(row()), draws=0)


# --- conflict tables of a study


def test_conflict_tables_use_means_over_draws() -> None:
    results = table(
        row("a", 0.4, 0.5, head_weight_decay=0.03, draw=0),
        row("a", 0.4, 0.7, head_weight_decay=0.03, draw=1),
        row("b", 0.5, 0.6, head_weight_decay=3.0, draw=0),
        row("b", 0.5, 0.4, head_weight_decay=3.0, draw=1),
    )
    (pair,) = controlled_pairs(select_cells(results).cells).rows(named=True)
    assert (pair["axis"], pair["low"], pair["high"], pair["pairs"]) == ("head_weight_decay", "0.03", "3.0", 1)
    assert pair["upstream_up_downstream_down"] == 1
    assert pair["mean_downstream_change"] == pytest.approx(-0.1)
    (conflict,) = strongest_pairs(select_cells(results).cells, 5).rows(named=True)
    assert conflict["differs_on"] == "head_weight_decay"
    assert conflict["not_listed"] == 0


def test_at_most_the_limit_is_listed_and_the_rest_is_counted() -> None:
    listed = strongest_pairs(select_cells(timm()).cells, 3)
    assert listed.group_by("task").len()["len"].to_list() == [3] * 5
    for conflict in listed.rows(named=True):
        assert conflict["conflicts"] == REFERENCE[conflict["task"]]["conflict"]
        assert conflict["not_listed"] == conflict["conflicts"] - 3


# --- answers that are kept


def two_tasks(mnist_of_b: float = 0.6) -> pl.DataFrame:
    rows = [
        row(cell_id, upstream, downstream, task=task)
        for task in ("mnist", "svhn")
        for cell_id, upstream, downstream in (("a", 0.2, 0.3), ("b", 0.5, 0.6), ("c", 0.6, 0.65), ("d", 0.7, 0.66))
    ]
    rows[1]["downstream_accuracy"] = mnist_of_b
    return table(*rows)


def test_kept_answers_stand_for_tasks_whose_cells_did_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    answer = reduce.answer_task

    def noting(group: pl.DataFrame, how: reduce.Settings) -> dict[str, Any]:
        asked.append(group["task"][0])
        return answer(group, how)

    monkeypatch.setattr(reduce, "answer_task", noting)
    kept: dict[str, Any] = {}
    first = reduce_study(two_tasks(), draws=20, kept=kept)
    assert asked == ["mnist", "svhn"]

    kept = json.loads(json.dumps(kept))
    assert reduce_study(two_tasks(), draws=20, kept=kept) == first
    assert asked == ["mnist", "svhn"]

    changed = reduce_study(two_tasks(0.4), draws=20, kept=kept)
    assert asked == ["mnist", "svhn", "mnist"]
    assert changed == reduce_study(two_tasks(0.4), draws=20)
    del asked[:]
    reduce_study(two_tasks(0.4), draws=21, kept=kept)
    assert asked == ["mnist", "svhn"]
    assert len(kept) == 2, "answers of earlier reductions do not pile up"


@pytest.mark.parametrize("damaged", ["", "{", "[1]", "\x00"])
def test_damaged_kept_answers_are_made_anew(tmp_path: Path, damaged: str) -> None:
    path = tmp_path / "results" / "answers.json"
    assert read_kept(path) == {}
    write_kept(path, {"a": {"n": 1}})
    assert read_kept(path) == {"a": {"n": 1}}
    path.write_text(damaged)
    assert read_kept(path) == {}
