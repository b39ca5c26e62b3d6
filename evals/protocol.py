"""What an evaluation is: its protocol, its id, and the columns of its rows.

No torch here: the login node reads these to see which evaluations a study still lacks.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import polars as pl

from models.errors import UnknownNameError, UserError

Layers = Literal["all", "last"]

METHODS: Final[dict[str, str]] = {
    "ridge": (
        "ridge on frozen float32 features, standardised by the shots, bias feature 100, targets -1/+1; "
        "lambda from 2^-10..2^19 by leave-one-out squared error on the shots, the smallest on ties"
    ),
    "ridge-fixed": (
        "ridge on frozen float32 features, standardised by the shots, bias feature 100, targets -1/+1; lambda 2^10"
    ),
}
"""Protocols by name, with the sentence that goes into the results' `method` column."""

REVISION: Final = 1
"""Raised when a protocol's numbers change, so that files of the old method are not taken for the new one's."""

RESULT_SCHEMA: Final[dict[str, type[pl.DataType]]] = {
    "cell_id": pl.String,
    "params": pl.Int64,
    "flops": pl.Float64,
    "step": pl.Int64,
    "examples_seen": pl.Int64,
    "upstream_accuracy": pl.Float64,
    "upstream_loss": pl.Float64,
    "upstream_num_test": pl.Int64,
    "upstream_num_classes": pl.Int64,
    "task": pl.String,
    "protocol": pl.String,
    "shots": pl.Int64,
    "draw": pl.Int64,
    "layer": pl.Int64,
    "num_layers": pl.Int64,
    "last_layer": pl.Boolean,
    "regularisation": pl.Float64,
    "downstream_accuracy": pl.Float64,
    "downstream_num_test": pl.Int64,
    "method": pl.String,
    "reason": pl.String,
}
"""The measured columns, in order. `layer` counts from 0; the last one, `num_layers` - 1, is the pre-logits features."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How a checkpoint is judged on a task.

    Args:
        name: a key of `METHODS`.
        shots: images a class; kept ascending and without repeats, so that the order they were given in does not matter.
        draws: how many times the shots are drawn.
        layers: every probed layer, or the pre-logits features alone.

    Raises:
        UnknownNameError: no protocol has that name.
        UserError: no shots, or a count that is not a positive whole number, or other layers.
    """

    name: str = "ridge"
    shots: tuple[int, ...] = (1, 5, 10, 25)
    draws: int = 3
    layers: Layers = "all"

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise UnknownNameError("protocol", self.name, METHODS)
        if not self.shots or not all(_is_count(shot) for shot in self.shots):
            raise UserError(f"shots: {list(self.shots)!r} given, one or more whole numbers from 1 up needed")
        if not _is_count(self.draws):
            raise UserError(f"draws: {self.draws!r} given, a whole number from 1 up needed")
        if self.layers not in get_args(Layers):
            raise UserError(f"layers: {self.layers!r} given, 'all' or 'last' needed")
        object.__setattr__(self, "shots", tuple(sorted(set(self.shots))))

    @property
    def method(self) -> str:
        """What the results' `method` column says."""
        return METHODS[self.name]

    def eval_id(self, task: str) -> str:
        """12 hexadecimal digits that depend on the task's name, on every field, and on `REVISION`."""
        identity = {
            "revision": REVISION,
            "task": task,
            "protocol": self.name,
            "shots": self.shots,
            "draws": self.draws,
            "layers": self.layers,
        }
        content = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]


def eval_id(task: str, protocol: str, shots: Sequence[int], draws: int, layers: Layers) -> str:
    """The name, without its suffix, of the parquet file that holds this evaluation of a checkpoint.

    Raises:
        UserError: what `Protocol` raises.
    """
    return Protocol(name=protocol, shots=tuple(shots), draws=draws, layers=layers).eval_id(task)


def _is_count(value: object) -> bool:
    # bool is an int, and numpy's integers have no JSON: only plain integers have stable bytes.
    return type(value) is int and value >= 1
