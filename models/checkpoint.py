"""Checkpoints: a folder a step, written whole or not at all, without a pickle.

step_00001000/
weights.safetensors     the model: what is measured
raw.safetensors         the weights that training goes on from, where those of the model are their average
optimizer.safetensors   the optimiser's tensors, named by parameter index and key
state.json              step, data position, what else a resumed run needs
metrics.json            what was measured at this step
DONE                    written last: without it the folder does not count

They look the same whether one process wrote them or many, each its rows of every tensor: a run goes on from them with
any number of processes, sharded or not, and an evaluation reads them as they are. torch.distributed.checkpoint could do
the former, but its table of contents is a pickle, and its files are of one sharding until somebody rewrites them.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.distributed.tensor import DTensor

from models.errors import CheckpointError, CorruptCheckpointError
from models.shard import from_rows, own_rows_of, replicated
from models.tensor_file import Part, create, fill, read, shapes, whole_part

WEIGHTS = "weights.safetensors"
RAW = "raw.safetensors"
RESUME = "resume"  # the folder, beside the numbered checkpoints, of what is only for going on from
OPTIMIZER = "optimizer.safetensors"


def step_folder(root: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` optimiser steps."""
    return root / f"step_{step:08d}"


def finalised_steps(root: Path) -> list[int]:
    """The steps with a finalised checkpoint under `root`, ascending; none when `root` is not there."""
    if not root.is_dir():
        return []
    return sorted(int(done.parent.name.removeprefix("step_")) for done in root.glob("step_[0-9]*/DONE"))


# --- saving --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a checkpoint of a step will hold: JSON by file, and this process's parts of the tensors by file and name."""

    root: Path
    step: int
    attempt: str
    texts: Mapping[str, str]
    tensors: Mapping[str, Mapping[str, Part]]

    @property
    def draft(self) -> Path:
        """Where it is written."""
        return self.root / f".draft-{self.step:08d}-{self.attempt}"

    @property
    def target(self) -> Path:
        """Where it is once it is whole."""
        return step_folder(self.root, self.step)


def take_snapshot(
    root: Path,
    step: int,
    *,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    average: torch.nn.Module | None = None,
    state: dict[str, Any],
    metrics: dict[str, Any],
    attempt: str = "",
    part: Callable[[torch.Tensor], Part] = whole_part,
) -> Snapshot:
    """A checkpoint to be, of which the tensors are those in use.

    Where there is an `average` of the model's weights, it is what is measured. `attempt` is a name for all processes
    that write together, `part` gives what of a tensor this one writes.
    """
    tensors = {WEIGHTS: (model if average is None else average).state_dict(), OPTIMIZER: _optimizer_tensors(optimizer)}
    if average is not None:
        tensors[RAW] = model.state_dict()
    return Snapshot(
        root=root,
        step=step,
        attempt=attempt,
        texts={
            "state.json": _json({"step": step, "torch_rng": _rng_hex(), **state}),
            "metrics.json": _json(metrics),
        },
        tensors={file: {name: part(tensor) for name, tensor in named.items()} for file, named in tensors.items()},
    )


def begin(snapshot: Snapshot) -> None:
    """Makes the draft, with room for all tensors; one process does it, before any writes its parts.

    Raises:
        OSError: the folder cannot be written; as in `write` and `finalise`, the message names the step and the folder.
    """
    with _told(snapshot):
        snapshot.root.mkdir(parents=True, exist_ok=True)
        for abandoned in snapshot.root.glob(".draft-*"):  # by an attempt that was killed: one attempt writes at a time
            shutil.rmtree(abandoned, ignore_errors=True)
        snapshot.draft.mkdir()
        for file, text in snapshot.texts.items():
            _write_text(snapshot.draft / file, text)
        for file, parts in snapshot.tensors.items():
            create(snapshot.draft / file, parts)


def write(snapshot: Snapshot) -> None:
    """Writes this process's parts.

    Raises:
        OSError: the disk is full, for example.
    """
    with _told(snapshot):
        for file, parts in snapshot.tensors.items():
            fill(snapshot.draft / file, parts)


def finalise(snapshot: Snapshot) -> Path:
    """The checkpoint's folder; one process does it, after all have written.

    Raises:
        OSError: the folder cannot be written.
    """
    with _told(snapshot):
        (snapshot.draft / "DONE").touch()
        _fsync(snapshot.draft)
        if snapshot.target.exists():  # an earlier attempt died before its DONE, or this step is trained again
            shutil.rmtree(snapshot.target)
        snapshot.draft.replace(snapshot.target)
        _fsync(snapshot.root)
    return snapshot.target


def discard(snapshot: Snapshot) -> None:
    """Removes the draft of what will not be a checkpoint."""
    shutil.rmtree(snapshot.draft, ignore_errors=True)


def save_checkpoint(snapshot: Snapshot) -> Path:
    """The finalised folder, written by one process that has all of the tensors.

    A failure (a full disk) leaves earlier checkpoints as they were and no half-written one.

    Raises:
        OSError: the disk is full or the folder cannot be written; the message names it.
    """
    try:
        begin(snapshot)
        write(snapshot)
        return finalise(snapshot)
    except OSError:
        discard(snapshot)
        raise


@contextmanager
def _told(snapshot: Snapshot) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        told = f"checkpoint of step {snapshot.step} not written: {error.strerror}"
        raise OSError(error.errno, told, str(snapshot.target)) from error


# --- loading -------------------------------------------------------------------------------------------------------


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
    entries = _optimizer_entries(folder, optimizer)
    model.load_state_dict(raw)
    if average is not None:
        average.load_state_dict(weights)
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
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
    """The weights, of a sharded model this rank's rows."""
    state = model.state_dict()
    wanted = {(name, tuple(tensor.shape)) for name, tensor in state.items()}
    with _torn_is_corrupt(path):
        differing = sorted(wanted ^ set(shapes(path).items()))
    if differing:
        names = ", ".join(f"{name} {list(shape)}" for name, shape in differing[:3])
        raise CheckpointError(f"{path.parent}: the weights are of another model: only one of the two has {names}")
    with _torn_is_corrupt(path):
        found = read(path, _rows(state))
    return {name: _like(state[name], tensor) for name, tensor in found.items()}


def _rows(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, int]]:
    """Of the sharded ones, which rows this rank holds."""
    return {name: rows for name, tensor in tensors.items() if (rows := own_rows_of(tensor)) is not None}


def _like(tensor: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """What was read, as part of a sharded tensor where this one is sharded."""
    return from_rows(found.to(tensor.to_local().device), tensor) if isinstance(tensor, DTensor) else found


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


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{i}.{key}": torch.as_tensor(v) for i, entry in state.items() for key, v in entry.items()}


def _optimizer_entries(folder: Path, optimizer: torch.optim.Optimizer) -> dict[int, dict[str, torch.Tensor]]:
    """The optimiser's tensors by parameter index and key.

    Those of a parameter's shape are sharded as it is; others are on all ranks.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    path = folder / OPTIMIZER
    with _torn_is_corrupt(path):
        found = shapes(path)
        if any(_index(name) >= len(parameters) for name in found):
            raise CheckpointError(f"{folder}: the optimiser's state is of another model")
        of = {name: parameters[_index(name)] for name in found}
        alike = {name: parameter for name, parameter in of.items() if tuple(parameter.shape) == found[name]}
        tensors = read(path, _rows(alike))
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        entry = entries.setdefault(_index(name), {})
        entry[name.split(".", 1)[1]] = _like(of[name], tensor) if name in alike else replicated(tensor, of[name])
    return entries


def _index(name: str) -> int:
    return int(name.split(".", 1)[0])


@contextmanager
def _torn_is_corrupt(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def _rng_hex() -> str:
    return bytes(torch.get_rng_state().numpy()).hex()


def _rng_tensor(rng_hex: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(rng_hex), dtype=torch.uint8)


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, allow_nan=True, indent=1)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
    _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
