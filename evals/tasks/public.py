"""Public tasks by name. Their images belong to others: they are looked for below a root folder, never fetched."""

from pathlib import Path
from typing import Final

from evals.tasks.natural import NATURAL
from evals.tasks.specialised import SPECIALISED
from evals.tasks.structured import STRUCTURED
from evals.tasks.task import Definition, Task
from models.data import SplitRule

DEFINITIONS: Final[dict[str, Definition]] = {d.name: d for d in (*NATURAL, *SPECIALISED, *STRUCTURED)}


def public_task(definition: Definition, root: Path | None) -> Task:
    """The task by its published numbers; no image is looked at."""
    return Task(
        name=definition.name,
        title=definition.title,
        kind="public",
        dataset=definition.name,
        num_classes=definition.num_classes,
        chance=1 / definition.num_classes,
        num_train=definition.num_train,
        num_test=definition.num_test,
        max_shots=None,
        test_share=definition.test_share or 0.0,
        split_rule=_split_rule(definition),
        split=definition.split,
        vtab=definition.vtab,
        source=definition.source,
        licence=definition.licence,
        root=root,
    )


def _split_rule(definition: Definition) -> SplitRule:
    if definition.test_share is None:
        return "given"
    return "groups" if definition.name == "kitti_distance" else "images"
