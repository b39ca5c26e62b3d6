"""The device seam: where tensors live, in which precision, and how a step ends there."""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
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

    def reset_peak(self) -> None:
        """Lets `peak_accelerator_gb` begin anew."""
        if self.torch_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.torch_device)

    def peak_accelerator_gb(self) -> float | None:
        """The most that this process's tensors took of the accelerator, GiB; None on a CPU."""
        if self.torch_device.type != "cuda":
            return None
        return round(torch.cuda.max_memory_allocated(self.torch_device) / 2**30, 3)


def pick_device(local_rank: int | None = None) -> Device:
    """CUDA when there is one, else the CPU, with as many threads as OMP_NUM_THREADS or the job's CPUs allow.

    Processes on one node take different accelerators, by `local_rank`; where it is not given, by SLURM_LOCALID.
    """
    if torch.cuda.is_available():
        local_rank = int(os.environ.get("SLURM_LOCALID", "0")) if local_rank is None else local_rank
        return Device(torch.device("cuda", local_rank % torch.cuda.device_count()))
    threads = os.environ.get("OMP_NUM_THREADS") or os.environ.get("SLURM_CPUS_PER_TASK")
    if threads is not None:
        torch.set_num_threads(int(threads))
    return Device(torch.device("cpu"))


def peak_memory_gb() -> float | None:
    """The most host memory that this process has held since it began, GiB; None where the kernel does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((round(int(line.split()[1]) / 2**20, 3) for line in lines if line.startswith("VmHWM:")), None)
