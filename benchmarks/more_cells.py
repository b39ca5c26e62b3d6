"""How often a study with as many further cells as it was told to need is identified; prints one line a kind.

`python -m benchmarks.more_cells`. The studies are those of six laws, with 36 or 120 cells up to an upstream accuracy of
0.6 or 0.9, exponential losses of mean 0.005 or 0.01, and both accuracies counted on 10,000 images. The upper quarter of
the upstream range stands for the model at the upper end.
"""

from itertools import product

import numpy as np

from orchestrator.frontier import Choice, NumTest, find_frontier
from orchestrator.frontier.more_cells import MOST, more_cells

LAWS = ((0.9, 1.5, 0.05), (0.8, 2.0, 0.1), (0.8, 3.0, 0.1), (0.6, 4.0, 0.2), (0.9, 6.0, 0.05), (0.5, 3.0, 0.3))
NUM_TEST, LOW, NUM_STUDIES, NUM_TRIALS = 10_000, 0.05, 2, 6


def drawn(law, num, low, high, lost, rng):
    k, alpha, e_ir = law
    us_N = rng.uniform(low, high, num)
    ds_N = 1 - (k * (1 - us_N) ** alpha + e_ir) - rng.exponential(lost, num)
    return tuple(rng.binomial(NUM_TEST, np.clip(side_N, 0, 1)) / NUM_TEST for side_N in (us_N, ds_N))


def sizes(num):
    return NumTest(us_N=np.full(num, NUM_TEST), ds_N=np.full(num, NUM_TEST))


def told(law, best, num, lost, seed):
    """The kind that was named, and how often so many true further cells identify; None where nothing is missing."""
    us_N, ds_N = drawn(law, num, LOW, best, lost, np.random.default_rng([seed, num]))
    if find_frontier(us_N, ds_N, sizes=sizes(num)).said.identifiable:
        return None
    upper = LOW + 0.75 * (best - LOW)
    found = more_cells(us_N, ds_N, np.flatnonzero(us_N >= upper), sizes=sizes(num), choice=Choice(method="hull"))
    low, high = {"mix": (LOW, best), "beyond": (upper + (found.upstream or best) - best, found.upstream)}.get(
        found.kind, (upper, best)
    )
    more, identified = found.num or MOST, 0
    for trial in range(NUM_TRIALS):
        us_M, ds_M = drawn(law, more, low, high, lost, np.random.default_rng([seed, num, trial]))
        both = np.concatenate([us_N, us_M]), np.concatenate([ds_N, ds_M])
        identified += find_frontier(*both, sizes=sizes(num + more), draws=100).said.identifiable
    return found.kind or "nothing", identified / NUM_TRIALS


def main() -> None:
    shares: dict[str, list[float]] = {"like": [], "mix": [], "beyond": [], "nothing": []}
    for one in product(LAWS, (0.6, 0.9), (36, 120), (0.005, 0.01), range(NUM_STUDIES)):
        kind_share = told(*one)
        if kind_share is not None:
            shares[kind_share[0]].append(kind_share[1])
    for kind, values in shares.items():
        mean, half = (np.mean(values), np.mean(np.array(values) >= 0.5)) if values else (np.nan, np.nan)
        print(f"{kind}: {len(values)} studies, identified {mean:.0%} of the time, {half:.0%} of them at least half")


if __name__ == "__main__":
    main()
