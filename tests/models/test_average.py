import json

import pytest
import torch
from safetensors.torch import load_file

from models.average import averaged, update_average
from models.build import build_model
from models.checkpoint import finalised_steps, step_folder
from models.device import pick_device
from models.prepare import recipe_architecture
from models.recipe import Recipe
from models.train import load_model, train
from models.upstream import load_upstream, measure_upstream


def recipe(family="resnet", **axes):
    return Recipe.model_validate(
        {
            "family": family,
            "size": "pico",
            "dataset": "icons",
            "image_size": 32,
            "fraction": 0.2,
            "classes": 0.1,
            "patch_size": None if family == "resnet" else 8,
            "batch_size": 32,
            "head_learning_rate": 1e-3,
            "head_weight_decay": 0.03,
        }
        | axes
    )


def run(wanted, folder, count):
    records = []
    train(wanted, folder, num_checkpoints=count, log=records.append)
    return records


def weights(folder, step, name="weights"):
    return load_file(step_folder(folder, step) / f"{name}.safetensors")


def same(given, expected):
    return given.keys() == expected.keys() and all(torch.equal(given[name], expected[name]) for name in given)


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_what_is_measured_is_the_average_of_the_weights_of_all_steps(tmp_path, family):
    """A checkpoint a step gives the raw weights, which are those of a run without an average."""
    run(recipe(family), tmp_path / "plain", 100)
    records = run(recipe(family, ema=0.5), tmp_path / "averaged", 100)
    steps = finalised_steps(tmp_path / "averaged")
    assert steps == list(range(1, records[0]["num_steps"] + 1))
    torch.manual_seed(0)
    mean = build_model(recipe_architecture(recipe(family), records[0]["num_classes"])).state_dict()
    for n in steps:
        now = weights(tmp_path / "plain", n)
        assert same(weights(tmp_path / "averaged", n, "raw"), now)
        d = min(0.5, (1 + n) / (10 + n))
        mean = {name: d * mean[name] + (1 - d) * w if w.is_floating_point() else w for name, w in now.items()}
        for name, tensor in weights(tmp_path / "averaged", n).items():
            assert torch.allclose(tensor, mean[name], rtol=1e-5, atol=1e-6), name
    assert not (step_folder(tmp_path / "plain", 1) / "raw.safetensors").exists()


def test_upstream_and_evaluations_see_the_average(tmp_path):
    records = run(recipe(ema=0.9), tmp_path, 1)
    folder = step_folder(tmp_path, records[-1]["step"])
    arch = recipe_architecture(recipe(), records[0]["num_classes"])
    model = load_model(arch)(folder)
    assert same(model.state_dict(), load_file(folder / "weights.safetensors"))
    saved = json.loads((folder / "metrics.json").read_text())
    assert measure_upstream(model, load_upstream(recipe()), pick_device()) == (
        saved["upstream_accuracy"],
        saved["upstream_loss"],
    )
    model.load_state_dict(load_file(folder / "raw.safetensors"))
    assert measure_upstream(model, load_upstream(recipe()), pick_device())[1] != saved["upstream_loss"]


def test_a_checkpoint_without_its_raw_weights_is_passed_over(tmp_path):
    records = run(recipe(ema=0.9), tmp_path / "unbroken", 3)
    run(recipe(ema=0.9), tmp_path / "torn", 3)
    last = records[-1]["step"]
    (step_folder(tmp_path / "torn", last) / "raw.safetensors").unlink()
    again = run(recipe(ema=0.9), tmp_path / "torn", 3)
    assert (again[0]["event"], again[0]["step"]) == ("corrupt_checkpoint", last)
    for name in ("weights", "raw", "optimizer"):
        assert same(weights(tmp_path / "torn", last, name), weights(tmp_path / "unbroken", last, name))


def test_the_average_takes_no_gradient_and_shares_no_weight():
    model = build_model(recipe_architecture(recipe(), 10))
    average = averaged(model)
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert not {p.data_ptr() for p in average.parameters()} & {p.data_ptr() for p in model.parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
            break
    update_average(average, model, decay=0.999, step=0)
    assert not torch.equal(next(average.parameters()), next(model.parameters()))
