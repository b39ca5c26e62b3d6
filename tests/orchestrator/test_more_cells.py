"""How many more cells would tell where a frontier saturates, against studies whose law is known."""

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from orchestrator.frontier import Choice, NumTest, find_frontier
from orchestrator.frontier.more_cells import MoreCells, more_cells
from orchestrator.more_cells import more_cells_object, more_cells_text
from orchestrator.reduce import reduce_study
from tests.orchestrator.test_reduce import row, table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

NUM_TEST = 10_000
HULL = Choice(method="hull")


class Truth:
    """Cells whose downstream accuracy is that of a law less an exponential loss, both accuracies counted."""

    def __init__(self, k: float, alpha: float, e_ir: float, *, best: float, lost: float) -> None:
        self.k, self.alpha, self.e_ir, self.best, self.lost = k, alpha, e_ir, best, lost

    def draw(self, num: int, seed: int, *, low: float = 0.05, high: float | None = None) -> "tuple[Floats, Floats]":
        rng = np.random.default_rng(seed)
        us_N = rng.uniform(low, high or self.best, num)
        ds_N = 1 - (self.k * (1 - us_N) ** self.alpha + self.e_ir) - rng.exponential(self.lost, num)
        return tuple(rng.binomial(NUM_TEST, np.clip(side_N, 0, 1)) / NUM_TEST for side_N in (us_N, ds_N))  # type: ignore[return-value]

    @property
    def upper(self) -> float:
        """Where the cells that carry the upper end begin."""
        return 0.05 + 0.75 * (self.best - 0.05)


def sizes(num: int) -> NumTest:
    return NumTest(us_N=np.full(num, NUM_TEST), ds_N=np.full(num, NUM_TEST))


def asked(us_N: "Floats", ds_N: "Floats", upper: float, seed: int = 0) -> MoreCells:
    found = more_cells(us_N, ds_N, np.flatnonzero(us_N >= upper), sizes=sizes(us_N.size), choice=HULL, seed=seed)
    assert found is not None
    return found


def share_told(truth: Truth, us_N: "Floats", ds_N: "Floats", num: int, low: float, high: float) -> float:
    """In how many of five studies, each with so many true further cells, the saturation value is identified."""
    told = 0
    for seed in range(5):
        us_M, ds_M = truth.draw(num, 1000 + seed, low=low, high=high)
        both = np.concatenate([us_N, us_M]), np.concatenate([ds_N, ds_M])
        told += find_frontier(*both, sizes=sizes(both[0].size), draws=100).said.identifiable
    return told / 5


def test_studies_that_get_as_many_cells_are_identified_more_often_than_not() -> None:
    shares, kinds = [], set()
    for i, (k, alpha, e_ir) in enumerate(((0.8, 2, 0.1), (0.9, 6, 0.05), (0.8, 3, 0.1), (0.6, 4, 0.2))):
        for best in (0.6, 0.9):
            truth = Truth(k, alpha, e_ir, best=best, lost=0.005)
            us_N, ds_N = truth.draw(60, i)
            if find_frontier(us_N, ds_N, sizes=sizes(60)).said.identifiable:
                continue
            found = asked(us_N, ds_N, truth.upper)
            if found.num is None:
                continue
            reach = found.upstream or best
            low = {"mix": 0.05, "like": truth.upper, "beyond": truth.upper + reach - best}[str(found.kind)]
            kinds.add(found.kind)
            shares.append(share_told(truth, us_N, ds_N, found.num, low, reach))
    assert len(shares) >= 4
    assert len(kinds) >= 2
    assert np.mean(shares) > 0.5, shares


def test_a_study_far_from_saturation_is_told_so_and_as_many_cells_would_not_help() -> None:
    truth = Truth(0.9, 1.5, 0.05, best=0.3, lost=0.02)
    us_N, ds_N = truth.draw(36, 0)
    found = asked(us_N, ds_N, truth.upper)
    assert (found.num, found.kind, found.at_most) == (None, None, 512)
    assert share_told(truth, us_N, ds_N, 512, truth.upper, 0.3) == 0


def test_cells_that_do_not_rise_have_no_law_to_look_beyond() -> None:
    rng = np.random.default_rng(0)
    us_N = rng.uniform(0.1, 0.6, 40)
    ds_N = 0.6 - 0.3 * us_N - rng.exponential(0.02, 40)
    assert asked(us_N, ds_N, 0.5) == MoreCells(num=None, kind=None, upstream=None, at_most=512)


def test_better_cells_are_named_by_the_upstream_accuracy_that_they_reach() -> None:
    truth = Truth(0.9, 1.5, 0.05, best=0.4, lost=0.002)
    us_N, ds_N = truth.draw(36, 0)
    found = asked(us_N, ds_N, truth.upper)
    assert found.kind == "beyond"
    assert found.num is not None
    assert found.num <= 64
    assert found.upstream == pytest.approx(us_N.max() + 0.5 * (1 - us_N.max()))


def test_the_same_seed_gives_the_same_number_and_few_cells_give_none() -> None:
    us_N, ds_N = Truth(0.8, 3, 0.1, best=0.9, lost=0.005).draw(60, 2)
    assert asked(us_N, ds_N, 0.7, seed=3) == asked(us_N, ds_N, 0.7, seed=3)
    assert more_cells(us_N[:9], ds_N[:9], np.arange(9), sizes=None, choice=HULL) is None


def study(num: int, shots: int = 5, **axes: Any) -> list[dict[str, Any]]:
    us_N, ds_N = Truth(0.8, 3, 0.1, best=0.5, lost=0.02).draw(num, 1)
    order = np.argsort(us_N)
    return [
        row(f"c{i}", us, ds, shots=shots, family="vit", size="L" if i >= num - 4 else "S", **axes)
        for i, (us, ds) in enumerate(zip(us_N[order].tolist(), ds_N[order].tolist(), strict=True))
    ]


def test_only_the_largest_number_of_shots_is_asked_and_the_answer_is_kept() -> None:
    kept: dict[str, Any] = {}
    results = table(*study(20, 5), *study(20, 25))
    first = reduce_study(results, draws=40, kept=kept)["tasks"]
    assert [task["more_cells"] is None for task in first] == [True, False]
    assert set(first[1]["more_cells"]) == {"cells", "kind", "model", "upstream", "at_most"}
    assert first[1]["more_cells"]["model"] == "vit L"
    assert reduce_study(results, draws=40, kept=kept)["tasks"] == first
    for answer in kept.values():
        answer["more_cells"] = answer["more_cells"] and {**answer["more_cells"], "at_most": 7}
    assert reduce_study(results, draws=40, kept=kept)["tasks"][1]["more_cells"]["at_most"] == 7


def test_of_too_few_cells_of_a_model_those_best_upstream_stand_for_it() -> None:
    cells = pl.DataFrame(study(20)).rename({"upstream_accuracy": "upstream", "downstream_accuracy": "downstream"})
    for changed in (cells.with_columns(size=pl.col("cell_id")), cells.drop("family", "size")):
        found = more_cells_object(changed, None, HULL, seed=0)
        assert found is not None
        assert found["model"] is None


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (None, ""),
        ({"cells": 32, "kind": "like", "model": "vit L"}, "about 32 more cells of vit L would tell"),
        ({"cells": 32, "kind": "like", "model": None}, "about 32 more cells like the best upstream would tell"),
        ({"cells": 1024, "kind": "mix"}, "about 1,024 more cells of all kinds would tell"),
        ({"cells": 16, "kind": "beyond", "upstream": 0.651}, "about 16 cells that reach 0.65 upstream would tell"),
        ({}, "even 512 more cells like these might not tell: it takes higher upstream accuracy"),
        ({"upstream": 0.8}, "even 512 more cells like these might not tell, nor a few that reach 0.80 upstream"),
    ],
)
def test_what_would_tell_is_said_in_words(more: dict[str, Any] | None, text: str) -> None:
    nothing = {"cells": None, "kind": None, "model": None, "upstream": None, "at_most": 512}
    task = {"reason": "end not seen", "more_cells": None if more is None else {**nothing, **more}}
    assert more_cells_text(task) == text
    assert more_cells_text({**task, "reason": "does not rise"}) == ("" if more in ({}, {"upstream": 0.8}) else text)
