"""The published tables of timm, read plainly (not by `upshot import`), and what an independent script made of them."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

DATA = Path(__file__).parent / "data"
REFERENCE = {row["task"]: row for row in pl.read_csv(DATA / "reference_timm.csv").iter_rows(named=True)}
NUM_UPSTREAM = 50_000
NUM_TEST = {
    "imagenet-real": 46_837,
    "imagenetv2-matched-frequency": 10_000,
    "sketch": 50_889,
    "imagenet-a": 7_500,
    "imagenet-r": 30_000,
}
ID = ("model", "img_size")


@cache
def top1() -> pl.DataFrame:
    """task, model, img_size, upstream, downstream (per cent); the models that both files have, as in the task's."""
    upstream = _read("imagenet")
    tasks = [
        _read(task)
        .join(upstream, on=ID, suffix="_us", maintain_order="left")
        .select(pl.lit(task).alias("task"), *ID, upstream="top1_us", downstream="top1")
        for task in NUM_TEST
    ]
    return pl.concat(tasks)


def _read(name: str) -> pl.DataFrame:
    return pl.read_csv(DATA / "timm" / f"results-{name}.csv", columns=[*ID, "top1"])


def accuracies(task: str) -> tuple["Floats", "Floats"]:
    """Upstream and downstream accuracies of one task, as fractions."""
    table = top1().filter(pl.col("task") == task).drop_nulls()
    return table["upstream"].to_numpy() / 100, table["downstream"].to_numpy() / 100
