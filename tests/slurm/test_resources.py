import math
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm.resources import Resources, SlurmError, SlurmUnreachable

BASE = Resources(mem_gb=4, time_min=60)
OPTIONS = ("qos", "account", "constraint", "reservation", "exclusive")
WORDS = st.text(alphabet="abcdefgh0123456789_-,", min_size=1, max_size=8)


@st.composite
def resources(draw: st.DrawFn) -> Resources:
    accelerators = draw(st.integers(0, 8))
    return Resources(
        partition=draw(st.none() | WORDS),
        num_nodes=draw(st.integers(1, 64)),
        accelerators=accelerators,
        accelerator=draw(st.sampled_from(("gpu", "gpu:h100", "tpu:v5e"))) if accelerators else None,
        num_cpus=draw(st.integers(1, 128)),
        mem_gb=draw(st.integers(1, 512) | st.floats(0.25, 512)),
        time_min=draw(st.integers(1, 10_000)),
        extra=tuple(draw(st.dictionaries(st.sampled_from(OPTIONS), WORDS)).items()),
    )


@given(resources())
def test_equal_requests_are_one_key(asked: Resources) -> None:
    assert replace(asked) == asked
    assert hash(replace(asked)) == hash(asked)


@given(resources())
def test_every_field_makes_another_request(asked: Resources) -> None:
    others = [
        replace(asked, partition=f"{asked.partition}x"),
        replace(asked, num_nodes=asked.num_nodes + 1),
        replace(asked, accelerators=asked.accelerators + 1, accelerator=asked.accelerator or "gpu"),
        replace(asked, accelerators=asked.accelerators or 1, accelerator="npu"),
        replace(asked, num_cpus=asked.num_cpus + 1),
        replace(asked, mem_gb=asked.mem_gb + 1),
        replace(asked, time_min=asked.time_min + 1),
        replace(asked, extra=(*asked.extra, ("comment", "x"))),
    ]
    assert asked not in set(others)


def test_the_order_of_extra_options_and_the_type_of_memory_do_not_matter() -> None:
    first = Resources(mem_gb=4, time_min=60, extra=(("qos", "high"), ("account", "vision")))
    second = Resources(mem_gb=4.0, time_min=60, extra=(("account", "vision"), ("qos", "high")))
    assert first == second
    assert hash(first) == hash(second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_nodes": 0}, "num_nodes: must be a whole number, at least 1, not 0"),
        ({"num_nodes": True}, "num_nodes: must be a whole number, at least 1, not True"),
        ({"num_cpus": 1.5}, "num_cpus: must be a whole number, at least 1, not 1.5"),
        ({"time_min": -5}, "time_min: must be a whole number, at least 1, not -5"),
        ({"accelerators": -1}, "accelerators: must be a whole number, at least 0, not -1"),
        ({"mem_gb": 0}, "mem_gb: must be a positive number of GiB, not 0"),
        ({"mem_gb": math.nan}, "mem_gb: must be a positive number of GiB, not nan"),
        ({"mem_gb": math.inf}, "mem_gb: must be a positive number of GiB, not inf"),
        ({"mem_gb": True}, "mem_gb: must be a positive number of GiB, not True"),
        ({"mem_gb": "4"}, "mem_gb: must be a positive number of GiB, not '4'"),
        ({"partition": ""}, "partition: must be one word, not ''"),
        ({"partition": "gpu h100"}, "partition: must be one word, not 'gpu h100'"),
        ({"partition": "gpu\n"}, r"partition: must be one word, not 'gpu\\n'"),
        ({"accelerators": 2}, "accelerator: must name the gres of the 2 accelerators"),
        ({"accelerator": "gpu"}, "accelerators: must be at least 1 when accelerator is given"),
        ({"accelerators": 8, "accelerator": "gpu:h100:8"}, "accelerator: must be a gres name or name:type"),
        ({"accelerators": 8, "accelerator": "gpu:8"}, r"how many goes into accelerators\), not 'gpu:8'"),
        ({"extra": (("time", "5"),)}, "extra: 'time' is already given by the field time_min"),
        ({"extra": (("--qos", "x"),)}, "extra: must name sbatch options by their long names without dashes"),
        ({"extra": (("qos", "a"), ("qos", "b"))}, "extra: 'qos' is given twice"),
        ({"extra": (("comment", "a\nrm -rf x"),)}, "extra: the value of 'comment' must be a printable string"),
        ({"extra": (("qos", 3),)}, "extra: the value of 'qos' must be a printable string, not 3"),
    ],
)
def test_a_request_that_no_job_can_have_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(BASE, **change)  # type: ignore[arg-type]  # wrong types are the point


def test_resources_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        BASE.num_nodes = 2  # type: ignore[misc]  # what is tested


def test_an_unreachable_slurm_is_a_slurm_error() -> None:
    assert issubclass(SlurmUnreachable, SlurmError)
    assert issubclass(SlurmError, RuntimeError)
