"""Real processes over gloo that train cells together; torch is slow to start, so a world trains many, one by one."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from safetensors.torch import load_file

from models.checkpoint import finalised_steps, step_folder

ROOT = Path(__file__).resolve().parents[2]


def recipe(family="vit", **axes):
    return {
        "family": family,
        "size": "pico",
        "dataset": "icons",
        "image_size": 32,
        "patch_size": None if family == "resnet" else 8,
        "fraction": 0.1,
        "classes": 0.1,  # few to measure on
        "batch_size": 31,
        "epochs": 0.5,
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "head_learning_rate": 0.05,
        "head_weight_decay": 0.03,
    } | axes


def run_worlds(cells, folder):
    """(where it was written, what every rank printed by size of its world, rank and cell)."""
    return folder, {size: run_world(size, of_size, folder) for size, of_size in cells.items()}


def run_world(size, cells, folder):
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        ranks = [stack.enter_context(start(rank, size, listener, folder, cells)) for rank in range(size)]
        said = [process.communicate(timeout=400)[0].splitlines() for process in ranks]
    return [{record["cell"]: record for record in map(json.loads, lines)} for lines in said]


def start(rank, size, listener, folder, cells):
    fd = listener.fileno() if rank == 0 else None
    arguments = json.dumps([rank, size, listener.getsockname()[1], fd, str(folder), cells])
    return subprocess.Popen(
        [sys.executable, "-m", "tests.models.rank", arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        pass_fds=() if fd is None else (fd,),
        stdout=subprocess.PIPE,
        text=True,
    )


def curve(records):
    keys = ("step", "train_loss", "upstream_loss", "upstream_accuracy")
    kept = [record for record in records if record["event"] in ("train", "checkpoint")]
    return [{key: record[key] for key in keys if key in record} for record in kept]


def weights(folder):
    return load_file(step_folder(folder, finalised_steps(folder)[-1]) / "weights.safetensors")


def largest_difference(folder, expected):
    ours, theirs = weights(folder), weights(expected)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
