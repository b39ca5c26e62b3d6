"""Downstream tasks by name: what is asked, of which images, how many of them are for training, how many for the test.

Torch-free: plans and `upshot tasks` read it on login nodes.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from models.data import SetInfo, SplitRule, describe, is_folder, is_streamed, load_labels, split, split_rule
from models.errors import DataError, UnknownNameError

MAX_TEST: Final = 1000
"""Test images of a packaged task, at most: a standard error of 1.6 points at worst, and quick at every checkpoint."""

MIN_TRAIN: Final = 26
"""Images that every class keeps for training where it can: 25 shots, and one to choose from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A classification task; its test part is fixed by `test_share` and `num_test`.

    Attributes:
        name: how a study names it.
        title: how a report names it.
        dataset: the image set, as `models.data.load_images` takes it.
        num_classes: how many.
        chance: accuracy of guessing among the classes at random.
        num_train: images to draw shots from.
        num_test: images of the test part.
        max_shots: training images of the smallest class, so the most shots that every class can serve.
        test_share: what is asked of `models.data.split`.
        split_rule: how train and test part are kept apart ("given", "groups", "images"; see `models.data.split`).
        source: where the images are from.
        licence: under which they are.
    """

    name: str
    title: str
    dataset: str
    num_classes: int
    chance: float
    num_train: int
    num_test: int
    max_shots: int
    test_share: float
    split_rule: SplitRule
    source: str
    licence: str


@dataclass(frozen=True, slots=True)
class _Definition:
    """Fixed numbers of a packaged task, so that a listing opens no images; a test holds them to the images."""

    test_share: float
    split_rule: SplitRule
    num_train: int
    num_test: int
    max_shots: int


_PACKAGED: Final = {
    "mnist": _Definition(0.11, "images", 8898, 1000, 768),
    "digits": _Definition(0.5, "images", 896, 901, 87),
    "fashion": _Definition(0.1, "given", 10310, 1000, 1018),
    "hiragana": _Definition(0.38, "groups", 1682, 1000, 34),
    "katakana": _Definition(0.38, "groups", 1650, 1000, 35),
    "greek": _Definition(0.15, "groups", 6004, 1000, 116),
    "kanji_radical": _Definition(0.3, "images", 2404, 1000, 57),
    "kanji": _Definition(0.12, "groups", 7828, 960, 31),
    "noto_script": _Definition(0.1, "groups", 11128, 1000, 46),
    "patches": _Definition(0.5, "groups", 847, 834, 62),
    "landcover": _Definition(0.18, "groups", 4764, 1000, 65),
    "cells": _Definition(0.5, "images", 322, 326, 30),
}


def names() -> tuple[str, ...]:
    """The packaged tasks."""
    return tuple(_PACKAGED)


def task(name: str) -> Task:
    """The task of that name: a packaged one, or one made of an image folder, which is named by its path.

    Raises:
        UnknownNameError: no packaged task has this name.
        DataError: the images are missing or malformed, or lie in tar shards or tables.
    """
    if is_streamed(name):
        raise DataError(f"{name}: a task is a packaged one or a folder of class folders, not tar shards or tables")
    if is_folder(name):
        return _folder_task(describe(name))
    if name not in _PACKAGED:
        raise UnknownNameError("task", name, names(), f"(a folder of images is named by its path: './{name}')")
    return _packaged_task(describe(name))


def _test_share(num_examples: int, smallest_class: int) -> float:
    """For `MAX_TEST` test images, but 0.1 to 0.5 of all, and so few that a class keeps `MIN_TRAIN` if it can."""
    return max(0.1, min(0.5, MAX_TEST / num_examples, 1 - MIN_TRAIN / smallest_class))


def _packaged_task(info: SetInfo) -> Task:
    fixed = _PACKAGED[info.name]
    return Task(
        name=info.name,
        title=info.title,
        dataset=info.name,
        num_classes=info.num_classes,
        chance=1 / info.num_classes,
        num_train=fixed.num_train,
        num_test=fixed.num_test,
        max_shots=fixed.max_shots,
        test_share=fixed.test_share,
        split_rule=fixed.split_rule,
        source=info.source,
        licence=info.licence,
    )


@lru_cache
def _folder_task(info: SetInfo) -> Task:
    s = load_labels(info.name)
    share = _test_share(info.num_examples, int(np.bincount(s.labels_N).min()))
    train_idx, test_idx = split(s, test_share=share)
    return Task(
        name=info.name,
        title=info.title,
        dataset=info.name,
        num_classes=info.num_classes,
        chance=1 / info.num_classes,
        num_train=len(train_idx),
        num_test=len(test_idx),
        max_shots=int(np.bincount(s.labels_N[train_idx]).min()),
        test_share=share,
        split_rule=split_rule(s, test_share=share),
        source=info.source,
        licence="not known",
    )
