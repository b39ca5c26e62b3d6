"""How many more cells, of which model, would tell where one task saturates: as an object for JSON, and in words."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from orchestrator.frontier import Choice, NumTest, upper_hull
from orchestrator.frontier.more_cells import more_cells

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODEL = ("family", "size")
MIN_LIKE = 3
BEST_PART = 0.2  # of the cells by upstream accuracy, where models are unknown or have too few cells


def more_cells_object(
    cells: pl.DataFrame, sizes: NumTest | None, choice: Choice, *, seed: int
) -> dict[str, Any] | None:
    """`cells`, `kind`, `model`, `upstream`, `at_most` (see `frontier.more_cells.MoreCells`); None for a few cells.

    Args:
        cells: of one task and number of shots, with their axes: upstream, downstream.
        sizes: of the test sets; None where one of them is unknown.
        choice: how the law is fitted.
        seed: of the simulated studies.
    """
    us_N, ds_N = cells["upstream"].to_numpy(), cells["downstream"].to_numpy()
    model, like_L = _upper_end(cells)
    found = more_cells(us_N, ds_N, like_L, sizes=sizes, choice=choice, seed=seed)
    if found is None:
        return None
    return {
        "cells": found.num,
        "kind": found.kind,
        "model": model,
        "upstream": found.upstream,
        "at_most": found.at_most,
    }


def more_cells_text(task: Mapping[str, Any]) -> str:
    """Which further cells would tell where a task saturates, or that none would; nothing where that is not known."""
    more = task["more_cells"]
    if more is None:
        return ""
    like = "like the best upstream" if more["model"] is None else f"of {more['model']}"
    if more["kind"] == "like":
        return f"about {more['cells']:,} more cells {like} would tell"
    if more["kind"] == "mix":
        return f"about {more['cells']:,} more cells of all kinds would tell"
    if more["kind"] == "beyond":
        return f"about {more['cells']:,} cells that reach {more['upstream']:.2f} upstream would tell"
    if task["reason"] == "does not rise":
        return ""
    vain = f"even {more['at_most']:,} more cells like these might not tell"
    if more["upstream"] is None:
        return f"{vain}: it takes higher upstream accuracy"
    return f"{vain}, nor a few that reach {more['upstream']:.2f} upstream"


def _upper_end(cells: pl.DataFrame) -> "tuple[str | None, NDArray[np.intp]]":
    """The model whose cell is the hull's last vertex, and its rows; those best upstream where it has too few."""
    us_N = cells["upstream"].to_numpy()
    names = [name for name in MODEL if name in cells.columns]
    last = int(upper_hull(us_N, cells["downstream"].to_numpy())[-1]) if us_N.size else None
    if names and last is not None:
        model = cells.row(last, named=True)
        same = pl.all_horizontal(pl.col(name) == model[name] for name in names).fill_null(value=False)
        like_L = np.flatnonzero(cells.select(same).to_series().to_numpy())
        if like_L.size >= MIN_LIKE:
            return " ".join(str(model[name]) for name in names), like_L
    return None, np.argsort(-us_N, kind="stable")[: max(MIN_LIKE, round(BEST_PART * us_N.size))]
