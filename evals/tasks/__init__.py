"""Downstream tasks by name or by path: what is asked, of which images, which of them are for training and the test.

`packaged` has those whose images ship with the project, `public` those of others, which `layouts` finds and reads below
a root folder, `paths` any images on disk. Torch-free: plans and `upshot tasks` read it on login nodes.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from evals.tasks.draws import vtab_split
from evals.tasks.layouts import Found, expected, find
from evals.tasks.packaged import MAX_TEST, PACKAGED, packaged_task
from evals.tasks.paths import open_path, path_task
from evals.tasks.public import DEFINITIONS, public_task
from evals.tasks.sources import Source
from evals.tasks.task import Definition, Task
from models.data import is_folder
from models.data.listed import is_csv
from models.errors import DataError, UnknownNameError

__all__ = [
    "MAX_TEST",
    "Definition",
    "Found",
    "Source",
    "Task",
    "absent",
    "data_root",
    "definition",
    "expected",
    "find",
    "names",
    "open_source",
    "public_names",
    "readable",
    "task",
    "vtab_split",
]

ROOT_VARIABLE = "UPSHOT_DATA"


def names() -> tuple[str, ...]:
    """The packaged tasks."""
    return tuple(PACKAGED)


def public_names() -> tuple[str, ...]:
    """The public tasks, whose images are looked for below a root folder."""
    return tuple(DEFINITIONS)


def definition(name: str) -> Definition:
    """The published numbers of a public task."""
    return DEFINITIONS[name]


def data_root(root: Path | str | None) -> Path | None:
    """The folder of public tasks: the one that is given, else that of $UPSHOT_DATA."""
    given = root or os.environ.get(ROOT_VARIABLE)
    return Path(given).expanduser() if given else None


def task(name: str, root: Path | None = None) -> Task:
    """The task of that name, packaged or public, or one made of the images at a path.

    A public one is known by its published numbers: its images need not be on this machine.

    Args:
        name: of a task, or a path.
        root: the folder of public tasks; that of $UPSHOT_DATA where it is None.

    Raises:
        UnknownNameError: no task has this name.
        DataError: the images at a path are missing or malformed, or their labels are not known.
    """
    if is_folder(name) or is_csv(name):
        return path_task(name)
    if name in DEFINITIONS:
        return public_task(DEFINITIONS[name], data_root(root))
    if name not in PACKAGED:
        known = (*names(), *public_names())
        raise UnknownNameError("task", name, known, f"(a folder of images is named by its path: './{name}')")
    return packaged_task(name)


def open_source(t: Task) -> Source:
    """The images of a public task or of a path, each read when it is asked for.

    Raises:
        DataError: they are not there (the message says where they are looked for, and where they are had), or
            malformed.
    """
    if t.kind == "path":
        return open_path(t.dataset)
    published = DEFINITIONS[t.name]
    found = None if t.root is None else find(published, t.root)
    if found is None:
        raise DataError(f"task {t.name!r}: " + missing(published, t.root))
    return found.open()


def absent(named: Sequence[str], root: Path | str | None) -> list[str]:
    """Those of the named tasks that are public and of which nothing can be found below the root."""
    where = data_root(root)
    return [name for name in named if name in DEFINITIONS and readable(DEFINITIONS[name], where) is None]


def readable(published: Definition, root: Path | None) -> Found | None:
    """As `find`, but None too where folders may not be looked at: the nodes may see more than this machine."""
    try:
        return None if root is None else find(published, root)
    except DataError:
        return None


def missing(published: Definition, root: Path | None) -> str:
    """What to do about images that are not there."""
    if root is None:
        return (
            'no folder of public tasks is named: set data = "/datasets" in [downstream] of the study, or'
            f" ${ROOT_VARIABLE}. Its images are had at {published.url}"
        )
    places = "; ".join(expected(published, root))
    return f"its images are not below {root}. Looked for, in this order: {places}. They are had at {published.url}"
