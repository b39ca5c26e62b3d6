"""Images per second of our training loop, of timm's, and of a bare step on one batch that never changes.

    python -m benchmarks.throughput [--timm-train PATH] [--repeats 3] [--only 32]

Same model, batch, precision, optimiser and JPEG files for all; one thread computes, and one thread of ours or one
worker process of timm reads images. `disk` reads every image anew, `memory` is our loop once it has kept them, `tar`
is `disk` from WebDataset shards. timm's script is not in its package: `--timm-train` names a copy of it (of the same
release), which then runs as it is, with our model registered. Without it, what it does is done here: `create_loader`
with its prefetcher, then forward, backward, step and `loss.item()`. Augmentation is off everywhere. Each measurement
is a process of its own, and they take turns, so that a busy machine slows all of them.

Small models show what the images cost; a model that computes for long hides every loader.
"""

import argparse
import io
import os
import re
import runpy
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

SKIPPED = 6  # steps before the clock starts
KINDS = ("disk", "memory", "tar", "bare", "timm")
# pixels, size, batch, steps
SCALES = ((32, "pico", 128, 60), (32, "micro", 128, 24), (224, "pico", 32, 30), (224, "Ti", 8, 14))
CASES = [(family, *scale) for scale in SCALES for family in ("vit", "mixer", "resnet")]


def recipe(dataset: str, family: str, pixels: int, size: str, batch: int):
    from models.recipe import Recipe

    patch = None if family == "resnet" else 8 if pixels == 32 else 16
    return Recipe(
        family=family, size=size, dataset=dataset, image_size=pixels, patch_size=patch, batch_size=batch, epochs=1000,
        head_learning_rate=1e-3, head_weight_decay=0.03,
    )  # fmt: skip


def write_images(root: Path, pixels: int, num: int) -> None:
    """JPEG files of 32 or, to be seen at 224 pixels, 256: satellite images, in a folder and in tars."""
    from PIL import Image

    from models.data import load_images

    s = load_images("landcover")
    side = 32 if pixels == 32 else 256
    tars = root / f"tar{pixels}"
    tars.mkdir()
    (tars / "classes.txt").write_text("\n".join(s.classes))
    with ExitStack() as stack:
        names = ["val-000.tar", *(f"train-{number:03}.tar" for number in range(8))]
        shards = [stack.enter_context(tarfile.open(tars / name, "w")) for name in names]
        for number, index in enumerate(np.random.RandomState(0).permutation(len(s.labels_N))[:num]):
            file, label = io.BytesIO(), int(s.labels_N[index])
            image = Image.fromarray(s.images_NHWC[index]).resize((side, side), Image.Resampling.BICUBIC)
            image.save(file, "JPEG", quality=90)
            part = "val" if number % 9 == 0 else "train"
            path = root / f"folder{pixels}" / part / f"{label:03}" / f"{number:06}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.getvalue())
            for name, data in ((f"{number:06}.jpg", file.getvalue()), (f"{number:06}.cls", str(label).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                shards[number % 9].addfile(member, io.BytesIO(data))


# --- one measurement, in a process of its own -------------------------------------------------------------------------


def images_per_second(ends: list[float], batch: int) -> float:
    """From the end of the last step that is skipped."""
    return (len(ends) - SKIPPED) * batch / (ends[-1] - ends[SKIPPED - 1])


def ours(kind: str, root: str, family: str, pixels: int, size: str, batch: int, steps: int) -> float:
    from models.train import train

    form = "tar" if kind == "tar" else "folder"
    os.environ["SLURM_MEM_PER_NODE"] = "100000" if kind == "memory" else "1"
    ends: list[float] = []
    num_train = len(list(Path(root, f"folder{pixels}", "train").rglob("*.jpg")))
    # An epoch leaves out what is less than a batch: after four all images are kept, and the clock starts.
    before = 4 * (num_train // batch) if kind == "memory" else 0

    def stop() -> bool:
        ends.append(time.perf_counter())
        return len(ends) == before + steps

    with tempfile.TemporaryDirectory() as folder:
        wanted = recipe(f"{root}/{form}{pixels}", family, pixels, size, batch)
        train(wanted, Path(folder), num_checkpoints=1, log=lambda _: None, should_stop=stop)
    return images_per_second(ends[before:], batch)


def model_and_optimizer(family: str, pixels: int, size: str, batch: int):
    import torch

    from models.build import build_model
    from models.device import pick_device
    from models.optim import make_optimizer
    from models.prepare import recipe_architecture

    pick_device()
    torch.manual_seed(0)
    wanted = recipe("./", family, pixels, size, batch)
    model = build_model(recipe_architecture(wanted, 12)).train()
    return model, make_optimizer(model, wanted)


def bare(family: str, pixels: int, size: str, batch: int, steps: int) -> float:
    """The ceiling: the same images in every step."""
    import torch
    from torch.nn import functional

    model, optimizer = model_and_optimizer(family, pixels, size, batch)
    x_BCHW, y_B = torch.randn(batch, 3, pixels, pixels), torch.arange(batch) % 12
    ends = []
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(model(x_BCHW), y_B).backward()
        optimizer.step()
        ends.append(time.perf_counter())
    return images_per_second(ends, batch)


def timm_loop(root: str, family: str, pixels: int, size: str, batch: int, steps: int) -> float:
    """What timm's script does, for where the script is not."""
    import torch
    from timm.data import create_dataset, create_loader
    from torch.nn import functional

    model, optimizer = model_and_optimizer(family, pixels, size, batch)
    loader = create_loader(
        create_dataset("", root=f"{root}/folder{pixels}", split="train"), input_size=(3, pixels, pixels),
        batch_size=batch, is_training=True, no_aug=True, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3,
        num_workers=1, device=torch.device("cpu"), persistent_workers=True,
    )  # fmt: skip
    ends: list[float] = []
    while True:
        for x_BCHW, y_B in loader:
            loss = functional.cross_entropy(model(x_BCHW), y_B)
            loss.backward()
            optimizer.step()
            loss.item()
            optimizer.zero_grad()
            ends.append(time.perf_counter())
            if len(ends) == steps:
                return images_per_second(ends, batch)


def timm_script(script: str, root: str, family: str, pixels: int, size: str, batch: int, steps: int) -> float:
    """timm's own script, stopped by the log line of the last step."""
    import logging

    from timm.models import register_model

    ends: list[float] = []

    class Clock(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if re.match(r"Train: \d+ \[", record.getMessage()):
                ends.append(time.perf_counter())
                if len(ends) == steps:
                    raise KeyboardInterrupt

    def model_of_the_benchmark(**_: object):
        return model_and_optimizer(family, pixels, size, batch)[0]

    model_of_the_benchmark.__module__ = __name__
    register_model(model_of_the_benchmark)
    logging.getLogger("train").addHandler(Clock())
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = [
            script, "--data-dir", f"{root}/folder{pixels}", "--val-split", "val", "--model", "model_of_the_benchmark",
            "--input-size", "3", str(pixels), str(pixels), "--num-classes", "12", "--batch-size", str(batch),
            "--no-aug", "--interpolation", "bilinear", "--mean", *["0.5"] * 3, "--std", *["0.5"] * 3,
            "--opt", "adamw", "--lr", "1e-3", "--weight-decay", "0.03", "--epochs", "1000", "--workers", "1",
            "--log-interval", "1", "--device", "cpu", "--output", folder,
        ]  # fmt: skip
        runpy.run_path(script, run_name="__main__")  # it takes the interrupt for a user's and ends well
    return images_per_second(ends, batch)


def measure(kind: str, script: str, root: str, family: str, pixels: int, size: str, batch: int, steps: int) -> float:
    case = (family, pixels, size, batch, steps)
    if kind == "bare":
        return bare(*case)
    if kind == "timm":
        return timm_script(script, root, *case) if script else timm_loop(root, *case)
    return ours(kind, root, *case)


# --- all of them ------------------------------------------------------------------------------------------------------


def in_a_process(*arguments: object) -> float:
    command = [sys.executable, "-m", "benchmarks.throughput", "--measure", *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if found.returncode:
        sys.exit(f"{' '.join(command)}\n{found.stderr}")
    return float(found.stdout.split()[-1])


def ratio(kind: str, other: str, runs: list[dict[str, float]]) -> float:
    return statistics.median(run[kind] / run[other] for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--timm-train", default="")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--measure", nargs=8, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        kind, script, root, family, pixels, size, batch, steps = options.measure
        print(measure(kind, script, root, family, int(pixels), size, int(batch), int(steps)))
        return
    rival = "timm's train.py" if options.timm_train else "timm's loader and loop"
    print(f"images per second, medians of {options.repeats}; the rival is {rival}")
    print(
        f"{'case':24}"
        + "".join(f"{kind:>9}" for kind in KINDS)
        + "  ratios: disk/timm memory/timm memory/bare tar/memory"
    )
    with tempfile.TemporaryDirectory() as root:
        for pixels, num in ((32, 2400), (224, 600)):
            write_images(Path(root), pixels, num)
        for family, pixels, size, batch, steps in CASES:
            name = f"{family} {size} {pixels} px"
            if options.only not in name:
                continue
            case = (options.timm_train, root, family, pixels, size, batch, steps)
            runs = [{kind: in_a_process(kind, *case) for kind in KINDS} for _ in range(options.repeats)]
            speeds = "".join(f"{statistics.median(run[kind] for run in runs):9.0f}" for kind in KINDS)
            pairs = (("disk", "timm"), ("memory", "timm"), ("memory", "bare"), ("tar", "memory"))
            print(f"{name:24}{speeds}{'':9}" + "".join(f"{ratio(*pair, runs):12.2f}" for pair in pairs), flush=True)


if __name__ == "__main__":
    main()
