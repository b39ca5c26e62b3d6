"""Checkpoints: a folder a step, written whole or not at all, without a pickle.

step_00001000/
weights.safetensors     the model
optimizer.safetensors   the optimiser's tensors, named by parameter index and key
state.json              step, data position, what else a resumed run needs
metrics.json            what was measured at this step
DONE                    written last: without it the folder does not count
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from models.errors import CheckpointError


def step_folder(root: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` optimiser steps."""
    return root / f"step_{step:08d}"


def finalised_steps(root: Path) -> list[int]:
    """The steps with a finalised checkpoint under `root`, ascending; none when `root` is not there."""
    if not root.is_dir():
        return []
    return sorted(int(done.parent.name.removeprefix("step_")) for done in root.glob("step_[0-9]*/DONE"))


def save_checkpoint(
    root: Path,
    step: int,
    *,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    metrics: dict[str, Any],
) -> Path:
    """The finalised folder. A failure (a full disk) leaves earlier checkpoints as they were and no half-written one.

    Raises:
        OSError: the disk is full or the folder cannot be written; the message names it.
    """
    target = step_folder(root, step)
    draft = root / f".draft-{step:08d}-{os.getpid()}"
    root.mkdir(parents=True, exist_ok=True)
    for abandoned in root.glob(".draft-*"):  # by an attempt that was killed: one attempt writes at a time
        shutil.rmtree(abandoned, ignore_errors=True)
    try:
        draft.mkdir()
        _save_tensors(_contiguous(model.state_dict()), draft / "weights.safetensors")
        _save_tensors(_optimizer_tensors(optimizer), draft / "optimizer.safetensors")
        _write_json(draft / "state.json", {"step": step, "torch_rng": _rng_hex(), **state})
        _write_json(draft / "metrics.json", metrics)
        for path in draft.iterdir():
            _fsync(path)
        (draft / "DONE").touch()
        if target.exists():  # an earlier attempt died before its DONE, or this step is trained again
            shutil.rmtree(target)
        draft.replace(target)
        _fsync(root)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise OSError(error.errno, f"checkpoint of step {step} not written: {error.strerror}", str(target)) from error
    return target


def load_checkpoint(folder: Path, *, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The saved state, after the model, the optimiser and torch's generator hold what they held at that step.

    Raises:
        CheckpointError: a file is missing or torn, or the checkpoint is of another model.
    """
    load_weights(folder, model)
    state = read_json(folder / "state.json")
    _restore_optimizer(optimizer, _load_tensors(folder / "optimizer.safetensors"), folder)
    torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state["torch_rng"]), dtype=torch.uint8))
    return state


def load_weights(folder: Path, model: torch.nn.Module) -> None:
    """Fills `model` in place.

    Raises:
        CheckpointError: the weights are missing, torn, or do not fit the model.
    """
    tensors = _load_tensors(folder / "weights.safetensors")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: the weights are of another model: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint.

    Raises:
        CheckpointError: the file is missing or not a JSON object.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds no JSON object")
    return value


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return _contiguous({f"{i}.{key}": torch.as_tensor(v) for i, entry in state.items() for key, v in entry.items()})


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    saved: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        saved.setdefault(int(index), {})[key] = tensor
    current = optimizer.state_dict()
    num_parameters = sum(len(group["params"]) for group in current["param_groups"])
    if any(index >= num_parameters for index in saved):
        raise CheckpointError(f"{folder}: the optimiser's state is of another model")
    optimizer.load_state_dict({"state": saved, "param_groups": current["param_groups"]})


def _save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        # safetensors reports what the operating system said only in its text.
        full = "No space left" in str(error) or "os error 28" in str(error)
        raise OSError(28 if full else 5, "No space left on device" if full else str(error), str(path)) from error


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: missing or torn: {error}") from error


def _rng_hex() -> str:
    return bytes(torch.get_rng_state().numpy()).hex()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, allow_nan=True, indent=1))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
