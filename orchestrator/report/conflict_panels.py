"""The panels of conflicts: their share by task, the axes that cells differ on, what raising an axis does. Pure."""

from collections.abc import Sequence
from typing import Literal, get_args

import polars as pl

from orchestrator.report.axis_panels import UPSTREAM
from orchestrator.report.facts import Facts, plain
from orchestrator.report.panels import Panel, at_shots, axis_values, titled
from orchestrator.report.words import count, percent

Which = Literal["significant", "all"]
"""The conflicts that are shown: those that exceed their noise, or all of them."""

ALL_TASKS = "all tasks"
MAX_CHANGES = 24


def conflict_panels(facts: Facts) -> list[Panel]:
    """Every panel of the section on conflicts."""
    shares = [_shares_panel(facts, shots, which) for shots in facts.shots for which in get_args(Which)]
    by_axis = [_axes_panel(facts, shots, which) for shots in facts.shots for which in get_args(Which)]
    return [panel for panel in [*shares, *by_axis] if panel is not None] + changes_panels(facts)


def counted(which: Which) -> str:
    """The reducer's name for how many conflicts there are."""
    return "significant_conflicts" if which == "significant" else "conflicts"


def _shares_panel(facts: Facts, shots: int | None, which: Which) -> Panel | None:
    rows = [
        (task["task"], task[counted(which)], task["n"] * (task["n"] - 1) // 2, task["spearman"])
        for task in facts.tasks
        if task["shots"] == shots and task["n"] > 1 and task[counted(which)] is not None
    ]
    if not rows:
        return None
    shares = pl.DataFrame(rows, schema=["task", "conflicts", "pairs", "spearman"], orient="row")
    shares = shares.with_columns(
        share=pl.col("conflicts") / pl.col("pairs"), spearman=pl.col("spearman").cast(pl.Float64)
    )
    text = [f"{percent(share)} ({number:,})" for share, number in shares.select("share", "conflicts").iter_rows()]
    return Panel(
        kind="conflicts",
        name=which,
        shots=shots,
        title=titled(_title(which, "conflicts"), shots),
        note="",
        tables={"shares": shares.with_columns(pl.Series("text", text)).sort("share", "task", descending=[True, False])},
    )


def _axes_panel(facts: Facts, shots: int | None, which: Which) -> Panel | None:
    """The share of conflicts among the pairs that differ on one axis only."""
    number = pl.col(f"alone_{which_column(which)}")
    rows = at_shots(facts.differing, shots).filter(pl.col("alone_pairs") > 0, number.is_not_null())
    if rows.is_empty():
        return None
    by_task = rows.select("axis", "task", conflicts=number, pairs="alone_pairs")
    everywhere = by_task.group_by("axis", maintain_order=True).agg(
        task=pl.lit(ALL_TASKS), conflicts=pl.col("conflicts").sum(), pairs=pl.col("pairs").sum()
    )
    both = pl.concat([everywhere.select(by_task.columns), by_task]).with_columns(
        share=pl.col("conflicts") / pl.col("pairs")
    )
    order = everywhere.select("axis", place=pl.col("conflicts") / pl.col("pairs"))
    both = both.join(order, on="axis", maintain_order="left").sort(
        "place", "axis", descending=[True, False], maintain_order=True
    )
    text = [f"{share:.2f}".removeprefix("0") if share < 1 else "1" for share in both["share"]]
    return Panel(
        kind="conflict_axes",
        name=which,
        shots=shots,
        title=titled(_title(which, "conflicts of pairs that differ on one axis only"), shots),
        note="",
        tables={"axes": both.drop("place").with_columns(pl.Series("text", text, dtype=pl.String))},
    )


def which_column(which: Which) -> str:
    """The name of a count of `conflicts.DIFFERING_SCHEMA`, without its prefix."""
    return "significant" if which == "significant" else "conflicts"


def _title(which: Which, noun: str) -> str:
    return f"Significant {noun}" if which == "significant" else f"All {noun}"


def changes_panels(facts: Facts) -> list[Panel]:
    """What raising each axis does, upstream and on every task, for each number of shots."""
    return [
        Panel(
            kind="changes",
            name="changes",
            shots=shots,
            title=titled("Mean change of accuracy", shots),
            note=note,
            tables={"changes": rows},
        )
        for shots in facts.shots
        for rows, note in [_changes(facts, shots)]
        if rows.height
    ]


def _changes(facts: Facts, shots: int | None) -> tuple[pl.DataFrame, str]:
    """Rows of the changes chart, and how many could not be shown."""
    rows = at_shots(facts.changes, shots)
    keys = ["axis", "low", "high"]
    shown = _drawn_changes(facts, rows)
    if shown.is_empty():
        return pl.DataFrame(), ""
    kept = shown.join(rows, on=keys, maintain_order="left_right").with_columns(change=change_text())
    by_task = kept.select(
        "change", pl.col("task").alias("column"), value="mean_downstream_change", pairs="pairs", against=_against()
    )
    upstream = kept.group_by("change", maintain_order=True).agg(
        column=pl.lit(UPSTREAM),
        value=(pl.col("mean_upstream_change") * pl.col("pairs")).sum() / pl.col("pairs").sum(),
        pairs=pl.col("pairs").max(),
        against=pl.lit(""),
    )
    both = pl.concat([upstream.select(by_task.columns), by_task], how="vertical_relaxed")
    text = [f"{value:+.3f}".replace("+0.", "+.").replace("-0.", "−.") for value in both["value"]]
    hidden = rows.select(keys).n_unique() - shown.height
    note = (
        f"Those with the most pairs are drawn; {count(hidden, 'further change')} in tables/axes.csv." if hidden else ""
    )
    return both.with_columns(pl.Series("text", text, dtype=pl.String)), note


def _drawn_changes(facts: Facts, rows: pl.DataFrame) -> pl.DataFrame:
    """axis, low and high of the changes to draw, in order: the `MAX_CHANGES` with the most pairs of cells.

    A change of an ordered axis that two smaller ones make up is left out.
    """
    keys = ["axis", "low", "high"]
    sums = rows.group_by(*keys, "ordered").agg(pl.col("pairs").sum()).sort(keys)
    parts = []
    for (axis, ordered), part in sums.partition_by("axis", "ordered", as_dict=True).items():
        place = _places(facts.cells, str(axis)) if ordered else {}
        rank = [(place.get(low, 0), place.get(high, 0)) for low, high in part.select("low", "high").iter_rows()]
        is_step = _steps(rank) if ordered else [True] * part.height
        parts.append(
            part.with_columns(
                by_axis=pl.lit(facts.axes.index(str(axis))),
                by_value=pl.Series([low for low, _ in rank]),
                step=pl.Series(is_step),
            )
        )
    if not parts:
        return sums.select(keys)
    steps = pl.concat(parts).filter("step").sort("pairs", *keys, descending=[True, False, False, False])
    return steps.head(MAX_CHANGES).sort("by_axis", "by_value", "low", "high").select(keys)


def _steps(changes: Sequence[tuple[int, int]]) -> list[bool]:
    """Which changes, from one place to a later one, are not made up of two others."""
    after: dict[int, set[int]] = {}
    for low, high in changes:
        after.setdefault(low, set()).add(high)
    return [not any(high in after.get(middle, ()) for middle in after[low] if middle < high) for low, high in changes]


def _places(cells: pl.DataFrame, axis: str) -> dict[str, int]:
    """The place of each value in the order of its axis, by how the table of changes writes it."""
    place = {value: i for i, value in enumerate(axis_values(cells, axis))}
    known = cells[axis].drop_nulls().unique()
    return {str(as_text): place[plain(value)] for value, as_text in zip(known, known.cast(pl.String), strict=True)}


def change_text() -> pl.Expr:
    """`fraction 0.1 to 0.3` from the columns axis, low and high."""
    sides = [pl.col(side).str.replace(r"\.0$", "") for side in ("low", "high")]
    return pl.format("{} {} to {}", "axis", *sides)


def _against() -> pl.Expr:
    against = pl.col("upstream_up_downstream_down") + pl.col("upstream_down_downstream_up")
    return pl.format("{} of {} pairs", against, "pairs")
