"""The accuracies that the page's plots can show: of every protocol, number of shots and layer. Pure.

Accuracies are whole parts of `SCALE`, so that thousands of cells on tens of tasks fit a page; arrays carry the suffixes
T tasks, N cells.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Wholes = NDArray[np.uint16]

SCALE = 60_000
"""What 1 is: exact for means over 1, 2, 3, 5 or 6 draws with round numbers of test images."""
NOTHING = 65_535  # a cell without a value
BUDGET = 6_000_000  # bytes of the page; beyond them protocols and layers are left out
BYTES_A_VALUE = 2 * 4 / 3  # two bytes in base64
PICO = 10**12

ABSENT: dict[str, Any] = {
    "protocol": pl.String,
    "shots": pl.Int64,
    "layer": pl.Int64,
    "last_layer": pl.Boolean,
    "last_checkpoint": pl.Boolean,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What one protocol, number of shots and layer (None: each cell's last) say of every cell on some tasks."""

    protocol: str | None
    shots: int | None
    layer: int | None
    tasks: tuple[str, ...]
    upstream_TN: "Wholes"
    downstream_TN: "Wholes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """Every choice that fits the page, over the same cells in the same order.

    Args:
        cells: ids, in the order of every row.
        choices: that of the reducer (its protocol, last layers) first.
        other_layers: how many layers besides the last ones have values.
        left_out: what does not fit, in words.
    """

    cells: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()
    other_layers: int = 0
    left_out: tuple[str, ...] = ()


def choices_of(results: pl.DataFrame, protocol: str | None, cells: pl.DataFrame, budget: float = BUDGET) -> Choices:
    """The choices of a results table.

    As for the reducer a cell counts with its last checkpoint and the mean over its draws, all of which need a value.

    Args:
        results: tidied, and not empty.
        protocol: the reducer's.
        cells: cell_id and upstream, which stands where a row has no upstream accuracy.
        budget: bytes of the page; the reducer's own choice is there whatever it takes.
    """
    order = cells.sort("cell_id")
    rows = _rows(results)
    whole = _whole(order["upstream"])
    cost = order.height * BYTES_A_VALUE
    protocols, late = _fitting_protocols(rows, protocol, budget / cost)
    rows = rows.filter(pl.col("protocol").is_in(protocols, nulls_equal=True))
    layered = _layered(rows)
    layers = layered.filter(~pl.col("last_layer"))["layer"].unique().sort().to_list()
    room = budget / cost - _columns(rows.filter("last_layer")).height
    shown = _fitting_layers(layered, layers, room)
    ranks = {name: rank for rank, name in enumerate(protocols)}
    by_layer = layered.filter(pl.col("layer").is_in(shown))
    last = rows.filter("last_layer").with_columns(layer=pl.lit(None, pl.Int64))
    means = _means(pl.concat([last, by_layer]), order["cell_id"])
    found = sorted(_unfolded(means, whole), key=lambda choice: _place(choice, ranks))
    left = [f"the protocols {', '.join(map(str, late))}"] if late else []
    if len(shown) < len(layers):
        left.append(f"{len(layers) - len(shown)} of {len(layers)} layers before the last")
    return Choices(cells=tuple(order["cell_id"]), choices=tuple(found), other_layers=len(layers), left_out=tuple(left))


def _rows(results: pl.DataFrame) -> pl.DataFrame:
    """The rows of last checkpoints, with every column; a layer that nothing is known of is the last one."""
    absent = [pl.lit(None, kind).alias(name) for name, kind in ABSENT.items() if name not in results.columns]
    names = ("cell_id", "task", "upstream_accuracy", "downstream_accuracy", *ABSENT)
    rows = results.lazy().with_columns(absent).select(names)
    return (
        rows.filter(pl.col("last_checkpoint").fill_null(True))
        .with_columns(pl.col("last_layer").fill_null(True), pl.col("shots", "layer").cast(pl.Int64))
        .collect()
    )


def _layered(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with a layer of those protocols that were measured at others than the last one."""
    several = rows.filter(~pl.col("last_layer"), pl.col("layer").is_not_null())["protocol"].unique()
    return rows.filter(pl.col("protocol").is_in(several.implode(), nulls_equal=True), pl.col("layer").is_not_null())


def _columns(rows: pl.DataFrame, *further: str) -> pl.DataFrame:
    """The columns of values that rows make: one for each protocol, number of shots and task."""
    return rows.select("protocol", "shots", "task", *further).unique()


def _fitting_protocols(
    rows: pl.DataFrame, protocol: str | None, room: float
) -> tuple[list[str | None], list[str | None]]:
    """The reducer's protocol and, by name, those others whose last layers fit too; then those that do not."""
    counts = dict(_columns(rows.filter("last_layer")).group_by("protocol").len().iter_rows())
    room -= counts.pop(protocol, 0)
    kept: list[str | None] = [protocol]
    late: list[str | None] = []
    for name in sorted(counts, key=str):
        fits = counts[name] <= room
        room -= counts[name] if fits else 0
        (kept if fits else late).append(name)
    return kept, late


def _fitting_layers(rows: pl.DataFrame, layers: Sequence[int], room: float) -> list[int]:
    """As many evenly spaced layers as fit beside the last ones."""
    counts = dict(_columns(rows, "layer").group_by("layer").len().iter_rows())
    for number in range(len(layers), 0, -1):
        places = np.linspace(0, len(layers) - 1, number).round().astype(int) if number > 1 else [len(layers) // 2]
        chosen = [layers[place] for place in places]
        if sum(counts.get(layer, 0) for layer in chosen) <= room:
            return chosen
    return []


def _means(rows: pl.DataFrame, cells: pl.Series) -> pl.DataFrame:
    """protocol, shots, layer, task, cell (its place), upstream and downstream, of cells whose draws all have values."""
    # Sums of whole numbers do not depend on the order of the rows.
    up, down = pl.col("upstream_accuracy").fill_nan(None), pl.col("downstream_accuracy").fill_nan(None)
    return (
        rows.lazy()
        .with_columns(
            cell=pl.col("cell_id").cast(pl.Enum(cells)).to_physical(),
            up=up,
            down=(down * PICO).round().cast(pl.Int64),
        )
        .group_by("protocol", "shots", "layer", "task", "cell")
        .agg(
            lacking=(pl.col("up").is_null() | pl.col("down").is_null()).any(),
            upstream=pl.col("up").min(),
            downstream=pl.col("down").sum() / (pl.len() * PICO),
        )
        .filter(~pl.col("lacking"))
        .sort("protocol", "shots", "layer", "task", "cell", nulls_last=False)
        .collect()
    )


def _unfolded(means: pl.DataFrame, upstream_N: "Wholes") -> Iterator[Choice]:
    """A choice for each protocol, number of shots and layer."""
    keys = ("protocol", "shots", "layer")
    for key, rows in means.partition_by(keys, as_dict=True, maintain_order=True).items():
        tasks = rows["task"].unique(maintain_order=True)
        places = rows["task"].cast(pl.Enum(tasks)).to_physical().to_numpy(), rows["cell"].to_numpy()
        # Elsewhere upstream accuracies are those of the cells, so that most tasks share a row.
        upstream_TN = np.tile(upstream_N, (tasks.len(), 1))
        downstream_TN = np.full_like(upstream_TN, NOTHING)
        upstream_TN[places], downstream_TN[places] = _whole(rows["upstream"]), _whole(rows["downstream"])
        protocol, shots, layer = key
        yield Choice(
            protocol=protocol,
            shots=shots,
            layer=layer,
            tasks=tuple(tasks),
            upstream_TN=upstream_TN,
            downstream_TN=downstream_TN,
        )


def _whole(values: pl.Series) -> "Wholes":
    """Fractions as whole parts of the scale."""
    return (values * SCALE).round().cast(pl.UInt16).fill_null(NOTHING).to_numpy()


def _place(choice: Choice, ranks: dict[str | None, int]) -> tuple[int, int, int]:
    """Where a choice stands: the reducer's protocol first, then the last layer, then by shots."""
    layer, shots = (-1 if number is None else number for number in (choice.layer, choice.shots))
    return ranks[choice.protocol], layer, shots
