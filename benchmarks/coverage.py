"""How often the 95 % intervals cover the truth, on synthetic studies whose law is known; prints docs/coverage.md.

    python -m benchmarks.coverage > docs/coverage.md

It takes some minutes a row on two cores.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from orchestrator.frontier import METHODS, Choice, NumTest, bootstrap, fit_law, fit_points, percentile_bootstrap

NUM_UPSTREAM, NUM_DOWNSTREAM = 50_000, 10_000
LAWS = ((0.9, 1.5, 0.05), (0.8, 2.0, 0.1), (0.8, 3.0, 0.1), (0.6, 4.0, 0.2), (0.9, 6.0, 0.05), (0.5, 3.0, 0.3))
"""The ladder: k, alpha, e_IR."""
INTERVALS = (*METHODS, "plain")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """How the cells of a study come about: upstream accuracy is uniform, downstream the law's less a loss."""

    name: str
    mean_loss: float = 0.0
    part_on_law: float = 0.0
    measured: bool = False
    num_cells: int = 500
    intervals: tuple[str, ...] = INTERVALS


HULLS = ("hull", "rising")
WORLDS = (
    World(name="at or below the law", mean_loss=0.03),
    World(name="the same, 100 cells", mean_loss=0.03, num_cells=100, intervals=HULLS),
    World(name="the same, 2,000 cells", mean_loss=0.03, num_cells=2000, intervals=HULLS),
    World(name="the same, a fifth on the law", mean_loss=0.03, part_on_law=0.2, intervals=HULLS),
    World(name="on the law, measured", measured=True, intervals=METHODS),
    World(name="at or below the law, measured", mean_loss=0.03, measured=True, intervals=HULLS),
)

TEXT = """# How often the intervals cover the truth

The output of `python -m benchmarks.coverage > docs/coverage.md`: {trials} synthetic studies of each law, with
{draws} bootstrap draws each. A cell's upstream accuracy is uniform from 0.05 to 0.9, its downstream accuracy that of
the law less an exponential loss of mean 0.03 (what an unlucky choice of hyper-parameters costs), or none. There are
500 cells unless a row says otherwise. "Measured" means that both accuracies are counted on test sets of {upstream:,}
and {downstream:,} images, whose sizes are known.

The numbers are the per cent of studies in which the 95 % interval of e_IR, and of alpha, holds the true value: from the
worst to the best of the {laws} laws of the ladder, and their mean. The laws (k, alpha, e_IR) are {ladder}.
`plain` is the percentile interval of the hull fit over models drawn with replacement, which is not what is reported. Of
{trials} trials of a true 95 % interval, {low} to {high} per cent cover, 19 times in 20.
"""

READING = """
The parts of the models that hull and rising part draw (a tenth, n^0.72) were chosen on synthetic studies of this kind.
Nothing here covers a truth of another form than the law, cells that are no fair sample (all tuned for one task), or an
upstream range that ends far from where the curve bends.
"""


FRESH = 2
"""Studies that the intervals were not tuned on: those had seeds alone."""


def sample(world: World, law: tuple[float, float, float], seed: int) -> tuple[np.ndarray, np.ndarray, NumTest | None]:
    """Upstream and downstream accuracies of one study, and the sizes of its test sets where it is measured."""
    rng = np.random.default_rng([FRESH, seed])
    k, alpha, e_ir = law
    us_N = rng.uniform(0.05, 0.9, world.num_cells)
    lost_N = rng.exponential(world.mean_loss, world.num_cells) * (rng.random(world.num_cells) >= world.part_on_law)
    ds_N = np.clip(1.0 - (k * (1.0 - us_N) ** alpha + e_ir) - lost_N, 0.0, 1.0)
    if not world.measured:
        return us_N, ds_N, None
    us_N = rng.binomial(NUM_UPSTREAM, us_N) / NUM_UPSTREAM
    ds_N = rng.binomial(NUM_DOWNSTREAM, ds_N) / NUM_DOWNSTREAM
    sizes = NumTest(us_N=np.full(us_N.size, NUM_UPSTREAM), ds_N=np.full(us_N.size, NUM_DOWNSTREAM))
    return us_N, ds_N, sizes


def coverage(world: World, law: tuple[float, float, float], trials: int, draws: int) -> dict[str, tuple[float, float]]:
    """For each interval, the per cent of trials that cover e_IR and alpha."""
    hits: dict[str, list[tuple[bool, bool]]] = {name: [] for name in world.intervals}
    for trial in range(trials):
        us_N, ds_N, sizes = sample(world, law, trial)
        for name, found in hits.items():
            choice = Choice(method="hull" if name == "plain" else name)
            if name == "plain":
                interval = percentile_bootstrap(us_N, ds_N, choice, draws=draws, seed=trial)
            else:
                fitted = fit_law(*fit_points(us_N, ds_N, choice))
                interval = bootstrap(us_N, ds_N, choice, fitted, sizes=sizes, draws=draws, seed=trial)
            if interval.e_ir_low is None:
                found.append((False, False))
                continue
            e_ir = interval.e_ir_low <= law[2] <= interval.e_ir_high
            found.append((e_ir, interval.alpha_low <= law[1] <= interval.alpha_high))
    return {name: tuple(100.0 * np.mean(found, axis=0)) for name, found in hits.items()}


def main() -> None:
    """Prints the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--draws", type=int, default=200)
    options = parser.parse_args()
    half = 1.96 * np.sqrt(0.05 * 0.95 / options.trials) * 100
    print(
        TEXT.format(
            trials=options.trials,
            draws=options.draws,
            upstream=NUM_UPSTREAM,
            downstream=NUM_DOWNSTREAM,
            laws=len(LAWS),
            ladder=", ".join(f"({k:g}, {alpha:g}, {e_ir:g})" for k, alpha, e_ir in LAWS),
            low=f"{95 - half:.0f}",
            high=f"{95 + half:.0f}",
        )
    )
    columns = [f"{name}: {what}" for name in INTERVALS for what in ("e_IR", "alpha")]
    print("| cells |", " | ".join(columns), "|")
    print("|---" * (len(columns) + 1) + "|")
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            (world, [pool.submit(coverage, world, law, options.trials, options.draws) for law in LAWS])
            for world in WORLDS
        ]
        for world, futures in jobs:
            found = [future.result() for future in futures]
            cells = []
            for name in INTERVALS:
                sides = zip(*(result[name] for result in found), strict=True) if name in world.intervals else [(), ()]
                cells += [f"{min(side):.0f}-{max(side):.0f} ({np.mean(side):.0f})" if side else "" for side in sides]
            print("|", world.name, "|", " | ".join(cells), "|", flush=True)
    print(READING, end="")


if __name__ == "__main__":
    main()
