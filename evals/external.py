"""Checkpoints outside a study to rows of the results table: public models, and a checkpoint folder on its own.

Shape suffixes: B images of a batch, C classes.
"""

import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from evals.datasets import TaskData, load_task
from evals.protocol import RESULT_SCHEMA, Protocol
from evals.runner import Backbone, LoadModel, Subject, evaluate_checkpoint
from models.checkpoint import read_json
from models.data import ImageSet, Square, StoredSet, describe, is_folder, load_images, open_stored, split
from models.data.parts import draw_parts
from models.data.pixels import decode, resize
from models.device import Device, pick_device
from models.errors import CorruptCheckpointError, DataError, UserError
from models.external import PublicModel
from models.inputs import to_input
from models.ladder import Architecture, architecture
from models.train import load_model

Tell = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is done, and of how much."""

UPSTREAM_BATCH = 64
NO_UPSTREAM = "the upstream accuracy of this model was not given"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """What a model is worth on the images that it was trained for; None where that is not known.

    Attributes:
        upstream_accuracy: top-1, a fraction.
        upstream_loss: mean cross-entropy.
        upstream_num_test: images that both were measured on.
        upstream_num_classes: outputs of the head.
    """

    upstream_accuracy: float | None = None
    upstream_loss: float | None = None
    upstream_num_test: int | None = None
    upstream_num_classes: int | None = None


def evaluate_public(
    public: PublicModel,
    *,
    cell_id: str,
    tasks: Sequence[str],
    protocols: Sequence[Protocol],
    upstream: Upstream,
    tell: Tell,
) -> pl.DataFrame:
    """Rows of `RESULT_SCHEMA`: of every task, protocol, shot count, draw and layer.

    Training FLOPs, steps and images seen are null: a public checkpoint does not tell them. Where the upstream accuracy
    is not known, the rows say so as their reason.

    Raises:
        UserError: the model gives no features, or a task's images are missing.
    """
    device = pick_device()
    model = public.model.to(device.torch_device)
    backbone = _backbone(public, device)
    checkpoint = {"params": public.params, "flops": None, "step": None, "examples_seen": None, **asdict(upstream)}
    rows = _rows(cell_id, backbone, checkpoint, tasks, protocols, Path(public.name), lambda _: model, tell)
    if upstream.upstream_accuracy is not None:
        return rows
    return rows.with_columns(pl.col("reason").fill_null(NO_UPSTREAM))


def evaluate_folder(
    folder: Path, *, cell_id: str, tasks: Sequence[str], protocols: Sequence[Protocol], tell: Tell
) -> pl.DataFrame:
    """The same of a checkpoint folder of a study, wherever it lies now; it tells its upstream accuracy itself.

    Raises:
        CheckpointError: it is not whole, or cannot be reached.
        UserError: a task's images are missing.
    """
    metrics = read_json(folder / "metrics.json")
    arch = _architecture(folder, metrics)
    return _rows(cell_id, Backbone.of(arch), metrics, tasks, protocols, folder, load_model(arch), tell)


def axes_of_folder(folder: Path) -> dict[str, Any]:
    """Those axes of the cell that its checkpoint tells: family, size and what else makes a model of another kind.

    Raises:
        CorruptCheckpointError: the folder is no finalised checkpoint.
    """
    if not (folder / "DONE").exists():
        raise CorruptCheckpointError(f"{folder}: no checkpoint: there is no DONE in it, which is written last")
    axes = read_json(folder / "state.json").get("origin")
    if not isinstance(axes, dict):
        raise CorruptCheckpointError(f"{folder / 'state.json'}: does not say what it is of (origin)")
    return axes


def _architecture(folder: Path, metrics: Mapping[str, Any]) -> Architecture:
    axes = axes_of_folder(folder)
    return architecture(
        axes["family"],
        axes["size"],
        image_size=axes["image_size"],
        num_classes=metrics["upstream_num_classes"],
        patch_size=axes["patch_size"],
    )


def _rows(
    cell_id: str,
    model: Backbone,
    checkpoint: Mapping[str, Any],
    tasks: Sequence[str],
    protocols: Sequence[Protocol],
    place: Path,
    load: LoadModel,
    tell: Tell,
) -> pl.DataFrame:
    num_begun = itertools.count()

    def load_counted(task: str, square: Square) -> TaskData:
        tell("judging tasks", next(num_begun), len(tasks))
        return load_task(task, square)

    with tempfile.TemporaryDirectory(prefix="upshot-evaluate-") as folder:
        subject = Subject(cell_id=cell_id, backbone=model, checkpoint=checkpoint)
        written = evaluate_checkpoint(
            place,
            Path(folder),
            subject,
            tasks=tasks,
            protocols=protocols,
            load_model=load,
            load_task=load_counted,
        )
        return pl.concat(pl.read_parquet(path) for path in written).select(list(RESULT_SCHEMA))


@torch.no_grad()
def _backbone(public: PublicModel, device: Device) -> Backbone:
    """What is found by encoding one black image."""
    model: Any = public.model
    size = public.image_size
    images_BHWC = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    try:
        x_BCHW = to_input(device.put(images_BHWC), public.inputs.mean, public.inputs.std)
        final, layers = model.forward_intermediates(x_BCHW)
        features_BD = model.forward_head(final, pre_logits=True)
        device.end_step()
    except Exception as error:  # whatever a model raises that takes no such images or has no features in timm's sense
        told = str(error).strip().splitlines()
        raise UserError(
            f"timm {public.name}: gives no features of images of {size} pixels: {told[0] if told else error!r}"
        ) from error
    if features_BD.ndim != 2 or not all(isinstance(layer, torch.Tensor) and layer.ndim == 4 for layer in layers):
        raise UserError(f"timm {public.name}: gives no feature vectors to judge")
    return Backbone(num_blocks=len(layers), layer_elements=sum(layer.numel() for layer in layers), inputs=public.inputs)


# --- the model's own head ------------------------------------------------------------------------------------------


@torch.no_grad()
def measure_head(public: PublicModel, dataset: str, tell: Tell) -> Upstream:
    """What the model's own head is worth on the held-out part of an image set, of which it must be the classifier.

    Outputs are the set's classes in order: by name in a folder of class folders. `tell` hears how many images are done.

    Raises:
        DataError: the set has another number of classes, or its images cannot be read.
    """
    device = pick_device()
    model = public.model.to(device.torch_device)
    num_classes = describe(dataset).num_classes
    if num_classes != public.num_classes:
        raise DataError(
            f"timm {public.name}: its head has {public.num_classes:,} classes, {dataset} has {num_classes:,}: its"
            " accuracy there cannot be measured; --upstream-accuracy takes a published one"
        )
    hits, loss, num_test = 0, 0.0, 0
    num_held_out, batches = _held_out(dataset, public.inputs.square)
    for images_BHWC, labels_B in batches:
        tell("measuring upstream", num_test, num_held_out)
        logits_BC = _logits(model, public, images_BHWC, device)
        y_B = torch.from_numpy(labels_B)
        hits += int((logits_BC.argmax(1) == y_B).sum())
        loss += float(functional.cross_entropy(logits_BC, y_B, reduction="sum"))
        num_test += len(y_B)
    if not math.isfinite(loss):
        raise UserError(f"timm {public.name}: its head gives numbers that are not finite: are these its weights?")
    return Upstream(
        upstream_accuracy=hits / num_test,
        upstream_loss=loss / num_test,
        upstream_num_test=num_test,
        upstream_num_classes=public.num_classes,
    )


def _logits(model: nn.Module, public: PublicModel, images_BHWC: NDArray[np.uint8], device: Device) -> torch.Tensor:
    x_BHWC = device.put(device.filled(torch.tensor(images_BHWC), UPSTREAM_BATCH))
    logits_BC: torch.Tensor = model(to_input(x_BHWC, public.inputs.mean, public.inputs.std))
    device.end_step()
    return logits_BC[: len(images_BHWC)].float().cpu()


Batches = Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]


def _held_out(dataset: str, square: Square) -> tuple[int, Batches]:
    """(number, images and labels) of the part that studies hold out of a set."""
    if is_folder(dataset):
        stored = open_stored(dataset)
        test = draw_parts(stored, {"fraction": 1.0, "classes": 1.0, "images": None, "seed": 0}).test.indices()
        return len(test), _of_stored(stored, test, square)
    images = load_images(dataset)
    test = split(images)[1]
    return len(test), _of_packaged(images, test, square)


def _of_packaged(images: ImageSet, test: NDArray[np.int64], square: Square) -> Batches:
    for start in range(0, len(test), UPSTREAM_BATCH):
        index_B = test[start : start + UPSTREAM_BATCH]
        yield resize(images.images_NHWC[index_B], square), images.labels_N[index_B]


def _of_stored(stored: StoredSet, test: NDArray[np.int64], square: Square) -> Batches:
    def one(index: int) -> tuple[NDArray[np.uint8], int]:
        encoded, label = stored.read(index)
        try:
            return decode(encoded, square), label
        except DataError as error:
            raise DataError(f"{stored.place(index)}: {error}") from error

    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
        for start in range(0, len(test), UPSTREAM_BATCH):
            found = list(pool.map(one, test[start : start + UPSTREAM_BATCH].tolist()))
            yield np.stack([image_HWC for image_HWC, _ in found]), np.array([label for _, label in found])
