"""Tests that compile for torch-xla's runtime on CPUs: `make test-xla` has an environment for them."""

import os
from collections.abc import Callable
from importlib.util import find_spec

import pytest

from tests.xla.runs import Trained, recipe, run

# A step compiles in 2 s instead of 9, and takes longer, which does not matter here. Read when torch_xla is imported.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips where torch-xla is not to be had; where it must be, that is a failure."""
    if find_spec("torch_xla") is None:
        reason = "torch-xla is not installed here: `make test-xla` has an environment with it"
    elif os.environ.get("PJRT_DEVICE") != "CPU":
        reason = "PJRT_DEVICE is not CPU"
    else:
        return
    if os.environ.get("UPSHOT_REQUIRE_XLA") == "1":
        pytest.fail(f"UPSHOT_REQUIRE_XLA=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """A family's run under torch-xla, once."""
    runs: dict[str, Trained] = {}

    def trained(family: str) -> Trained:
        if family not in runs:
            runs[family] = run(recipe(family), tmp_path_factory.mktemp(family))
        return runs[family]

    return trained
