"""What `upshot reduce` prints, in 80 columns."""

import re

import numpy as np
import polars as pl
import pytest

from orchestrator.pairs import pairs_of
from orchestrator.reduce import reduce_study
from orchestrator.reduced_tables import print_effects, print_reduced
from orchestrator.selection import select_cells
from tests.orchestrator.test_reduce import row, table, timm


def printed(results: pl.DataFrame, capsys: pytest.CaptureFixture[str], draws: int = 40) -> str:
    reduced = reduce_study(results, draws=draws)
    print_reduced(reduced)
    print_effects(reduced["effects"])
    return capsys.readouterr().out


def flat(text: str) -> str:
    """Without the line breaks inside sentences."""
    return text.replace("\n  ", " ")


def on_a_law(task: str = "real") -> pl.DataFrame:
    rng = np.random.default_rng(0)
    us_N, lost_N = rng.uniform(0.1, 0.9, 200), rng.exponential(0.005, 200)
    rows = [
        row(f"m{i}", us, 1 - (0.6 * (1 - us) ** 4 + 0.2) - lost, task=task)
        for i, (us, lost) in enumerate(zip(us_N.tolist(), lost_N.tolist(), strict=True))
    ]
    return table(*rows).drop("upstream_num_test")


def test_every_line_fits_80_columns_and_no_name_is_broken_within_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(timm(), capsys)
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"^imagenetv2-matched-frequency +1556 +4 +not identifiable *$", text, re.M)
    assert "shots" not in text
    assert "\x1b" not in text, "no colour off a terminal"
    long = printed(timm().filter(task="sketch").with_columns(task=pl.lit("a_very_long-name.of/a_task" * 2)), capsys)
    assert re.search(r"^….*_very_long-name.of/a_task  ", long, re.M), "the end of a name tells more than its beginning"


def test_every_task_has_its_numbers_and_its_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    results = pl.concat([on_a_law(), on_a_law("few").head(3)])
    few, sure = reduce_study(results, draws=40)["tasks"]
    assert sure["identifiable"]
    text = printed(results, capsys)
    fit = sure["fits"]["hull"]
    value, low, high = (f"{1 - fit[name]:.3f}" for name in ("e_ir", "e_ir_high", "e_ir_low"))
    numbers = [sure["hull_vertices"], rf"{value} \[{low}, {high}\]", f"{fit['alpha']:.2f}", f"{fit['k']:.3g}"]
    assert re.search(r" +".join(["real +5 +200", *map(str, numbers)]), text)
    assert re.search(r"few +5 +3 +\d +not identifiable", text)
    assert f"real 5: {sure['verdict']}" in flat(text)
    assert sure["verdict"].startswith("saturates at")
    assert f"few 5: {few['verdict']}" in flat(text)


def test_conflicts_and_the_best_model_are_told_by_task(capsys: pytest.CaptureFixture[str]) -> None:
    results = timm().filter(pl.col("task").is_in(["imagenet-a", "sketch"]))
    text = printed(results, capsys)
    assert re.search(r"imagenet-a +5\.7 % +2\.1 % +line +0\.1604 +310", text)
    assert "imagenet-a: the law fitted to hull is degenerate" in flat(text)
    assert "Held out are the 20 % of cells that are best upstream (line: line of logits)." in flat(text)
    unknown = printed(results.drop("upstream_num_test"), capsys)
    assert re.search(r"imagenet-a +5\.7 % +line", unknown)
    assert "imagenet-a, sketch: no significance, " in flat(unknown)


def test_too_few_held_out_points_have_no_best_model(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(on_a_law().head(9), capsys)
    assert re.search(r"real +5 +[\d.]+ % +2 *$", text, re.M)
    assert "real 5: nothing is best on fewer than 3 held-out points" in flat(text)


def test_the_strongest_conflicts_are_named_and_the_others_counted(capsys: pytest.CaptureFixture[str]) -> None:
    results = timm().filter(pl.col("task").is_in(["imagenet-a", "sketch"]))
    text, pairs = flat(printed(results, capsys)), pairs_of(select_cells(results).cells)["strongest"]
    shown = [line for line in text.splitlines() if "standard errors" in line]
    assert len(shown) == 5
    best = max(pairs, key=lambda pair: min(pair["upstream_z"], pair["downstream_z"]))
    assert f"{best['task']}: {best['cell_id_upstream']} against {best['cell_id_downstream']}," in shown[0]
    assert f"{68_870 + 117_533 - 5:,} further conflicts are not listed" in text


def test_what_was_left_out_is_told_by_task_and_reason(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = [row(f"c{i}", 0.1 * i, None, task=task, reason="no such set") for i in range(3) for task in ("a", "b")]
    text = flat(printed(table(*nothing, row("c", None, 0.5, task="c"), row("d", 0.5, 0.5, task="d")), capsys))
    assert "a 5, b 5: left out 3 rows (no such set)" in text
    assert "c 5: left out 1 row (no upstream accuracy)" in text
    assert "d 5: left out" not in text
    assert "a 5, b 5, c 5: not identifiable: no cell has both accuracies" in text
