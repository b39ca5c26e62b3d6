"""Which columns are axes: those of a study by name, those of an imported table as they stand."""

from typing import TYPE_CHECKING

import polars as pl

from evals.protocol import RESULT_SCHEMA
from models.recipe import Axes

if TYPE_CHECKING:
    from collections.abc import Sequence

AXES = tuple(Axes.model_fields)
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
UNORDERED = ("family", "optimizer", "schedule", "flip", "precision", "seed")
# Axes that have no value for some values of another axis (a ResNet has no patches): null then equals every value. In
# other axes of a study null is a value like any other (not set), in those of an imported table it is an unknown one.
DEPENDENT = {"family": ("patch_size",)}


def axes_of(table: pl.DataFrame) -> list[str]:
    """The axes among a table's columns: a study's in their order, then those of an imported table as they stand."""
    others = (name for name, kind in table.schema.items() if name not in NO_AXES and not kind.is_nested())
    return list(dict.fromkeys([*(axis for axis in AXES if axis in table.columns), *others]))


def comparable(cells: pl.DataFrame, axes: "Sequence[str]") -> pl.DataFrame:
    """The cells of which every axis is known, so that they can be compared with others all else equal.

    What a table does not tell cannot be held equal. Axes of a study are always known (null is "not set"), and one that
    no cell knows is left out of account.
    """
    gaps = [axis for axis in axes if axis not in AXES and 0 < cells[axis].null_count() < cells.height]
    return cells.drop_nulls(gaps) if gaps else cells


def order_column(cells: pl.DataFrame, axis: str) -> str:
    """The column that orders an axis's values: itself, or the parameters for sizes if those of all cells are known."""
    by_params = axis == "size" and "params" in cells.columns and not cells["params"].has_nulls()
    return "params" if by_params else axis


def is_ordered(axis: str, kind: pl.DataType) -> bool:
    """Whether the values of an axis can be raised: names cannot."""
    return axis not in UNORDERED and kind != pl.String
