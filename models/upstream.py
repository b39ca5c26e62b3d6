"""The upstream data of a cell, and what a model is worth on its held-out part.

Shape suffixes: B batch, N examples, H and W pixels, C channels or classes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from models.data import load_images, split, subset
from models.device import Device
from models.inputs import to_input
from models.recipe import Recipe

EVAL_BATCH = 512
NO_LABEL = -100  # what torch's cross-entropy leaves out


@dataclass(frozen=True, slots=True)
class UpstreamData:
    """Training images and the held-out images of the same classes, resident, as uint8 [N, H, W, C]."""

    train_images_NHWC: torch.Tensor
    train_labels_N: torch.Tensor
    test_images_NHWC: torch.Tensor
    test_labels_N: torch.Tensor
    num_classes: int


def load_upstream(recipe: Recipe) -> UpstreamData:
    """The recipe's share of the upstream images, labels renumbered over the classes that were kept."""
    images = load_images(recipe.dataset, recipe.image_size)
    train_all, test_all = split(images)
    kept = subset(images.labels_N, train_all, **recipe.subset)
    classes = np.unique(images.labels_N[kept])
    test = test_all[np.isin(images.labels_N[test_all], classes)]
    return UpstreamData(
        torch.from_numpy(images.images_NHWC[kept]),
        torch.from_numpy(np.searchsorted(classes, images.labels_N[kept])),
        torch.from_numpy(images.images_NHWC[test]),
        torch.from_numpy(np.searchsorted(classes, images.labels_N[test])),
        len(classes),
    )


@torch.no_grad()  # torch-xla makes no views in inference mode
def measure_upstream(model: torch.nn.Module, data: UpstreamData, device: Device) -> tuple[float, float]:
    """(top-1 accuracy, mean cross-entropy) on the held-out upstream images of the classes that were trained."""
    training = model.training
    model.eval()
    correct, losses = [], []
    for start in range(0, len(data.test_labels_N), EVAL_BATCH):
        images_BHWC = device.filled(data.test_images_NHWC[start : start + EVAL_BATCH], EVAL_BATCH)
        y_B = device.put(device.filled(data.test_labels_N[start : start + EVAL_BATCH], EVAL_BATCH, NO_LABEL))
        logits_BC = model(to_input(device.put(images_BHWC))).float()
        correct.append((logits_BC.argmax(1) == y_B).sum())
        losses.append(functional.cross_entropy(logits_BC, y_B, reduction="sum"))
        device.end_step()
    model.train(training)
    loss, num_test = 0.0, len(data.test_labels_N)
    for of_batch in losses:
        loss += float(of_batch)
    return sum(map(int, correct)) / num_test, loss / num_test
