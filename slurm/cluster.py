"""A cluster profile (TOML): partitions, what their nodes hold, and how jobs are asked for."""

import os
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from slurm.resources import SlurmError, check_gres, check_options

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
USUAL_TERAFLOPS = {"none": 0.03, "gpu": 100.0, "tpu": 100.0}  # bfloat16 of one accelerator, float32 of one CPU core
Word = Annotated[str, Field(pattern=r"^\S+$")]
"""What stands in a line of a job's script: a line break would end the line, and the rest be run as a command."""


def _absolute(given: str) -> str:
    path = Path(given).expanduser()
    if not path.is_absolute():
        raise ValueError("must be the interpreter's full path: jobs do not run in this folder")
    return str(path)


Interpreter = Annotated[str, AfterValidator(_absolute)]


class ProfileError(SlurmError):
    """A cluster profile that cannot be used, or a partition that it does not have."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Partition(_Table):
    """The nodes of one partition, how they are asked for, and what the plan expects of them."""

    accelerator: Literal["none", "gpu", "tpu"] = "none"
    """What its nodes have."""
    gres: str | None = None
    """The accelerators' gres name and type, without a count: `gpu:h100`."""
    request: Literal["gres", "gpus-per-node", "partition"] = "gres"
    """How accelerators are asked for: `--gres=gpu:h100:8`, `--gpus-per-node=h100:8`, or by the partition alone, as
    where a node is had whole."""
    options: dict[str, str | Literal[True]] = {}
    """Further sbatch options of every job here: `{layout = "tpu7x=2x4x4", exclusive = true}`."""
    setup: list[str] = []
    """Shell lines that a job here runs after the profile's."""
    python: Interpreter | None = None
    """The interpreter of jobs here: that of another environment, with Upshot and torch-xla, say."""
    account: Word | None = None
    """The account of jobs here; the profile's when it is not given."""
    qos: Word | None = None
    """The quality of service of jobs here; the profile's when it is not given."""
    accelerators_per_node: Annotated[int, Field(ge=0)] = 0
    """How many a node has."""
    accelerator_memory_gb: Positive | None = None
    """Of one accelerator. Where it is not given a plan cannot see that a cell does not fit."""
    cpus_per_node: Count = 1
    """CPU cores that a job may have on a node."""
    memory_gb_per_node: Positive = 4
    """Memory that a job may have on a node."""
    max_nodes: Count | None = None
    """Nodes that one job may have; as many as it needs when not given."""
    max_time_min: Count = 24 * 60
    """The longest time limit; a cell that takes longer goes on in another job."""
    teraflops: Positive | None = None
    """Peak of one accelerator (of one CPU core where there is none) in the precision that is trained in. Where it is
    not given a plan guesses, and no run says what share of it was reached."""
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.3
    """The share of the peak that training reaches; the plan's time rests on it until cells have been measured."""
    price_per_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Of one accelerator, or of one CPU core where there is none, in the profile's currency."""

    @model_validator(mode="after")
    def _check_accelerators(self) -> Self:
        if self.accelerator == "none":
            return self
        if not self.accelerators_per_node:
            raise ValueError(f"a partition of {self.accelerator}s needs accelerators_per_node")
        if self.request != "partition" and not self.gres:
            raise ValueError(f"a partition of {self.accelerator}s that is asked for by {self.request} needs gres")
        return self

    @field_validator("gres")
    @classmethod
    def _check_gres(cls, given: str | None) -> str | None:
        check_gres(given)
        return given

    @field_validator("options")
    @classmethod
    def _check_options(cls, given: dict[str, str | Literal[True]]) -> dict[str, str | Literal[True]]:
        check_options({name: "" if value is True else value for name, value in given.items()})
        return given

    @property
    def expected_teraflops(self) -> float:
        """The peak that a plan rests on: the profile's, or what is usual."""
        return self.teraflops or USUAL_TERAFLOPS[self.accelerator]

    @property
    def accelerator_name(self) -> str | None:
        """What one accelerator is called: its gres, or just its kind; None where there is none."""
        return None if self.accelerator == "none" else self.gres or self.accelerator


class Driver(_Table):
    """The job that `upshot watch --as-job` runs in."""

    partition: str | None = None
    """Any with CPUs; the first one without accelerators when it is not given, else the profile's first."""
    time_min: Count = 24 * 60
    """When it requeues itself, to go on."""


class Profile(_Table):
    """A cluster. The local machine is one too, with one partition and no scheduler."""

    scheduler: Literal["slurm", "local"] = "slurm"
    """"local" runs cells as processes of this machine."""
    partitions: dict[str, Partition] = Field(min_length=1)
    account: Word | None = None
    """What jobs are charged to (`sbatch --account`)."""
    qos: Word | None = None
    """Their quality of service (`sbatch --qos`)."""
    setup: list[str] = []
    """Shell lines that a job runs first, such as `module load cuda`, or the start of a container."""
    python: Interpreter | None = None
    """The interpreter of jobs, where it is not the one that submits them."""
    use_srun: bool = True
    """Whether a job starts its processes by srun; a cell of several processes needs it."""
    exclude: list[str] = []
    """Nodes that no job of ours is to use."""
    throttle: Count = 256
    """Array tasks of one array that run at a time."""
    max_array_tasks: Count | None = None
    """Array tasks in one sbatch call, where it is to be less than the scheduler's MaxArraySize allows."""
    max_submitted: Count | None = None
    """Array tasks in the queue at a time, where it is to be less than the scheduler allows."""
    folder_mode: Annotated[str, Field(pattern=r"^0?[0-7]{3}$")] = "700"
    """Of study folders; nobody else may write to them, whatever it says."""
    currency: str = "USD"
    """Of the prices."""
    driver: Driver = Driver()

    @field_validator("folder_mode")
    @classmethod
    def _check_mode(cls, given: str) -> str:
        if int(given, 8) & 0o022 or int(given, 8) & 0o700 != 0o700:
            raise ValueError("the owner needs all rights, and nobody else may write (700, 750, 755)")
        return given

    @model_validator(mode="after")
    def _check_driver(self) -> Self:
        if self.driver.partition is not None and self.driver.partition not in self.partitions:
            raise ValueError(f"driver.partition is {self.driver.partition!r} (known: {', '.join(self.partitions)})")
        return self


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


def driver_partition(profile: Profile) -> str:
    """Where a job that only drives runs."""
    without = (name for name, partition in profile.partitions.items() if partition.accelerator == "none")
    return profile.driver.partition or next(without, next(iter(profile.partitions)))
