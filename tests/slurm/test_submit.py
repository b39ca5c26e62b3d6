import sys

import pytest

from slurm.cluster import Partition, Profile
from slurm.resources import Resources
from slurm.submit import job_python


@pytest.mark.parametrize(
    ("of_profile", "of_partition", "expected"),
    [
        (None, None, sys.executable),
        ("/opt/a/python", None, "/opt/a/python"),
        ("/opt/a/python", "/opt/b/python", "/opt/b/python"),
        (None, "/opt/with space/$(x)/python", "'/opt/with space/$(x)/python'"),
    ],
)
def test_a_job_runs_the_interpreter_of_its_partition_of_the_profile_or_of_the_submitter(
    of_profile, of_partition, expected
):
    profile = Profile(partitions={"tpu": Partition(python=of_partition)}, python=of_profile)
    resources = Resources(partition="tpu", mem_gb=1, time_min=1)
    assert job_python(resources, profile) == expected
    assert job_python(resources, profile.model_copy(update={"use_srun": False})) == f"exec {expected}"


def test_a_partition_that_the_profile_does_not_describe_has_the_profiles_interpreter():
    profile = Profile(partitions={"cpu": Partition(python="/opt/b/python")}, python="/opt/a/python")
    assert job_python(Resources(mem_gb=1, time_min=1), profile) == "/opt/a/python"
