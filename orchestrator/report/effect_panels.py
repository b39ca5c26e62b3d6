"""The panels of the effects: what axes add, how alike tasks are, the best of k settings. Pure."""

import numpy as np
import polars as pl

from orchestrator.effects.summary import LEVEL
from orchestrator.report.facts import Facts
from orchestrator.report.panels import Panel, at_shots, titled
from orchestrator.report.words import count


def effect_panels(facts: Facts) -> list[Panel]:
    """Every panel of the section on effects."""
    found = []
    for shots in facts.shots:
        tables = {"added": _added(facts, shots), "correlations": _correlations(facts, shots)}
        titles = {"added": "Partial R² given upstream accuracy", "correlations": "Rank correlation of tasks"}
        found += [
            Panel(kind=kind, name=kind, shots=shots, title=titled(titles[kind], shots), note="", tables={kind: table})
            for kind, table in tables.items()
            if table.height
        ]
    return [*found, *_best_of_k(facts)]


def _added(facts: Facts, shots: int | None) -> pl.DataFrame:
    tested = at_shots(facts.effects["axes"], shots).filter(pl.col("p_value").is_not_null())
    text = [
        _unless_chance(f"{value:.2f}", p <= LEVEL) for value, p in tested.select("partial_r2", "p_value").iter_rows()
    ]
    order = pl.col("axis").replace_strict(list(facts.varying), range(len(facts.varying)), default=None)
    return (
        tested.select("axis", "task", "partial_r2", "p_value", cells="n")
        .with_columns(pl.Series("text", text, dtype=pl.String))
        .sort(order, "axis", "task", nulls_last=True)
    )


def _unless_chance(number: str, sure: bool) -> str:
    """`.12`, in parentheses where chance would do."""
    short = number.removesuffix(".00") if number == "1.00" else number.replace("0.", ".", 1).replace("-", "−")
    return short if sure else f"({short})"


def _correlations(facts: Facts, shots: int | None) -> pl.DataFrame:
    """Both halves of the table, tasks that are alike next to one another."""
    pairs = at_shots(facts.effects["correlations"], shots).drop_nulls("spearman")
    one = pairs.select("task", "other", "spearman", low="spearman_low", high="spearman_high", cells="n")
    other = one.select(pl.col("other").alias("task"), pl.col("task").alias("other"), *one.columns[2:])
    # A task with itself too, since the first row tells the order of the columns.
    itself = pl.concat([one["task"], one["other"]]).unique().sort()
    whole = pl.DataFrame({"task": itself, "other": itself, "spearman": 1.0, "low": 1.0, "high": 1.0, "cells": None})
    both = pl.concat([one, other, whole.cast(one.schema)])
    sure = (pl.col("low") > 0) | (pl.col("high") < 0)
    text = [
        _unless_chance(f"{value:.2f}", known)
        for value, known in both.select("spearman", sure.fill_null(False)).iter_rows()
    ]
    place = {task: i for i, task in enumerate(seriated(one))}
    order = [pl.col(side).replace_strict(place, return_dtype=pl.Int64) for side in ("task", "other")]
    return both.with_columns(pl.Series("text", text, dtype=pl.String)).sort(order)


def seriated(pairs: pl.DataFrame) -> list[str]:
    """The tasks of a table of correlations, in an order in which tasks that are alike stand together.

    Each task is a direction in the plane of the two leading eigenvectors of the correlation matrix; they are listed by
    angle, from the largest gap between two of them (Friendly 2002, Corrgrams). What is unknown counts as 0.

    Args:
        pairs: task, other and spearman, each pair once.
    """
    names = sorted({*pairs["task"], *pairs["other"]})
    if len(names) < 3:
        return names
    place = {name: i for i, name in enumerate(names)}
    matrix = np.eye(len(names))
    for task, other, value in pairs.select("task", "other", "spearman").iter_rows():
        matrix[place[task], place[other]] = matrix[place[other], place[task]] = value
    leading = np.linalg.eigh(matrix)[1][:, -2:]
    # Rounded, so that equal angles stand in the order of names.
    angle = np.round(np.arctan2(leading[:, 0], leading[:, 1]), 9)
    order = np.argsort(angle, kind="stable")
    gaps = np.diff(np.append(angle[order], angle[order[0]] + 2 * np.pi))
    order = np.roll(order, -int(gaps.argmax()) - 1)
    # An eigenvector may point either way, so that of both directions the one that begins with the first name is taken.
    order = order if order[0] < order[-1] else order[::-1]
    return [names[i] for i in order]


def _best_of_k(facts: Facts) -> list[Panel]:
    """Curves of models with several settings: means over the values of all other axes, as far as all of them reach."""
    curves = facts.effects["best_of_k"]
    model = ("task", "shots", "family", "size")
    means = (
        curves.with_columns(
            fixed_values=pl.col("fixed").n_unique().over(model), settings=pl.col("settings").min().over(model)
        )
        .group_by(*model, "k", maintain_order=True)
        .agg(
            pl.col("settings", "fixed_values").first(),
            accuracy=pl.col("expected_best").mean(),
            reached=pl.len(),
        )
        .filter(pl.col("reached") == pl.col("fixed_values"), pl.col("settings") > 1)
        .with_columns(series=pl.concat_str("family", "size", separator=" ", ignore_nulls=True))
    )
    panels = []
    for key, rows in means.partition_by("task", "shots", as_dict=True, maintain_order=True).items():
        task, shots = str(key[0]), None if key[1] is None else int(key[1])
        table = rows.select("k", "accuracy", "series", "family", "settings")
        note = f"{count(table['series'].n_unique(), 'model')} with several settings"
        panels.append(
            Panel(
                kind="best_of_k", name=task, shots=shots, title=titled(task, shots), note=note, tables={"curves": table}
            )
        )
    return panels
