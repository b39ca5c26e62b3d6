"""What it costs to judge a checkpoint: seconds on the twelve packaged tasks, and memory on a million test images.

    python -m benchmarks.evaluation [--repeats 3] [--images 1000000]

One thread. The first part judges untrained small models on every packaged task, at all layers, with 1, 5, 10 and 25
shots and 3 draws; the rival is the bare forward pass of the same model over the same images. Then with more protocols,
which share these passes. Images are decoded before the clock starts. The second part passes a million images of noise
through an MLP-Mixer of twelve blocks of 1,024 features, whose hidden layers are narrow so that a CPU gets through it:
what is measured is memory.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

MODELS = (("vit", "pico"), ("mixer", "nano"), ("resnet", "pico"), ("vit", "micro"))
SHOTS = {"shots": (1, 5, 10, 25), "draws": 3}
MORE = ("ridge", "ridge-fixed", "big_vision")
BATCH = 128
PIXELS = 8  # of the million: a model that computes next to nothing, with features as large as those of a real one
WIDTH, LAYERS, CLASSES = 1024, 12, 100


# --- one checkpoint on twelve tasks, in a process of its own ----------------------------------------------------------


def twelve_tasks(family: str, size: str) -> None:
    """Prints seconds with ridge, of the bare forward passes, with more protocols, and images encoded in either case."""
    import torch

    from evals.datasets import load_task
    from evals.encoding import Encoder
    from evals.judge import Judge
    from evals.protocol import Protocol
    from evals.tasks import names
    from models.build import build_model
    from models.inputs import to_input
    from models.ladder import architecture, num_layers

    torch.manual_seed(0)
    a = architecture(family, size, image_size=32, num_classes=700, patch_size=None if family == "resnet" else 8)
    model, data = build_model(a).eval(), {task: load_task(task, 32) for task in names()}
    encoder = Encoder(model=lambda: model, num_layers=num_layers(a) + 1, batch_size=BATCH)
    first = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    seen: list[int] = []

    def judged(*names: str) -> tuple[float, int]:
        seen.clear()
        hook = first.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
        wanted = [Protocol(name=name, **SHOTS) for name in names]
        start = time.perf_counter()
        for task, images in data.items():
            Judge(encoder=encoder, data=images, task=task).results(wanted)
        taken = time.perf_counter() - start
        hook.remove()
        return taken, sum(seen)

    ridge_s, num_images = judged("ridge")
    x_BCHW = to_input(torch.zeros(BATCH, 32, 32, 3, dtype=torch.uint8))
    with torch.no_grad():
        start = time.perf_counter()
        for _ in range(num_images // BATCH):
            model(x_BCHW)
        forward_s = time.perf_counter() - start
    more_s, num_again = judged(*MORE)
    print(ridge_s, forward_s, more_s, num_images, num_again)


# --- a million test images, in a process of its own -------------------------------------------------------------------


class Noise:
    """Test images that are made when they are asked for."""

    def __init__(self, num_images: int) -> None:
        self.labels_N = np.arange(num_images) % CLASSES

    def batches(self, index_N, batch_size):
        noise_NHWC = np.random.RandomState(0).randint(0, 256, (batch_size, PIXELS, PIXELS, 3), dtype=np.uint8)
        for start in range(0, len(index_N), batch_size):
            yield np.roll(noise_NHWC, start // batch_size, axis=2)[: len(index_N) - start]


def many_images(num: int) -> None:
    """Prints seconds, what the process held before, and at most, in GiB."""
    import torch
    from timm.models.mlp_mixer import MlpMixer

    from evals.datasets import ArrayImages, TaskData
    from evals.encoding import Encoder
    from evals.judge import Judge
    from evals.protocol import Protocol

    torch.manual_seed(0)
    model = MlpMixer(
        num_classes=2,
        img_size=PIXELS,
        patch_size=PIXELS,
        num_blocks=LAYERS - 1,
        embed_dim=WIDTH,
        mlp_ratio=(0.001, 0.02),
    )
    rng = np.random.RandomState(0)
    shots_NHWC = rng.randint(0, 256, (25 * CLASSES, PIXELS, PIXELS, 3), dtype=np.uint8)
    train = ArrayImages(shots_NHWC, np.repeat(np.arange(CLASSES), 25))
    data = TaskData(train=train, test=Noise(num), classes=tuple(map(str, range(CLASSES))))
    encoder = Encoder(model=lambda: model.eval(), num_layers=LAYERS, batch_size=BATCH)
    before_gib, start = memory_gib(), time.perf_counter()
    Judge(encoder=encoder, data=data, task="noise").results([Protocol(shots=SHOTS["shots"], draws=1)])
    print(time.perf_counter() - start, before_gib, memory_gib())


def memory_gib() -> float:
    """The most that this process has held."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 2**20


# --- all of them ------------------------------------------------------------------------------------------------------


def in_a_process(*arguments: object) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.evaluation", "--measure", *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    found = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if found.returncode:
        sys.exit(f"{' '.join(command)}\n{found.stderr}")
    return [float(value) for value in found.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--measure", nargs="+", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        kind, *rest = options.measure
        many_images(int(rest[0])) if kind == "many" else twelve_tasks(*rest)
        return
    print(f"twelve packaged tasks, ridge; then {', '.join(MORE)}; medians of {options.repeats}")
    print(f"{'model':14}{'images':>8}{'seconds':>9}{'forward':>9}{'ratio':>7}{'with more':>11}{'images':>8}")
    for family, size in MODELS:
        runs = [in_a_process("tasks", family, size) for _ in range(options.repeats)]
        ridge_s, forward_s, more_s, num, again = (statistics.median(column) for column in zip(*runs, strict=True))
        print(
            f"{family + ' ' + size:14}{num:8.0f}{ridge_s:9.1f}{forward_s:9.1f}{ridge_s / forward_s:7.2f}"
            f"{more_s:11.1f}{again:8.0f}",
            flush=True,
        )
    seconds, before_gib, most_gib = in_a_process("many", options.images)
    print(
        f"{options.images:,} test images, {LAYERS} layers of {WIDTH} features, {CLASSES} classes: {seconds:.0f} s, at"
        f" most {most_gib:.2f} GiB, {before_gib:.2f} of them before the first image"
    )


if __name__ == "__main__":
    main()
