"""Shape suffixes: N images, B batch, T tokens, H and W pixels, C channels, D features."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from evals.features import extract_features
from models.build import build_model
from models.errors import DataError
from models.inputs import to_input
from models.ladder import architecture, num_layers

NUM_IMAGES = 37  # no multiple of any batch size below


@pytest.fixture(scope="module", name="images_NHWC")
def real_images():
    """Real digits, grey, at 32 pixels."""
    digits_NHW = load_digits().images[:NUM_IMAGES] * 15
    return np.kron(digits_NHW, np.ones((1, 4, 4))).astype(np.uint8)[..., None]


def small(family):
    return architecture(family, "pico", image_size=32, num_classes=7, patch_size=None if family == "resnet" else 8)


def build(family, seed=0):
    torch.manual_seed(seed)
    model = build_model(small(family))
    # A fresh ResNet's last norm in every block is zero, which would hide what the block does.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def average_pooled_vit():
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "num_classes": 7, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return VisionTransformer(**options, class_token=False, global_pool="avg")


def vit_with_registers():
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "num_classes": 7, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return VisionTransformer(**options, reg_tokens=3)


MODELS = {
    "vit": lambda: build("vit"),
    "mixer": lambda: build("mixer"),
    "resnet": lambda: build("resnet"),
    "average-pooled vit": average_pooled_vit,
    "vit with registers": vit_with_registers,
}


@pytest.fixture(scope="module", params=list(MODELS))
def model(request):
    return MODELS[request.param]().eval()


def assert_same(layers, other_layers):
    assert len(layers) == len(other_layers)
    for layer_ND, other_ND in zip(layers, other_layers, strict=True):
        np.testing.assert_allclose(layer_ND, other_ND, atol=1e-5, rtol=1e-5)


def hooked_layers(model, images_NHWC):
    """Block outputs by forward hooks, each pooled by hand, in one batch: a reference that shares no code."""
    outputs = []
    if hasattr(model, "blocks"):
        modules = list(model.blocks)
    else:
        modules = [model.act1, model.layer1, model.layer2, model.layer3, model.layer4]
    hooks = [module.register_forward_hook(lambda *seen: outputs.append(seen[-1])) for module in modules]
    with torch.inference_mode():
        model(to_input(torch.tensor(images_NHWC)))
    for hook in hooks:
        hook.remove()
    if not hasattr(model, "blocks"):
        return [x_NDHW.flatten(2).mean(2).numpy() for x_NDHW in outputs]
    if getattr(model, "cls_token", None) is not None:
        return [x_NTD[:, 0].numpy() for x_NTD in outputs]
    return [x_NTD.mean(1).numpy() for x_NTD in outputs]


def test_every_block_is_there_as_hooks_see_it(model, images_NHWC):
    layers = extract_features(model, images_NHWC, batch_size=16)
    assert_same(layers[:-1], hooked_layers(model, images_NHWC))
    assert all(layer_ND.dtype == np.float32 and len(layer_ND) == NUM_IMAGES for layer_ND in layers)


def test_the_last_layer_is_what_the_classifier_sees(model, images_NHWC):
    last_ND = extract_features(model, images_NHWC, batch_size=16)[-1]
    with torch.inference_mode():
        logits_NC = model.get_classifier()(torch.from_numpy(last_ND))
        expected_NC = model(to_input(torch.tensor(images_NHWC)))
    np.testing.assert_allclose(logits_NC, expected_NC, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["vit", "mixer", "resnet"])
def test_there_is_one_layer_more_than_the_ladder_counts_blocks(family, images_NHWC):
    assert len(extract_features(build(family), images_NHWC, batch_size=16)) == num_layers(small(family)) + 1


@pytest.mark.parametrize("batch_size", [1, 7, 36, 37, 64])
def test_the_batch_size_does_not_matter(model, images_NHWC, batch_size):
    assert_same(
        extract_features(model, images_NHWC, batch_size=batch_size), extract_features(model, images_NHWC, batch_size=16)
    )


def test_the_order_of_images_is_that_of_rows_and_nothing_else(model, images_NHWC):
    order = np.random.default_rng(0).permutation(NUM_IMAGES)
    mixed = extract_features(model, images_NHWC[order], batch_size=16)
    assert_same(mixed, [layer_ND[order] for layer_ND in extract_features(model, images_NHWC, batch_size=16)])


def test_every_image_goes_through_the_model_once(model, images_NHWC):
    batches = []
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    hook = first.register_forward_hook(lambda module, inputs, output: batches.append(len(output)))
    extract_features(model, images_NHWC, batch_size=16)
    hook.remove()
    assert batches == [16, 16, 5]


def test_one_channel_is_three_alike(model, images_NHWC):
    coloured_NHWC = np.repeat(images_NHWC, 3, axis=3)
    assert_same(
        extract_features(model, images_NHWC, batch_size=16), extract_features(model, coloured_NHWC, batch_size=16)
    )


def test_colours_matter(model, images_NHWC):
    red_NHWC = np.concatenate([images_NHWC, np.zeros_like(images_NHWC), np.zeros_like(images_NHWC)], axis=3)
    grey, red = (extract_features(model, images, batch_size=16)[-1] for images in (images_NHWC, red_NHWC))
    assert np.abs(grey - red).max() > 1e-3


def test_a_model_in_training_mode_gives_the_same_and_is_left_as_it_was(images_NHWC):
    model = build("resnet")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = extract_features(model.eval(), images_NHWC, batch_size=16)
    assert_same(extract_features(model.train(), images_NHWC, batch_size=16), expected)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_read_only_images_will_do(images_NHWC):
    locked_NHWC = images_NHWC.copy()
    locked_NHWC.setflags(write=False)
    assert len(extract_features(build("vit"), locked_NHWC, batch_size=16)[0]) == NUM_IMAGES


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (np.zeros((0, 32, 32, 1), np.uint8), "none given"),
        (np.zeros((4, 32, 32, 1), np.float32), r"float32 \[4, 32, 32, 1\] given"),
        (np.zeros((4, 3, 32, 32), np.uint8), r"\[4, 3, 32, 32\] given, uint8 \[N, H, W, 1 or 3\] needed"),
        (np.zeros((4, 32, 32), np.uint8), r"\[4, 32, 32\] given"),
    ],
)
def test_what_are_no_images_is_refused(images, says):
    with pytest.raises(DataError, match=says):
        extract_features(build("vit"), images, batch_size=16)
