"""The charts of a report: what each one shows, as tables. Pure; page and figures are drawn from the same panels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from orchestrator.conflicts import is_ordered
from orchestrator.frontier import Law
from orchestrator.report.facts import Facts, plain

Kind = str
"""Which chart draws a panel: a name of `figures.charts_of`, like "frontier" or "axis AXIS"."""

CURVE_POINTS = 41


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


def frontier_panels(facts: Facts) -> list[Panel]:
    """Downstream against upstream accuracy for every task and number of shots."""
    values = facts.points.partition_by("task", "shots", as_dict=True)
    about = about_cells(facts)
    return [_frontier_panel(task, about, values.get((task["task"], task["shots"]))) for task in facts.tasks]


def line_axes(facts: Facts) -> dict[str, list[str]]:
    """The axes that have an order and vary here, each with its values in order."""
    kinds = facts.cells.schema
    return {
        axis: axis_values(facts.cells, axis)
        for axis in facts.varying
        if axis == "size" or is_ordered(axis, kinds[axis])
    }


def about_cells(facts: Facts) -> pl.DataFrame:
    """What a point tells of its cell: cell, axes (in words), family, params."""
    # By id, which is a hash: in the order of families the last one would cover the others.
    return facts.cells.sort("cell_id").select(
        pl.col("cell_id").alias("cell"), pl.col("text").alias("axes"), family_of(facts.cells), "params"
    )


def at_shots(frame: pl.DataFrame, shots: int | None) -> pl.DataFrame:
    """Rows of one number of shots."""
    return frame.filter(pl.col("shots").eq_missing(pl.lit(shots, pl.Int64)))


def shots_text(shots: int | None) -> str:
    """`10 shots`, `1 shot`, or nothing."""
    return "" if shots is None else f"{shots} shot{'s' if shots != 1 else ''}"


def titled(text: str, shots: int | None) -> str:
    """A heading with its number of shots."""
    return ", ".join(filter(None, [text, shots_text(shots)]))


def short_verdict(task: Mapping[str, Any]) -> str:
    """The saturation value with its interval, or that it is not identifiable, and why in a few words."""
    if not task["identifiable"]:
        return f"not identifiable: {task['reason']}"
    return str(task["verdict"]).partition("]")[0] + "]"


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
        kind="frontier", name=task["task"], shots=task["shots"], title=title, note=short_verdict(task), tables=tables
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


def axis_values(cells: pl.DataFrame, axis: str) -> list[str]:
    """An axis's values in order: sizes by their parameters, numbers by size."""
    rank = pl.col("params").mean() if axis == "size" else pl.col(axis).first()
    found = cells.drop_nulls(axis).group_by(axis).agg(rank.alias("rank"))
    return [plain(value) for value in found.sort("rank", axis, nulls_last=True)[axis]]


def family_of(frame: pl.DataFrame) -> pl.Expr:
    """The family, or null where the frame knows none."""
    return pl.col("family") if "family" in frame.columns else pl.lit(None, pl.String).alias("family")
