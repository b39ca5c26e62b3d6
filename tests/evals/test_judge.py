"""Shape suffixes: N images, B images of a batch, H and W pixels, C channels or classes."""

import copy
import itertools
import os
import subprocess
import sys
import tracemalloc
import warnings
import weakref

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from evals import feature_rows
from evals.datasets import ArrayImages, TaskData, load_task
from evals.encoding import Encoder
from evals.features import encode
from evals.fewshot import draw_shots, fit_ridge
from evals.fits import fits_of
from evals.judge import Judge
from evals.logistic import fit_logistic
from evals.probes import LayerProbes
from evals.protocol import PROTOCOLS, Protocol
from evals.tasks import vtab_split
from models.build import build_model
from models.data import load_images
from models.errors import DataError
from models.ladder import architecture

VIT = architecture("vit", "pico", image_size=32, num_classes=5, patch_size=8)
CLASSES = 5
SHOTS = Protocol(shots=(1, 5), draws=2)


def patches_task(num_train=200, num_test=300):
    """Real textures of five classes, shuffled."""
    s = load_images("patches")
    index_N = np.flatnonzero(s.labels_N < CLASSES)
    index_N = np.random.RandomState(0).permutation(index_N)[: num_train + num_test]
    train, test = index_N[:num_train], index_N[num_train:]
    return TaskData(
        train=ArrayImages(s.images_NHWC[train], s.labels_N[train]),
        test=ArrayImages(s.images_NHWC[test], s.labels_N[test]),
        classes=s.classes[:CLASSES],
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(VIT).eval()


def judge(model, data, *protocols, batch_size=64, task="patches", folder=None):
    encoder = Encoder(model=lambda: model, num_layers=3, batch_size=batch_size, folder=folder)
    results = Judge(encoder=encoder, data=data, task=task).results(protocols)
    return {(p.fit.protocol.name, p.fit.shots, p.fit.draw, p.layer): judged for p, judged in results.items()}


def features_of(model, images_NHWC):
    return [
        np.concatenate(layer) for layer in zip(*encode(model, [images_NHWC], batch_size=len(images_NHWC)), strict=True)
    ]


def test_accuracies_are_those_of_each_probe_alone(model):
    data = patches_task()
    data = TaskData(
        train=data.train, test=ArrayImages(*of_classes(data.test, [40, 30, 20, 10, 0])), classes=data.classes
    )
    results = judge(model, data, SHOTS)
    train, test = features_of(model, data.train.images_NHWC), features_of(model, data.test.images_NHWC)
    assert list(results) == [("ridge", *pair, layer) for pair in SHOTS.combinations() for layer in range(3)]
    for (_, shots, draw, layer), judged in results.items():
        index_N = draw_shots("patches", data.train.labels_N, classes=data.classes, shots=shots, draw=draw)
        ridge = fit_ridge(train[layer][index_N], data.train.labels_N[index_N], num_classes=CLASSES)
        predicted_N = ridge.predict(test[layer])
        assert judged.regularisation == ridge.regularisation
        # Batches of another size round otherwise; one image in 100 may change sides.
        assert judged.accuracy == pytest.approx(accuracy_score(data.test.labels_N, predicted_N), abs=0.011)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the probe may predict the class that no test image is of
            expected = balanced_accuracy_score(data.test.labels_N, predicted_N)
        assert judged.class_accuracy == pytest.approx(expected, abs=0.051)


def of_classes(images, num_C):
    """So many images of each class."""
    index_N = np.concatenate([np.flatnonzero(images.labels_N == label)[:num] for label, num in enumerate(num_C)])
    return images.images_NHWC[index_N], images.labels_N[index_N]


@pytest.mark.parametrize("batch_size", [1, 7, 300])
def test_batches_of_another_size_change_nothing_but_rounding(model, batch_size):
    data = patches_task()
    expected, found = judge(model, data, SHOTS), judge(model, data, SHOTS, batch_size=batch_size)
    for key, judged in expected.items():
        assert found[key].accuracy == pytest.approx(judged.accuracy, abs=1.01 / 300)
        assert found[key].regularisation == judged.regularisation


def test_the_order_of_test_images_does_not_matter(model):
    data = patches_task()
    order_N = np.random.RandomState(1).permutation(300)
    shuffled = ArrayImages(data.test.images_NHWC[order_N], data.test.labels_N[order_N])
    other = judge(model, TaskData(train=data.train, test=shuffled, classes=data.classes), SHOTS)
    for key, judged in judge(model, data, SHOTS).items():
        assert other[key].accuracy == pytest.approx(judged.accuracy, abs=1.01 / 300)
        assert other[key].regularisation == judged.regularisation


def test_nothing_is_chosen_by_test_labels(model):
    data = patches_task()
    wrong = ArrayImages(data.test.images_NHWC, (data.test.labels_N + 1) % CLASSES)
    other = judge(model, TaskData(train=data.train, test=wrong, classes=data.classes), SHOTS)
    for key, judged in judge(model, data, SHOTS).items():
        assert other[key].regularisation == judged.regularisation
        assert other[key].accuracy <= 1 - judged.accuracy + 1e-9


def test_protocols_share_the_forward_passes(model):
    data, seen = patches_task(), []
    hook = model.patch_embed.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    try:
        judge(
            model, data, SHOTS, *(Protocol(name=name, shots=(1, 5), draws=2) for name in ("ridge-fixed", "big_vision"))
        )
    finally:
        hook.remove()
    drawn = [draw_shots("patches", data.train.labels_N, classes=data.classes, shots=5, draw=draw) for draw in range(2)]
    assert sum(seen) == 300 + len(np.unique(np.concatenate(drawn)))


def test_test_images_that_a_probe_was_fitted_to_are_counted(model):
    data = patches_task()
    shots = draw_shots("patches", data.train.labels_N, classes=data.classes, shots=5, draw=0)
    planted = shots[:3]
    test = ArrayImages(
        np.concatenate([data.test.images_NHWC, data.train.images_NHWC[planted]]),
        np.concatenate([data.test.labels_N, data.train.labels_N[planted]]),
    )
    results = judge(model, TaskData(train=data.train, test=test, classes=data.classes), SHOTS)
    of_draw = {
        (shots, draw): draw_shots("patches", data.train.labels_N, classes=data.classes, shots=shots, draw=draw)
        for shots, draw in SHOTS.combinations()
    }
    for (_, shots, draw, _), judged in results.items():
        assert judged.duplicates == np.isin(planted, of_draw[shots, draw]).sum()
    assert {judged.duplicates for (_, shots, draw, _), judged in results.items() if (shots, draw) == (5, 0)} == {3}


def test_features_in_a_file_give_the_same_numbers(model, monkeypatch):
    data = patches_task()
    expected = judge(model, data, SHOTS)
    monkeypatch.setattr(feature_rows, "SPILL_BYTES", 0)
    assert judge(model, data, SHOTS) == expected


class WatchedImages:
    """Counts the batches that are held at once."""

    def __init__(self, images):
        self.images, self.labels_N = images, images.labels_N
        self.alive, self.most = weakref.WeakSet(), 0

    def batches(self, index_N, batch_size):
        for images_BHWC in self.images.batches(index_N, batch_size):
            batch = images_BHWC.view(Batch)
            self.alive.add(batch)
            self.most = max(self.most, len(self.alive))
            yield batch
            del batch


class Batch(np.ndarray):
    """An array that can be watched."""

    __hash__ = object.__hash__


def test_test_images_are_not_held(model):
    data = patches_task()
    watched = WatchedImages(data.test)
    judge(model, TaskData(train=data.train, test=watched, classes=data.classes), SHOTS, batch_size=10)
    assert watched.most <= 4


def not_to_be_called():
    raise AssertionError("the model is not needed")


def test_kept_features_answer_other_protocols_without_the_model(model, tmp_path):
    data, other = patches_task(), Protocol(name="ridge-fixed", shots=(5,), draws=2, layers="last")
    judge(model, data, SHOTS, folder=tmp_path)
    encoder = Encoder(model=not_to_be_called, num_layers=3, batch_size=50, folder=tmp_path)
    found = Judge(encoder=encoder, data=data, task="patches").results([other])
    expected = Judge(encoder=Encoder(model=lambda: model, num_layers=3, batch_size=64), data=data, task="patches")
    assert list(found.values()) == list(expected.results([other]).values())


def test_kept_features_that_do_not_suffice_are_replaced(model, tmp_path):
    data, more = patches_task(), Protocol(shots=(10,), draws=2)
    judge(model, data, SHOTS, folder=tmp_path)
    assert judge(model, data, more, folder=tmp_path) == judge(model, data, more)
    assert judge(not_to_be_called, data, more, folder=tmp_path) == judge(model, data, more)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test", "train"]


def test_an_evaluation_that_dies_keeps_no_features(model, tmp_path):
    data = patches_task()

    class Broken(ArrayImages):
        def batches(self, index_N, batch_size):
            yield from itertools.islice(super().batches(index_N, batch_size), 2)
            raise DataError("photos/3.jpg: cut short")

    broken = Broken(data.test.images_NHWC, data.test.labels_N)
    with pytest.raises(DataError, match="cut short"):
        judge(model, TaskData(train=data.train, test=broken, classes=data.classes), SHOTS, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["train"]
    assert judge(model, data, SHOTS, folder=tmp_path) == judge(model, data, SHOTS)


def reversed_images(part):
    return ArrayImages(part.images_NHWC[::-1].copy(), part.labels_N[::-1].copy())


def of_one_class_in_other_order(part):
    """No label tells that these have changed."""
    index_N = np.arange(len(part.labels_N))
    of_class = index_N[part.labels_N == 0]
    index_N[of_class] = np.roll(of_class, 1)
    return ArrayImages(part.images_NHWC[index_N], part.labels_N)


@pytest.mark.parametrize("changed", [reversed_images, of_one_class_in_other_order])
@pytest.mark.parametrize("part", ["train", "test"])
def test_kept_features_of_images_that_have_changed_are_made_anew(model, tmp_path, part, changed):
    data = patches_task()
    judge(model, data, SHOTS, folder=tmp_path)
    other = TaskData(
        **{"train": data.train, "test": data.test, part: changed(getattr(data, part))}, classes=data.classes
    )
    assert judge(model, other, SHOTS, folder=tmp_path) == judge(model, other, SHOTS)
    assert judge(not_to_be_called, other, SHOTS, folder=tmp_path) == judge(model, other, SHOTS)


def test_a_job_that_is_killed_while_it_replaces_features_is_in_nobodys_way(model, tmp_path, monkeypatch):
    data, more = patches_task(), Protocol(shots=(10,), draws=2)
    judge(model, data, SHOTS, folder=tmp_path)
    unlink, removed = os.unlink, []

    def killed(path, **options):
        if removed:
            raise KeyboardInterrupt
        removed.append(path)
        unlink(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr("os.unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            judge(model, data, more, folder=tmp_path)
    assert removed
    assert judge(model, data, more, folder=tmp_path) == judge(model, data, more)
    for left in tmp_path.glob(".*"):
        os.utime(left, (1e9, 1e9))
    judge(model, data, Protocol(shots=(20,), draws=2), folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test", "train"]


def test_two_jobs_that_keep_features_at_once_do_not_disturb_each_other(model, tmp_path):
    data = patches_task()
    expected = judge(model, data, SHOTS)

    class Interrupted(ArrayImages):
        """Another job has done the same before the last batch is there."""

        def batches(self, index_N, batch_size):
            *first, last = super().batches(index_N, batch_size)
            yield from first
            assert judge(copy.deepcopy(model), data, SHOTS, folder=tmp_path) == expected
            yield last

    parts = [Interrupted(part.images_NHWC, part.labels_N) for part in (data.train, data.test)]
    both = TaskData(train=parts[0], test=parts[1], classes=data.classes)
    assert judge(model, both, SHOTS, folder=tmp_path) == expected
    assert judge(not_to_be_called, data, SHOTS, folder=tmp_path) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test", "train"]


ON_A_FULL_DISK = """
import tempfile
from pathlib import Path
from evals import feature_rows
from tests.evals.test_judge import SHOTS, VIT, build_model, judge, patches_task

model, data, full = build_model(VIT).eval(), patches_task(), Path(tempfile.gettempdir())
feature_rows.SPILL_BYTES = 0
for options in {"folder": full / "kept"}, {}:
    (full / "filler").write_bytes(bytes(20_000) if options else bytes(60_000))
    try:
        judge(model, data, SHOTS, **options)
    except OSError as error:
        print(error.strerror)
"""


def test_features_that_the_disk_has_no_room_for_are_an_error(tmp_path):
    """Kept ones, and those of training images that are many."""
    mount = f"mount -t tmpfs -o size=64k none {tmp_path} && TMPDIR={tmp_path} exec {sys.executable} -"
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", tmp_path], capture_output=True).returncode:
        pytest.skip("nobody may mount a small disk here")
    ran = subprocess.run(["unshare", "-rm", "sh", "-c", mount], input=ON_A_FULL_DISK, capture_output=True, text=True)
    assert ran.stdout.splitlines() == ["No space left on device"] * 2, (ran.returncode, ran.stderr)


def test_damaged_features_are_named(model, tmp_path):
    data = patches_task()
    judge(model, data, SHOTS, folder=tmp_path)
    path = tmp_path / "test" / "layer_001.npy"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"layer_001\.npy.*delete"):
        judge(model, data, SHOTS, folder=tmp_path)


def test_the_weights_of_linear_probes_are_held_once():
    labels_N = np.tile(np.arange(50), 5)
    fits = list(fits_of("any", labels_N, [str(label) for label in range(50)], Protocol(shots=(2, 5), draws=5)))
    features_ND = np.random.default_rng(0).normal(size=(250, 400)).astype(np.float32)
    tracemalloc.start()
    try:
        probes = LayerProbes(50)
        for fit in fits:
            probes.fit(fit, features_ND[fit.index_F], labels_N[fit.index_F])
        probes.ready()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 1 < held / (8 * len(fits) * 50 * 400) < 1.2


# --- every protocol ---------------------------------------------------------------------------------------------------


def fonts_task(num_train=1200, num_test=150):
    """Real glyphs of Greek: enough of them for VTAB-1k."""
    data = load_task("greek")
    train, test = (
        np.random.RandomState(0).permutation(len(part.labels_N))[:num]
        for part, num in ((data.train, num_train), (data.test, num_test))
    )
    return TaskData(
        train=ArrayImages(data.train.images_NHWC[train], data.train.labels_N[train]),
        test=ArrayImages(data.test.images_NHWC[test], data.test.labels_N[test]),
        classes=data.classes,
    )


@pytest.mark.parametrize("name", sorted(PROTOCOLS.keys() - {"vtab1k-linear", "vtab1k-finetune"}))
def test_every_protocol_gives_a_row_for_each_of_its_probes(model, name):
    protocol = Protocol(name=name, shots=(2,), draws=2)
    results = judge(model, patches_task(), protocol)
    assert len(results) == len(list(protocol.combinations())) * (1 if protocol.layers == "last" else 3)
    for (_, shots, _, layer), judged in results.items():
        assert judged.reason is None
        assert judged.accuracy > 1 / CLASSES
        assert judged.regularisation is not None
        assert layer == 2 or protocol.layers == "all"
        assert (shots is None) == (protocol.method.training != "shots")
    assert np.mean([judged.accuracy for judged in results.values()]) > 1 / CLASSES + 0.1


def test_probes_on_all_images_are_those_of_scikit_learn(model):
    data = patches_task()
    results = judge(model, data, Protocol(name="linear"), Protocol(name="knn-all"))
    linear, knn = (results[name, None, 0, 2] for name in ("linear", "knn-all"))
    train_ND, test_ND = features_of(model, data.train.images_NHWC)[2], features_of(model, data.test.images_NHWC)[2]
    scaler = StandardScaler().fit(train_ND)
    by_hand = LogisticRegression(C=1 / (linear.regularisation * len(train_ND)), max_iter=5000, tol=1e-8)
    by_hand.fit(scaler.transform(train_ND), data.train.labels_N)
    assert linear.accuracy == pytest.approx(
        by_hand.score(scaler.transform(test_ND), data.test.labels_N), abs=1.01 / 300
    )
    voters = KNeighborsClassifier(
        int(knn.regularisation), metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    voters.fit(train_ND, data.train.labels_N)
    assert knn.accuracy == pytest.approx(voters.score(test_ND, data.test.labels_N), abs=1.01 / 300)


def test_vtab_fits_to_a_thousand_images_and_chooses_by_two_hundred_of_them(model):
    data, seen = fonts_task(), []
    hook = model.patch_embed.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    try:
        [judged] = judge(model, data, Protocol(name="vtab1k-linear"), task="greek").values()
    finally:
        hook.remove()
    assert sum(seen) == 1000 + 150
    fit, choose = vtab_split("greek", data.train.labels_N)
    features_ND, labels_N = features_of(model, data.train.images_NHWC)[2], data.train.labels_N
    held_out = np.arange(1000)[800:]
    both = np.concatenate([fit, choose])
    expected = fit_logistic(features_ND[both], labels_N[both], num_classes=len(data.classes), held_out=held_out)
    assert judged.regularisation == expected.regularisation
    predicted_N = expected.predict(features_of(model, data.test.images_NHWC)[2])
    assert judged.accuracy == pytest.approx(accuracy_score(data.test.labels_N, predicted_N), abs=1.01 / 150)


def test_a_class_that_vtab_leaves_out_is_never_predicted(model):
    data = fonts_task()
    _, choose = vtab_split("greek", data.train.labels_N)
    labels_N = np.where(data.train.labels_N == 3, 4, data.train.labels_N)  # no image of class 3 any more
    labels_N[choose[:2]] = 5
    train = ArrayImages(data.train.images_NHWC, labels_N)
    only_3 = np.flatnonzero(data.test.labels_N == 3)
    test = ArrayImages(data.test.images_NHWC[only_3], data.test.labels_N[only_3])
    [judged] = judge(
        model, TaskData(train=train, test=test, classes=data.classes), Protocol(name="vtab1k-linear"), task="greek"
    ).values()
    assert (judged.accuracy, judged.reason) == (0.0, None)


def test_a_task_too_small_for_vtab_says_so(model):
    [judged] = judge(model, patches_task(), Protocol(name="vtab1k-linear")).values()
    assert judged.accuracy is None
    assert "VTAB-1k needs 1000" in judged.reason


def test_all_images_do_not_make_up_for_a_class_without_any(model):
    data = patches_task()
    index_N = np.flatnonzero(data.train.labels_N != 2)
    train = ArrayImages(data.train.images_NHWC[index_N], data.train.labels_N[index_N])
    [judged] = judge(
        model, TaskData(train=train, test=data.test, classes=data.classes), Protocol(name="linear")
    ).values()
    assert judged.accuracy is None
    assert f"class {data.classes[2]!r} has no training image" in judged.reason


def test_fine_tuning_learns_what_the_frozen_model_does_not(model):
    data = patches_task()
    protocols = [Protocol(name=name, shots=(10,), draws=1) for name in ("finetune", "finetune-head")]
    before = copy.deepcopy(model.state_dict())
    whole, head = judge(model, data, *protocols).values()
    assert whole.accuracy > head.accuracy + 0.05
    assert (whole.regularisation, head.regularisation) == (0.003, 0.003)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
