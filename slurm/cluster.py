"""A cluster profile (TOML): partitions, what their nodes hold, and how jobs are asked for."""

import os
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from slurm.resources import SlurmError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Word = Annotated[str, Field(pattern=r"^\S+$")]
"""What stands in a line of a job's script: a line break would end the line, and the rest be run as a command."""


class ProfileError(SlurmError):
    """A cluster profile that cannot be used, or a partition that it does not have."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Partition(_Table):
    """The nodes of one partition, and what the plan expects of them."""

    accelerator: Literal["none", "gpu", "tpu"] = "none"
    gres: str | None = None
    """How an accelerator is asked for, without the count: `gpu:h100` becomes `--gres=gpu:h100:2`."""
    accelerators_per_node: Annotated[int, Field(ge=0)] = 0
    accelerator_memory_gb: Positive | None = None
    cpus_per_node: Count = 1
    memory_gb_per_node: Positive = 4
    max_time_min: Count = 24 * 60
    teraflops: Positive = 0.03
    """Peak of one accelerator (of one CPU core where there is none) in the precision that is trained in."""
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.3
    """The share of the peak that training reaches; the plan's time rests on it."""

    @model_validator(mode="after")
    def _check_accelerators(self) -> Self:
        if self.accelerator != "none" and not (self.gres and self.accelerators_per_node):
            raise ValueError(f"a partition of {self.accelerator}s needs gres and accelerators_per_node")
        return self


class Profile(_Table):
    """A cluster. The local machine is one too, with one partition and no scheduler."""

    scheduler: Literal["slurm", "local"] = "slurm"
    partitions: dict[str, Partition] = Field(min_length=1)
    account: Word | None = None
    qos: Word | None = None
    setup: list[str] = []
    """Shell lines that a job runs first, such as `module load cuda`."""
    use_srun: bool = True
    max_array_size: Count = 1000
    """Array tasks in one sbatch call: below the scheduler's MaxArraySize."""
    throttle: Count = 256
    """Array tasks of one array that run at a time."""


def load_profile(name: str) -> Profile:
    """The profile `local`, or the one in a TOML file.

    Raises:
        ProfileError: the file is missing, malformed, or does not describe a cluster; the message names file and key.
    """
    if name == "local":
        return local_profile()
    path = Path(name)
    try:
        return Profile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ProfileError(f"{path}: there is no such cluster profile (`local` needs none)") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ProfileError(f"{path}: cannot be read: {error}") from error
    except ValidationError as error:
        raise ProfileError(f"{path}: " + "\n".join(map(_complaint, error.errors()))) from error


def _complaint(item: ErrorDetails) -> str:
    return f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']} (given: {item['input']!r})"


def local_profile() -> Profile:
    """This machine: as many one-thread workers as cores, no scheduler."""
    cores = os.process_cpu_count() if hasattr(os, "process_cpu_count") else len(os.sched_getaffinity(0))
    pages, page_size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    partition = Partition(cpus_per_node=cores or 1, memory_gb_per_node=pages * page_size / 2**30)
    return Profile(scheduler="local", partitions={"local": partition})


def choose_partition(profile: Profile, name: str | None) -> tuple[str, Partition]:
    """The named partition, or the profile's first.

    Raises:
        ProfileError: the profile has no such partition.
    """
    if name is None:
        return next(iter(profile.partitions.items()))
    if name not in profile.partitions:
        raise ProfileError(f"cluster.partition: unknown partition {name!r} (known: {', '.join(profile.partitions)})")
    return name, profile.partitions[name]
