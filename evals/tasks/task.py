"""What a downstream task is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.data import SplitRule

Kind = Literal["packaged", "public", "path"]
Group = Literal["natural", "specialised", "structured"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A classification task.

    Attributes:
        name: how a study names it.
        title: how a report names it.
        kind: "packaged" (its images ship with the project), "public" (images of others, found under a root folder) or
            "path" (any images on disk, named by their path).
        dataset: the image set: what `models.data.load_images` takes, the path, or a public task's name.
        num_classes: how many.
        chance: accuracy of guessing among the classes at random.
        num_train: images to draw shots from; of a public task as published, whatever lies on this disk.
        num_test: images of the test part; likewise.
        max_shots: training images of the smallest class, so the most shots that every class can serve; None of a
            public task, whose images are not looked at to know it.
        test_share: what is asked of `models.data.split` where no test part is given.
        split_rule: how train and test part are kept apart ("given", "groups", "images"; see `models.data.split`).
        split: the same in words.
        vtab: whether it is one of the 19 of VTAB-1k (arXiv 1910.04867).
        source: where the images are from.
        licence: under which they are.
        root: the folder below which a public task is looked for; None where none is named.
    """

    name: str
    title: str
    kind: Kind
    dataset: str
    num_classes: int
    chance: float
    num_train: int
    num_test: int
    max_shots: int | None
    test_share: float
    split_rule: SplitRule
    split: str
    vtab: bool = False
    source: str
    licence: str
    root: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """The published numbers of a public task.

    Attributes:
        test_part: on which part of tables or folders with train, val and test it is tested. Where that is "test", val
            is trained on; where it is "val", test is left out (its labels are not public).
        group: as VTAB groups its tasks.
        test_share: the share that is drawn for the test; None where the publisher has parted the images.
        split: which images are for the test, in words.
        source: the paper.
        url: where the images are had, and what of them.
    """

    name: str
    title: str
    group: Group
    num_classes: int
    num_train: int
    num_test: int
    split: str
    source: str
    url: str
    licence: str
    test_part: Literal["test", "val"] = "test"
    test_share: float | None = None
    vtab: bool = False
