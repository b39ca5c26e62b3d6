"""The bootstrap of frontiers against a plain scipy script, and the size of the paper's study; prints one line each.

The rival is what one writes first: for each draw `scipy.spatial.ConvexHull` and `least_squares` from many starts. It
runs fewer draws, and its time is scaled to as many; ours runs all. Both are timed in turn, in one run, on one thread
(the size of the paper's study: a process a core).
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy loads its matrix library

import resource
import statistics
import time

import numpy as np
import polars as pl
from scipy.optimize import least_squares
from scipy.spatial import ConvexHull

from orchestrator.frontier import find_frontier
from orchestrator.reduce import reduce_study
from tests.orchestrator.timm_tables import top1

DRAWS, RIVAL_DRAWS, RUNS = 1000, 10, 3
NUM_CELLS, NUM_TASKS, SHOTS = 4800, 25, (1, 5, 10, 25)


def rival_fit(us_N: np.ndarray, ds_N: np.ndarray) -> np.ndarray | None:
    """(k, alpha, e_IR) of the upper hull by bounded least squares from 12 starts; None for fewer than 3 vertices."""
    hull = ConvexHull(np.column_stack([us_N, ds_N]))
    upper = np.unique(hull.simplices[hull.equations[:, 1] > 1e-12])
    if upper.size < 3:
        return None
    u, y = 1 - us_N[upper], 1 - ds_N[upper]

    def residuals(p: np.ndarray) -> np.ndarray:
        return p[0] * (u / u.max()) ** p[1] + p[2] - y

    starts = [(k, alpha, e) for alpha in (0.3, 1.0, 3.0, 10.0) for k, e in ((0.1, 0.3), (0.5, 0.1), (0.9, 0.01))]
    fits = [least_squares(residuals, start, bounds=([0, 0.01, 0], [np.inf, 100, 1])) for start in starts]
    best = min(fits, key=lambda fit: fit.cost).x
    return np.array([best[0] / u.max() ** best[1], best[1], best[2]])


def rival(us_N: np.ndarray, ds_N: np.ndarray, draws: int) -> list[np.ndarray | None]:
    rng = np.random.default_rng(0)
    return [
        rival_fit(us_N[picks], ds_N[picks]) for picks in (rng.integers(0, us_N.size, us_N.size) for _ in range(draws))
    ]


def timm() -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (table["upstream"].to_numpy() / 100, table["downstream"].to_numpy() / 100)
        for table in top1().partition_by("task", maintain_order=True)
    ]


def against_scipy() -> None:
    """The five timm tasks: hull, rising part and all points with verdicts and rivals, against the hull alone."""
    tasks = timm()
    find_frontier(*tasks[0], draws=DRAWS)  # warms up
    ratios, ours_s, rival_s = [], [], []
    for _ in range(RUNS):
        began = time.perf_counter()
        for us_N, ds_N in tasks:
            find_frontier(us_N, ds_N, draws=DRAWS)
        between = time.perf_counter()
        for us_N, ds_N in tasks:
            rival(us_N, ds_N, RIVAL_DRAWS)
        ours_s.append(between - began)
        rival_s.append((time.perf_counter() - between) * DRAWS / RIVAL_DRAWS)
        ratios.append(rival_s[-1] / ours_s[-1])
    print(f"timm, 5 tasks x {DRAWS:,} draws, hull + rising + all: {statistics.median(ours_s):.2f} s")
    print(
        f"scipy, hull only, {RIVAL_DRAWS} draws scaled to {DRAWS:,}: {statistics.median(rival_s):.0f} s; "
        f"ratio {statistics.median(ratios):.0f}"
    )


def synthetic_study() -> pl.DataFrame:
    """4,800 cells x 25 tasks x 4 shots with test-set sizes; hulls about as large as those of real tables."""
    rng = np.random.default_rng(0)
    ids = pl.Series("cell_id", [f"c{i}" for i in range(NUM_CELLS)])
    us_N = 0.93 * rng.beta(5, 1.5, NUM_CELLS)
    tables = []
    for task in range(NUM_TASKS):
        for shots in SHOTS:
            k, alpha, e_ir = rng.uniform(0.3, 0.9), rng.uniform(1.2, 6), rng.uniform(0.03, 0.2)
            lost_N = rng.gamma(4, 0.03, NUM_CELLS)
            ds_N = np.clip(1 - (k * (1 - us_N) ** alpha + e_ir) - lost_N, 0, 1)
            tables.append(
                pl.DataFrame({"upstream_accuracy": us_N, "downstream_accuracy": ds_N}).with_columns(
                    ids,
                    task=pl.lit(f"task{task:02}"),
                    shots=pl.lit(shots),
                    upstream_num_test=pl.lit(50_000),
                    downstream_num_test=pl.lit(10_000),
                )
            )
    return pl.concat(tables)


def whole_study() -> None:
    """The paper's study through `reduce_study`."""
    table = synthetic_study()
    began = time.perf_counter()
    tasks = reduce_study(table, draws=DRAWS, workers=os.cpu_count() or 1)["tasks"]
    seconds = time.perf_counter() - began
    vertices = [task["hull_vertices"] for task in tasks]
    here, each = (resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    memory_gb = here + each * (os.cpu_count() or 1)
    print(
        f"{NUM_CELLS:,} cells x {NUM_TASKS} tasks x {len(SHOTS)} shots x {DRAWS:,} draws: {seconds:.1f} s on "
        f"{os.cpu_count()} cores, at most {memory_gb:.1f} GiB; hulls of {min(vertices)} to {max(vertices)} vertices"
    )


if __name__ == "__main__":
    against_scipy()
    whole_study()
