"""`Study` to its cells: unique, in the order of the file."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from models import ladder
from models.data import SetInfo
from models.errors import StudyError, UserError
from models.recipe import Axes, Recipe
from orchestrator.identity import cell_id
from orchestrator.images import ON_DISK, Images
from orchestrator.study import GridTable, Study

FOLDER_IMAGE_SIZE = 224


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the grid."""

    cell_id: str
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class _Found:
    """A cell and where in the study file it stands."""

    cell: Cell
    where: str
    combination: dict[str, object]


def cells(study: Study, path: Path, images: Images = ON_DISK) -> list[Cell]:
    """Every cell of the study, once.

    Args:
        study: the study.
        path: is only named in messages.
        images: what is known of its images.

    Raises:
        StudyError: upstream data that cannot be used, an unknown size, a patch that does not divide the image, two
            equal cells, nothing left after [[exclude]]. The message names the cell.
    """
    try:
        info = images.upstream(study.upstream.dataset)
    except UserError as error:
        raise StudyError(f"{path}: upstream.dataset: {error}") from error
    found: dict[str, _Found] = {}
    for where, combination in _combinations(study):
        if any(_matches(combination, table) for table in study.exclude):
            continue
        cell = _cell(study, combination, info, images, f"{path}: {where}")
        if cell.cell_id in found:
            first = found[cell.cell_id].where
            raise StudyError(f"{path}: {where} and {first} make the same cell twice: {_words(combination)}")
        found[cell.cell_id] = _Found(cell, where, combination)
    if not found:
        raise StudyError(f"{path}: grid: is empty: [[exclude]] leaves no cell")
    _measure_timm_models([one for one in found.values() if one.cell.recipe.family == "timm"], images, path)
    return [one.cell for one in found.values()]


def planned_architecture(recipe: Recipe, images: Images = ON_DISK) -> ladder.Architecture:
    """The cell's model, with a head for the classes that it keeps."""
    return ladder.architecture(
        recipe.family,
        recipe.size,
        image_size=recipe.image_size,
        num_classes=images.kept(recipe)[1],
        patch_size=recipe.patch_size,
    )


def num_excluded(study: Study) -> int:
    """How many combinations [[exclude]] leaves out."""
    return sum(any(_matches(c, table) for table in study.exclude) for _, c in _combinations(study))


def _combinations(study: Study) -> Iterator[tuple[str, dict[str, object]]]:
    for i, table in enumerate(study.grid):
        where = "grid" if len(study.grid) == 1 else f"grid[{i}]"
        for values in itertools.product(*table.values()):
            yield where, dict(zip(table, values, strict=True))


def _matches(combination: dict[str, object], table: GridTable) -> bool:
    return all(combination.get(axis, Axes.model_fields[axis].default) in values for axis, values in table.items())


def _cell(study: Study, combination: dict[str, object], info: SetInfo, images: Images, where: str) -> Cell:
    given = dict(combination)
    family, size = given["family"], given["size"]
    image_size = given.get("image_size") or info.image_size or FOLDER_IMAGE_SIZE
    if family == "resnet":  # they have no patches; two patch sizes would make the same ResNet twice, which is refused
        given.pop("patch_size", None)
    try:
        arch = ladder.architecture(
            family,  # type: ignore[arg-type]  # checked against the literal by orchestrator.study
            str(size),
            image_size=image_size,  # type: ignore[arg-type]  # an int, checked by orchestrator.study
            num_classes=info.num_classes,
            patch_size=given.get("patch_size"),  # type: ignore[arg-type]  # the same
        )
    except UserError as error:
        axis = "patch_size" if "patch" in str(error) else "size"
        raise StudyError(f"{where}.{axis}: {error} In cell {_words(combination)}") from error
    given |= {"dataset": study.upstream.dataset, "image_size": image_size, "patch_size": arch.patch_size or None}
    for name in ("learning_rate", "weight_decay"):
        if given.get(f"head_{name}") is None:
            given[f"head_{name}"] = given.get(name, Recipe.model_fields[name].default)
    try:
        recipe = Recipe.model_validate(given)
    except ValidationError as error:  # values that do not go together; each by itself was checked before
        told = "; ".join(item["msg"].removeprefix("Value error, ") for item in error.errors())
        raise StudyError(f"{where}: {told}. In cell {_words(combination)}") from error
    try:
        images.kept(recipe)
    except UserError as error:
        raise StudyError(f"{where}: upstream images of cell {_words(combination)}: {error}") from error
    return Cell(cell_id(recipe), recipe)


def _measure_timm_models(found: list[_Found], images: Images, path: Path) -> None:
    """Learns of all models at once what they cost, and that they can be used."""
    models = [planned_architecture(one.cell.recipe, images) for one in found]
    faults = ladder.measure(models)
    for one, arch in zip(found, models, strict=True):
        fault = ("size", faults[arch]) if arch in faults else _unknown_rate(one.cell.recipe, ladder.measurement(arch))
        if fault:
            raise StudyError(f"{path}: {one.where}.{fault[0]}: {fault[1]}. In cell {_words(one.combination)}")


def _unknown_rate(recipe: Recipe, model: ladder.Measurement) -> tuple[str, str] | None:
    """The axis, and what is wrong with it, where the recipe asks for a kind of dropout that the model has not."""
    for axis, rate, known in (
        ("dropout", recipe.dropout, model.dropout),
        ("drop_path", recipe.drop_path, model.drop_path),
    ):
        if rate and not known:
            return axis, f"timm {recipe.size}: the model has no {axis}, so leave it at 0"
    return None


def _words(combination: dict[str, object]) -> str:
    return " ".join(f"{axis}={value}" for axis, value in combination.items())
