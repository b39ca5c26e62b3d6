import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.tasks import vtab_split
from models.errors import DataError


@given(st.integers(1000, 3000), st.sampled_from(["pets", "mnist", "/photos/birds"]))
def test_800_and_200_are_apart_and_of_the_train_part(num, name):
    labels_N = np.arange(num) % 7
    fit, choose = vtab_split(name, labels_N)
    assert (len(fit), len(choose)) == (800, 200)
    both = np.concatenate([fit, choose])
    assert len(set(both.tolist())) == 1000
    assert both.min() >= 0
    assert both.max() < num


def test_the_draw_is_fixed_for_ever():
    """Written down once: other images would be another protocol under the same name."""
    fit, choose = vtab_split("pets", np.arange(3680) % 37)
    digest = hashlib.sha256(np.concatenate([fit, choose]).astype("<i8").tobytes()).hexdigest()[:16]
    assert digest == "f37a67b59ae7265d"
    again, _ = vtab_split("dtd", np.arange(3680) % 37)
    assert not np.array_equal(fit, again)


def test_labels_do_not_steer_the_draw():
    """VTAB draws without regard to classes: a stratified draw would be easier."""
    a, b = (vtab_split("pets", labels_N) for labels_N in (np.arange(3680) % 37, np.arange(3680) // 100))
    assert np.array_equal(a[0], b[0])
    assert np.array_equal(a[1], b[1])


def test_published_lists_keep_their_order_for_tasks_of_vtab_only():
    labels_N = np.arange(1000) // 100
    fit, choose = vtab_split("svhn", labels_N)
    assert np.array_equal(np.concatenate([fit, choose]), np.arange(1000))
    drawn, _ = vtab_split("cifar10", labels_N)  # in class order, its first 800 would lack two classes
    assert set(labels_N[drawn]) == set(range(10))


def test_fewer_than_1000_images():
    with pytest.raises(DataError, match="task 'patches': has 847 training images, VTAB-1k needs 1000"):
        vtab_split("patches", np.zeros(847, np.int64))


def test_one_class_among_those_that_are_fitted():
    labels_N = np.zeros(1000, np.int64)
    labels_N[900:] = 1
    with pytest.raises(DataError, match="all of one class"):
        vtab_split("svhn", labels_N)
