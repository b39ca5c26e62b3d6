"""Mirrors of a cell: one Weights & Biases run, one TensorBoard folder. The study folder is the truth.

A mirror is written from files that are already safe, so losing one loses nothing: it is written again.
"""

from orchestrator.tracking.tensorboard import write_tensorboard
from orchestrator.tracking.wandb_run import MirrorResult, Mode, default_mode, find_key, mirror_cell

__all__ = ["MirrorResult", "Mode", "default_mode", "find_key", "mirror_cell", "write_tensorboard"]
