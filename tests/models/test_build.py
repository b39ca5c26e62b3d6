"""Models that a CPU really trains: a crash inside a library kills the process, so it is tried in one of its own."""

import subprocess
import sys

import pytest

TRAIN = """
import sys
import torch
from models.build import build_model
from models.ladder import architecture
torch.set_num_threads(1)
model = build_model(architecture("resnet", sys.argv[1], image_size=32, num_classes=10))
for _ in range(8):
    model(torch.randn(64, 3, 32, 32)).logsumexp(1).mean().backward()
"""


@pytest.mark.parametrize("size", ["pico", "nano", "micro"])
def test_a_small_resnet_trains_without_corrupting_memory(size):
    done = subprocess.run([sys.executable, "-c", TRAIN, size], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
