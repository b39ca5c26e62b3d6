"""Shape suffixes: N images, B images of a batch, C classes, D features."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import polars as pl
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss, top_k_accuracy_score

from evals.layer_measures import LayerFeatures
from evals.measures import LAYER_QUANTITIES, MEASURES_SCHEMA, UPSTREAM_QUANTITIES, measure, null_measures
from evals.scores import Margins, Scores
from evals.upstream import upstream_measures
from models.build import build_model
from models.checkpoint import finalised_steps, step_folder
from models.inputs import to_input
from models.ladder import architecture, num_layers
from models.prepare import recipe_architecture
from models.recipe import Recipe
from models.train import load_model, train
from models.upstream import held_out_batches, load_held_out, load_upstream
from tests.evals.probing import extract_features
from tests.models.stored_images import examples, write_folder, write_shards, write_table

ROUNDING = 1e-6
NUM_CLASSES = 10


def values(rows, **where):
    """Value by (layer, quantity) of the rows that are not of one class."""
    return {(row["layer"], row["quantity"]): row["value"] for row in rows if row["label"] is None}


def reasons(rows):
    return {(row["layer"], row["quantity"]): row["reason"] for row in rows if row["label"] is None}


# --- the checkpoints of real cells ------------------------------------------------------------------------------------


def recipe(dataset, family="vit", **axes):
    common = {
        "family": family,
        "size": "pico",
        "dataset": dataset,
        "image_size": 16,
        "patch_size": None if family == "resnet" else 8,
        "batch_size": 32,
        "epochs": 1,
        "learning_rate": 3e-3,
        "head_learning_rate": 3e-3,
        "head_weight_decay": 0.03,
    }
    return Recipe.model_validate(common | axes)


def measured(wanted, folder, batch_size=512, **options):
    """(what training recorded of its last checkpoint, the measures of that checkpoint)."""
    train(wanted, folder, num_checkpoints=1, log=lambda _: None)
    last = step_folder(folder, finalised_steps(folder)[-1])
    recorded = json.loads((last / "metrics.json").read_text())
    held_out = load_held_out(wanted)
    model = load_model(recipe_architecture(wanted, len(held_out.classes)))(last)
    batches = held_out_batches(held_out, batch_size)
    return recorded, upstream_measures(model, batches, held_out.classes, batch_size=batch_size, **options)


def assert_recorded(recorded, rows):
    found = values(rows)
    assert found[None, "accuracy"] == recorded["upstream_accuracy"]
    assert found[None, "cross_entropy"] == pytest.approx(recorded["upstream_loss"], rel=ROUNDING)
    assert {row["num_images"] for row in rows if row["label"] is None} - {None} == {recorded["upstream_num_test"]}


@pytest.mark.parametrize(("family", "batch_size"), [("vit", 512), ("vit", 100), ("mixer", 100), ("resnet", 100)])
def test_measures_are_what_training_recorded(tmp_path, family, batch_size):
    wanted = recipe("digits", family, classes=0.8, epochs=3)
    recorded, rows = measured(wanted, tmp_path, batch_size, by_class=True)
    assert_recorded(recorded, rows)
    assert recorded["upstream_accuracy"] > 0.2
    by_class = [row for row in rows if row["label"] is not None]
    assert len(by_class) == recorded["upstream_num_classes"] == 8
    hits = sum(row["value"] * row["num_images"] for row in by_class)
    assert hits / recorded["upstream_num_test"] == pytest.approx(recorded["upstream_accuracy"], abs=1e-12)


@pytest.fixture(scope="module")
def few():
    """Images of 12 classes, two of them corrupt."""
    found = examples(240)
    for index in (30, 77):
        found[index] = (found[index][0], b"no image")
    return found


@pytest.mark.parametrize("form", ["folder", "shards", "table"])
def test_images_on_disk_are_measured_as_training_measured_them(tmp_path, few, form):
    write = {
        "folder": write_folder,
        "shards": lambda *of: write_shards(*of, 7),
        "table": lambda *of: write_table(*of, 40),
    }
    place = tmp_path / ("set.parquet" if form == "table" else "set")
    wanted = recipe(write[form](place, few), classes=1.0 if form == "shards" else 0.75)
    recorded, rows = measured(wanted, tmp_path / "cell", 16)
    assert_recorded(recorded, rows)


@pytest.mark.parametrize("axes", [{}, {"fraction": 0.5, "classes": 0.5}, {"crop": 0.3}], ids=str)
def test_held_out_images_are_those_of_the_training_data_in_order(axes):
    wanted = recipe("digits", **axes)
    there, held_out = load_upstream(wanted).test, load_held_out(wanted)
    images, labels = (np.concatenate(part) for part in zip(*held_out_batches(held_out, 100), strict=True))
    np.testing.assert_array_equal(images, there.images_NHWC)
    np.testing.assert_array_equal(labels, there.labels_N)
    assert len(held_out.classes) == load_upstream(wanted).num_classes


def test_classes_have_their_own_names(tmp_path):
    """Of a cell of half the classes: the folder's names by the labels that the model knows."""
    found = examples(240)
    names = Counter(name for name, _ in found)
    wanted = recipe(write_folder(tmp_path / "set", found), classes=0.5)
    held_out = load_held_out(wanted)
    assert len(held_out.classes) == len(names) / 2
    assert set(held_out.classes) < {path.name for path in (tmp_path / "set").rglob("*") if path.is_dir()}
    assert list(held_out.classes) == sorted(held_out.classes)


# --- a model whose measures are done again by hand --------------------------------------------------------------------


@pytest.fixture(scope="module", name="digits")
def real_digits():
    """(images, labels) of real digits, at 16 pixels."""
    found = load_digits()
    images_NHWC = np.kron(found.images[:300] * 15, np.ones((1, 2, 2))).astype(np.uint8)[..., None]
    return images_NHWC, found.target[:300].astype(np.int64)


def build(family="vit", seed=0):
    torch.manual_seed(seed)
    patch = None if family == "resnet" else 8
    model = build_model(architecture(family, "pico", image_size=16, num_classes=NUM_CLASSES, patch_size=patch))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def batched(images_NHWC, labels_N, batch_size, order=None):
    order = np.arange(len(labels_N)) if order is None else order
    for start in range(0, len(order), batch_size):
        yield images_NHWC[order[start : start + batch_size]], labels_N[order[start : start + batch_size]]


def measures(model, digits, batch_size=64, order=None, classes=None, **options):
    classes = classes or [str(digit) for digit in range(NUM_CLASSES)]
    return upstream_measures(model, batched(*digits, batch_size, order), classes, batch_size=batch_size, **options)


@pytest.fixture(scope="module", params=["vit", "mixer", "resnet"])
def model(request):
    return build(request.param)


def logits_of(model, images_NHWC):
    with torch.no_grad():
        return model(to_input(torch.tensor(images_NHWC))).double().numpy()


def test_scores_are_those_of_scikit_learn_and_of_loops(model, digits):
    images_NHWC, labels_N = digits
    logits_NC = logits_of(model, images_NHWC)
    p_NC = torch.from_numpy(logits_NC).softmax(1).numpy()
    found, all_classes = values(measures(model, digits)), np.arange(NUM_CLASSES)
    assert found[None, "accuracy"] == top_k_accuracy_score(labels_N, logits_NC, k=1, labels=all_classes)
    assert found[None, "accuracy_top5"] == top_k_accuracy_score(labels_N, logits_NC, k=5, labels=all_classes)
    assert found[None, "cross_entropy"] == pytest.approx(log_loss(labels_N, p_NC, labels=all_classes), rel=ROUNDING)
    assert found[None, "expected_calibration_error"] == pytest.approx(calibration_error(p_NC, labels_N), rel=ROUNDING)
    assert found[None, "brier_score"] == pytest.approx(brier(p_NC, labels_N), rel=ROUNDING)


def calibration_error(p_NC, labels_N):
    bins = [[] for _ in range(15)]
    for p_C, label in zip(p_NC, labels_N, strict=True):
        for number in range(15):
            if number / 15 < p_C.max() <= (number + 1) / 15:
                bins[number].append((p_C.max(), p_C.argmax() == label))
    gaps = [len(b) * abs(np.mean([c for c, _ in b]) - np.mean([hit for _, hit in b])) for b in bins if b]
    return sum(gaps) / len(labels_N)


def brier(p_NC, labels_N):
    pairs = zip(p_NC, labels_N, strict=True)
    return np.mean([sum((p - (c == label)) ** 2 for c, p in enumerate(p_C)) for p_C, label in pairs])


def test_margins_and_distances_are_those_of_loops(model, digits):
    images_NHWC, labels_N = digits
    logits_NC, weight_CD = logits_of(model, images_NHWC), model.get_classifier().weight.detach().double().numpy()
    margins, distances = [], []
    for z_C, label in zip(logits_NC, labels_N, strict=True):
        other = max((c for c in range(NUM_CLASSES) if c != label), key=lambda c: z_C[c])
        margins.append(z_C[label] - z_C[other])
        distances.append(margins[-1] / np.linalg.norm(weight_CD[label] - weight_CD[other]))
    found = values(measures(model, digits))
    for name, of in (("margin", margins), ("boundary_distance", distances)):
        assert found[None, f"{name}_mean"] == pytest.approx(np.mean(of), rel=ROUNDING)
        assert found[None, f"{name}_median"] == pytest.approx(np.median(of), rel=ROUNDING)


def test_the_distance_is_that_to_where_both_logits_are_equal(digits):
    """Moved by it along the difference of the weights, the features lie on the boundary."""
    model, label = build(), int(digits[1][0])
    head = model.get_classifier()
    weight_CD, bias_C = (parameter.detach().double().numpy() for parameter in (head.weight, head.bias))
    [features_1D] = extract_features(model, digits[0][:1], batch_size=1)[-1:]
    z_C = weight_CD @ features_1D[0] + bias_C
    other = int(np.where(np.arange(NUM_CLASSES) == label, -np.inf, z_C).argmax())
    direction_D = weight_CD[label] - weight_CD[other]
    distance = values(measures(model, (digits[0][:1], digits[1][:1])))[None, "boundary_distance_mean"]
    moved_C = weight_CD @ (features_1D[0] - distance * direction_D / np.linalg.norm(direction_D)) + bias_C
    assert abs(z_C[label] - z_C[other]) > 0.1
    assert moved_C[label] == pytest.approx(moved_C[other], abs=1e-5)


def test_norms_and_ranks_of_layers_are_those_of_singular_values(model, digits):
    found = values(measures(model, digits))
    for layer, features_ND in enumerate(extract_features(model, digits[0], batch_size=300)):
        x_ND = features_ND.astype(np.float64)
        squares = np.linalg.svd(x_ND - x_ND.mean(0), compute_uv=False) ** 2
        share = squares / squares.sum()
        entropy = -sum(p * np.log(p) for p in share if p > 0)
        assert found[layer, "feature_norm"] == pytest.approx(np.mean([np.linalg.norm(x_D) for x_D in x_ND]), rel=1e-6)
        assert found[layer, "effective_rank"] == pytest.approx(np.exp(entropy), rel=1e-6)
        assert found[layer, "stable_rank"] == pytest.approx(squares.sum() / squares.max(), rel=1e-6)
        assert found[layer, "participation_ratio"] == pytest.approx(squares.sum() ** 2 / (squares**2).sum(), rel=1e-6)


def test_weight_norms_are_those_of_flat_vectors(model, digits):
    found = values(measures(model, digits))
    if hasattr(model, "blocks"):
        layers = list(model.blocks)
    else:
        layers = [torch.nn.Sequential(model.conv1, model.bn1), model.layer1, model.layer2, model.layer3, model.layer4]
    for number, module in enumerate(layers):
        flat = np.concatenate([parameter.detach().numpy().ravel() for parameter in module.parameters()])
        assert found[number, "weight_norm"] == pytest.approx(np.linalg.norm(flat.astype(np.float64)), rel=1e-9)
    head = model.get_classifier()
    weight_CD, bias_C = head.weight.detach().numpy(), head.bias.detach().numpy()
    assert found[None, "head_weight_norm"] == pytest.approx(np.linalg.norm(weight_CD), rel=1e-6)
    assert found[None, "head_bias_norm"] == pytest.approx(np.linalg.norm(bias_C), rel=1e-6)
    assert (len(layers), "weight_norm") not in found


@pytest.mark.parametrize("batch_size", [1, 7, 299, 300])
def test_neither_batch_size_nor_order_matters(model, digits, batch_size):
    order = np.random.default_rng(batch_size).permutation(300)
    here, there = (values(measures(model, digits, *how)) for how in ((64,), (batch_size, order)))
    for quantity in ("accuracy", "accuracy_top5"):
        assert here[None, quantity] == there[None, quantity]
    assert there == pytest.approx(here, rel=ROUNDING)


def test_the_accuracy_of_each_class_has_its_row(model, digits):
    images_NHWC, labels_N = digits
    rows = [row for row in measures(model, digits, by_class=True) if row["label"] is not None]
    hit_N = logits_of(model, images_NHWC).argmax(1) == labels_N
    assert [row["label"] for row in rows] == [str(digit) for digit in range(NUM_CLASSES)]
    assert [row["value"] for row in rows] == [float(hit_N[labels_N == digit].mean()) for digit in range(NUM_CLASSES)]
    assert [row["num_images"] for row in rows] == np.bincount(labels_N).tolist()
    assert not [row for row in measures(model, digits) if row["label"] is not None]


# --- nulls with a reason ----------------------------------------------------------------------------------------------


def test_weights_that_are_no_numbers_give_nulls_with_a_reason(digits):
    model = build()
    with torch.no_grad():
        model.blocks[1].mlp.fc1.bias[0] = torch.nan
    rows = measures(model, digits, by_class=True)
    found = reasons(rows)
    assert found[None, "accuracy"] == "300 of 300 images have logits that are not finite"
    assert found[1, "effective_rank"] == "300 of 300 images have features that are not finite"
    assert found[0, "effective_rank"] is None
    assert found[1, "weight_norm"] == "weight_norm is nan"
    known = {(0, quantity) for quantity in LAYER_QUANTITIES} | {(None, "head_weight_norm"), (None, "head_bias_norm")}
    assert {key for key, value in values(rows).items() if value is not None} == known
    assert all(row["value"] is None and row["reason"] for row in rows if row["label"] is not None)


def test_features_that_are_not_finite_for_some_images_spoil_the_layer():
    layer = LayerFeatures()
    layer.add(np.random.default_rng(0).normal(size=(8, 3)))
    layer.add(np.array([[1, 2, np.inf], [0, 1, 2]]))
    layer.add(np.ones((5, 3)))
    assert {row["reason"] for row in layer.rows(0)} == {"1 of 15 images have features that are not finite"}


def test_constant_features_have_a_norm_but_no_rank(digits):
    model = build()
    with torch.no_grad():
        model.patch_embed.proj.weight.zero_()
    found, why = (of(measures(model, digits)) for of in (values, reasons))
    for layer in range(3):
        assert found[layer, "feature_norm"] > 0
        for quantity in ("effective_rank", "stable_rank", "participation_ratio"):
            assert found[layer, quantity] is None
            assert why[layer, quantity] == "the features are the same for all 300 images"


def test_a_constant_that_cancels_badly_is_still_constant():
    layer = LayerFeatures()
    for seed in range(4):
        noise_BD = np.random.default_rng(seed).normal(size=(50, 6))
        layer.add((1e4 + 1e-4 * noise_BD).astype(np.float32))
    assert [row["reason"] for row in layer.rows(0)][1:] == ["the features are the same for all 200 images"] * 3


def test_a_large_mean_does_not_hide_the_rank():
    x_ND = np.random.default_rng(0).normal(size=(400, 8)) * np.geomspace(1, 0.1, 8) + 1e5
    layer = LayerFeatures()
    for start in range(0, 400, 37):
        layer.add(x_ND[start : start + 37])
    squares = np.linalg.svd(x_ND - x_ND.mean(0), compute_uv=False) ** 2
    [rank] = [row["value"] for row in layer.rows(0) if row["quantity"] == "stable_rank"]
    assert rank == pytest.approx(squares.sum() / squares.max(), rel=1e-6)


def test_one_image_has_no_covariance(digits):
    why = reasons(measures(build(), (digits[0][:1], digits[1][:1])))
    assert why[0, "effective_rank"] == "one image has no covariance"
    assert why[None, "accuracy"] is None


def test_no_images_give_nulls():
    rows = upstream_measures(build(), [], ["a", "b"], batch_size=4, by_class=True)
    assert {row["reason"] for row in rows if "norm" not in row["quantity"]} == {"there are no images"}


def test_five_classes_have_no_top_five(digits):
    model = build()
    model.reset_classifier(5)
    kept = digits[1] < 5
    rows = measures(model, (digits[0][kept], digits[1][kept]), classes=list("abcde"))
    assert values(rows)[None, "accuracy"] is not None
    assert values(rows)[None, "accuracy_top5"] is None
    assert reasons(rows)[None, "accuracy_top5"] == "any five of 5 classes hold the right one"


def test_a_class_without_held_out_images_is_null(digits):
    kept = digits[1] != 3
    rows = measures(build(), (digits[0][kept], digits[1][kept]), by_class=True)
    [row] = [row for row in rows if row["label"] == "3"]
    assert (row["value"], row["num_images"], row["reason"]) == (None, 0, "no image of the class is held out")


def test_classes_with_the_same_weights_have_no_boundary(digits):
    model = build()
    with torch.no_grad():
        model.get_classifier().weight.zero_()
    found, why = (of(measures(model, digits)) for of in (values, reasons))
    assert found[None, "margin_mean"] is not None
    assert found[None, "boundary_distance_mean"] is None
    assert why[None, "boundary_distance_median"].startswith("300 images lie between classes with the same head weights")


def test_a_head_that_is_no_linear_layer_and_blocks_that_are_not_known(digits):
    model = timm.create_model("efficientnet_b0", num_classes=NUM_CLASSES).eval()
    model.classifier = torch.nn.Sequential(model.classifier)
    images_NHWC = np.kron(digits[0][:4], np.ones((1, 4, 4, 1), np.uint8))
    why = reasons(measures(model, (images_NHWC, digits[1][:4])))
    for quantity in ("head_weight_norm", "head_bias_norm", "boundary_distance_mean"):
        assert why[None, quantity] == "the head is a Sequential, not a linear layer"
    assert why[None, "margin_mean"] is None
    assert why[0, "weight_norm"] == "it is not known which parameters of a EfficientNet belong to a layer"


def test_a_head_without_biases(digits):
    model = build()
    model.head = torch.nn.Linear(32, NUM_CLASSES, bias=False)
    assert reasons(measures(model, digits))[None, "head_bias_norm"] == "the head has no biases"


# --- logits of any kind -----------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(2, 12), st.floats(0.01, 300), st.integers(0, 2**32 - 1), st.booleans())
def test_scores_of_any_logits(num_images, num_classes, scale, seed, rounded):
    rng = np.random.default_rng(seed)
    logits_NC = rng.normal(size=(num_images, num_classes)).astype(np.float32) * np.float32(scale)
    logits_NC = logits_NC.round() if rounded else logits_NC  # ties
    labels_N = rng.integers(0, num_classes, num_images)
    scores = Scores(num_classes)
    for start in range(0, num_images, 7):
        scores.add(logits_NC[start : start + 7], labels_N[start : start + 7])
    found = {row["quantity"]: row["value"] for row in scores.rows()}
    z_NC = torch.from_numpy(logits_NC).double()
    p_NC = z_NC.softmax(1).numpy()
    assert found["accuracy"] == pytest.approx(np.mean(logits_NC.argmax(1) == labels_N), abs=1e-12)
    loss = torch.nn.functional.cross_entropy(z_NC, torch.from_numpy(labels_N))
    assert found["cross_entropy"] == pytest.approx(float(loss), rel=1e-9, abs=1e-12)
    assert found["expected_calibration_error"] == pytest.approx(calibration_error(p_NC, labels_N), abs=1e-9)
    assert found["brier_score"] == pytest.approx(brier(p_NC, labels_N), abs=1e-9)
    if num_classes > 5:
        first_five_N5 = np.argsort(-logits_NC, axis=1, kind="stable")[:, :5]
        assert found["accuracy_top5"] == pytest.approx(np.mean((first_five_N5 == labels_N[:, None]).any(1)), abs=1e-12)


def test_margins_of_logits_that_are_not_finite_are_null():
    margins = Margins(np.eye(3), None)
    margins.add(np.array([[1.0, 2, 3], [np.nan, 0, 0], [np.inf, np.inf, 0]]), np.array([0, 1, 2]))
    assert {row["reason"] for row in margins.rows()} == {"2 of 3 images have logits that are not finite"}


# --- the table --------------------------------------------------------------------------------------------------------


def test_rows_and_null_rows_are_the_same_rows_of_the_table(digits):
    model, classes = build(), [str(digit) for digit in range(NUM_CLASSES)]
    rows = measures(model, digits, by_class=True)
    arch = architecture("vit", "pico", image_size=16, num_classes=NUM_CLASSES, patch_size=8)
    nulls = list(null_measures(num_layers(arch) + 1, classes, "diverged at step 3"))
    keys = ("layer", "label", "quantity")
    assert Counter(tuple(row[key] for key in keys) for row in rows) == Counter(
        tuple(row[key] for key in keys) for row in nulls
    )
    assert all(row["value"] is None and row["reason"] == "diverged at step 3" for row in nulls)
    checkpoint = {"cell_id": "0123456789abcdef", "step": 3, "examples_seen": 96}
    table = pl.DataFrame([checkpoint | row for row in [*rows, *nulls]], schema=MEASURES_SCHEMA, orient="row")
    assert table.filter(pl.col("value").is_null() == pl.col("reason").is_null()).is_empty()
    assert set(table["quantity"]) == {*UPSTREAM_QUANTITIES, *LAYER_QUANTITIES}


def test_no_value_is_a_number_that_is_not_finite():
    assert measure("accuracy", float("inf"), num_images=3)["value"] is None
    assert measure("accuracy", 0.5, reason="not so")["value"] is None
    with pytest.raises(AssertionError, match="acuracy"):
        measure("acuracy", 0.5)


def test_the_login_node_reads_the_columns_without_torch():
    program = "import evals.measures, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
