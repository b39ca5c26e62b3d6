"""How much of an accuracy is chance: from the size of the test set, or from the spread of seeds. Pure.

Shape suffix: N cells.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from orchestrator.conflicts.axes import comparable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

# 95 % of a normal distribution lies within this many standard errors.
Z_95 = 1.96
# A variance from fewer degrees of freedom may be off by more than its own size.
MIN_FREEDOM = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What a difference of two accuracies must exceed.

    Args:
        variance_N: of each cell's accuracy.
        group_N: a number for each cell; within a group the variance is a function of the accuracy alone: constant, or
            binomial with one test-set size and constant near 0 and 1.
        num_errors: standard errors of a difference that 95 % of the differences by chance stay below.
        source: where the variance comes from, in words.
    """

    variance_N: "Floats"
    group_N: "Ints"
    num_errors: float
    source: str


def noise_of(cells: pl.DataFrame, side: str, axes: "Sequence[str]") -> Noise | None:
    """Noise of one task's cells on one side ("upstream" or "downstream"); None where nothing tells it.

    Binomial where every test-set size is known, otherwise the spread of seeds.
    """
    sizes, accuracy_N = cells[f"{side}_num_test"], cells[side].to_numpy()
    return seed_spread(cells, side, axes) if sizes.has_nulls() else binomial(accuracy_N, sizes.to_numpy())


def binomial(accuracy_N: "Floats", num_test_N: "Ints | int") -> Noise:
    """Sampling noise of accuracies on test sets of these sizes (one for all cells, or one for each).

    No right answer, or no wrong one, is counted as half of one in one more image, since it does not show that there is
    no noise. Accuracies nearer to 0 or 1 than that have the same variance.
    """
    sizes_N = np.broadcast_to(np.asarray(num_test_N, dtype=np.int64), accuracy_N.shape)
    half_N = 0.5 / (sizes_N + 1)
    kept_N = np.clip(accuracy_N, half_N, 1.0 - half_N)
    return Noise(
        variance_N=kept_N * (1.0 - kept_N) / sizes_N,
        group_N=np.unique(sizes_N, return_inverse=True)[1].astype(np.int64),
        num_errors=Z_95,
        source="binomial",
    )


def seed_spread(cells: pl.DataFrame, side: str, axes: "Sequence[str]") -> Noise | None:
    """The variance between cells that differ on axis `seed` only, pooled over all such cells of one task.

    One variance stands for every cell. Cells that are alike but for the seed and yet have one twice are no replicates:
    they differ in something that the table does not tell, so that none of them counts; nor do those with an unknown
    axis. None with fewer than four degrees of freedom, and where seeds do not differ at all. The standard errors that
    count are those of Student's distribution.
    """
    if "seed" not in axes:
        return None
    others = [axis for axis in axes if axis != "seed"]
    alike = pl.struct(others).rank("dense") if others else pl.lit(1)
    known = comparable(cells, axes).filter(pl.col("seed").is_not_null()).sort("cell_id")
    spread = (
        known.select("seed", alike=alike, value=pl.col(side))
        .group_by("alike", maintain_order=True)
        .agg(
            is_told=pl.col("seed").is_unique().all(),
            freedom=pl.len() - 1,
            squares=(pl.col("value") - pl.col("value").mean()).pow(2).sum(),
        )
        .filter("is_told")
    )
    freedom, squares = int(spread["freedom"].sum()), float(spread["squares"].sum())
    if freedom < MIN_FREEDOM or squares <= 0:
        return None
    return Noise(
        variance_N=np.full(cells.height, squares / freedom),
        group_N=np.zeros(cells.height, dtype=np.int64),
        num_errors=student_95(freedom),
        source=f"seeds, {freedom} degrees of freedom",
    )


def student_95(freedom: int) -> float:
    """The 97.5 % quantile of Student's distribution, within 0.5 % from four degrees of freedom up.

    Cornish-Fisher expansion (Abramowitz and Stegun 26.7.5) around the normal quantile.
    """
    z = 1.959963984540054
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / freedom**power for power, term in enumerate(terms, start=1)))
