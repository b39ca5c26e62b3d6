import sys
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from models import ladder
from models.build import build_model
from models.checkpoint import finalised_steps, step_folder
from models.device import Device
from models.distributed import World
from models.errors import UserError
from models.ladder import Architecture, Family, measured
from models.measure import measure
from models.prepare import recipe_architecture
from models.recipe import Recipe
from models.step import synchronised
from models.train import train
from models.upstream import load_upstream
from tests.models.test_ladder import count_params, kept_for_backward

pytestmark = pytest.mark.xdist_group("timm")  # what its tests share is made once

named = partial(ladder.architecture, "timm", num_classes=10)


TINY = ("test_convnext", "test_resnet", "test_vit")


def recipe(size: str, **axes: Any) -> Recipe:
    common = {"family": "timm", "size": size, "dataset": "icons", "image_size": 32, "fraction": 0.01, "batch_size": 16}
    common |= {"classes": 0.1}
    return Recipe.model_validate(common | {"head_learning_rate": 1e-3, "head_weight_decay": 0.03} | axes)


@pytest.fixture(scope="module", autouse=True)
def _measured_together() -> None:
    """One child process for all tests of this module that need costs without measuring by themselves."""
    trained = [recipe_architecture(recipe(name), load_upstream(recipe(name)).num_classes) for name in TINY]
    assert not ladder.measure([*trained, *(named(name, image_size=64) for name in TINY)])


# --- what it costs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "image_size", "options"),
    [
        ("test_vit", 64, {"img_size": 64}),
        ("test_convnext", 64, {}),
        ("resnetv2_50", 64, {}),
        ("efficientnet_b0", 32, {}),
        ("swin_tiny_patch4_window7_224", 64, {"img_size": 64}),
    ],
)
def test_a_model_costs_what_timm_and_torch_count(name: str, image_size: int, options: dict[str, int]) -> None:
    found = measure(named(name, image_size=image_size))
    with torch.device("meta"):
        model: Any = timm.create_model(name, num_classes=10, **options)
        x = torch.empty(1, 3, image_size, image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(x)
    assert found.params == count_params(model)
    assert found.forward_flops == counter.get_total_flops()
    assert 2.5 < found.train_flops / found.forward_flops <= 3
    assert found.num_layers == len(model.forward_intermediates(x)[1])
    assert found.batch_norm == any("BatchNorm" in type(module).__name__ for module in model.modules())


@pytest.mark.parametrize(
    ("family", "size", "name"),
    [("vit", "Ti", "vit_tiny_patch16_224"), ("mixer", "S", "mixer_s16_224"), ("resnet", "R50", "resnet50")],
)
def test_measured_is_what_the_closed_forms_say_of_the_same_model(family: Family, size: str, name: str) -> None:
    same = ladder.architecture(family, size, image_size=224, num_classes=10)
    found = measure(named(name, image_size=224))
    assert (found.params, found.forward_flops, found.train_flops, found.num_layers) == (
        ladder.num_params(same),
        ladder.forward_flops(same),
        ladder.train_flops(same),
        ladder.num_layers(same),
    )
    memory = partial(ladder.training_memory, same, 1)
    assert 4 * (found.kept + found.kept_wide) == pytest.approx(1e9 * memory().activations_gb, rel=0.01)
    halved = 2 * found.kept + 4 * found.kept_wide + 2 * found.params
    assert halved == pytest.approx(1e9 * memory("bfloat16").activations_gb, rel=0.01)


@pytest.mark.parametrize("name", TINY)
def test_activations_are_what_autograd_keeps_within_two_per_cent(name: str) -> None:
    a = named(name, image_size=64)
    for dropout in (0.0, 0.3):
        expected = ladder.training_memory(a, 8, dropout=dropout > 0).activations_gb * 1e9
        assert expected == pytest.approx(kept_for_backward(a, 8, "float32", dropout=dropout), rel=0.02)


def test_what_was_measured_once_needs_no_second_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    known, unknown = (named(name, image_size=40) for name in ("test_resnet", "no_such_model"))
    monkeypatch.setattr(measured, "_known", {})
    faults = ladder.measure([known, unknown])  # in a child process, for real
    assert list(faults) == [unknown]
    assert "timm no_such_model: timm" in faults[unknown]
    found = ladder.measurement(known)
    assert found == measure(known)
    monkeypatch.setattr(measured, "_known", {})
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert ladder.measurement(known) == found
    (kept,) = tmp_path.rglob("*.json")
    kept.write_text(kept.read_text()[:20])  # torn: to be measured again
    monkeypatch.setattr(measured, "_known", {})
    with pytest.raises(UserError, match=r"could not be measured \(exit code 1\)"):
        ladder.measurement(known)


@pytest.mark.parametrize(
    ("name", "image_size", "message"),
    [
        ("convnext_tinny", 32, r"has no model of this name \(nearest: convnext_tiny, "),
        ("qqqq", 32, r"has no model of this name \(timm.list_models\(\) lists them\)"),
        ("vit_tiny_patch16_224", 40, "its patches of 16 pixels do not divide images of 40"),
        ("crossvit_9_240", 64, "does not take images of 64 pixels: RuntimeError"),
        ("levit_128s", 224, "its head is not one layer with weights"),
    ],
)
def test_models_that_cannot_be_used_say_why(name: str, image_size: int, message: str) -> None:
    with pytest.raises(UserError, match=f"timm {name}: .*{message}"):
        measure(named(name, image_size=image_size))


@pytest.mark.parametrize(
    ("size", "axes", "message"),
    [
        ("convnext_tiny.in12k", {}, "leave the weights 'in12k' out: convnext_tiny"),
        ("hf-hub:some/model", {}, "is no name of a timm model"),
        ("convnext_tiny", {"patch_size": 4}, "takes no patch_size"),
    ],
)
def test_names_that_are_refused_without_asking_timm(size: str, axes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        named(size, image_size=32, **axes)


def test_dropout_and_stochastic_depth_are_known_where_they_are_heeded() -> None:
    seen = {name: measure(named(name, image_size=64)) for name in ("test_resnet", "efficientnet_b0", "vgg11")}
    assert all(found.dropout for found in seen.values())
    assert {name: found.drop_path for name, found in seen.items()} == {
        "test_resnet": True,
        "efficientnet_b0": True,
        "vgg11": False,
    }
    with pytest.raises(UserError, match="vgg11: the model has no drop_path"):
        build_model(named("vgg11", image_size=64), drop_path=0.1)


# --- the models themselves -----------------------------------------------------------------------------------------


def test_finding_out_what_a_model_takes_draws_nothing_from_the_generator() -> None:
    a = named("test_resnet", image_size=48)
    weights = []
    for _ in range(2):  # the first one has to find out, the second one remembers
        torch.manual_seed(3)
        weights.append(next(build_model(a).parameters()))
    assert torch.equal(*weights)


@pytest.mark.parametrize("name", TINY)
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Any, name: str) -> None:
    wanted = recipe(name, dropout=0.1, drop_path=0.1, ema=0.9)
    steps = 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return steps == 2

    def run(folder: Any, **options: Any) -> Any:
        return train(wanted, folder, num_checkpoints=1, log=lambda record: None, **options)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole).outcome == "done"
    assert run(parts, should_stop=stop).outcome == "interrupted"
    assert run(parts).first_step == 2
    (last,) = finalised_steps(whole)
    for file in ("weights.safetensors", "raw.safetensors", "optimizer.safetensors"):
        assert (step_folder(whole, last) / file).read_bytes() == (step_folder(parts, last) / file).read_bytes(), file


def test_synchronised_batch_norm_keeps_the_activation_that_timm_fused_into_it() -> None:
    model = build_model(named("efficientnet_b0", image_size=32))
    before = [module.act for module in model.modules() if type(module).__name__ == "BatchNormAct2d"]
    converted = synchronised(model, Device(torch.device("cuda")), World(size=2))
    after = [module for module in converted.modules() if isinstance(module, torch.nn.SyncBatchNorm)]
    assert len(after) == len(before) > 10
    assert [module.act for module in after] == before


def test_architectures_of_timm_have_no_shape_of_their_own() -> None:
    a = named("test_vit", image_size=32)
    assert a == Architecture(
        family="timm", size="test_vit", image_size=32, in_channels=3, num_classes=10, width=0, depth=0
    )


def test_a_measurement_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "_START_S", 0.01)
    monkeypatch.setattr(measured, "_MODEL_S", 0)
    with pytest.raises(UserError, match=r"timm test_vit2: could not be measured within 0.01 seconds"):
        ladder.measure([named("test_vit2", image_size=64, num_classes=77)])
