"""The tables of a comparison. Pure."""

import polars as pl

from orchestrator.comparing.answer import Comparison, to_json
from orchestrator.comparing.charts import curve

COMPARISON_SCHEMA: dict[str, type[pl.DataType]] = {
    "task": pl.String,
    "shots": pl.Int64,
    "cells_a": pl.Int64,
    "cells_b": pl.Int64,
    "upstream_low": pl.Float64,
    "upstream_high": pl.Float64,
    "difference": pl.Float64,
    "difference_low": pl.Float64,
    "difference_high": pl.Float64,
    "saturation_a": pl.Float64,
    "saturation_b": pl.Float64,
    "saturation_difference": pl.Float64,
    "saturation_difference_low": pl.Float64,
    "saturation_difference_high": pl.Float64,
    "best_a": pl.String,
    "best_a_downstream": pl.Float64,
    "best_b": pl.String,
    "best_b_downstream": pl.Float64,
    "verdict": pl.String,
}
REGIONS_SCHEMA: dict[str, type[pl.DataType]] = {
    "task": pl.String,
    "shots": pl.Int64,
    "higher": pl.String,
    "upstream_low": pl.Float64,
    "upstream_high": pl.Float64,
    "difference": pl.Float64,
    "difference_low": pl.Float64,
    "difference_high": pl.Float64,
}
CURVES_SCHEMA: dict[str, type[pl.DataType]] = {
    "task": pl.String,
    "shots": pl.Int64,
    **dict.fromkeys(("upstream", "measured", "value", "low", "high"), pl.Float64),
}
CAPTIONS = {
    "comparison": "Both studies by task: difference of the frontiers, saturation values, best cells; 95 % intervals.",
    "regions": "Where one frontier lies above the other, by how much on average, with 95 % intervals.",
    "curves": "The difference of the frontiers along upstream accuracy, with the band that holds it with 95 %.",
}


def tables(comparison: Comparison) -> dict[str, pl.DataFrame]:
    """`comparison` (a row for each task and shots), `regions` (a row for each), `curves` (a row for each step)."""
    tasks = to_json(comparison)["tasks"]
    curves = [
        curve(task.difference)
        .with_columns(task=pl.lit(task.key[0]), shots=pl.lit(task.key[1], pl.Int64))
        .select(list(CURVES_SCHEMA))
        for task in comparison.tasks
    ]
    return {
        "comparison": pl.DataFrame([_row(task) for task in tasks], schema=COMPARISON_SCHEMA),
        "regions": pl.DataFrame([row for task in tasks for row in _regions(task)], schema=REGIONS_SCHEMA),
        "curves": pl.concat([pl.DataFrame(schema=CURVES_SCHEMA), *curves]),
    }


def _row(task: dict[str, object]) -> dict[str, object]:
    row = {name: task[name] for name in ("task", "shots", "verdict")}
    for side in "ab":
        best, saturation = _of(task, f"best_{side}"), _of(task, f"saturation_{side}")
        row |= {f"cells_{side}": task[f"n_{side}"], f"saturation_{side}": saturation.get("value")}
        row |= {f"best_{side}": best["cell_id"], f"best_{side}_downstream": best["downstream"]}
    reach = _of(task, "range")
    row |= {"upstream_low": reach.get("low"), "upstream_high": reach.get("high")}
    return row | _interval(task, "difference") | _interval(task, "saturation_difference")


def _regions(task: dict[str, object]) -> list[dict[str, object]]:
    regions = task["regions"]
    assert isinstance(regions, list)
    about = {name: task[name] for name in ("task", "shots")}
    return [{**about, **region, **_interval(region, "difference")} for region in regions]


def _interval(about: dict[str, object], name: str) -> dict[str, object]:
    """The columns of a value with its interval; all null where it is not known."""
    found = _of(about, name)
    return {name: found.get("value"), f"{name}_low": found.get("low"), f"{name}_high": found.get("high")}


def _of(about: dict[str, object], name: str) -> dict[str, object]:
    found = about[name] or {}
    assert isinstance(found, dict)
    return found
