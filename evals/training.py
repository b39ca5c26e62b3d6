"""The steps of fine-tuning: batches of images or of features, and SGD with momentum on them.

Shape suffixes: S steps, N images, B images of a batch, P of a piece of it, H and W pixels, C channels or classes, D
features.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from evals.datasets import Images, Pixels
from evals.fewshot import Integers
from evals.schedule import FineTune, rate_factor
from models.augment import Batch, Indices, StepImages
from models.data.pixels import view
from models.device import Device
from models.inputs import ToInput, to_input
from models.optim import set_learning_rate

MOMENTUM: Final = 0.9

RESIDENT_BYTES: Final = 2**30
"""Training images that take no more are decoded once; others are for every step that sees them."""
READ_IMAGES: Final = 128  # decoded at a time
LOOKED_AFTER: Final = 100  # steps, between two looks at whether training diverged: each waits for the device

# These tell random numbers of one seed from each other.
ORDER, FLIPS, MIXUP, CROPS = range(4)


def order(num_images: int, batch_size: int, num_steps: int, seed: int) -> Integers:
    """[S, B] places among so many images: random orders of all of them, one after the other, cut into batches.

    A batch has all images, once, where they are no more than `batch_size`.
    """
    batch = min(batch_size, num_images)
    generator = np.random.default_rng((seed, ORDER))
    num_orders = -(-num_steps * batch // num_images)
    place_N = np.concatenate([generator.permutation(num_images) for _ in range(num_orders)])
    return place_N[: num_steps * batch].reshape(num_steps, batch)


@dataclass(frozen=True, slots=True, eq=False)
class StepFeatures:
    """A batch of features, as `StepImages` is one of images."""

    batch: Batch
    features_BD: torch.Tensor
    labels_B: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels_B)

    def labels(self, place_P: Indices) -> torch.Tensor:
        """Of the features at some places of the batch."""
        return self.labels_B[place_P]

    def inputs(self, place_P: Indices, device: Device) -> torch.Tensor:
        """The features at some places of the batch."""
        return device.put(self.features_BD[place_P])


def step_features(
    features_ND: npt.NDArray[np.float32], labels_N: Integers, order_SB: Integers
) -> Iterator[StepFeatures]:
    """The features of each step in turn."""
    for place_B in order_SB:
        yield StepFeatures(
            batch=Batch(position_B=place_B),
            features_BD=torch.from_numpy(features_ND[place_B]),
            labels_B=torch.from_numpy(labels_N[place_B]),
        )


def step_images(
    images: Images, index_N: Integers, order_SB: Integers, settings: FineTune, seed: int, to_input: ToInput = to_input
) -> Iterator[StepImages]:
    """The images of each step in turn, cropped; `StepImages` flips and mixes them on the device."""
    labels_N, place_B = images.labels_N[index_N], np.arange(order_SB.shape[1])
    alpha = settings.mixup_alpha(len(index_N))
    for step, images_BHWC in enumerate(_pixels(images, index_N, order_SB)):
        if settings.crop:
            images_BHWC = _cropped(images_BHWC, np.random.default_rng((seed, CROPS, step)))
        yield StepImages(
            batch=_draw_batch(place_B, step, seed, flip=settings.flip, alpha=alpha),
            images_NHWC=torch.tensor(images_BHWC),
            labels_N=torch.from_numpy(labels_N[order_SB[step]]),
            row_B=place_B,
            to_input=to_input,
        )


def _draw_batch(place_B: Indices, step: int, seed: int, *, flip: bool, alpha: float) -> Batch:
    flipped_B, partner_B, share = None, None, 1.0
    if flip:
        generator = np.random.default_rng((seed, FLIPS, step))
        flipped_B = torch.from_numpy(generator.random(len(place_B)) < 0.5)
    if alpha:
        generator = np.random.default_rng((seed, MIXUP, step))
        partner_B, share = generator.permutation(place_B), float(generator.beta(alpha, alpha))
    return Batch(position_B=place_B, flipped_B=flipped_B, partner_B=partner_B, share=share)


def _pixels(images: Images, index_N: Integers, order_SB: Integers) -> Iterator[Pixels]:
    [first_BHWC] = images.batches(index_N[:1], 1)
    if first_BHWC.nbytes * len(index_N) > RESIDENT_BYTES:
        yield from images.batches(index_N[order_SB.ravel()], order_SB.shape[1])
        return
    images_NHWC = np.concatenate(list(images.batches(index_N, READ_IMAGES)))
    for place_B in order_SB:
        yield images_NHWC[place_B]


def _cropped(images_BHWC: Pixels, generator: np.random.Generator) -> Pixels:
    """Another random square of each image, at the size that it has."""
    size = images_BHWC.shape[1]
    side = round(size * (128 / 160 if size < 96 else 384 / 448))
    corners = generator.integers(0, size - side + 1, (len(images_BHWC), 2)).tolist()
    boxes = [(left, top, left + side, top + side) for left, top in corners]
    return np.stack([view(image, size, lambda *_, b=box: b) for image, box in zip(images_BHWC, boxes, strict=True)])


def train(
    model: nn.Module,
    batches: Iterable[StepImages | StepFeatures],
    *,
    rate: float,
    num_steps: int,
    device: Device,
    micro_batch: int | None = None,
) -> str | None:
    """Why the model that came out cannot be used, or None: its losses and weights are finite.

    One step a batch, of which there are `num_steps`; `rate` is the learning rate between warm-up and first decay.
    """
    groups = [{"params": list(model.parameters()), "base_lr": rate}]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM)
    # One-dimensional: torch-xla would compile numbers without dimensions into the program.
    finite, num_finite = (torch.tensor([number], device=device.torch_device) for number in (1, 0))
    for step, batch in enumerate(batches):
        set_learning_rate(optimizer, rate_factor(step, num_steps))
        optimizer.zero_grad(set_to_none=True)
        loss = _backward(model, batch, device, micro_batch)
        optimizer.step()
        finite = finite * loss.isfinite()
        num_finite = num_finite + finite
        device.end_step()
        if step % LOOKED_AFTER == 0 and not finite.item():
            break
    if not finite.item():
        return (
            f"fine-tuning diverged: the loss of step {int(num_finite) + 1} of {num_steps} is not finite (rate {rate:g})"
        )
    held = [tensor.isfinite().all() for tensor in model.state_dict().values()]
    return None if bool(torch.stack(held).all()) else f"fine-tuning diverged: weights are not finite (rate {rate:g})"


def _backward(
    model: nn.Module, batch: StepImages | StepFeatures, device: Device, micro_batch: int | None
) -> torch.Tensor:
    """The batch's mean loss [1], whose gradients are those of all its pieces."""
    total = torch.zeros(1, device=device.torch_device)
    place_B = np.arange(len(batch))
    pieces = np.array_split(place_B, -(-len(place_B) // (micro_batch or len(place_B))))
    for place_P in pieces:
        loss = _sum_of_losses(model, batch, place_P, device) / len(place_B)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        total = total + loss.detach()
        if len(pieces) > 1:
            device.end_step()  # or nothing would be freed between the pieces
    return total


def _sum_of_losses(
    model: nn.Module, batch: StepImages | StepFeatures, place_P: Indices, device: Device
) -> torch.Tensor:
    drawn, logits_PC = batch.batch, model(batch.inputs(place_P, device)).float()

    def cross_entropy(place_P: Indices) -> torch.Tensor:
        return functional.cross_entropy(logits_PC, device.put(batch.labels(place_P)), reduction="sum")

    if drawn.partner_B is None:
        return cross_entropy(place_P)
    share = device.scalar(drawn.share)
    return share * cross_entropy(place_P) + (1 - share) * cross_entropy(drawn.partner_B[place_P])
