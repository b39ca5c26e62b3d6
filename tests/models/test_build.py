"""Models that a CPU really trains: a crash inside a library kills the process, so it is tried in one of its own."""

import subprocess
import sys

import pytest
import torch
from timm.layers import DropPath

from models.build import build_model
from models.ladder import architecture

TRAIN = """
import sys
import torch
from models.build import build_model
from models.inputs import to_input
from models.ladder import architecture
torch.set_num_threads(1)
pixels = int(sys.argv[2])
model = build_model(architecture("resnet", sys.argv[1], image_size=pixels, num_classes=10))
for _ in range(4 if pixels > 32 else 8):
    images = torch.randint(0, 256, (32, pixels, pixels, 3), dtype=torch.uint8)
    model(to_input(images)).logsumexp(1).mean().backward()
"""


@pytest.mark.parametrize(("size", "pixels"), [("pico", 32), ("nano", 32), ("micro", 32), ("pico", 224)])
def test_a_small_resnet_trains_on_images_as_they_are_stored_without_corrupting_memory(size, pixels):
    command = [sys.executable, "-c", TRAIN, size, str(pixels)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(("family", "num_layers"), [("vit", 2), ("mixer", 1), ("resnet", 1)])
def test_stochastic_depth_rises_linearly_from_the_first_block_to_the_last(family, num_layers):
    size = "width8-blocks1.1.1.1" if family == "resnet" else "dim32-depth4"
    model = build_model(architecture(family, size, image_size=32, num_classes=10), drop_path=0.3)
    rates = [layer.drop_prob for layer in model.modules() if isinstance(layer, DropPath) and layer.drop_prob]
    assert rates == pytest.approx([rate for rate in (0.1, 0.2, 0.3) for _ in range(num_layers)])


@pytest.mark.parametrize("family", ["vit", "mixer", "resnet"])
def test_random_layers_change_no_parameter_and_nothing_in_evaluation(family):
    size = architecture(family, "pico", image_size=32, num_classes=10)
    models = []
    for rates in ({}, {"dropout": 0.5, "drop_path": 0.5}):
        torch.manual_seed(0)
        models.append(build_model(size, **rates))
    x_BCHW = torch.randn(2, 3, 32, 32)
    plain, random = (features(model.eval(), x_BCHW) for model in models)
    assert torch.equal(plain, random)
    assert not torch.equal(features(models[1].train(), x_BCHW), features(models[1], x_BCHW))


def features(model, x_BCHW):
    """What the head is given: a head may begin at zero."""
    return model.forward_head(model.forward_features(x_BCHW), pre_logits=True)
