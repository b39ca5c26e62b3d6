"""Whether a study's images are there, for `upshot data check`."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from evals import tasks
from evals.datasets import TaskData, duplicates, load_task
from models.data import describe
from models.errors import DataError, UserError
from orchestrator.study import load_unchecked
from orchestrator.terminal import print_sentence, print_table

MAX_HASHED: Final = 50_000
"""Images of a task that are all decoded to look for duplicates without being asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What was found of the images of one task, or of the upstream set.

    Attributes:
        use: "upstream" or "task".
        name: as the study has it.
        layout: in which they lie; None where they are missing.
        folder: where; None for packaged images.
        num_classes: how many, found; so are `num_train` and `num_test`.
        num_duplicates: test images that are in the train part too; None where that was not looked at.
        error: what is missing or broken, and how to mend it.
        notes: what differs from what is published, or was not looked at.
    """

    use: str
    name: str
    layout: str | None = None
    folder: str | None = None
    num_classes: int | None = None
    num_train: int | None = None
    num_test: int | None = None
    num_duplicates: int | None = None
    error: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing or broken."""
        return self.error is None

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return asdict(self)


def check_data(study_path: Path, *, every_duplicate: bool) -> list[Checked]:
    """What is there of a study's upstream set and of each of its tasks, in the order of the study.

    Args:
        study_path: a study file, or a study's folder.
        every_duplicate: whether tasks of more than `MAX_HASHED` images are decoded whole too.

    Raises:
        StudyError: the file is none of a study, whatever its images are.
    """
    path = study_path / "study.toml" if study_path.is_dir() else study_path
    study = load_unchecked(path)
    root = tasks.data_root(study.downstream.data)
    return [_upstream(study.upstream.dataset), *(_task(name, root, every_duplicate) for name in study.downstream.tasks)]


def _upstream(dataset: str) -> Checked:
    checked = Checked(use="upstream", name=dataset)
    try:
        info = describe(dataset)
    except UserError as error:
        return replace(checked, error=str(error))
    return replace(
        checked,
        layout="on disk" if dataset == info.source else "packaged",
        num_classes=info.num_classes,
        num_train=info.num_train,
        num_test=info.num_test,
    )


def _task(name: str, root: Path | None, every_duplicate: bool) -> Checked:
    checked = Checked(use="task", name=name)
    try:
        t = tasks.task(name, root)
        found = tasks.find(tasks.definition(name), t.root) if t.kind == "public" and t.root else None
        if found:
            checked = replace(checked, layout=found.layout.name, folder=str(found.folder))
        data = load_task(t)
        checked = replace(
            checked,
            layout=found.layout.name if found else {"packaged": "packaged", "path": "on disk"}[t.kind],
            num_classes=len(data.classes),
            num_train=len(data.train.labels_N),
            num_test=len(data.test.labels_N),
            notes=tuple(_differences(t, data)),
        )
        return _with_duplicates(checked, data, every_duplicate)
    except UserError as error:
        return replace(checked, error=str(error))


def _differences(t: tasks.Task, data: TaskData) -> list[str]:
    """What is there against what is published, and classes that no probe can learn or be tested on."""
    train_N, test_N = data.train.labels_N, data.test.labels_N
    notes = []
    if (len(train_N), len(test_N)) != (t.num_train, t.num_test):
        given = "published" if t.split_rule == "given" else "of the whole set"
        notes.append(f"{given}: {t.num_train:,} to train on, {t.num_test:,} to test on")
    smallest = np.bincount(train_N, minlength=len(data.classes))
    alone = np.flatnonzero(smallest == 1)
    if len(alone):
        notes.append(f"classes with one training image, so 1 shot at most: {len(alone)} ({data.classes[alone[0]]})")
    untested = len(data.classes) - len(np.unique(test_N))
    if untested:
        notes.append(f"classes without test images: {untested}")
    return notes


def _with_duplicates(checked: Checked, data: TaskData, every_duplicate: bool) -> Checked:
    num_images = len(data.train.labels_N) + len(data.test.labels_N)
    if num_images > MAX_HASHED and not every_duplicate:
        note = f"duplicates not looked for among {num_images:,} images (--duplicates does)"
        return replace(checked, notes=(*checked.notes, note))
    try:
        return replace(checked, num_duplicates=len(duplicates(data)))
    except DataError as error:
        return replace(checked, error=str(error))


def print_checked(found: list[Checked]) -> None:
    """A table, then what is missing and what else is worth knowing."""
    columns = ("images", "use", "classes", "train", "test", "twice", "state")
    rows = (
        (
            c.name,
            c.use,
            *(_count(n) for n in (c.num_classes, c.num_train, c.num_test, c.num_duplicates)),
            "missing" if c.layout is None else "broken" if c.error else "here",
        )
        for c in found
    )
    print_table("Images of the study (twice: test images that are in the train part too)", columns, rows)
    for c in found:
        for line in (
            *((f"{c.layout}, in {c.folder}",) if c.folder else ()),
            *((c.error,) if c.error else ()),
            *c.notes,
        ):
            print_sentence(f"{c.name}: {line}")


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"
