"""Conflicts: pairs of cells of which one is better upstream and worse downstream. Pure numpy and polars.

Source: arXiv 2110.02095, "two points where one is on the right but lower than the other". A tie is no conflict.

All accuracies are fractions in [0, 1]. Shape suffix: N cells. `counts` counts pairs and correlates, `noise` says what a
difference must exceed, `significant` finds the pairs that do, `directions` sums up what raising an axis does.
The frames called `cells` hold one row per task, shots and cell: task, shots, cell_id, upstream, downstream,
upstream_num_test, downstream_num_test, the axes (see `axes_of`), and params where known
(`orchestrator.selection.select_cells` makes them).
"""

from typing import TYPE_CHECKING

import polars as pl

from orchestrator.conflicts.axes import (
    AXES,
    DEPENDENT,
    NO_AXES,
    UNORDERED,
    axes_of,
    comparable,
    is_ordered,
    order_column,
)
from orchestrator.conflicts.counts import PairCounts, count_pairs, kendall, rank_interval, spearman
from orchestrator.conflicts.differing import DIFFERING_SCHEMA, conflicts_by_axis
from orchestrator.conflicts.directions import DIRECTIONS_SCHEMA, directions
from orchestrator.conflicts.noise import Noise, binomial, noise_of, seed_spread
from orchestrator.conflicts.significant import Pairs, count_significant, strongest

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AXES",
    "CONTROLLED_SCHEMA",
    "DEPENDENT",
    "DIFFERING_SCHEMA",
    "DIRECTIONS_SCHEMA",
    "NO_AXES",
    "STRONGEST_SCHEMA",
    "UNORDERED",
    "Noise",
    "PairCounts",
    "axes_of",
    "binomial",
    "conflicts_by_axis",
    "controlled_directions",
    "controlled_pairs",
    "count_pairs",
    "count_significant",
    "crowded_axes",
    "is_ordered",
    "kendall",
    "noise_of",
    "rank_interval",
    "seed_spread",
    "significant_of",
    "spearman",
    "strongest_pairs",
]

MAX_VALUES = 50
CONTROLLED_SCHEMA: dict[str, pl.DataType] = {
    "task": pl.String(),
    "shots": pl.Int64(),
    "axis": pl.String(),
    "low": pl.String(),
    "high": pl.String(),
    "ordered": pl.Boolean(),
    "pairs": pl.Int64(),
    "upstream_up_downstream_down": pl.Int64(),
    "upstream_down_downstream_up": pl.Int64(),
    "both_up": pl.Int64(),
    "both_down": pl.Int64(),
    "tied": pl.Int64(),
    "mean_upstream_change": pl.Float64(),
    "mean_downstream_change": pl.Float64(),
}
STRONGEST_SCHEMA: dict[str, pl.DataType] = {
    "task": pl.String(),
    "shots": pl.Int64(),
    "cell_id_upstream": pl.String(),
    "cell_id_downstream": pl.String(),
    "upstream_gain": pl.Float64(),
    "downstream_loss": pl.Float64(),
    "upstream_z": pl.Float64(),
    "downstream_z": pl.Float64(),
    "significant": pl.Boolean(),
    "differs_on": pl.String(),
    "conflicts": pl.Int64(),
    "not_listed": pl.Int64(),
}


def controlled_pairs(cells: pl.DataFrame) -> pl.DataFrame:
    """What raising one axis from `low` to `high`, all else equal, did to both accuracies: `CONTROLLED_SCHEMA`.

    One row per task, shots, axis and pair of values. `size` is ordered by parameters where they are known. Values are
    text, since axes are numbers and names. Cells that agree on all axes count as one, with their mean accuracies;
    those with an unknown axis are in no pair (`comparable`). An axis of more than 50 values is not compared value by
    value (`crowded_axes`).
    """
    known = axes_of(cells)
    crowded = crowded_axes(cells)
    compared = [axis for axis in known if axis not in crowded]
    if not compared:
        return pl.DataFrame(schema=CONTROLLED_SCHEMA)
    numbers, identity, values = _settings(comparable(cells, known), known)
    pairs = pl.concat(_pairs_along(numbers, identity, axis, known) for axis in compared)
    both = pairs.join(values, on="setting").join(
        values,
        left_on=["setting_high", "task", "shots"],
        right_on=["setting", "task", "shots"],
        nulls_equal=True,
        suffix="_high",
    )
    return _tally(both).cast(dict(CONTROLLED_SCHEMA.items()))


def crowded_axes(cells: pl.DataFrame) -> dict[str, int]:
    """Axes with too many values for a row a pair of them, and how many those are."""
    numbers = {axis: cells[axis].drop_nulls().n_unique() for axis in axes_of(cells)}
    return {axis: number for axis, number in numbers.items() if number > MAX_VALUES}


def controlled_directions(cells: pl.DataFrame) -> pl.DataFrame:
    """In which direction upstream and downstream part as each ordered axis is raised: `DIRECTIONS_SCHEMA`.

    One row per task, shots and axis; `directions` explains the columns. Axes without an order, and those that do not
    vary, have no row. Cells with an unknown axis are left out (`comparable`).
    """
    known = axes_of(cells)
    known_cells = comparable(cells, known)
    return directions(known_cells, [axis for axis in known if _can_be_raised(known_cells, axis)], known)


def significant_of(cells: pl.DataFrame) -> tuple[int | None, str]:
    """Significant conflicts among one task's cells, and what they were held against.

    None, and why, where the noise of a side is unknown.
    """
    known = axes_of(cells)
    us_noise, ds_noise = (noise_of(cells, side, known) for side in ("upstream", "downstream"))
    if us_noise is None or ds_noise is None:
        return None, "unknown: neither test-set sizes nor enough seeds"
    us_N, ds_N = cells["upstream"].to_numpy(), cells["downstream"].to_numpy()
    sources = dict.fromkeys((us_noise.source, ds_noise.source))
    return count_significant(us_N, ds_N, us_noise, ds_noise), " and ".join(sources)


def strongest_pairs(cells: pl.DataFrame, limit: int) -> pl.DataFrame:
    """The `limit` strongest conflicts of every task and shots, strongest first: `STRONGEST_SCHEMA`.

    A conflict is as strong as the weaker of its two differences, in standard errors where the noise of both sides is
    known (`noise_of`), otherwise in accuracy. `significant` tells whether both exceed the 95 % bound of their noise,
    and is null where that of a side is unknown. `differs_on` names the axes on which the two cells differ; it is null
    where no axis is known. `not_listed` is the number of further conflicts of the task.
    """
    known = axes_of(cells)
    groups = cells.sort("task", "shots", "cell_id").partition_by("task", "shots", maintain_order=True)
    frames = [_strongest_of_task(group, limit, known) for group in groups]
    return pl.concat([pl.DataFrame(schema=STRONGEST_SCHEMA), *frames])


def _strongest_of_task(group: pl.DataFrame, limit: int, axes: "Sequence[str]") -> pl.DataFrame:
    us_N, ds_N = group["upstream"].to_numpy(), group["downstream"].to_numpy()
    us_noise, ds_noise = (noise_of(group, side, axes) for side in ("upstream", "downstream"))
    found = strongest(us_N, ds_N, us_noise, ds_noise, limit)
    total = count_pairs(us_N, ds_N).conflicts
    ahead, behind = group[found.ahead.tolist()], group[found.behind.tolist()]
    return pl.DataFrame(
        {
            "task": ahead["task"],
            "shots": ahead["shots"],
            "cell_id_upstream": ahead["cell_id"],
            "cell_id_downstream": behind["cell_id"],
            "upstream_gain": found.us_gain,
            "downstream_loss": found.ds_loss,
            "upstream_z": pl.Series(found.us_z).fill_nan(None),
            "downstream_z": pl.Series(found.ds_z).fill_nan(None),
            "significant": _significance(found, us_noise, ds_noise),
            "differs_on": _differing_axes(ahead, behind, axes),
        }
    ).with_columns(
        conflicts=pl.lit(total, pl.Int64),
        not_listed=pl.lit(total - found.ahead.size, pl.Int64),
    )


def _significance(found: Pairs, us_noise: Noise | None, ds_noise: Noise | None) -> pl.Series:
    if us_noise is None or ds_noise is None:
        return pl.Series([None] * found.ahead.size, dtype=pl.Boolean)
    return pl.Series((found.us_z > us_noise.num_errors) & (found.ds_z > ds_noise.num_errors))


def _can_be_raised(cells: pl.DataFrame, axis: str) -> bool:
    """Whether the axis's values can be raised: numbers, and sizes with known parameters."""
    return order_column(cells, axis) != axis or is_ordered(axis, cells.schema[axis])


def _differing_axes(ahead: pl.DataFrame, behind: pl.DataFrame, axes: "Sequence[str]") -> pl.Series:
    if not axes:
        return pl.Series([None] * ahead.height, dtype=pl.String)
    names = [
        ", ".join(axis for axis in axes if a[axis] != b[axis])
        for a, b in zip(ahead.select(axes).to_dicts(), behind.select(axes).to_dicts(), strict=True)
    ]
    return pl.Series(names, dtype=pl.String)


def _settings(cells: pl.DataFrame, known: "Sequence[str]") -> tuple[pl.Series, pl.DataFrame, pl.DataFrame]:
    """The settings of all axes: their numbers, their axes, and the mean accuracies of each by task and shots.

    Numbers stand apart from axes, since an imported axis may be called anything.
    """
    number = cells.select(pl.struct(known).rank("dense")).to_series()
    is_first = number.is_first_distinct()
    extra = ["params"] if "params" in cells.columns else []
    # Sorted, so that means do not depend on the order of the rows.
    values = (
        cells.select("task", "shots", "upstream", "downstream", setting=number)
        .sort("upstream", "downstream")
        .group_by("task", "shots", "setting", maintain_order=True)
        .agg(pl.col("upstream", "downstream").mean())
    )
    return number.filter(is_first), cells.select(*known, *extra).filter(is_first), values


def _pairs_along(numbers: pl.Series, identity: pl.DataFrame, axis: str, known: "Sequence[str]") -> pl.DataFrame:
    """Pairs of settings that differ on one axis only: setting, setting_high, axis, low, high, ordered."""
    loose = [other for other in DEPENDENT.get(axis, ()) if other in known]
    keys = [other for other in known if other not in (axis, *loose)]
    order = order_column(identity, axis)
    cells = identity.select(
        setting=numbers,
        alike=pl.struct(keys).rank("dense") if keys else pl.lit(0),
        order=pl.col(order),
        value=pl.col(axis),
        loose=pl.struct(loose) if loose else pl.lit(0),
    )
    pairs = cells.join(cells, on="alike", suffix="_high")
    if loose:
        pairs = pairs.filter(
            pl.col("loose").struct[i].eq(pl.col("loose_high").struct[i]).fill_null(True) for i in range(len(loose))
        )
    rising = pl.col("order") < pl.col("order_high")
    return pairs.filter(rising, pl.col("value") != pl.col("value_high")).select(
        "setting",
        "setting_high",
        axis=pl.lit(axis),
        low=pl.col("value").cast(pl.String),
        high=pl.col("value_high").cast(pl.String),
        ordered=pl.lit(order != axis or is_ordered(axis, identity.schema[axis])),
    )


def _tally(both: pl.DataFrame) -> pl.DataFrame:
    us, ds = pl.col("us_change"), pl.col("ds_change")
    changes = both.with_columns(
        us_change=pl.col("upstream_high") - pl.col("upstream"),
        ds_change=pl.col("downstream_high") - pl.col("downstream"),
    )
    counts = {
        "upstream_up_downstream_down": (us > 0) & (ds < 0),
        "upstream_down_downstream_up": (us < 0) & (ds > 0),
        "both_up": (us > 0) & (ds > 0),
        "both_down": (us < 0) & (ds < 0),
        "tied": (us == 0) | (ds == 0),
    }
    # Values are text by now; "first cell" order would depend on the rows, so numbers are sorted as numbers.
    numeric = [pl.col(side).cast(pl.Float64, strict=False).alias(f"{side}_number") for side in ("low", "high")]
    return (
        changes.group_by("task", "shots", "axis", "low", "high", "ordered")
        .agg(
            pl.len().alias("pairs"),
            *(is_so.sum().alias(name) for name, is_so in counts.items()),
            mean_upstream_change=us.mean(),
            mean_downstream_change=ds.mean(),
        )
        .with_columns(numeric)
        .sort("task", "shots", "axis", "low_number", "high_number", "low", "high")
        .select(list(CONTROLLED_SCHEMA))
    )
