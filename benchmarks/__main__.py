"""Runs every benchmark and prints one table: medians of whole commands, and the ratio to the rival."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

UPSHOT = str(Path(sys.executable).with_name("upshot"))
STUDY = str(Path(__file__).with_name("study_4800.toml"))
RUNS = 5

# The other way to know a model's parameters: build it with timm. 24 of the 4,800 cells, one of each family and size.
TIMM_ON_META = """
import torch
from models.build import build_model
from models.ladder import FAMILIES, architecture
for family in FAMILIES:
    for size in ("Ti", "S", "B", "L", "H", "g", "G", "10B"):
        with torch.device("meta"):
            model = build_model(architecture(family, size, image_size=224, num_classes=688, patch_size=14))
        sum(parameter.numel() for parameter in model.parameters())
"""

BENCHMARKS = {
    "upshot --help": ([UPSHOT, "--help"], "import torch", "import torch"),
    "upshot plan, 4,800 cells": ([UPSHOT, "plan", STUDY], "24 models by timm on meta", TIMM_ON_META),
    "upshot plan --json, 4,800 cells": ([UPSHOT, "plan", STUDY, "--json"], "24 models by timm on meta", TIMM_ON_META),
}


def seconds(command: list[str]) -> float:
    """Wall time of a whole command, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - began


def main() -> None:
    """Each benchmark and its rival in turn, A B A B, after one warm-up of each."""
    print(f"{'what':34}{'median s':>10}{'rival':>30}{'median s':>10}{'ratio':>8}")
    for name, (command, rival_name, program) in BENCHMARKS.items():
        rival = [sys.executable, "-c", program]
        pairs = [(seconds(command), seconds(rival)) for _ in range(RUNS + 1)][1:]
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"{name:34}{ours:10.2f}{rival_name:>30}{theirs:10.2f}{ratio:8.2f}", flush=True)


if __name__ == "__main__":
    main()
