"""The configuration files of a private Slurm cluster (tests/private_slurm.py), written from its layout."""

import os
import pwd
import random
import socket
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# The gpu plugin wants one character device a GPU: consoles that nobody uses, which few containers have.
GPU_FILES = tuple(Path(f"/dev/tty{n}") for n in range(10, 18))

# The timings are for tests: a job starts within a second of sbatch, a requeued one after six instead of 121
# (cred_expire), and one that ignores SIGTERM is killed after two (KillWait).
SLURM_CONF = """\
ClusterName=mini
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
PropagateResourceLimits=NONE
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=10
InactiveLimit=0
KillWait=2
MinJobAge=300
Waittime=0
MaxArraySize={max_array_size}
MaxJobCount=10000
JobRequeue=1
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,bf_resolution=1,default_queue_depth=1000
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
SlurmdParameters=config_overrides
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu,tpu
JobCompType=jobcomp/none
"""
ACCOUNTING_CONF = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStorageTRES=gres/gpu,gres/tpu
AccountingStoragePass={folder}/munge.sock
"""
SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={user}
PidFile={folder}/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
CommunicationParameters=NoInAddrAny
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
"""
DATABASE_SQL = (
    "CREATE DATABASE slurm_acct; CREATE USER slurm@localhost IDENTIFIED BY 'slurm';"
    " GRANT ALL ON slurm_acct.* TO slurm@localhost;"
)


@dataclass(kw_only=True)
class Layout:
    """What a private cluster looks like.

    CPUs and memory may exceed the host's: they are scheduled, not enforced.

    Args:
        num_nodes: CPU nodes, cpu0, cpu1, ...; partitions cpu (the default) and scavenge (preemptable) hold them all.
        cpus_per_node: of every node.
        mem_mb_per_node: of every node.
        gpu: adds node gpu0, partition gpu-h100, with gres gpu:h100:8 (CUDA_VISIBLE_DEVICES is set, nothing is there).
        tpu: adds node tpu0, partition tpu-v5e, with gres tpu:v5e:4 (no variable is set).
        accounting: adds MariaDB and slurmdbd, so that sacct answers.
        max_array_size: slurm.conf's MaxArraySize; the largest index is one less.
        extra_conf: slurm.conf lines; each replaces the line of the same key, NodeName and PartitionName add one.
    """

    num_nodes: int = 2
    cpus_per_node: int = 4
    mem_mb_per_node: int = 64_000
    gpu: bool = False
    tpu: bool = False
    accounting: bool = False
    max_array_size: int = 1001
    extra_conf: "Sequence[str]" = ()

    @property
    def cpu_nodes(self) -> tuple[str, ...]:
        return tuple(f"cpu{n}" for n in range(self.num_nodes))

    @property
    def nodes(self) -> tuple[str, ...]:
        return (*self.cpu_nodes, *["gpu0"] * self.gpu, *["tpu0"] * self.tpu)


def write_configuration(folder: Path, layout: Layout, *, controller_port: int, database_port: int) -> None:
    """Every file and folder that the daemons want, but for the folder of their logs."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    values = {
        "folder": folder,
        "host": socket.gethostname().partition(".")[0],
        "user": pwd.getpwuid(os.geteuid()).pw_name,
        "max_array_size": layout.max_array_size,
    }
    text = SLURM_CONF.format(port=controller_port, **values)
    if layout.accounting:
        text += ACCOUNTING_CONF.format(port=database_port, **values)
        _write_private(folder / "slurmdbd.conf", SLURMDBD_CONF.format(port=database_port, **values).encode())
    lines = text.splitlines() + _node_lines(layout, str(values["host"])) + _partition_lines(layout)
    _write_lines(folder / "slurm.conf", _overridden(lines, layout.extra_conf))
    _write_lines(folder / "gres.conf", _gres_lines(layout))
    _write_lines(folder / "cgroup.conf", ["CgroupAutomount=no", "ConstrainCores=no", "ConstrainRAMSpace=no"])
    _write_private(folder / "munge.key", os.urandom(128))


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below the range that the kernel hands out to outgoing connections."""
    with ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            port = random.randint(10_000, 32_000)
            probe = held.enter_context(socket.socket())
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
        return ports


def _node_lines(layout: Layout, host: str) -> list[str]:
    gres = {"gpu0": " Gres=gpu:h100:8", "tpu0": " Gres=tpu:v5e:4"}
    size = f"CPUs={layout.cpus_per_node} RealMemory={layout.mem_mb_per_node}"
    return [
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} {size}{gres.get(node, '')} State=UNKNOWN"
        for node, port in zip(layout.nodes, free_ports(len(layout.nodes)), strict=True)
    ]


def _partition_lines(layout: Layout) -> list[str]:
    common = "MaxTime=INFINITE DefaultTime=10 State=UP"
    cpu_nodes = ",".join(layout.cpu_nodes)
    return [
        f"PartitionName=cpu Nodes={cpu_nodes} Default=YES PriorityTier=10 OverSubscribe=NO {common}",
        f"PartitionName=scavenge Nodes={cpu_nodes} PriorityTier=1 PreemptMode=REQUEUE GraceTime=0 {common}",
        *[f"PartitionName=gpu-h100 Nodes=gpu0 PriorityTier=10 {common}"] * layout.gpu,
        *[f"PartitionName=tpu-v5e Nodes=tpu0 PriorityTier=10 {common}"] * layout.tpu,
    ]


def _gres_lines(layout: Layout) -> list[str]:
    gpus = [f"NodeName=gpu0 Name=gpu Type=h100 File={file}" for file in GPU_FILES]
    return gpus * layout.gpu + ["NodeName=tpu0 Name=tpu Type=v5e Count=4"] * layout.tpu


def _overridden(lines: "Sequence[str]", extra: "Sequence[str]") -> list[str]:
    # Slurm warns, on every command, about a key that is given twice.
    keys = {line.partition("=")[0].strip().lower() for line in extra} - {"nodename", "partitionname"}
    return [line for line in lines if line.partition("=")[0].lower() not in keys] + list(extra)


def _write_lines(path: Path, lines: "Sequence[str]") -> None:
    path.write_text("".join(f"{line}\n" for line in lines))


def _write_private(path: Path, content: bytes) -> None:
    # munged and slurmdbd refuse a key or a password that others can read.
    path.touch(mode=0o600)
    path.write_bytes(content)
