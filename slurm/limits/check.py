"""What a profile asks of a cluster that the cluster does not have, or does not give this user."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches

from slurm.cluster import Partition, Profile, ProfileError
from slurm.limits.known import Accounts, Limits, PartitionLimits
from slurm.options import memory_mb, sbatch_options
from slurm.resources import LimitReachedError, Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is in the way of a profile.

    Args:
        where: the key of the profile, or the setting of the cluster.
        what: what was found.
        remedy: what to do.
        fatal: jobs would be refused, or wait for ever; otherwise it is advice.
        is_limit: a limit of the scheduler's forbids it, so that no profile mends it.
    """

    where: str
    what: str
    remedy: str
    fatal: bool = True
    is_limit: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"


def refuse(profile: Profile, limits: Limits, partitions: Collection[str] | None = None) -> None:
    """Returns where jobs of the profile can run.

    Args:
        profile: the cluster as the user describes it.
        limits: the cluster as it is.
        partitions: those of the profile that are to be used; None for all of them.

    Raises:
        ProfileError: the profile does not fit the cluster.
        LimitReachedError: it fits, but a limit that no waiting lifts lets the user run nothing.
    """
    fatal = [problem for problem in check_profile(profile, limits, partitions) if problem.fatal]
    if any(not problem.is_limit for problem in fatal):
        raise ProfileError("\n".join(map(str, fatal)))
    if fatal:
        raise LimitReachedError("\n".join(map(str, fatal)))


def check_profile(profile: Profile, limits: Limits, partitions: Collection[str] | None = None) -> list[Problem]:
    """Everything about the profile that does not fit the cluster, in the order of the profile; see `refuse`."""
    if profile.scheduler != "slurm":
        return []
    problems = list(_of_cluster(limits))
    for name, partition in profile.partitions.items():
        if partitions is None or name in partitions:
            problems += _of_partition(name, partition, profile, limits)
    return list(dict.fromkeys(problems))  # the profile's own account is at fault once, not once a partition


def whole_node(name: str, partition: Partition) -> Resources:
    """One job that has a node of the partition to itself, as large and as long as the profile allows."""
    return Resources(
        partition=name,
        accelerators=partition.accelerators_per_node,
        accelerator=partition.accelerator_name if partition.accelerators_per_node else None,
        num_cpus=partition.cpus_per_node,
        mem_gb=partition.memory_gb_per_node,
        time_min=partition.max_time_min,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """Under which names a job of a partition would run, and which keys of the profile say so."""

    where: str
    partition: str
    account: str | None
    qos: str | None
    account_key: str
    qos_key: str


def _asked(name: str, partition: Partition, profile: Profile) -> _Asked:
    options = sbatch_options(whole_node(name, partition), profile)
    account, qos = (str(options[key]) if key in options else None for key in ("account", "qos"))
    where = f"partitions.{name}"
    return _Asked(
        where=where,
        partition=name,
        account=account,
        qos=qos,
        account_key="account" if account == profile.account else f"{where}.account",
        qos_key="qos" if qos == profile.qos else f"{where}.qos",
    )


def _of_cluster(limits: Limits) -> Iterator[Problem]:
    if limits.max_array_tasks < 1:
        yield Problem(
            where="MaxArraySize",
            what="is 0: the cluster takes no job arrays, and Upshot submits nothing else",
            remedy="ask the administrators for a MaxArraySize of at least 2",
            is_limit=True,
        )
    elif limits.max_array_tasks == 1:
        yield Problem(
            where="MaxArraySize",
            what="is 1: an array takes one task, so every cell costs an sbatch call of its own",
            remedy="ask the administrators for a larger one",
            fatal=False,
        )
    if not limits.requeue_allowed:
        yield Problem(
            where="JobRequeue",
            what="is 0: jobs are not requeued unless they ask for it; those of Upshot do",
            remedy="leave `no-requeue` out of the profile's options",
            fatal=False,
        )


def _of_partition(name: str, partition: Partition, profile: Profile, limits: Limits) -> Iterator[Problem]:
    asked = _asked(name, partition, profile)
    yield from _of_user(asked, limits)
    for part in name.split(","):  # sbatch takes several, and uses the one that is free first
        found = limits.partitions.get(part)
        if found is None:
            yield _unknown(asked.where, "partition", part, limits.partitions, "name one that `sinfo` lists")
            continue
        yield from _of_state(asked.where, found)
        yield from _of_time(asked.where, partition, found, limits.wall_limit_min(asked.account, asked.qos, part))
        yield from _of_size(asked.where, partition, found)
        yield from _of_gres(asked.where, partition, found)
        yield from _of_access(asked, part, limits)
        yield from _of_preemption(asked, part, limits)


def _of_state(where: str, found: PartitionLimits) -> Iterator[Problem]:
    refuses = found.state in ("DRAIN", "INACTIVE")
    if found.state != "UP":
        yield Problem(
            where=where,
            what=f"its state is {found.state}: jobs {'are refused' if refuses else 'wait until it is up'}",
            remedy="use another one, or wait (`sinfo --summarize`)",
            fatal=refuses,
        )
    elif found.nodes and not found.num_usable_nodes:
        states = ", ".join(sorted({group.state for group in found.nodes}))
        yield Problem(
            where=where,
            what=f"none of its {found.num_nodes} nodes runs jobs now ({states})",
            remedy="jobs wait; use another one, or ask when they are back (`sinfo --list-reasons`)",
            fatal=False,
        )


def _of_time(where: str, partition: Partition, found: PartitionLimits, of_user: int | None) -> Iterator[Problem]:
    fate = "jobs that long are refused or wait for ever"
    if found.max_time_min is not None and partition.max_time_min > found.max_time_min:
        yield Problem(
            where=f"{where}.max_time_min",
            what=f"is {partition.max_time_min}, above the partition's MaxTime of {found.max_time_min} minutes: {fate}",
            remedy=f"set max_time_min = {found.max_time_min}",
        )
    if of_user is not None and of_user < 1:
        yield Problem(
            where=where,
            what="MaxWall of your QOS or association is below a minute: it runs no job",
            remedy="ask the administrators, or use another account or qos",
            is_limit=True,
        )
    elif of_user is not None and partition.max_time_min > of_user:
        yield Problem(
            where=f"{where}.max_time_min",
            what=f"is {partition.max_time_min}, above MaxWall of your QOS or association, {of_user} minutes: {fate}",
            remedy=f"set max_time_min = {of_user}, or use another qos",
        )


def _of_size(where: str, partition: Partition, found: PartitionLimits) -> Iterator[Problem]:
    if not found.nodes:
        yield Problem(where=where, what="it has no nodes", remedy="use another one")
        return
    asked_mb, most_mb = memory_mb(partition.memory_gb_per_node), found.memory_mb_per_node
    if partition.cpus_per_node > found.cpus_per_node:
        yield _too_large(f"{where}.cpus_per_node", partition.cpus_per_node, found.cpus_per_node)
    if asked_mb > most_mb:
        # Rounded down to what is surely there: a node of "1 TB" has 1,031,000 MiB or so.
        asked, most = f"{partition.memory_gb_per_node:g}", f"{most_mb * 10 // 1024 / 10:g}"
        yield _too_large(f"{where}.memory_gb_per_node", asked, most)
    most_nodes = min(found.num_nodes, found.max_nodes or found.num_nodes)
    if partition.max_nodes is not None and partition.max_nodes > most_nodes:
        yield Problem(
            where=f"{where}.max_nodes",
            what=f"is {partition.max_nodes}, but a job there can have {most_nodes}: larger ones wait for ever",
            remedy=f"set max_nodes = {most_nodes}",
        )


def _of_gres(where: str, partition: Partition, found: PartitionLimits) -> Iterator[Problem]:
    wanted = partition.gres
    if partition.accelerator == "none" or partition.request == "partition" or wanted is None or not found.nodes:
        return
    most = found.gres_per_node(wanted)
    there = sorted({name for group in found.nodes for name in group.gres})
    if not most:
        yield _unknown(f"{where}.gres", "gres", wanted, there, "name one that `sinfo -o %G` lists")
    elif partition.accelerators_per_node > most:
        yield _too_large(f"{where}.accelerators_per_node", partition.accelerators_per_node, most)


def _of_user(asked: _Asked, limits: Limits) -> Iterator[Problem]:
    """What the accounts say, where they are kept, can be read, and are enforced."""
    accounts = limits.accounts
    if accounts is None:
        return
    if "associations" in limits.enforced:
        yield from _of_account(asked, accounts, limits.user)
    association = accounts.association(asked.account, asked.partition)
    known = association.qos if association is not None and "qos" in limits.enforced else None
    if asked.qos is not None and known is not None and asked.qos.lower() not in known:
        yield _unknown(asked.qos_key, f"qos of {limits.user}", asked.qos, known, "name one of these")
    if limits.submit_limit(asked.account, asked.qos, asked.partition) == 0:
        yield Problem(
            where=asked.where,
            what="a submit limit of 0 (MaxSubmitJobs or GrpSubmitJobs of your association or QOS) lets you run nothing",
            remedy="ask the administrators, or use another account or qos",
            is_limit=True,
        )


def _of_account(asked: _Asked, accounts: Accounts, user: str) -> Iterator[Problem]:
    names = sorted({a.account for a in accounts.associations})
    if not names:
        remedy = "ask the administrators for one (`sacctmgr show user $USER withassoc`)"
        yield Problem(where="account", what=f"{user} has no account on this cluster", remedy=remedy)
    elif asked.account is not None and asked.account.lower() not in names:
        yield _unknown(asked.account_key, f"account of {user}", asked.account, names, "name one of these")
    elif all(accounts.association(asked.account, part) is None for part in asked.partition.split(",")):
        what = f"account {asked.account or accounts.default_account!r} may be used on other partitions only"
        yield Problem(where=asked.where, what=what, remedy="use another account or partition")


def _of_access(asked: _Asked, part: str, limits: Limits) -> Iterator[Problem]:
    """The accounts and QOS that a partition takes jobs of."""
    found, account, qos = limits.partitions[part], asked.account, asked.qos
    if limits.accounts is not None:
        account = account or limits.accounts.default_account
        qos = limits.accounts.qos_of_job(qos, limits.accounts.association(account, part))
    for kind, key, value, allowed, denied in (
        ("account", asked.account_key, account, found.allow_accounts, found.deny_accounts),
        ("qos", asked.qos_key, qos, found.allow_qos, found.deny_qos),
    ):
        is_unknown = value is None and (limits.accounting or kind == "qos")  # the accounts were not to be read
        if allowed is not None and not is_unknown and (value or "").lower() not in map(str.lower, allowed):
            what = f"partition {part} takes jobs of {kind} {', '.join(allowed)} only, not of {value or 'none'}"
            yield Problem(where=key, what=what, remedy=f"name one of these as {kind} in [{asked.where}]")
        elif value is not None and value.lower() in map(str.lower, denied):
            what = f"partition {part} takes no jobs of {kind} {value!r}"
            yield Problem(where=key, what=what, remedy=f"name another {kind} in [{asked.where}]")


def _of_preemption(asked: _Asked, part: str, limits: Limits) -> Iterator[Problem]:
    """Advice where a job can be preempted and its program does not hear of it in time."""
    found = limits.partitions[part]
    if limits.preempt_mode == "OFF" or found.preempt_mode == "OFF" or not _gives_way(asked, part, limits):
        return
    grace_s = max([found.grace_time_s, *(q.grace_time_s for q in limits.qos_chain(asked.account, asked.qos, part))])
    missing = [] if grace_s else ["a GraceTime of two minutes or so"]
    missing += [] if limits.preempt_sends_user_signal else ["SlurmctldParameters=preempt_send_user_signal"]
    if missing:
        yield Problem(
            where=asked.where,
            what="jobs here give way to others, without the time to leave a checkpoint first: they repeat some work",
            remedy=f"ask the administrators for {' and '.join(missing)}",
            fatal=False,
        )


def _gives_way(asked: _Asked, part: str, limits: Limits) -> bool:
    if not limits.preempts_by_qos:
        return limits.partitions[part].priority_tier < max(p.priority_tier for p in limits.partitions.values())
    if limits.accounts is None:
        return False
    used = limits.accounts.qos_of_job(asked.qos, limits.accounts.association(asked.account, part))
    return any(used in other.preempts for other in limits.accounts.qos.values())


def _too_large(where: str, asked: object, most: object) -> Problem:
    return Problem(where=where, what=f"is {asked}, but no node there has more than {most}", remedy=f"set it to {most}")


def _unknown(where: str, kind: str, name: str, known: Iterable[str], remedy: str) -> Problem:
    known = list(known)
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return Problem(
        where=where, what=f"unknown {kind} {name!r} (known: {', '.join(known) or 'none'}).{guess}", remedy=remedy
    )
