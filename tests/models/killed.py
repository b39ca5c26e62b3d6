"""Training in a process of its own, which dies by SIGKILL when the test says so."""

import json
import os
import signal
import subprocess
import sys

import torch

PROGRAM = """
import json, sys
from pathlib import Path
from models.recipe import Recipe
from models.train import train
from models.trunk import Trunk
wanted, folder, num_checkpoints, trunk = map(json.loads, sys.argv[1:])
train(
    Recipe.model_validate(wanted), Path(folder), num_checkpoints=num_checkpoints,
    log=lambda record: print(json.dumps(record), flush=True),
    trunk=trunk and Trunk(folder=Path(trunk[0]), epochs=tuple(trunk[1])),
)
"""


def train_until(is_the_moment, wanted, folder, *, num_checkpoints, trunk=None):
    """Trains until a record is `is_the_moment`, then kills; `trunk` is (folder, epochs of the others)."""
    trunk = trunk and (str(trunk[0]), trunk[1])
    arguments = [json.dumps(value) for value in (wanted.model_dump(), str(folder), num_checkpoints, trunk)]
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True, env=env) as p:
        for line in p.stdout:
            if is_the_moment(json.loads(line)):
                p.send_signal(signal.SIGKILL)
                break
    assert p.returncode == -signal.SIGKILL


def is_checkpoint(record):
    return record["event"] == "checkpoint"
