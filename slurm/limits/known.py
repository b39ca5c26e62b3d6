"""What a cluster allows: of its settings, its partitions, and its accounts where it keeps them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from slurm.limits.parse import gres_count


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGroup:
    """Nodes of one partition that are alike.

    Args:
        count: how many there are.
        state: Slurm's word in lower case, without the marks that say "powered down" or "does not answer".
        num_cpus: of each.
        memory_mb: of each, Slurm's megabytes (MiB).
        gres: accelerators and the like of each, by name and type: {"gpu:h100": 8}.
    """

    count: int
    state: str
    num_cpus: int
    memory_mb: int
    gres: Mapping[str, int]

    @property
    def is_usable(self) -> bool:
        """Whether it runs jobs, now or when it is free; not while it is down, failing, or being drained."""
        return not self.state.startswith(("down", "drain", "fail", "error", "inval", "unk", "future", "not_resp"))


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionLimits:
    """What a partition allows one job. None stands for no limit.

    Args:
        state: UP, DOWN (jobs wait), DRAIN or INACTIVE (jobs are refused).
        is_default: where a job goes that names no partition.
        max_time_min: minutes.
        default_time_min: minutes of a job that names no time.
        max_nodes: of one job.
        max_cpus_per_node: that one job may have.
        max_memory_mb_per_node: that one job may have, Slurm's megabytes (MiB).
        grace_time_s: seconds from the warning to the end of a preempted job.
        preempt_mode: OFF where jobs are left alone; REQUEUE, CANCEL, SUSPEND, GANG.
        priority_tier: a partition of a higher one may preempt this one's jobs.
        qos: the partition's own QOS, whose limits bind whoever uses it.
        allow_accounts, allow_qos: the only ones that may use it.
        deny_accounts, deny_qos: those that may not, where all others may.
        nodes: alike ones together.
    """

    state: str
    is_default: bool = False
    max_time_min: int | None = None
    default_time_min: int | None = None
    max_nodes: int | None = None
    max_cpus_per_node: int | None = None
    max_memory_mb_per_node: int | None = None
    grace_time_s: int = 0
    preempt_mode: str = "OFF"
    priority_tier: int = 1
    qos: str | None = None
    allow_accounts: tuple[str, ...] | None = None
    deny_accounts: tuple[str, ...] = ()
    allow_qos: tuple[str, ...] | None = None
    deny_qos: tuple[str, ...] = ()
    nodes: tuple[NodeGroup, ...] = ()

    @property
    def num_nodes(self) -> int:
        """All its nodes, whatever state they are in."""
        return sum(group.count for group in self.nodes)

    @property
    def num_usable_nodes(self) -> int:
        """Its nodes that run jobs."""
        return sum(group.count for group in self.nodes if group.is_usable)

    @property
    def cpus_per_node(self) -> int:
        """CPUs that one job may have on its largest node."""
        return _capped((group.num_cpus for group in self.nodes), self.max_cpus_per_node)

    @property
    def memory_mb_per_node(self) -> int:
        """Slurm's megabytes (MiB) that one job may have on its largest node."""
        return _capped((group.memory_mb for group in self.nodes), self.max_memory_mb_per_node)

    def gres_per_node(self, wanted: str) -> int:
        """The most that a node has of "gpu" or "gpu:h100"."""
        return max((gres_count(group.gres, wanted) for group in self.nodes), default=0)


def _capped(values: Iterable[int], cap: int | None) -> int:
    most = max(values, default=0)
    return most if cap is None else min(most, cap)


@dataclass(frozen=True, slots=True, kw_only=True)
class Association:
    """What a user may do under one account, on all partitions or (`partition`) on one. None stands for no limit."""

    account: str
    partition: str | None = None
    qos: tuple[str, ...] = ()
    default_qos: str | None = None
    max_submit: int | None = None
    group_submit: int | None = None
    max_wall_min: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account and its share of what the account above it may do."""

    parent: str | None = None
    group_submit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Qos:
    """The limits of one quality of service; None stands for no limit."""

    max_submit_per_user: int | None = None
    max_submit_per_account: int | None = None
    group_submit: int | None = None
    max_wall_min: int | None = None
    grace_time_s: int = 0
    preempts: tuple[str, ...] = ()
    """The QOS whose jobs give way to those of this one."""
    over_partition_qos: bool = False
    """Its limits come before those of a partition's QOS, not after them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """What the site's accounts say about one user."""

    default_account: str | None
    associations: tuple[Association, ...]
    accounts: Mapping[str, Account]
    qos: Mapping[str, Qos]

    def association(self, account: str | None, partition: str | None) -> Association | None:
        """The one that a job counts under: the account's for that partition, else the account's for all of them."""
        name = account or self.default_account
        mine = {a.partition: a for a in self.associations if name is not None and a.account == name.lower()}
        return mine.get(partition) or mine.get(None)

    def qos_of_job(self, qos: str | None, association: Association | None) -> str | None:
        """The QOS that a job runs under: what it names, or the association's default, or the only one it may use."""
        if qos is not None or association is None:
            return qos
        if association.default_qos is None and len(association.qos) == 1:
            return association.qos[0]
        return association.default_qos or "normal"  # which every database has from its first day

    def group_limits(self, association: Association) -> list[int]:
        """GrpSubmitJobs of the association and of every account above it."""
        limits, name, seen = [association.group_submit], association.account, set[str]()
        while name in self.accounts and name not in seen:
            seen.add(name)
            limits.append(self.accounts[name].group_submit)
            name = self.accounts[name].parent or ""
        return [limit for limit in limits if limit is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a cluster allows one user.

    Args:
        version: Slurm's, such as "22.05.8".
        cluster: its name.
        user: whose limits these are.
        max_array_size: MaxArraySize; the largest index of an array is one less.
        array_tasks_cap: SchedulerParameters' max_array_tasks, where a site sets it lower than MaxArraySize.
        max_job_count: MaxJobCount, of all users together; the controller holds one job less. Every task of an array
            counts, and a finished job until `min_job_age_s` has passed.
        min_job_age_s: how long squeue remembers a finished job, seconds.
        kill_wait_s: seconds from SIGTERM to SIGKILL at a job's time limit.
        requeue_allowed: JobRequeue, which is only the default: a job that asks for `--requeue` has it anyway.
        preempt_mode: PreemptMode, OFF where nothing is preempted.
        preempts_by_qos: the QOS decides who is preempted; otherwise the partitions' priority tiers do.
        preempt_sends_user_signal: a preempted job is told by the signal it asked for, not by SIGTERM.
        refuses_too_large: EnforcePartLimits: what exceeds a partition is refused rather than left to wait for ever.
        accounting: the site keeps accounts, so sacct answers.
        enforced: of "associations", "limits", "qos" and the like, what the site holds jobs to.
        accounts: None where there are none, or where they were not to be read.
        clock_skew_s: this machine's clock less the controller's, seconds; of less than two it says nothing.
        partitions: by name, hidden ones too.
    """

    version: str
    cluster: str
    user: str
    max_array_size: int
    array_tasks_cap: int | None = None
    max_job_count: int
    min_job_age_s: int
    kill_wait_s: int
    requeue_allowed: bool
    preempt_mode: str
    preempts_by_qos: bool = False
    preempt_sends_user_signal: bool
    refuses_too_large: bool
    accounting: bool
    enforced: frozenset[str] = frozenset()
    accounts: Accounts | None = None
    clock_skew_s: float | None = None
    partitions: Mapping[str, PartitionLimits]

    @property
    def max_array_tasks(self) -> int:
        """Tasks that one array can take, indexed from 0: MaxArraySize=101 takes 101 of them, 0-100, and refuses 102.

        0 where arrays are off. One that is above MaxJobCount would not be refused, but wait in sbatch for two minutes.
        """
        cap = self.max_array_size if self.array_tasks_cap is None else self.array_tasks_cap
        return min(self.max_array_size, cap, self.max_job_count - 1)

    @property
    def default_partition(self) -> str | None:
        """Where a job goes that names no partition."""
        return next((name for name, partition in self.partitions.items() if partition.is_default), None)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values, with what follows from it."""
        derived = {"max_array_tasks": self.max_array_tasks, "submit_limit": self.submit_limit()}
        return {**asdict(self), **derived, "enforced": sorted(self.enforced)}

    def submit_limit(
        self, account: str | None = None, qos: str | None = None, partition: str | None = None
    ) -> int | None:
        """Jobs that the user may have in the queue at a time, an array task one of them; None for no (known) limit.

        For each kind of limit the first that sets one binds (https://slurm.schedmd.com/resource_limits.html): the
        partition's QOS, the job's QOS (the other way round under OverPartQOS), then the association and, for group
        limits, each account above it. The least of the kinds is returned. Others' jobs count towards group limits.

        Args:
            account: the user's default one when not given.
            qos: the association's default one when not given.
            partition: one or several ("a,b"); the cluster's default one when not given.
        """
        limits = [self._submit_limits(account, qos, name) for name in self._names(partition)]
        return min((limit for found in limits for limit in found), default=None)

    def wall_limit_min(
        self, account: str | None = None, qos: str | None = None, partition: str | None = None
    ) -> int | None:
        """Minutes that the user's QOS or association allows a job; None for no (known) limit. See `submit_limit`.

        The partition's own MaxTime binds as well. A longer job waits for ever, unless its QOS has DenyOnLimit.
        """
        limits = [self._wall_limit(account, qos, name) for name in self._names(partition)]
        return min((limit for limit in limits if limit is not None), default=None)

    def qos_chain(self, account: str | None, qos: str | None, partition: str | None) -> list[Qos]:
        """The QOS whose limits bind a job, the one that comes first in front."""
        if self.accounts is None:
            return []
        association = self.accounts.association(account, partition)
        of_job = self.accounts.qos.get(self.accounts.qos_of_job(qos, association) or "")
        known = self.partitions.get(partition or "")
        of_partition = self.accounts.qos.get((known and known.qos) or "")
        chain = [found for found in (of_partition, of_job) if found is not None]
        return chain[::-1] if of_job is not None and of_job.over_partition_qos else chain

    def _names(self, partition: str | None) -> list[str | None]:
        return [*partition.split(",")] if partition else [self.default_partition]

    def _submit_limits(self, account: str | None, qos: str | None, partition: str | None) -> list[int]:
        if self.accounts is None or "limits" not in self.enforced:
            return []
        chain = self.qos_chain(account, qos, partition)
        per_user = _first(chain, lambda q: q.max_submit_per_user)
        per_account = _first(chain, lambda q: q.max_submit_per_account)
        group = _first(chain, lambda q: q.group_submit)
        limits = [limit for limit in (per_user, per_account, group) if limit is not None]
        association = self.accounts.association(account, partition)
        if association is None:
            return limits
        if per_user is None and per_account is None and association.max_submit is not None:
            limits.append(association.max_submit)
        return limits + (self.accounts.group_limits(association) if group is None else [])

    def _wall_limit(self, account: str | None, qos: str | None, partition: str | None) -> int | None:
        if self.accounts is None or "limits" not in self.enforced:
            return None
        of_qos = _first(self.qos_chain(account, qos, partition), lambda q: q.max_wall_min)
        association = self.accounts.association(account, partition)
        if of_qos is not None or association is None:
            return of_qos
        return association.max_wall_min


def _first(chain: Iterable[Qos], limit: Callable[[Qos], int | None]) -> int | None:
    return next((found for found in map(limit, chain) if found is not None), None)
