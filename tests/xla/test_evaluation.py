"""Checkpoints that torch-xla wrote are judged under torch-xla as on the CPU."""

import numpy as np
import polars as pl
import pytest

from models.ladder import num_layers
from tests.xla.runs import AXES, compiled, last_checkpoint, recipe

pytestmark = [pytest.mark.xla, pytest.mark.xdist_group("xla training")]


@pytest.fixture(scope="session")
def checkpoint(unbroken):
    """A family's last checkpoint, what was measured at it, and its architecture."""
    from models.prepare import recipe_architecture

    def of(family):
        last, metrics = last_checkpoint(unbroken(family).folder)
        return last, metrics, recipe_architecture(recipe(family), metrics["upstream_num_classes"])

    return of


def judged(checkpoint, output_dir):
    from evals.protocol import Protocol
    from evals.runner import Backbone, Subject, evaluate_checkpoint
    from models.train import load_model

    folder, metrics, arch = checkpoint
    subject = Subject(cell_id="0123456789abcdef", backbone=Backbone.of(arch), checkpoint=metrics)
    options = {"tasks": ["digits"], "protocols": [Protocol(shots=(1, 5), draws=2)], "load_model": load_model(arch)}
    [path] = evaluate_checkpoint(folder, output_dir, subject, **options)
    return pl.read_parquet(path)


@pytest.mark.parametrize("family", AXES)
def test_few_shot_accuracies_are_those_of_the_cpu(checkpoint, family, tmp_path, monkeypatch):
    there = judged(checkpoint(family), tmp_path / "xla")
    monkeypatch.delenv("PJRT_DEVICE")
    here = judged(checkpoint(family), tmp_path / "cpu")
    assert there.height == here.height == 4 * (num_layers(checkpoint(family)[2]) + 1)
    # An image whose two best classes differ by rounding alone may go to the other one.
    difference = there["downstream_accuracy"] - here["downstream_accuracy"]
    assert difference.abs().max() <= 0.005
    assert there["downstream_accuracy"].max() > 0.2


def test_batches_of_any_size_are_one_program(checkpoint):
    from models.train import load_model
    from tests.evals.probing import extract_features

    folder, _, arch = checkpoint("vit")
    images_NHWC = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 1), dtype=np.uint8)
    model = load_model(arch)(folder)
    whole = extract_features(model, images_NHWC, batch_size=48)
    before = compiled()
    for size in (70, 48, 3):
        features = extract_features(model, images_NHWC[:size], batch_size=48)
        for layer_ND, expected_ND in zip(features, whole, strict=True):
            np.testing.assert_array_equal(layer_ND, expected_ND[:size])
    assert compiled() == before


@pytest.mark.parametrize("family", AXES)
def test_upstream_measures_are_what_was_recorded_there_and_those_of_the_cpu(checkpoint, family, monkeypatch):
    there, metrics = measured(checkpoint(family), family)
    monkeypatch.delenv("PJRT_DEVICE")
    here, _ = measured(checkpoint(family), family)
    assert there[None, "accuracy"] == pytest.approx(metrics["upstream_accuracy"], abs=0.001)
    assert there[None, "cross_entropy"] == pytest.approx(metrics["upstream_loss"], rel=1e-4)
    assert there.keys() == here.keys()
    assert all(value is not None for value in there.values())
    for key, value in there.items():
        assert value == pytest.approx(here[key], rel=1e-3, abs=1e-3), key


def measured(checkpoint, family):
    """Values by (layer, quantity), and what was recorded in training; the last batch is not a full one."""
    from evals.upstream import upstream_measures
    from models.train import load_model
    from models.upstream import held_out_batches, load_held_out

    folder, metrics, arch = checkpoint
    held_out = load_held_out(recipe(family))
    batches = held_out_batches(held_out, 200)
    rows = upstream_measures(load_model(arch)(folder), batches, held_out.classes, batch_size=200)
    return {(row["layer"], row["quantity"]): row["value"] for row in rows}, metrics


def test_measures_of_a_model_are_one_program(checkpoint):
    from evals.features import encode_with_logits
    from models.train import load_model

    folder, _, arch = checkpoint("resnet")
    images_NHWC = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 1), dtype=np.uint8)
    model = load_model(arch)(folder)
    [whole, _] = encode_with_logits(model, [images_NHWC[:48], images_NHWC[48:]], batch_size=48)
    before = compiled()
    for size in (48, 3):
        [encoded] = encode_with_logits(model, [images_NHWC[:size]], batch_size=48)
        np.testing.assert_array_equal(encoded.logits_BC, whole.logits_BC[:size])
    assert compiled() == before
