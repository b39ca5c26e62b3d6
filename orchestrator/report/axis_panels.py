"""The panels of the axes: what raising one does to both accuracies, all else equal. Pure.

A set of cells is what a line of these charts joins: cells that agree on all other axes.
"""

from collections.abc import Sequence

import polars as pl

from orchestrator.conflicts.noise import MIN_FREEDOM, student_95
from orchestrator.effect_charts import Spacing
from orchestrator.report.facts import Facts, axes_text, plain
from orchestrator.report.panels import Panel, at_shots, family_of, line_axes, titled
from orchestrator.report.words import count

MAX_LINES = 60  # thin lines of a chart; with more only the means are drawn
DECADE = 10.0  # from this ratio of its largest to its smallest value an axis has a log scale
UPSTREAM = "upstream"
MEANS_SCHEMA: dict[str, type[pl.DataType]] = {
    "value": pl.String,
    "rank": pl.Int64,
    "family": pl.String,
    "accuracy": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "lines": pl.Int64,
}


def spacing_of(facts: Facts, axis: str) -> Spacing:
    """By logarithm where an axis's numbers span a decade, evenly where they are no numbers or span it from 0."""
    values = facts.cells[axis].drop_nulls()
    if not values.dtype.is_numeric():
        return "even"
    numbers = values.cast(pl.Float64).to_numpy()
    above = numbers[numbers > 0]
    spans = above.size > 0 and above.max() >= DECADE * above.min()
    if (numbers < 0).any() or not spans:
        return "linear"
    return "log" if above.size == numbers.size else "even"


def axis_panels(facts: Facts) -> list[Panel]:
    """For every ordered axis: upstream accuracy, and for each number of shots the mean over all tasks, then each."""
    panels = []
    for axis, values in line_axes(facts).items():
        sets = _sets(facts, axis, values)
        upstream = facts.cells.select("cell_id", accuracy="upstream")
        panels.append(_axis_panel(facts, axis, UPSTREAM, None, _lines(sets, upstream)))
        for shots in facts.shots:
            downstream = _lines(sets, _mean_over_tasks(facts, shots))
            panels.append(_axis_panel(facts, axis, "downstream", shots, downstream))
            panels += _task_panels(facts, axis, shots, sets)
    return [panel for panel in panels if any(table.height for table in panel.tables.values())]


def _sets(facts: Facts, axis: str, values: Sequence[str]) -> pl.DataFrame:
    """The sets of cells: cell_id, value, rank (the value's place among `values`), line (the set's number), family."""
    others = [other for other in facts.axes if other != axis]
    rows = facts.cells.filter(pl.col(axis).is_not_null())
    line = pl.struct(others).rank("dense").cast(pl.Int64) if others else pl.lit(1, pl.Int64)
    labels = [plain(value) for value in rows[axis]]
    place = {value: i for i, value in enumerate(values)}
    # An imported axis may be called "line" or "value", so that nothing of the table but these columns goes on.
    return rows.select(
        "cell_id",
        pl.Series("value", labels, dtype=pl.String),
        pl.Series("rank", [place[label] for label in labels], dtype=pl.Int64),
        line.alias("line"),
        family_of(rows),
    )


def _lines(sets: pl.DataFrame, accuracy: pl.DataFrame) -> pl.DataFrame:
    """Sets with an accuracy of two or more cells, in the order of their values."""
    known = sets.join(accuracy.drop_nulls(), on="cell_id")
    return known.filter(pl.len().over("line") > 1).sort("line", "rank", "cell_id")


def _means(lines: pl.DataFrame) -> pl.DataFrame:
    """By family and value, the mean over the sets that have all values of their family: `MEANS_SCHEMA`.

    The interval is of a mean whose sets are compared with themselves: what a set is above or below the others at all
    values does not count (Cousineau 2005, with Morey's correction 2008). None for fewer than five sets.
    """
    # Families may have sizes of their own, so a line is whole that has all values of its family.
    whole = lines.filter(pl.len().over("line") == pl.col("value").n_unique().over("family"))
    own = pl.col("accuracy").mean()
    means = (
        whole.with_columns(
            within=pl.col("accuracy") - own.over("line") + own.over("family"),
            values=pl.col("value").n_unique().over("family"),
        )
        .group_by("value", "rank", "family")
        .agg(own, spread=pl.col("within").std(), values=pl.col("values").first(), lines=pl.len().cast(pl.Int64))
        .sort("family", "rank")
    )
    errors = [student_95(num - 1) if num > MIN_FREEDOM else None for num in means["lines"]]
    corrected = (pl.col("values") / (pl.col("values") - 1)).sqrt() / pl.col("lines").sqrt()
    half = pl.Series("errors", errors, dtype=pl.Float64) * means.select(pl.col("spread") * corrected).to_series()
    bounded = means.with_columns(
        low=(pl.col("accuracy") - half).clip(0.0, 1.0), high=(pl.col("accuracy") + half).clip(0.0, 1.0)
    )
    return bounded.select(pl.col(name).cast(kind) for name, kind in MEANS_SCHEMA.items())


def _mean_over_tasks(facts: Facts, shots: int | None) -> pl.DataFrame:
    """Mean accuracy over the tasks of the cells that have a value on every one of them."""
    points = at_shots(facts.points, shots)
    means = points.group_by("cell_id").agg(accuracy=pl.col("downstream").mean(), tasks=pl.len())
    return means.filter(pl.col("tasks") == points["task"].n_unique()).select("cell_id", "accuracy")


def _axis_panel(facts: Facts, axis: str, quantity: str, shots: int | None, lines: pl.DataFrame) -> Panel:
    means = _means(lines)
    ids = lines["line"].unique(maintain_order=True)
    note, shown = count(ids.len(), "set") + " of cells", lines
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
        tables={"lines": _told(facts, axis, shown), "means": means, "bands": means.drop_nulls("low")},
    )


def _task_panels(facts: Facts, axis: str, shots: int | None, sets: pl.DataFrame) -> list[Panel]:
    """The means of each task."""
    panels = []
    points = at_shots(facts.points, shots).partition_by("task", as_dict=True)
    for task in facts.task_names:
        of_task = points.get((task,))
        if of_task is None:
            continue
        means = _means(_lines(sets, of_task.select("cell_id", accuracy="downstream")))
        panels.append(
            Panel(
                kind=f"axis_tasks {axis}",
                name=task,
                shots=shots,
                title=titled(task, shots),
                note="" if means.height else "no set of cells has all values",
                tables={"means": means, "bands": means.drop_nulls("low")},
            )
        )
    return panels


def _told(facts: Facts, axis: str, lines: pl.DataFrame) -> pl.DataFrame:
    """The lines with what their cells agree on, in words."""
    fixed = [name for name in facts.varying if name != axis]
    cells = lines.select("cell_id").join(facts.cells, on="cell_id", maintain_order="left")
    text = [axes_text({**row, axis: None}, fixed) for row in cells.iter_rows(named=True)]
    return lines.select("value", "rank", "accuracy", "line", "family").with_columns(
        pl.Series("axes", text, dtype=pl.String)
    )
