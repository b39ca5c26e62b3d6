"""The installed `upshot` command, as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

UPSHOT = Path(sys.executable).with_name("upshot")


def upshot(*words, cwd=None, code=0, env=None):
    """What it printed; both streams, so that a test can look for a message wherever it went.

    A variable of `env` that is None is taken out of the environment.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    done = subprocess.run(
        [UPSHOT, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={name: value for name, value in variables.items() if value is not None},
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def upshot_json(*words, code=0, env=None):
    return json.loads(upshot(*words, "--json", code=code, env=env))
