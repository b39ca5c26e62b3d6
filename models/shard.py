"""A model that several processes hold in parts: each rank keeps some rows of every parameter.

FSDP2 (`fully_shard`) gathers the parameters of one block at a time, for its forward and again for its backward pass,
and leaves each rank the sum of its rows of the gradient. Optimisers, clipping and averages work on rows, so that
weights, gradients, moments and averages are divided by the number of ranks; activations are not.

bfloat16 stays autocast over float32 rows, as in a model that is not sharded: how a cell is spread over processes may
change its results by rounding alone. FSDP2's own mixed precision would also round position embeddings, norms and all
that runs between the blocks to bfloat16.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.utils._python_dispatch import TorchDispatchMode

from models.distributed import World
from models.errors import UserError
from models.tensor_file import Part

Build = Callable[[], nn.Module]

_RANDOM = {torch.ops.aten.uniform_.default, torch.ops.aten.normal_.default}
_ELEMENTWISE = {
    torch.ops.aten.fill_.Scalar,
    torch.ops.aten.zero_.default,
    torch.ops.aten.erfinv_.default,
    torch.ops.aten.mul_.Tensor,
    torch.ops.aten.mul_.Scalar,
    torch.ops.aten.add_.Tensor,
    torch.ops.aten.add_.Scalar,
    torch.ops.aten.clamp_.default,
}
_LISTS = ("blocks", "layer1", "layer2", "layer3", "layer4", "stages", "layers")
_ALIASES = {torch.ops.aten.detach.default, torch.ops.aten.alias.default}


def sharded_model(build: Build, device: torch.device, world: World) -> nn.Module:
    """The model that `build` makes, of which this rank holds its rows, on the device.

    They have the bits that `build` gives one process from the same random state, which is moved on by as much; no
    process ever holds more than its rows and one whole parameter.
    """
    with _InRows(world) as rows:
        model = build()
    own = rows.of(model)
    return _filled(_parts_apart(model, device, world), own, device)


def sharded_average(model: nn.Module, build: Build, device: torch.device, world: World) -> nn.Module:
    """A copy of a sharded model, in rows too, that is never trained."""
    with torch.device("meta"):
        copy = build()
    copy = _parts_apart(copy, device, world)
    copy.load_state_dict({name: tensor.detach().clone() for name, tensor in model.state_dict().items()}, assign=True)
    return copy.requires_grad_(False).eval()


def blocks(model: nn.Module) -> list[nn.Module]:
    """What is gathered at a time: the blocks of a ViT or a Mixer, those of the stages of a ResNet.

    Of other timm models it is what lies in the lists that timm names so too; where there are none, the whole model.
    """
    return [block for name in _LISTS if hasattr(model, name) for block in model.get_submodule(name).children()]


def own_rows(num_rows: int, world_size: int, rank: int) -> tuple[int, int]:
    """(first, end) of the rows of a tensor that a rank holds: as `torch.chunk` divides them."""
    most = -(-num_rows // world_size)
    return min(rank * most, num_rows), min((rank + 1) * most, num_rows)


def own_rows_of(tensor: torch.Tensor) -> tuple[int, int] | None:
    """(first, end) of the rows that this rank holds of a sharded tensor; None where it holds all."""
    if not (isinstance(tensor, DTensor) and tensor.placements == (Shard(0),)):
        return None
    return own_rows(tensor.shape[0], tensor.device_mesh.size(), tensor.device_mesh.get_local_rank())


def own_part(tensor: torch.Tensor, *, leads: bool) -> Part:
    """What this rank writes of a tensor: its rows or, of one that every rank has, all if it is the leading one."""
    rows = own_rows_of(tensor)
    if rows is not None:
        return Part(tuple(tensor.shape), rows[0] * tensor.shape[1:].numel(), _local(tensor))
    tensor = whole(tensor.detach())
    return Part(tuple(tensor.shape), 0, tensor if leads else tensor.reshape(-1)[:0])


def _local(tensor: torch.Tensor) -> torch.Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.to_local().detach()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A small tensor on every rank: the sum or the rows that they hold of it, put together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _parts_apart(model: nn.Module, device: torch.device, world: World) -> nn.Module:
    """The same model, sharded in place; parameters on "meta" stay there."""
    model = model.to(memory_format=torch.contiguous_format)  # FSDP2 takes no other
    mesh = init_device_mesh(device.type, (world.size,))
    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _filled(model: nn.Module, rows: dict[str, torch.Tensor], device: torch.device) -> nn.Module:
    state = model.state_dict()
    model.load_state_dict(
        {name: from_rows(own.to(device), state[name]) for name, own in rows.items()}, strict=False, assign=True
    )
    return model


def replicated(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A tensor that all ranks have, for computing with this one; numbers are left as they are."""
    if not isinstance(like, DTensor) or tensor.ndim == 0:
        return tensor
    made: DTensor = DTensor.from_local(tensor.to(_local(like).device), like.device_mesh, [Replicate()], run_check=False)
    return made


def from_rows(rows: torch.Tensor, like: torch.Tensor) -> DTensor:
    """A distributed tensor of the shape of another one that holds these rows; no rank asks the others."""
    assert isinstance(like, DTensor)
    made: DTensor = DTensor.from_local(
        rows, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return made


class _InRows(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """While a model is built: of what `torch.empty` makes, keeps this rank's rows alone.

    The tensors that the model sees are on "meta". A random operation is carried out on a whole tensor, so that it
    takes from the generator what it always takes, and this rank's rows are kept; operations on elements are carried
    out on these.
    """

    def __init__(self, world: World) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._world = world
        self._rows: dict[int, torch.Tensor] = {}
        self._kept: list[torch.Tensor] = []  # so that no storage's address is used twice

    def of(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """This rank's rows by the parameter's name."""
        named = ((name, self._rows.get(_storage(p))) for name, p in model.named_parameters() if p.is_meta)
        return {name: rows for name, rows in named if rows is not None}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.empty.memory_format:
            meta = func(*args, **kwargs | {"device": torch.device("meta")})
            return self._keep(meta, torch.empty(self._share(meta), dtype=meta.dtype))
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if first is None or _storage(first) not in self._rows:
            return func(*args, **kwargs)
        return self._changed(func, first, args[1:], kwargs)

    def _keep(self, meta: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        self._kept.append(meta)
        self._rows[_storage(meta)] = rows
        return meta

    def _share(self, tensor: torch.Tensor) -> tuple[int, ...]:
        first, end = own_rows(tensor.shape[0], self._world.size, self._world.rank)
        return (end - first, *tensor.shape[1:])

    def _changed(self, func: Any, meta: torch.Tensor, args: Any, kwargs: Any) -> Any:
        rows = self._rows[_storage(meta)]
        if func in _RANDOM:
            first, end = own_rows(meta.shape[0], self._world.size, self._world.rank)
            rows.copy_(func(torch.empty(meta.shape, dtype=meta.dtype), *args, **kwargs)[first:end])
        elif func in _ELEMENTWISE:
            func(rows, *args, **kwargs)
        elif func is torch.ops.aten._to_copy.default:  # into another memory format
            return self._keep(func(meta, *args, **kwargs), rows)
        elif func not in _ALIASES:
            raise UserError(
                f"a model whose first weights are made by {func} cannot be sharded: give it whole accelerators"
            )
        return func(meta, *args, **kwargs)


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
