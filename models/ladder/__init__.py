"""The ladder of sizes: what a family and a size stand for, and what one such model costs, in closed form.

`shapes` has the sizes, `costs` the formulas. Nothing here imports torch: plans are printed on login nodes.
`models.build` turns an `Architecture` into the timm model whose parameters and operations these formulas count.
"""

from models.ladder.costs import (
    Optimizer,
    Precision,
    TrainingMemory,
    forward_flops,
    num_dropped,
    num_layers,
    num_params,
    train_flops,
    training_memory,
)
from models.ladder.shapes import (
    FAMILIES,
    LADDER,
    SMALL_IMAGE_SIZE,
    Architecture,
    Family,
    architecture,
    sizes,
)

__all__ = [
    "FAMILIES",
    "LADDER",
    "SMALL_IMAGE_SIZE",
    "Architecture",
    "Family",
    "Optimizer",
    "Precision",
    "TrainingMemory",
    "architecture",
    "forward_flops",
    "num_dropped",
    "num_layers",
    "num_params",
    "sizes",
    "train_flops",
    "training_memory",
]
