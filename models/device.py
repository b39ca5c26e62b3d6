"""The device seam: where tensors live, in which precision, and how a step ends there.

Most devices run each operation as it is called. Under torch-xla (TPUs) operations are gathered, and what was gathered
up to the end of a step is compiled into one program. A step whose shapes or numbers differ from those of the one before
would be compiled anew, which takes seconds to minutes: so there, numbers that change from step to step are tensors, and
batches that would be smaller are filled up. `XlaDevice` is the one door to torch_xla.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

SHARDED_FROM_BYTES = 4 * 2**20  # of a parameter: smaller ones take little memory, and gathering them would take long


@dataclass(frozen=True, slots=True)
class Device:
    """A place to compute: the CPU, a CUDA device, or a TPU chip under TorchTPU (the extra `tpu`).

    TorchTPU has no mode without hardware: nothing of this project has been run with it.
    """

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

    @property
    def num_accelerators(self) -> int:
        """How many accelerators this process has; 0 on CPUs."""
        return 0 if self.torch_device.type == "cpu" else 1

    @property
    def num_chips(self) -> int:
        """Among how many devices this process spreads each batch."""
        return 1

    @property
    def compiles(self) -> bool:
        """Whether a step is compiled, and compiled anew if anything but the contents of its tensors changes."""
        return False

    def put(self, tensor_B: torch.Tensor) -> torch.Tensor:
        """A batch on the device."""
        return tensor_B.to(self.torch_device, non_blocking=True)  # which pinned memory alone makes use of

    def filled(self, tensor_B: torch.Tensor, size: int, value: int = 0) -> torch.Tensor:  # noqa: ARG002 - see XlaDevice
        """A batch that may have fewer than `size` entries, filled up with `value` where its shape must not change."""
        return tensor_B

    def scalar(self, value: float) -> float | torch.Tensor:
        """A number that changes from step to step, in the form that changes no program."""
        return value

    def seed(self, seed: int) -> None:
        """Lets random layers draw from `seed` on."""
        torch.manual_seed(seed)

    def spread(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Spreads large parameters, and what the optimiser keeps of them, over the chips, before the first step."""

    def end_step(self) -> None:
        """Starts what was asked for so far, where it waits for that."""

    def reset_peak(self) -> None:
        """Lets `peak_accelerator_gb` begin anew."""
        if self.torch_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.torch_device)

    def peak_accelerator_gb(self) -> float | None:
        """The most that this process's tensors took of the accelerator, GiB; None where it is not known."""
        if self.torch_device.type != "cuda":
            return None
        return round(torch.cuda.max_memory_allocated(self.torch_device) / 2**30, 3)


@dataclass(frozen=True, slots=True)
class XlaDevice(Device):
    """What torch-xla's runtime found by PJRT_DEVICE: the TPU chips of this host, or CPUs to test on.

    Several chips run one program (SPMD): each batch is split among them, and so are large parameters with what the
    optimiser keeps of them, as in FSDP; results are those of one chip, to rounding. `mesh` is None for a single chip.
    """

    mesh: Any  # torch_xla's, which has no types

    @property
    def name(self) -> str:
        """The runtime's name for the device, and how many there are: 'xla:tpu x4'."""
        kind = f"xla:{_xla_kind()}"
        return kind if self.num_chips == 1 else f"{kind} x{self.num_chips}"

    @property
    def num_accelerators(self) -> int:
        """The chips; 0 where the runtime has only CPUs."""
        return 0 if _xla_kind() == "cpu" else self.num_chips

    @property
    def num_chips(self) -> int:
        """Among how many devices this process spreads each batch."""
        return 1 if self.mesh is None else int(self.mesh.size())

    @property
    def compiles(self) -> bool:
        """It does."""
        return True

    def put(self, tensor_B: torch.Tensor) -> torch.Tensor:
        """A batch on the device, split among the chips if they divide it."""
        there_B = tensor_B.to(self.torch_device)
        if self.mesh is not None and len(there_B) % self.num_chips == 0:
            self._split(there_B, 0)
        return there_B

    def filled(self, tensor_B: torch.Tensor, size: int, value: int = 0) -> torch.Tensor:
        """A batch of `size` entries, or of the next number that the chips divide."""
        missing = size + -size % self.num_chips - len(tensor_B)
        if not missing:
            return tensor_B
        return torch.cat([tensor_B, tensor_B.new_full((missing, *tensor_B.shape[1:]), value)])

    def scalar(self, value: float) -> torch.Tensor:
        """A number on the device, without dimensions.

        torch-xla compiles 0 and 1 into a program, and merges equal numbers into one of its inputs. It does so with
        tensors that were transferred without dimensions too.
        """
        return torch.tensor([value], device=self.torch_device)[0]

    def seed(self, seed: int) -> None:
        """Lets random layers draw from `seed` on, those on the device too."""
        import torch_xla

        torch.manual_seed(seed)
        torch_xla.manual_seed(seed)

    def spread(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Splits large parameters along their longest dimension that the chips divide, and so their moments.

        What the optimiser makes in its first step follows from the parameters.
        """
        if self.mesh is None:
            return
        for parameter in model.parameters():
            dimension = self._split_dimension(parameter)
            if dimension is None:
                continue
            kept = optimizer.state.get(parameter, {}).values() if optimizer else ()
            for tensor in (parameter, *(t for t in kept if t.shape == parameter.shape)):
                self._split(tensor, dimension)

    def _split_dimension(self, parameter: torch.Tensor) -> int | None:
        if parameter.numel() * parameter.element_size() < SHARDED_FROM_BYTES:
            return None
        divided = [d for d, length in enumerate(parameter.shape) if length % self.num_chips == 0]
        return max(divided, key=lambda d: parameter.shape[d], default=None)

    def _split(self, tensor: torch.Tensor, dimension: int) -> None:
        from torch_xla.distributed.spmd import mark_sharding

        mark_sharding(tensor, self.mesh, tuple("chip" if d == dimension else None for d in range(tensor.ndim)))

    def end_step(self) -> None:
        """Compiles what was gathered, if that was never done, and starts it."""
        import torch_xla

        torch_xla.sync()

    def peak_accelerator_gb(self) -> float | None:
        """The most that was taken of the chip since the process began, GiB; None where the runtime does not say.

        It says nothing on CPUs, nor of several chips.
        """
        from torch_xla.core import xla_model

        try:
            info = xla_model.get_memory_info(self.torch_device)
        except RuntimeError:
            return None
        return round(info["peak_bytes_used"] / 2**30, 3) if "peak_bytes_used" in info else None


def pick_device(local_rank: int | None = None) -> Device:
    """What torch-xla finds where PJRT_DEVICE is set; else CUDA, then a TPU, then the CPU, the first that there is.

    On a CPU with as many threads as OMP_NUM_THREADS or the job's CPUs allow. Processes on one node take different CUDA
    devices, by `local_rank`; where it is not given, by SLURM_LOCALID. The TPU chips of a host belong to one process.
    """
    if "PJRT_DEVICE" in os.environ and find_spec("torch_xla"):
        return _xla_device()
    if torch.cuda.is_available():
        local_rank = int(os.environ.get("SLURM_LOCALID", "0")) if local_rank is None else local_rank
        return Device(torch.device("cuda", local_rank % torch.cuda.device_count()))
    if _xla_finds_tpu():
        return _xla_device()
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is not None and found.type == "tpu":  # TorchTPU's; that there is a `torch.tpu` says nothing of hardware
        return Device(found)
    threads = os.environ.get("OMP_NUM_THREADS") or os.environ.get("SLURM_CPUS_PER_TASK")
    if threads is not None:
        torch.set_num_threads(int(threads))
    return Device(torch.device("cpu"))


def device_of(model: torch.nn.Module) -> Device:
    """Where a model's parameters are."""
    place = next(model.parameters()).device
    return _xla_device() if place.type == "xla" else Device(place)


def _xla_finds_tpu() -> bool:
    """Whether torch-xla, asked for nothing, names the TPU; what it names where there is none is taken back."""
    if "PJRT_DEVICE" in os.environ or not find_spec("torch_xla"):
        return False
    import torch_xla  # noqa: F401 - the import names it

    if os.environ.get("PJRT_DEVICE") == "TPU":
        return True
    os.environ.pop("PJRT_DEVICE", None)
    return False


@cache
def _xla_device() -> XlaDevice:
    """Several chips become one device of several: that has to be said before there is any tensor on them."""
    import torch_xla
    from torch_xla import runtime
    from torch_xla.distributed.spmd import Mesh

    num_chips = runtime.global_runtime_device_count()
    if num_chips == 1:
        return XlaDevice(torch_xla.device(), None)
    runtime.use_spmd()
    mesh = Mesh(np.arange(num_chips), (num_chips,), ("chip",))
    return XlaDevice(torch_xla.device(), mesh)


def _xla_kind() -> str:
    from torch_xla import runtime

    return str(runtime.device_type()).lower()


def peak_memory_gb() -> float | None:
    """The most host memory that this process has held since it began, GiB; None where the kernel does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((round(int(line.split()[1]) / 2**20, 3) for line in lines if line.startswith("VmHWM:")), None)
