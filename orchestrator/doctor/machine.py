"""Checks of this machine: Python, packages, Weights & Biases. None of the packages is imported."""

import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from models.errors import UserError
from orchestrator.doctor.checks import Check, advice, mend, ok
from orchestrator.study import Wandb
from orchestrator.tracking import default_mode, find_key

PACKAGES = ("torch", "torchvision", "timm", "safetensors", "submitit", "polars", "altair", "tensorboard", "wandb")


def check_packages() -> Iterator[Check]:
    """Python, Upshot and what a study needs."""
    yield ok("python", f"{platform.python_version()} in {sys.prefix}")
    found = {name: _version(name) for name in ("upshot", *PACKAGES)}
    missing = [name for name, number in found.items() if number is None]
    if missing:
        yield mend("packages", f"not installed: {', '.join(missing)}", "install Upshot anew, with what it depends on")
    else:
        yield ok("packages", ", ".join(f"{name} {number}" for name, number in found.items()))


def check_wandb(wandb: Wandb) -> Iterator[Check]:
    """The mode that cells would be mirrored in, and whether there is a key for it. Nothing is sent."""
    try:
        mode = default_mode() if wandb.mode == "auto" else wandb.mode
    except UserError as error:
        yield mend("wandb", str(error), "unset it, or set it to one of these")
        return
    where = f"project {wandb.project}" + (f" of {wandb.entity}" if wandb.entity else "")
    key = find_key()
    if mode == "disabled":
        yield ok("wandb", "off: the study asks for no mirror")
    elif mode == "online" and key is None:
        yield mend("wandb", f"online, {where}, but there is no key", "`wandb login`, or set WANDB_API_KEY")
    elif mode == "online":
        yield ok("wandb", f"online, {where}, with the key of {key}; nodes without internet want mode = offline")
    elif key is None:
        yield advice(
            "wandb",
            f"offline, {where}; no key here",
            "`wandb login` before `upshot sync`, or set wandb.mode = disabled",
        )
    else:
        yield ok("wandb", f"offline, {where}; `upshot sync` will use the key of {key}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
