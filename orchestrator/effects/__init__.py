"""Effects: what the axes, the layers and the choice of a cell do beyond upstream accuracy. Pure polars and numpy.

`axes` asks whether an axis adds information once upstream accuracy is known, `choice` which cell to take, `layers`
which layer, `measures` what norms and margins go along with, `coverage` how much each model was tuned, `protocols`
whether another protocol ranks the cells alike. The frames called `cells` are those of
`orchestrator.selection.select_cells`: one row per task, shots and cell.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from orchestrator.conflicts import DIRECTIONS_SCHEMA, controlled_directions
from orchestrator.effects.axes import AXIS_EFFECTS_SCHEMA, PERMUTATIONS, axis_effects, residuals
from orchestrator.effects.choice import (
    BEST_CELLS_SCHEMA,
    CORRELATIONS_SCHEMA,
    REGRET_SCHEMA,
    best_cells,
    correlations,
    regrets,
)
from orchestrator.effects.coverage import BEST_OF_K_SCHEMA, COVERAGE_SCHEMA, best_of_k, coverage
from orchestrator.effects.layers import LAYERS_SCHEMA, best_layer_cells, best_layers, layer_drift
from orchestrator.effects.protocols import AGREEMENT_SCHEMA, agreement

__all__ = [
    "SCHEMAS",
    "agreement",
    "axis_effects",
    "best_cells",
    "best_layer_cells",
    "best_layers",
    "best_of_k",
    "correlations",
    "coverage",
    "effects_of",
    "frames_of",
    "layer_drift",
    "regrets",
    "residuals",
]

LISTED_REGRETS = 10
SCHEMAS: dict[str, dict[str, type[pl.DataType]]] = {
    "axes": AXIS_EFFECTS_SCHEMA,
    "directions": DIRECTIONS_SCHEMA,
    "best_cells": BEST_CELLS_SCHEMA,
    "regret": REGRET_SCHEMA,
    "correlations": CORRELATIONS_SCHEMA,
    "layers": LAYERS_SCHEMA,
    "coverage": COVERAGE_SCHEMA,
    "best_of_k": BEST_OF_K_SCHEMA,
    "protocols": AGREEMENT_SCHEMA,
}
"""The lists of `effects_of`, each with the columns of its rows."""


def effects_of(
    results: pl.DataFrame | pl.LazyFrame,
    cells: pl.DataFrame,
    protocol: str | None,
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> dict[str, list[dict[str, Any]]]:
    """Every effect, ready for JSON: a list of rows for each name of `SCHEMAS`.

    Args:
        results: the results table, for its layers and its other protocols.
        cells: one row per task, shots and cell.
        protocol: the one that counts; None where the table does not say.
        permutations: draws behind each p-value of `axes`.
        seed: of the permutations.
    """
    frames = {
        "axes": axis_effects(cells, permutations=permutations, seed=seed),
        "directions": controlled_directions(cells),
        "best_cells": best_cells(cells),
        "regret": regrets(cells, LISTED_REGRETS),
        "correlations": correlations(cells),
        "layers": layer_drift(best_layers(results, protocol)),
        "coverage": coverage(cells),
        "best_of_k": best_of_k(cells),
        "protocols": agreement(results, cells, protocol),
    }
    return {name: frames[name].to_dicts() for name in SCHEMAS}


def frames_of(effects: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, pl.DataFrame]:
    """The lists of `effects_of` as frames; a list that is not there is an empty frame."""
    return {name: pl.DataFrame(effects.get(name, []), schema=schema) for name, schema in SCHEMAS.items()}
