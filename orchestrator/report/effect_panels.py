"""The panels of the effects: what axes add, how alike tasks are, the best of k settings. Pure."""

import polars as pl

from orchestrator.report.facts import Facts
from orchestrator.report.panels import Panel, titled
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


def at_shots(frame: pl.DataFrame, shots: int | None) -> pl.DataFrame:
    """Rows of one number of shots."""
    return frame.filter(pl.col("shots").eq_missing(pl.lit(shots, pl.Int64)))


def _added(facts: Facts, shots: int | None) -> pl.DataFrame:
    tested = at_shots(facts.effects["axes"], shots).filter(pl.col("p_value").is_not_null())
    text = [f"{value:.2f}".replace("0.", ".", 1) for value in tested["partial_r2"]]
    order = pl.col("axis").replace_strict(list(facts.varying), range(len(facts.varying)), default=None)
    return (
        tested.select("axis", "task", "partial_r2", "p_value", cells="n")
        .with_columns(pl.Series("text", text, dtype=pl.String))
        .sort(order, "axis", "task", nulls_last=True)
    )


def _correlations(facts: Facts, shots: int | None) -> pl.DataFrame:
    pairs = at_shots(facts.effects["correlations"], shots).drop_nulls("spearman")
    one = pairs.select("task", "other", "spearman", cells="n")
    both = pl.concat(
        [one, one.select(pl.col("other").alias("task"), pl.col("task").alias("other"), "spearman", "cells")]
    )
    text = [f"{value:.2f}".replace("0.", ".", 1).replace("-", "−") for value in both["spearman"]]
    return both.with_columns(pl.Series("text", text, dtype=pl.String)).sort("task", "other")


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
