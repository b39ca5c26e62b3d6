"""The pairs of cells behind the conflicts, ready for JSON."""

from typing import Any

import polars as pl

from orchestrator.columns import tidied
from orchestrator.conflicts import controlled_pairs, strongest_pairs

LISTED = 5


def pairs_of(cells: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """`strongest`: the strongest conflicts of each task and shots; `controlled`: what raising one axis did.

    Args:
        cells: one row per task, shots and cell.
    """
    cells = tidied(cells.lazy()).collect()
    strongest = strongest_pairs(cells, LISTED)
    finite = [pl.when(pl.col(name).is_finite()).then(name).alias(name) for name in ("upstream_z", "downstream_z")]
    return {
        "strongest": strongest.with_columns(finite).to_dicts(),
        "controlled": controlled_pairs(cells).to_dicts(),
    }
