"""What kind of cell a checkpoint is of, kept in its state: the same tensors may mean something else in another one.

Weights of another architecture are told by their names and shapes (`models.checkpoint`). An optimiser's state of
another optimiser, or weights without the average that this cell keeps, would be taken, and quietly be wrong.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from models.checkpoint import finalised_steps, read_json, step_folder
from models.errors import CheckpointError, CorruptCheckpointError
from models.recipe import Recipe

_AXES = ("family", "size", "image_size", "patch_size", "optimizer", "ema")


def origin(recipe: Recipe) -> dict[str, Any]:
    """What a checkpoint's state says of the cell that left it."""
    return {"origin": {axis: getattr(recipe, axis) for axis in _AXES}}


def check_origins(roots: Iterable[Path], recipe: Recipe) -> None:
    """Returns if every checkpoint under `roots` that says what it is of, is of this kind of cell.

    Raises:
        CheckpointError: one is not; the message names the axes that differ. Nothing was changed.
    """
    for folder in (step_folder(root, step) for root in roots for step in finalised_steps(root)):
        try:
            there = read_json(folder / "state.json").get("origin", {})
        except CorruptCheckpointError:  # for whoever loads it to judge
            continue
        here = origin(recipe)["origin"]
        differing = [
            f"{axis} {there[axis]} there, {value} here"
            for axis, value in here.items()
            if there.get(axis, value) != value
        ]
        if differing:
            raise CheckpointError(
                f"{folder}: is of another model, or trained otherwise ({'; '.join(differing)}), and left as it is:"
                " move it out of the folder"
            )
