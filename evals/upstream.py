"""What a checkpoint is worth on the held-out upstream images, and what its layers make of them, in one pass over them.

Shape suffixes: N images, B images of a batch, H and W pixels, C channels or classes, D features.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from torch import nn

from evals.features import encode_with_logits
from evals.layer_measures import LayerFeatures, norm, weight_norm_rows
from evals.measures import Row, measure
from evals.scores import Margins, Scores

Integers = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


def upstream_measures(
    model: nn.Module,
    batches: Iterable[tuple[Pixels, Integers]],
    classes: Sequence[str],
    *,
    batch_size: int,
    by_class: bool = False,
) -> list[Row]:
    """The measures of a model on images that it was not trained on: the model's, by class where asked, each layer's.

    Accuracies are the same bits for any order of the images and any batch size, unless rounding makes another of two
    equal logits the higher one; the other measures agree to 1e-6 of their size.

    Args:
        model: a timm model, on any device.
        batches: images, uint8 [B, H, W, C], with their labels; as `models.upstream.held_out_batches` gives them, whose
            labels are known only as the images are read.
        classes: their names, by label.
        batch_size: the most images of a batch.
        by_class: whether each class has a row for its accuracy.

    Raises:
        DataError: images of another kind, or too many that cannot be read.
    """
    head = _Head(model)
    scores, margins, layers = Scores(len(classes)), Margins(head.weight_CD, head.reason), list[LayerFeatures]()
    labels: deque[Integers] = deque()
    for encoded in encode_with_logits(model, _without_labels(batches, labels), batch_size=batch_size):
        labels_B = labels.popleft()
        scores.add(encoded.logits_BC, labels_B)
        margins.add(encoded.logits_BC, labels_B)
        layers = layers or [LayerFeatures() for _ in encoded.layers]
        for layer, features_BD in zip(layers, encoded.layers, strict=True):
            layer.add(features_BD)
    rows = [*scores.rows(), *margins.rows(), *head.rows(), *(scores.class_rows(classes) if by_class else ())]
    rows += [row for number, layer in enumerate(layers) for row in layer.rows(number)]
    return [*rows, *weight_norm_rows(model, len(layers) - 1)]


def _without_labels(batches: Iterable[tuple[Pixels, Integers]], labels: deque[Integers]) -> Iterator[Pixels]:
    for images_BHWC, labels_B in batches:
        labels.append(labels_B)
        yield images_BHWC


class _Head:
    """The weights of a linear head on the CPU, or the reason why there are none."""

    def __init__(self, model: nn.Module) -> None:
        classifier = model.get_classifier()  # type: ignore[operator]  # every timm model has it
        self._parameters = [classifier.weight, classifier.bias] if isinstance(classifier, nn.Linear) else []
        self.weight_CD = classifier.weight.detach().cpu().numpy() if self._parameters else None
        self.reason = None if self._parameters else f"the head is a {type(classifier).__name__}, not a linear layer"

    def rows(self) -> Iterator[Row]:
        """Norms of the weights and of the biases."""
        parameters = self._parameters or (None, None)
        for quantity, parameter in zip(("head_weight_norm", "head_bias_norm"), parameters, strict=True):
            if parameter is None:
                yield measure(quantity, None, reason=self.reason or "the head has no biases")
            else:
                yield measure(quantity, norm([parameter]))
