"""Checkpoints: a folder a step, written whole or not at all, without a pickle.

step_00001000/
weights.safetensors     the model: what is measured
raw.safetensors         the weights that training goes on from, where those of the model are their average
optimizer.safetensors   the optimiser's tensors, named by parameter index and key
state.json              step, data position, what else a resumed run needs
metrics.json            what was measured at this step
DONE                    written last: without it the folder does not count
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from models.errors import CheckpointError, CorruptCheckpointError

WEIGHTS = "weights.safetensors"
RAW = "raw.safetensors"
RESUME = "resume"  # the folder, beside the numbered checkpoints, of what is only for going on from


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
    average: torch.nn.Module | None = None,
    state: dict[str, Any],
    metrics: dict[str, Any],
) -> Path:
    """The finalised folder. A failure (a full disk) leaves earlier checkpoints as they were and no half-written one.

    Where there is an `average` of the model's weights, it is what is measured.

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
        _save_tensors(_contiguous((model if average is None else average).state_dict()), draft / WEIGHTS)
        if average is not None:
            _save_tensors(_contiguous(model.state_dict()), draft / RAW)
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


def load_newest(
    roots: Sequence[Path],
    *,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    average: torch.nn.Module | None = None,
    on_corrupt: Callable[[int, CorruptCheckpointError, Path], None],
) -> tuple[Path, dict[str, Any]] | None:
    """The newest readable checkpoint under `roots`, loaded: its folder and its state; None where there is none.

    Corrupt ones are passed over and moved to the first root as `corrupt-step_XXXXXXXX`, after which `on_corrupt` hears
    the step, the error and the new path.

    Raises:
        CheckpointError: one is of another model, or cannot be reached: an older one would hide that.
        OSError: a corrupt one could not be moved.
    """
    found = [(step, root) for root in roots for step in finalised_steps(root)]
    for step, root in sorted(found, key=lambda pair: pair[0], reverse=True):  # stable: of equals, the first root's
        folder = step_folder(root, step)
        try:
            return folder, load_checkpoint(folder, model=model, optimizer=optimizer, average=average)
        except CorruptCheckpointError as error:
            on_corrupt(step, error, _moved_aside(folder, roots[0]))
    return None


def load_checkpoint(
    folder: Path,
    *,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    average: torch.nn.Module | None = None,
) -> dict[str, Any]:
    """The saved state, after the model, the optimiser and torch's generator hold what they held at that step.

    So does the `average` of the model's weights, where one is kept.

    Raises:
        CorruptCheckpointError: a file is missing or torn; nothing was changed.
        CheckpointError: the checkpoint is of another model, or cannot be reached.
    """
    weights = _fitting_weights(folder / WEIGHTS, model)
    raw = weights if average is None else _fitting_weights(folder / RAW, model)
    state = _read_state(folder)
    entries = _optimizer_entries(folder / "optimizer.safetensors")
    model.load_state_dict(raw)
    if average is not None:
        average.load_state_dict(weights)
    _restore_optimizer(optimizer, entries, folder)
    torch.set_rng_state(_rng_tensor(state["torch_rng"]))
    return state


def load_weights(folder: Path, model: torch.nn.Module) -> None:
    """Fills `model` in place.

    Raises:
        CorruptCheckpointError: the weights are missing or torn.
        CheckpointError: they do not fit the model, or cannot be reached.
    """
    model.load_state_dict(_fitting_weights(folder / WEIGHTS, model))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint.

    Raises:
        CorruptCheckpointError: the file is missing or not a JSON object.
        CheckpointError: it cannot be reached.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(value, dict):
        raise CorruptCheckpointError(f"{path}: holds no JSON object")
    return value


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    """What to raise: a file system that does not answer says nothing of the checkpoint."""
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        return CheckpointError(f"{path}: cannot be reached: {error}")
    return CorruptCheckpointError(f"{path}: missing or torn: {error}")


def _moved_aside(folder: Path, root: Path) -> Path:
    """Where a corrupt checkpoint lies from now on: it is kept, for whoever wants to know what happened to it."""
    target, number = root / f"corrupt-{folder.name}", 1
    while target.exists():
        number += 1
        target = root / f"corrupt-{folder.name}.{number}"
    return folder.rename(target)


def _fitting_weights(path: Path, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    tensors = _load_tensors(path)
    wanted = {(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    differing = sorted(wanted ^ {(name, tuple(tensor.shape)) for name, tensor in tensors.items()})
    if differing:
        names = ", ".join(f"{name} {list(shape)}" for name, shape in differing[:3])
        raise CheckpointError(f"{path.parent}: the weights are of another model: only one of the two has {names}")
    return tensors


def _read_state(folder: Path) -> dict[str, Any]:
    path = folder / "state.json"
    state = read_json(path)
    try:
        whole = type(state["step"]) is int and _rng_tensor(state["torch_rng"]).shape == torch.get_rng_state().shape
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptCheckpointError(f"{path}: not the state of a checkpoint: {error!r}") from error
    if not whole:
        raise CorruptCheckpointError(f"{path}: not the state of a checkpoint")
    return state


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return _contiguous({f"{i}.{key}": torch.as_tensor(v) for i, entry in state.items() for key, v in entry.items()})


def _optimizer_entries(path: Path) -> dict[int, dict[str, torch.Tensor]]:
    """The optimiser's tensors by parameter index and key."""
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in _load_tensors(path).items():
        index, key = name.split(".", 1)
        entries.setdefault(int(index), {})[key] = tensor
    return entries


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, entries: dict[int, dict[str, torch.Tensor]], folder: Path
) -> None:
    current = optimizer.state_dict()
    num_parameters = sum(len(group["params"]) for group in current["param_groups"])
    if any(index >= num_parameters for index in entries):
        raise CheckpointError(f"{folder}: the optimiser's state is of another model")
    optimizer.load_state_dict({"state": entries, "param_groups": current["param_groups"]})


def _save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        # safetensors reports what the operating system said only in its text.
        full = "No space left" in str(error) or "os error 28" in str(error)
        raise OSError(28 if full else 5, "No space left on device" if full else str(error), str(path)) from error


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        path.open("rb").close()  # safetensors calls every file that it cannot open a missing one
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def _rng_hex() -> str:
    return bytes(torch.get_rng_state().numpy()).hex()


def _rng_tensor(rng_hex: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(rng_hex), dtype=torch.uint8)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, allow_nan=True, indent=1))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
