"""What the measures of a checkpoint go along with: upstream accuracy, and downstream accuracy beyond it. Pure.

The paper explains saturation by the head and the layers (arXiv 2110.02095, section 4): whether norms, margins and ranks
rise with upstream accuracy is asked here by rank correlation, and whether a cell that has more of them does better
downstream than its upstream accuracy says, by correlation with the residuals of `axes`, mean over a cell's tasks.

Models have different numbers of layers. A quantity of layers is read at the same depths of all: of L layers, the one
that `depth` L, rounded up, counts to. Depth 1 is the last layer that has the quantity.
"""

from collections.abc import Sequence

import polars as pl

from orchestrator.conflicts import rank_interval, spearman

DEPTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
QUANTITIES_SCHEMA: dict[str, type[pl.DataType]] = {
    "cell_id": pl.String,
    "quantity": pl.String,
    "depth": pl.Float64,
    "value": pl.Float64,
}
ALONG_SCHEMA: dict[str, type[pl.DataType]] = {
    "shots": pl.Int64,
    "quantity": pl.String,
    "depth": pl.Float64,
    "against": pl.String,
    "n": pl.Int64,
    "spearman": pl.Float64,
    "spearman_low": pl.Float64,
    "spearman_high": pl.Float64,
}


def quantities_at_depths(measures: pl.DataFrame) -> pl.DataFrame:
    """Each cell's quantities over all classes at its last checkpoint: `QUANTITIES_SCHEMA`, known values only.

    `depth` is null for a quantity of the model, and one of `DEPTHS` for one of layers.

    Args:
        measures: the table of upstream measures.
    """
    known = measures.filter("last_checkpoint", pl.col("label").is_null())
    layers = known.filter(pl.col("layer").is_not_null())
    count = pl.col("layer").max().over("cell_id", "quantity") + 1
    at_depths = [
        layers.filter(pl.col("layer") + 1 == (count * depth - 1e-9).ceil()).with_columns(depth=pl.lit(depth))
        for depth in DEPTHS
    ]
    whole = known.filter(pl.col("layer").is_null()).with_columns(depth=pl.lit(None, pl.Float64))
    found = pl.concat([whole, *at_depths]).filter(pl.col("value").is_finite())
    return found.select(list(QUANTITIES_SCHEMA)).sort("quantity", "depth", "cell_id")


def along(
    quantities: pl.DataFrame, upstream: pl.DataFrame, residuals: pl.DataFrame, shots: Sequence[int | None]
) -> pl.DataFrame:
    """Spearman's correlation of each quantity with both sides, and its 95 % interval: `ALONG_SCHEMA`.

    `against` is "upstream" (accuracy; the same at every number of shots) or "residual". A correlation is null where a
    side is constant.

    Args:
        quantities: of `quantities_at_depths`.
        upstream: cell_id and upstream.
        residuals: shots, cell_id and residual, one row a cell.
        shots: the numbers of shots that get rows.
    """
    rows = []
    for key in shots:
        of_shots = residuals.filter(pl.col("shots").eq_missing(pl.lit(key, pl.Int64))).select("cell_id", "residual")
        both = quantities.join(upstream.select("cell_id", "upstream"), on="cell_id", how="left")
        both = both.join(of_shots, on="cell_id", how="left")
        for (quantity, depth), group in both.group_by("quantity", "depth", maintain_order=True):
            for against in ("upstream", "residual"):
                known = group.drop_nulls(against)
                rank = spearman(known[against].to_numpy(), known["value"].to_numpy())
                about = (key, quantity, depth, against, known.height)
                rows.append((*about, rank, *rank_interval(rank, known.height)))
    return pl.DataFrame(rows, schema=ALONG_SCHEMA, orient="row")
