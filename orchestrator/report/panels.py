"""The charts of a report: what each one shows, as tables. Pure; page and figures are drawn from the same panels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from orchestrator.conflicts import is_ordered
from orchestrator.frontier import Law
from orchestrator.report.facts import Facts, axes_text, plain
from orchestrator.report.words import count

Kind = str
"""Which chart draws a panel: "frontier", "layers", "changes", "added", "correlations", "best_of_k", "measures"
or "axis AXIS"."""

CURVE_POINTS = 41
MAX_CHANGES = 24
MAX_LINES = 60  # thin lines of an axis chart; with more only the means are drawn
UPSTREAM = "upstream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One chart with its data.

    Args:
        kind: which chart draws it.
        name: what it is about: a task, or a quantity.
        shots: of its values; None where they know none, or where shots do not matter.
        title: its heading.
        note: a sentence under the heading.
        tables: its data by the names that the chart asks for.
    """

    kind: Kind
    name: str
    shots: int | None
    title: str
    note: str
    tables: Mapping[str, pl.DataFrame]


def study_panels(facts: Facts) -> list[Panel]:
    """The panels of frontier, layers, axes and conflicts."""
    return [*frontier_panels(facts), *layers_panels(facts), *axis_panels(facts), *changes_panels(facts)]


def frontier_panels(facts: Facts) -> list[Panel]:
    """Downstream against upstream accuracy for every task and number of shots."""
    values = facts.points.partition_by("task", "shots", as_dict=True)
    about = about_cells(facts)
    return [_frontier_panel(task, about, values.get((task["task"], task["shots"]))) for task in facts.tasks]


def layers_panels(facts: Facts) -> list[Panel]:
    """Accuracy against depth for every task and number of shots that has several layers."""
    panels = []
    for key, rows in facts.layers.partition_by("task", "shots", as_dict=True, maintain_order=True).items():
        task, shots = str(key[0]), None if key[1] is None else int(key[1])
        tables = {"layers": rows.drop("task", "shots", "size")}
        panels.append(Panel(kind="layers", name=task, shots=shots, title=titled(task, shots), note="", tables=tables))
    return panels


def line_axes(facts: Facts) -> dict[str, list[str]]:
    """The axes that have an order and vary here, each with its values in order."""
    kinds = facts.cells.schema
    return {
        axis: _values(facts.cells, axis) for axis in facts.varying if axis == "size" or is_ordered(axis, kinds[axis])
    }


def axis_panels(facts: Facts) -> list[Panel]:
    """For every ordered axis: upstream accuracy, and mean accuracy over all tasks for each number of shots."""
    panels = []
    for axis, values in line_axes(facts).items():
        upstream = facts.cells.select("cell_id", accuracy="upstream")
        panels.append(_axis_panel(facts, axis, values, UPSTREAM, None, upstream))
        panels += [
            _axis_panel(facts, axis, values, "downstream", shots, _mean_over_tasks(facts, shots))
            for shots in facts.shots
        ]
    return [panel for panel in panels if any(table.height for table in panel.tables.values())]


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


def about_cells(facts: Facts) -> pl.DataFrame:
    """What a point tells of its cell: cell, axes (in words), family, params."""
    # By id, which is a hash: in the order of families the last one would cover the others.
    return facts.cells.sort("cell_id").select(
        pl.col("cell_id").alias("cell"), pl.col("text").alias("axes"), _family(facts.cells), "params"
    )


def shots_text(shots: int | None) -> str:
    """`10 shots`, `1 shot`, or nothing."""
    return "" if shots is None else f"{shots} shot{'s' if shots != 1 else ''}"


def titled(text: str, shots: int | None) -> str:
    """A heading with its number of shots."""
    return ", ".join(filter(None, [text, shots_text(shots)]))


def _frontier_panel(task: Mapping[str, Any], about: pl.DataFrame, values: pl.DataFrame | None) -> Panel:
    if values is None:
        values = pl.DataFrame(schema={"cell_id": pl.String, "upstream": pl.Float64, "downstream": pl.Float64})
    # Every panel lists every cell, so that the page holds ids, axes and parameters once.
    points = about.join(
        values.select("cell_id", "upstream", "downstream"),
        left_on="cell",
        right_on="cell_id",
        how="left",
        maintain_order="left",
    )
    hull = pl.DataFrame(
        [(vertex["upstream"], vertex["downstream"]) for vertex in task["hull"]],
        schema={"upstream": pl.Float64, "downstream": pl.Float64},
        orient="row",
    )
    fit = task["fits"]["hull"]
    tables = {"points": points, "hull": hull, "law": _law(fit, hull, sure=task["identifiable"]), "band": _band(task)}
    title = titled(task["task"], task["shots"])
    return Panel(
        kind="frontier", name=task["task"], shots=task["shots"], title=title, note=task["verdict"], tables=tables
    )


def _law(fit: Mapping[str, Any] | None, hull: pl.DataFrame, *, sure: bool) -> pl.DataFrame:
    """The fitted curve over the hull, and beyond it up to upstream accuracy 1."""
    schema = {"upstream": pl.Float64, "downstream": pl.Float64, "part": pl.String}
    if fit is None or hull.is_empty():
        return pl.DataFrame(schema=schema)
    law = Law(k=fit["k"], alpha=fit["alpha"], e_ir=fit["e_ir"], rmse=0.0)
    low, high = hull["upstream"][0], hull["upstream"][-1]
    parts = {
        "fit" if sure else "unsure": np.linspace(low, high, CURVE_POINTS),
        "beyond": np.linspace(high, 1.0, CURVE_POINTS),
    }
    rows = [
        pl.DataFrame({"upstream": us_N, "downstream": np.clip(law.predict(us_N), 0.0, 1.0)}).with_columns(
            part=pl.lit(part)
        )
        for part, us_N in parts.items()
    ]
    return pl.concat(rows)


def _band(task: Mapping[str, Any]) -> pl.DataFrame:
    """The saturation value and its interval, where the data identify it."""
    fit = task["fits"]["hull"]
    schema = {"value": pl.Float64, "low": pl.Float64, "high": pl.Float64, "text": pl.String}
    if not task["identifiable"] or fit is None:
        return pl.DataFrame(schema=schema)
    row = (1 - fit["e_ir"], 1 - fit["e_ir_high"], 1 - fit["e_ir_low"], task["verdict"])
    return pl.DataFrame([row], schema=schema, orient="row")


def _values(cells: pl.DataFrame, axis: str) -> list[str]:
    """An axis's values in order: sizes by their parameters, numbers by size."""
    rank = pl.col("params").mean() if axis == "size" else pl.col(axis).first()
    found = cells.drop_nulls(axis).group_by(axis).agg(rank.alias("rank"))
    return [plain(value) for value in found.sort("rank", axis, nulls_last=True)[axis]]


def _mean_over_tasks(facts: Facts, shots: int | None) -> pl.DataFrame:
    """Mean accuracy over the tasks of the cells that have a value on every one of them."""
    points = facts.points.filter(pl.col("shots").eq_missing(pl.lit(shots, pl.Int64)))
    means = points.group_by("cell_id").agg(accuracy=pl.col("downstream").mean(), tasks=pl.len())
    return means.filter(pl.col("tasks") == points["task"].n_unique()).select("cell_id", "accuracy")


def _axis_panel(
    facts: Facts, axis: str, values: Sequence[str], quantity: str, shots: int | None, accuracy: pl.DataFrame
) -> Panel:
    lines = _controlled_lines(facts, axis, values, accuracy.drop_nulls())
    # Families may have sizes of their own, so a line is whole that has all values of its family.
    whole = lines.filter(pl.len().over("line") == pl.col("value").n_unique().over("family"))
    means = (
        whole.group_by("value", "rank", "family").agg(pl.col("accuracy").mean(), lines=pl.len()).sort("family", "rank")
    )
    ids = lines["line"].unique(maintain_order=True)
    note, shown = count(ids.len(), "line"), lines
    if ids.len() > MAX_LINES and means.height:
        note, shown = f"{note}, only their means are drawn", lines.clear()
    elif ids.len() > MAX_LINES:
        note = f"{note}, of which {MAX_LINES} are drawn"
        shown = lines.filter(pl.col("line").is_in(ids.head(MAX_LINES).implode()))
    what = "upstream accuracy" if quantity == UPSTREAM else "mean downstream accuracy"
    title = titled(what, shots)
    return Panel(
        kind=f"axis {axis}",
        name=quantity,
        shots=shots,
        title=title,
        note=f"{title}, {note}",
        tables={"lines": shown, "means": means},
    )


def _controlled_lines(facts: Facts, axis: str, values: Sequence[str], accuracy: pl.DataFrame) -> pl.DataFrame:
    """Cells that agree on all other axes, joined into lines of two or more.

    Returns:
        value, rank (the value's place among `values`), accuracy, line, family, axes (those that are fixed, in words).
    """
    others = [other for other in facts.axes if other != axis]
    # An imported axis may be called "line" or "accuracy", but no name begins with a space.
    known = facts.cells.filter(pl.col(axis).is_not_null())
    known = known.join(accuracy.rename({"accuracy": " accuracy"}), on="cell_id")
    line = pl.struct(others).rank("dense").cast(pl.Int64) if others else pl.lit(1, pl.Int64)
    rows = known.with_columns(line.alias(" line")).filter(pl.len().over(" line") > 1).sort(" line", "cell_id")
    fixed = [name for name in facts.varying if name != axis]
    labels = [plain(value) for value in rows[axis]]
    text = [axes_text({**row, axis: None}, fixed) for row in rows.iter_rows(named=True)]
    return rows.select(
        pl.Series("value", labels, dtype=pl.String),
        pl.Series("rank", [values.index(label) for label in labels], dtype=pl.Int64),
        pl.col(" accuracy").alias("accuracy"),
        pl.col(" line").alias("line"),
        _family(rows),
        pl.Series("axes", text, dtype=pl.String),
    ).sort("line", "rank")


def _changes(facts: Facts, shots: int | None) -> tuple[pl.DataFrame, str]:
    """Rows of the changes chart, and how many could not be shown."""
    rows = facts.changes.filter(pl.col("shots").eq_missing(pl.lit(shots, pl.Int64)))
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
    place = {value: i for i, value in enumerate(_values(cells, axis))}
    known = cells[axis].drop_nulls().unique()
    return {str(as_text): place[plain(value)] for value, as_text in zip(known, known.cast(pl.String), strict=True)}


def change_text() -> pl.Expr:
    """`fraction 0.1 to 0.3` from the columns axis, low and high."""
    sides = [pl.col(side).str.replace(r"\.0$", "") for side in ("low", "high")]
    return pl.format("{} {} to {}", "axis", *sides)


def _against() -> pl.Expr:
    against = pl.col("upstream_up_downstream_down") + pl.col("upstream_down_downstream_up")
    return pl.format("{} of {} pairs", against, "pairs")


def _family(frame: pl.DataFrame) -> pl.Expr:
    return pl.col("family") if "family" in frame.columns else pl.lit(None, pl.String).alias("family")
