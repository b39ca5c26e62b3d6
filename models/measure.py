"""What a timm model costs, found by building it: `python -m models.measure` does it for a process without torch.

It reads a JSON list of architectures on standard input and answers on standard output with a list of the same length:
{"measurement": {...}} or {"error": "why the model cannot be used"}. Nothing is computed and no weight is held: models
are built on the meta device, and what autograd keeps is counted on fake tensors.

Shape suffixes: B images, C channels or classes, D features.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from models.errors import UserError
from models.ladder import Architecture, Measurement
from models.timm_models import accepted_options, timm_model

NUM_IMAGES = 2  # batch norm refuses one image
DROPOUT = 0.5


def measure(a: Architecture) -> Measurement:
    """The costs of one model.

    FLOPs are those of torch's FlopCounterMode, without what fused attention computes a second time. A backward pass
    costs twice the forward pass at most: of grouped convolutions the counter says more than is true. Memory is what
    autograd keeps of two images, halved, so it is a little high where something is kept once for a whole batch.

    Raises:
        UserError: there is no such model, or it does not suit the images, or cannot be trained and judged here.
    """
    with torch.device("meta"):
        model: Any = timm_model(a)
        x_BCHW = torch.empty(NUM_IMAGES, a.in_channels, a.image_size, a.image_size)
    _check_patch(model, a)
    forward_flops = _forward_flops(model, x_BCHW, a)
    layers = _layers(model, x_BCHW, a)
    _check_head(model, a)
    kept, kept_wide = _kept(a, x_BCHW)
    accepted = accepted_options(a.size, a.image_size, a.in_channels, a.num_classes)
    return Measurement(
        params=sum(p.numel() for p in model.parameters()),
        forward_flops=forward_flops,
        train_flops=_train_flops(model, x_BCHW, at_most=3 * forward_flops),
        kept=kept,
        kept_wide=kept_wide,
        num_dropped=_num_dropped(a, x_BCHW, kept + kept_wide) if "drop_rate" in accepted else 0,
        num_layers=len(layers),
        layer_elements=sum(layer.numel() for layer in layers) // NUM_IMAGES,
        batch_norm=any(isinstance(module, _BatchNorm) for module in model.modules()),
        dropout="drop_rate" in accepted,
        drop_path="drop_path_rate" in accepted,
    )


def _check_patch(model: Any, a: Architecture) -> None:
    """Refuses images whose rightmost and lowest pixels a model would never see."""
    embedding = getattr(model, "patch_embed", None)
    sides = getattr(embedding, "patch_size", None)
    if not isinstance(sides, tuple) or getattr(embedding, "dynamic_img_pad", False):
        return
    if any(a.image_size % side for side in sides):
        raise UserError(f"timm {a.size}: its patches of {sides[0]} pixels do not divide images of {a.image_size}")


def _forward_flops(model: nn.Module, x_BCHW: torch.Tensor, a: Architecture) -> int:
    try:
        with FlopCounterMode(display=False) as counter:  # which cannot follow every model under no_grad
            logits_BC = model.eval().requires_grad_(False)(x_BCHW)
    except Exception as error:  # whatever a model raises on images that do not suit it
        raise UserError(
            f"timm {a.size}: does not take images of {a.image_size} pixels: {_first_line(error)}"
        ) from error
    if not isinstance(logits_BC, torch.Tensor) or logits_BC.shape != (len(x_BCHW), a.num_classes):
        raise UserError(f"timm {a.size}: does not give one number a class, so it cannot be trained here")
    return int(counter.get_total_flops()) // len(x_BCHW)


def _train_flops(model: nn.Module, x_BCHW: torch.Tensor, at_most: int) -> int:
    with suppress(Exception), FlopCounterMode(display=False) as counter:  # it cannot follow every backward pass
        model.train().requires_grad_(True)(x_BCHW).sum().backward()
        return min(at_most, int(counter.get_total_flops()) // len(x_BCHW))
    return at_most


def _layers(model: Any, x_BCHW: torch.Tensor, a: Architecture) -> list[torch.Tensor]:
    """The block outputs that `evals.features` probes, without the pre-logits features."""
    try:
        with torch.no_grad():
            final, layers = model.eval().forward_intermediates(x_BCHW)
            features_BD = model.forward_head(final, pre_logits=True)
    except Exception as error:  # whatever a model raises that has no features in timm's sense
        raise UserError(f"timm {a.size}: gives no features to judge: {_first_line(error)}") from error
    if features_BD.ndim != 2 or not all(isinstance(layer, torch.Tensor) and layer.ndim == 4 for layer in layers):
        raise UserError(f"timm {a.size}: gives no feature vectors to judge")
    return list(layers)


def _check_head(model: Any, a: Architecture) -> None:
    head = model.get_classifier()
    if not isinstance(head, nn.Module) or not any(True for _ in head.parameters()):
        raise UserError(
            f"timm {a.size}: its head is not one layer with weights, so it cannot have a learning rate of its own"
        )


# --- what autograd keeps -------------------------------------------------------------------------------------------


def _kept(a: Architecture, x_BCHW: torch.Tensor, dropout: float = 0.0) -> tuple[int, int]:
    """(elements that autocast keeps in bfloat16, elements that stay in float32), of one image.

    The latter are what enters layer and group norms, which CUDA computes in float32, and integers.
    """
    kept = _kept_bytes(a, x_BCHW, dropout)
    total, wide = (round(num / (4 * len(x_BCHW))) for num in kept)
    wide = min(total, wide)
    return total - wide, wide


def _kept_bytes(a: Architecture, x_BCHW: torch.Tensor, dropout: float) -> tuple[int, int]:
    """(bytes that a training step keeps beside weights and buffers, those of them that stay in float32).

    As on a CPU where torch can fake one, with fused attention; else as on the meta device, without.
    """
    with torch.device("meta"):
        models = [timm_model(a, dropout=dropout) for _ in range(2)]  # one that failed may be left half changed
    with suppress(Exception), FakeTensorMode():  # it fails where a model made tensors outside its buffers
        state = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype).requires_grad_(isinstance(tensor, nn.Parameter))
            for name, tensor in _state(models[0]).items()
        }
        return _saved_bytes(models[0], state, torch.empty(x_BCHW.shape))
    return _saved_bytes(models[1], _state(models[1]), x_BCHW)


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict((*model.named_parameters(), *model.named_buffers()))


@contextmanager
def _norm_inputs(model: nn.Module) -> Iterator[list[int]]:
    """The elements that enter each layer norm or group norm while the block runs."""
    found: list[int] = []

    def count(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        found.append(given[0].numel())

    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm | nn.GroupNorm)]
    hooks = [module.register_forward_pre_hook(count) for module in norms]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _saved_bytes(model: nn.Module, state: dict[str, torch.Tensor], x_BCHW: torch.Tensor) -> tuple[int, int]:
    own = {tensor.untyped_storage()._cdata for tensor in state.values()}
    saved: dict[int, tuple[torch.UntypedStorage, bool]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # Held, so that no other storage gets its address.
        saved[tensor.untyped_storage()._cdata] = (tensor.untyped_storage(), tensor.dtype in (torch.int64, torch.int32))
        return tensor

    with _norm_inputs(model) as norms, saved_tensors_hooks(keep, lambda tensor: tensor):
        logits_BC = torch.func.functional_call(model.train(), state, (x_BCHW,))
    kept = [(storage.nbytes(), integers) for key, (storage, integers) in saved.items() if key not in own]
    assert logits_BC.requires_grad  # and is held until here, as what it keeps must be
    wide = 4 * sum(norms) + sum(size for size, integers in kept if integers)
    return sum(size for size, _ in kept), wide


def _num_dropped(a: Architecture, x_BCHW: torch.Tensor, without: int) -> int:
    """The activations of one image that dropout draws for: what is kept more with it than without."""
    return max(0, sum(_kept(a, x_BCHW, DROPOUT)) - without)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"


def main() -> None:
    """Answers one request."""
    answer_to, sys.stdout = sys.stdout, sys.stderr  # libraries print
    answers: list[dict[str, Any]] = []
    for fields in json.load(sys.stdin):
        try:
            answers.append({"measurement": asdict(measure(Architecture(**fields)))})
        except UserError as error:
            answers.append({"error": str(error)})
    json.dump(answers, answer_to)


if __name__ == "__main__":
    main()
