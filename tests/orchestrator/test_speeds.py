import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.speeds import MOST_POINTS, fit_line

seconds = st.floats(1e-3, 1e7)


def test_a_start_up_time_and_a_slope_are_found_through_noise():
    rng = random.Random(0)
    planned = [10 ** rng.uniform(0, 4) for _ in range(1000)]
    line = fit_line([(x, (20 + 1.5 * x) * rng.uniform(0.95, 1.05)) for x in planned])
    assert (line.base, line.slope) == (pytest.approx(20, rel=0.3), pytest.approx(1.5, rel=0.05))
    assert len(planned) > MOST_POINTS


@pytest.mark.parametrize("which", [0, 5, 9])
def test_one_cell_on_a_bad_node_does_not_bend_the_line(which):
    points = [(float(x), 20 + 1.5 * x) for x in range(10, 110, 10)]
    x, y = points[which]
    points[which] = (x, 30 * y)
    line = fit_line(points)
    assert (line.base, line.slope) == (pytest.approx(20, rel=0.1), pytest.approx(1.5, rel=0.1))


@given(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=30))
def test_no_line_expects_less_than_nothing(points):
    line = fit_line(points)
    assert line.base >= 0
    assert line.slope > 0


def test_what_all_say_alike_is_a_start_up_time():
    assert fit_line([(1.0, 31.0)] * 3).seconds(3600) == pytest.approx(3630)
    assert fit_line([(10.0, 5.0)]).seconds(20) == pytest.approx(10)


def test_a_line_through_nothing_but_speed_has_no_start_up_time():
    line = fit_line([(100.0, 150.0), (200.0, 290.0), (400.0, 610.0)])
    assert (line.base, line.slope) == (0, pytest.approx(1.5, rel=0.05))
