import re

import pytest

from slurm.cluster import Partition, Profile
from slurm.options import sbatch_options
from slurm.resources import Resources
from tests.private_slurm import PrivateSlurm

H100 = Partition(accelerator="gpu", gres="gpu:h100", accelerators_per_node=8, cpus_per_node=96, memory_gb_per_node=1000)
JOB = Resources(partition="h100", accelerators=2, accelerator="gpu:h100", num_cpus=24, mem_gb=100.5, time_min=90)
COMMON = {"nodes": "1", "ntasks-per-node": "1", "cpus-per-task": "24", "mem": "102912M", "time": "90"}


def options(partition: Partition, resources: Resources = JOB, **profile: object) -> dict[str, str | bool]:
    return sbatch_options(resources, Profile.model_validate({"partitions": {"h100": partition}, **profile}))


@pytest.mark.parametrize(
    ("request_by", "gres", "said"),
    [
        ("gres", "gpu:h100", {"gres": "gpu:h100:2"}),
        ("gres", "gpu", {"gres": "gpu:2"}),
        ("gpus-per-node", "gpu:h100", {"gpus-per-node": "h100:2"}),
        ("gpus-per-node", "gpu", {"gpus-per-node": "2"}),
        ("partition", "gpu:h100", {}),
    ],
)
def test_accelerators_are_asked_for_as_the_profile_says(request_by: str, gres: str, said: dict[str, str]) -> None:
    partition = H100.model_copy(update={"request": request_by, "gres": gres})
    job = Resources(
        partition="h100", accelerators=2, accelerator=gres, num_cpus=24, mem_gb=JOB.mem_gb, time_min=JOB.time_min
    )
    assert options(partition, job) == {"partition": "h100", **COMMON, **said}


def test_the_cpus_of_a_node_are_shared_by_its_tasks() -> None:
    job = Resources(partition="h100", num_nodes=2, tasks_per_node=8, num_cpus=96, mem_gb=1, time_min=1)
    assert {"nodes": "2", "ntasks-per-node": "8", "cpus-per-task": "12"}.items() <= options(H100, job).items()


def test_a_partition_overrides_the_profile_and_its_options_the_rest() -> None:
    partition = H100.model_copy(
        update={"account": "lab", "options": {"exclusive": True, "layout": "2x4", "qos": "top"}}
    )
    said = options(partition, account="org", qos="low", exclude=["n2", "n1"])
    assert (said["account"], said["qos"], said["exclude"]) == ("lab", "top", "n1,n2")
    assert (said["exclusive"], said["layout"]) == (True, "2x4")
    assert options(H100, account="org", qos="low").items() >= {"account": "org", "qos": "low"}.items()


def test_resources_have_the_last_word() -> None:
    job = Resources(
        partition="h100", mem_gb=1, time_min=1, exclude=("n3",), extra=(("account", "mine"), ("contiguous", ""))
    )
    said = options(H100.model_copy(update={"account": "lab"}), job, exclude=["n1"])
    assert (said["account"], said["contiguous"], said["exclude"]) == ("mine", True, "n1,n3")


def test_without_a_partition_there_is_nothing_of_it() -> None:
    said = options(H100, Resources(mem_gb=0.0001, time_min=1), account="org")
    assert said == {"account": "org", **COMMON, "cpus-per-task": "1", "mem": "1M", "time": "1"}


@pytest.mark.slurm
def test_slurm_reads_what_is_meant(on_slurm: PrivateSlurm) -> None:
    partition = Partition(
        accelerator="tpu", gres="tpu:v5e", accelerators_per_node=4, options={"comment": "two words; $HOME 'q'"}
    )
    job = Resources(
        partition="tpu-v5e",
        accelerators=3,
        accelerator="tpu:v5e",
        tasks_per_node=2,
        num_cpus=4,
        mem_gb=2.5,
        time_min=1500,
        extra=(("hold", ""),),
    )
    profile = Profile(partitions={"tpu-v5e": partition}, exclude=["cpu1", "cpu0"])
    words = [
        f"--{name}" if value is True else f"--{name}={value}" for name, value in sbatch_options(job, profile).items()
    ]
    job_id = on_slurm.run("sbatch", "--parsable", "--output=/dev/null", *words, "--wrap=true").strip()
    said = on_slurm.run("scontrol", "show", "job", job_id)
    for expected in ("Partition=tpu-v5e", "NumNodes=1", "CPUs/Task=2", "TimeLimit=1-01:00:00", "ExcNodeList=cpu[0-1]"):
        assert expected in said
    assert "Comment=two words; $HOME 'q' " in said
    assert re.search(r"MinMemoryNode=2560M|MinMemoryNode=2\.50G", said)
    assert re.search(r"TresPerNode=gres[:/]tpu:v5e:3", said)
    assert re.search(r"NtasksPerN:B:S:C=2:", said)
