"""The pairs of cells behind the conflicts, ready for JSON."""

from typing import Any

import polars as pl

from orchestrator.columns import tidied
from orchestrator.reduce import controlled_conflicts, strongest_conflicts

LISTED = 5


def pairs_of(results: pl.DataFrame | pl.LazyFrame) -> dict[str, list[dict[str, Any]]]:
    """`strongest`: the strongest conflicts of each task and shots; `controlled`: what raising one axis did.

    Raises:
        DataError: as `reduce_study`.
    """
    table = tidied(results.lazy())
    strongest = strongest_conflicts(table, LISTED)
    finite = [pl.when(pl.col(name).is_finite()).then(name).alias(name) for name in ("upstream_z", "downstream_z")]
    return {
        "strongest": strongest.with_columns(finite).to_dicts(),
        "controlled": controlled_conflicts(table).to_dicts(),
    }
