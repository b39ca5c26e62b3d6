import os
import pwd
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm.cluster import Partition, Profile, ProfileError
from slurm.limits import (
    Limits,
    NodeGroup,
    PartitionLimits,
    Problem,
    Refusal,
    check_profile,
    classify_refusal,
    discover,
    refuse,
    sbatch_test_only,
    whole_node,
)
from slurm.limits.parse import (
    gres_count,
    parse_count,
    parse_gres,
    parse_memory_mb,
    parse_minutes,
    parse_seconds,
    parse_settings,
    parse_words,
)
from slurm.resources import LimitReachedError, Resources, SlurmError, SlurmUnreachable
from tests.private_slurm import PrivateSlurm, available, clean_environment, wait_until

USER = pwd.getpwuid(os.geteuid()).pw_name
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
# Types of real sites: a MIG slice has a dot, none looks like a count.
TYPES = st.none() | st.from_regex(r"[a-z][a-z0-9_.-]{0,8}", fullmatch=True)


# ---- times, sizes, generic resources


@given(st.integers(0, 400), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_times_are_read_in_all_their_forms(days: int, hours: int, minutes: int, seconds: int) -> None:
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert parse_seconds(f"{days}-{hours:02}:{minutes:02}:{seconds:02}") == total
    assert parse_seconds(f"{days * 24 + hours:02}:{minutes:02}:{seconds:02}") == total
    assert parse_seconds(f"{total // 60}:{seconds:02}") == total
    assert parse_seconds(f"{total // 60}") == total // 60 * 60
    assert parse_seconds(f"{days}-{hours}:{minutes:02}") == total - seconds
    assert parse_seconds(f"{days}-{hours}") == (days * 24 + hours) * 3600
    assert parse_minutes(f"{days}-{hours:02}:{minutes:02}:{seconds:02}") == total // 60


@pytest.mark.parametrize("text", ["UNLIMITED", "INFINITE", "NONE", "", "(null)", "N/A"])
def test_no_limit_is_none(text: str) -> None:
    assert (parse_minutes(text), parse_memory_mb(text), parse_count(text)) == (None, None, None)


@given(st.integers(0, 10**9))
def test_sizes_are_megabytes(number: int) -> None:
    assert {parse_memory_mb(f"{number}{end}") for end in ("", "M", "MB", "+", "Mn", "Mc")} == {number}
    assert parse_memory_mb(f"{number}G") == number * 1024
    assert parse_memory_mb(f"{number}K") == number // 1024
    assert parse_count(f"{number} sec") == number


def test_sizes_with_a_fraction_are_rounded_down() -> None:
    assert parse_memory_mb("62.50G") == 64000
    assert parse_memory_mb("1.01T") == 1059061


@given(
    st.sampled_from((parse_seconds, parse_memory_mb, parse_count)), st.from_regex(r"[^\s\dUuIiNn(-]\S*", fullmatch=True)
)
def test_what_is_no_time_or_size_is_an_error_that_shows_it(parse: Callable[[str], int | None], text: str) -> None:
    with pytest.raises(SlurmError) as caught:
        parse(text)
    assert repr(text) in str(caught.value)


@given(st.dictionaries(st.tuples(NAMES, TYPES), st.integers(1, 64), max_size=4), st.data())
def test_generic_resources_are_read_by_name_and_type(wanted: dict[tuple[str, str | None], int], data: Any) -> None:
    items, expected = [], {}
    for (name, kind), count in wanted.items():
        key = f"{name}:{kind}" if kind else name
        sockets = data.draw(st.sampled_from(("", "(S:0-1)", "(S:0,2)", "(IDX:0-3,5)")))
        items.append(f"{key}:{data.draw(st.sampled_from(('', 'no_consume:')))}{count}{sockets}")
        expected[key] = count
    assert parse_gres(",".join(items)) == expected
    for name, _ in wanted:
        of_name = sum(count for (other, _), count in wanted.items() if other == name)
        assert gres_count(parse_gres(",".join(items)), name) == of_name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(null)", {}),
        ("", {}),
        ("gpu:h100:8(S:0-1)", {"gpu:h100": 8}),
        ("gpu:h100:4(S:0),gpu:h100:4(S:1)", {"gpu:h100": 8}),
        ("gpu:8", {"gpu": 8}),
        ("gpu:(null):8(S:0)", {"gpu": 8}),
        ("gpu:tesla", {"gpu:tesla": 1}),
        ("gpu:a100_3g.20gb:2(S:0),shard:a100:16", {"gpu:a100_3g.20gb": 2, "shard:a100": 16}),
        ("craynetwork:4,bandwidth:lustre:no_consume:4K", {"craynetwork": 4, "bandwidth:lustre": 4096}),
    ],
)
def test_generic_resources_of_real_sites(text: str, expected: dict[str, int]) -> None:
    assert parse_gres(text) == expected


def test_settings_and_words_keep_what_stands_behind_the_first_equals_sign() -> None:
    said = (
        "Configuration data as of 17\nSlurmctldParameters     = a,b=3\nMailProg =\n\nSlurmctld(primary) at vm is UP\n"
    )
    assert parse_settings(said) == {"SlurmctldParameters": "a,b=3", "MailProg": ""}
    assert parse_words("PartitionName=a TRES=cpu=8,mem=1G Comment=two words State=UP") == {
        "PartitionName": "a",
        "TRES": "cpu=8,mem=1G",
        "Comment": "two words",
        "State": "UP",
    }


# ---- what a refusal means

POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
# Real texts, those of 22.05.8 as it printed them; the others stand in src/common/slurm_errno.c or src/sbatch/sbatch.c.
REFUSALS = {
    Refusal.LIMIT: [
        f"sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: {POLICY}",
        f"sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: {POLICY}",
        f"sbatch: error: AssocGrpSubmitJobsLimit\nsbatch: error: Batch job submission failed: {POLICY}",
        f"sbatch: error: QOSGrpSubmitJobsLimit\nallocation failure: {POLICY}",
        f"sbatch: error: MaxSubmitJobsPerAccount\nsbatch: error: Batch job submission failed: {POLICY}",
        f"sbatch: error: Batch job submission failed: {POLICY}",
        "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying",
        "sbatch: error: Slurm job queue full, sleeping and retrying.",
        "allocation failure: Resource temporarily unavailable",
        "sbatch: error: Batch job submission failed: MaxJobCount limit reached",
    ],
    Refusal.LIMIT_NEVER: [
        f"sbatch: error: QOSMaxWallDurationPerJobLimit\nsbatch: error: Batch job submission failed: {POLICY}",
        f"sbatch: error: QOSMaxCpuPerJobLimit\nsbatch: error: Batch job submission failed: {POLICY}",
        f"sbatch: error: AssocMaxNodePerJobLimit\nsbatch: error: Batch job submission failed: {POLICY}",
        f"sbatch: error: MaxGRESPerAccount\nsbatch: error: Batch job submission failed: {POLICY}",
        "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
        "sbatch: error: CPU count per node can not be satisfied\n"
        "sbatch: error: Batch job submission failed: Requested node configuration is not available",
        "sbatch: error: Memory specification can not be satisfied\n"
        "sbatch: error: Batch job submission failed: Requested node configuration is not available",
        "allocation failure: Requested node configuration is not available",
        "sbatch: error: Batch job submission failed: Requested partition configuration not available now",
        "sbatch: error: Batch job submission failed: Memory required by task is not available",
        "sbatch: error: Batch job submission failed: Node count specification invalid",
        "sbatch: error: Batch job submission failed: More processors requested than permitted",
        "sbatch: error: Batch job submission failed: Invalid job array specification",
    ],
    Refusal.PROFILE: [
        "sbatch: error: invalid partition specified: nowhere\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified",
        "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
        "sbatch: error: Batch job submission failed: Invalid qos specification",
        "sbatch: error: Invalid generic resource (gres) specification",
        "sbatch: error: Batch job submission failed: Invalid GRES specification (with and without type identification)",
        "sbatch: error: Batch job submission failed: Invalid Trackable RESource (TRES) specification",
        "sbatch: error: Batch job submission failed: Invalid feature specification",
        "sbatch: error: Batch job submission failed: Invalid node name specified",
        "sbatch: error: Batch job submission failed: Requested reservation is invalid",
        "sbatch: error: Batch job submission failed: User's group not permitted to use this partition",
        "sbatch: error: Batch job submission failed: Access/permission denied",
        "sbatch: error: Batch job submission failed: No partition specified or system default partition",
        "sbatch: unrecognized option '--nonsense=1'\nTry \"sbatch --help\" for more information",
        "sbatch: error: Invalid --mem specification",
    ],
    Refusal.BUSY: [
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received",
        "sbatch: error: Batch job submission failed: Transport endpoint is not connected",
        "sbatch: error: Batch job submission failed: Connection refused",
        "sbatch: error: Batch job submission failed: Slurm backup controller in standby mode",
        "sbatch: error: Batch job submission failed: Rate limit exceeded, please retry momentarily",
        "sbatch: error: Batch job submission failed: Required partition not available (inactive or drain)",
        "sbatch: error: Batch job submission failed: System submissions disabled",
        'sbatch: error: Munge encode failed: Failed to access "/run/munge/munge.socket.2": No such file or directory\n'
        "sbatch: error: Batch job submission failed: Protocol authentication error",
        "sbatch: no answer in 120 s",
    ],
    Refusal.OTHER: [
        "",
        "sbatch: error: Batch job submission failed: Unspecified error",
        "sbatch: error: Your group has used up its hours; see https://example.org",
        "sbatch: error: Batch job submission failed: Job dependency problem",
        "sbatch: not found on PATH; is this a login node of the cluster?",
    ],
}


@pytest.mark.parametrize(
    ("refusal", "text"), [(refusal, text) for refusal, texts in REFUSALS.items() for text in texts]
)
def test_what_a_refusal_asks_for(refusal: Refusal, text: str) -> None:
    assert classify_refusal(text) is refusal
    assert classify_refusal(f"sbatch: {text}\n") is refusal


# ---- a profile against limits that are given

NODE = NodeGroup(count=2, state="idle", num_cpus=96, memory_mb=1_031_000, gres={"gpu:h100": 8})
LIMITS = Limits(
    version="23.11.4",
    cluster="c",
    user="u",
    max_array_size=1001,
    max_job_count=10_000,
    min_job_age_s=300,
    kill_wait_s=30,
    requeue_allowed=True,
    preempt_mode="OFF",
    preempt_sends_user_signal=False,
    refuses_too_large=False,
    accounting=False,
    partitions={"gpu": PartitionLimits(state="UP", is_default=True, max_time_min=2880, nodes=(NODE,))},
)
GPU = Partition(
    accelerator="gpu",
    gres="gpu:h100",
    accelerators_per_node=8,
    cpus_per_node=96,
    memory_gb_per_node=1000,
    max_time_min=2880,
)


def profile_of(partition: Partition = GPU, name: str = "gpu", **changes: Any) -> Profile:
    return Profile(partitions={name: partition.model_copy(update=changes)})


def with_partition(limits: Limits = LIMITS, **changes: Any) -> Limits:
    return replace(limits, partitions={"gpu": replace(limits.partitions["gpu"], **changes)})


def only(problems: Sequence[Problem]) -> Problem:
    assert len(problems) == 1, problems
    return problems[0]


def test_a_profile_that_fits_has_no_problem() -> None:
    assert check_profile(profile_of(), LIMITS) == []
    refuse(profile_of(), LIMITS)


@pytest.mark.parametrize(
    ("changes", "where", "what", "remedy"),
    [
        (
            {"max_time_min": 2881},
            "max_time_min",
            "is 2881, above the partition's MaxTime of 2880",
            "max_time_min = 2880",
        ),
        ({"cpus_per_node": 97}, "cpus_per_node", "is 97, but no node there has more than 96", "set it to 96"),
        (
            {"memory_gb_per_node": 1024},
            "memory_gb_per_node",
            "is 1024, but no node there has more than 1006.8",
            "1006.8",
        ),
        ({"accelerators_per_node": 9}, "accelerators_per_node", "is 9, but no node there has more than 8", "8"),
        ({"gres": "gpu:h200"}, "gres", "Did you mean 'gpu:h100'?", "sinfo"),
        ({"max_nodes": 3}, "max_nodes", "is 3, but a job there can have 2", "max_nodes = 2"),
    ],
)
def test_more_than_the_partition_has_is_refused(changes: dict[str, Any], where: str, what: str, remedy: str) -> None:
    problem = only(check_profile(profile_of(**changes), LIMITS))
    assert problem.where == f"partitions.gpu.{where}"
    assert what in problem.what
    assert remedy in problem.remedy
    with pytest.raises(ProfileError, match=f"partitions.gpu.{where}: "):
        refuse(profile_of(**changes), LIMITS)


def test_an_unknown_partition_is_met_with_the_nearest_known_one() -> None:
    problem = only(check_profile(profile_of(name="gpus"), LIMITS))
    assert (problem.where, problem.fatal) == ("partitions.gpus", True)
    assert "unknown partition 'gpus' (known: gpu). Did you mean 'gpu'?" in problem.what
    refuse(profile_of(name="gpus"), LIMITS, partitions=["another"])


def test_a_partition_may_be_several() -> None:
    assert check_profile(profile_of(name="gpu,gpu"), LIMITS) == []
    assert "'b'" in only(check_profile(profile_of(name="gpu,b"), LIMITS)).what


def test_what_one_job_may_have_of_a_node_counts_not_what_the_node_has() -> None:
    limits = with_partition(max_cpus_per_node=64, max_memory_mb_per_node=512_000, max_nodes=1)
    problems = check_profile(profile_of(max_nodes=2), limits)
    assert [problem.where.rpartition(".")[2] for problem in problems] == [
        "cpus_per_node",
        "memory_gb_per_node",
        "max_nodes",
    ]


def test_accelerators_that_come_with_the_partition_need_no_gres() -> None:
    assert check_profile(profile_of(request="partition", gres=None), LIMITS) == []


@pytest.mark.parametrize(("state", "fatal"), [("DOWN", False), ("DRAIN", True), ("INACTIVE", True)])
def test_a_partition_that_is_not_up(state: str, fatal: bool) -> None:
    problem = only(check_profile(profile_of(), with_partition(state=state)))
    assert state in problem.what
    assert problem.fatal is fatal


@pytest.mark.parametrize("state", ["down", "drained", "draining", "fail", "error", "inval"])
def test_nodes_that_are_all_out_of_service_are_told(state: str) -> None:
    problem = only(check_profile(profile_of(), with_partition(nodes=(replace(NODE, state=state),))))
    assert f"none of its 2 nodes runs jobs now ({state})" in problem.what
    assert not problem.fatal


def test_arrays_that_are_off_are_a_limit_and_no_fault_of_the_profile() -> None:
    limits = replace(LIMITS, max_array_size=0)
    assert only(check_profile(profile_of(), limits)).is_limit
    with pytest.raises(LimitReachedError, match="no job arrays"):
        refuse(profile_of(), limits)
    with pytest.raises(ProfileError, match="no job arrays"):
        refuse(profile_of(name="gpus"), limits)
    assert not only(check_profile(profile_of(), replace(LIMITS, max_array_size=1))).fatal


def test_the_most_tasks_of_an_array_are_the_least_of_three_limits() -> None:
    assert replace(LIMITS, max_array_size=101).max_array_tasks == 101
    assert replace(LIMITS, max_array_size=101, array_tasks_cap=50).max_array_tasks == 50
    assert replace(LIMITS, max_array_size=101, max_job_count=20).max_array_tasks == 19


@pytest.mark.parametrize(
    ("tier", "grace_s", "signal", "missing"),
    [
        (1, 0, False, ["GraceTime", "preempt_send_user_signal"]),
        (1, 60, False, ["preempt_send_user_signal"]),
        (1, 0, True, ["GraceTime"]),
        (1, 60, True, []),
        (2, 0, False, []),
    ],
)
def test_preemption_without_a_warning_is_told(tier: int, grace_s: int, signal: bool, missing: list[str]) -> None:
    limits = with_partition(priority_tier=tier, grace_time_s=grace_s, preempt_mode="REQUEUE")
    other = replace(LIMITS.partitions["gpu"], priority_tier=2)
    limits = replace(limits, partitions={**limits.partitions, "other": other})
    limits = replace(limits, preempt_mode="REQUEUE", preempt_sends_user_signal=signal)
    problems = check_profile(profile_of(), limits)
    if missing:
        remedy = only(problems).remedy
        assert [word for word in ("GraceTime", "preempt_send_user_signal") if word in remedy] == missing
        assert not only(problems).fatal
    else:
        assert problems == []


def test_jobs_that_are_not_requeued_by_themselves_are_told() -> None:
    assert not only(check_profile(profile_of(), replace(LIMITS, requeue_allowed=False))).fatal


def test_this_machine_has_no_limits() -> None:
    local = Profile(scheduler="local", partitions={"local": Partition()})
    assert check_profile(local, replace(LIMITS, max_array_size=0)) == []


# ---- answers of other versions and of sites that tell less

CONFIG = """Configuration data as of 1795621361
AccountingStorageEnforce = none
AccountingStorageType   = {storage}
ClusterName             = Big
JobRequeue              = 0
KillWait                = 30 sec
MaxArraySize            = 4001
MaxJobCount             = 200000
MinJobAge               = 300 sec
PreemptMode             = GANG,SUSPEND
PreemptType             = preempt/partition_prio
SchedulerParameters     = defer,max_array_tasks=500,bf_continue
SlurmctldParameters     = idle_on_node_suspend,preempt_send_user_signal
SLURM_VERSION           = 24.05.1
"""
PARTITION = "PartitionName=a Default=NO DefaultTime=NONE MaxNodes=UNLIMITED MaxTime=7-00:00:00 State=UP QoS=N/A\n"
NODES = "a|10|mixed-|128|515000+|gpu:a100:4(S:0-1)\na|2|down*|128|515000|(null)\nempty|0|n/a|0|0|(null)\n"


def answering(**answers: str) -> Callable[[Sequence[str]], str]:
    def run(command: Sequence[str]) -> str:
        word = next((word for word in command if word in answers), None)
        if word is None:
            raise SlurmError(f"{command[0]}: not told")
        return answers[word]

    return run


def test_a_newer_site_without_accounting_is_read() -> None:
    run = answering(config=CONFIG.format(storage="(null)"), partition=PARTITION, sinfo=NODES)
    limits = discover(run, user="u")
    assert (limits.version, limits.cluster, limits.user) == ("24.05.1", "Big", "u")
    assert (limits.max_array_size, limits.max_array_tasks, limits.max_job_count) == (4001, 500, 200_000)
    assert (limits.min_job_age_s, limits.kill_wait_s, limits.requeue_allowed) == (300, 30, False)
    assert (limits.preempt_mode, limits.preempt_sends_user_signal) == ("GANG,SUSPEND", True)
    assert (limits.accounting, limits.enforced, limits.accounts) == (False, frozenset(), None)
    a = limits.partitions["a"]
    assert (a.max_time_min, a.default_time_min, a.max_nodes, a.qos) == (7 * 24 * 60, None, None, None)
    assert (a.num_nodes, a.num_usable_nodes, a.cpus_per_node, a.memory_mb_per_node) == (12, 10, 128, 515_000)
    assert (a.gres_per_node("gpu"), a.gres_per_node("gpu:a100"), a.gres_per_node("gpu:h100")) == (4, 4, 0)
    assert limits.default_partition is None


def test_accounts_that_users_may_not_read_are_unknown() -> None:
    config = CONFIG.format(storage="accounting_storage/slurmdbd").replace("= none", "= associations,limits,qos,safe")
    limits = discover(answering(config=config, partition=PARTITION, sinfo=NODES), user="u")
    assert limits.accounting
    assert limits.enforced == {"associations", "limits", "qos", "safe"}
    assert limits.accounts is None
    assert limits.submit_limit() is None
    assert limits.wall_limit_min("x", "y", "a") is None
    assert check_profile(Profile(partitions={"a": Partition()}, account="x", qos="y"), limits)[0].where == "JobRequeue"


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"config": "nonsense\n"}, "MaxArraySize"),
        ({"config": CONFIG.replace("4001", "many")}, "'many'"),
        ({"partition": "PartitionName=a MaxTime=soon"}, "'soon'"),
        ({"sinfo": "a|2\n"}, "sinfo"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_says_so(answers: dict[str, str], said: str) -> None:
    good = {"config": CONFIG.format(storage="(null)"), "partition": PARTITION, "sinfo": NODES}
    with pytest.raises(SlurmError, match=said):
        discover(answering(**(good | answers)), user="u")


# ---- a real cluster without accounting


@pytest.fixture(scope="module")
def strict_slurm(private_slurm: PrivateSlurm) -> Iterator[PrivateSlurm]:
    """A cluster with partitions of all kinds and arrays of 20 tasks at most."""
    partitions = [
        "PartitionName=short Nodes=cpu0 MaxTime=30 MaxNodes=1 MaxMemPerNode=32000 MaxCPUsPerNode=2 State=UP",
        "PartitionName=closed Nodes=cpu0 State=DOWN",
        "PartitionName=draining Nodes=cpu0 State=DRAIN",
        "PartitionName=theirs Nodes=cpu0 AllowAccounts=a,b Hidden=YES",
        "PartitionName=patient Nodes=cpu0 PriorityTier=1 GraceTime=60",
    ]
    more = ["SlurmctldParameters=preempt_send_user_signal", "KillWait=7", "MinJobAge=250"]
    gpu = available(gpu=True)[0]
    with PrivateSlurm(gpu=gpu, tpu=True, max_array_size=20, extra_conf=[*partitions, *more]) as cluster:
        yield cluster


@pytest.fixture
def on_strict_slurm(strict_slurm: PrivateSlurm, monkeypatch: pytest.MonkeyPatch) -> PrivateSlurm:
    return speak_to(strict_slurm, monkeypatch)


def speak_to(cluster: PrivateSlurm, monkeypatch: pytest.MonkeyPatch) -> PrivateSlurm:
    for name in os.environ.keys() - clean_environment().keys():
        monkeypatch.delenv(name)
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    return cluster


def sbatch(*options: str) -> tuple[int, str]:
    """(exit code, what it said)."""
    command = ["sbatch", "--output=/dev/null", *options, "--wrap=true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr + done.stdout


def sbatch_held(*options: str) -> tuple[int, str]:
    """The same for a job that does not run if it is taken; Slurm does not look whether it ever could."""
    return sbatch("--hold", *options)


def clear(cluster: PrivateSlurm) -> None:
    cluster.run("scancel", f"--user={os.geteuid()}")
    wait_until(lambda: cluster.run("squeue", "--noheader") == "", "the queue is empty")


@pytest.mark.slurm
def test_a_real_cluster_is_read(on_strict_slurm: PrivateSlurm) -> None:
    limits = discover()
    assert limits.version in on_strict_slurm.run("sbatch", "--version")
    assert (limits.cluster, limits.user, limits.max_array_size, limits.max_job_count) == ("mini", USER, 20, 10_000)
    assert (limits.min_job_age_s, limits.kill_wait_s, limits.requeue_allowed) == (250, 7, True)
    assert (limits.preempt_mode, limits.preempts_by_qos, limits.preempt_sends_user_signal) == ("REQUEUE", False, True)
    assert (limits.accounting, limits.accounts, limits.submit_limit()) == (False, None, None)
    assert limits.default_partition == "cpu"
    assert limits.clock_skew_s is not None
    assert abs(limits.clock_skew_s) < 60
    short, theirs = limits.partitions["short"], limits.partitions["theirs"]
    assert (short.max_time_min, short.max_nodes, short.cpus_per_node, short.memory_mb_per_node) == (30, 1, 2, 32_000)
    assert (theirs.allow_accounts, theirs.state) == (("a", "b"), "UP")
    assert {limits.partitions[name].state for name in ("closed", "draining")} == {"DOWN", "DRAIN"}
    cpu, tpu = limits.partitions["cpu"], limits.partitions["tpu-v5e"]
    assert (cpu.num_nodes, cpu.cpus_per_node, cpu.memory_mb_per_node, cpu.max_time_min) == (2, 4, 64_000, None)
    assert (cpu.default_time_min, cpu.priority_tier, cpu.gres_per_node("gpu")) == (10, 10, 0)
    assert (tpu.gres_per_node("tpu:v5e"), tpu.gres_per_node("tpu")) == (4, 4)
    assert limits.partitions["patient"].grace_time_s == 60


@pytest.mark.slurm
def test_max_array_size_is_the_number_of_tasks_from_zero(on_strict_slurm: PrivateSlurm) -> None:
    tasks = discover().max_array_tasks
    assert tasks == 20
    assert sbatch_held(f"--array=0-{tasks - 1}")[0] == 0
    code, said = sbatch_held(f"--array=0-{tasks}")
    assert (code, classify_refusal(said)) == (1, Refusal.LIMIT_NEVER)
    assert "Invalid job array specification" in said
    clear(on_strict_slurm)


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        (["--partition=nowhere"], Refusal.PROFILE),
        (["--gres=nothing:1"], Refusal.PROFILE),
        (["--constraint=nothing"], Refusal.PROFILE),
        (["--exclude=nowhere"], Refusal.PROFILE),
        (["--nonsense"], Refusal.PROFILE),
        (["--cpus-per-task=5"], Refusal.LIMIT_NEVER),
        (["--mem=64001M"], Refusal.LIMIT_NEVER),
        (["--partition=tpu-v5e", "--gres=tpu:v5e:5"], Refusal.LIMIT_NEVER),
        (["--partition=draining"], Refusal.BUSY),
    ],
)
def test_what_a_real_sbatch_refuses(on_strict_slurm: PrivateSlurm, options: list[str], refusal: Refusal) -> None:
    code, said = sbatch(*options)
    assert code
    assert classify_refusal(said) is refusal, said


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("name", "changes", "where"),
    [
        ("cpu", {}, None),
        ("cpu", {"cpus_per_node": 5}, "cpus_per_node"),
        ("cpu", {"memory_gb_per_node": 63}, "memory_gb_per_node"),
        ("cpu", {"memory_gb_per_node": 62.5}, None),
        ("tpu-v5e", {"accelerators_per_node": 4}, None),
        ("tpu-v5e", {"accelerators_per_node": 5}, "accelerators_per_node"),
        ("tpu-v5e", {"accelerators_per_node": 1, "gres": "tpu:v6e"}, "gres"),
        ("draining", {}, "draining"),
        ("nowhere", {}, "nowhere"),
    ],
)
def test_the_check_and_sbatch_agree(
    on_strict_slurm: PrivateSlurm, name: str, changes: dict[str, Any], where: str | None
) -> None:
    tpu = {"accelerator": "tpu", "gres": "tpu:v5e"} if "accelerators_per_node" in changes else {}
    base = {"cpus_per_node": 4, "memory_gb_per_node": 4, "max_time_min": 60}
    profile = Profile(partitions={name: Partition.model_validate({**base, **tpu, **changes})})
    fatal = [problem for problem in check_profile(profile, discover()) if problem.fatal]
    said = sbatch_test_only(whole_node(name, profile.partitions[name]), profile)
    if where is None:
        assert (fatal, said) == ([], None)
    else:
        assert only(fatal).where.endswith(f".{where}")
        assert said is not None
        assert classify_refusal(said) is not Refusal.OTHER


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("name", "changes", "where", "fatal"),
    [
        ("short", {"max_time_min": 31}, "partitions.short.max_time_min", True),
        ("short", {"max_nodes": 2}, "partitions.short.max_nodes", True),
        ("short", {"memory_gb_per_node": 32}, "partitions.short.memory_gb_per_node", True),
        ("theirs", {}, "account", True),
        ("closed", {}, "partitions.closed", False),
    ],
)
def test_the_check_finds_what_sbatch_lets_wait_for_ever(
    on_strict_slurm: PrivateSlurm, name: str, changes: dict[str, Any], where: str, fatal: bool
) -> None:
    base = {"max_time_min": 30, "cpus_per_node": 2}
    profile = Profile(partitions={name: Partition.model_validate(base | changes)})
    problems = [p for p in check_profile(profile, discover()) if "give way" not in p.what]
    assert (only(problems).where, only(problems).fatal) == (where, fatal)
    wanted = whole_node(name, profile.partitions[name])
    assert sbatch_test_only(replace(wanted, num_nodes=1), profile) is None


@pytest.mark.slurm
def test_preemption_on_a_real_cluster(on_strict_slurm: PrivateSlurm) -> None:
    limits = discover()
    profile = Profile(partitions={name: Partition(max_time_min=30) for name in ("scavenge", "patient", "cpu")})
    problem = only(check_profile(profile, limits))
    assert (problem.where, problem.fatal) == ("partitions.scavenge", False)
    assert problem.remedy.endswith("for a GraceTime of two minutes or so")


@pytest.mark.slurm
def test_a_full_controller_is_a_limit_that_passes(private_slurm: PrivateSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    with PrivateSlurm(num_nodes=1, extra_conf=["MaxJobCount=3", "JobRequeue=0"]) as cluster:
        speak_to(cluster, monkeypatch)
        limits = discover()
        assert (limits.max_job_count, limits.max_array_tasks, limits.requeue_allowed) == (3, 2, False)
        assert sbatch_held("--requeue", f"--array=0-{limits.max_array_tasks - 1}")[0] == 0
        assert " Requeue=1 " in cluster.run("scontrol", "show", "job")
        profile = Profile(partitions={"cpu": Partition()})
        said = sbatch_test_only(Resources(partition="cpu", mem_gb=1, time_min=1), profile)
        assert said is not None
        assert classify_refusal(said) is Refusal.LIMIT


@pytest.mark.slurm
def test_sites_may_cap_arrays_and_refuse_what_exceeds_a_partition(
    private_slurm: PrivateSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = [
        "SchedulerParameters=max_array_tasks=5",
        "EnforcePartLimits=ALL",
        "PartitionName=short Nodes=cpu0 MaxTime=30",
    ]
    with PrivateSlurm(num_nodes=1, extra_conf=conf) as cluster:
        speak_to(cluster, monkeypatch)
        limits = discover()
        assert (limits.max_array_tasks, limits.refuses_too_large) == (5, True)
        assert (sbatch_held("--array=0-4")[0], sbatch_held("--array=0-5")[0]) == (0, 1)
        for options in (["--time=31"], ["--nodes=2"]):
            code, said = sbatch_held("--partition=short", *options)
            assert (code, classify_refusal(said)) == (1, Refusal.LIMIT_NEVER)


@pytest.mark.slurm
def test_a_controller_that_does_not_answer_is_silence(
    on_strict_slurm: PrivateSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (on_strict_slurm.folder / "slurm.conf").read_text()
    (tmp_path / "slurm.conf").write_text(text.replace(f"socket={on_strict_slurm.folder}", "socket=/nowhere"))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    with pytest.raises(SlurmUnreachable) as caught:
        discover()
    assert classify_refusal(str(caught.value)) is Refusal.BUSY


# ---- a real cluster that keeps accounts and enforces their limits


@pytest.fixture(scope="module")
def limiting_slurm(accounting_slurm: PrivateSlurm) -> Iterator[PrivateSlurm]:
    """The user is in team (below lab) and, in the partition short only, in guests; QOS high and (of a partition) pq."""
    conf = ["AccountingStorageEnforce=limits,qos", "PartitionName=short Nodes=cpu0 MaxTime=300 PriorityTier=10"]
    with PrivateSlurm(accounting=True, num_nodes=1, extra_conf=conf) as cluster:
        for words in (
            "add account lab,guests cluster=mini",
            "add account team parent=lab cluster=mini",
            "add qos high,pq",
            f"add user {USER} account=team cluster=mini",
            f"add user {USER} account=guests cluster=mini partition=short",
            f"modify user {USER} where account=team set qos=normal,high",
            f"modify user {USER} set DefaultAccount=team",
        ):
            cluster.run("sacctmgr", "--immediate", "--quiet", *words.split())
        cluster.run("scontrol", "create", "PartitionName=qpart", "Nodes=cpu0", "QOS=pq", "MaxTime=300", "State=UP")
        yield cluster


class LimitingSlurm:
    """Speaks to its accounts, and takes back what it was told."""

    def __init__(self, cluster: PrivateSlurm) -> None:
        self._cluster = cluster
        self._modified: set[tuple[str, str]] = set()

    def modify(self, *modifications: str) -> None:
        for words in modifications:
            self._cluster.run("sacctmgr", "--immediate", "--quiet", "modify", *words.split())
            what, settings = words.split(" set ")
            self._modified |= {(what, setting.partition("=")[0]) for setting in settings.split()}

    def reset(self) -> None:
        clear(self._cluster)
        self.modify(*(f"{what} set {name}=-1" for what, name in sorted(self._modified)))


@pytest.fixture
def on_limiting_slurm(limiting_slurm: PrivateSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[LimitingSlurm]:
    """Without a limit, before and after."""
    limiting = LimitingSlurm(speak_to(limiting_slurm, monkeypatch))
    yield limiting
    limiting.reset()


# What is set, where the job goes, how many it may have at a time, and what sbatch names when it is one more.
SUBMIT_LIMITS = {
    "association": (["account team set MaxSubmitJobs=3"], {}, 3, "AssocMaxSubmitJobLimit"),
    "account above": (
        ["account lab set GrpSubmitJobs=4", "account team set MaxSubmitJobs=6"],
        {},
        4,
        "AssocGrpSubmitJobsLimit",
    ),
    "qos before association": (
        ["account team set MaxSubmitJobs=3", "qos high set MaxSubmitJobsPerUser=5"],
        {"qos": "high"},
        5,
        "QOSMaxSubmitJobPerUserLimit",
    ),
    "other qos": (["qos high set MaxSubmitJobsPerUser=5", "qos normal set MaxSubmitJobsPerUser=2"], {}, 2, "QOSMax"),
    "qos for each account": (["qos high set MaxSubmitJobsPerAccount=2"], {"qos": "high"}, 2, "MaxSubmitJobsPerAccount"),
    "group of a qos before the accounts'": (
        ["account lab set GrpSubmitJobs=3", "qos high set GrpSubmitJobs=5"],
        {"qos": "high"},
        5,
        "QOSGrpSubmitJobsLimit",
    ),
    "qos of the partition first": (
        ["qos pq set MaxSubmitJobsPerUser=4", "qos high set MaxSubmitJobsPerUser=6"],
        {"qos": "high", "partition": "qpart"},
        4,
        "QOSMaxSubmitJobPerUserLimit",
    ),
    "qos over the partition's": (
        ["qos pq set MaxSubmitJobsPerUser=4", "qos high set MaxSubmitJobsPerUser=6 flags=OverPartQOS"],
        {"qos": "high", "partition": "qpart"},
        6,
        "QOSMaxSubmitJobPerUserLimit",
    ),
}


@pytest.mark.slurm
@pytest.mark.parametrize(("set_up", "job", "limit", "said"), SUBMIT_LIMITS.values(), ids=SUBMIT_LIMITS)
def test_the_submit_limit_is_what_sbatch_holds_to(
    on_limiting_slurm: LimitingSlurm, set_up: list[str], job: dict[str, str], limit: int, said: str
) -> None:
    on_limiting_slurm.modify(*set_up)
    assert discover().submit_limit(**job) == limit
    options = [f"--{name}={value}" for name, value in job.items()]
    code, refused = sbatch_held(f"--array=0-{limit}", *options)
    assert (code, classify_refusal(refused)) == (1, Refusal.LIMIT)
    assert said in refused
    assert sbatch_held(f"--array=0-{limit - 1}", *options)[0] == 0
    assert classify_refusal(sbatch_held(*options)[1]) is Refusal.LIMIT


@pytest.mark.slurm
def test_a_limit_of_none_can_never_be_met(on_limiting_slurm: LimitingSlurm) -> None:
    on_limiting_slurm.modify("account lab set GrpSubmitJobs=0")
    profile = Profile(partitions={"cpu": Partition(max_time_min=60)})
    limits = discover()
    assert limits.submit_limit() == 0
    with pytest.raises(LimitReachedError, match="submit limit of 0") as caught:
        refuse(profile, limits)
    assert not caught.value.passes
    assert sbatch_held()[0] == 1
    assert classify_refusal(sbatch_held()[1]) is Refusal.LIMIT


@pytest.mark.slurm
def test_the_wall_limit_of_association_and_qos(on_limiting_slurm: LimitingSlurm) -> None:
    on_limiting_slurm.modify("account team set MaxWall=1-00:00:00", "qos high set MaxWall=02:00:00 flags=DenyOnLimit")
    limits = discover()
    assert (limits.wall_limit_min(), limits.wall_limit_min(qos="high")) == (1440, 120)
    code, said = sbatch_held("--qos=high", "--time=121")
    assert (code, classify_refusal(said)) == (1, Refusal.LIMIT_NEVER)
    assert "QOSMaxWallDurationPerJobLimit" in said
    assert sbatch_held("--qos=high", "--time=120")[0] == 0
    partition = Partition(max_time_min=1440)
    assert check_profile(Profile(partitions={"cpu": partition}), limits) == []
    problem = only(check_profile(Profile(partitions={"cpu": partition}, qos="high"), limits))
    assert problem.remedy == "set max_time_min = 120, or use another qos"


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("name", "given", "where", "what"),
    [
        ("cpu", {"account": "lab"}, "account", "unknown account of"),
        ("cpu", {"account": "teem"}, "account", "Did you mean 'team'?"),
        ("cpu", {"qos": "hihg"}, "qos", "Did you mean 'high'?"),
        ("cpu", {"account": "guests"}, "partitions.cpu", "other partitions only"),
        ("short", {"account": "guests"}, None, ""),
        ("cpu", {"account": "TEAM", "qos": "high"}, None, ""),
    ],
)
def test_accounts_and_qos_that_are_not_the_users(
    on_limiting_slurm: LimitingSlurm, name: str, given: dict[str, str], where: str | None, what: str
) -> None:
    profile = Profile.model_validate({"partitions": {name: Partition(max_time_min=60)}, **given})
    problems = check_profile(profile, discover())
    said = sbatch_test_only(whole_node(name, profile.partitions[name]), profile)
    if where is None:
        assert (problems, said) == ([], None)
    else:
        assert only(problems).where == where
        assert what in only(problems).what
        assert classify_refusal(said or "") is Refusal.PROFILE


@pytest.mark.slurm
def test_a_user_without_an_account(on_limiting_slurm: LimitingSlurm) -> None:
    limits = discover(user="nobody-of-that-name")
    assert limits.submit_limit() is None
    problem = only(check_profile(Profile(partitions={"cpu": Partition()}), limits))
    assert problem.what == "nobody-of-that-name has no account on this cluster"


@pytest.mark.slurm
def test_limits_that_are_not_enforced_do_not_bind(on_accounting_slurm: PrivateSlurm) -> None:
    limits = discover()
    assert limits.accounting
    assert limits.enforced == set()
    assert limits.accounts is not None
    assert "normal" in limits.accounts.qos
    assert limits.submit_limit() is None
    assert check_profile(Profile(partitions={"cpu": Partition()}, account="anything"), limits) == []
