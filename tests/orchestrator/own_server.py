"""A loopback W&B server that is the only one which the test, and the commands that it starts, know of."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.wandb_server import WandbServer

FOLDERS = ("HOME", "XDG_CACHE_HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")


@contextmanager
def own_server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """The server, with `home` for all that wandb keeps; in the end it had an answer for whatever it was asked."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name in FOLDERS:
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    with WandbServer() as started:
        for name, value in started.environment.items():
            monkeypatch.setenv(name, value)
        yield started
        started.recover()
        assert started.unknown == []
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()
