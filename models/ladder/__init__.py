"""The ladder of sizes: what a family and a size stand for, and what one such model costs, in closed form.

`shapes` has the sizes, `costs` the formulas, `measured` what takes their place for any other timm model. Nothing here
imports torch: plans are printed on login nodes. `models.build` turns an `Architecture` into the timm model whose
parameters and operations are counted here.
"""

from models.ladder.costs import (
    FACTORED_FROM,
    Optimizer,
    Precision,
    TrainingMemory,
    can_checkpoint,
    forward_flops,
    has_batch_norm,
    layer_elements,
    num_dropped,
    num_gathered,
    num_layers,
    num_params,
    train_flops,
    training_memory,
)
from models.ladder.measured import Measurement, measure, measurement
from models.ladder.shapes import (
    FAMILIES,
    FREE_FORMS,
    LADDER,
    SMALL_IMAGE_SIZE,
    WITHOUT_PATCH,
    Architecture,
    Family,
    architecture,
    sizes,
    source,
)

__all__ = [
    "FACTORED_FROM",
    "FAMILIES",
    "FREE_FORMS",
    "LADDER",
    "SMALL_IMAGE_SIZE",
    "WITHOUT_PATCH",
    "Architecture",
    "Family",
    "Measurement",
    "Optimizer",
    "Precision",
    "TrainingMemory",
    "architecture",
    "can_checkpoint",
    "forward_flops",
    "has_batch_norm",
    "layer_elements",
    "measure",
    "measurement",
    "num_dropped",
    "num_gathered",
    "num_layers",
    "num_params",
    "sizes",
    "source",
    "train_flops",
    "training_memory",
]
