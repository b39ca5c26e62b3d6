"""How the processes of a Slurm step with several tasks find one another, by a file in a folder that they share.

Rank 0 listens and publishes where; the others wait for its file. The socket is handed on open, so nobody can take the
port between its choice and its use.
"""

import errno
import json
import os
import random
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

POLL_S = 0.1
LOWEST_PORT = 10_000  # well-known services are below
NUM_PORTS_TRIED = 100
EPHEMERAL_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """Which of a step's processes this is: `rank` of `size`, and `local_rank` among those on its node."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MeetingPoint:
    """Where rank 0 listens. Rank 0 alone has the listening socket; `meet` closes it."""

    host: str
    port: int
    listener: socket.socket | None = None


def own_rank(environ: Mapping[str, str] = os.environ) -> Rank:
    """This process's place in its srun step; rank 0 of 1 where it is in none, or is a step's only task.

    A batch script has SLURM_NTASKS and SLURM_PROCID too, though it runs once, so only what srun alone sets counts. A
    batch script that was submitted from inside a step inherits the step's variables: there, do not ask.
    """
    step = "SLURM_STEP_ID" in environ
    size = int(environ.get("SLURM_STEP_NUM_TASKS") or (step and environ.get("SLURM_NTASKS")) or 1)
    if size == 1:
        return Rank()
    return Rank(rank=int(environ["SLURM_PROCID"]), size=size, local_rank=int(environ["SLURM_LOCALID"]))


def meeting_file(environ: Mapping[str, str] = os.environ) -> str:
    """A file name for this step of this attempt of this job, and for no other: no old file is ever taken for a new."""
    variables = ("SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")
    job, index, restarts, step = (environ.get(name, "0") for name in variables)
    return f"meeting-job{job}-index{index}-restart{restarts}-step{step}.json"


@contextmanager
def meet(rank: Rank, folder: Path, *, deadline_s: float = 600.0) -> Iterator[MeetingPoint]:
    """Where rank 0 listens, for every rank; once a step, because a second meeting would have the first one's file.

    While the block runs, MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE and LOCAL_RANK are set for libraries that want
    them. Rank 0 removes its file at the end.

    Args:
        rank: this process's place in its step.
        folder: on a file system that the nodes share; rank 0 makes it.
        deadline_s: how long to wait for rank 0.

    Raises:
        TimeoutError: rank 0 did not come; the message names its file.
        OSError: no port could be had, or the folder cannot be written.
    """
    path = folder / meeting_file()
    with ExitStack() as stack:
        if rank.rank == 0:
            listener = stack.enter_context(listen(_ports()))
            point = MeetingPoint(host=reachable_name(), port=listener.getsockname()[1], listener=listener)
            stack.callback(path.unlink, missing_ok=True)
            _publish(path, point)
        else:
            point = _awaited(path, rank, deadline_s)
        stack.enter_context(_exported(rank, point))
        yield point


def listen(ports: Iterable[int]) -> socket.socket:
    """A socket that listens on every address of this machine, on the first of `ports` that is free.

    Raises:
        OSError: none of them is free.
    """
    for port in ports:
        try:
            if socket.has_dualstack_ipv6():
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
            return socket.create_server(("", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, "every port that was tried is in use")


def reachable_name(environ: Mapping[str, str] = os.environ) -> str:
    """A name of this node for the others: Slurm's own where it resolves, else the host's."""
    node = environ.get("SLURMD_NODENAME")
    if node:
        try:
            socket.getaddrinfo(node, None)
        except OSError:  # names in slurm.conf need not be those of the network
            return socket.gethostname()
        return node
    return socket.gethostname()


def _ports() -> list[int]:
    """Ports to try, in no order: below those that the kernel gives to outgoing connections, or any (0)."""
    try:
        low = int(EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):  # no Linux
        low = 32_768
    if low - LOWEST_PORT < NUM_PORTS_TRIED:
        return [0]
    return random.SystemRandom().sample(range(LOWEST_PORT, low), NUM_PORTS_TRIED)


def _publish(path: Path, point: MeetingPoint) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    with draft.open("w") as file:
        json.dump({"host": point.host, "port": point.port}, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _awaited(path: Path, rank: Rank, deadline_s: float) -> MeetingPoint:
    deadline = time.monotonic() + deadline_s
    while True:
        try:
            os.listdir(path.parent)  # noqa: PTH208 - makes an NFS client look again for names that it knew as absent
            return MeetingPoint(**json.loads(path.read_bytes()))
        except (OSError, ValueError) as error:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{path}: rank 0 did not publish its address within {deadline_s:g} s, as rank {rank.rank} of"
                    f" {rank.size} on {socket.gethostname()} sees it: see rank 0's log, and whether the nodes share"
                    f" the folder ({error})"
                ) from error
        time.sleep(POLL_S)


@contextmanager
def _exported(rank: Rank, point: MeetingPoint) -> Iterator[None]:
    values = {
        "MASTER_ADDR": point.host,
        "MASTER_PORT": str(point.port),
        "RANK": str(rank.rank),
        "WORLD_SIZE": str(rank.size),
        "LOCAL_RANK": str(rank.local_rank),
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if value is not None})
