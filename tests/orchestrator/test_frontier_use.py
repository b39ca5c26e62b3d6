"""What is done with a frontier: held-out error beside rivals, and recipes."""

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LinearRegression

from models.errors import UserError
from orchestrator.frontier import MODELS, NumTest, find_recipe, find_recipes, hold_out, round_steps, upper_hull
from orchestrator.frontier.held_out import line, monotone
from orchestrator.frontier.noise import denoised, noisy
from tests.orchestrator.timm_tables import REFERENCE, accuracies

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

POINTS = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=2, max_size=40)


# --- held-out error


@pytest.mark.parametrize("task", REFERENCE)
def test_held_out_error_of_public_tables_agrees_with_the_reference(task: str) -> None:
    found = hold_out(*accuracies(task))
    assert found.frontier.rmse["hull"] == pytest.approx(REFERENCE[task]["holdout_hull_rmse"], abs=1e-8)
    assert found.cells.rmse["all"] == pytest.approx(REFERENCE[task]["holdout_all_rmse"], abs=1e-8)
    assert (found.own_rmse("hull"), found.own_rmse("all")) == (found.frontier.rmse["hull"], found.cells.rmse["all"])


def test_all_models_are_asked_for_the_same_points_and_the_best_is_named() -> None:
    found = hold_out(*accuracies("imagenetv2-matched-frequency"))
    for contest in (found.cells, found.frontier):
        assert tuple(contest.rmse) == MODELS
        assert contest.best_model == "line", "the law is not the best on this table"
        assert min(error for error in contest.rmse.values() if error is not None) == contest.rmse["line"]
    assert found.better_than("hull") == (
        "on held-out vertices the line of logits predicts better (error 0.0017 against 0.0724)"
    )
    assert found.better_than("all") == (
        "on held-out cells the line of logits predicts better (error 0.0053 against 0.0076)"
    )
    assert (found.cells.num_points, found.frontier.num_points) == (310, 3)


def test_the_law_wins_where_the_cells_lie_on_it() -> None:
    us_N = np.linspace(0.1, 0.9, 60)
    found = hold_out(us_N, 1 - (0.7 * (1 - us_N) ** 2 + 0.15))
    assert found.cells.best_model in ("hull", "rising", "all")
    assert found.cells.rmse["hull"] == pytest.approx(0, abs=1e-9)
    assert found.better_than(found.cells.best_model) == ""


def test_a_law_that_the_lower_cells_do_not_determine_cannot_win() -> None:
    found = hold_out(*accuracies("imagenet-a"))
    errors = found.cells.rmse
    assert found.cells.degenerate == ("hull",), "its alpha has no upper limit"
    assert errors["hull"] == min(error for error in errors.values() if error is not None)
    assert found.cells.best_model == "line"
    falling = hold_out(np.linspace(0.1, 0.9, 40), np.linspace(0.9, 0.1, 40))
    assert "all" in falling.cells.degenerate, "k is 0"
    on_three = np.r_[np.repeat([0.1, 0.3, 0.5], 10), 0.9, 0.9, 0.9, 0.9]
    assert "hull" in hold_out(on_three, np.sqrt(on_three)).cells.degenerate


def test_fewer_than_three_points_have_no_winner() -> None:
    found = hold_out(*accuracies("imagenet-a"))
    assert (found.frontier.num_points, found.frontier.best_model) == (1, None)
    assert found.frontier.rmse["line"] is not None
    assert found.better_than("hull") == "", "the error of the hull fit is lower on the cells"
    us_N = np.linspace(0.1, 0.9, 10)
    assert (hold_out(us_N, us_N).cells.num_points, hold_out(us_N, us_N).cells.best_model) == (2, None)


def test_held_out_error_is_unknown_where_nothing_can_be_fitted_or_held_out() -> None:
    three = hold_out(np.array([0.2, 0.4, 0.9]), np.array([0.2, 0.4, 0.9]))
    assert [three.cells.rmse[name] for name in ("hull", "rising", "all")] == [None] * 3
    assert three.cells.rmse["constant"] == pytest.approx(0.6)
    for n in (0, 1):
        nothing = hold_out(np.full(n, 0.5), np.full(n, 0.5))
        assert (nothing.cells.num_points, nothing.cells.best_model) == (0, None)


@given(POINTS, st.lists(st.integers(-5, 105), min_size=1, max_size=9))
def test_monotone_regression_is_the_one_of_scikit_learn(points: list[tuple[int, int]], at: list[int]) -> None:
    us_N, ds_N = np.array(points, dtype=np.float64).T / 100
    at_B = np.array(at) / 100
    expected = IsotonicRegression(out_of_bounds="clip").fit(us_N, ds_N).predict(at_B)
    np.testing.assert_allclose(monotone(us_N, ds_N)(at_B), expected, atol=1e-6)


def test_line_is_straight_in_logit_space() -> None:
    rng = np.random.default_rng(0)
    us_N, ds_N = rng.uniform(0.1, 0.9, (2, 50))
    logit = lambda a: np.log(a / (1 - a))  # noqa: E731  # a formula
    model = LinearRegression().fit(logit(us_N)[:, None], logit(ds_N))
    np.testing.assert_allclose(logit(line(us_N, ds_N)(us_N)), model.predict(logit(us_N)[:, None]))
    assert line(np.full(3, 0.5), np.array([0.2, 0.2, 0.2]))(np.array([0.9])) == pytest.approx(0.2)


def test_line_through_tiny_accuracies_stays_finite() -> None:
    steep = line(np.array([0.5, 0.5001]), np.array([0.0, 1.0]))
    np.testing.assert_allclose(steep(np.array([0.0, 0.1, 0.9, 1.0])), [0, 0, 1, 1])


# --- recipe


@settings(max_examples=40, deadline=None)
@given(POINTS, st.floats(0, 1))
def test_a_recipe_mixes_two_cells_to_a_point_of_the_hull(points: list[tuple[int, int]], part: float) -> None:
    us_N, ds_N = np.array(points, dtype=np.float64).T / 100
    hull_V = upper_hull(us_N, ds_N)
    upstream = float(us_N.min() + part * (us_N.max() - us_N.min()))
    recipe = find_recipe(us_N, ds_N, upstream)
    assert {recipe.left, recipe.right} <= set(hull_V.tolist())
    assert 0 <= recipe.p_left <= 1
    p_N = np.array([recipe.p_left, 1 - recipe.p_left])
    rows = [recipe.left, recipe.right]
    assert p_N @ us_N[rows] == pytest.approx(upstream)
    assert p_N @ ds_N[rows] == pytest.approx(recipe.downstream)
    assert recipe.downstream == pytest.approx(float(np.interp(upstream, us_N[hull_V], ds_N[hull_V])))


def test_on_a_vertex_the_recipe_is_that_cell() -> None:
    us_N, ds_N = np.array([0.2, 0.5, 0.9]), np.array([0.1, 0.6, 0.7])
    recipe = find_recipe(us_N, ds_N, 0.5)
    assert (recipe.left, recipe.right, recipe.p_left, recipe.downstream) == (1, 1, 1.0, 0.6)


def test_interval_of_a_recipe_holds_what_its_cells_truly_have() -> None:
    """Of many cells of one true frontier the measured hull picks the lucky ones."""
    held, below = [], []
    for seed in range(60):
        rng = np.random.default_rng([9, seed])
        true_us_N = rng.uniform(0.1, 0.9, 300)
        true_ds_N = 0.85 - 0.7 * (1 - true_us_N) ** 2.5 - rng.exponential(0.03, 300)
        us_N, ds_N = rng.binomial(50_000, true_us_N) / 50_000, rng.binomial(1000, true_ds_N) / 1000
        sizes = NumTest(us_N=np.full(300, 50_000), ds_N=np.full(300, 1000))
        recipe = find_recipe(us_N, ds_N, 0.6, sizes=sizes)
        assert recipe == find_recipe(us_N, ds_N, 0.6, sizes=sizes)
        truth = recipe.p_left * true_ds_N[recipe.left] + (1 - recipe.p_left) * true_ds_N[recipe.right]
        assert recipe.low is not None
        assert recipe.high is not None
        held.append(recipe.low <= truth <= recipe.high)
        below.append(truth < recipe.downstream)
    assert np.mean(below) > 0.9, "what was measured was lucky nearly always"
    assert np.mean(held) >= 0.85


def test_luck_is_that_of_the_hull_of_each_draw() -> None:
    """Against hulls that are found and walked one draw at a time, also beyond their ends."""
    rng = np.random.default_rng(3)
    us_N, ds_N = rng.random((2, 9))
    sizes = NumTest(us_N=np.full(9, 40), ds_N=np.full(9, 30))
    hull_V = upper_hull(us_N, ds_N)
    ends = us_N[hull_V[[0, -1]]]
    upstreams = [float(ends[0]), 0.4, 0.55, float(ends[1])]
    recipes = find_recipes(us_N, ds_N, upstreams, sizes=sizes, seed=5)
    clean_N = denoised(us_N, ds_N, sizes)
    draws = np.random.default_rng([5, 2])
    us_DN, ds_DN = (
        noisy(np.tile(side_N, (200, 1)), num_N, draws) for side_N, num_N in ((us_N, sizes.us_N), (clean_N, sizes.ds_N))
    )
    for recipe, upstream in zip(recipes, upstreams, strict=True):
        lucks = [_luck_of_one(us, ds, ds - clean_N, upstream) for us, ds in zip(us_DN, ds_DN, strict=True)]
        high, low = np.percentile(lucks, [2.5, 97.5])
        assert recipe.low == pytest.approx(max(0.0, recipe.downstream - low))
        assert recipe.high == pytest.approx(min(1.0, recipe.downstream - high))
        assert recipe == find_recipe(us_N, ds_N, upstream, sizes=sizes, seed=5)


def _luck_of_one(us_N: "Floats", ds_N: "Floats", lucky_N: "Floats", upstream: float) -> float:
    """Of the mix on the hull's edge, or of its nearest end."""
    hull = upper_hull(us_N, ds_N).tolist()
    if upstream <= us_N[hull[0]]:
        return float(lucky_N[hull[0]])
    for left, right in itertools.pairwise(hull):
        if upstream <= us_N[right]:
            p = (us_N[right] - upstream) / (us_N[right] - us_N[left])
            return float(p * lucky_N[left] + (1 - p) * lucky_N[right])
    return float(lucky_N[hull[-1]])


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1))
def test_round_steps_lie_evenly_within_the_range(one: float, other: float) -> None:
    low, high = sorted((one, other))
    steps = round_steps(low, high)
    assert len(steps) <= 101
    assert all(low <= step <= high for step in steps)
    if high - low > 0.001:
        assert len(steps) >= 10
        widths = np.diff(steps)
        assert widths == pytest.approx(widths[0])
        assert steps[0] - low < widths[0] + 1e-12
        assert high - steps[-1] < widths[0] + 1e-12


def test_without_test_sizes_a_recipe_has_no_interval() -> None:
    recipe = find_recipe(*accuracies("sketch"), 0.8)
    assert (recipe.low, recipe.high) == (None, None)


@pytest.mark.parametrize("upstream", [0.1, 0.95])
def test_a_recipe_beyond_the_hull_is_refused_with_its_range(upstream: float) -> None:
    us_N = np.array([0.2, 0.5, 0.9])
    with pytest.raises(UserError, match=r"it reaches from 0\.2 to 0\.9"):
        find_recipe(us_N, us_N, upstream)
