"""One ridge on one set of features: what `evals.judge` does for many at once, one thing after the other.

Shape suffixes: N examples, H and W pixels, D features, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evals.features import encode
from evals.fewshot import LAMBDAS, Features, Integers, ProbeError, fit_ridge


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProbeResult:
    """How well a probe does on test images, or why that is not known: then every number is None."""

    accuracy: float | None = None
    class_accuracy: float | None = None
    """Mean over the classes that have test images."""
    regularisation: float | None = None
    predictions_N: Integers | None = None
    reason: str | None = None


def probe(
    shots_ND: Features,
    labels_N: Integers,
    test_ND: Features,
    test_labels_N: Integers,
    *,
    num_classes: int,
    lambdas: Sequence[float] = LAMBDAS,
) -> ProbeResult:
    """A ridge fitted to the shots and judged on the test images; test labels are used for nothing else."""
    if len(test_labels_N) == 0:
        return ProbeResult(reason="the task has no test images")
    try:
        ridge = fit_ridge(shots_ND, labels_N, num_classes=num_classes, lambdas=lambdas)
    except ProbeError as error:
        return ProbeResult(reason=str(error))
    if bad := int((~np.isfinite(test_ND).all(axis=1)).sum()):
        return ProbeResult(reason=f"{bad} of {len(test_ND)} test images have features that are not finite")
    predictions_N = ridge.predict(test_ND)
    correct_N = predictions_N == test_labels_N
    counts_C = np.bincount(test_labels_N, minlength=num_classes)
    hits_C = np.bincount(test_labels_N[correct_N], minlength=num_classes)
    return ProbeResult(
        accuracy=float(correct_N.mean()),
        class_accuracy=float(np.mean(hits_C[counts_C > 0] / counts_C[counts_C > 0])),
        regularisation=ridge.regularisation,
        predictions_N=predictions_N,
    )


def extract_features(model, images_NHWC, *, batch_size):
    """Features [N, D] of every layer of all images."""
    starts = range(0, len(images_NHWC), batch_size)
    encoded = encode(model, (images_NHWC[start : start + batch_size] for start in starts), batch_size=batch_size)
    return [np.concatenate(layer) for layer in zip(*encoded, strict=True)]
