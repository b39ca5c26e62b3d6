"""In which direction upstream and downstream part as one axis is raised, and whether that could be chance. Pure."""

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from orchestrator.conflicts.axes import order_column
from orchestrator.conflicts.counts import log_factorials

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

Z_95 = 1.959963984540054
DIRECTIONS_SCHEMA: dict[str, type[pl.DataType]] = {
    "task": pl.String,
    "shots": pl.Int64,
    "axis": pl.String,
    "pairs": pl.Int64,
    "upstream_up_downstream_down": pl.Int64,
    "upstream_down_downstream_up": pl.Int64,
    "both_up": pl.Int64,
    "both_down": pl.Int64,
    "tied": pl.Int64,
    "share": pl.Float64,
    "share_low": pl.Float64,
    "share_high": pl.Float64,
    "p_value": pl.Float64,
}


def directions(cells: pl.DataFrame, ordered: "Sequence[str]", axes: "Sequence[str]") -> pl.DataFrame:
    """What raising each ordered axis from its lowest to its highest value, all else equal, did: `DIRECTIONS_SCHEMA`.

    One row per task, shots and axis. Cells that agree on all other axes make one pair, their lowest against their
    highest value (means where several cells share one), so that no cell is in two pairs of an axis and the pairs are
    independent. `share` is the share of pairs in which upstream rose and downstream fell, with its 95 % Wilson
    interval. `p_value`: were it chance which side gains where upstream and downstream part, how often would one
    direction outweigh the other as much (two-sided sign test; 1 where none part). It is not corrected for the number
    of rows.

    Args:
        cells: one row per task, shots and cell, all axes known.
        ordered: the axes that can be raised; `size` goes by params where they are known (`order_column`).
        axes: all known axes.
    """
    frames = [_ends(cells, axis, axes) for axis in ordered if cells[axis].n_unique() > 1]
    if not frames:
        return pl.DataFrame(schema=DIRECTIONS_SCHEMA)
    us, ds = pl.col("us_change"), pl.col("ds_change")
    counted = (
        pl.concat(frames)
        .group_by("task", "shots", "axis")
        .agg(
            pairs=pl.len(),
            upstream_up_downstream_down=((us > 0) & (ds < 0)).sum(),
            upstream_down_downstream_up=((us < 0) & (ds > 0)).sum(),
            both_up=((us > 0) & (ds > 0)).sum(),
            both_down=((us < 0) & (ds < 0)).sum(),
            tied=((us == 0) | (ds == 0)).sum(),
        )
    )
    parted, opposite = (
        counted[name].cast(pl.Int64).to_numpy()
        for name in ("upstream_up_downstream_down", "upstream_down_downstream_up")
    )
    pairs = counted["pairs"].cast(pl.Int64).to_numpy()
    low, high = _wilson(parted, pairs)
    found = counted.with_columns(
        pl.Series("share", parted / pairs),
        pl.Series("share_low", low),
        pl.Series("share_high", high),
        pl.Series("p_value", _sign_test(parted, opposite)),
    )
    return found.select(pl.col(n).cast(kind) for n, kind in DIRECTIONS_SCHEMA.items()).sort("task", "shots", "axis")


def _ends(cells: pl.DataFrame, axis: str, axes: "Sequence[str]") -> pl.DataFrame:
    """The change from the lowest to the highest value of each set of cells that agree on all other axes."""
    order = order_column(cells, axis)
    known = cells.filter(pl.col(axis).is_not_null())
    identity = known.unique("cell_id")
    others = [other for other in axes if other != axis]  # an imported axis may be called anything
    lines = identity.select(
        "cell_id",
        line=pl.struct(others).rank("dense") if others else pl.lit(1, pl.UInt32),
        place=pl.col(order).rank("dense"),
    )
    # Sorted, so that means do not depend on the order of the rows.
    rows = (
        known.select("task", "shots", "cell_id", "upstream", "downstream")
        .join(lines, on="cell_id")
        .with_columns(group=pl.struct("task", "shots").rank("dense"))
        .sort("group", "line", "place", "upstream", "downstream")
    )
    key_N = rows.select("group", "line").to_numpy()
    place_N = rows["place"].to_numpy().astype(np.int64)
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(key_N, axis=0) != 0).any(axis=1)]))
    sizes = np.diff(np.append(starts, rows.height))
    is_low_N, is_high_N = (place_N == np.repeat(place_N[at], sizes) for at in (starts, starts + sizes - 1))
    changes = {
        name: _means(rows[side].to_numpy(), is_high_N, starts) - _means(rows[side].to_numpy(), is_low_N, starts)
        for name, side in (("us_change", "upstream"), ("ds_change", "downstream"))
    }
    ends = (
        rows[starts.tolist()]
        .select("task", "shots", axis=pl.lit(axis))
        .with_columns(pl.Series(name, change) for name, change in changes.items())
    )
    return ends.filter(pl.Series(place_N[starts] != place_N[starts + sizes - 1]))


def _means(values_N: "Floats", counts_N: "NDArray[np.bool_]", starts: "NDArray[np.intp]") -> "Floats":
    """The mean of the values that count in each stretch of rows."""
    means: Floats = np.add.reduceat(np.where(counts_N, values_N, 0.0), starts) / np.add.reduceat(counts_N, starts)
    return means


def _wilson(part: "Ints", whole: "Ints") -> "tuple[Floats, Floats]":
    """The 95 % interval of a share (Wilson 1927)."""
    share, z2 = part / whole, Z_95**2 / whole
    middle = (share + z2 / 2) / (1 + z2)
    half = np.sqrt(share * (1 - share) * z2 + z2**2 / 4) / (1 + z2)
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)


def _sign_test(ups: "Ints", downs: "Ints") -> list[float]:
    """Two-sided p of each split under a fair coin, exact."""
    log_factorial = log_factorials(int((ups + downs).max(initial=0)))
    p_values = []
    for fewer, total in zip(np.minimum(ups, downs).tolist(), (ups + downs).tolist(), strict=True):
        k = np.arange(fewer + 1)
        log_p = log_factorial[total] - log_factorial[k] - log_factorial[total - k] - total * np.log(2)
        p_values.append(min(1.0, 2 * float(np.exp(log_p).sum())))
    return p_values
