"""How often the band of a comparison holds the truth, on synthetic studies whose frontiers are known.

    python -m benchmarks.comparing > docs/comparing.md

It takes some minutes on two cores.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np

from benchmarks.coverage import MEAN_LOSS, NUM_DOWNSTREAM, NUM_UPSTREAM, Made, World, make
from orchestrator.comparing import Cells, find_difference

LAW = (0.7, 2.5, 0.15)
OTHERS = {"the same law": LAW, "0.05 lower": (0.7, 2.5, 0.2), "a law that crosses": (0.35, 1.2, 0.2)}
NUM_CELLS = ((20, 20), (50, 50), (200, 200), (1000, 1000), (500, 30))
WORLDS = (
    World(name="below the law", intervals=()),
    World(name="few near the law", shape=2.0, intervals=()),
    World(name="a fifth on the law", part_on_law=0.2, intervals=()),
    World(name="below, measured", measured=True, intervals=()),
    World(name="on the law, measured", shape=None, measured=True, intervals=()),
)

TEXT = """# Two studies side by side

`upshot report A B` takes two studies, or a study and an imported table, and tells for every task that both have at
the same number of shots which frontier lies higher where. It writes a page, figures and tables to `A-vs-B-report` (or
`--output`), and prints the answer (`--json`: as JSON).

```sh
upshot report a.parquet b.parquet
upshot report a.parquet b.parquet --output a-against-b --json
```

The frontier is the upper hull of (upstream, downstream) accuracy. That of a sample of cells lies below that of all
models that could have been trained, the more so the fewer cells there are, so the study with more cells would win by
its number alone. So a quarter of each study's cells is drawn without replacement, and how far the hulls of these
samples lie below that of all cells tells how far that one lies below the frontier: the distance of n cells is taken
to shrink as n^-0.4. The band holds the true difference along the whole judged range at once, with 95 %; a region is
told where it leaves out 0. Evaluation noise is in it where the sizes of the test sets are known. A place is judged
where nine in ten samples of both studies reach it; each study needs 12 cells.

What it takes for granted: both upstream accuracies are on one set (it warns where the sets differ, or are not known),
both studies are independent, and the cells are a fair sample of what each could have trained.

## How often the band covers the truth

The output of `python -m benchmarks.comparing > docs/comparing.md`: {trials} pairs of synthetic studies each, with 200
samples of each study. The cells lie below a law (k, alpha, e_IR) = {law} as in [coverage.md](coverage.md) (losses of
mean {loss}; "measured": test sets of {upstream:,} and {downstream:,} images), those of the second study below the
same law, below one that is 0.05 lower, or below one that crosses it. "Covers" is the per cent of pairs in which the
band holds the true difference everywhere; "told" that in which some region is told (of one law: falsely); "mean" that
in which the interval of the mean difference holds it. Of {trials} trials of a true 95 % band, {low} to {high} per
cent cover, 19 times in 20. The rate was chosen on other laws and other draws.
"""

READING = """
The bands are wider than they need be, mostly: the rate is that of the slowest kind of losses that was tried, since
nobody knows how many cells lie close to a frontier. Small studies therefore tell large differences only.

The interval of a mean is not as safe as the band: where all cells lie on the law and differ by evaluation noise alone,
it holds the truth in 72 to 93 per cent of pairs with 200 and more cells each, since noise lifts the hull along all of
it.
"""


def truth(law: tuple[float, float, float], us_S: np.ndarray) -> np.ndarray:
    k, alpha, e_ir = law
    return 1.0 - (k * (1.0 - us_S) ** alpha + e_ir)


def trial(world: World, num_cells: tuple[int, int], other: tuple[float, float, float], seed: int) -> tuple[float, ...]:
    """Whether the band covers, a region is told, and the mean is covered; NaN where nothing can be compared."""
    worlds = [replace(world, num_cells=num) for num in num_cells]
    a, b = make(worlds[0], LAW, 2 * seed), make(worlds[1], other, 2 * seed + 1)
    found = find_difference(_cells(a), _cells(b), seed=seed)
    if isinstance(found, str):
        return (np.nan,) * 3
    true_S = (truth(LAW, found.us_S) - truth(other, found.us_S))[found.judged]
    inside = (found.low_S[found.judged] <= true_S) & (true_S <= found.high_S[found.judged])
    return bool(inside.all()), bool(found.regions), found.mean_low <= true_S.mean() <= found.mean_high


def _cells(made: Made) -> Cells:
    return Cells(us_N=made.us_N, ds_N=made.ds_N, sizes=made.sizes)


def main() -> None:
    """Prints the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    trials = parser.parse_args().trials
    half = 1.96 * np.sqrt(0.05 * 0.95 / trials) * 100
    numbers = {"upstream": NUM_UPSTREAM, "downstream": NUM_DOWNSTREAM, "loss": MEAN_LOSS, "law": LAW}
    print(TEXT.format(trials=trials, low=f"{95 - half:.0f}", high=f"{min(100, 95 + half):.0f}", **numbers))
    columns = [f"{name}: {what}" for name in OTHERS for what in ("covers", "told", "mean")]
    print("| cells lie | of A, B |", " | ".join(columns), "|")
    print("|---" * (len(columns) + 2) + "|")
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for world in WORLDS:
            for num_cells in NUM_CELLS:
                found = [
                    100 * np.nanmean(list(pool.map(partial(trial, world, num_cells, other), range(trials))), axis=0)
                    for other in OTHERS.values()
                ]
                row = " | ".join(f"{share:.0f}" for each in found for share in each)
                print("|", world.name, "|", f"{num_cells[0]:,}, {num_cells[1]:,}", "|", row, "|", flush=True)
    print(READING, end="")


if __name__ == "__main__":
    main()
