"""What is measured of a checkpoint beside its accuracy on tasks: the long table of upstream and layer measures.

No torch here: the login node reads these columns.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Final

import polars as pl

MEASURES_SCHEMA: Final[dict[str, type[pl.DataType]]] = {
    "cell_id": pl.String,
    "step": pl.Int64,
    "examples_seen": pl.Int64,
    "layer": pl.Int64,
    "label": pl.String,
    "quantity": pl.String,
    "value": pl.Float64,
    "num_images": pl.Int64,
    "reason": pl.String,
}
"""One row a number. `layer` is null where it is not of a layer, `label` (a class) where it is of all of them,
`num_images` where no image was looked at; `reason` says why a value is null."""

UPSTREAM_QUANTITIES: Final[dict[str, str]] = {
    "accuracy": "share of images whose class has the highest logit, the first of equals; of one class with `label`",
    "accuracy_top5": "share of images whose class is among the five highest logits; null for five classes or fewer",
    "cross_entropy": "mean negative log probability of the class, in nats",
    "expected_calibration_error": "gap of confidence and accuracy over 15 equal-width bins (arXiv 1706.04599, eq. 3)",
    "brier_score": "mean squared distance of the probabilities from the class, summed over the classes (0 to 2)",
    "margin_mean": "logit of the class minus the best other logit",
    "margin_median": "the same",
    "boundary_distance_mean": (
        "margin over the norm of the difference of both classes' head weights: the distance, in pre-logits features, "
        "to where both are equal (arXiv 1803.05598, eq. 3, of a linear head); negative on the wrong side"
    ),
    "boundary_distance_median": "the same",
    "head_weight_norm": "Frobenius norm of the head's weights",
    "head_bias_norm": "Euclidean norm of its biases",
}
"""Of the model, over the held-out upstream images."""

LAYER_QUANTITIES: Final[dict[str, str]] = {
    "feature_norm": "mean Euclidean norm of the features",
    "effective_rank": (
        "exponential of the entropy of the covariance's eigenvalues, as shares of their sum "
        "(Roy and Vetterli, EUSIPCO 2007, definition 1)"
    ),
    "stable_rank": "sum of the covariance's eigenvalues over the largest",
    "participation_ratio": "squared sum of the covariance's eigenvalues over the sum of their squares",
    "weight_norm": "Frobenius norm over all parameters of the block; the last layer, the pre-logits features, has none",
}
"""Of each layer's features on the same images, pooled as the probes see them; layers count from 0."""

Row = dict[str, object]
"""The columns of a measure; who knows the checkpoint adds `cell_id`, `step` and `examples_seen`."""


def measure(
    quantity: str,
    value: float | None,
    *,
    layer: int | None = None,
    label: str | None = None,
    num_images: int | None = None,
    reason: str | None = None,
) -> Row:
    """One row. A value that is not finite, or one with a reason against it, is null with its reason."""
    assert quantity in UPSTREAM_QUANTITIES or quantity in LAYER_QUANTITIES, quantity
    if reason is None and (value is None or not math.isfinite(value)):
        reason = f"{quantity} is {value}"
    return {
        "layer": layer,
        "label": label,
        "quantity": quantity,
        "value": value if reason is None else None,
        "num_images": num_images,
        "reason": reason,
    }


def null_measures(num_layers: int, labels: Sequence[str], reason: str) -> Iterator[Row]:
    """The rows of a checkpoint of which nothing can be measured, such as one that diverged.

    Args:
        num_layers: with the pre-logits features.
        labels: the classes that have rows of their own; none where these are not asked for.
        reason: why there is no value.
    """
    for quantity in UPSTREAM_QUANTITIES:
        yield measure(quantity, None, reason=reason)
    for label in labels:
        yield measure("accuracy", None, label=label, reason=reason)
    for layer in range(num_layers):
        for quantity in LAYER_QUANTITIES:
            if quantity != "weight_norm" or layer < num_layers - 1:
                yield measure(quantity, None, layer=layer, reason=reason)
