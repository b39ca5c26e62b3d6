"""How much host memory a process may use."""

import os
from pathlib import Path


def own_memory_gb() -> float:
    """What the job asked for, shared among its processes on this node; without Slurm, what the machine has left."""
    asked_mb = os.environ.get("SLURM_MEM_PER_NODE", "")
    if asked_mb.isdecimal() and int(asked_mb):
        processes = os.environ.get("SLURM_NTASKS_PER_NODE", "")
        return int(asked_mb) / 1024 / (int(processes) if processes.isdecimal() else 1)
    return min(_available_gb(), _container_gb())


def _available_gb() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable:"))


def _container_gb() -> float:
    """The limit of this process's own group of processes; infinite where there is none."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return float("inf")
    return int(limit) / 2**30 if limit.isdecimal() else float("inf")
