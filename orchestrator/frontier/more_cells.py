"""How many more cells would identify where a frontier saturates, by simulation. Pure numpy.

Shape suffixes: N points, L points of the kind that is added, M added ones.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.frontier.bootstrap import bootstrap
from orchestrator.frontier.choices import Choice, Points, fit_points
from orchestrator.frontier.hull import upper_hull
from orchestrator.frontier.law import Loss, fit_law
from orchestrator.frontier.noise import NumTest, denoised, noisy
from orchestrator.frontier.verdict import Fit, Seen, verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Indices = NDArray[np.intp]

NUM_STUDIES = 5
NUM_DRAWS = 60
FEWEST = 8
DEGENERATE = {"k_low", "alpha_low", "alpha_high"}


class World:
    def __init__(self, us_N, ds_N, like_L, sizes, choice, pick=None):
        self.us_N, self.ds_N, self.sizes, self.choice = us_N, ds_N, sizes, choice
        clean_N = ds_N if sizes is None else denoised(us_N, ds_N, sizes)
        pick = np.arange(us_N.size) if pick is None else pick
        u0,d0=us_N,ds_N
        us_N, ds_N = us_N[pick], ds_N[pick]
        law = fit_law(*fit_points(us_N, ds_N, choice), loss=choice.loss)
        hull_V = upper_hull(us_N, ds_N)
        self.law_world = law is not None and DEGENERATE.isdisjoint(law.at_bound)
        self.curve = law.predict if self.law_world else (lambda us: np.interp(us, us_N[hull_V], ds_N[hull_V]))
        self.like_L = like_L
        self.us_L, self.gap_L = u0[like_L], self.curve(u0[like_L]) - clean_N[like_L]
        self.jitter = 0.9 * self.us_L.std() * like_L.size ** -0.2

    def study(self, num, rng, shift=0.0):
        pick_M = rng.integers(0, self.like_L.size, num)
        us_M = np.clip(self.us_L[pick_M] + self.jitter * rng.standard_normal(num), self.us_L.min() , self.us_L.max()) + shift
        ds_M = np.clip(self.curve(us_M) - self.gap_L[pick_M], 0, 1)
        sizes = None
        if self.sizes is not None:
            rows = self.like_L[pick_M]
            nu, nd = self.sizes.us_N[rows], self.sizes.ds_N[rows]
            us_M, ds_M = noisy(us_M, nu, rng), noisy(ds_M, nd, rng)
            sizes = NumTest(us_N=np.concatenate([self.sizes.us_N, nu]), ds_N=np.concatenate([self.sizes.ds_N, nd]))
        return np.concatenate([self.us_N, us_M]), np.concatenate([self.ds_N, ds_M]), sizes


def identified(us_N, ds_N, sizes, choice, draws, seed):
    law = fit_law(*fit_points(us_N, ds_N, choice), loss=choice.loss)
    if law is None:
        return False
    hull_V = upper_hull(us_N, ds_N)
    interval = bootstrap(us_N, ds_N, choice, law, sizes=sizes, draws=draws, seed=seed)
    seen = Seen(num_cells=us_N.size, num_points=hull_V.size, us_V=us_N[hull_V], ds_V=ds_N[hull_V])
    return verdict(Fit(law=law, interval=interval, held_out_rmse=None), seen).identifiable


NEEDED=4
def more_cells(us_N, ds_N, like_L, sizes, choice, *, most, shift=0.0, draws=NUM_DRAWS, studies=NUM_STUDIES, seed=0, assure=False, confirm=False, needed=4):
    rng=np.random.default_rng([seed,3])
    if assure:
        worlds = [World(us_N, ds_N, like_L, sizes, choice, rng.integers(0,us_N.size,us_N.size)) for _ in range(studies)]
    else:
        worlds = [World(us_N, ds_N, like_L, sizes, choice)]*studies
    def enough(num):
        yes = 0
        for i in range(studies):
            rng = np.random.default_rng([seed, num, i])
            yes += identified(*worlds[i].study(num, rng, shift), choice, draws, seed)
            if yes >= needed or i + 1 - yes > studies - needed:
                break
        return yes >= needed
    n = FEWEST
    while n <= most:
        if enough(n) and (not confirm or enough(2*n)): return n, True
        n *= 2
    return None, True
