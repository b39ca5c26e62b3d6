"""Mirrors of a cell: one Weights & Biases run, one TensorBoard folder. The study folder is the truth.

A mirror is written from files that are already safe, so losing one loses nothing: it is written again.
"""

from orchestrator.tracking.account import Mode, default_mode, find_key
from orchestrator.tracking.client import Description
from orchestrator.tracking.described import describe, mode_of
from orchestrator.tracking.live import ANSWER_S, following
from orchestrator.tracking.patience import PATIENCE
from orchestrator.tracking.standing import Mirrored, mirrored
from orchestrator.tracking.tensorboard import write_tensorboard
from orchestrator.tracking.wandb_run import TIMEOUT_S, MirrorResult, mirror_cell, mirrored_since, note

__all__ = [
    "ANSWER_S",
    "PATIENCE",
    "TIMEOUT_S",
    "Description",
    "MirrorResult",
    "Mirrored",
    "Mode",
    "default_mode",
    "describe",
    "find_key",
    "following",
    "mirror_cell",
    "mirrored",
    "mirrored_since",
    "mode_of",
    "note",
    "write_tensorboard",
]
