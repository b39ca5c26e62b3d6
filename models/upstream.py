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


@torch.inference_mode()
def measure_upstream(model: torch.nn.Module, data: UpstreamData, device: Device) -> tuple[float, float]:
    """(top-1 accuracy, mean cross-entropy) on the held-out upstream images of the classes that were trained."""
    training = model.training
    model.eval()
    correct, loss = 0, 0.0
    for start in range(0, len(data.test_labels_N), EVAL_BATCH):
        x_BCHW = to_input(data.test_images_NHWC[start : start + EVAL_BATCH].to(device.torch_device))
        y_B = data.test_labels_N[start : start + EVAL_BATCH].to(device.torch_device)
        logits_BC = model(x_BCHW).float()
        correct += int((logits_BC.argmax(1) == y_B).sum())
        loss += float(functional.cross_entropy(logits_BC, y_B, reduction="sum"))
    model.train(training)
    return correct / len(data.test_labels_N), loss / len(data.test_labels_N)
