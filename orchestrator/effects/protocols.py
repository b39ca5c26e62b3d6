"""Whether another protocol ranks the cells alike, and how much higher its accuracies are. Pure polars.

Accuracies are fractions in [0, 1].
"""

from itertools import combinations

import polars as pl

from orchestrator.conflicts import spearman
from orchestrator.selection import protocols_of, select_cells

AGREEMENT_SCHEMA: dict[str, type[pl.DataType]] = {
    "task": pl.String,
    "shots": pl.Int64,
    "protocol": pl.String,
    "other_shots": pl.Int64,
    "other": pl.String,
    "n": pl.Int64,
    "spearman": pl.Float64,
    "mean_difference": pl.Float64,
}


def agreement(results: pl.DataFrame | pl.LazyFrame, cells: pl.DataFrame, protocol: str | None) -> pl.DataFrame:
    """Every two protocols on every task, over the `n` cells that have both: `AGREEMENT_SCHEMA`.

    Protocols are compared at the same number of shots; one that has none (it fits to all training images, or to
    VTAB-1k's) is compared with each number of shots of the other. Spearman's correlation is null where either is
    constant; the mean difference is that of `other` minus `protocol`. The chosen protocol stands first, then by name.

    Args:
        results: the results table.
        cells: those of the chosen protocol (`selection.select_cells`).
        protocol: the chosen one.
    """
    others = [name for name in protocols_of(results) if name != protocol]
    if protocol is None or not others:
        return pl.DataFrame(schema=AGREEMENT_SCHEMA)
    values = {protocol: cells, **{name: select_cells(results, name).cells for name in others}}
    pairs = [_compared(values[one], values[other], one, other) for one, other in combinations(values, 2)]
    place = {name: i for i, name in enumerate(values)}
    by_place = [pl.col(name).replace_strict(place, return_dtype=pl.Int64) for name in ("protocol", "other")]
    return pl.concat(pairs).sort("task", by_place[0], "shots", by_place[1], "other_shots")


def _compared(one: pl.DataFrame, other: pl.DataFrame, name: str, other_name: str) -> pl.DataFrame:
    right = other.select("task", "cell_id", other_shots="shots", value="downstream")
    both = one.select("task", "shots", "cell_id", "downstream").join(right, on=["task", "cell_id"])
    either_has_none = pl.col("shots").is_null() | pl.col("other_shots").is_null()
    both = both.filter(either_has_none | (pl.col("shots") == pl.col("other_shots")))
    rows = [
        {
            **group.select("task", "shots", "other_shots").row(0, named=True),
            "protocol": name,
            "other": other_name,
            "n": group.height,
            "spearman": spearman(group["downstream"].to_numpy(), group["value"].to_numpy()),
            "mean_difference": (group["value"] - group["downstream"]).mean(),
        }
        for group in both.sort("cell_id").partition_by("task", "shots", "other_shots")
    ]
    return pl.DataFrame(rows, schema=AGREEMENT_SCHEMA)
