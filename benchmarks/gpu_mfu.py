"""Model FLOPs utilisation of our loop on one GPU: ViT-B/16 and ViT-L/16 at 224 pixels, bfloat16, compiled and not.

Written on a machine without a GPU, so it was never run on one. It needs CUDA, and the accelerator's peak in dense
bfloat16 (`--teraflops`, from its data sheet: A100 312, H100 SXM 989). The images are the packaged icons, enlarged, in
the host's memory: what is measured is the loop with its copies to the device, not the decoding of files. The rival is
forward, backward and step on one batch that stays on the device: the most that this model reaches there.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from models.build import build_model
from models.ladder import train_flops
from models.optim import make_optimizer
from models.prepare import recipe_architecture
from models.recipe import Recipe
from models.train import train

NO_GPU = 3
NUM_CLASSES = 688  # of the icons
WARM_UP_STEPS = 10


def recipe(size: str, batch_size: int, fraction: float) -> Recipe:
    """One epoch of a share of the icons."""
    return Recipe.model_validate(
        {
            "family": "vit",
            "size": size,
            "dataset": "icons",
            "image_size": 224,
            "patch_size": 16,
            "fraction": fraction,
            "batch_size": batch_size,
            "precision": "bfloat16",
            "head_learning_rate": 1e-3,
            "head_weight_decay": 0.03,
        }
    )


def of_loop(wanted: Recipe, teraflops: float, *, compiled: bool) -> float:
    """The median utilisation over the records of a run, but for those of its first steps."""
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        train(
            wanted,
            Path(folder),
            num_checkpoints=1,
            log=records.append,
            peak_teraflops=teraflops,
            compiled=compiled,
        )
    found = [r["mfu"] for r in records if r["event"] == "train" and r["step"] > WARM_UP_STEPS]
    return statistics.median(found)


def of_fixed_batch(wanted: Recipe, teraflops: float, *, compiled: bool, steps: int = 30) -> float:
    """The utilisation of bare steps on one batch, after the same number of first ones."""
    device = torch.device("cuda")
    arch = recipe_architecture(wanted, NUM_CLASSES)
    model = build_model(arch).to(device).train()
    optimizer = make_optimizer(model, wanted)
    forward = torch.compile(model, dynamic=False) if compiled else model
    x_BCHW = torch.rand(wanted.batch_size, 3, 224, 224, device=device)
    y_B = torch.randint(NUM_CLASSES, (wanted.batch_size,), device=device)
    began = 0.0
    for step in range(WARM_UP_STEPS + steps):
        if step == WARM_UP_STEPS:
            torch.cuda.synchronize()
            began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(forward(x_BCHW).float(), y_B)
        loss.backward()
        optimizer.step()
    torch.cuda.synchronize()
    images_per_second = steps * wanted.batch_size / (time.perf_counter() - began)
    return train_flops(arch) * images_per_second / (teraflops * 1e12)


def main() -> int:
    """Prints a line a model and way; returns 3 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teraflops", type=float, required=True, help="the GPU's peak in dense bfloat16")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--fraction", type=float, default=0.5, help="share of the icons: 18,500 images a run")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch finds no GPU here, and this measures one: run it on a GPU node", file=sys.stderr)
        return NO_GPU
    print(f"{torch.cuda.get_device_name()}, peak {options.teraflops:g} TFLOP/s, torch {torch.__version__}")
    print(f"{'model':10}{'compiled':>10}{'our loop':>10}{'one batch':>11}{'ratio':>8}")
    for size in ("B", "L"):
        for compiled in (False, True):
            wanted = recipe(size, options.batch_size, options.fraction)
            ours = of_loop(wanted, options.teraflops, compiled=compiled)
            most = of_fixed_batch(wanted, options.teraflops, compiled=compiled)
            print(f"ViT-{size}/16{'':2}{compiled!s:>10}{ours:10.3f}{most:11.3f}{ours / most:8.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
