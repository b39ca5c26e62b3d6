"""Flips, mixup, crops and RandAugment, drawn for a whole batch by (seed, step).

They depend neither on what was drawn before nor on how the batch is split: a resumed run, micro-batches and several
processes all see the same images.

Shape suffixes: B images of a batch, P of a piece of it, H and W pixels, C channels, K draws, L operations.
"""

from dataclasses import dataclass

import numpy as np
import torch

from models.data.augmentations import DRAWS_OF_A_CROP, DRAWS_OF_AN_OPERATION, Views
from models.device import Device
from models.inputs import ToInput, to_input
from models.recipe import AUGREG, Axes

Indices = np.ndarray[tuple[int], np.dtype[np.int64]]

# These tell random numbers of one seed and step from each other: random layers have 1.
FLIPS = 2
MIXUP = 3
VIEWS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The images of a step, by their position among the training images, and what becomes of them.

    `views` says how each is seen, where not as it is. `partner_B` are places in the batch: an image is mixed with its
    partner, of which it takes 1 - `share`.
    """

    position_B: Indices
    views: Views | None = None
    flipped_B: torch.Tensor | None = None
    partner_B: Indices | None = None
    share: float = 1.0


def draw_batch(position_B: Indices, recipe: Axes, step: int, *, num_streams: int = 1) -> Batch:
    """The batch with every second image, at random, flipped, and each mixed with a random one, as the recipe says.

    One share for the whole batch, from Beta(mixup, mixup), and a permutation of it for the partners: Zhang et al. 2018
    (arXiv 1710.09412, section 2). Where a batch is of several streams, one after the other, partners are of one stream:
    others may be read by other processes.
    """
    flipped_B, partner_B, share = None, None, 1.0
    mixup = recipe.mixup or AUGREG[recipe.augreg].mixup
    if recipe.flip:
        generator = np.random.default_rng((recipe.seed, step, FLIPS))
        flipped_B = torch.from_numpy(generator.random(len(position_B)) < 0.5)
    if mixup:
        generator = np.random.default_rng((recipe.seed, step, MIXUP))
        place_SE = np.arange(len(position_B)).reshape(num_streams, -1)
        partner_B = np.concatenate([generator.permutation(place_E) for place_E in place_SE])
        share = float(generator.beta(mixup, mixup))
    return Batch(
        position_B=position_B,
        views=_draw_views(len(position_B), recipe, step),
        flipped_B=flipped_B,
        partner_B=partner_B,
        share=share,
    )


def _draw_views(num_images: int, recipe: Axes, step: int) -> Views | None:
    num_operations, magnitude, _ = AUGREG[recipe.augreg]
    if not recipe.crop and not num_operations:
        return None
    generator = np.random.default_rng((recipe.seed, step, VIEWS))
    crop_BK = generator.random((num_images, DRAWS_OF_A_CROP))
    operations_BLK = generator.random((num_images, num_operations, DRAWS_OF_AN_OPERATION))
    return Views(
        crop_BK=crop_BK if recipe.crop else None,
        least_area=recipe.crop or 1.0,
        operations_BLK=operations_BLK if num_operations else None,
        magnitude=magnitude,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepImages:
    """A batch with its images, or with those of them that this process needs.

    `row_B` says where in `images_NHWC` and `labels_N` the image of a place of the batch is.
    """

    batch: Batch
    images_NHWC: torch.Tensor
    labels_N: torch.Tensor
    row_B: Indices
    to_input: ToInput = to_input

    def __len__(self) -> int:
        return len(self.row_B)

    def labels(self, place_P: Indices) -> torch.Tensor:
        """Of the images at some places of the batch."""
        return _rows(self.labels_N, self.row_B[place_P])

    def inputs(self, place_P: Indices, device: Device) -> torch.Tensor:
        """What a model takes of the images at some places of the batch: [P, 3, H, W], flipped and mixed."""
        x_PCHW = self._flipped(place_P, device)
        if self.batch.partner_B is None:
            return x_PCHW
        share = device.scalar(self.batch.share)
        return torch.lerp(self._flipped(self.batch.partner_B[place_P], device), x_PCHW, share)

    def _flipped(self, place_P: Indices, device: Device) -> torch.Tensor:
        x_PHWC = device.put(_rows(self.images_NHWC, self.row_B[place_P]))
        if self.batch.flipped_B is not None:
            flipped_P = device.put(self.batch.flipped_B[torch.from_numpy(place_P)])
            x_PHWC = torch.where(flipped_P[:, None, None, None], x_PHWC.flip(2), x_PHWC)
        return self.to_input(x_PHWC)


def _rows(tensor_N: torch.Tensor, row_P: Indices) -> torch.Tensor:
    """Some rows of a tensor; a view of them where they follow each other, which keeps pinned memory pinned."""
    assert row_P.min(initial=0) >= 0, "an image that this process did not read"
    if len(row_P) and row_P[-1] - row_P[0] == len(row_P) - 1 and (np.diff(row_P) == 1).all():
        return tensor_N[int(row_P[0]) : int(row_P[-1]) + 1]
    return tensor_N[torch.from_numpy(row_P)]
