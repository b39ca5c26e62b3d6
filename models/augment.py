"""Flips and mixup, drawn for a whole batch by (seed, step).

They depend neither on what was drawn before nor on how the batch is split: a resumed run, micro-batches and several
processes all see the same images.

Shape suffixes: B images of a batch, P of a piece of it, H and W pixels, C channels.
"""

from dataclasses import dataclass

import numpy as np
import torch

from models.device import Device
from models.inputs import to_input
from models.recipe import Axes

Indices = np.ndarray[tuple[int], np.dtype[np.int64]]

# These tell random numbers of one seed and step from each other: random layers have 1.
FLIPS = 2
MIXUP = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The images of a step, by their index among the training images, and what becomes of them.

    `partner_B` are places in the batch: an image is mixed with its partner, of which it takes 1 - `share`.
    """

    index_B: Indices
    flipped_B: torch.Tensor | None = None
    partner_B: Indices | None = None
    share: float = 1.0


def draw_batch(index_B: Indices, recipe: Axes, step: int) -> Batch:
    """The batch with every second image, at random, flipped, and each mixed with a random one, as the recipe says.

    One share for the whole batch, from Beta(mixup, mixup), and a permutation of it for the partners: Zhang et al. 2018
    (arXiv 1710.09412, section 2).
    """
    flipped_B, partner_B, share = None, None, 1.0
    if recipe.flip:
        generator = np.random.default_rng((recipe.seed, step, FLIPS))
        flipped_B = torch.from_numpy(generator.random(len(index_B)) < 0.5)
    if recipe.mixup:
        generator = np.random.default_rng((recipe.seed, step, MIXUP))
        partner_B = generator.permutation(len(index_B))
        share = float(generator.beta(recipe.mixup, recipe.mixup))
    return Batch(index_B=index_B, flipped_B=flipped_B, partner_B=partner_B, share=share)


def piece_images(batch: Batch, place_P: Indices, images_NHWC: torch.Tensor, device: Device) -> torch.Tensor:
    """What a model takes of the images at some places of a batch: [P, 3, H, W], flipped and mixed."""
    x_PCHW = _flipped_images(batch, place_P, images_NHWC, device)
    if batch.partner_B is None:
        return x_PCHW
    other_PCHW = _flipped_images(batch, batch.partner_B[place_P], images_NHWC, device)
    return torch.lerp(other_PCHW, x_PCHW, device.scalar(batch.share))


def _flipped_images(batch: Batch, place_P: Indices, images_NHWC: torch.Tensor, device: Device) -> torch.Tensor:
    x_PHWC = device.put(images_NHWC[torch.from_numpy(batch.index_B[place_P])])
    if batch.flipped_B is not None:
        flipped_P = device.put(batch.flipped_B[torch.from_numpy(place_P)])
        x_PHWC = torch.where(flipped_P[:, None, None, None], x_PHWC.flip(2), x_PHWC)
    return to_input(x_PHWC)
