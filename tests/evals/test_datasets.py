"""Shape suffixes: N images, D pixels of an image."""

import hashlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evals.datasets import load_task
from evals.tasks import names, task
from models.data import load_images
from models.errors import DataError, UnknownNameError

loaded, loaded_task = lru_cache(load_images), lru_cache(load_task)  # of packaged sets, which no test changes



def all_images(images):
    """Every image of a part, in order."""
    return np.concatenate(list(images.batches(np.arange(len(images.labels_N)), 100)))


TEST_PARTS = {
    "mnist": "a214303495eaa39e",
    "digits": "07dda8276eef46c0",
    "fashion": "85ce406ffd633c0d",
    "hiragana": "95d07fac74bd26e3",
    "katakana": "61baab452f9fbb84",
    "greek": "4090422c647493ab",
    "kanji_radical": "31c7701ec165c707",
    "kanji": "7e1cbbb8096b0bb5",
    "noto_script": "ae83a88324010681",
    "patches": "8b2bbd39a919add9",
    "landcover": "19638673e6e27a4a",
    "cells": "86e3fcb36085f387",
}
LETTERS = ["hiragana", "katakana", "greek", "kanji"]


@pytest.mark.parametrize("name", names())
def test_task_is_as_registered(name):
    t, d = task(name), loaded_task(name)

    assert (len(d.train.labels_N), len(d.test.labels_N)) == (t.num_train, t.num_test)
    assert all_images(d.train).shape[1:] == all_images(d.test).shape[1:]
    assert all_images(d.train).shape[3] == (3 if name == "landcover" else 1)
    assert np.bincount(d.train.labels_N, minlength=t.num_classes).min() == t.max_shots
    assert len(d.classes) == t.num_classes
    assert set(d.test.labels_N) == set(range(t.num_classes)), "a class is not tested"


@pytest.mark.parametrize("name", names())
def test_test_part_is_pinned(name):
    """Results of other test images are not comparable: a change of these is a new task, under a new name."""
    d = loaded_task(name)
    content = all_images(d.test).tobytes() + d.test.labels_N.tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == TEST_PARTS[name]


@pytest.mark.parametrize("name", names())
def test_no_test_image_is_trained_on(name):
    d = loaded_task(name)
    train = {hashlib.sha256(image.tobytes()).digest() for image in all_images(d.train)}
    assert not any(hashlib.sha256(image.tobytes()).digest() in train for image in all_images(d.test))


@pytest.mark.parametrize("name", [*LETTERS, "noto_script", "patches", "landcover"])
def test_no_group_stands_on_both_sides(name):
    s, d = loaded(name), loaded_task(name)
    group_of = {image.tobytes(): group for image, group in zip(s.images_NHWC, s.groups_N, strict=True)}
    train, test = (
        {group_of[image.tobytes()] for image in images} for images in (all_images(d.train), all_images(d.test))
    )
    assert not train & test


@pytest.mark.parametrize("name", names())
def test_test_part_has_the_classes_in_proportion(name):
    d, s = loaded_task(name), loaded(name)
    tested, whole = (np.bincount(labels) / len(labels) for labels in (d.test.labels_N, s.labels_N))
    # The cells of the map grid, whole, each hold few classes: land cover can only come near.
    assert np.abs(tested - whole).max() < (0.06 if name == "landcover" else 0.015)


@pytest.mark.parametrize("name", ["mnist", "digits", "hiragana", "fashion"])
def test_labels_belong_to_the_images(name):
    """The nearest class mean of raw pixels is right far above chance, from one part to the other."""
    d = loaded_task(name)
    train_ND, test_ND = (x.reshape(len(x), -1).astype(float) for x in (all_images(d.train), all_images(d.test)))
    means_CD = np.stack([train_ND[d.train.labels_N == c].mean(0) for c in range(len(d.classes))])
    distance_NC = (means_CD**2).sum(1) - 2 * test_ND @ means_CD.T
    assert np.mean(distance_NC.argmin(1) == d.test.labels_N) > 0.6


def test_task_may_be_given_as_such():
    a, b = load_task(task("cells")), load_task("cells")
    assert np.array_equal(all_images(a.test), all_images(b.test))


def test_images_are_resized():
    d = load_task("cells", 16)
    assert all_images(d.train).shape == (322, 16, 16, 1)
    assert all_images(d.test).shape == (326, 16, 16, 1)


def test_unknown_task():
    with pytest.raises(UnknownNameError, match="Did you mean 'mnist'"):
        load_task("mnst")


@pytest.fixture
def photos(tmp_path):
    for label, colour in (("blue", (0, 0, 200)), ("red", (200, 0, 0))):
        (tmp_path / label).mkdir()
        for i in range(10):
            Image.new("RGB", (12 + i, 12), (*colour[:1], i, colour[2])).save(tmp_path / label / f"{i}.png")
    return str(tmp_path)


def test_folder_as_a_task(photos):
    d = load_task(photos, 8)
    assert all_images(d.train).shape == (18, 8, 8, 3)
    assert all_images(d.test).shape == (2, 8, 8, 3)
    assert d.classes == ("blue", "red")
    assert np.array_equal(all_images(d.train)[:, 0, 0, 0] > 100, d.train.labels_N == 1)


def test_folder_of_mixed_sizes_gets_the_usual_one(photos):
    Image.new("RGB", (13, 12)).save(f"{photos}/blue/0.png")
    assert all_images(load_task(photos).train).shape == (18, 224, 224, 3)


def test_unreadable_image_of_a_folder_task(photos):
    Path(photos, "red", "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3\.png: not a readable image"):
        all_images(load_task(photos, 8).train)
