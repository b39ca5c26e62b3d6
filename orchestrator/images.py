"""What plans know of a study's images: the numbers of the upstream set, what cells keep of it, and the tasks.

They are read from the disk, or from what a submission left in the study folder: what ran is told of whether or not its
images are still there. Packaged sets and public tasks are known without looking.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Protocol

from evals import tasks
from evals.tasks import Task
from models.data import SetInfo, describe, is_folder, kept
from models.errors import DataError, UserError
from models.recipe import Recipe

Part = tuple[float, float, int | None, int]
"""What tells a part of the upstream images: fraction, classes, images, seed (`models.recipe.Axes.subset`)."""


class Images(Protocol):
    """The images of a study. All of these raise what `models.data` and `evals.tasks` raise."""

    def upstream(self, dataset: str) -> SetInfo:
        """The numbers of the upstream set."""

    def kept(self, recipe: Recipe) -> tuple[int, int]:
        """(training images, classes) of it that a cell keeps."""

    def task(self, name: str) -> Task:
        """A downstream task."""


class ImagesOnDisk:
    """The images as they lie there now."""

    def upstream(self, dataset: str) -> SetInfo:
        """As `Images`."""
        return describe(dataset)

    def kept(self, recipe: Recipe) -> tuple[int, int]:
        """As `Images`."""
        return kept(recipe.dataset, **recipe.subset)

    def task(self, name: str) -> Task:
        """As `Images`."""
        return tasks.task(name)


ON_DISK: Final = ImagesOnDisk()


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmittedImages:
    """The images as they lay when a study was submitted; what was not a part of it then is looked for on the disk.

    Args:
        upstreams: upstream sets that are no packaged ones, by path.
        parts: what cells keep of them, by path and part.
        tasks: tasks at a path, by name.
    """

    upstreams: Mapping[str, SetInfo]
    parts: Mapping[tuple[str, Part], tuple[int, int]]
    tasks: Mapping[str, Task]

    def upstream(self, dataset: str) -> SetInfo:
        """As `Images`."""
        return self.upstreams[dataset] if dataset in self.upstreams else ON_DISK.upstream(dataset)

    def kept(self, recipe: Recipe) -> tuple[int, int]:
        """As `Images`."""
        key = recipe.dataset, _part(recipe)
        return self.parts[key] if key in self.parts else ON_DISK.kept(recipe)

    def task(self, name: str) -> Task:
        """As `Images`."""
        return self.tasks[name] if name in self.tasks else ON_DISK.task(name)


def _part(recipe: Recipe) -> Part:
    return recipe.fraction, recipe.classes, recipe.images, recipe.seed


def recorded(images: Images, dataset: str, names: Iterable[str], recipes: Iterable[Recipe]) -> str | None:
    """What a submission keeps of a study's own images, as JSON; None where all of them are packaged or public.

    Args:
        images: where the numbers come from.
        dataset: the upstream set.
        names: of the tasks.
        recipes: of the cells.

    Raises:
        DataError: images are missing or malformed.
    """
    try:
        named = {name: images.task(name) for name in names}
        parts = {_part(recipe): images.kept(recipe) for recipe in recipes} if is_folder(dataset) else {}
        upstreams = {dataset: asdict(images.upstream(dataset))} if is_folder(dataset) else {}
    except UserError as error:
        raise DataError(f"nothing can be submitted without the study's images: {error}") from error
    own = {name: {**asdict(task), "root": None} for name, task in named.items() if task.kind == "path"}
    rows = [[dataset, *part, *numbers] for part, numbers in parts.items()]
    told = {"tasks": own, "upstreams": upstreams, "parts": rows}
    return json.dumps(told, indent=1) if own or upstreams else None


def read_recorded(path: Path) -> Images:
    """The images of a study as that file has them; those on the disk where there is no such file.

    Raises:
        DataError: it is damaged.
    """
    try:
        told = json.loads(path.read_bytes())
        return SubmittedImages(
            upstreams={name: SetInfo(**info) for name, info in told["upstreams"].items()},
            parts={(name, tuple(part)): (images, classes) for name, *part, images, classes in told["parts"]},
            tasks={name: Task(**task) for name, task in told["tasks"].items()},
        )
    except FileNotFoundError:
        return ON_DISK
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        mend = "delete it, and the images themselves are asked"
        raise DataError(f"{path}: what is kept of the study's images cannot be read ({mend}): {error}") from error
