"""Shape suffixes: N images, D pixels of an image."""

import hashlib
import json
import threading
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from evals.datasets import ArrayImages, SourceImages, duplicates, load_task, pixel_hashes
from evals.tasks import names, task
from models.data import load_images
from models.data.indexing import write_index
from models.data.pixels import decode
from models.errors import DataError, UnknownNameError
from tests.models.stored_images import examples, write_folder, write_shards, write_table

loaded, loaded_task = lru_cache(load_images), lru_cache(load_task)  # of packaged sets, which no test changes


def all_images(images):
    """Every image of a part, in order."""
    return np.concatenate(list(images.batches(np.arange(len(images.labels_N)), 100)))


TEST_PARTS = {
    "mnist": "a214303495eaa39e",
    "digits": "07dda8276eef46c0",
    "fashion": "85ce406ffd633c0d",
    "hiragana": "95d07fac74bd26e3",
    "katakana": "61baab452f9fbb84",
    "greek": "4090422c647493ab",
    "kanji_radical": "31c7701ec165c707",
    "kanji": "7e1cbbb8096b0bb5",
    "noto_script": "ae83a88324010681",
    "patches": "8b2bbd39a919add9",
    "landcover": "19638673e6e27a4a",
    "cells": "86e3fcb36085f387",
}
LETTERS = ["hiragana", "katakana", "greek", "kanji"]


@pytest.mark.parametrize("name", names())
def test_task_is_as_registered(name):
    t, d = task(name), loaded_task(name)

    assert (len(d.train.labels_N), len(d.test.labels_N)) == (t.num_train, t.num_test)
    assert all_images(d.train).shape[1:] == all_images(d.test).shape[1:]
    assert all_images(d.train).shape[3] == (3 if name == "landcover" else 1)
    assert np.bincount(d.train.labels_N, minlength=t.num_classes).min() == t.max_shots
    assert len(d.classes) == t.num_classes
    assert set(d.test.labels_N) == set(range(t.num_classes)), "a class is not tested"


@pytest.mark.parametrize("name", names())
def test_test_part_is_pinned(name):
    """Results of other test images are not comparable: a change of these is a new task, under a new name."""
    d = loaded_task(name)
    content = all_images(d.test).tobytes() + d.test.labels_N.tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == TEST_PARTS[name]


@pytest.mark.parametrize("name", names())
def test_no_test_image_is_trained_on(name):
    d = loaded_task(name)
    train = {hashlib.sha256(image.tobytes()).digest() for image in all_images(d.train)}
    assert not any(hashlib.sha256(image.tobytes()).digest() in train for image in all_images(d.test))


@pytest.mark.parametrize("name", [*LETTERS, "noto_script", "patches", "landcover"])
def test_no_group_stands_on_both_sides(name):
    s, d = loaded(name), loaded_task(name)
    group_of = {image.tobytes(): group for image, group in zip(s.images_NHWC, s.groups_N, strict=True)}
    train, test = (
        {group_of[image.tobytes()] for image in images} for images in (all_images(d.train), all_images(d.test))
    )
    assert not train & test


@pytest.mark.parametrize("name", names())
def test_test_part_has_the_classes_in_proportion(name):
    d, s = loaded_task(name), loaded(name)
    tested, whole = (np.bincount(labels) / len(labels) for labels in (d.test.labels_N, s.labels_N))
    # The cells of the map grid, whole, each hold few classes: land cover can only come near.
    assert np.abs(tested - whole).max() < (0.06 if name == "landcover" else 0.015)


@pytest.mark.parametrize("name", ["mnist", "digits", "hiragana", "fashion"])
def test_labels_belong_to_the_images(name):
    """The nearest class mean of raw pixels is right far above chance, from one part to the other."""
    d = loaded_task(name)
    train_ND, test_ND = (x.reshape(len(x), -1).astype(float) for x in (all_images(d.train), all_images(d.test)))
    means_CD = np.stack([train_ND[d.train.labels_N == c].mean(0) for c in range(len(d.classes))])
    distance_NC = (means_CD**2).sum(1) - 2 * test_ND @ means_CD.T
    assert np.mean(distance_NC.argmin(1) == d.test.labels_N) > 0.6


def test_task_may_be_given_as_such():
    a, b = load_task(task("cells")), load_task("cells")
    assert np.array_equal(all_images(a.test), all_images(b.test))


def test_images_are_resized():
    d = load_task("cells", 16)
    assert all_images(d.train).shape == (322, 16, 16, 1)
    assert all_images(d.test).shape == (326, 16, 16, 1)


def test_unknown_task():
    with pytest.raises(UnknownNameError, match="Did you mean 'mnist'"):
        load_task("mnst")


@pytest.fixture
def photos(tmp_path):
    for label, colour in (("blue", (0, 0, 200)), ("red", (200, 0, 0))):
        (tmp_path / label).mkdir()
        for i in range(10):
            Image.new("RGB", (12 + i, 12), (*colour[:1], i, colour[2])).save(tmp_path / label / f"{i}.png")
    return str(tmp_path)


def test_folder_as_a_task(photos):
    d = load_task(photos, 8)
    assert all_images(d.train).shape == (18, 8, 8, 3)
    assert all_images(d.test).shape == (2, 8, 8, 3)
    assert d.classes == ("blue", "red")
    assert np.array_equal(all_images(d.train)[:, 0, 0, 0] > 100, d.train.labels_N == 1)


def test_folder_of_mixed_sizes_gets_the_usual_one(photos):
    Image.new("RGB", (13, 12)).save(f"{photos}/blue/0.png")
    assert all_images(load_task(photos).train).shape == (18, 224, 224, 3)


def test_unreadable_image_of_a_folder_task(photos):
    Path(photos, "red", "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3\.png: not a readable image"):
        all_images(load_task(photos, 8).train)


# --- stored tasks -----------------------------------------------------------------------------------------------------


def test_gray_folders_are_seen_in_three_equal_channels(tmp_path):
    s = loaded("cells")
    for number, (image, label) in enumerate(zip(s.images_NHWC[::11], s.labels_N[::11], strict=True)):
        path = tmp_path / f"class {label}" / f"{number:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
    d = load_task(str(tmp_path))
    first = all_images(d.train)[0]
    assert first.shape == (32, 32, 3)
    assert any(np.array_equal(first, np.repeat(image, 3, axis=2)) for image in s.images_NHWC[::11])


def test_a_csv_is_a_task(tmp_path):
    found = examples(120)
    write_folder(tmp_path / "images", found)
    rows = [
        f"images/{label}/{n:06}.png,{label},{'test' if n % 4 == 0 else 'train'}" for n, (label, _) in enumerate(found)
    ]
    (tmp_path / "some.csv").write_text("\n".join(["path,label,split", *rows]))
    t, d = task(f"{tmp_path}/some.csv"), load_task(f"{tmp_path}/some.csv")
    assert (t.kind, t.split_rule, t.num_train, t.num_test) == ("path", "given", 90, 30)
    assert [d.classes[label] for label in d.test.labels_N] == [label for label, _ in found[::4]]
    wanted = np.stack([decode(png, 32) for _, png in found[::4]])
    assert np.array_equal(all_images(d.test), wanted)


def test_a_table_is_a_task(tmp_path):
    found = examples(150)
    path = write_table(tmp_path / "some.parquet", found, 20)
    t, d = task(path), load_task(path)
    assert (t.kind, t.split_rule, t.num_train + t.num_test) == ("path", "images", 150)
    assert (len(d.train.labels_N), len(d.test.labels_N)) == (t.num_train, t.num_test)
    pixels = {decode(png, 32).tobytes(): label for label, png in found}
    for part in (d.train, d.test):
        assert [pixels[image.tobytes()] for image in all_images(part)] == [d.classes[c] for c in part.labels_N]


def test_shards_are_a_task_once_their_labels_are_listed(tmp_path):
    folder = write_shards(tmp_path / "shards", examples(200), 10, 2)
    with pytest.raises(DataError, match="`upshot data index` lists them"):
        task(folder)
    write_index(folder, None, None)
    d = load_task(folder)
    assert (len(d.train.labels_N), len(d.test.labels_N)) == (160, 40)


def test_a_class_without_any_image_is_left_out(tmp_path):
    """A table may name classes that it has no image of: no probe could be fitted to them."""
    found = [(label, png) for label, png in examples(150) if label != "water"]
    path = write_table(tmp_path / "some.parquet", found, 20)
    table = pq.read_table(path)
    features = {"label": {"names": ["aaa", *sorted({label for label, _ in found})], "_type": "ClassLabel"}}
    table = table.set_column(1, "label", pc.add(table["label"], 1))
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    d = load_task(path)
    assert "aaa" not in d.classes
    assert set(d.train.labels_N) == set(range(len(d.classes)))
    assert task(path).max_shots == np.bincount(d.train.labels_N).min() > 0


@pytest.fixture(scope="module", name="stored")
def stored_task(tmp_path_factory):
    found = examples(300)
    return load_task(write_folder(tmp_path_factory.mktemp("stored"), found), 32)


@settings(deadline=None, max_examples=12)
@given(data=st.data())
def test_batches_have_the_images_that_were_asked_for_in_that_order(data, stored):
    num = len(stored.train.labels_N)
    index_N = np.array(data.draw(st.lists(st.integers(0, num - 1), max_size=60)), dtype=np.int64)
    size = data.draw(st.integers(1, 70))
    whole = all_images(stored.train)
    found = list(stored.train.batches(index_N, size))
    assert [len(batch) for batch in found] == [min(size, len(index_N) - s) for s in range(0, len(index_N), size)]
    assert all(np.array_equal(a, whole[i]) for a, i in zip((x for batch in found for x in batch), index_N, strict=True))


def test_no_more_is_decoded_than_two_batches_ahead(stored):
    asked = []

    class Counting:
        def image(self, index, image_size):
            asked.append(index)
            return np.zeros((image_size, image_size, 3), np.uint8)

    images = SourceImages(Counting(), np.arange(1000), np.zeros(1000, np.int64), 8)
    batches = images.batches(np.arange(1000), 10)
    next(batches)
    batches.close()
    assert len(asked) <= 30
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("images")]


def test_images_are_the_same_in_memory_and_stored():
    images_NHWC = loaded("landcover").images_NHWC[:50]
    (batch,) = ArrayImages(images_NHWC, np.zeros(50, np.int64)).batches(np.arange(50)[::-1], 50)
    assert np.array_equal(batch, images_NHWC[::-1])
    batch[:] = 0
    assert images_NHWC.any(), "batches are copies"


def test_one_image_of_each_class_leaves_none_to_test_on(tmp_path):
    write_folder(tmp_path / "few", first_of_each())
    with pytest.raises(DataError, match="no class has two images"):
        load_task(str(tmp_path / "few"))


def first_of_each():
    return list(dict(examples(200)).items())


def test_a_class_with_one_image_is_trained_on_and_not_tested(tmp_path):
    one, *_ = first_of_each()
    others = [(label, png) for label, png in examples(200) if label != one[0]]
    d = load_task(write_folder(tmp_path / "few", sorted([one, *others])))
    alone = d.classes.index(one[0])
    assert (d.train.labels_N == alone).sum() == 1
    assert alone not in d.test.labels_N


# --- duplicates -------------------------------------------------------------------------------------------------------


def test_a_test_image_that_is_trained_on_is_found(tmp_path):
    found = examples(200)
    write_folder(tmp_path / "train", found[::2] + found[1::4])
    write_folder(tmp_path / "val", found[1::2])
    d = load_task(str(tmp_path))
    train = {image.tobytes() for image in all_images(d.train)}
    twice = [i for i, image in enumerate(all_images(d.test)) if image.tobytes() in train]
    assert duplicates(d, batch_size=9).tolist() == twice
    assert 0 < len(twice) < len(d.test.labels_N)


def test_hashes_tell_images_from_each_other_and_by_their_shape():
    images_NHWC = loaded("landcover").images_NHWC
    hashes = pixel_hashes(images_NHWC)
    assert hashes.dtype == np.uint64
    assert len(set(hashes.tolist())) == len({image.tobytes() for image in images_NHWC})
    assert np.array_equal(pixel_hashes(images_NHWC[5:9]), hashes[5:9])
    changed = images_NHWC[:1].copy()
    changed[0, 31, 31, 2] ^= 1
    assert pixel_hashes(changed)[0] != hashes[0]
    assert pixel_hashes(images_NHWC[:1].reshape(1, 16, 64, 3))[0] != hashes[0]
    assert len(pixel_hashes(images_NHWC[:0])) == 0
