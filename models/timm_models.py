"""Any timm model, by timm's own name, freshly initialised: weights are never downloaded."""

from difflib import get_close_matches
from functools import lru_cache

import timm
import torch
from torch import nn

from models.errors import UserError
from models.ladder import Architecture

_PROBE = 0.5  # a rate to try with
_OPTIONS = ("img_size", "drop_rate", "drop_path_rate")


def timm_model(a: Architecture, *, dropout: float = 0.0, drop_path: float = 0.0) -> nn.Module:
    """The model on torch's default device, for the images and classes of `a`.

    Raises:
        UserError: no such model, it does not take such images or a head of so many classes, or it knows no dropout or
            stochastic depth and is asked for it.
    """
    accepted = accepted_options(a.size, a.image_size, a.in_channels, a.num_classes)
    given: dict[str, float] = {"img_size": a.image_size, "drop_rate": dropout, "drop_path_rate": drop_path}
    for axis, rate, option in (("dropout", dropout, "drop_rate"), ("drop_path", drop_path, "drop_path_rate")):
        if rate and option not in accepted:
            raise UserError(f"timm {a.size}: the model has no {axis} ({option}); leave the axis at 0")
    options = {name: value for name, value in given.items() if name in accepted}
    return _created(a.size, in_chans=a.in_channels, num_classes=a.num_classes, **options)


@lru_cache(maxsize=1024)
def accepted_options(name: str, image_size: int, in_channels: int, num_classes: int) -> frozenset[str]:
    """Those of `img_size`, `drop_rate` and `drop_path_rate` that the model takes, and heeds.

    timm has no list of them, so it is tried, on the meta device and beside the random generator.

    Raises:
        UserError: no such model, or not for such images.
    """
    check_name(name)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return frozenset(
            option
            for option in _OPTIONS
            if _is_accepted(name, option, image_size, in_chans=in_channels, num_classes=num_classes)
        )


def check_name(name: str) -> None:
    """Returns if timm has a model of this name.

    Raises:
        UserError: it has not; the nearest are listed.
    """
    if timm.is_model(name):
        return
    near = get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
    nearest = f"nearest: {', '.join(near)}" if near else "timm.list_models() lists them"
    raise UserError(f"timm {name}: timm {timm.__version__} has no model of this name ({nearest})")


def _is_accepted(name: str, option: str, image_size: int, **head: float) -> bool:
    try:
        value = image_size if option == "img_size" else _PROBE
        model = _created(name, **head, **{option: value})
    except TypeError as error:
        if option in str(error):
            return False
        raise UserError(f"timm {name}: cannot be built: {error}") from error
    return option == "img_size" or _numbers(model) != _numbers(_created(name, **head, **{option: 0.0}))


def _numbers(model: nn.Module) -> list[float]:
    """Every fraction that a module holds, rates of dropout among them: a rate that is not heeded changes none."""
    return [held for module in model.modules() for held in vars(module).values() if isinstance(held, float)]


def _created(name: str, **options: float) -> nn.Module:
    """The model.

    Raises:
        UserError: timm refuses the image size, the channels or the classes.
        TypeError: the model does not take one of the options that `accepted_options` tries.
    """
    try:
        return timm.create_model(name, pretrained=False, **options)  # type: ignore[arg-type]
    except TypeError as error:
        for option in ("in_chans", "num_classes"):
            if option in str(error):
                raise UserError(f"timm {name}: the model does not take `{option}`, so it cannot be used") from error
        raise
    except Exception as error:  # whatever a model raises where a size does not suit it
        what = ", ".join(f"{option} {value:g}" for option, value in options.items())
        raise UserError(f"timm {name}: cannot be built with {what}: {type(error).__name__}: {error}") from error
