"""How long checkpoints hold up training: written beside the loop, and, the rival, while the loop waits.

A ViT-Ti takes steps on a fixed batch, with AdamW; a checkpoint holds 12 bytes a parameter. Steps with no checkpoint,
with one written beside them and with one that is waited for take turns; `held up` is the median of what the loop waits
for, `steps after it` what the steps then take, as a multiple of those without a checkpoint. A run leaves one to resume
from every ten minutes.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from models.build import build_model
from models.checkpoint import step_folder
from models.distributed import World
from models.ladder import architecture, num_params
from models.saver import Saver
from models.train import RESUME_EVERY_S

STEPS = 4  # enough for a checkpoint to be written beside them
BATCH = 4
ROUNDS = 5
LIMIT = 0.02  # of the time of a step


def main() -> None:
    """Prints how long one checkpoint holds the loop up either way, and the share of time at the default frequency."""
    torch.manual_seed(0)
    arch = architecture("vit", "Ti", image_size=224, num_classes=1000, patch_size=16)
    model = build_model(arch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x_BCHW, y_B = torch.randn(BATCH, 3, 224, 224), torch.randint(0, 1000, (BATCH,))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(model(x_BCHW), y_B).backward()
        optimizer.step()

    with tempfile.TemporaryDirectory() as folder, _saver(Path(folder)) as saver:
        number = iter(range(1, 1_000_000))

        def begin() -> None:
            saver.save_to_resume(next(number), model=model, optimizer=optimizer, state={}, metrics={})

        def save() -> None:
            begin()
            saver.settle()

        kinds = {"none": lambda: None, "beside": begin, "waited for": save}
        for _ in range(2):  # memory for the copies is had once
            _seconds(step, save)
        taken = {name: [] for name in kinds}
        held = {name: [] for name in kinds}
        for _ in range(ROUNDS):
            for name, saves in kinds.items():
                whole, first = _seconds(step, saves)
                taken[name].append(whole)
                held[name].append(first)
                saver.settle()
        size_mb = (
            sum(path.stat().st_size for path in step_folder(Path(folder) / "resume", next(number) - 1).iterdir()) / 1e6
        )
    step_s = statistics.median(taken["none"]) / STEPS
    print(f"ViT-Ti/16, {num_params(arch) / 1e6:.1f} M parameters, checkpoint {size_mb:.0f} MB, step {step_s:.2f} s")
    print(f"{'checkpoint':14}{'held up s':>12}{'of waited for':>15}{'every 10 min':>15}{'steps after it':>16}")
    waits = {name: statistics.median(seconds) for name, seconds in held.items()}
    for name in ("beside", "waited for"):
        steps = statistics.median(
            (whole - first) / none for whole, first, none in zip(taken[name], held[name], taken["none"], strict=True)
        )
        ratio, share = waits[name] / waits["waited for"], waits[name] / RESUME_EVERY_S
        print(f"{name:14}{waits[name]:12.3f}{ratio:15.2f}{share:15.3%}{steps:15.2f}x")
    kept = waits["beside"] / RESUME_EVERY_S < LIMIT
    print(f"limit {LIMIT:.0%} of the time: {'kept' if kept else 'BROKEN'}")


def _saver(folder: Path) -> Saver:
    return Saver(folder, World.alone(), lambda _: None, sharded=False)


def _seconds(step: Callable[[], None], save: Callable[[], None]) -> tuple[float, float]:
    """(a checkpoint and the steps after it, what of it the loop waited for before the first of these)."""
    began = time.perf_counter()
    save()
    held = time.perf_counter() - began
    for _ in range(STEPS):
        step()
    return time.perf_counter() - began, held


if __name__ == "__main__":
    main()
