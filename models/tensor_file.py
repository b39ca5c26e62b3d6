"""Tensors in a safetensors file, of which several processes write, and read, their own parts.

A part is a run of a tensor's elements: rows of a row-major tensor lie together in the file. So a file looks the same
whoever wrote it, and any number of processes can read it.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

# https://huggingface.co/docs/safetensors: an 8-byte length, so many bytes of JSON, then the tensors, little-endian.
_NAMES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class Part:
    """The elements of a tensor of this shape from `first` on, as many as `values` has."""

    shape: tuple[int, ...]
    first: int
    values: torch.Tensor


def whole_part(tensor: torch.Tensor) -> Part:
    """All of a tensor."""
    return Part(tuple(tensor.shape), 0, tensor.detach())


def create(path: Path, parts: Mapping[str, Part]) -> None:
    """Makes a file with room for the whole tensors, of which nothing is in it yet."""
    header, _, size = _layout(parts)
    with path.open("xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(size)


def fill(path: Path, parts: Mapping[str, Part]) -> None:
    """Writes these parts into a file that was created for the same tensors, so that they outlive the machine."""
    _, offsets, _ = _layout(parts)
    # For writing alone: an NFS client that also reads a page may write all of it, over what another client wrote.
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for name, part in parts.items():
            _write_all(descriptor, _bytes(part.values), offsets[name] + part.first * part.values.element_size())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a file's tensors.

    Raises:
        SafetensorError, OSError: it is torn, or not there.
    """
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping


def read(path: Path, rows: Mapping[str, tuple[int, int]] | None = None) -> dict[str, torch.Tensor]:
    """A file's tensors: of those that `rows` names, the rows from the first to before the last; of others, all.

    Raises:
        SafetensorError, OSError: it is torn, or not there.
    """
    with _opened(path) as file:
        return {name: _read_one(file, name, (rows or {}).get(name)) for name in file.keys()}  # noqa: SIM118 - no mapping


def _opened(path: Path) -> Any:
    path.open("rb").close()  # safetensors calls every file that it cannot open a missing one
    return safe_open(path, framework="pt")


def _read_one(file: Any, name: str, rows: tuple[int, int] | None) -> torch.Tensor:
    tensor: torch.Tensor = file.get_tensor(name) if rows is None else file.get_slice(name)[rows[0] : rows[1]]
    return tensor


def _layout(parts: Mapping[str, Part]) -> tuple[bytes, dict[str, int], int]:
    """(header, where each tensor begins in the file, the file's size); wide types first, so that all are aligned."""
    entries: dict[str, dict[str, Any]] = {}
    end = 0
    for name, part in sorted(parts.items(), key=lambda item: (-item[1].values.element_size(), item[0])):
        start, end = end, end + torch.Size(part.shape).numel() * part.values.element_size()
        entries[name] = {"dtype": _NAMES[part.values.dtype], "shape": part.shape, "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    begin = 8 + len(header)
    return header, {name: begin + entry["data_offsets"][0] for name, entry in entries.items()}, begin + end


def _bytes(values: torch.Tensor) -> memoryview:
    return values.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
