"""How many more cells would identify where a frontier saturates, by simulated studies. Pure numpy.

A simulated study has the cells that are there and further ones. A further cell takes after one that is there: its
upstream accuracy is that cell's, moved a little (a smoothed bootstrap, with Silverman's width), and its downstream
accuracy lies as far below the frontier as that cell's. Both are then measured with the evaluation noise of that cell's
test sets, where their sizes are known; until then the accuracies are those without it (`noise.denoised`). The frontier
is taken to be the law fitted to the hull; where that law rests on a bound, or there is none, it is the hull itself.

The number is as good as that law, and no more exact than a power of two. Of 83 synthetic studies of six known laws
(`python -m benchmarks.more_cells`), those that got the named number of true further cells were identified 67 (like), 73
(mix) and 65 (beyond) per cent of the time; those that were told that nothing would do, with 512 more at the upper end,
13 per cent.

Shape suffixes: N points, L points that further ones take after, M further ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from orchestrator.frontier.bootstrap import bootstrap
from orchestrator.frontier.choices import Choice, fit_points
from orchestrator.frontier.hull import upper_hull
from orchestrator.frontier.law import fit_law
from orchestrator.frontier.noise import NumTest, denoised, noisy
from orchestrator.frontier.verdict import Fit, Seen, verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Indices = NDArray[np.intp]

Kind = Literal["like", "mix", "beyond"]

NUM_STUDIES, NUM_NEEDED = 5, 4
"""As many simulated studies, of which so many must be identified: the customary power of 80 %."""
NUM_DRAWS = 60  # of each bootstrap: enough for a verdict, and a study is simulated some tens of times
FEWEST, MOST, MOST_BEYOND = 8, 512, 64
MIN_CELLS = 10
REACHES = (0.25, 0.5, 0.75)
"""How far towards upstream accuracy 1 cells that are better upstream are tried."""
DEGENERATE = {"k_low", "alpha_low", "alpha_high"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MoreCells:
    """What would identify the saturation value.

    Args:
        num: of further cells; None where no number that was tried is enough.
        kind: cells like the given ones, the same mix as all that are there, or cells that are better upstream; None
            where nothing is enough.
        upstream: the upstream accuracy that such better cells reach, or the highest that was tried in vain; None where
            nothing beyond was tried, since no law says what lies there.
        at_most: the largest number that was tried.
    """

    num: int | None
    kind: Kind | None
    upstream: float | None
    at_most: int


def more_cells(
    us_N: "Floats", ds_N: "Floats", like_L: "Indices", *, sizes: NumTest | None, choice: Choice, seed: int = 0
) -> MoreCells | None:
    """The fewest further cells that would do: like the given ones, else a mix, else better ones; None for under ten.

    Args:
        us_N: upstream accuracies.
        ds_N: downstream accuracies.
        like_L: rows of the cells that carry the frontier's upper end.
        sizes: of the test sets; None where one of them is unknown.
        choice: how the law is fitted.
        seed: of the simulated studies.
    """
    if us_N.size < MIN_CELLS:
        return None
    world = _World(us_N, ds_N, sizes, choice, seed)
    numbers = _doublings(us_N.size)
    kinds: tuple[tuple[Kind, Indices], ...] = (("like", like_L), ("mix", np.arange(us_N.size)))
    for kind, rows in kinds:
        num = _fewest(numbers, lambda num, rows=rows: world.tells(num, rows))  # type: ignore[misc]  # bound at once
        if num is not None:
            return MoreCells(num=num, kind=kind, upstream=None, at_most=numbers[-1])
    return _beyond(world, like_L, at_most=numbers[-1])


def _beyond(world: "_World", like_L: "Indices", *, at_most: int) -> MoreCells:
    """The least upstream accuracy at which a few cells, otherwise like the given ones, would do."""
    if not world.has_law:
        return MoreCells(num=None, kind=None, upstream=None, at_most=at_most)
    numbers = [num for num in _doublings(1) if num <= MOST_BEYOND]
    best = reached = float(world.us_N.max())
    for part in REACHES:
        reached = best + part * (1.0 - best)
        shift = reached - float(world.us_N[like_L].max())
        num = _fewest(numbers, lambda num, shift=shift: world.tells(num, like_L, shift))  # type: ignore[misc]  # the same
        if num is not None:
            return MoreCells(num=num, kind="beyond", upstream=reached, at_most=at_most)
    return MoreCells(num=None, kind=None, upstream=reached, at_most=at_most)


def _doublings(num_cells: int) -> list[int]:
    """Numbers of further cells to try: from a thirty-second of the study's to as many again, or a few hundred."""
    first = FEWEST
    while first < num_cells // 32:
        first *= 2
    numbers = [first]
    while numbers[-1] * 2 <= max(MOST, num_cells):
        numbers.append(numbers[-1] * 2)
    return numbers


def _fewest(numbers: list[int], tells: Callable[[int], bool]) -> int | None:
    """Twice the fewest that tell, since fewer may tell by luck; None where the largest number does not."""
    if not tells(numbers[-1]):
        return None
    low, high = 0, len(numbers) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if tells(numbers[middle]) else (middle + 1, high)
    return numbers[min(low + 1, len(numbers) - 1)]


class _World:
    """A study, and the frontier that its further cells are taken to lie below."""

    def __init__(self, us_N: "Floats", ds_N: "Floats", sizes: NumTest | None, choice: Choice, seed: int) -> None:
        self.us_N, self.ds_N, self.sizes, self.choice, self.seed = us_N, ds_N, sizes, choice, seed
        law, hull_V = fit_law(*fit_points(us_N, ds_N, choice), loss=choice.loss), upper_hull(us_N, ds_N)
        self.has_law = law is not None and DEGENERATE.isdisjoint(law.at_bound)
        self.frontier: Callable[[Floats], Floats] = lambda us_M: np.interp(us_M, us_N[hull_V], ds_N[hull_V])
        if law is not None and self.has_law:
            self.frontier = law.predict
        clean_N = ds_N if sizes is None else denoised(us_N, ds_N, sizes)
        self.lost_N = self.frontier(us_N) - clean_N

    def tells(self, num: int, rows_L: "Indices", shift: float = 0.0) -> bool:
        """Whether most simulated studies with so many more cells are identified."""
        identified = 0
        for i in range(NUM_STUDIES):
            study = self._study(num, rows_L, shift, np.random.default_rng([self.seed, num, i]))
            identified += _is_identified(*study, choice=self.choice, seed=self.seed)
            if identified == NUM_NEEDED or i + 1 - identified > NUM_STUDIES - NUM_NEEDED:
                break
        return identified == NUM_NEEDED

    def _study(
        self, num: int, rows_L: "Indices", shift: float, rng: np.random.Generator
    ) -> "tuple[Floats, Floats, NumTest | None]":
        us_L = self.us_N[rows_L]
        width = 0.9 * float(us_L.std()) * rows_L.size**-0.2
        rows_M = rows_L[rng.integers(0, rows_L.size, num)]
        # Within the range of the cells that are there: none is better upstream but by `shift`.
        us_M = np.clip(self.us_N[rows_M] + width * rng.standard_normal(num), us_L.min(), us_L.max()) + shift
        ds_M = np.clip(self.frontier(us_M) - self.lost_N[rows_M], 0.0, 1.0)
        sizes = None
        if self.sizes is not None:
            num_us_M, num_ds_M = self.sizes.us_N[rows_M], self.sizes.ds_N[rows_M]
            us_M, ds_M = noisy(us_M, num_us_M, rng), noisy(ds_M, num_ds_M, rng)
            sizes = NumTest(
                us_N=np.concatenate([self.sizes.us_N, num_us_M]), ds_N=np.concatenate([self.sizes.ds_N, num_ds_M])
            )
        return np.concatenate([self.us_N, us_M]), np.concatenate([self.ds_N, ds_M]), sizes


def _is_identified(us_N: "Floats", ds_N: "Floats", sizes: NumTest | None, *, choice: Choice, seed: int) -> bool:
    """What `find_frontier` would say of the hull fit, with fewer draws."""
    law, hull_V = fit_law(*fit_points(us_N, ds_N, choice), loss=choice.loss), upper_hull(us_N, ds_N)
    if law is None:
        return False
    interval = bootstrap(us_N, ds_N, choice, law, sizes=sizes, draws=NUM_DRAWS, seed=seed)
    seen = Seen(num_cells=us_N.size, num_points=hull_V.size, us_V=us_N[hull_V], ds_V=ds_N[hull_V])
    return verdict(Fit(law=law, interval=interval, held_out_rmse=None), seen).identifiable
