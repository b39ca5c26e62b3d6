"""What features of every layer cost beside the forward pass alone, as ratios of CPU time in one process.

    OMP_NUM_THREADS=1 python -m benchmarks.features [--repeats 15] [--only vit]

`bare` is the model on one batch of floats that never changes, under no_grad: what any extraction must do. `all layers`
and `last layer` begin with images as they are stored and end with numpy arrays. The rival is timm's own
`forward_intermediates`, whose maps are then pooled: a short script of it, with the same images and arrays. They take
turns, so that a busy machine slows all of them; medians of the ratios in each turn.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

# family, size, pixels, images a batch, batches
CASES = [
    (family, *scale)
    for scale in (("pico", 32, 128, 8), ("micro", 32, 128, 3), ("Ti", 32, 128, 1), ("S", 32, 64, 1), ("Ti", 224, 16, 1))
    for family in ("vit", "mixer", "resnet")
]
TARGETS = "at least 0.95 of bare speed; all layers at most 1.15 of the last one"


def seconds(do: Callable[[], object]) -> float:
    """CPU time, which other processes lengthen less than wall time."""
    began = time.process_time()
    do()
    return time.process_time() - began


def contestants(family: str, size: str, pixels: int, batch: int, batches: int) -> dict[str, Callable[[], object]]:
    import torch

    from evals.features import encode
    from models.build import build_model
    from models.data import load_images
    from models.inputs import to_input
    from models.ladder import architecture

    torch.manual_seed(0)
    patch = None if family == "resnet" else 8 if pixels == 32 else 16
    model = build_model(architecture(family, size, image_size=pixels, num_classes=707, patch_size=patch)).eval()
    images_BHWC = load_images("landcover", pixels).images_NHWC[:batch]
    x_BCHW = to_input(torch.tensor(images_BHWC))

    def bare() -> None:
        with torch.no_grad():
            for _ in range(batches):
                model(x_BCHW)

    def ours(layers: str) -> None:
        for _ in encode(model, [images_BHWC] * batches, batch_size=batch, layers=layers):
            pass

    def rival() -> None:
        with torch.no_grad():
            for _ in range(batches):
                final, maps = model.forward_intermediates(to_input(torch.tensor(images_BHWC)))
                pooled = [map_BDHW.mean((2, 3)).numpy() for map_BDHW in maps]
                pooled.append(model.forward_head(final, pre_logits=True).numpy())

    return {"bare": bare, "all": lambda: ours("all"), "last": lambda: ours("last"), "timm": rival}


def measured(repeats: int, case: tuple[str, str, int, int, int]) -> list[dict[str, float]]:
    """A warm-up, and then as many turns."""
    runs = contestants(*case)
    return [{name: seconds(do) for name, do in runs.items()} for _ in range(repeats + 1)][1:]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    options = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        sys.exit("CPU time tells nothing of several threads: set OMP_NUM_THREADS=1")
    print(f"ratios of CPU time, medians of {options.repeats}; targets: {TARGETS}")
    print(f"{'case':22}{'img/s bare':>11}{'all: of bare speed':>20}{'all / last':>12}{'timm / all':>12}")
    for case in CASES:
        family, size, pixels, batch, batches = case
        name = f"{family} {size} {pixels} px"
        if options.only not in name:
            continue
        turns = measured(options.repeats, case)
        pairs = (("bare", "all"), ("all", "last"), ("timm", "all"))
        ratios = [statistics.median(turn[a] / turn[b] for turn in turns) for a, b in pairs]
        speed = batch * batches / np.median([turn["bare"] for turn in turns])
        print(f"{name:22}{speed:11.0f}{ratios[0]:20.3f}{ratios[1]:12.3f}{ratios[2]:12.3f}", flush=True)


if __name__ == "__main__":
    main()
