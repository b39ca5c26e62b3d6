"""Tasks of any images on disk, named by their path: class folders, a CSV, tables, indexed tar shards."""

from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from evals.tasks.packaged import MAX_TEST, split_in_words
from evals.tasks.sources import Encoded
from evals.tasks.task import Task
from models.data import SetInfo, describe, label_set, listed, open_stored, split, split_rule
from models.data.stored import StoredSet

MIN_TRAIN: Final = 26
"""Images that every class keeps for training where it can: 25 shots, and one to choose from."""


def path_task(name: str) -> Task:
    """The task of what lies at a path; reads labels, and headers of a few images.

    Raises:
        DataError: nothing is there, or what is there is malformed; tar shards whose labels are not listed.
    """
    return _path_task(listed.info(name) if listed.is_csv(name) else describe(name))


def open_path(name: str) -> Encoded:
    """Its images."""
    return Encoded(_stored(name))


def _stored(name: str) -> StoredSet:
    return listed.open_csv(name) if listed.is_csv(name) else open_stored(name)


@lru_cache
def _path_task(info: SetInfo) -> Task:
    s = label_set(_stored(info.name))
    sizes = np.bincount(s.labels_N)
    share = _test_share(info.num_examples, int(sizes[sizes > 0].min()))
    train_idx, test_idx = split(s, test_share=share)
    rule = split_rule(s, test_share=share)
    return Task(
        name=info.name,
        title=Path(info.name).stem if listed.is_csv(info.name) else info.title,
        kind="path",
        dataset=info.name,
        num_classes=info.num_classes,
        chance=1 / info.num_classes,
        num_train=len(train_idx),
        num_test=len(test_idx),
        max_shots=int(np.bincount(s.labels_N[train_idx], minlength=len(sizes))[sizes > 0].min()),
        test_share=share,
        split_rule=rule,
        split=split_in_words(rule),
        source=info.source,
        licence="not known",
    )


def _test_share(num_examples: int, smallest_class: int) -> float:
    """For `MAX_TEST` test images, but 0.1 to 0.5 of all, and so few that a class keeps `MIN_TRAIN` if it can."""
    return max(0.1, min(0.5, MAX_TEST / num_examples, 1 - MIN_TRAIN / smallest_class))
