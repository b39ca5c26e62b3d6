"""A run's checkpoints, written while training goes on."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch

from models.checkpoint import RESUME, Snapshot, begin, discard, finalise, save_checkpoint, take_snapshot, write
from models.distributed import World
from models.shard import own_part
from models.tensor_file import Part
from models.trunk import leave_state

Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A checkpoint to be written, the record of it and the trunk that it is shared in, where there are any."""

    snapshot: Snapshot
    record: dict[str, Any] | None
    trunk: Path | None


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A checkpoint that is being written."""

    wanted: _Wanted
    written: Future[None]


class Saver:
    """Writes checkpoints, one at a time, from copies that the loop waits for, in a thread that it does not wait for.

    Every rank has one and calls its methods in the same order. Of a sharded model each rank writes its rows, and rank 0
    finalises once all have; of any other rank 0 alone writes. Records that are logged meanwhile are held back, so that
    they stand in the order of the steps and a checkpoint's own is not there before the checkpoint.

    Args:
        folder: where numbered checkpoints go, and those to resume from below it.
        world: the processes that train together.
        log: takes the records.
        sharded: whether the model is.
    """

    def __init__(self, folder: Path, world: World, log: Log, *, sharded: bool) -> None:
        self._folder, self._world, self._log, self._sharded = folder, world, log, sharded
        self._leads = world.rank == 0
        self._attempt = world.decide(str(os.getpid()))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._on_host: dict[tuple[str, str], torch.Tensor] = {}
        self._under_way: _UnderWay | None = None
        self._held: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        """Nothing writes any more. After an error, what one process wrote still counts, what several did does not."""
        try:
            if error_type is None:
                self.settle()
            elif not self._sharded:
                with suppress(Exception):  # the loop's error is the one to tell
                    self.settle()
        finally:
            self._thread.shutdown()
            if self._under_way is not None and self._leads:
                discard(self._under_way.wanted.snapshot)

    @property
    def is_writing(self) -> bool:
        """Whether this process is still writing."""
        return self._under_way is not None and not self._under_way.written.done()

    def log(self, record: dict[str, Any]) -> None:
        """Logs a record, after that of the checkpoint under way."""
        if self._under_way is None:
            self._log(record)
        else:
            self._held.append(record)

    def save(self, step: int, record: dict[str, Any], *, trunk: Path | None = None, **kept: Any) -> None:
        """Begins to write the numbered checkpoint of a step; `record` is logged once it is there.

        Args:
            step: how many steps the run has taken.
            record: what is logged.
            trunk: where it is left for other runs too (`models.trunk`).
            kept: of `models.checkpoint.take_snapshot`.

        Raises:
            OSError: the one before could not be written, or this one not be begun.
        """
        self._begin(self._folder, step, record, trunk, **kept)

    def save_to_resume(self, step: int, *, trunk: Path | None = None, **kept: Any) -> None:
        """The same for a checkpoint that is only for going on from; it takes the place of the one before.

        Raises:
            OSError: as of `save`.
        """
        self._begin(self._folder / RESUME, step, None, trunk, **kept)

    def settle(self) -> None:
        """Returns once the checkpoint under way, if there is one, is there.

        Raises:
            OSError: it could not be written.
        """
        if self._under_way is None:
            return
        now = self._under_way
        now.written.result()
        if self._sharded:
            self._world.barrier()
            if self._leads:
                finalise(now.wanted.snapshot)
                self._supersede(now.wanted)
        self._under_way = None
        for record in self._held:
            self._log(record)
        self._held.clear()

    def _begin(self, root: Path, step: int, record: dict[str, Any] | None, trunk: Path | None, **kept: Any) -> None:
        self.settle()
        if not self._sharded and not self._leads:
            return
        part = partial(own_part, leads=self._leads)
        snapshot = self._copied(take_snapshot(root, step, part=part, attempt=self._attempt, **kept))
        wanted = _Wanted(snapshot, record, trunk)
        if self._sharded:
            if self._leads:
                begin(snapshot)
            self._world.barrier()
            written = self._thread.submit(write, snapshot)
        else:
            written = self._thread.submit(self._save_alone, wanted)
        self._under_way = _UnderWay(wanted, written)

    def _save_alone(self, wanted: _Wanted) -> None:
        save_checkpoint(wanted.snapshot)
        self._supersede(wanted)

    def _supersede(self, wanted: _Wanted) -> None:
        """Shares the new checkpoint, removes the earlier ones to resume from, and logs it."""
        target, resume = wanted.snapshot.target, self._folder / RESUME
        if wanted.trunk is not None:
            leave_state(target, wanted.trunk)
        for path in [resume] if wanted.snapshot.root == self._folder else resume.glob("step_*"):
            if path != target:
                shutil.rmtree(path, ignore_errors=True)
        if wanted.record is not None:
            self._log(wanted.record)

    def _copied(self, snapshot: Snapshot) -> Snapshot:
        """The same of copies on the host, for which the memory of the last ones is used again."""
        tensors = {
            file: {name: self._copy(file, name, part) for name, part in parts.items()}
            for file, parts in snapshot.tensors.items()
        }
        return replace(snapshot, tensors=tensors)

    def _copy(self, file: str, name: str, part: Part) -> Part:
        copy = self._on_host.get((file, name))
        if copy is None or (copy.shape, copy.dtype) != (part.values.shape, part.values.dtype):
            copy = torch.empty(part.values.shape, dtype=part.values.dtype, pin_memory=part.values.is_cuda)
            self._on_host[file, name] = copy
        return replace(part, values=copy.copy_(part.values))
