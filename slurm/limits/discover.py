"""Asks a cluster what it allows: three commands, and three more where it keeps accounts, whatever its size."""

import os
import pwd
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from slurm.jobs import Run, parse_time, run_slurm
from slurm.limits.known import Account, Accounts, Association, Limits, NodeGroup, PartitionLimits, Qos
from slurm.limits.parse import (
    parse_count,
    parse_gres,
    parse_memory_mb,
    parse_minutes,
    parse_seconds,
    parse_settings,
    parse_words,
)
from slurm.resources import SlurmError

_SINFO: Final = "%R|%D|%T|%c|%m|%G"
_NUM_FIELDS: Final = _SINFO.count("|") + 1
# "idle~" is powered down, "idle*" does not answer; the rest are reservations, reboots, power and the backfill's plans.
_STATE_MARKS: Final = "*~#!%$@^-+"
_NOT_SET: Final = ("", "N/A", "(null)")


def discover(run: Run | None = None, user: str | None = None) -> Limits:
    """What the cluster allows the user.

    Accounts that do not answer (no accounting, no sacctmgr here, a site that shows users nothing) are unknown, not an
    error.

    Args:
        run: what runs a command and returns its output.
        user: a user's name; None for the user who asks.

    Raises:
        SlurmUnreachable: the controller did not answer.
        SlurmError: it answered something that cannot be read.
    """
    run, user = run or run_slurm, user or _own_name()
    asked = time.time()
    said = run(["scontrol", "show", "config"])
    skew = _clock_skew(said, (asked + time.time()) / 2)
    settings = parse_settings(said)
    accounting = settings.get("AccountingStorageType", "(null)") not in ("(null)", "", "accounting_storage/none")
    controller, scheduler = _options(settings, "SlurmctldParameters"), _options(settings, "SchedulerParameters")
    return Limits(
        version=settings.get("SLURM_VERSION", "unknown"),
        cluster=settings.get("ClusterName", "unknown"),
        user=user,
        max_array_size=_number(settings, "MaxArraySize"),
        array_tasks_cap=parse_count(scheduler.get("max_array_tasks", "")),
        max_job_count=_number(settings, "MaxJobCount"),
        min_job_age_s=_number(settings, "MinJobAge"),
        kill_wait_s=_number(settings, "KillWait"),
        requeue_allowed=settings.get("JobRequeue", "1") == "1",
        preempt_mode=settings.get("PreemptMode", "OFF").upper(),
        preempts_by_qos=settings.get("PreemptType", "") == "preempt/qos",
        preempt_sends_user_signal="preempt_send_user_signal" in controller,
        refuses_too_large=settings.get("EnforcePartLimits", "NO").upper() not in ("NO", ""),
        accounting=accounting,
        enforced=frozenset(settings.get("AccountingStorageEnforce", "").split(",")) - {"", "none", "(null)"},
        accounts=_accounts(run, user, settings.get("ClusterName", "")) if accounting else None,
        clock_skew_s=skew,
        partitions=_partitions(run),
    )


def _own_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # the directory of users does not answer; sacctmgr finds nobody of that name either
        return str(os.geteuid())


def _clock_skew(said: str, now: float) -> float | None:
    # The first line ends in the controller's clock, in seconds since 1970 because run_slurm asks for them.
    first = said.partition("\n")[0]
    controller = parse_time(first.rpartition(" ")[2]) if first.startswith("Configuration data as of") else None
    return None if controller is None else now - controller.timestamp()


def _number(settings: Mapping[str, str], name: str) -> int:
    number = parse_count(settings.get(name, ""))
    if number is None:
        raise SlurmError(f"`scontrol show config` says no {name}, but {settings.get(name, 'nothing')!r}")
    return number


def _options(settings: Mapping[str, str], name: str) -> dict[str, str]:
    """The options of a setting that holds several: {"max_array_tasks": "500", "defer": ""}."""
    return {key: value for key, _, value in (option.partition("=") for option in settings.get(name, "").split(","))}


def _partitions(run: Run) -> dict[str, PartitionLimits]:
    lines = run(["scontrol", "--all", "--oneliner", "show", "partition"]).splitlines()
    # --exact, or nodes that differ a little share a line, with the least of each size and a "+".
    nodes = _node_groups(run(["sinfo", "--all", "--exact", "--noheader", f"--format={_SINFO}"]))
    partitions = [words for words in map(parse_words, lines) if "PartitionName" in words]
    return {words["PartitionName"]: _partition(words, nodes[words["PartitionName"]]) for words in partitions}


def _partition(words: Mapping[str, str], nodes: Sequence[NodeGroup]) -> PartitionLimits:
    def names(key: str) -> tuple[str, ...] | None:
        value = words.get(key, "ALL")
        return None if value.upper() in ("ALL", "(NULL)", "") else tuple(value.split(","))

    qos = words.get("QoS", "N/A")
    max_memory = words.get("MaxMemPerNode", "UNLIMITED")
    return PartitionLimits(
        state=words.get("State", "UP").upper(),
        is_default=words.get("Default", "NO").upper() == "YES",
        max_time_min=parse_minutes(words.get("MaxTime", "UNLIMITED")),
        default_time_min=parse_minutes(words.get("DefaultTime", "NONE")),
        max_nodes=parse_count(words.get("MaxNodes", "UNLIMITED")),
        max_cpus_per_node=parse_count(words.get("MaxCPUsPerNode", "UNLIMITED")),
        max_memory_mb_per_node=parse_memory_mb(max_memory) or None,  # 0 is no limit here
        grace_time_s=parse_count(words.get("GraceTime", "0")) or 0,
        preempt_mode=words.get("PreemptMode", "OFF").upper(),
        priority_tier=parse_count(words.get("PriorityTier", "1")) or 0,
        qos=None if qos in _NOT_SET else qos,
        allow_accounts=names("AllowAccounts"),
        deny_accounts=names("DenyAccounts") or (),
        allow_qos=names("AllowQos"),
        deny_qos=names("DenyQos") or (),
        nodes=tuple(nodes),
    )


def _node_groups(output: str) -> dict[str, list[NodeGroup]]:
    groups: dict[str, list[NodeGroup]] = defaultdict(list)
    for line in output.splitlines():
        fields = line.split("|", maxsplit=_NUM_FIELDS - 1)
        if len(fields) != _NUM_FIELDS:
            raise SlurmError(f"cannot read this line of sinfo's answer (wanted {_SINFO}): {line!r}")
        partition, count, state, cpus, memory, gres = fields
        group = NodeGroup(
            count=parse_count(count) or 0,
            state=state.rstrip(_STATE_MARKS).lower(),
            num_cpus=parse_count(cpus) or 0,
            memory_mb=parse_memory_mb(memory) or 0,
            gres=parse_gres(gres),
        )
        if group.count:  # a partition without nodes has a line too
            groups[partition].append(group)
    return groups


def _accounts(run: Run, user: str, cluster: str) -> Accounts | None:
    """None where the accounts do not answer; then their limits are met only when sbatch refuses."""
    where, listing = f"cluster={cluster.lower()}", ["sacctmgr", "--noheader", "--parsable2", "show"]
    of_user = "DefaultAccount,Account,Partition,QOS,DefaultQOS,MaxSubmitJobs,GrpSubmitJobs,MaxWall"
    of_account = "Account,User,ParentName,GrpSubmitJobs"
    of_qos = "Name,MaxSubmitJobsPerUser,MaxSubmitJobsPerAccount,GrpSubmitJobs,MaxWall,GraceTime,Preempt,Flags"
    with suppress(SlurmError):
        mine = _table(
            run([*listing, "user", "where", f"name={user}", where, "withassoc", f"format={of_user}"]), of_user
        )
        # Without a user: the accounts themselves. A user's own row shows what is inherited, but for group limits.
        above = _table(run([*listing, "assoc", "where", where, "user=", f"format={of_account}"]), of_account)
        qos = _table(run([*listing, "qos", f"format={of_qos}"]), of_qos)
        return Accounts(
            default_account=next((row["DefaultAccount"] for row in mine if row["DefaultAccount"]), None),
            associations=tuple(_association(row) for row in mine if row["Account"]),
            accounts={
                row["Account"]: Account(
                    parent=row["ParentName"] or None, group_submit=parse_count(row["GrpSubmitJobs"])
                )
                for row in above
                if not row["User"]
            },
            qos={row["Name"]: _qos(row) for row in qos},
        )
    return None


def _table(output: str, fields: str) -> list[dict[str, str]]:
    names = fields.split(",")
    rows = [line.split("|") for line in output.splitlines() if line]
    if any(len(row) != len(names) for row in rows):
        raise SlurmError(f"cannot read sacctmgr's answer (wanted {fields}): {output!r}")
    return [dict(zip(names, row, strict=True)) for row in rows]


def _association(row: Mapping[str, str]) -> Association:
    return Association(
        account=row["Account"].lower(),
        partition=row["Partition"] or None,
        qos=tuple(filter(None, row["QOS"].split(","))),
        default_qos=row["DefaultQOS"] or None,
        max_submit=parse_count(row["MaxSubmitJobs"]),
        group_submit=parse_count(row["GrpSubmitJobs"]),
        max_wall_min=parse_minutes(row["MaxWall"]),
    )


def _qos(row: Mapping[str, str]) -> Qos:
    return Qos(
        max_submit_per_user=parse_count(row["MaxSubmitJobsPerUser"]),
        max_submit_per_account=parse_count(row["MaxSubmitJobsPerAccount"]),
        group_submit=parse_count(row["GrpSubmitJobs"]),
        max_wall_min=parse_minutes(row["MaxWall"]),
        grace_time_s=parse_seconds(row["GraceTime"]) or 0,
        preempts=tuple(filter(None, row["Preempt"].split(","))),
        over_partition_qos="overpartqos" in row["Flags"].lower().split(","),
    )
