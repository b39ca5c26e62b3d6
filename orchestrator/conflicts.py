"""Conflicts: pairs of cells of which one is better upstream and worse downstream. Pure numpy and polars.

Source: arXiv 2110.02095, "two points where one is on the right but lower than the other". A tie is no conflict.

All accuracies are fractions in [0, 1]. Shape suffixes: N cells, B rows of a block, K conflicting pairs.
The frames called `cells` hold one row per task, shots and cell: task, shots, cell_id, upstream, downstream,
upstream_num_test, downstream_num_test, the axes (see `axes_of`), and params where known
(`orchestrator.reduce.select_cells` makes them).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from evals.protocol import RESULT_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

AXES = (
    "family",
    "size",
    "fraction",
    "classes",
    "epochs",
    "batch_size",
    "image_size",
    "patch_size",
    "optimizer",
    "learning_rate",
    "weight_decay",
    "head_learning_rate",
    "head_weight_decay",
    "warmup",
    "label_smoothing",
    "precision",
    "seed",
)
"""The axes of a study. Those of an imported table are all of its columns that `NO_AXES` does not name."""
NO_AXES = frozenset(
    {
        *RESULT_SCHEMA,
        "last_checkpoint",
        "upstream",
        "downstream",
        # What the report knows of a cell besides.
        *("status", "cause", "attempts", "seconds", "checkpoints", "missing_evaluations", "text"),
    }
)
# A value of these cannot be raised; a pair is listed once, with the smaller value (or the first by name) as `low`.
UNORDERED = ("family", "optimizer", "precision", "seed")
# Axes that have no value for some values of another axis (a ResNet has no patches): null then equals every value.
DEPENDENT = {"family": ("patch_size",)}
# 95 % of a normal distribution lies within this many standard errors.
Z_95 = 1.96
BLOCK_ROWS = 512

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
    "differs_on": pl.String(),
    "conflicts": pl.Int64(),
    "not_listed": pl.Int64(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PairCounts:
    """How the n (n - 1) / 2 pairs of cells fall: `tied` is equal upstream, downstream, or both."""

    conflicts: int
    concordant: int
    tied: int
    tied_upstream: int
    tied_downstream: int


@dataclass(frozen=True, slots=True)
class _Pairs:
    """K conflicting pairs: row `ahead` is better upstream, row `behind` better downstream; z in standard errors."""

    ahead: "Ints"
    behind: "Ints"
    us_gain: "Floats"
    ds_loss: "Floats"
    us_z: "Floats"
    ds_z: "Floats"


def count_pairs(us_N: "Floats", ds_N: "Floats") -> PairCounts:
    """Exact counts of conflicting, concordant and tied pairs in O(n log n)."""
    num_pairs = us_N.size * (us_N.size - 1) // 2
    tied_us, tied_ds = _num_tied(us_N[:, None]), _num_tied(ds_N[:, None])
    tied = tied_us + tied_ds - _num_tied(np.column_stack([us_N, ds_N]))
    # Among equal upstream accuracies downstream is sorted too, so that ties are no inversions.
    conflicts = _num_inversions(ds_N[np.lexsort((ds_N, us_N))])
    return PairCounts(
        conflicts=conflicts,
        concordant=num_pairs - conflicts - tied,
        tied=tied,
        tied_upstream=tied_us,
        tied_downstream=tied_ds,
    )


def count_significant(us_N: "Floats", ds_N: "Floats", num_us_N: "Ints | int", num_ds_N: "Ints | int") -> int:
    """Conflicts in which both differences exceed 1.96 binomial standard errors of the difference.

    Args:
        us_N: upstream accuracies.
        ds_N: downstream accuracies.
        num_us_N: upstream test images, one number or one per cell.
        num_ds_N: downstream test images, likewise.
    """
    blocks = _conflict_blocks(us_N, ds_N, _variance(us_N, num_us_N), _variance(ds_N, num_ds_N))
    return sum(int(((pairs.us_z > Z_95) & (pairs.ds_z > Z_95)).sum()) for pairs in blocks)


def spearman(us_N: "Floats", ds_N: "Floats") -> float | None:
    """Rank correlation with mean ranks for ties; None where either side is constant."""
    a_N, b_N = _centred_ranks(us_N), _centred_ranks(ds_N)
    norm = float(np.sqrt((a_N @ a_N) * (b_N @ b_N)))
    return float(a_N @ b_N) / norm if norm > 0 else None


def kendall(us_N: "Floats", ds_N: "Floats") -> float | None:
    """Kendall's tau-b; None where either side is constant."""
    counts, num_pairs = count_pairs(us_N, ds_N), us_N.size * (us_N.size - 1) // 2
    untied = (num_pairs - counts.tied_upstream) * (num_pairs - counts.tied_downstream)
    return (counts.concordant - counts.conflicts) / untied**0.5 if untied else None


def axes_of(table: pl.DataFrame) -> list[str]:
    """The axes among a table's columns: a study's in their order, then those of an imported table as they stand."""
    others = (name for name, kind in table.schema.items() if name not in NO_AXES and not kind.is_nested())
    return list(dict.fromkeys([*(axis for axis in AXES if axis in table.columns), *others]))


def is_ordered(axis: str, kind: pl.DataType) -> bool:
    """Whether the values of an axis can be raised: names cannot."""
    return axis not in UNORDERED and kind != pl.String


def controlled_pairs(cells: pl.DataFrame) -> pl.DataFrame:
    """What raising one axis from `low` to `high`, all else equal, did to both accuracies: `CONTROLLED_SCHEMA`.

    One row per task, shots, axis and pair of values. `size` is ordered by parameters where they are known. Values are
    text, since axes are numbers and names.
    """
    known = axes_of(cells)
    identity = cells.select("cell_id", *known, *(["params"] if "params" in cells.columns else [])).unique("cell_id")
    frames = [_pairs_along(identity, axis, known) for axis in known]
    pairs = pl.concat(frames) if frames else pl.DataFrame(schema={"cell_id": pl.String})
    if pairs.is_empty():
        return pl.DataFrame(schema=CONTROLLED_SCHEMA)
    values = cells.select("task", "shots", "cell_id", "upstream", "downstream")
    both = pairs.join(values, on="cell_id").join(
        values,
        left_on=["cell_id_high", "task", "shots"],
        right_on=["cell_id", "task", "shots"],
        nulls_equal=True,
        suffix="_high",
    )
    return _tally(both).cast(dict(CONTROLLED_SCHEMA.items()))


def strongest_pairs(cells: pl.DataFrame, limit: int) -> pl.DataFrame:
    """The `limit` strongest conflicts of every task and shots, strongest first: `STRONGEST_SCHEMA`.

    A conflict is as strong as the weaker of its two differences, in standard errors where every test-set size of the
    task is known, otherwise in accuracy. `differs_on` names the axes on which the two cells differ; it is null where no
    axis is known. `not_listed` is the number of further conflicts of the task.
    """
    known = axes_of(cells)
    groups = cells.sort("task", "shots", "cell_id").partition_by("task", "shots", maintain_order=True)
    frames = [_strongest_of_task(group, limit, known) for group in groups]
    return pl.concat([pl.DataFrame(schema=STRONGEST_SCHEMA), *frames])


def known_sizes(group: pl.DataFrame, side: str) -> "Ints | None":
    """Test images of each cell on one side ("upstream" or "downstream"), or None where any is unknown."""
    sizes = group[f"{side}_num_test"]
    return None if sizes.has_nulls() else sizes.to_numpy()


def _num_tied(values_NK: "Floats") -> int:
    counts = np.unique(values_NK, axis=0, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def _num_inversions(values_N: "Floats") -> int:
    """Pairs i < j with values[i] > values[j].

    Two different ranks agree in all bits above the highest in which they differ. So for every bit: group by the bits
    above, keep the order within groups, and count a 1 before a 0.
    """
    rank_N = np.unique(values_N, return_inverse=True)[1].astype(np.int64)
    total = 0
    for bit in range(int(values_N.size).bit_length()):
        grouped_N = rank_N[np.argsort(rank_N >> (bit + 1), kind="stable")]
        is_one_N = (grouped_N >> bit) & 1
        ones_before_N = np.cumsum(is_one_N) - is_one_N
        starts_N = np.diff(grouped_N >> (bit + 1), prepend=-1) != 0
        # The count of ones never falls, so a running maximum carries each group's start to its members.
        before_group_N = np.maximum.accumulate(np.where(starts_N, ones_before_N, 0))
        total += int((ones_before_N - before_group_N)[is_one_N == 0].sum())
    return total


def _centred_ranks(values_N: "Floats") -> "Floats":
    """Ranks, the mean rank for ties, minus their mean."""
    _, group_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    ranks_N: Floats = mean_rank[group_N] - (values_N.size + 1) / 2
    return ranks_N


def _variance(accuracy_N: "Floats", num_test_N: "Ints | int | None") -> "Floats":
    """Binomial variance of each accuracy; NaN where the test-set size is unknown."""
    if num_test_N is None:
        return np.full(accuracy_N.size, np.nan)
    variance_N: Floats = accuracy_N * (1.0 - accuracy_N) / num_test_N
    return variance_N


def _conflict_blocks(us_N: "Floats", ds_N: "Floats", us_var_N: "Floats", ds_var_N: "Floats") -> "Iterator[_Pairs]":
    """All conflicting pairs, a block of rows at a time. Memory is O(n), time O(n^2)."""
    for start in range(0, us_N.size, BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        gain_BN, loss_BN = us_N[rows, None] - us_N, ds_N - ds_N[rows, None]
        row_K, behind_K = np.nonzero((gain_BN > 0) & (loss_BN > 0))
        ahead_K, gain_K, loss_K = row_K + start, gain_BN[row_K, behind_K], loss_BN[row_K, behind_K]
        # An accuracy of 0 or 1 has no binomial variance, so two of these differ by infinitely many standard errors.
        with np.errstate(divide="ignore"):
            us_z_K = gain_K / np.sqrt(us_var_N[ahead_K] + us_var_N[behind_K])
            ds_z_K = loss_K / np.sqrt(ds_var_N[ahead_K] + ds_var_N[behind_K])
        yield _Pairs(ahead_K, behind_K, gain_K, loss_K, us_z_K, ds_z_K)


def _strongest_of_task(group: pl.DataFrame, limit: int, axes: "Sequence[str]") -> pl.DataFrame:
    us_N, ds_N = group["upstream"].to_numpy(), group["downstream"].to_numpy()
    us_var_N, ds_var_N = (
        _variance(a_N, known_sizes(group, side)) for a_N, side in ((us_N, "upstream"), (ds_N, "downstream"))
    )
    total, kept = 0, pl.DataFrame()
    for pairs in _conflict_blocks(us_N, ds_N, us_var_N, ds_var_N):
        total += pairs.ahead.size
        kept = pl.concat([kept, _strongest_of_block(pairs, limit)]) if kept.width else _strongest_of_block(pairs, limit)
        kept = kept.sort("strength", "ahead", "behind", descending=[True, False, False]).head(limit)
    ahead, behind = group[kept["ahead"].to_list()], group[kept["behind"].to_list()]
    return kept.select(
        task=ahead["task"],
        shots=ahead["shots"],
        cell_id_upstream=ahead["cell_id"],
        cell_id_downstream=behind["cell_id"],
        upstream_gain="us_gain",
        downstream_loss="ds_loss",
        upstream_z=pl.col("us_z").fill_nan(None),
        downstream_z=pl.col("ds_z").fill_nan(None),
        differs_on=_differing_axes(ahead, behind, axes),
        conflicts=pl.lit(total, pl.Int64),
        not_listed=pl.lit(total - kept.height, pl.Int64),
    )


def _strongest_of_block(pairs: _Pairs, limit: int) -> pl.DataFrame:
    z_K, plain_K = np.minimum(pairs.us_z, pairs.ds_z), np.minimum(pairs.us_gain, pairs.ds_loss)
    strength_K = np.where(np.isnan(z_K), plain_K, z_K)
    top = np.argsort(-strength_K, kind="stable")[:limit]
    return pl.DataFrame(
        {
            "strength": strength_K[top],
            "ahead": pairs.ahead[top],
            "behind": pairs.behind[top],
            "us_gain": pairs.us_gain[top],
            "ds_loss": pairs.ds_loss[top],
            "us_z": pairs.us_z[top],
            "ds_z": pairs.ds_z[top],
        }
    )


def _differing_axes(ahead: pl.DataFrame, behind: pl.DataFrame, axes: "Sequence[str]") -> pl.Series:
    if not axes:
        return pl.Series([None] * ahead.height, dtype=pl.String)
    names = [
        ", ".join(axis for axis in axes if a[axis] != b[axis])
        for a, b in zip(ahead.select(axes).to_dicts(), behind.select(axes).to_dicts(), strict=True)
    ]
    return pl.Series(names, dtype=pl.String)


def _pairs_along(identity: pl.DataFrame, axis: str, known: "Sequence[str]") -> pl.DataFrame:
    """Pairs of cells that differ on one axis only: cell_id, cell_id_high, axis, low, high, ordered."""
    loose = [other for other in DEPENDENT.get(axis, ()) if other in known]
    keys = [other for other in known if other not in (axis, *loose)]
    by_params = axis == "size" and "params" in identity.columns and not identity["params"].has_nulls()
    # Columns have names of their own here, since an imported axis may be called anything.
    cells = identity.select(
        "cell_id",
        alike=pl.struct(keys).rank("dense") if keys else pl.lit(0),
        order=pl.col("params" if by_params else axis),
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
        "cell_id",
        "cell_id_high",
        axis=pl.lit(axis),
        low=pl.col("value").cast(pl.String),
        high=pl.col("value_high").cast(pl.String),
        ordered=pl.lit(by_params or is_ordered(axis, identity.schema[axis])),
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
