"""Shape suffixes: N images, B batch, T tokens, H and W pixels, C channels, D features."""

import numpy as np
import pytest
import timm
import torch
from sklearn.datasets import load_digits
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from evals.features import encode, encode_with_logits, layer_modules, pooling
from models.build import build_model
from models.errors import DataError
from models.inputs import to_input
from models.ladder import architecture, num_layers
from tests.evals.probing import extract_features

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


def average_pooled_vit_with_class_token():
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "num_classes": 7, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return VisionTransformer(**options, global_pool="avg")


MODELS = {
    "vit": lambda: build("vit"),
    "mixer": lambda: build("mixer"),
    "resnet": lambda: build("resnet"),
    "average-pooled vit": average_pooled_vit,
    "vit with registers": vit_with_registers,
    "vit whose class token is not read": average_pooled_vit_with_class_token,
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
    if getattr(model, "global_pool", None) == "token":
        return [x_NTD[:, 0].numpy() for x_NTD in outputs]
    first_patch = 0 if getattr(model, "cls_token", None) is None else 1
    return [x_NTD[:, first_patch:].mean(1).numpy() for x_NTD in outputs]


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
        list(encode(build("vit"), [images], batch_size=16))


# --- batch by batch ---------------------------------------------------------------------------------------------------


def test_batches_are_taken_one_by_one_as_they_are_asked_for(images_NHWC):
    taken = []

    def batches():
        for start in range(0, 30, 10):
            taken.append(start)
            yield images_NHWC[start : start + 10]

    encoded = encode(build("vit"), batches(), batch_size=10)
    assert taken == []
    first = next(encoded)
    assert taken == [0]
    rest = list(encoded)
    whole = extract_features(build("vit"), images_NHWC[:30], batch_size=10)
    assert_same([np.concatenate(layer) for layer in zip(first, *rest, strict=True)], whole)


def test_batches_of_any_length_up_to_the_largest(model, images_NHWC):
    pieces = [images_NHWC[:16], images_NHWC[16:17], images_NHWC[17:30]]
    encoded = list(encode(model, pieces, batch_size=16))
    assert [len(layers[0]) for layers in encoded] == [16, 1, 13]
    whole = extract_features(model, images_NHWC[:30], batch_size=16)
    assert_same([np.concatenate(layer) for layer in zip(*encoded, strict=True)], whole)


def test_no_batches_give_nothing():
    assert list(encode(build("vit"), [], batch_size=16)) == []


def test_a_batch_above_the_size_that_was_named_is_a_mistake(images_NHWC):
    with pytest.raises(AssertionError, match="a batch of 9 images, 8 at most"):
        next(encode(build("vit"), [images_NHWC[:9]], batch_size=8))


def test_an_odd_batch_among_good_ones_is_refused(images_NHWC):
    encoded = encode(build("vit"), [images_NHWC[:8], images_NHWC[:0]], batch_size=8)
    next(encoded)
    with pytest.raises(DataError, match="none given"):
        next(encoded)


def test_the_last_layer_alone_is_the_same_last_layer(model, images_NHWC):
    [alone] = encode(model, [images_NHWC], batch_size=NUM_IMAGES, layers="last")
    [whole] = encode(model, [images_NHWC], batch_size=NUM_IMAGES)
    assert len(alone) == 1
    np.testing.assert_array_equal(alone[0], whole[-1])


def test_logits_and_features_of_one_pass_are_those_of_the_model(model, images_NHWC):
    [encoded] = encode_with_logits(model, [images_NHWC], batch_size=NUM_IMAGES)
    with torch.inference_mode():
        np.testing.assert_array_equal(encoded.logits_BC, model(to_input(torch.tensor(images_NHWC))))
    [layers] = encode(model, [images_NHWC], batch_size=NUM_IMAGES)
    for layer_ND, expected_ND in zip(encoded.layers, layers, strict=True):
        np.testing.assert_array_equal(layer_ND, expected_ND)


def test_block_outputs_are_let_go_before_the_next_but_one(model, images_NHWC):
    blocks = [modules[-1] for modules in layer_modules(model)[1:]]  # a stem's output is not that of its norm
    seen, alive = [], []

    def note(_module, _inputs, output):
        alive.append(sum(not ref.expired() for ref in seen))
        seen.append(StorageWeakRef(output.untyped_storage()))

    hooks = [block.register_forward_hook(note) for block in blocks]
    for _ in encode(model, [images_NHWC], batch_size=NUM_IMAGES):
        pass
    for hook in hooks:
        hook.remove()
    assert len(alive) == len(blocks)
    assert max(alive) <= 1  # that which went into the block


def test_features_hold_no_memory_but_their_own(model, images_NHWC):
    for layers in encode(model, [images_NHWC], batch_size=NUM_IMAGES):
        assert all(layer_ND.flags.owndata and layer_ND.flags.c_contiguous for layer_ND in layers)


def test_a_model_that_is_no_longer_asked_has_its_mode_and_no_hooks(images_NHWC):
    model = build("vit").train()
    encoded = encode(model, [images_NHWC] * 3, batch_size=NUM_IMAGES)
    next(encoded)
    assert not model.training
    encoded.close()
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


# --- other models of timm ---------------------------------------------------------------------------------------------

# By name: how it is pooled, layers with the pre-logits features, whether the parameters of its layers are known.
TIMM = {
    "deit_tiny_distilled_patch16_224": ("class token", 13, True),
    "vit_tiny_r_s16_p8_224": ("class token", 13, True),
    "gmlp_ti16_224": ("mean over tokens", 31, True),
    "convnext_atto": ("mean over positions", 5, True),
    "swin_tiny_patch4_window7_224": ("mean over positions", 5, True),
    "efficientnet_b0": ("mean over positions", 6, False),
    "regnety_002": ("mean over positions", 6, False),
    "xcit_nano_12_p16_224": ("mean over positions", 13, True),
    "eva02_tiny_patch14_224": ("mean over positions", 13, True),
    "tnt_s_patch16_224": ("class token", 13, True),
    "levit_128s": ("mean over positions", 4, True),
    "hiera_tiny_224": ("mean over positions", 5, False),
}


@pytest.mark.parametrize("name", TIMM)
def test_models_of_timm_give_what_their_own_methods_give(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7).eval()
    images_BHWC = np.kron(load_digits().images[:2] * 15, np.ones((1, 28, 28))).astype(np.uint8)[..., None]
    [encoded] = encode_with_logits(model, [images_BHWC], batch_size=2)
    x_BCHW = to_input(torch.tensor(images_BHWC))
    with torch.no_grad():
        np.testing.assert_allclose(encoded.logits_BC, model(x_BCHW), atol=1e-6)
        if TIMM[name][0] == "class token":
            _, pairs = model.forward_intermediates(x_BCHW, return_prefix_tokens=True)
            expected = [prefix_BTD[:, 0].numpy() for _, prefix_BTD in pairs]
        else:
            expected = [map_BDHW.flatten(2).mean(2).numpy() for map_BDHW in model.forward_intermediates(x_BCHW)[1]]
    assert_same(encoded.layers[:-1], expected)
    num_known = len(layer_modules(model))
    assert (pooling(model), len(encoded.layers), num_known == len(encoded.layers) - 1) == TIMM[name]
    assert num_known in (0, len(encoded.layers) - 1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit", "class token"),
        ("mixer", "mean over tokens"),
        ("resnet", "mean over positions"),
        ("average-pooled vit", "mean over tokens"),
        ("vit with registers", "class token"),
        ("vit whose class token is not read", "mean over tokens"),
    ],
)
def test_pooling_says_what_is_done(name, expected):
    assert pooling(MODELS[name]()) == expected
