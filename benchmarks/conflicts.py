"""Conflicts of 100,000 models: exact counts beside a count of all pairs in numpy, and the strongest ones.

The rival compares every model with every other, a block of rows at a time. It is run on a part of the models and
scaled by the square of their number, unless `--whole` is given.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from orchestrator.conflicts import binomial, count_pairs, count_significant, strongest_pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

RUNS = 5
NUM_UPSTREAM, NUM_DOWNSTREAM = 50_000, 10_000
ROWS = 256


def models(num: int) -> tuple["Floats", "Floats"]:
    """Accuracies like those of a public table: related, with a spread, and whole numbers of test images."""
    rng = np.random.default_rng(0)
    us_N = 1 - np.exp(-rng.gamma(3.0, 0.6, num))
    ds_N = np.clip(us_N**1.5 + rng.normal(0, 0.05, num), 0, 1)
    return np.round(us_N * NUM_UPSTREAM) / NUM_UPSTREAM, np.round(ds_N * NUM_DOWNSTREAM) / NUM_DOWNSTREAM


def all_pairs(us_N: "Floats", ds_N: "Floats") -> tuple[int, int]:
    """Conflicts and significant conflicts, by looking at every pair."""
    us_var_N, ds_var_N = us_N * (1 - us_N) / NUM_UPSTREAM, ds_N * (1 - ds_N) / NUM_DOWNSTREAM
    conflicts = significant = 0
    for start in range(0, us_N.size, ROWS):
        rows = slice(start, start + ROWS)
        us_BN, ds_BN = us_N[rows, None] - us_N, ds_N - ds_N[rows, None]
        conflict_BN = (us_BN > 0) & (ds_BN > 0)
        conflicts += int(conflict_BN.sum())
        us_BN = us_BN > 1.96 * np.sqrt(us_var_N[rows, None] + us_var_N)
        ds_BN = ds_BN > 1.96 * np.sqrt(ds_var_N[rows, None] + ds_var_N)
        significant += int((us_BN & ds_BN).sum())
    return conflicts, significant


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Median seconds of some runs, and what the last one gave."""
    times, found = [], None
    for _ in range(RUNS):
        began = time.perf_counter()
        found = function()
        times.append(time.perf_counter() - began)
    return statistics.median(times), found


def main() -> None:
    """One line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=100_000)
    parser.add_argument("--rival", type=int, default=10_000, help="models that the rival compares")
    parser.add_argument("--whole", action="store_true", help="the rival compares all models, once")
    options = parser.parse_args()
    us_N, ds_N = models(options.models)
    us_noise, ds_noise = binomial(us_N, NUM_UPSTREAM), binomial(ds_N, NUM_DOWNSTREAM)
    cells = pl.DataFrame(
        {"upstream": us_N, "downstream": ds_N, "cell_id": [f"{i:06d}" for i in range(us_N.size)]}
    ).with_columns(
        task=pl.lit("task"),
        shots=pl.lit(None, pl.Int64),
        upstream_num_test=pl.lit(NUM_UPSTREAM),
        downstream_num_test=pl.lit(NUM_DOWNSTREAM),
    )
    count_s, counts = timed(lambda: count_pairs(us_N, ds_N))
    significant_s, significant = timed(lambda: count_significant(us_N, ds_N, us_noise, ds_noise))
    strongest_s, _ = timed(lambda: strongest_pairs(cells, 20))
    size = options.models if options.whole else min(options.rival, options.models)
    began = time.perf_counter()
    theirs = all_pairs(us_N[:size], ds_N[:size])
    measured_s = time.perf_counter() - began
    ours = (
        count_pairs(us_N[:size], ds_N[:size]).conflicts,
        count_significant(
            us_N[:size], ds_N[:size], binomial(us_N[:size], NUM_UPSTREAM), binomial(ds_N[:size], NUM_DOWNSTREAM)
        ),
    )
    assert ours == theirs, (ours, theirs)
    rival_s = measured_s * (options.models / size) ** 2
    n = f"{options.models:,} models"
    print(f"{n}, conflicts                {count_s:8.3f} s  {counts.conflicts:,}")
    print(f"{n}, significant conflicts    {significant_s:8.3f} s  {significant:,}")
    print(f"{n}, 20 strongest             {strongest_s:8.3f} s")
    scaled = "" if size == options.models else f", scaled from {measured_s:.2f} s for {size:,}"
    print(f"{n}, both counts by all pairs {rival_s:8.1f} s{scaled}; equal counts on these")
    print(f"ratio, both counts: {rival_s / (count_s + significant_s):,.0f} x as fast")


if __name__ == "__main__":
    main()
