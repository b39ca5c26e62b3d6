"""The tasks whose images ship with the project."""

from dataclasses import dataclass
from typing import Final

from evals.tasks.task import Task
from models.data import SplitRule, describe

MAX_TEST: Final = 1000
"""Test images of a packaged task, at most: a standard error of 1.6 points at worst, and quick at every checkpoint."""


@dataclass(frozen=True, slots=True)
class _Definition:
    """Fixed numbers of a packaged task, so that a listing opens no images; a test holds them to the images."""

    test_share: float
    split_rule: SplitRule
    num_train: int
    num_test: int
    max_shots: int


PACKAGED: Final = {
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


def packaged_task(name: str) -> Task:
    """The task of a packaged set; decodes no image."""
    fixed, info = PACKAGED[name], describe(name)
    return Task(
        name=name,
        title=info.title,
        kind="packaged",
        dataset=name,
        num_classes=info.num_classes,
        chance=1 / info.num_classes,
        num_train=fixed.num_train,
        num_test=fixed.num_test,
        max_shots=fixed.max_shots,
        test_share=fixed.test_share,
        split_rule=fixed.split_rule,
        split=split_in_words(fixed.split_rule),
        source=info.source,
        licence=info.licence,
    )


def split_in_words(rule: SplitRule) -> str:
    """What a split rule does."""
    return {
        "given": "published: the source's own test part",
        "groups": "drawn: whole groups (a font, a map cell) for the test",
        "images": "drawn: a share of each class for the test",
    }[rule]
