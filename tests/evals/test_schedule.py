import dataclasses

import pytest

from evals.protocol import PROTOCOLS
from evals.schedule import BIT_HYPERRULE, SETTINGS, VTAB_1K, FineTune, published_steps, rate_factor
from models.errors import UserError


@pytest.mark.parametrize(
    ("num_images", "num_steps"),
    [(1, 500), (19_999, 500), (20_000, 10_000), (499_999, 10_000), (500_000, 20_000), (10**7, 20_000)],
)
def test_more_images_take_more_steps(num_images, num_steps):
    assert published_steps(num_images) == num_steps
    assert BIT_HYPERRULE.candidates(num_images) == [(0.003, num_steps)]


@pytest.mark.parametrize(("num_steps", "num_warmup"), [(500, 100), (10_000, 500), (20_000, 500)])
def test_the_rate_rises_over_the_published_warm_up_and_falls_three_times(num_steps, num_warmup):
    factors = [rate_factor(step, num_steps) for step in range(num_steps)]
    assert factors[:num_warmup] == [step / num_warmup for step in range(num_warmup)]
    changes = [step for step in range(num_warmup + 1, num_steps) if factors[step] != factors[step - 1]]
    assert changes == [num_steps * percent // 100 for percent in (30, 60, 90)]
    assert [factors[step] for step in (num_warmup, *changes)] == pytest.approx([1, 0.1, 0.01, 0.001])


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 7, 10])
def test_a_short_schedule_has_a_positive_rate(num_steps):
    factors = [rate_factor(step, num_steps) for step in range(num_steps)]
    assert max(factors) == 1
    assert min(factors) >= 0


def test_only_tasks_from_20_000_images_on_are_mixed():
    assert [BIT_HYPERRULE.mixup_alpha(n) for n in (19_999, 20_000, 10**6)] == [0.0, 0.1, 0.1]
    assert dataclasses.replace(BIT_HYPERRULE, mixup=0.0).mixup_alpha(10**6) == 0


def test_candidates_are_all_pairs_from_the_smallest_rate_and_the_fewest_steps_on():
    settings = FineTune(learning_rates=(0.1, 0.01), num_steps=(20, 10))
    assert settings.candidates(5) == [(0.01, 10), (0.01, 20), (0.1, 10), (0.1, 20)]
    assert len(VTAB_1K.candidates(1000)) == 8
    assert VTAB_1K.candidates(1000)[0] == (0.003, 500)


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rates": ()},
        {"learning_rates": (0.1, 0.0)},
        {"learning_rates": (float("nan"),)},
        {"learning_rates": (float("inf"),)},
        {"num_steps": (0,)},
        {"num_steps": (10.0,)},
        {"batch_size": 0},
        {"batch_size": True},
        {"mixup": -0.1},
        {"mixup": float("nan")},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong):
    [name] = wrong
    with pytest.raises(UserError, match=name):
        FineTune(**wrong)


def test_every_protocol_that_fine_tunes_has_its_settings():
    assert set(SETTINGS) == {name for name, method in PROTOCOLS.items() if method.kind in ("finetune", "head")}
    # What is chosen among needs images to choose on, which shots have not.
    for name, settings in SETTINGS.items():
        assert (len(settings.candidates(1000)) > 1) == (PROTOCOLS[name].training == "vtab1k")
