"""Trains a ViT of half a billion parameters for some steps, sharded over two processes of this machine.

It prints what each of them held beside its libraries and images, and what the plan says of it. It takes about 12 GB of
memory, 4 GB of disk for the checkpoint, and some minutes; give it another free size, such as dim1024-depth12, to try.
"""

import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from models.ladder import num_params, training_memory

SIZE = "dim2048-depth9"
RANKS = 2
RECIPE = {
    "family": "vit",
    "patch_size": 16,
    "image_size": 64,
    "dataset": "icons",
    "classes": 0.02,  # few images to measure on
    "fraction": 0.03,
    "batch_size": 8,
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "head_learning_rate": 0.01,
    "head_weight_decay": 0.03,
}


def main() -> None:
    """Starts the processes, and says what came of them."""
    size = sys.argv[1] if len(sys.argv) > 1 else SIZE
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        ranks = [_started(rank, size, listener, folder) for rank in range(RANKS)]
        said = [json.loads(process.communicate()[0].splitlines()[-1]) for process in ranks]
    first = said[0]
    print(f"ViT {size}: {first['params'] / 1e6:.0f} M parameters over {RANKS} processes, batch {first['batch_size']}")
    print("losses: " + " ".join(f"{loss:.4f}" for loss in first["losses"]))
    print(f"{first['step_s']:.1f} s a step, {first['save_s']:.1f} s from the last one to the end of its checkpoint")
    parts = " ".join(f"{name} {gb:.2f}" for name, gb in first["planned"].items())
    print(f"GB planned on each: {parts}; in all {sum(first['planned'].values()):.2f}")
    for rank, one in enumerate(said):
        print(
            f"GB that rank {rank} held at most: {one['held_gb']:.2f},"
            f" beside {one['before_gb']:.2f} of libraries and images"
        )


def _started(rank: int, size: str, listener: socket.socket, folder: str) -> subprocess.Popen[str]:
    descriptor = listener.fileno() if rank == 0 else None
    arguments = json.dumps([rank, size, listener.getsockname()[1], descriptor, folder])
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from benchmarks.large_cell import run_rank; run_rank(*{arguments.replace('null', 'None')})",
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        pass_fds=() if descriptor is None else (descriptor,),
        stdout=subprocess.PIPE,
        text=True,
    )


def run_rank(rank: int, size: str, port: int, listen_fd: int | None, folder: str) -> None:
    """Trains as one of the processes, and prints what it saw."""
    from dataclasses import asdict

    from models.distributed import World
    from models.prepare import recipe_architecture
    from models.recipe import Recipe
    from models.train import train

    recipe = Recipe.model_validate(RECIPE | {"size": size})
    records: list[tuple[float, dict[str, object]]] = []
    peaks: list[float] = []

    def should_stop() -> bool:
        peaks.append(_memory_gb("VmHWM"))
        times.append(time.perf_counter())
        return False

    times: list[float] = []
    place = {"rank": rank, "size": RANKS, "local_rank": rank, "host": "127.0.0.1", "port": port}
    with World.formed(**place, listen_fd=listen_fd) as world:
        small = recipe.model_copy(update={"size": "dim64-depth2"})  # loads the libraries and the images
        train(small, Path(folder) / "small", num_checkpoints=1, log=lambda _: None, world=world, sharded=True)
        before_gb = _memory_gb("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that of the cell
        train(
            recipe,
            Path(folder) / "large",
            num_checkpoints=1,
            log=lambda record: records.append((time.perf_counter(), record)),
            should_stop=should_stop,
            world=world,
            sharded=True,
        )
        ended = time.perf_counter()
    start = records[0][1] if records else {"num_classes": 2, "batch_size": RECIPE["batch_size"]}
    arch = recipe_architecture(recipe, int(str(start["num_classes"])))
    planned = training_memory(arch, -(-int(str(start["batch_size"])) // RANKS), optimizer="sgd", num_shards=RANKS)
    steps_s = [b - a for a, b in itertools.pairwise(times)][:-1]
    print(
        json.dumps(
            {
                "params": num_params(arch),
                "batch_size": start["batch_size"],
                "losses": [record["train_loss"] for _, record in records if record["event"] == "train"],
                "step_s": sorted(steps_s)[len(steps_s) // 2],
                "save_s": ended - times[-1],
                "planned": {name.removesuffix("_gb"): gb for name, gb in asdict(planned).items() if gb},
                "before_gb": before_gb,
                "held_gb": peaks[-2] - before_gb,
            }
        )
    )


def _memory_gb(kind: str) -> float:
    """Of this process, what it has (VmRSS) or has had at most (VmHWM), in GB of 10**9 bytes, as the plan counts."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{kind}:"))
    return int(line.split()[1]) * 1024 / 1e9


if __name__ == "__main__":
    main()
