"""The device seam: where tensors live, in which precision, and how a step ends there."""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True, slots=True)
class Device:
    """A place to compute."""

    torch_device: torch.device

    def autocast(self, precision: Literal["float32", "bfloat16"]) -> AbstractContextManager[object]:
        """bfloat16 where it was asked for; parameters and optimiser stay in float32."""
        if precision == "float32":
            return nullcontext()
        return torch.autocast(self.torch_device.type, dtype=torch.bfloat16)

    @property
    def name(self) -> str:
        """'cpu', or the accelerator's own name."""
        if self.torch_device.type == "cuda":
            return torch.cuda.get_device_name(self.torch_device)
        return self.torch_device.type


def pick_device() -> Device:
    """CUDA when there is one, else the CPU, with as many threads as OMP_NUM_THREADS or the job's CPUs allow."""
    if torch.cuda.is_available():
        return Device(torch.device("cuda", int(os.environ.get("SLURM_LOCALID", "0")) % torch.cuda.device_count()))
    threads = os.environ.get("OMP_NUM_THREADS") or os.environ.get("SLURM_CPUS_PER_TASK")
    if threads is not None:
        torch.set_num_threads(int(threads))
    return Device(torch.device("cpu"))
