"""What makes a cell the same cell: a hash of everything that changes its trained weights, and of nothing else."""

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.recipe import Recipe

CELL_ID_LENGTH = 16


def canonical_json(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces, shortest floats.

    Raises:
        ValueError: NaN and infinities have no JSON.
        TypeError: the value has no stable bytes (a set, an object, a path).
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def cell_id(recipe: "Recipe") -> str:
    """16 hexadecimal digits of SHA-256 over the recipe.

    Axes at their default are left out, so a release that adds an axis leaves the ids of earlier studies as they were;
    in return a default, once released, never changes (a test pins ids).
    """
    text = canonical_json(recipe.model_dump(exclude_defaults=True))
    return hashlib.sha256(text.encode()).hexdigest()[:CELL_ID_LENGTH]


def trunk_id(recipe: "Recipe") -> str:
    """The same for recipes that differ in nothing but their length, as `cell_id` makes it."""
    text = canonical_json(recipe.model_dump(exclude_defaults=True, exclude={"epochs"}))
    return hashlib.sha256(text.encode()).hexdigest()[:CELL_ID_LENGTH]
