"""How well logits name the classes of images, batch after batch: accuracy, loss, calibration, margins.

Shape suffixes: B images of a batch, C classes, D features, M bins of confidence.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from evals.measures import Row, measure

Floats = npt.NDArray[np.float64]
Logits = npt.NDArray[np.floating]
Integers = npt.NDArray[np.int64]

NUM_BINS: Final = 15
"""Of confidence, in the calibration error (arXiv 1706.04599, section 5)."""

TOP: Final = 5


class Scores:
    """Sums over images of what their logits say, in float64."""

    def __init__(self, num_classes: int) -> None:
        self._num_images = self._num_bad = self._num_top = 0
        self._loss = self._brier = 0.0
        self._images_C = np.zeros(num_classes, dtype=np.int64)
        self._hits_C = np.zeros(num_classes, dtype=np.int64)
        self._confidence_M, self._hits_M = np.zeros(NUM_BINS), np.zeros(NUM_BINS)

    def add(self, logits_BC: Logits, labels_B: Integers) -> None:
        """Counts a batch in; of equal logits the first is the higher one."""
        self._num_images += len(labels_B)
        self._num_bad += len(labels_B) - int(np.isfinite(logits_BC).all(axis=1).sum())
        self._images_C += np.bincount(labels_B, minlength=len(self._images_C))
        if self._num_bad:
            return
        z_BC, true_B = logits_BC.astype(np.float64), _of_class(logits_BC, labels_B)
        before_BC = np.arange(z_BC.shape[1]) < labels_B[:, None]
        rank_B = ((z_BC > true_B[:, None]) | ((z_BC == true_B[:, None]) & before_BC)).sum(axis=1)
        self._num_top += int((rank_B < TOP).sum())
        self._hits_C += np.bincount(labels_B[rank_B == 0], minlength=len(self._hits_C))
        self._add_probabilities(z_BC, labels_B, rank_B == 0)

    def _add_probabilities(self, z_BC: Floats, labels_B: Integers, hit_B: npt.NDArray[np.bool_]) -> None:
        z_BC -= z_BC.max(axis=1, keepdims=True)
        p_BC = np.exp(z_BC)
        total_B = p_BC.sum(axis=1)
        p_BC /= total_B[:, None]
        self._loss += float((np.log(total_B) - _of_class(z_BC, labels_B)).sum())
        self._brier += float((np.square(p_BC).sum(axis=1) - 2 * _of_class(p_BC, labels_B) + 1).sum())
        confidence_B = p_BC.max(axis=1)
        # Bin m holds confidences above m / 15, up to (m + 1) / 15.
        bin_B = np.clip(np.ceil(confidence_B * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
        self._confidence_M += np.bincount(bin_B, weights=confidence_B, minlength=NUM_BINS)
        self._hits_M += np.bincount(bin_B, weights=hit_B, minlength=NUM_BINS)

    def rows(self) -> Iterator[Row]:
        """Accuracy, top-5 accuracy, loss, calibration error and Brier score."""
        num_images, num_classes, unusable = self._num_images, len(self._images_C), self._unusable()
        few = f"any five of {num_classes} classes hold the right one" if num_classes <= TOP else None
        gap_M = np.abs(self._confidence_M - self._hits_M)
        for quantity, total, reason in (
            ("accuracy", int(self._hits_C.sum()), unusable),
            ("accuracy_top5", self._num_top, unusable or few),
            ("cross_entropy", self._loss, unusable),
            ("expected_calibration_error", float(gap_M.sum()), unusable),
            ("brier_score", self._brier, unusable),
        ):
            value = None if reason else total / num_images
            yield measure(quantity, value, num_images=num_images, reason=reason)

    def class_rows(self, classes: Sequence[str]) -> Iterator[Row]:
        """The accuracy on the images of each class."""
        for label, images, hits in zip(classes, self._images_C.tolist(), self._hits_C.tolist(), strict=True):
            reason = self._unusable() or (None if images else "no image of the class is held out")
            yield measure("accuracy", None if reason else hits / images, label=label, num_images=images, reason=reason)

    def _unusable(self) -> str | None:
        return _unusable(self._num_images, self._num_bad)


class Margins:
    """Margins of images before a linear head, all of which are kept: eight bytes an image and kind, for the median.

    Args:
        weight_CD: the head's weights; None where there is no linear head, for the reason in `no_head`.
        no_head: why there are no distances then.
    """

    def __init__(self, weight_CD: npt.NDArray[np.floating] | None, no_head: str | None = None) -> None:
        self._weight_CD, self._no_head = weight_CD, no_head
        self._margins: list[Floats] = []
        self._distances: list[Floats] = []
        self._num_bad = 0

    def add(self, logits_BC: Logits, labels_B: Integers) -> None:
        """Counts a batch in."""
        z_BC, row_B = logits_BC.astype(np.float64), np.arange(len(labels_B))
        true_B = z_BC[row_B, labels_B]
        z_BC[row_B, labels_B] = -np.inf
        other_B = z_BC.argmax(axis=1)
        finite_B = np.isfinite(logits_BC).all(axis=1)
        self._num_bad += len(labels_B) - int(finite_B.sum())
        margin_B = np.subtract(true_B, z_BC[row_B, other_B], out=np.zeros_like(true_B), where=finite_B)
        self._margins.append(margin_B)
        if self._weight_CD is not None:
            difference_BD = self._weight_CD[labels_B].astype(np.float64) - self._weight_CD[other_B]
            norm_B = np.linalg.norm(difference_BD, axis=1)
            self._distances.append(np.divide(margin_B, norm_B, out=np.full_like(margin_B, np.inf), where=norm_B > 0))

    def rows(self) -> Iterator[Row]:
        """Mean and median of the margins, and of the distances to the boundary."""
        margin_N, distance_N = _joined(self._margins), _joined(self._distances)
        unusable = _unusable(len(margin_N), self._num_bad)
        alike = int(np.isinf(distance_N).sum())
        no_distance = unusable or self._no_head
        if no_distance is None and alike:
            no_distance = f"{alike} images lie between classes with the same head weights, which have no boundary"
        for name, value_N, reason in (("margin", margin_N, unusable), ("boundary_distance", distance_N, no_distance)):
            for statistic, of in (("mean", np.mean), ("median", np.median)):
                value = None if reason else float(of(value_N))
                yield measure(f"{name}_{statistic}", value, num_images=len(margin_N), reason=reason)


def _joined(parts: list[Floats]) -> Floats:
    return np.concatenate([np.zeros(0), *parts])


def _of_class(values_BC: Logits, labels_B: Integers) -> Logits:
    return values_BC[np.arange(len(labels_B)), labels_B]


def _unusable(num_images: int, num_bad: int) -> str | None:
    if not num_images:
        return "there are no images"
    return f"{num_bad} of {num_images} images have logits that are not finite" if num_bad else None
