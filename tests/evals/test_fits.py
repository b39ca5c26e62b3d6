"""Shape suffixes: N images, C classes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.fits import fits_of
from evals.protocol import Protocol

SIZES = st.lists(st.integers(1, 45), min_size=2, max_size=6)


def labels(sizes):
    return np.random.RandomState(0).permutation(np.repeat(np.arange(len(sizes)), sizes))


@given(SIZES)
def test_one_image_in_ten_of_each_class_chooses_and_every_class_is_fitted_to(sizes):
    labels_N = labels(sizes)
    [fit] = fits_of("task", labels_N, [str(c) for c in range(len(sizes))], Protocol(name="linear"))
    assert (fit.index_F == np.arange(len(labels_N))).all()
    choosing_C = np.bincount(labels_N[fit.chooses_F], minlength=len(sizes))
    assert choosing_C.tolist() == [0 if size == 1 else -(-size // 10) for size in sizes]
    assert (np.bincount(labels_N[~fit.chooses_F], minlength=len(sizes)) > 0).all()


@given(SIZES)
def test_which_images_choose_depends_on_the_task_and_not_on_chance(sizes):
    labels_N, classes = labels(sizes), [str(c) for c in range(len(sizes))]
    [one], [again] = (list(fits_of("task", labels_N, classes, Protocol(name="linear"))) for _ in range(2))
    assert (one.chooses_F == again.chooses_F).all()


def test_another_task_has_other_images_to_choose_by():
    labels_N = labels([40, 40])
    [one], [other] = (list(fits_of(task, labels_N, ["a", "b"], Protocol(name="linear"))) for task in ("x", "y"))
    assert (one.chooses_F != other.chooses_F).any()


def test_shots_that_a_class_cannot_give_are_a_reason_for_these_shots_alone():
    fits = list(fits_of("task", labels([4, 9]), ["a", "b"], Protocol(shots=(2, 5), draws=2)))
    assert [(fit.shots, fit.draw, fit.reason is None) for fit in fits] == [
        (2, 0, True),
        (2, 1, True),
        (5, 0, False),
        (5, 1, False),
    ]
    assert "class 'a' has 4 training images" in fits[2].reason


@pytest.mark.parametrize("name", ["linear", "knn-all"])
def test_a_class_without_training_images_is_a_reason(name):
    [fit] = fits_of("task", labels([3, 0, 5]), ["a", "b", "c"], Protocol(name=name))
    assert "class 'b' has no training image" in fit.reason
