"""Shape suffixes: N images, D features."""

import os
import stat

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifierCV

from evals.datasets import ArrayImages, TaskData, load_task
from evals.fewshot import LAMBDAS, draw_shots
from evals.protocol import RESULT_SCHEMA, Protocol
from evals.runner import MAX_BATCH, Backbone, Subject, evaluate_checkpoint, write_null_rows
from models.build import build_model
from models.checkpoint import load_weights, save_checkpoint, take_snapshot
from models.errors import CheckpointError, DataError, UnknownNameError
from models.ladder import architecture
from tests.evals.probing import extract_features

VIT = architecture("vit", "pico", image_size=32, num_classes=5, patch_size=8)
CHECKPOINT = {
    "step": 200,
    "examples_seen": 25_600,
    "train_loss": 2.5,
    "upstream_accuracy": 0.25,
    "upstream_loss": 2.75,
    "upstream_num_test": 400,
    "upstream_num_classes": 5,
    "params": 27_000,
    "flops": 1_250_000_000_000,
}
KEYS = ["task", "protocol", "shots", "draw", "layer"]


def digit_task(name, image_size=32):
    """Real digits, each pixel a square: "digits", or "rare digits" with only three training images of a 4."""
    digits = load_digits()
    images_NHWC = np.kron(digits.images * 15, np.ones((1, image_size // 8, image_size // 8))).astype(np.uint8)[
        ..., None
    ]
    train = np.arange(500)
    if name == "rare digits":
        train = np.concatenate([train[digits.target[:500] != 4], np.flatnonzero(digits.target[:500] == 4)[:3]])
    elif name != "digits":
        raise UnknownNameError("task", name, ["digits", "rare digits"])
    return TaskData(
        train=ArrayImages(images_NHWC[train], digits.target[train].astype(np.int64)),
        test=ArrayImages(images_NHWC[500:700], digits.target[500:700].astype(np.int64)),
        classes=tuple(str(c) for c in range(10)),
    )


def small_model(a=VIT):
    torch.manual_seed(0)
    return build_model(a)


@pytest.fixture(scope="module")
def checkpoint_dir(tmp_path_factory):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    root = tmp_path_factory.mktemp("cell")
    return save_checkpoint(take_snapshot(root, 200, model=model, optimizer=optimizer, state={}, metrics=CHECKPOINT))


def load(folder):
    model = build_model(VIT)
    load_weights(folder, model)
    return model


def not_to_be_called(*arguments):
    raise AssertionError(f"called with {arguments}")


def evaluate(checkpoint_dir, output_dir, **changes):
    subject = {"cell_id": "0123456789abcdef", "backbone": Backbone.of(VIT), "checkpoint": CHECKPOINT}
    protocol = {"shots": (1, 5), "draws": 2, "layers": "all"}
    for wanted in (subject, protocol):
        wanted |= {name: changes.pop(name) for name in wanted.keys() & changes.keys()}
    protocols = [Protocol(name=name, **protocol) for name in changes.pop("protocols", ["ridge"])]
    options = {"tasks": ["digits"], "protocols": protocols, "load_model": load, "load_task": digit_task}
    return evaluate_checkpoint(checkpoint_dir, output_dir, Subject(**subject), **options | changes)


@pytest.fixture(scope="module")
def table(checkpoint_dir, tmp_path_factory):
    """Rows of both tasks at all layers, two draws, 1, 5 and 25 shots."""
    output_dir = tmp_path_factory.mktemp("evals")
    evaluate(checkpoint_dir, output_dir, tasks=["digits", "rare digits"], shots=(1, 5, 25))
    return pl.read_parquet(output_dir / "*.parquet").sort(KEYS)


def test_a_file_a_task_under_its_id(checkpoint_dir, tmp_path):
    written = evaluate(checkpoint_dir, tmp_path / "evals" / "step_00000200", tasks=["digits", "rare digits"])
    protocol = Protocol(shots=(1, 5), draws=2)
    expected = [protocol.eval_id(task) for task in ("digits", "rare digits")]
    assert [path.name for path in written] == [f"{name}.parquet" for name in expected]
    assert sorted(path.name for path in written[0].parent.iterdir()) == sorted(path.name for path in written)


def test_a_row_for_every_shot_count_draw_and_layer(table):
    assert dict(table.schema) == RESULT_SCHEMA
    assert len(table) == 2 * 3 * 2 * 3
    assert table.select(KEYS).is_duplicated().sum() == 0
    assert table["layer"].unique().sort().to_list() == [0, 1, 2]
    assert table["num_layers"].unique().to_list() == [3]
    assert table.filter("last_layer")["layer"].unique().to_list() == [2]


def test_the_columns_of_the_checkpoint_are_those_that_were_given(table):
    columns = [name for name in CHECKPOINT if name != "train_loss"]
    assert table.select(columns).unique().to_dicts() == [{name: CHECKPOINT[name] for name in columns}]
    assert table["cell_id"].unique().to_list() == ["0123456789abcdef"]
    assert table["downstream_num_test"].unique().to_list() == [200]
    assert "leave-one-out" in table["method"].unique().item()


def test_accuracies_are_those_of_scikit_learn_on_the_same_features(table):
    data = digit_task("digits")
    train, test = (
        extract_features(small_model(), images, batch_size=50)
        for images in (data.train.images_NHWC, data.test.images_NHWC)
    )
    rows = table.filter(pl.col("task") == "digits", pl.col("shots") > 1)
    assert len(rows) == 2 * 2 * 3
    for row in rows.iter_rows(named=True):
        index_N = draw_shots("digits", data.train.labels_N, classes=data.classes, shots=row["shots"], draw=row["draw"])
        shots_ND, test_ND = train[row["layer"]][index_N].astype(float), test[row["layer"]].astype(float)
        mean_D, std_D = shots_ND.mean(axis=0), shots_ND.std(axis=0)
        x_ND, test_ND = (
            np.pad((f - mean_D) / std_D, ((0, 0), (0, 1)), constant_values=100) for f in (shots_ND, test_ND)
        )
        judge = RidgeClassifierCV(alphas=LAMBDAS, fit_intercept=False).fit(x_ND, data.train.labels_N[index_N])
        assert row["regularisation"] == judge.alpha_
        # Batches of another size round otherwise; one image in 200 may change sides.
        assert row["downstream_accuracy"] == pytest.approx(judge.score(test_ND, data.test.labels_N), abs=0.0051)


def test_real_digits_are_learnt_and_more_shots_help(table):
    by_shots = table.filter(task="digits").group_by("shots").agg(pl.col("downstream_accuracy").mean()).sort("shots")
    assert by_shots["downstream_accuracy"].is_sorted()
    assert by_shots["downstream_accuracy"].to_list()[-1] > 0.4  # untrained; chance is 0.1


def test_shots_that_a_class_cannot_give_are_null_with_the_reason_and_the_others_count(table):
    rare = table.filter(task="rare digits")
    assert rare.filter(shots=1)["downstream_accuracy"].is_not_null().all()
    assert rare.filter(shots=1)["reason"].is_null().all()
    too_many = rare.filter(pl.col("shots") > 1)
    assert len(too_many) == 2 * 2 * 3
    assert too_many["downstream_accuracy"].is_null().all()
    assert too_many["regularisation"].is_null().all()
    assert too_many["reason"].str.starts_with("task 'rare digits': class '4' has 3 training images").all()


def test_a_task_too_small_for_any_shots_is_null_throughout(checkpoint_dir, tmp_path):
    (path,) = evaluate(checkpoint_dir, tmp_path, tasks=["rare digits"], shots=(5, 10))
    rows = pl.read_parquet(path)
    assert len(rows) == 2 * 2 * 3
    assert rows["downstream_accuracy"].is_null().all()
    assert rows["reason"].is_not_null().all()


def test_a_task_without_test_images_is_null_throughout(checkpoint_dir, tmp_path):
    def without_test_images(name, image_size):
        data = digit_task(name, image_size)
        nothing = ArrayImages(data.test.images_NHWC[:0], data.test.labels_N[:0])
        return TaskData(train=data.train, test=nothing, classes=data.classes)

    (path,) = evaluate(checkpoint_dir, tmp_path, load_task=without_test_images)
    rows = pl.read_parquet(path)
    assert rows["downstream_accuracy"].is_null().all()
    assert rows["reason"].unique().to_list() == ["task 'digits' has no test images"]


def test_what_is_there_is_not_computed_again(checkpoint_dir, tmp_path):
    (path,) = evaluate(checkpoint_dir, tmp_path)
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert evaluate(checkpoint_dir, tmp_path, load_model=not_to_be_called, load_task=not_to_be_called) == []
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_a_new_task_leaves_the_others_alone(checkpoint_dir, tmp_path):
    (first,) = evaluate(checkpoint_dir, tmp_path)
    before = first.stat().st_mtime_ns
    (second,) = evaluate(checkpoint_dir, tmp_path, tasks=["digits", "rare digits"])
    assert first != second
    assert first.stat().st_mtime_ns == before


def test_a_task_named_twice_is_judged_once(checkpoint_dir, tmp_path):
    assert len(evaluate(checkpoint_dir, tmp_path, tasks=["digits", "digits"])) == 1


def test_the_last_layer_alone_has_the_numbers_it_has_among_all(checkpoint_dir, tmp_path, table):
    (path,) = evaluate(checkpoint_dir, tmp_path, shots=(1, 5, 25), layers="last")
    expected = table.filter(pl.col("task") == "digits", "last_layer")
    assert pl.read_parquet(path).sort(KEYS).equals(expected)


def test_the_fixed_lambda_is_fixed(checkpoint_dir, tmp_path):
    (path,) = evaluate(checkpoint_dir, tmp_path, protocols=["ridge-fixed"])
    rows = pl.read_parquet(path)
    assert rows["regularisation"].unique().to_list() == [1024.0]
    assert rows["protocol"].unique().to_list() == ["ridge-fixed"]


def test_features_that_are_not_finite_cost_their_own_layers_only(checkpoint_dir, tmp_path):
    def broken(folder):
        model = load(folder)
        with torch.no_grad():
            model.blocks[1].mlp.fc2.bias[3] = float("nan")
        return model

    (path,) = evaluate(checkpoint_dir, tmp_path, load_model=broken)
    rows = pl.read_parquet(path)
    assert rows.filter(layer=0)["downstream_accuracy"].is_not_null().all()
    bad = rows.filter(pl.col("layer") > 0)
    assert bad["downstream_accuracy"].is_null().all()
    assert bad["reason"].str.contains("not finite").all()


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_diverged_checkpoint_is_a_result_without_numbers(checkpoint_dir, tmp_path, loss):
    diverged = CHECKPOINT | {"upstream_loss": loss, "upstream_accuracy": float("nan")}
    (path,) = evaluate(
        checkpoint_dir, tmp_path, checkpoint=diverged, load_model=not_to_be_called, load_task=not_to_be_called
    )
    rows = pl.read_parquet(path)
    assert dict(rows.schema) == RESULT_SCHEMA
    assert len(rows) == 2 * 2 * 3
    assert rows["reason"].unique().to_list() == ["diverged at step 200"]
    for name in ("downstream_accuracy", "regularisation", "upstream_loss", "upstream_accuracy"):
        assert rows[name].is_null().all()
    assert rows["flops"].unique().to_list() == [1.25e12]


def test_upstream_images_that_are_gone_cost_no_task_its_results(checkpoint_dir, tmp_path):
    def gone(model, batch_size):
        raise DataError("/data/photos: no such folder")

    with pytest.raises(DataError, match="photos"):
        evaluate(checkpoint_dir, tmp_path, upstream=gone)
    [path] = tmp_path.glob("*.parquet")
    assert pl.read_parquet(path)["downstream_accuracy"].is_not_null().all()


def test_null_rows_without_a_checkpoint(tmp_path):
    never_measured = CHECKPOINT | {"upstream_loss": None, "upstream_accuracy": None, "upstream_num_test": None}
    subject = Subject(cell_id="c", backbone=Backbone.of(VIT), checkpoint=never_measured)
    arguments = {"tasks": ["a", "b"], "protocols": [Protocol(draws=1)]}
    written = write_null_rows(tmp_path, subject, **arguments)
    rows = pl.read_parquet(written)
    assert rows["task"].unique().sort().to_list() == ["a", "b"]
    assert rows["reason"].unique().to_list() == ["diverged at step 200"]
    assert len(rows) == 2 * 4 * 3
    assert write_null_rows(tmp_path, subject, **arguments) == []
    (other,) = write_null_rows(tmp_path, subject, **arguments | {"tasks": ["c"]}, reason="cancelled")
    assert pl.read_parquet(other)["reason"].unique().to_list() == ["cancelled"]


@pytest.mark.parametrize("family", ["mixer", "resnet"])
def test_the_other_families_at_another_image_size(tmp_path, checkpoint_dir, family):
    a = architecture(family, "pico", image_size=24, num_classes=5, patch_size=None if family == "resnet" else 8)
    (path,) = evaluate(checkpoint_dir, tmp_path, backbone=Backbone.of(a), load_model=lambda folder: small_model(a))
    rows = pl.read_parquet(path)
    assert rows["downstream_accuracy"].is_not_null().all()
    assert rows["layer"].n_unique() == (6 if family == "resnet" else 3)


def test_packaged_tasks_are_loaded_by_name_at_the_size_of_the_model(tmp_path, checkpoint_dir):
    a = architecture("mixer", "pico", image_size=24, num_classes=5, patch_size=8)
    options = {"backbone": Backbone.of(a), "load_model": lambda folder: small_model(a), "load_task": load_task}
    (path,) = evaluate(checkpoint_dir, tmp_path, tasks=["cells"], shots=(10, 1000), **options)
    rows = pl.read_parquet(path)
    assert rows["downstream_num_test"].unique().to_list() == [len(load_task("cells").test.labels_N)]
    assert rows.filter(shots=10)["downstream_accuracy"].min() > 1 / 6
    assert rows.filter(shots=1000)["downstream_accuracy"].is_null().all()


def test_images_that_no_draw_uses_are_not_encoded(checkpoint_dir, tmp_path):
    seen = []

    def watched(folder):
        model = load(folder)
        model.patch_embed.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
        return model

    evaluate(checkpoint_dir, tmp_path, shots=(1, 2), draws=1, load_model=watched)
    assert sum(seen) == 200 + 2 * 10


def test_a_job_that_dies_keeps_the_tasks_it_had_and_leaves_no_draft(checkpoint_dir, tmp_path):
    with pytest.raises(UnknownNameError, match="digitz"):
        evaluate(checkpoint_dir, tmp_path, tasks=["digits", "digitz"])
    assert [path.name for path in tmp_path.iterdir()] == [
        f"{Protocol(shots=(1, 5), draws=2).eval_id('digits')}.parquet"
    ]


def test_a_full_disk_leaves_nothing_half_written(checkpoint_dir, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        evaluate(checkpoint_dir, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_files_are_as_readable_as_the_user_wants(checkpoint_dir, tmp_path):
    before = os.umask(0o027)
    try:
        (path,) = evaluate(checkpoint_dir, tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_metrics_that_lack_a_column_are_refused_by_name(checkpoint_dir, tmp_path):
    with pytest.raises(CheckpointError, match="lack flops"):
        evaluate(checkpoint_dir, tmp_path, checkpoint={k: v for k, v in CHECKPOINT.items() if k != "flops"})


def test_an_unknown_protocol_is_refused_before_anything_is_loaded(checkpoint_dir, tmp_path):
    with pytest.raises(UnknownNameError, match="protocol"):
        evaluate(checkpoint_dir, tmp_path, protocols=["rigde"], load_model=not_to_be_called)


def test_large_models_get_smaller_batches():
    huge = architecture("vit", "10B", image_size=224, num_classes=1000)
    of_huge, of_small = (
        Subject(cell_id="c", backbone=Backbone.of(a), checkpoint=CHECKPOINT).batch_size for a in (huge, VIT)
    )
    assert 1 <= of_huge < of_small == MAX_BATCH


def test_features_that_were_kept_answer_another_protocol_without_the_model(checkpoint_dir, tmp_path):
    evaluate(checkpoint_dir, tmp_path, keep_features=True)
    (path,) = evaluate(
        checkpoint_dir, tmp_path, keep_features=True, protocols=["ridge-fixed"], load_model=not_to_be_called
    )
    (expected,) = evaluate(checkpoint_dir, tmp_path / "other", protocols=["ridge-fixed"])
    assert pl.read_parquet(path).equals(pl.read_parquet(expected))


def test_protocols_have_a_file_each(checkpoint_dir, tmp_path):
    written = evaluate(checkpoint_dir, tmp_path, protocols=["ridge", "ridge-fixed"])
    assert [pl.read_parquet(path)["protocol"].unique().to_list() for path in written] == [["ridge"], ["ridge-fixed"]]
    written[0].unlink()
    assert evaluate(checkpoint_dir, tmp_path, protocols=["ridge", "ridge-fixed"]) == written[:1]


def test_a_task_without_its_images_does_not_cost_the_others(checkpoint_dir, tmp_path):
    def gone(name, image_size):
        if name == "rare digits":
            raise DataError("/datasets/rare: no such folder of images")
        return digit_task(name, image_size)

    with pytest.raises(DataError, match="/datasets/rare"):
        evaluate(checkpoint_dir, tmp_path, tasks=["rare digits", "digits"], load_task=gone)
    assert [path.stem for path in tmp_path.iterdir()] == [Protocol(shots=(1, 5), draws=2).eval_id("digits")]
