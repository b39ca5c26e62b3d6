"""Norm and rank of the features of a layer, image after image, and the norms of the weights behind them.

Shape suffixes: B images of a batch, D features.
"""

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from evals.features import layer_modules
from evals.measures import Row, measure

Floats = npt.NDArray[np.float64]

CONSTANT_SPREAD: Final = 1e-6
"""A feature whose standard deviation is below this share of its size is constant: the rest is float32 rounding."""

RANKS: Final = ("effective_rank", "stable_rank", "participation_ratio")


class LayerFeatures:
    """Norm and covariance of one layer's features, in float64, from batches that are seen once.

    It holds D x D numbers, a twelfth and less of what a block of a Transformer holds. The order of the images and how
    they are split into batches change results by rounding only, below 1e-9 of them.
    """

    def __init__(self) -> None:
        self._num_images = 0
        self._num_bad = 0
        self._norm_sum = 0.0
        self._shift_D: Floats = np.zeros(0)
        self._sum_D: Floats = np.zeros(0)
        self._largest_D: Floats = np.zeros(0)
        self._product_DD: Floats = np.zeros((0, 0))

    def add(self, features_BD: npt.NDArray[np.floating]) -> None:
        """Counts a batch in."""
        x_BD = features_BD.astype(np.float64)
        self._num_images += len(x_BD)
        self._num_bad += len(x_BD) - int(np.isfinite(x_BD).all(axis=1).sum())
        if self._num_bad:
            return
        if not len(self._shift_D):
            self._begin(x_BD)
        self._norm_sum += float(np.linalg.norm(x_BD, axis=1).sum())
        np.maximum(self._largest_D, np.abs(x_BD).max(axis=0), out=self._largest_D)
        x_BD -= self._shift_D
        self._sum_D += x_BD.sum(axis=0)
        self._product_DD += x_BD.T @ x_BD

    def _begin(self, x_BD: Floats) -> None:
        # Products of differences from a value near the mean: those of the features themselves would cancel.
        self._shift_D = x_BD.mean(axis=0)
        self._sum_D, self._largest_D = np.zeros_like(self._shift_D), np.zeros_like(self._shift_D)
        self._product_DD = np.zeros((len(self._shift_D), len(self._shift_D)))

    def covariance(self) -> Floats:
        """[D, D], over all images (divided by their number)."""
        mean_D = self._sum_D / self._num_images
        return np.asarray(self._product_DD / self._num_images - np.outer(mean_D, mean_D))

    def rows(self, layer: int) -> Iterator[Row]:
        """Its measures, as rows of layer `layer`; null with a reason where features are constant or not finite."""
        reason = self._unusable()
        mean_norm = None if reason else self._norm_sum / self._num_images
        yield measure("feature_norm", mean_norm, layer=layer, num_images=self._num_images, reason=reason)
        reason = reason or self._constant()
        ranks = _ranks(self.covariance()) if reason is None else dict.fromkeys(RANKS)
        for quantity, value in ranks.items():
            yield measure(quantity, value, layer=layer, num_images=self._num_images, reason=reason)

    def _unusable(self) -> str | None:
        if not self._num_images:
            return "there are no images"
        if self._num_bad:
            return f"{self._num_bad} of {self._num_images} images have features that are not finite"
        return None

    def _constant(self) -> str | None:
        if self._num_images == 1:
            return "one image has no covariance"
        std_D = np.sqrt(np.maximum(np.diagonal(self.covariance()), 0.0))
        if (std_D <= CONSTANT_SPREAD * self._largest_D).all():
            return f"the features are the same for all {self._num_images} images"
        return None


def _ranks(covariance_DD: Floats) -> dict[str, float | None]:
    eigenvalues_D = np.maximum(np.linalg.eigvalsh(covariance_DD), 0.0)  # rounding makes zeros negative
    share_D = eigenvalues_D / eigenvalues_D.sum()
    positive = share_D[share_D > 0]
    return {
        "effective_rank": float(np.exp(-(positive * np.log(positive)).sum())),
        "stable_rank": float(1 / share_D.max()),
        "participation_ratio": float(1 / np.square(share_D).sum()),
    }


def weight_norm_rows(model: nn.Module, num_blocks: int) -> Iterator[Row]:
    """The weight norm of every block, first to last."""
    modules = layer_modules(model)
    for layer in range(num_blocks):
        if len(modules) != num_blocks:
            reason = f"it is not known which parameters of a {type(model).__name__} belong to a layer"
            yield measure("weight_norm", None, layer=layer, reason=reason)
        else:
            parameters = [parameter for module in modules[layer] for parameter in module.parameters()]
            yield measure("weight_norm", norm(parameters), layer=layer)


@torch.no_grad()
def norm(parameters: Iterable[torch.Tensor]) -> float:
    """Frobenius norm over all of them, summed in float64 on the CPU."""
    # TPUs have no float64; a parameter at a time, so that no copy of a large model is made.
    squares = (float(parameter.detach().cpu().double().square().sum()) for parameter in parameters)
    return float(np.sqrt(sum(squares)))
