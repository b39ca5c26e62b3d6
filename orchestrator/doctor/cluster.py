"""Checks of the cluster: whether Slurm answers, what it allows, and whether it takes what the profile asks for."""

import shutil
from collections.abc import Callable, Iterator

from orchestrator.doctor.checks import Check, Level, advice, mend, ok
from slurm.cluster import Profile, driver_partition
from slurm.limits import (
    Limits,
    PartitionLimits,
    Problem,
    Refusal,
    check_profile,
    classify_refusal,
    discover,
    sbatch_test_only,
    whole_node,
)
from slurm.resources import Resources, SlurmError, SlurmUnreachable

COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "sinfo")
SKEW_S = 30.0
SHORT_AGE_S = 60


def find_limits(*, is_wanted: bool) -> tuple[list[Check], Limits | None]:
    """(what came of asking Slurm, its limits if it answered); silence matters only where Slurm is wanted."""
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing and not is_wanted:
        return [ok("slurm", "is not here, and nothing asks for it")], None
    if missing:
        found, remedy = f"not on PATH: {', '.join(missing)}", "run this on a login node of the cluster"
        return [Check(level=Level.MEND, topic="slurm", found=found, remedy=remedy, is_silence=True)], None
    try:
        return [], discover()
    except SlurmError as error:
        remedy = "try `scontrol ping`; if it does not answer either, ask the administrators"
        found = " ".join(str(error).split())
        if not is_wanted:
            return [advice("slurm", found, remedy)], None
        is_silence = isinstance(error, SlurmUnreachable)
        return [Check(level=Level.MEND, topic="slurm", found=found, remedy=remedy, is_silence=is_silence)], None


def check_limits(limits: Limits) -> Iterator[Check]:
    """The cluster as such."""
    yield ok("slurm", f"{limits.version} answers; cluster {limits.cluster}, user {limits.user}")
    skew_s = limits.clock_skew_s
    if skew_s is not None and abs(skew_s) > SKEW_S:
        what = f"this machine is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} the controller"
        yield advice("clock", what, "ask the administrators: times in reports and waits will be off by as much")
    yield ok(
        "arrays", f"up to {limits.max_array_tasks:,} tasks in one; the cluster holds {limits.max_job_count:,} jobs"
    )
    yield _accounting(limits)


def check_partitions(profile: Profile, limits: Limits) -> Iterator[Check]:
    """The profile against the cluster, then a job of every partition as sbatch sees it."""
    problems = check_profile(profile, limits)
    for problem in problems:
        yield _as_check(problem)
    for name in profile.partitions:
        known = limits.partitions.get(name)
        if known is not None:
            yield ok(f"partition {name}", _described(known, profile, name, limits))
        if not any(problem.fatal and _concerns(problem, name) for problem in problems):
            yield _trial(name, profile)
    yield _driver(profile)


def list_partitions(limits: Limits) -> Iterator[Check]:
    """What a profile could be written from, where there is none yet."""
    for name, partition in limits.partitions.items():
        yield ok(f"partition {name}", _nodes(partition))
    yield advice("profile", "none was given", "describe the cluster in a file, then: upshot doctor --profile FILE")


def _accounting(limits: Limits) -> Check:
    if not limits.accounting:
        found = f"none: what became of a job is known for {limits.min_job_age_s} s (MinJobAge), then by its files alone"
        if limits.min_job_age_s >= SHORT_AGE_S:
            return ok("accounting", found)
        return advice("accounting", found, f"ask for a MinJobAge of {SHORT_AGE_S} s or more, and keep `watch` running")
    if limits.accounts is None:
        found = "is kept, but tells you nothing of accounts and QOS: their limits show when sbatch refuses"
        return advice("accounting", found, "check that `sacctmgr show user $USER withassoc` answers here")
    limit = limits.submit_limit()
    count = "any number of" if limit is None else f"{limit:,}"
    return ok("accounting", f"is kept; by default you may have {count} jobs in the queue")


def _as_check(problem: Problem) -> Check:
    return (mend if problem.fatal else advice)(problem.where, problem.what, problem.remedy)


def _concerns(problem: Problem, name: str) -> bool:
    """Whether it is of that partition, or of all of them."""
    return not problem.where.startswith("partitions.") or f"{problem.where}.".startswith(f"partitions.{name}.")


def _trial(name: str, profile: Profile) -> Check:
    """A job with a whole node of the partition, put to `sbatch --test-only`."""
    said = sbatch_test_only(whole_node(name, profile.partitions[name]), profile)
    if said is None:
        return ok(f"sbatch {name}", "takes a job that has a whole node as long as the profile allows")
    return _refused(f"sbatch {name}", said, mend)


def _driver(profile: Profile) -> Check:
    """The job that `upshot watch --as-job` would run in."""
    name = driver_partition(profile)
    said = sbatch_test_only(Resources(partition=name, mem_gb=2, time_min=profile.driver.time_min), profile)
    if said is None:
        return ok("watch --as-job", f"sbatch works from here; it would run in partition {name}")
    return _refused(f"watch --as-job in {name}", said, advice)


def _refused(topic: str, said: str, otherwise: Callable[[str, str, str], Check]) -> Check:
    remedies = {
        Refusal.LIMIT: "wait until jobs of yours have ended",
        Refusal.BUSY: "try again later",
        Refusal.LIMIT_NEVER: "make the profile's nodes, memory or time smaller",
        Refusal.PROFILE: "mend the profile's partition, account, qos, gres or options",
        Refusal.OTHER: "ask the administrators what it means",
    }
    refusal, text = classify_refusal(said), " ".join(said.split())
    passes = refusal in (Refusal.LIMIT, Refusal.BUSY)
    return (advice if passes else otherwise)(topic, text, remedies[refusal])


def _described(known: PartitionLimits, profile: Profile, name: str, limits: Limits) -> str:
    partition = profile.partitions[name]
    limit = limits.submit_limit(partition.account or profile.account, partition.qos or profile.qos, name)
    return _nodes(known) + ("" if limit is None else f"; you may have {limit:,} jobs in the queue")


def _nodes(known: PartitionLimits) -> str:
    gres = sorted({f"{name} x{count}" for group in known.nodes for name, count in group.gres.items()})
    size = [f"{known.cpus_per_node} CPUs", f"{known.memory_mb_per_node / 1024:.4g} GB", *gres]
    most = "no time limit" if known.max_time_min is None else f"at most {known.max_time_min:,} minutes"
    nodes = f"{known.num_usable_nodes} of {known.num_nodes} nodes in service"
    return f"{known.state}, {nodes}, up to {', '.join(size)} each; {most}"
