"""Several processes that train one model together, and what they must agree on.

Control (whether to stop, which checkpoint) goes over gloo on the CPU, so that it never waits for an accelerator and
notices at once when a peer is gone; gradients go over NCCL where there is CUDA.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

import torch
import torch.distributed as dist
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]  # torch exports them, its stubs do not

from models.device import pick_device

JOIN = timedelta(minutes=10)  # from the first process to the last
WAIT = timedelta(hours=1)  # for a peer in one operation: rank 0 measures and saves while the others wait
FAILURE = "failure"  # the store's key


class PeerFailedError(RuntimeError):
    """Another rank failed first, so that this one could not go on.

    `failed_type` is the name of that rank's exception, such as 'OutOfMemoryError'.
    """

    def __init__(self, rank: str, failed_type: str, message: str) -> None:
        super().__init__(f"rank {rank} failed: {failed_type}: {message}")
        self.failed_type = failed_type


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The processes that train together. Every rank must call the same methods in the same order.

    Args:
        rank: of this process, from 0.
        size: how many there are.
        local_rank: among the processes on this node; None leaves it to SLURM_LOCALID.
        store: what the ranks write for each other; None for a process that is alone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int | None = None
    store: Store | None = None

    @classmethod
    def alone(cls) -> Self:
        """One process: nothing to agree on, nothing to wait for."""
        return cls()

    @classmethod
    @contextmanager
    def formed(
        cls, *, rank: int, size: int, local_rank: int, host: str, port: int, listen_fd: int | None = None
    ) -> Iterator[Self]:
        """The world of this rank, once all `size` ranks have come; torch's process group ends with the block.

        After an error one rank leaves while others may be in the middle of an operation: the world is of no more use,
        and each process should end.

        Args:
            rank: of this process.
            size: how many there are.
            local_rank: among the processes on this node, which is also which accelerator it takes.
            host: where rank 0 listens.
            port: the port there.
            listen_fd: rank 0's listening socket; it stays the caller's.

        Raises:
            RuntimeError: not all ranks came in time.
        """
        if torch.cuda.is_available():
            torch.cuda.set_device(pick_device(local_rank).torch_device)
        # torch closes the descriptor that it is given.
        fd = None if listen_fd is None else os.dup(listen_fd)
        store = TCPStore(host, port, size, is_master=rank == 0, timeout=JOIN, master_listen_fd=fd)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=WAIT)
        world = cls(rank=rank, size=size, local_rank=local_rank, store=store)
        try:
            yield world
            world.barrier()  # rank 0 has the store, so it leaves last
        finally:
            dist.destroy_process_group()

    def most(self, value: int) -> int:
        """The largest of the ranks' values."""
        return int(self._reduced(torch.tensor(value), dist.ReduceOp.MAX))

    def any(self, flag: bool) -> bool:
        """Whether it is so on one rank at least."""
        return self.most(int(flag)) > 0

    def sum(self, value: float) -> float:
        """The sum of the ranks' values, in float64."""
        return float(self._reduced(torch.tensor(value, dtype=torch.float64), dist.ReduceOp.SUM))

    def barrier(self) -> None:
        """Returns when every rank has come to it."""
        self.most(0)

    def decide(self, value: str) -> str:
        """Rank 0's value; those of the others are ignored."""
        if self.size == 1:
            return value
        # Not through the store: an operation of the group needs no key, and fails when a peer is gone.
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Lets the ranks know which of them failed first: an error of this one passes as itself.

        Raises:
            PeerFailedError: an operation broke because another rank had failed.
        """
        try:
            yield
        except BaseException as error:
            # gloo says that a peer is gone by a plain RuntimeError. A peer that could has first left its reason.
            by_peer = type(error) is RuntimeError or isinstance(error, dist.DistError)
            reason = [str(self.rank), type(error).__name__, str(error)]
            first = self._first_failure(None if by_peer else reason)
            if by_peer and first is not None:
                raise PeerFailedError(*first) from error
            raise

    def _first_failure(self, own: list[str] | None) -> list[str] | None:
        """(rank, name of the exception, message) of the rank that failed first, which is now this one if none had."""
        if self.store is None:
            return None
        with suppress(dist.DistError):  # the store has gone with rank 0
            if own is not None:
                return list(json.loads(self.store.compare_set(FAILURE, "", json.dumps(own))))
            if self.store.check([FAILURE]):
                return list(json.loads(self.store.get(FAILURE)))
        return None

    def _reduced(self, value: torch.Tensor, by: dist.ReduceOp.RedOpType) -> torch.Tensor:
        if self.size > 1:
            dist.all_reduce(value, by)
        return value
