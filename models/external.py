"""Models that were trained elsewhere: any timm model with the weights of a file, or with those that timm downloads.

Files are safetensors, or what `torch.save` made of a state dict. The latter are pickles, which could run any program:
they are read by torch's restricted reader, which makes tensors and plain containers and nothing else.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.models import load_state_dict
from torch import nn

from models.build import in_its_layout
from models.data import CentreCrop
from models.data.pixels import Interpolation, side
from models.errors import CheckpointError, CorruptCheckpointError, UserError
from models.inputs import Inputs
from models.timm_models import accepted_options, check_name

SAFETENSORS = ".safetensors"
PICKLES = (".pth", ".pt", ".bin", ".tar")
LISTED = 3  # names in a message

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PublicModel:
    """A model with its weights, on the CPU and in evaluation mode.

    Attributes:
        name: timm's, with the tag that was given.
        model: a timm model.
        inputs: how it wants images.
        num_classes: outputs of its head; 0 where it has none.
        params: the number of its parameters.
    """

    name: str
    model: nn.Module
    inputs: Inputs
    num_classes: int
    params: int

    @property
    def image_size(self) -> int:
        """Side of the squares that it takes, in pixels."""
        return side(self.inputs.square)


def model_with_weights(name: str, file: Path, image_size: int | None = None) -> PublicModel:
    """The timm model `name` with the weights of a file; its head has as many classes as that of the file.

    Weights may lie under `state_dict` or `model` and have the prefixes that torch.compile and DDP put before names; an
    average of the weights is taken where there is one (`state_dict_ema`, `model_ema`). Names of the published original
    are turned into timm's where timm knows how. With `image_size` it takes images of that size, where it can.

    Raises:
        CheckpointError: the file is no such file, would run a program, or is of another model.
        CorruptCheckpointError: it is torn.
        UserError: timm has no such model, or not for such images.
    """
    _check_timm_name(name)
    weights = read_weights(file)
    model = _built(name, image_size)
    converted = _converted(weights, model, name, file)
    num_classes = _num_classes(converted, model)
    if num_classes != model.num_classes:
        model = _built(name, image_size, num_classes=num_classes)
        converted = _converted(weights, model, name, file)
    _fill(model, converted, name, file)
    return _public(name, model, image_size)


def downloaded_model(name: str, image_size: int | None = None) -> PublicModel:
    """The timm model `name` with the weights that timm downloads for it, or has downloaded before.

    Raises:
        UserError: timm has no such model, no weights for it, or cannot get them.
    """
    _check_timm_name(name)
    return _public(name, _built(name, image_size, pretrained=True), image_size)


def read_weights(file: Path) -> Weights:
    """A file's tensors by name.

    Raises:
        CheckpointError: the file cannot be reached, has another ending, would run a program, or holds no weights.
        CorruptCheckpointError: it is torn.
    """
    if file.suffix not in (SAFETENSORS, *PICKLES):
        known = ", ".join((SAFETENSORS, *PICKLES))
        raise CheckpointError(f"{file}: weights are read from files that end in {known}")
    try:
        file.open("rb").close()  # the readers call every file that they cannot open a missing one
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    try:
        found: Any = load_state_dict(str(file), use_ema=True, device="cpu", weights_only=True)
    except Exception as error:  # safetensors, torch, zip and pickle each have their own, without a common base
        raise _unreadable(file, error) from error
    others = [key for key, value in found.items() if not isinstance(value, torch.Tensor)]
    if others or not found:
        raise CheckpointError(
            f"{file}: holds no weights at its top, nor under state_dict, model, state_dict_ema or model_ema, but"
            f" {_listed(others) or 'nothing'}: save the state dict of the model alone"
        )
    return cast("Weights", found)


def _unreadable(file: Path, error: Exception) -> CheckpointError:
    """What to raise of a file that torch or safetensors refuses."""
    told = str(error)
    if "weights_only" in told:  # the word in every refusal of torch's restricted reader
        unsafe = _unsafe_globals(file)
        names = f" ({_listed(unsafe)})" if unsafe else ""
        return CheckpointError(
            f"{file}: holds more than tensors{names}, and to read that could run any program, so nothing was read."
            " Where you trust its source, load it yourself, and save its state dict with safetensors.torch.save_file"
        )
    first = told.strip().splitlines()[0].partition(". ")[0] if told.strip() else "no reason given"
    return CorruptCheckpointError(f"{file}: torn, or no file of weights: {type(error).__name__}: {first}")


def _unsafe_globals(file: Path) -> list[str]:
    """What the pickle would call; nothing where that cannot be told."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(file)))
    except Exception:  # of a file that torch did not write
        return []


# --- the model -----------------------------------------------------------------------------------------------------


def _check_timm_name(name: str) -> None:
    """Refuses names that would fetch something other than a model of timm's own list, and tags that it has not."""
    architecture, _, tag = name.partition(".")
    check_name(architecture)
    known = [known.partition(".")[2] for known in timm.list_models(f"{architecture}.*", include_tags=True)]
    if tag and tag not in known:
        raise UserError(f"timm {name}: {architecture} has no weights {tag!r} (known: {', '.join(known) or 'none'})")


def _built(name: str, image_size: int | None, **options: Any) -> Any:
    if image_size is not None and "img_size" in accepted_options(name.partition(".")[0], image_size, 3, 1):
        options["img_size"] = image_size
    try:
        return in_its_layout(timm.create_model(name, **options).eval())
    except Exception as error:  # whatever a model, a download or a cache raises
        told = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason'}"
        if not options.get("pretrained"):
            raise UserError(f"timm {name}: cannot be built: {told}") from error
        raise UserError(
            f"timm {name}: its weights cannot be had: {told}. Without internet, download them elsewhere and give the"
            " file as --checkpoint"
        ) from error


def _converted(weights: Weights, model: Any, name: str, file: Path) -> Weights:
    """The weights under timm's names, for a model with these shapes; timm keeps the way beside each model."""
    entrypoint = timm.model_entrypoint(name.partition(".")[0])
    convert: Callable[..., Weights] | None = getattr(sys.modules[entrypoint.__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return dict(weights)
    try:
        return dict(convert(dict(weights), model))
    except Exception as error:  # each expects the names of its own kind of model
        raise CheckpointError(f"{file}: is not of timm {name}: it has {_listed(list(weights))}") from error


def _num_classes(weights: Weights, model: Any) -> int:
    """The classes of the file's head; 0 where it has none, the model's own where timm does not say what the head is."""
    named = model.pretrained_cfg.get("classifier")
    heads = (named,) if isinstance(named, str) else tuple(named or ())
    found = [weights[f"{head}.weight"] for head in heads if f"{head}.weight" in weights]
    if found:
        return len(found[0])
    return 0 if heads else int(model.num_classes)


def _fill(model: nn.Module, weights: Weights, name: str, file: Path) -> None:
    own = model.state_dict()
    differing = [
        f"{key} ({list(weights[key].shape)} there, {list(own[key].shape)} here)"
        for key in own.keys() & weights.keys()
        if own[key].shape != weights[key].shape
    ]
    faults = [f"{len(differing):,} of another shape: {_listed(sorted(differing))}"] if differing else []
    if not differing:
        missing, unexpected = model.load_state_dict(weights, strict=False)
        faults += [f"{len(missing):,} are not in it: {_listed(missing)}"] if missing else []
        faults += [f"{len(unexpected):,} are only in it: {_listed(unexpected)}"] if unexpected else []
    if faults:
        raise CheckpointError(f"{file}: is not of timm {name}: of {len(own):,} tensors {'; '.join(faults)}")


def _public(name: str, model: Any, image_size: int | None) -> PublicModel:
    return PublicModel(
        name=name,
        model=model,
        inputs=inputs_of(name, model, image_size),
        num_classes=int(model.num_classes),
        params=sum(parameter.numel() for parameter in model.parameters()),
    )


def inputs_of(name: str, model: Any, image_size: int | None) -> Inputs:
    """How timm says that the model wants images; at its larger size for tests, what it says of that.

    Raises:
        UserError: images that are not square, or are made so in a way that is not known here.
    """
    tested = (model.pretrained_cfg.get("test_input_size") or (0,))[-1]
    asked = {} if image_size is None else {"img_size": image_size}
    config: Mapping[str, Any] = resolve_model_data_config(  # type: ignore[no-untyped-call]
        model, args=asked, use_test_size=image_size == tested
    )
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise UserError(f"timm {name}: takes images of {width} x {height} pixels and {channels} channels, not squares")
    if config["crop_mode"] not in ("center", "squash") or config["interpolation"] not in get_args(Interpolation):
        raise UserError(
            f"timm {name}: wants images {config['crop_mode']} and {config['interpolation']}, which nothing here does"
        )
    return Inputs(
        square=CentreCrop(
            image_size=height,
            share=float(config["crop_pct"]),
            interpolation=config["interpolation"],
            keeps_shape=config["crop_mode"] == "center",
        ),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
