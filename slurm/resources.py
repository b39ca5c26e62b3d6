"""What one job asks the scheduler for, and the errors that tell of a scheduler.

SlurmError (RuntimeError)   Slurm refused, or answered what cannot be read
+-- SlurmUnreachable        Slurm did not answer: nothing is known about any job
+-- LimitReachedError       a limit on the number or the size of jobs is in the way

What a user asked for that no job can have is a ValueError.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

# name[:type] as in `gpu:h100`; the count is a field of its own.
_GRES: Final = re.compile(r"[A-Za-z][\w-]*(:(?!\d{1,2}$)\w[\w.-]*)?")  # a type may begin with a digit: gpu:1g.5gb
_OPTION: Final = re.compile(r"[a-z][a-z0-9-]*")
# Options of sbatch that a field already stands for: given twice, the one that wins depends on their order.
_FIELD_OF_OPTION: Final = {
    "partition": "partition",
    "nodes": "num_nodes",
    "gres": "accelerator",
    "gpus": "accelerators",
    "gpus-per-node": "accelerators",
    "cpus-per-task": "num_cpus",
    "ntasks": "tasks_per_node",
    "ntasks-per-node": "tasks_per_node",
    "exclude": "exclude",
    "mem": "mem_gb",
    "mem-per-cpu": "mem_gb",
    "mem-per-gpu": "mem_gb",
    "time": "time_min",
}
_LEAST: Final = {"num_nodes": 1, "tasks_per_node": 1, "accelerators": 0, "num_cpus": 1, "time_min": 1}


class SlurmError(RuntimeError):
    """Slurm refused a request, or answered something that cannot be read; the message carries what it said."""


class SlurmUnreachable(SlurmError):  # noqa: N818 - says what happened, as TimeoutExpired does
    """Slurm did not answer, so nothing is known about any job: never a reason to call one done, failed or missing."""


class LimitReachedError(SlurmError):
    """A limit is in the way: of the scheduler (jobs submitted, array size, wall time), or of the study (its budget).

    Args:
        message: what it is, and how to mend it.
        passes: whether room can appear by itself, as jobs end.
    """

    def __init__(self, message: str, *, passes: bool = False) -> None:
        super().__init__(message)
        self.passes = passes


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one job, or every task of one array, asks for.

    Args:
        partition: where to run; None leaves it to the cluster's default.
        num_nodes: nodes.
        tasks_per_node: processes that srun starts on each node.
        accelerators: accelerators on each node.
        accelerator: their gres type, such as "gpu", "gpu:h100" or "tpu:v5e"; None without accelerators.
        num_cpus: CPU cores on each node.
        mem_gb: memory on each node, GiB.
        time_min: time limit, minutes.
        exclude: nodes that are not to be used; kept sorted.
        extra: further sbatch options by long name without dashes, such as ("qos", "high"); kept sorted.

    Raises:
        ValueError: a value that no job can have; the message names the field, the value and what is allowed.
    """

    partition: str | None = None
    num_nodes: int = 1
    tasks_per_node: int = 1
    accelerators: int = 0
    accelerator: str | None = None
    num_cpus: int = 1
    mem_gb: float
    time_min: int
    exclude: tuple[str, ...] = ()
    extra: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for field in _LEAST:
            _check_whole(field, getattr(self, field), _LEAST[field])
        _check_memory(self.mem_gb)
        if self.partition is not None:
            _check_word("partition", self.partition)
        for node in self.exclude:
            _check_word("exclude", node)
        _check_accelerator(self.accelerators, self.accelerator)
        _check_extra(self.extra)
        # One form for equal requests: an array holds those that are equal.
        object.__setattr__(self, "mem_gb", float(self.mem_gb))
        object.__setattr__(self, "exclude", tuple(sorted(set(self.exclude))))
        object.__setattr__(self, "extra", tuple(sorted((name, value) for name, value in self.extra)))

    @property
    def num_accelerators(self) -> int:
        """Accelerators on all nodes together."""
        return self.accelerators * self.num_nodes

    @property
    def num_tasks(self) -> int:
        """Processes on all nodes together."""
        return self.tasks_per_node * self.num_nodes


def _check_whole(field: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{field}: must be a whole number, at least {least}, not {value!r}")


def _check_memory(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"mem_gb: must be a positive number of GiB, not {value!r}")


def _check_word(field: str, value: str) -> None:
    if not value or value != value.strip() or not value.isprintable() or " " in value:
        raise ValueError(f"{field}: must be one word, not {value!r}")


def check_gres(gres: str | None) -> None:
    """Refuses what is no gres name or name:type.

    Raises:
        ValueError: the message says what is allowed.
    """
    if gres is None:
        return
    if not _GRES.fullmatch(gres):
        raise ValueError(
            f"accelerator: must be a gres name or name:type, such as 'gpu:h100' (how many goes into accelerators),"
            f" not {gres!r}"
        )


def _check_accelerator(count: int, gres: str | None) -> None:
    if count and gres is None:
        raise ValueError(f"accelerator: must name the gres of the {count} accelerators, such as 'gpu' or 'gpu:h100'")
    if gres is None:
        return
    check_gres(gres)
    if not count:
        raise ValueError(f"accelerators: must be at least 1 when accelerator is given ({gres!r}), not 0")


def check_options(options: Mapping[str, str]) -> None:
    """Refuses what is no option of sbatch's, or one that a field of `Resources` stands for.

    Raises:
        ValueError: the message names the option.
    """
    _check_extra(tuple(options.items()))


def _check_extra(extra: tuple[tuple[str, str], ...]) -> None:
    seen: set[str] = set()
    for name, value in extra:
        if not _OPTION.fullmatch(name):
            raise ValueError(f"extra: must name sbatch options by their long names without dashes, not {name!r}")
        if name in _FIELD_OF_OPTION:
            raise ValueError(f"extra: {name!r} is already given by the field {_FIELD_OF_OPTION[name]}")
        if name in seen:
            raise ValueError(f"extra: {name!r} is given twice")
        # A line break would end the #SBATCH line and start a command of the script.
        if not isinstance(value, str) or not value.isprintable():
            raise ValueError(f"extra: the value of {name!r} must be a printable string, not {value!r}")
        seen.add(name)
