"""How often the 95 % intervals cover the truth, on synthetic studies whose law is known; prints docs/coverage.md.

    python -m benchmarks.coverage > docs/coverage.md

It takes some minutes a row on two cores.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from orchestrator.frontier import (
    METHODS,
    Choice,
    NumTest,
    bootstrap,
    find_recipe,
    fit_law,
    fit_points,
    percentile_bootstrap,
)

NUM_UPSTREAM, NUM_DOWNSTREAM, MEAN_LOSS = 50_000, 10_000, 0.03
LAWS = ((0.9, 1.5, 0.05), (0.8, 2.0, 0.1), (0.8, 3.0, 0.1), (0.6, 4.0, 0.2), (0.9, 6.0, 0.05), (0.5, 3.0, 0.3))
"""The ladder: k, alpha, e_IR."""
INTERVALS = (*METHODS, "plain", "recipe")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """How the cells of a study come about: upstream accuracy is uniform, downstream the law's less a loss.

    The loss has a gamma distribution of mean 0.03: with shape 1 (exponential) most cells are close to the law, with
    shape 2 few are. `around` is the standard deviation of cells that lie on both sides of the law instead.
    """

    name: str
    shape: float | None = 1.0
    around: float = 0.0
    part_on_law: float = 0.0
    measured: bool = False
    num_cells: int = 500
    intervals: tuple[str, ...]


HULLS, MEASURED = ("hull", "rising"), ("hull", "rising", "recipe")
WORLDS = (
    World(name="below the law", intervals=(*METHODS, "plain")),
    World(name="below, 100 cells", num_cells=100, intervals=HULLS),
    World(name="below, 2,000 cells", num_cells=2000, intervals=HULLS),
    World(name="below, few near the law", shape=2.0, intervals=HULLS),
    World(name="below, a fifth on the law", part_on_law=0.2, intervals=HULLS),
    World(name="below, measured", measured=True, intervals=MEASURED),
    World(name="below, 100 cells, measured", measured=True, num_cells=100, intervals=MEASURED),
    World(name="on the law, measured", shape=None, measured=True, intervals=(*METHODS, "recipe")),
    World(name="around the law", shape=None, around=0.02, intervals=("all",)),
)

TEXT = """# How often the intervals cover the truth

The output of `python -m benchmarks.coverage > docs/coverage.md`: {trials} synthetic studies of each law, with
{draws} bootstrap draws each. A cell's upstream accuracy is uniform from 0.05 to 0.9, its downstream accuracy that of
the law less an exponential loss of mean 0.03 (what an unlucky choice of hyper-parameters costs; "few near the law": a
gamma loss of the same mean and shape 2), or none. "Around the law" are cells that a normal error of 0.02 puts on both
sides of it. There are 500 cells unless a row says otherwise. "Measured" means that both accuracies are counted on test
sets of {upstream:,} and {downstream:,} images, whose sizes are known.

The numbers are the per cent of studies in which the 95 % interval of e_IR, and of alpha, holds the true value: from the
worst to the best of the {laws} laws of the ladder, and their mean. The laws (k, alpha, e_IR) are {ladder}.
`plain` is the percentile interval of the hull fit over models drawn with replacement, which is not what is reported;
`recipe` the interval of what a mix of two cells, at an upstream accuracy drawn at random, truly has downstream. Of
{trials} trials of a true 95 % interval, {low} to {high} per cent cover, 19 times in 20.
"""

READING = """
The law of all cells is that of the middle of the cloud, and no frontier where cells lie below one. The rate behind the
intervals of hull and rising part was chosen on other studies of this kind (other laws, other losses, other draws).
Nothing here covers a truth of another form than the law, cells that are no fair sample (all tuned for one task), or an
upstream range that ends far from where the curve bends.
"""


FRESH = 3
"""Studies that the intervals were not tuned on begin their seeds with this."""


@dataclass(frozen=True, slots=True)
class Made:
    """One study: measured accuracies, true downstream accuracies, and the sizes of test sets where it is measured."""

    us_N: np.ndarray
    ds_N: np.ndarray
    true_N: np.ndarray
    sizes: NumTest | None
    upstream: float
    """Where its recipe is asked for."""


def make(world: World, law: tuple[float, float, float], seed: int) -> Made:
    rng = np.random.default_rng([FRESH, seed])
    k, alpha, e_ir = law
    us_N = rng.uniform(0.05, 0.9, world.num_cells)
    lost_N = (
        np.zeros(world.num_cells) if world.shape is None else rng.gamma(world.shape, MEAN_LOSS / world.shape, us_N.size)
    )
    lost_N = lost_N * (rng.random(world.num_cells) >= world.part_on_law) + rng.normal(0.0, world.around, us_N.size)
    true_N = ds_N = np.clip(1.0 - (k * (1.0 - us_N) ** alpha + e_ir) - lost_N, 0.0, 1.0)
    sizes = None
    if world.measured:
        us_N = rng.binomial(NUM_UPSTREAM, us_N) / NUM_UPSTREAM
        ds_N = rng.binomial(NUM_DOWNSTREAM, ds_N) / NUM_DOWNSTREAM
        sizes = NumTest(us_N=np.full(us_N.size, NUM_UPSTREAM), ds_N=np.full(us_N.size, NUM_DOWNSTREAM))
    return Made(us_N, ds_N, true_N, sizes, rng.uniform(*np.quantile(us_N, [0.05, 0.95])))


def recipe_covers(made: Made) -> bool:
    found = find_recipe(made.us_N, made.ds_N, made.upstream, sizes=made.sizes)
    truth = found.p_left * made.true_N[found.left] + (1.0 - found.p_left) * made.true_N[found.right]
    return bool(found.low <= truth <= found.high)


def coverage(world: World, law: tuple[float, float, float], trials: int, draws: int) -> dict[str, tuple[float, ...]]:
    """For each interval, the per cent of trials that cover e_IR and alpha, or the recipe's truth."""
    hits: dict[str, list[tuple[bool, ...]]] = {name: [] for name in world.intervals}
    for trial in range(trials):
        made = make(world, law, trial)
        us_N, ds_N, sizes = made.us_N, made.ds_N, made.sizes
        for name, found in hits.items():
            if name == "recipe":
                found.append((recipe_covers(made),))
                continue
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
    columns = [f"{name}: {what}" for name in INTERVALS[:-1] for what in ("e_IR", "alpha")] + ["recipe"]
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
                nothing = [()] if name == "recipe" else [(), ()]
                sides = zip(*(result[name] for result in found), strict=True) if name in world.intervals else nothing
                cells += [f"{min(side):.0f}-{max(side):.0f} ({np.mean(side):.0f})" if side else "" for side in sides]
            print("|", world.name, "|", " | ".join(cells), "|", flush=True)
    print(READING, end="")


if __name__ == "__main__":
    main()
