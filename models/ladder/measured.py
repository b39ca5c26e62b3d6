"""What timm models cost: measured in a child process, which alone imports torch, and remembered in a cache folder.

A measurement is a pure function of the model's name, images and classes and of the versions of timm and torch, so it
is kept in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache): `upshot/timm-VERSION-torch-VERSION/`. What cannot
be kept there is measured again.
"""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from models.errors import UserError
from models.ladder.shapes import Architecture

_START_S, _MODEL_S = 600, 120  # a child process is given so long to start, and so much more for each model
_FORMAT = 1  # of what is kept; a change of what is measured makes it one more


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What the closed forms of `models.ladder.costs` give for the other families, of one image where that matters.

    Attributes:
        params: parameters, head included.
        forward_flops: as torch's FlopCounterMode counts them.
        train_flops: of forward and backward pass.
        kept: elements kept for the backward pass that autocast keeps in bfloat16.
        kept_wide: those that stay in float32.
        num_dropped: activations that dropout draws for.
        num_layers: block outputs to probe.
        layer_elements: numbers that these outputs hold together.
        batch_norm: whether what the model learns depends on how a batch is split.
        dropout: whether it knows dropout.
        drop_path: whether it knows stochastic depth.
    """

    params: int
    forward_flops: int
    train_flops: int
    kept: int
    kept_wide: int
    num_dropped: int
    num_layers: int
    layer_elements: int
    batch_norm: bool
    dropout: bool
    drop_path: bool


_known: dict[Architecture, Measurement] = {}


def measurement(a: Architecture) -> Measurement:
    """The measurement of one timm model.

    Raises:
        UserError: it cannot be used, or could not be measured.
    """
    if a not in _known:
        for fault in measure((a,)).values():
            raise UserError(fault)
    return _known[a]


def measure(architectures: Iterable[Architecture]) -> dict[Architecture, str]:
    """Why some of these timm models cannot be used; `measurement` then knows all others. One child process at most.

    Raises:
        UserError: the child process failed.
    """
    wanted = [a for a in dict.fromkeys(architectures) if a not in _known]
    for a in wanted:
        kept = _read(a)
        if kept is not None:
            _known[a] = kept
    missing = [a for a in wanted if a not in _known]
    faults: dict[Architecture, str] = {}
    for a, answer in zip(missing, _ask_child(missing) if missing else [], strict=True):
        if "error" in answer:
            faults[a] = answer["error"]
        else:
            _known[a] = Measurement(**answer["measurement"])
            _write(a, _known[a])
    return faults


def _ask_child(architectures: list[Architecture]) -> list[dict[str, Any]]:
    root = str(Path(__file__).parents[2])  # where this very code lies, whatever the working directory holds
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    # Shapes alone are looked at: no accelerator is taken, and no plug-in of torch's is loaded that would take one.
    environment = {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    names = ", ".join(sorted({a.size for a in architectures}))
    limit_s = _START_S + _MODEL_S * len(architectures)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "models.measure"],
            input=json.dumps([asdict(a) for a in architectures]),
            capture_output=True,
            text=True,
            env=os.environ | environment,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"timm {names}: could not be measured within {limit_s:g} seconds") from error
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise UserError(f"timm {names}: could not be measured (exit code {done.returncode}):\n{last}")
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


# --- the cache folder ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _versions() -> str:
    return f"{_FORMAT}-timm-{version('timm')}-torch-{version('torch')}"


def _path(a: Architecture) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = f"{a.size}-{a.image_size}-{a.in_channels}-{a.num_classes}.json"
    return cache / "upshot" / f"measured-{_versions()}" / name


def _read(a: Architecture) -> Measurement | None:
    try:
        return Measurement(**json.loads(_path(a).read_text()))
    except (OSError, RuntimeError, ValueError, TypeError):  # not there, no home, torn, or of other fields
        return None


def _write(a: Architecture, found: Measurement) -> None:
    with suppress(OSError, RuntimeError):  # a folder that cannot be written costs time, nothing else
        path = _path(a)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        draft.write_text(json.dumps(asdict(found)))
        draft.replace(path)
