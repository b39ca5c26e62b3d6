"""What the page's plots can show: the same values as the reducer's, at every layer and protocol that has room."""

import polars as pl
import pytest

from orchestrator.reduce import reduce_study
from orchestrator.report.choices import BYTES_A_VALUE, NOTHING, SCALE, Choices, choices_of
from orchestrator.report.facts import gather
from orchestrator.report.plot_data import protocol_options
from orchestrator.selection import select_cells
from tests.orchestrator.test_report import synthetic, with_linear

TASKS = ("digits", "mnist")


@pytest.fixture(scope="module")
def results() -> pl.DataFrame:
    return with_linear(synthetic(tasks=TASKS, shots=(5, 25))[0])


@pytest.fixture(scope="module")
def cells(results: pl.DataFrame) -> pl.DataFrame:
    return results.filter("last_checkpoint").group_by("cell_id").agg(upstream=pl.col("upstream_accuracy").first())


def rows_of(choices: Choices, place: int) -> dict[tuple[str, str], tuple[float, float]]:
    """(upstream, downstream) by task and cell."""
    choice = choices.choices[place]
    return {
        (task, cell): (up / SCALE, down / SCALE)
        for task, ups, downs in zip(choice.tasks, choice.upstream_TN, choice.downstream_TN, strict=True)
        for cell, up, down in zip(choices.cells, ups.tolist(), downs.tolist(), strict=True)
        if NOTHING not in (up, down)
    }


def test_the_first_choice_is_what_the_reducer_looked_at(results: pl.DataFrame, cells: pl.DataFrame) -> None:
    for protocol, shots in (("ridge", 5), ("linear", None)):
        choices = choices_of(results, protocol, cells)
        first = choices.choices[0]
        assert (first.protocol, first.shots, first.layer) == (protocol, shots, None)
        expected = select_cells(results, protocol).cells.filter(pl.col("shots").eq_missing(pl.lit(shots, pl.Int64)))
        shown = rows_of(choices, 0)
        assert len(shown) == expected.height
        for row in expected.iter_rows(named=True):
            pair = (row["upstream"], row["downstream"])
            assert shown[row["task"], row["cell_id"]] == pytest.approx(pair, abs=0.5 / SCALE)


def test_a_cell_of_which_a_draw_has_no_value_does_not_count(results: pl.DataFrame, cells: pl.DataFrame) -> None:
    cell = results.filter("last_layer", pl.col("downstream_accuracy").is_not_null())["cell_id"][0]
    gone = (pl.col("cell_id") == cell) & (pl.col("draw") == 1) & (pl.col("layer") == 0)
    value = pl.when(gone).then(None).otherwise("downstream_accuracy")
    choices = choices_of(results.with_columns(downstream_accuracy=value), "ridge", cells)
    by_layer = {choice.layer: rows_of(choices, i) for i, choice in enumerate(choices.choices) if choice.shots == 5}
    assert ("mnist", cell) not in by_layer[0]
    assert ("mnist", cell) in by_layer[1]
    assert ("mnist", cell) in by_layer[None]


def test_layers_that_have_no_room_are_left_out_evenly_and_told(results: pl.DataFrame, cells: pl.DataFrame) -> None:
    whole = choices_of(results, "ridge", cells)
    layers = sorted({choice.layer for choice in whole.choices if choice.layer is not None})
    assert layers == [0, 1, 2, 3, 4]
    assert whole.left_out == ()
    row = cells.height * BYTES_A_VALUE
    # Two tasks at two numbers of shots are four rows a layer of ridge; linear has the last layers alone, of each task.
    some = choices_of(results, "ridge", cells, budget=row * (4 + 2 + 3 * 4 + 0.5))
    assert sorted({choice.layer for choice in some.choices if choice.layer is not None}) == [0, 2, 4]
    assert some.left_out == ("2 of 5 layers before the last",)
    least = choices_of(results, "ridge", cells, budget=row * 4.5)
    assert {(choice.protocol, choice.layer) for choice in least.choices} == {("ridge", None)}
    assert least.left_out == ("the protocols linear", "5 of 5 layers before the last")


def test_the_page_says_what_it_lacks(results: pl.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.report import choices, plots

    monkeypatch.setattr(choices.choices_of, "__defaults__", (1.0,))
    facts = gather(results, reduce_study(results, draws=5), [])
    assert "Not on this page, to keep it small: the protocols linear; 5 of 5 layers" in plots.plots(facts, [])


def test_upstream_accuracies_that_differ_by_task_are_kept() -> None:
    table = pl.DataFrame(
        {
            "cell_id": ["a", "b", "a", "b"],
            "task": ["x", "x", "y", "y"],
            "upstream_accuracy": [0.1, 0.2, 0.3, 0.2],
            "downstream_accuracy": [0.5, 0.6, 0.7, None],
        }
    )
    choices = choices_of(table, None, pl.DataFrame({"cell_id": ["b", "a"], "upstream": [0.2, 0.1]}))
    assert rows_of(choices, 0) == {("x", "a"): (0.1, 0.5), ("x", "b"): (0.2, 0.6), ("y", "a"): (0.3, 0.7)}


def test_protocols_with_shots_of_their_own_are_offered_by_shots(results: pl.DataFrame, cells: pl.DataFrame) -> None:
    by_ridge, by_linear = (choices_of(results, name, cells) for name in ("ridge", "linear"))
    assert protocol_options(by_linear, [None]) == [
        ("linear", "linear", None, True),
        ("ridge, 5 shots", "ridge", 5, False),
        ("ridge, 25 shots", "ridge", 25, False),
    ]
    assert [option[0] for option in protocol_options(by_ridge, [5, 25])] == ["ridge", "linear"]
