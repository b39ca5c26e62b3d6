from types import SimpleNamespace

import pytest

from orchestrator.progress import duration, seconds_left
from orchestrator.state import StageState, Status


def seen(*cells):
    """An observation of (train FLOPs, train seconds or None, evaluate FLOPs, evaluate seconds or None) cells."""

    def stage(seconds, running):
        status = Status.DONE if seconds else Status.RUNNING if running else Status.PENDING
        return StageState(status=status, seconds=seconds or 0.0)

    states = [SimpleNamespace(train=stage(c[1], True), evaluate=stage(c[3], c[1])) for c in cells]
    plans = [SimpleNamespace(train=SimpleNamespace(flops=c[0]), evaluate=SimpleNamespace(flops=c[2])) for c in cells]
    return SimpleNamespace(states=states, plan=SimpleNamespace(cells=plans))


def test_nothing_is_known_before_the_first_stage_has_ended():
    assert seconds_left(seen((1e9, None, 1e9, None))) is None


def test_one_ended_stage_makes_the_rest_proportional():
    assert seconds_left(seen((4e9, 8.0, 1e9, None), (1e9, None, 1e9, None))) == pytest.approx((2 + 2 + 2) / 2)


def test_each_stage_has_its_own_line():
    cells = [(1e9, 3.0, 1e9, 11.0), (2e9, 5.0, 2e9, 12.0), (4e9, None, 4e9, None)]
    # Training takes 1 + 2 a GFLOP, evaluation 10 + 1 a GFLOP, and one runs.
    assert seconds_left(seen(*cells)) == pytest.approx(1 + 2 * 4 + 10 + 4)


def test_a_finished_study_has_nothing_left():
    assert seconds_left(seen((1e9, 3.0, 1e9, 1.0))) == 0


@pytest.mark.parametrize(("seconds", "text"), [(40, "40 s"), (200, "3 min"), (18720, "5.2 h")])
def test_durations(seconds, text):
    assert duration(seconds) == text
