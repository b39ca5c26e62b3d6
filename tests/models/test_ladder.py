import gc
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812  the name that torch's own documents use
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.optim.adafactor_bv import AdafactorBigVision
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from models import ladder
from models.build import build_model
from models.errors import UnknownNameError, UserError
from models.ladder import FAMILIES, LADDER, Architecture, Family
from models.shard import blocks

SAME = {"R50": "S", "R101": "M", "R152x2": "L", "R152x4": "g"}  # published names of ResNets that the ladder holds too
NAMED = [(family, size) for family in FAMILIES for size in ladder.sizes(family) if size not in SAME]
at_224 = partial(ladder.architecture, image_size=224, num_classes=1000)
quick = settings(max_examples=15, deadline=None, derandomize=True)


def on_meta(a: Architecture, batch_size: int = 1) -> tuple[Any, torch.Tensor]:
    """The model, untyped because timm's methods are not known to nn.Module, and images for it."""
    with torch.device("meta"):
        return build_model(a), torch.empty(batch_size, a.in_channels, a.image_size, a.image_size)


def count_params(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def count_forward_flops(model: torch.nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(x)
    return float(counter.get_total_flops() / len(x))


def _fused_flops(q: torch.Size, k: torch.Size, v: torch.Size, *_: object, **__: object) -> int:
    return int(sdpa_flop_count(q, k, v))


def _fused_backward_flops(
    grad: torch.Size, q: torch.Size, k: torch.Size, v: torch.Size, *_: object, **__: object
) -> int:
    return int(sdpa_backward_flop_count(grad, q, k, v))


CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
CPU_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
# torch's counter knows the fused kernels of GPUs only
FUSED_ON_CPU = {CPU_ATTENTION: _fused_flops, CPU_ATTENTION_BACKWARD: _fused_backward_flops}


def count_train_flops(model: torch.nn.Module, x: torch.Tensor) -> float:
    with FlopCounterMode(display=False, custom_mapping=FUSED_ON_CPU) as counter:
        model.train()(x).sum().backward()
    return float(counter.get_total_flops() / len(x))


# --- parameters and FLOPs against timm and torch's counter ---


@pytest.mark.parametrize(("family", "size"), NAMED)
def test_every_named_size_costs_what_timm_and_torch_count(family: Family, size: str) -> None:
    a = at_224(family, size)
    model, x = on_meta(a)
    assert ladder.num_params(a) == count_params(model)
    assert ladder.forward_flops(a) == count_forward_flops(model, x)


@pytest.mark.parametrize(("published", "rung"), SAME.items())
def test_some_published_resnets_are_rungs_of_the_ladder(published: str, rung: str) -> None:
    assert replace(at_224("resnet", published), size=rung) == at_224("resnet", rung)


@pytest.mark.parametrize(
    ("family", "size", "patch_size", "name"),
    [
        ("vit", "Ti", 16, "vit_tiny_patch16_224"),
        ("vit", "S", 32, "vit_small_patch32_224"),
        ("vit", "B", 16, "vit_base_patch16_224"),
        ("vit", "L", 16, "vit_large_patch16_224"),
        ("vit", "H", None, "vit_huge_patch14_224"),
        ("vit", "g", None, "vit_giant_patch14_224"),
        ("vit", "G", None, "vit_gigantic_patch14_224"),
        ("mixer", "S", 32, "mixer_s32_224"),
        ("mixer", "B", 16, "mixer_b16_224"),
        ("mixer", "L", None, "mixer_l16_224"),
        ("resnet", "R50", None, "resnet50"),
        ("resnet", "R101", None, "resnet101"),
        ("resnet", "R152", None, "resnet152"),
    ],
)
def test_published_sizes_are_those_of_the_published_models(
    family: Family, size: str, patch_size: int | None, name: str
) -> None:
    ours, _ = on_meta(at_224(family, size, patch_size=patch_size))
    with torch.device("meta"):
        published: Any = timm.create_model(name, num_classes=1000)
    shapes = {key: value.shape for key, value in published.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == shapes
    if family == "vit":
        assert ours.blocks[0].attn.num_heads == published.blocks[0].attn.num_heads


@pytest.mark.parametrize(
    ("size", "name"),
    [
        ("R50x3", "resnetv2_50x3_bit"),
        ("R101x3", "resnetv2_101x3_bit"),
        ("R152x2", "resnetv2_152x2_bit"),
        ("R152x4", "resnetv2_152x4_bit"),
    ],
)
def test_wide_resnets_have_the_parameters_of_big_transfer(size: str, name: str) -> None:
    with torch.device("meta"):
        published = timm.create_model(name, num_classes=1000)
    # The norms sit elsewhere in the pre-activation blocks of BiT; convolutions and head are the same.
    assert ladder.num_params(at_224("resnet", size)) == pytest.approx(count_params(published), rel=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_families_have_the_ladder_and_it_rises_to_ten_billion(family: Family) -> None:
    assert ladder.sizes(family)[: len(LADDER)] == LADDER
    rungs = [at_224(family, size) for size in LADDER]
    params = [ladder.num_params(a) for a in rungs]
    flops = [ladder.train_flops(a) for a in rungs]
    assert params == sorted(set(params))
    assert flops == sorted(set(flops))
    assert 9e9 < params[-1] < 10.5e9


@pytest.mark.parametrize("size", LADDER)
def test_a_size_means_about_the_same_number_of_parameters_in_every_family(size: str) -> None:
    params = [ladder.num_params(at_224(family, size)) for family in FAMILIES]
    assert max(params) < 2 * min(params)


def test_published_mlp_dimensions() -> None:
    assert [at_224("vit", size).mlp_dim for size in ("B", "L", "H", "g", "G")] == [3072, 4096, 5120, 6144, 8192]
    assert [at_224("mixer", size).mlp_dim for size in ("S", "B", "L", "H")] == [2048, 3072, 4096, 5120]
    assert [at_224("mixer", size).token_mlp_dim for size in ("S", "B", "L", "H")] == [256, 384, 512, 640]


image_sizes = st.sampled_from([28, 32, 64, 65, 96])
channels = st.sampled_from([1, 3])
classes = st.integers(1, 300)


def patches(image_size: int) -> st.SearchStrategy[int | None]:
    return st.sampled_from([None, *(p for p in range(2, image_size + 1) if image_size % p == 0)])


@st.composite
def vits(draw: st.DrawFn) -> Architecture:
    heads, head_width, depth = draw(st.integers(1, 6)), draw(st.integers(1, 20)), draw(st.integers(1, 4))
    size = f"dim{heads * head_width}-depth{depth}" + draw(st.sampled_from(["", f"-heads{heads}"]))
    return draw_architecture(draw, "vit", size)


@st.composite
def mixers(draw: st.DrawFn) -> Architecture:
    size = f"dim{draw(st.integers(2, 120))}-depth{draw(st.integers(1, 4))}"
    return draw_architecture(draw, "mixer", size)


@st.composite
def resnets(draw: st.DrawFn) -> Architecture:
    blocks = ".".join(str(draw(st.integers(1, 3))) for _ in range(4))
    size = f"width{2 * draw(st.integers(1, 20))}-blocks{blocks}" + draw(st.sampled_from(["", "-bottleneck"]))
    return draw_architecture(draw, "resnet", size)


def draw_architecture(draw: st.DrawFn, family: Family, size: str) -> Architecture:
    image_size = draw(image_sizes)
    return ladder.architecture(
        family,
        size,
        image_size=image_size,
        in_channels=draw(channels),
        num_classes=draw(classes),
        patch_size=draw(patches(image_size)),
    )


def check_against_model(a: Architecture) -> None:
    model, x = on_meta(a, batch_size=2)
    assert ladder.num_params(a) == count_params(model)
    assert ladder.forward_flops(a) == count_forward_flops(model, x)
    last, outputs = model.forward_intermediates(x)
    assert len(outputs) == ladder.num_layers(a)
    assert model.forward_head(last, pre_logits=True).shape == (2, model.num_features)
    assert model(x).shape == (2, a.num_classes)


@quick
@given(vits())
def test_free_vits_cost_what_torch_counts(a: Architecture) -> None:
    check_against_model(a)


@quick
@given(mixers())
def test_free_mixers_cost_what_torch_counts(a: Architecture) -> None:
    check_against_model(a)


@quick
@given(resnets())
def test_free_resnets_cost_what_torch_counts(a: Architecture) -> None:
    check_against_model(a)


@pytest.mark.parametrize(
    ("family", "size", "image_size"),
    [
        ("vit", "S", 224),
        ("vit", "nano", 32),
        ("mixer", "S", 224),
        ("mixer", "pico", 28),
        ("resnet", "R50", 224),
        ("resnet", "micro", 32),
    ],
)
def test_training_flops_are_those_of_a_backward_pass(family: Family, size: str, image_size: int) -> None:
    a = ladder.architecture(family, size, image_size=image_size, num_classes=100)
    assert ladder.train_flops(a) == count_train_flops(*on_meta(a, batch_size=2))


def test_training_flops_leave_out_only_what_fused_attention_computes_again() -> None:
    a = ladder.architecture("vit", "nano", image_size=32, num_classes=10)
    counted = count_train_flops(build_model(a), torch.zeros(2, 3, 32, 32))
    assert ladder.train_flops(a) == pytest.approx(counted, rel=0.05)


# --- memory against a real training step ---

SMALL = [
    ("vit", "nano", 32),
    ("vit", "dim48-depth5-heads3", 28),
    ("mixer", "micro", 32),
    ("mixer", "dim40-depth2", 64),
    ("resnet", "micro", 32),
    ("resnet", "width8-blocks1.2.1.2-bottleneck", 96),
]


def num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


STEPPERS: dict[ladder.Optimizer, Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "sgd": partial(torch.optim.SGD, momentum=0.9),
    "adafactor": AdafactorBigVision,
}


@pytest.mark.parametrize("optimizer", STEPPERS)
@pytest.mark.parametrize(("family", "size", "image_size"), SMALL[::2])
def test_weights_gradients_and_optimizer_state_are_exact(
    family: Family, size: str, image_size: int, optimizer: ladder.Optimizer
) -> None:
    a = ladder.architecture(family, size, image_size=image_size, num_classes=10)
    model = build_model(a)
    weights = list(model.parameters())
    stepper = STEPPERS[optimizer](weights)
    model(torch.randn(2, 3, image_size, image_size)).sum().backward()
    stepper.step()
    state = [t for of_weight in stepper.state.values() for t in of_weight.values() if t.ndim]  # without step counters
    memory = ladder.training_memory(a, 2, "float32", optimizer)
    assert memory.weights_gb * 1e9 == pytest.approx(num_bytes(weights))
    assert memory.gradients_gb * 1e9 == pytest.approx(num_bytes([w.grad for w in weights if w.grad is not None]))
    assert memory.optimizer_gb * 1e9 == pytest.approx(num_bytes(state))


def kept_for_backward(
    a: Architecture, batch_size: int, precision: ladder.Precision, dropout: float = 0.0, drop_path: float = 0.0
) -> int:
    """Bytes of the distinct storages that autograd keeps, without those of the model's own weights and buffers."""
    model = build_model(a, dropout=dropout, drop_path=drop_path).train()

    def loss(x_BCHW: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits_BC = model(x_BCHW)
        return F.cross_entropy(logits_BC.float(), torch.zeros(batch_size, dtype=torch.long))

    own = model.state_dict(keep_vars=True).values()
    return num_bytes_saved(loss, torch.randn(batch_size, a.in_channels, a.image_size, a.image_size), own)


def num_bytes_saved(
    forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, left_out: Iterable[torch.Tensor]
) -> int:
    """Bytes of the distinct storages that autograd keeps of a forward pass, but for those of some tensors."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = forward(x)
    known = {t.untyped_storage().data_ptr() for t in left_out}
    # The graph must live until the storages are counted, or their addresses are used again.
    assert y.requires_grad
    return sum(storage.nbytes() for address, storage in kept.items() if address not in known)


@pytest.mark.parametrize(("family", "size", "image_size"), SMALL)
def test_float32_activations_are_what_autograd_keeps_within_two_per_cent(
    family: Family, size: str, image_size: int
) -> None:
    a = ladder.architecture(family, size, image_size=image_size, num_classes=10)
    expected = ladder.training_memory(a, 8).activations_gb * 1e9
    assert expected == pytest.approx(kept_for_backward(a, 8, "float32"), rel=0.02)


@pytest.mark.parametrize(("family", "size", "image_size"), SMALL)
def test_dropout_keeps_its_masks_and_stochastic_depth_hardly_anything(
    family: Family, size: str, image_size: int
) -> None:
    a = ladder.architecture(family, size, image_size=image_size, num_classes=10)
    expected = ladder.training_memory(a, 8, dropout=True).activations_gb * 1e9
    assert expected == pytest.approx(kept_for_backward(a, 8, "float32", dropout=0.1, drop_path=0.1), rel=0.02)
    masks = 4 * 8 * ladder.num_dropped(a)
    assert expected - ladder.training_memory(a, 8).activations_gb * 1e9 == pytest.approx(masks)
    assert kept_for_backward(a, 8, "float32", dropout=0.1) - kept_for_backward(a, 8, "float32") == masks


@pytest.mark.parametrize(("family", "size", "image_size"), SMALL)
def test_bfloat16_activations_are_enough_and_at_most_a_quarter_too_many(
    family: Family, size: str, image_size: int
) -> None:
    # Above: a CPU runs layer norms in bfloat16, where CUDA (which the formula describes) goes to float32.
    a = ladder.architecture(family, size, image_size=image_size, num_classes=10)
    expected = ladder.training_memory(a, 8, "bfloat16").activations_gb * 1e9
    assert 0.98 < expected / kept_for_backward(a, 8, "bfloat16") < 1.25


def held_after_forward(a: Architecture, batch_size: int, dropout: float) -> int:
    """Bytes that a forward pass of a checkpointed model allocates and leaves, by torch's own count."""
    model = build_model(a, dropout=dropout, checkpointed=True).train()
    x_BCHW = torch.randn(batch_size, a.in_channels, a.image_size, a.image_size)
    gc.collect()  # what other tests left must not be freed meanwhile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        logits_BC = model(x_BCHW)
    assert logits_BC.requires_grad
    sizes = [event.nbytes() for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    return sum(sizes) - num_bytes([logits_BC]) + num_bytes([x_BCHW])


def kept_by_largest_block(a: Architecture, batch_size: int, dropout: float) -> int:
    """The most that the backward pass adds: what one block keeps of its second pass, without what goes into it."""
    model: Any = build_model(a, dropout=dropout).train()
    stages = [model.layer1, model.layer2, model.layer3, model.layer4] if a.family == "resnet" else [model.blocks]
    inputs: list[tuple[Any, torch.Size]] = []
    for block in (block for stage in stages for block in stage):
        block.register_forward_pre_hook(lambda block, x: inputs.append((block, x[0].shape)))
    model(torch.randn(batch_size, a.in_channels, a.image_size, a.image_size))
    return max(
        num_bytes_saved(block, x := torch.randn(shape, requires_grad=True), [x, *block.state_dict().values()])
        for block, shape in tuple(inputs)  # these passes are seen too
    )


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(("family", "size", "image_size"), SMALL)
def test_a_checkpointed_model_keeps_what_goes_into_its_blocks_and_one_of_them(
    family: Family, size: str, image_size: int, dropout: float
) -> None:
    a = ladder.architecture(family, size, image_size=image_size, num_classes=10)
    expected = ladder.training_memory(a, 8, dropout=dropout > 0, checkpointed=True).activations_gb * 1e9
    found = held_after_forward(a, 8, dropout) + kept_by_largest_block(a, 8, dropout)
    assert expected == pytest.approx(found, rel=0.03)
    assert expected < ladder.training_memory(a, 8, dropout=dropout > 0).activations_gb * 1e9


def test_the_total_is_the_sum_and_only_activations_grow_with_the_batch() -> None:
    a = at_224("vit", "B")
    one, four = ladder.training_memory(a, 1), ladder.training_memory(a, 4)
    assert four.activations_gb == pytest.approx(4 * one.activations_gb)
    assert four.total_gb - one.total_gb == pytest.approx(3 * one.activations_gb)
    averaged, half = (ladder.training_memory(a, 4, average=True), ladder.training_memory(a, 4, "bfloat16"))
    assert averaged.total_gb == pytest.approx(four.total_gb + four.weights_gb)
    assert half.total_gb < four.total_gb
    sgd = ladder.training_memory(a, 4, optimizer="sgd")
    assert sgd.total_gb == pytest.approx(four.total_gb - 4e-9 * ladder.num_params(a))


# --- patches, names, errors ---


@pytest.mark.parametrize(
    ("size", "image_size", "patch_size"),
    [
        ("B", 224, 16),
        ("H", 224, 14),
        ("10B", 224, 14),
        ("H", 256, 16),
        ("B", 128, 16),
        ("B", 96, 12),
        ("B", 64, 8),
        ("H", 32, 4),
        ("pico", 28, 4),
    ],
)
def test_default_patch_sizes(size: str, image_size: int, patch_size: int) -> None:
    for family in ("vit", "mixer"):
        assert ladder.architecture(family, size, image_size=image_size, num_classes=2).patch_size == patch_size


def test_a_patch_that_does_not_divide_the_image_names_family_size_patch_and_image() -> None:
    with pytest.raises(
        UserError, match=r"mixer B: patch size 5 does not divide the image size 32 .*1, 2, 4, 8, 16, 32"
    ):
        ladder.architecture("mixer", "B", image_size=32, num_classes=10, patch_size=5)
    with pytest.raises(UserError, match=r"patch size 0 does not divide"):
        ladder.architecture("vit", "B", image_size=32, num_classes=10, patch_size=0)


def test_a_prime_image_size_has_no_default_patch_but_takes_a_given_one() -> None:
    with pytest.raises(UserError, match=r"vit S: no patch size near 16 divides the image size 131; .* 1, 131"):
        ladder.architecture("vit", "S", image_size=131, num_classes=10)
    assert ladder.architecture("vit", "S", image_size=131, num_classes=10, patch_size=131).num_patches == 1


def test_a_resnet_takes_any_image_and_has_no_patch() -> None:
    assert ladder.architecture("resnet", "S", image_size=131, num_classes=10, patch_size=7).patch_size == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unknown_size_lists_the_known_ones_and_names_the_nearest(family: Family) -> None:
    with pytest.raises(UnknownNameError) as caught:
        at_224(family, "nanno")
    message = str(caught.value)
    assert message.startswith(f"unknown size 'nanno' for family {family!r} (known: pico, nano, micro, Ti, S,")
    assert message.endswith("Did you mean 'nano'?")


@pytest.mark.parametrize(
    ("family", "size"),
    [
        ("vit", "dim48"),
        ("vit", "dim0-depth3"),
        ("vit", "dim48-depth3-heads0"),
        ("vit", " B"),
        ("vit", "R50"),
        ("vit", "dim٤-depth3"),
        ("mixer", "dim48-depth3-heads3"),
        ("resnet", "width24-blocks1.1.1"),
        ("resnet", "width24-blocks1.1.0.1"),
        ("resnet", "width24-blocks1.1.1.1\n"),
    ],
)
def test_malformed_sizes_are_unknown(family: Family, size: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown size"):
        at_224(family, size)


@pytest.mark.parametrize(
    ("family", "size", "message"),
    [
        ("vit", "dim48-depth3-heads5", "5 heads do not divide the width 48"),
        ("mixer", "dim1-depth1", "the width 1 is below 2"),
        ("resnet", "width7-blocks1.1.1.1", "the width 7 is odd; use 8"),
    ],
)
def test_sizes_that_no_model_can_have(family: Family, size: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        at_224(family, size)


@pytest.mark.parametrize("name", ["image_size", "num_classes", "in_channels"])
def test_counts_below_one(name: str) -> None:
    with pytest.raises(UserError, match=f"vit B: {name} is 0; it must be at least 1"):
        ladder.architecture("vit", "B", **{"image_size": 32, "num_classes": 10, name: 0})


def test_unknown_family_precision_and_optimizer() -> None:
    family, precision, optimizer = cast("Any", ("ViT", "bf16", "adam"))  # as they come from a study file
    a = at_224("vit", "B")
    with pytest.raises(UnknownNameError, match=r"unknown family 'ViT'.*Did you mean 'vit'"):
        at_224(family, "B")
    with pytest.raises(UnknownNameError, match=r"unknown precision 'bf16'.*Did you mean 'bfloat16'"):
        ladder.training_memory(a, 1, precision)
    with pytest.raises(UnknownNameError, match=r"unknown optimizer 'adam'.*Did you mean 'adamw'"):
        ladder.training_memory(a, 1, "float32", optimizer)
    with pytest.raises(UserError, match="batch_size is 0"):
        ladder.training_memory(a, 0)


# --- the models themselves ---


@pytest.mark.parametrize("family", FAMILIES)
def test_a_real_model_is_finite_and_repeats_with_the_seed(family: Family) -> None:
    a = ladder.architecture(family, "pico", image_size=28, num_classes=7, in_channels=1)
    logits = []
    for _ in range(2):
        torch.manual_seed(5)
        logits.append(build_model(a)(torch.linspace(-1, 1, 2 * 28 * 28).reshape(2, 1, 28, 28)))
    assert logits[0].shape == (2, 7)
    assert logits[0].isfinite().all()
    assert torch.equal(logits[0], logits[1])


def test_small_images_are_not_max_pooled() -> None:
    sides = {}
    for image_size in (64, 65):
        model, x = on_meta(ladder.architecture("resnet", "pico", image_size=image_size, num_classes=2))
        sides[image_size] = [output.shape[-1] for output in model.forward_intermediates(x)[1]]
    assert sides == {64: [32, 32, 16, 8, 4], 65: [33, 17, 9, 5, 3]}


def test_the_stem_of_any_width_begins_as_a_resnet50s_does() -> None:
    torch.manual_seed(0)
    model: Any = build_model(ladder.architecture("resnet", "width128-blocks1.1.1.1", image_size=224, num_classes=2))
    resnet50: Any = timm.create_model("resnet50", num_classes=2)
    wide, published = model.conv1, resnet50.conv1
    assert (wide.kernel_size, wide.stride, wide.padding) == (published.kernel_size, published.stride, published.padding)
    assert wide.weight.std().item() == pytest.approx(published.weight.std().item() / 2**0.5, rel=0.05)


def test_the_ladder_imports_neither_torch_nor_numpy() -> None:
    code = "import models.ladder, sys; print({'torch', 'timm', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("size", ["pico", "S", "10B"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_sharded_model_gathers_what_is_outside_its_blocks_and_two_of_these(family: Family, size: str) -> None:
    a = at_224(family, size)
    model, _ = on_meta(a)
    of_blocks = [count_params(block) for block in blocks(model)]
    outside = count_params(model) - sum(of_blocks)
    assert ladder.num_gathered(a) == min(count_params(model), outside + 2 * max(of_blocks))


def test_sharding_divides_all_but_the_activations() -> None:
    one, four = (ladder.training_memory(at_224("vit", "B"), 8, average=True, num_shards=shards) for shards in (1, 4))
    for part in ("weights_gb", "gradients_gb", "optimizer_gb", "average_gb"):
        assert getattr(four, part) == pytest.approx(getattr(one, part) / 4)
    assert (four.activations_gb, one.gathered_gb) == (one.activations_gb, 0)
    assert four.total_gb == pytest.approx(
        (one.total_gb - one.activations_gb) / 4 + one.activations_gb + four.gathered_gb
    )
