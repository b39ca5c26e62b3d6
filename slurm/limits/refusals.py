"""What it means that sbatch refuses a job, and how to find out before there is one."""

import re
from enum import StrEnum
from typing import Final

from slurm.cluster import Profile
from slurm.jobs import Run, run_slurm
from slurm.options import sbatch_options
from slurm.resources import Resources, SlurmError, SlurmUnreachable


class Refusal(StrEnum):
    """What has to happen before the same request can be taken."""

    LIMIT = "limit"  # jobs have to end: there are as many as may be
    LIMIT_NEVER = "limit_never"  # the request has to shrink: no job may be that large or that long
    BUSY = "busy"  # time has to pass: Slurm did not answer, or takes no jobs at the moment
    PROFILE = "profile"  # the profile has to be mended: it names what is not there, or is not this user's
    OTHER = "other"  # somebody has to read it


# Texts of src/common/slurm_errno.c and of sbatch itself. Tried in this order: what was asked for is at fault whatever
# else is said; a line that names a limit is better than the one below it, which speaks of all of them.
_TEXTS: Final = (
    (
        Refusal.PROFILE,
        r"invalid partition|no partition specified|invalid account|invalid qos"
        r"|invalid (generic resource|gres|trackable)"
        r"|invalid (preferred )?feature|invalid node name|requested nodes not in this partition"
        r"|(invalid|denied to) requested reservation|requested reservation is invalid|group not permitted"
        r"|access/permission denied|invalid (wckey|license)|invalid --|(unrecognized|invalid) option|unknown option"
        r"|option .* requires an argument|invalid or unknown association",
    ),
    (
        Refusal.LIMIT_NEVER,
        r"requested time limit is invalid|invalid time(-min)? (limit|spec)|requested (node|partition|topology) config"
        r"|node count specification invalid|cpu count (per node can not be satisfied|specification invalid)"
        r"|task count specification invalid|more processors requested|memory (required by task|specification can)"
        r"|invalid job array specification|job size exceeds|exceeds (the )?(partition|max|time|limit)",
    ),
    # AssocMaxSubmitJobLimit, AssocGrpSubmitJobsLimit, QOSMaxSubmitJobPerUserLimit, QOSGrpSubmitJobsLimit,
    # MaxSubmitJobsPerAccount; "Resource temporarily unavailable" is EAGAIN, which stands for MaxJobCount.
    (
        Refusal.LIMIT,
        r"(Assoc|QOS|Max|Grp)\w*Submit\w*|unable to accept job|resource temporarily unavailable|MaxJobCount"
        r"|job queue full|breached requested qos usage",
    ),
    # The other reasons that a submission is refused for: QOSMaxWallDurationPerJobLimit, AssocMaxCpuPerJobLimit, ...
    (Refusal.LIMIT_NEVER, r"\b(Assoc|QOS)(Grp|Max|Min)\w+|\bMax\w+Per(Account|Job|Node|User|Limit)\b"),
    (Refusal.LIMIT, r"violates accounting/qos policy"),
    (
        Refusal.BUSY,
        r"unable to contact|connection (refused|failure|reset|timed out|rejected|forced closed)|connect failure"
        r"|timed out|timeout|no answer in|zero bytes|transport endpoint|message (send|receive) failure|standby"
        r"|rate limit exceeded|authentication error|munge|no route to host|unreachable|shutting down"
        r"|submissions disabled|presently disabled|(partition|node) not available|requested nodes are busy"
        r"|communication (connection|shutdown) failure|could not establish a configuration source",
    ),
)
_PATTERNS: Final = tuple((refusal, re.compile(pattern, re.IGNORECASE)) for refusal, pattern in _TEXTS)


def classify_refusal(text: str) -> Refusal:
    """What sbatch's standard error asks for.

    "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)" stands for all limits of
    the accounts. Slurm says which one in the line before: one with "Submit" in its name passes as jobs end, any other
    never does. Where there is no such line it is taken for a submit limit. Two cases look the same here, and only the
    caller can tell them apart by `Limits.submit_limit`: a queue that is full, and an array that is larger than the
    limit, which has to be cut. "Invalid job array specification" is an array above `Limits.max_array_tasks`.
    """
    return next((refusal for refusal, pattern in _PATTERNS if pattern.search(text)), Refusal.OTHER)


def sbatch_test_only(resources: Resources, profile: Profile, run: Run | None = None) -> str | None:
    """What Slurm says against one such job, asked by `sbatch --test-only`, which submits nothing; None if it is taken.

    Slurm takes a job that is longer than its partition allows, or whose partition is down, and lets it wait for ever,
    unless EnforcePartLimits is set: `check_profile` finds these.

    Raises:
        SlurmUnreachable: sbatch is not here, or nobody answered it.
    """
    options = sbatch_options(resources, profile)
    words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
    try:
        (run or run_slurm)(["sbatch", "--test-only", *words, "--wrap=true"])
    except SlurmUnreachable:
        raise
    except SlurmError as error:
        return str(error)
    return None
