"""Fine-tuning: a trained model, or its head alone, trained on with the images of a task.

Shape suffixes: N images, B images of a batch, P of a piece of it, H and W pixels, C channels or classes, D features.

The rule is BiT-HyperRule (arXiv 1912.11370, section 3.3; `evals.schedule` has its numbers): every weight is trained,
from a head of zeros. Batch norm, which its models do not have (they have group norm), goes on as in training: it
normalises by the images at hand and updates its running statistics, which predictions then use.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from evals.datasets import Images, Pixels
from evals.fewshot import Features, Integers, are_constant
from evals.schedule import FineTune
from evals.training import READ_IMAGES, order, step_features, step_images, train
from models.device import Device, device_of
from models.errors import UserError
from models.inputs import ToInput, to_input

NO_CLASS: Final = -1
"""The prediction for an image whose scores are not finite: it is no class, so it is never right."""


class _Classifier(Protocol):
    """What timm's models share, and `torch.nn.Module` does not declare."""

    def reset_classifier(self, num_classes: int) -> None: ...

    def get_classifier(self) -> nn.Module | tuple[nn.Module, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Finetuned:
    """A model that was fine-tuned, or why there is none: then all but `reason` is None."""

    model: nn.Module | None = None
    regularisation: float | None = None
    """The learning rate, chosen or given."""
    num_steps: int | None = None
    batch_size: int | None = None
    """The most images in a forward pass of `predict_batch`."""
    reason: str | None = None
    to_input: ToInput = to_input

    @torch.no_grad()  # torch-xla makes no views in inference mode
    def predict_batch(self, images_BHWC: Pixels) -> Integers:
        """The class with the highest score, the first of equals; `NO_CLASS` where a score is not finite."""
        assert self.model is not None, self.reason
        assert self.batch_size is not None
        device, classes = device_of(self.model), [np.empty(0, dtype=np.int64)]
        for start in range(0, len(images_BHWC), self.batch_size):
            images_PHWC = images_BHWC[start : start + self.batch_size]
            x_PCHW = self.to_input(device.put(device.filled(torch.tensor(images_PHWC), self.batch_size)))
            classes_P = _best(self.model(x_PCHW).float())
            device.end_step()
            classes.append(classes_P.cpu().numpy()[: len(images_PHWC)])
        return np.concatenate(classes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FinetunedHead:
    """A linear classifier that was trained on features, or why there is none: then all but `reason` is None."""

    weights_CD: npt.NDArray[np.float32] | None = None
    bias_C: npt.NDArray[np.float32] | None = None
    regularisation: float | None = None
    """The learning rate."""
    num_steps: int | None = None
    reason: str | None = None

    def predict(self, features_ND: Features) -> Integers:
        """The class with the highest score, the first of equals; `NO_CLASS` where a score is not finite."""
        assert self.weights_CD is not None, self.reason
        assert self.bias_C is not None
        # In torch, because numpy warns of overflow.
        x_ND = torch.from_numpy(features_ND.astype(np.float32))
        scores_NC = functional.linear(x_ND, torch.from_numpy(self.weights_CD), torch.from_numpy(self.bias_C))
        return _best(scores_NC).numpy()


def finetune(
    model: nn.Module,
    images: Images,
    index_N: Integers,
    *,
    num_classes: int,
    settings: FineTune,
    seed: int,
    choose_index_N: Integers | None = None,
    micro_batch: int | None = None,
    to_input: ToInput = to_input,
) -> Finetuned:
    """A copy of the model with a new head of zeros, trained on the images at `index_N`; the model stays as it is.

    With several learning rates or numbers of steps, each trains on `index_N` and the one that gets most of the images
    at `choose_index_N` right is taken (the smaller rate of equals, then the fewer steps); it then trains anew on both
    parts. No other image or label is read. On a CPU the same arguments give the same bits.

    A class without an image to train on (where nothing is chosen), a loss or weights that are not finite: there is a
    reason, and no model.

    Args:
        model: a timm model, on any device.
        images: the training part of a task, of the size that the model takes.
        index_N: which of them to train on.
        num_classes: how many classes can be predicted.
        settings: the rule.
        seed: of the order of images and of their views.
        choose_index_N: which images to choose on, none of them in `index_N`. With nothing to choose they are trained on
            as well.
        micro_batch: the most images in one forward pass, here and in predictions; None sets no limit but the batch.
            It changes results by rounding, but more where batch norm sees no more than these.
        to_input: what makes of images what the model takes.

    Raises:
        UserError: several settings to choose among, and no images to choose on.
        OSError, DataError: images could not be read.
    """
    both_N = index_N if choose_index_N is None else np.concatenate([index_N, choose_index_N])
    # VTAB-1k draws without regard to classes: one that it leaves out is never predicted.
    reason = _missing_class(images.labels_N[both_N], num_classes) if choose_index_N is None else None
    if reason is not None:
        return Finetuned(reason=reason)
    candidates, best = settings.candidates(len(both_N)), 0
    job = _Job(model, images, num_classes, settings, seed, micro_batch, device_of(model), to_input)
    with _generators_restored(job.device):
        if len(candidates) > 1:
            best, reason = _choose(job, index_N, choose_index_N)
        return Finetuned(reason=reason) if reason is not None else _fit(job, both_N, *candidates[best])


def finetune_head(
    features_ND: Features, labels_N: Integers, *, num_classes: int, settings: FineTune, seed: int
) -> FinetunedHead:
    """A head of zeros, trained on features by the rule that trains whole models.

    That is what a model with a frozen body, in evaluation mode, comes to: its images are encoded once, not in each
    step, so there are neither crops nor flips nor MixUp. It is computed on the CPU, in float32; the same arguments give
    the same bits. A class without an image, or features or weights that are not finite, give a reason.

    Args:
        features_ND: pre-logits features, or those of any layer.
        labels_N: their classes, from 0 to `num_classes` - 1.
        num_classes: how many classes can be predicted.
        settings: the rule.
        seed: of the order of images.

    Raises:
        UserError: several settings to choose among: there are no images to choose on.
    """
    candidates = settings.candidates(len(labels_N))
    if len(candidates) > 1:
        raise _no_images_to_choose_on(candidates)
    reason = _missing_class(labels_N, num_classes) or _unusable(features_ND)
    if reason is not None:
        return FinetunedHead(reason=reason)
    [(rate, num_steps)] = candidates
    head = _head_of_zeros(features_ND.shape[1], num_classes)
    order_SB = order(len(labels_N), settings.batch_size, num_steps, seed)
    batches = step_features(features_ND.astype(np.float32), labels_N.astype(np.int64), order_SB)
    reason = train(head, batches, rate=rate, num_steps=num_steps, device=Device(torch.device("cpu")))
    if reason is not None:
        return FinetunedHead(reason=reason)
    weights_CD, bias_C = (parameter.detach().numpy() for parameter in head.parameters())
    return FinetunedHead(weights_CD=weights_CD, bias_C=bias_C, regularisation=rate, num_steps=num_steps)


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """What all trainings of a choice have in common."""

    model: nn.Module
    images: Images
    num_classes: int
    settings: FineTune
    seed: int
    micro_batch: int | None
    device: Device
    to_input: ToInput


def _choose(job: _Job, index_N: Integers, choose_index_N: Integers | None) -> tuple[int, str | None]:
    """Which candidate is best, and a reason where none can be used: that of the gentlest."""
    candidates = job.settings.candidates(len(index_N))
    if choose_index_N is None:
        raise _no_images_to_choose_on(candidates)
    hits, reasons = [], []
    for rate, num_steps in candidates:
        fitted = _fit(job, index_N, rate, num_steps)
        reasons.append(fitted.reason)
        hits.append(-1 if fitted.reason is not None else _num_right(fitted, job.images, choose_index_N))
    return int(np.argmax(hits)), None if max(hits) >= 0 else reasons[0]


def _no_images_to_choose_on(candidates: list[tuple[float, int]]) -> UserError:
    return UserError(
        f"fine-tuning: {len(candidates)} settings (learning rates x numbers of steps) and no images to choose on: "
        "give one rate and one number of steps, or a part of the training images to choose on, as VTAB-1k has"
    )


@contextmanager
def _generators_restored(device: Device) -> Iterator[None]:
    devices = [device.torch_device] if device.torch_device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield


def _num_right(fitted: Finetuned, images: Images, index_N: Integers) -> int:
    labels_N, start, right = images.labels_N[index_N], 0, 0
    for images_BHWC in images.batches(index_N, READ_IMAGES):
        right += int((fitted.predict_batch(images_BHWC) == labels_N[start : start + len(images_BHWC)]).sum())
        start += len(images_BHWC)
    return right


def _fit(job: _Job, index_N: Integers, rate: float, num_steps: int) -> Finetuned:
    job.device.seed(job.seed)  # for random layers of the model, and of heads that timm makes anew
    model = _with_new_head(job.model, job.num_classes, job.device)
    order_SB = order(len(index_N), job.settings.batch_size, num_steps, job.seed)
    job.device.spread(model)
    batches = step_images(job.images, index_N, order_SB, job.settings, job.seed, job.to_input)
    reason = train(model, batches, rate=rate, num_steps=num_steps, device=job.device, micro_batch=job.micro_batch)
    if reason is not None:
        return Finetuned(reason=reason)
    return Finetuned(
        model=model.requires_grad_(False).eval(),
        regularisation=rate,
        num_steps=num_steps,
        batch_size=job.micro_batch or order_SB.shape[1],
        to_input=job.to_input,
    )


def _with_new_head(model: nn.Module, num_classes: int, device: Device) -> nn.Module:
    copied = copy.deepcopy(model).requires_grad_(True)
    classifier = cast("_Classifier", copied)
    classifier.reset_classifier(num_classes)
    heads = classifier.get_classifier()
    for head in heads if isinstance(heads, tuple | nn.ModuleList) else (heads,):  # some models average several
        # The last one of an MLP: zeros in two layers would keep each other from learning.
        _zero([module for module in head.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1])
    return copied.to(device.torch_device).train()


def _head_of_zeros(num_features: int, num_classes: int) -> nn.Linear:
    """Made without a draw from torch's random generator."""
    head = nn.Linear(num_features, num_classes, device="meta").to_empty(device="cpu")
    _zero(head)
    return head


@torch.no_grad()
def _zero(dense: nn.Module) -> None:
    for parameter in dense.parameters():
        parameter.zero_()


def _best(scores_NC: torch.Tensor) -> torch.Tensor:
    return scores_NC.argmax(1).where(scores_NC.isfinite().all(1), NO_CLASS)


def _missing_class(labels_N: Integers, num_classes: int) -> str | None:
    absent = np.flatnonzero(np.bincount(labels_N, minlength=num_classes) == 0)
    if len(absent) == 0:
        return None
    others = f" (nor have {len(absent) - 1} more classes)" if len(absent) > 1 else ""
    return f"class {absent[0]} of 0 to {num_classes - 1} has no image to train on{others}"


def _unusable(features_ND: Features) -> str | None:
    bad = len(features_ND) - int(np.isfinite(features_ND).all(axis=1).sum())
    if bad:
        return f"{bad} of {len(features_ND)} training images have features that are not finite"
    return (
        f"the features are the same for all {len(features_ND)} training images" if are_constant(features_ND) else None
    )
