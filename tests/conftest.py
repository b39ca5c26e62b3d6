"""For the tests of all rooms: hypothesis without deadlines, a private Slurm cluster for the session."""

import os
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests.private_slurm import SLURM_VARIABLES, PrivateSlurm, available

if TYPE_CHECKING:
    from collections.abc import Iterator

# Tests run side by side (see the Makefile): threads that wait for each other would halve the speed of all.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# How long an example takes is the machine's affair: a deadline would fail tests on a busy one.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture(autouse=True, scope="session")
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[None]":
    """What timm models cost is measured once for a session, and not looked up in the home folder."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_itemcollected(item: pytest.Item) -> None:
    """What needs Slurm runs in one of pytest-xdist's processes, so that a cluster is started once."""
    if item.get_closest_marker("slurm") or any("slurm" in name for name in getattr(item, "fixturenames", ())):
        item.add_marker(pytest.mark.xdist_group("slurm"))


def _skip_or_fail(is_available: bool, reason: str) -> None:
    """Skips where Slurm is not to be had; where it must be, that is a failure."""
    if not is_available and os.environ.get("UPSHOT_REQUIRE_SLURM") == "1":
        pytest.fail(f"UPSHOT_REQUIRE_SLURM=1, but no private Slurm can run here: {reason}")
    if not is_available:
        pytest.skip(f"no private Slurm can run here: {reason}")


@pytest.fixture(scope="session")
def private_slurm() -> "Iterator[PrivateSlurm]":
    """A cluster of two CPU nodes, a TPU node and, where the host has spare consoles, a GPU node; no accounting."""
    _skip_or_fail(*available())
    with PrivateSlurm(gpu=available(gpu=True)[0], tpu=True) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def accounting_slurm() -> "Iterator[PrivateSlurm]":
    """A cluster of two CPU nodes that keeps accounts."""
    _skip_or_fail(*available(accounting=True))
    with PrivateSlurm(accounting=True) as cluster:
        yield cluster


@pytest.fixture
def on_slurm(private_slurm: PrivateSlurm, monkeypatch: pytest.MonkeyPatch) -> "Iterator[PrivateSlurm]":
    """The session's cluster, with this process set up to speak to it; its jobs are cancelled afterwards."""
    yield from _spoken_to(private_slurm, monkeypatch)


@pytest.fixture
def on_accounting_slurm(accounting_slurm: PrivateSlurm, monkeypatch: pytest.MonkeyPatch) -> "Iterator[PrivateSlurm]":
    """The same for the cluster that keeps accounts."""
    yield from _spoken_to(accounting_slurm, monkeypatch)


def _spoken_to(cluster: PrivateSlurm, monkeypatch: pytest.MonkeyPatch) -> "Iterator[PrivateSlurm]":
    for name in [name for name in os.environ if name.startswith(SLURM_VARIABLES)]:
        monkeypatch.delenv(name)
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    yield cluster
    cluster.run("scancel", f"--user={os.geteuid()}")
