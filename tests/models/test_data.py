"""Shape suffixes: N examples, H height, W width, C channels or classes."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from models import data
from models.data import ImageSet, LabelSet, describe, load_images, load_labels, split, split_rule, subset
from models.data.splits import subset_size, whole_shards
from models.errors import DataError, UnknownNameError, UserError

STUDIES = Path(data.__file__).parents[2] / "studies"
PACKAGED = data.packaged_names()
UNGROUPED = ["digits", "mnist", "kanji_radical", "cells"]

loaded = lru_cache(load_images)  # of packaged sets, which no test changes

shares = st.floats(0, 1, exclude_min=True)
seeds = st.integers(0, 2**32 - 1)
few_labels = st.lists(st.integers(0, 6), min_size=2, max_size=150).map(lambda x: np.unique(x, return_inverse=True)[1])


@st.composite
def label_sets(draw, max_groups=20):
    labels_N = draw(few_labels)
    groups_N = np.array([draw(st.integers(0, max_groups - 1)) for _ in labels_N])
    return LabelSet(name="any", labels_N=labels_N, groups_N=groups_N, classes=tuple("abcdefg"[: labels_N.max() + 1]))


@st.composite
def train_parts(draw):
    """(labels of the whole set, indices of a train part with two classes or more)."""
    labels_N = draw(few_labels)
    train_idx = np.array(sorted(draw(st.sets(st.sampled_from(range(len(labels_N))), min_size=2))))
    assume(len(np.unique(labels_N[train_idx])) > 1)
    return labels_N, train_idx


# --- split ------------------------------------------------------------------------------------------------------------


@given(label_sets(), st.floats(0.05, 0.5))
def test_split_covers_every_image_once_and_tests_no_class_that_is_not_trained_on(s, share):
    train_idx, test_idx = split(s, test_share=share)

    assert sorted([*train_idx, *test_idx]) == list(range(len(s.labels_N)))
    assert list(train_idx) == sorted(train_idx)
    assert list(test_idx) == sorted(test_idx)
    assert set(s.labels_N[test_idx]) <= set(s.labels_N[train_idx])


@given(label_sets(), st.floats(0.05, 0.5))
def test_split_never_parts_a_group_while_it_goes_by_groups(s, share):
    train_idx, test_idx = split(s, test_share=share)

    if split_rule(s, test_share=share) == "groups":
        assert not set(s.groups_N[train_idx]) & set(s.groups_N[test_idx])
        assert share / 2 <= len(test_idx) / len(s.labels_N) <= share * 2


@given(label_sets(), st.floats(0.05, 0.5))
def test_split_is_the_same_whatever_the_numbers_of_the_groups(s, share):
    same = LabelSet(name="b", labels_N=s.labels_N, groups_N=s.groups_N * 7 + 100, classes=s.classes)

    for a, b in zip(split(s, test_share=share), split(same, test_share=share), strict=True):
        assert np.array_equal(a, b)


@given(few_labels, st.floats(0.05, 0.5), st.booleans())
def test_without_groups_every_class_gives_its_share(labels_N, share, apart):
    groups_N = np.arange(len(labels_N)) if apart else np.zeros(len(labels_N), dtype=np.int64)
    s = LabelSet(name="any", labels_N=labels_N, groups_N=groups_N, classes=tuple("abcdefg"[: labels_N.max() + 1]))

    test_idx = split(s, test_share=share)[1]

    assert split_rule(s, test_share=share) == "images"
    for label, size in enumerate(np.bincount(labels_N)):
        held = np.sum(labels_N[test_idx] == label)
        assert held == 0 if size == 1 else 1 <= held <= size - 1
        assert abs(held - share * size) <= 0.5 or held in (1, size - 1)


def test_groups_that_cannot_be_parted_near_the_share_give_way_to_single_images():
    labels_N = np.repeat([0, 1], 50)
    s = LabelSet(name="halves", labels_N=labels_N, groups_N=np.arange(100) % 2, classes=("a", "b"))

    assert split_rule(s) == "images"
    assert len(split(s)[1]) == 10


def test_a_class_that_stands_in_one_group_only_stays_in_the_train_part():
    """Holding out the group with all ten of class b would bring a more than it costs b."""
    labels_N = np.repeat([0, 1], [1000, 10])
    groups_N = np.concatenate([np.arange(1000) // 100, np.full(10, 3)])
    s = LabelSet(name="any", labels_N=labels_N, groups_N=groups_N, classes=("a", "b"))

    train_idx, test_idx = split(s)

    assert split_rule(s) == "groups"
    assert len(test_idx) == 100
    assert np.sum(labels_N[train_idx] == 1) == 10


def test_the_test_part_of_the_source_is_kept():
    held_out_N = np.arange(20) % 3 == 0
    labels_N = np.arange(20) % 2
    s = LabelSet(name="any", labels_N=labels_N, groups_N=labels_N, classes=("a", "b"), held_out_N=held_out_N)

    assert split_rule(s) == "given"
    assert list(split(s)[1]) == [0, 3, 6, 9, 12, 15, 18]


# --- subset -----------------------------------------------------------------------------------------------------------


@given(train_parts(), shares, shares, shares, seeds)
def test_smaller_fractions_are_nested_in_larger_ones(part, fraction_a, fraction_b, classes, seed):
    small, large = (subset(*part, fraction=f, classes=classes, seed=seed) for f in sorted((fraction_a, fraction_b)))
    assert set(small) <= set(large) <= set(part[1])


@given(train_parts(), shares, shares, shares, seeds)
def test_smaller_class_shares_are_nested_and_keep_their_images(part, classes_a, classes_b, fraction, seed):
    labels_N = part[0]
    small, large = (subset(*part, fraction=fraction, classes=c, seed=seed) for c in sorted((classes_a, classes_b)))
    assert set(small) == {i for i in large if labels_N[i] in labels_N[small]}


@given(train_parts(), shares, shares, seeds)
def test_subset_is_stratified(part, fraction, classes, seed):
    labels_N, train_idx = part
    idx = subset(labels_N, train_idx, fraction=fraction, classes=classes, seed=seed)

    num_present = len(np.unique(labels_N[train_idx]))
    kept, counts = np.unique(labels_N[idx], return_counts=True)
    assert len(kept) == max(2, round(classes * num_present))
    assert len(set(idx)) == len(idx)
    for label, count in zip(kept, counts, strict=True):
        wanted = fraction * np.sum(labels_N[train_idx] == label)
        assert count == max(1, np.floor(wanted)) or count == np.ceil(wanted)


@given(train_parts(), shares, shares, seeds)
def test_subset_is_the_same_each_time(part, fraction, classes, seed):
    np.random.seed(3)
    first = subset(*part, fraction=fraction, classes=classes, seed=seed)
    np.random.seed(4)
    assert np.array_equal(first, subset(*part, fraction=fraction, classes=classes, seed=seed))


@st.composite
def kept_numbers(draw):
    """(train part, share of the classes, two numbers of images that they can give, the smaller first; seed)."""
    part = draw(train_parts())
    labels_N = part[0]
    classes, seed = draw(shares), draw(seeds)
    held = labels_N[subset(*part, fraction=1.0, classes=classes, seed=seed)]
    numbers = st.integers(len(np.unique(held)), len(held))
    return part, classes, sorted((draw(numbers), draw(numbers))), seed


def drawn(part, classes, images, seed):
    return subset(*part, fraction=1.0, classes=classes, images=images, seed=seed)


@given(kept_numbers())
def test_a_number_of_images_is_met_exactly_and_nested(numbers):
    part, classes, (few, many), seed = numbers
    small, large = (drawn(part, classes, images, seed) for images in (few, many))
    assert (len(small), len(large)) == (few, many)
    assert set(small) <= set(large) <= set(part[1])
    assert list(large) == sorted(set(large))


@given(kept_numbers())
def test_a_number_of_images_is_the_same_share_of_every_class(numbers):
    (labels_N, train_idx), classes, (_, images), seed = numbers
    idx = drawn((labels_N, train_idx), classes, images, seed)

    whole = labels_N[subset(labels_N, train_idx, fraction=1.0, classes=classes, seed=seed)]
    kept, count_C = np.unique(labels_N[idx], return_counts=True)
    assert list(kept) == list(np.unique(whole))
    size_C = np.bincount(whole)[kept]
    more = count_C[count_C > 1]  # every class has one, whatever its share
    if len(more):
        size_more = size_C[count_C > 1]
        assert np.max((more - 1) / size_more) <= np.min((count_C + 1) / size_C)  # one share is within rounding of all


@given(kept_numbers(), shares)
def test_fewer_classes_at_the_same_number_have_more_images_each_among_them_those_they_had(numbers, other):
    part, classes, (_, images), seed = numbers
    labels_N = part[0]
    few, many = sorted((classes, other))
    available = [
        len(drawn_all) for drawn_all in (subset(*part, fraction=1.0, classes=c, seed=seed) for c in (few, many))
    ]
    num_classes = len(np.unique(labels_N[subset(*part, fraction=1.0, classes=many, seed=seed)]))
    assume(num_classes <= images <= available[0])
    narrow, wide = drawn(part, few, images, seed), drawn(part, many, images, seed)
    assert len(narrow) == len(wide)
    assert set(labels_N[narrow]) <= set(labels_N[wide])
    assert {i for i in wide if labels_N[i] in labels_N[narrow]} <= set(narrow)


@given(kept_numbers(), shares)
def test_the_size_of_a_subset_is_known_from_the_sizes_of_the_classes(numbers, fraction):
    (labels_N, train_idx), classes, (images, _), seed = numbers
    for how in ({"fraction": fraction, "images": None}, {"fraction": 1.0, "images": images}):
        idx = subset(labels_N, train_idx, classes=classes, seed=seed, **how)
        size = subset_size(np.bincount(labels_N[train_idx]), classes=classes, seed=seed, **how)
        assert size == (len(idx), len(np.unique(labels_N[idx])))


def test_the_number_of_images_of_a_share_is_known_of_every_packaged_upstream_set():
    s = load_labels("icons")
    train_idx = split(s)[0]
    for how in (
        {"fraction": 0.1, "classes": 1.0},
        {"fraction": 0.37, "classes": 0.2},
        {"fraction": 1.0, "classes": 0.5},
    ):
        for seed in (0, 7):
            idx = subset(s.labels_N, train_idx, **how, seed=seed)
            assert data.kept("icons", **how, images=None, seed=seed) == (len(idx), len(np.unique(s.labels_N[idx])))
    assert data.kept("icons", fraction=1.0, classes=1.0, images=None, seed=0) == (len(train_idx), len(s.classes))


@pytest.mark.parametrize("images", [3, 41])
def test_a_number_of_images_that_the_classes_cannot_give_is_refused(images):
    labels_N = np.arange(80) % 8  # half of the classes have 40
    for ask in (
        lambda: drawn((labels_N, np.arange(80)), 0.5, images, 0),
        lambda: subset_size(np.bincount(labels_N), fraction=1.0, classes=0.5, images=images, seed=0),
    ):
        with pytest.raises(UserError, match=f"images is {images}, but must be from 4 to 40"):
            ask()


def test_a_number_and_a_fraction_are_not_both_given():
    with pytest.raises(UserError, match=r"images \(5\) and fraction \(0.5\) both say how many"):
        subset(np.arange(20) % 2, np.arange(20), fraction=0.5, classes=1.0, images=5, seed=0)


def test_a_subset_of_a_number_is_pinned_across_versions():
    idx = drawn((np.arange(1000) % 10, np.arange(900)), 0.3, 27, 0)
    assert list(idx[:6]) == [14, 34, 198, 204, 214, 268]  # those of a fraction of 0.1


def test_subset_is_pinned_across_versions():
    labels_N = np.arange(1000) % 10
    idx = subset(labels_N, np.arange(900), fraction=0.1, classes=0.3, seed=0)
    # Others would change a cell's data under its cell_id.
    assert list(idx[:10]) == [14, 34, 198, 204, 214, 268, 390, 394, 398, 410]


def test_whole_is_whole():
    labels_N = np.arange(500) % 7
    train_idx = np.arange(0, 500, 2)
    assert np.array_equal(subset(labels_N, train_idx, fraction=1.0, classes=1.0, seed=5), train_idx)


def test_seeds_draw_different_images_and_classes():
    labels_N = np.arange(2000) % 20
    a, b = (subset(labels_N, np.arange(2000), fraction=0.5, classes=0.5, seed=seed) for seed in (0, 1))
    assert set(labels_N[a]) != set(labels_N[b])
    assert set(a) != set(b)


def test_the_expected_number_of_images_is_the_fraction():
    labels_N = np.repeat(np.arange(400), 7)
    num = len(subset(labels_N, np.arange(2800), fraction=0.3, classes=1.0, seed=0))
    assert num == pytest.approx(0.3 * 2800, rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fraction": 0.0}, "fraction must be above 0 and at most 1, not 0.0"),
        ({"fraction": 1.01}, "fraction must be"),
        ({"fraction": float("nan")}, "fraction must be"),
        ({"classes": -0.5}, "classes must be above 0 and at most 1, not -0.5"),
        ({"seed": -1}, "seed must be from 0 to 4294967295, not -1"),
    ],
)
def test_subset_refuses_shares_and_seeds_out_of_range(change, message):
    given_values = {"fraction": 0.5, "classes": 0.5, "seed": 0} | change
    with pytest.raises(UserError, match=re.escape(message)):
        subset(np.array([0, 1]), np.array([0, 1]), **given_values)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60))
def test_shards_to_hold_out_are_about_a_tenth_or_there_are_none_that_could_be(sizes):
    try:
        held_out = whole_shards("any", tuple(sizes))
    except DataError:
        assert min(sizes) > 0.2 * sum(sizes) or len(sizes) < 20
    else:
        assert 0 < sum(sizes[shard] for shard in held_out) <= 0.2 * sum(sizes)


def test_the_shards_that_are_held_out_never_change():
    assert whole_shards("any", (100,) * 30) == frozenset([2, 13, 28])
    assert whole_shards("any", (90, 10)) == frozenset([1])
    for sizes in ((10,), (50, 50), (40, 30, 30)):
        with pytest.raises(DataError, match="any: no shard is held out by its name"):
            whole_shards("any", sizes)


def test_subset_refuses_a_single_class():
    with pytest.raises(UserError, match="2 classes or more; the train part has 1"):
        subset(np.zeros(4, dtype=np.int64), np.arange(4), fraction=0.5, classes=0.5, seed=0)


@given(few_labels, st.integers(1, 160))
def test_capped_keeps_classes_in_proportion(labels_N, num):
    idx = np.arange(0, len(labels_N))
    kept = data.capped(labels_N, idx, num)

    assert len(kept) == min(num, len(idx))
    exact_C = np.bincount(labels_N) * len(kept) / len(idx)
    assert np.all(np.abs(np.bincount(labels_N[kept], minlength=len(exact_C)) - exact_C) < 1)


def test_capped_gives_seats_by_largest_remainder():
    labels_N = np.repeat([0, 1, 2], [80, 10, 10])  # 7.2, 0.9 and 0.9 of 9 seats
    kept = data.capped(labels_N, np.arange(100), 9)
    assert list(np.bincount(labels_N[kept])) == [7, 1, 1]


# --- packaged sets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_set_is_as_described(name):
    s, info = loaded(name), describe(name)

    size = (info.num_examples, info.image_size, info.image_size, info.channels)
    assert s.images_NHWC.shape == size
    assert s.images_NHWC.dtype == np.uint8
    assert s.images_NHWC.flags.c_contiguous
    assert s.labels_N.dtype == s.groups_N.dtype == np.int64
    assert len(s.classes) == len(set(s.classes)) == info.num_classes
    assert set(s.labels_N) == set(range(info.num_classes))
    assert len(set(s.groups_N)) == info.num_groups
    assert tuple(map(len, split(s))) == (info.num_train, info.num_test)
    assert info.title
    assert info.source
    assert info.licence


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_set_has_no_image_in_both_parts(name):
    s = loaded(name)
    train, test = ({hashlib.sha256(image.tobytes()).digest() for image in s.images_NHWC[i]} for i in split(s))

    assert len(train) + len(test) == len(s.images_NHWC), "an image occurs twice"
    assert not train & test


@pytest.mark.parametrize("name", PACKAGED)
def test_labels_come_without_pixels(name):
    s, labels = loaded(name), load_labels(name)
    assert np.array_equal(labels.labels_N, s.labels_N)
    assert np.array_equal(labels.groups_N, s.groups_N)
    assert labels.classes == s.classes


def test_upstream_set_is_split_by_icon_set():
    s = load_labels("icons")
    assert split_rule(s) == "groups"
    assert 0.08 < len(split(s)[1]) / len(s.labels_N) < 0.12


@pytest.mark.parametrize("name", UNGROUPED)
def test_sets_without_groups_are_split_by_image(name):
    assert split_rule(load_labels(name)) == "images"


def test_digits_are_those_of_scikit_learn():
    """The filter of `gradients` is undone: the enlarged digits shrink to the originals."""
    from sklearn.datasets import load_digits

    original = load_digits()
    s = load_images("digits")
    mean_N88 = s.images_NHWC[..., 0].reshape(-1, 8, 4, 8, 4).mean((2, 4))
    similarity = np.array([x / np.linalg.norm(x) for x in original.data]) @ mean_N88.reshape(-1, 64).T
    nearest_N = original.target[similarity.argmax(axis=0)]
    assert np.mean(nearest_N == s.labels_N) > 0.99


def test_colours_are_restored():
    s = loaded("landcover")
    water, vegetation = (
        s.images_NHWC[s.labels_N == s.classes.index(name)] for name in ("water", "evergreen_broadleaf")
    )
    assert np.median(water[..., 2]) > np.median(water[..., 0]) + 20
    assert np.median(vegetation[..., 1]) > np.median(vegetation[..., 2]) + 10


def test_packaged_images_are_resized():
    s = load_images("cells", 16)
    assert s.images_NHWC.shape == (648, 16, 16, 1)
    pooled = loaded("cells").images_NHWC.reshape(648, 16, 2, 16, 2).mean((2, 4))
    assert np.abs(s.images_NHWC[..., 0] - pooled).mean() < 10


@pytest.mark.parametrize("size", [0, -32])
def test_image_size_below_one_is_refused(size):
    with pytest.raises(UserError, match="image_size must be 1 or more"):
        load_images("cells", size)


def test_unknown_packaged_name_names_the_nearest_and_the_way_to_a_folder():
    with pytest.raises(UnknownNameError) as caught:
        load_images("icns")
    message = str(caught.value)
    assert "Did you mean 'icons'?" in message
    assert "'./icns'" in message
    for ask in (describe, load_labels):
        with pytest.raises(UnknownNameError):
            ask("icns")


@pytest.fixture
def own_images(tmp_path, monkeypatch):
    """A folder that $UPSHOT_IMAGES names, with `cells` alone."""
    shutil.copy(STUDIES / "images" / "cells.npz", tmp_path)
    entry = json.loads((STUDIES / "images" / "sets.json").read_text())["cells"]
    (tmp_path / "sets.json").write_text(json.dumps({"cells": {**entry, "title": "mine"}, "lost": entry}))
    monkeypatch.setenv("UPSHOT_IMAGES", str(tmp_path))
    return tmp_path


def test_the_folder_of_the_environment_comes_first(own_images):
    assert describe("cells").title == "mine"
    assert describe("mnist").num_classes == 10


def test_the_environment_may_name_several_folders(own_images, tmp_path_factory, monkeypatch):
    first = tmp_path_factory.mktemp("first")
    entry = json.loads((own_images / "sets.json").read_text())["cells"]
    (first / "sets.json").write_text(json.dumps({"lost": {**entry, "title": "found"}}))
    shutil.copy(own_images / "cells.npz", first / "lost.npz")
    monkeypatch.setenv("UPSHOT_IMAGES", f"{first}{os.pathsep}{own_images}")
    assert describe("lost").title == "found"
    assert describe("cells").title == "mine"
    assert describe("mnist").num_classes == 10


def test_missing_file_of_a_known_set_says_where_it_was_looked_for(own_images):
    for ask in (load_images, describe, load_labels):
        with pytest.raises(DataError) as caught:
            ask("lost")
        message = str(caught.value)
        assert "lost.npz" in message
        assert str(own_images) in message
        assert str(STUDIES / "images") in message
        assert str(Path(sys.prefix) / "share" / "upshot" / "images") in message
        assert "UPSHOT_IMAGES" in message


@pytest.mark.parametrize("keep", [0, 1000, 90_000])
def test_torn_file_is_named(own_images, keep):
    path = own_images / "cells.npz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=re.escape(str(path))):
        load_images("cells")


def test_corrupt_pixels_are_noticed(own_images):
    path = own_images / "cells.npz"
    content = bytearray(path.read_bytes())
    content[60_000] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(str(path))):
        load_images("cells")


def test_file_with_pickled_objects_is_refused(own_images):
    path = own_images / "cells.npz"
    np.savez(path, images=np.array([{}]), labels=[0], groups=[0], classes=["a"])
    with pytest.raises(DataError, match="allow_pickle"):
        load_images("cells")


@pytest.mark.parametrize(("missing", "message"), [("labels", "without labels"), ("images", "without images")])
def test_file_without_a_member_is_refused(own_images, missing, message):
    members = {"images": np.zeros((1, 2, 2, 1), np.uint8), "labels": [0], "groups": [0], "classes": ["a"]}
    np.savez(own_images / "cells.npz", **{name: value for name, value in members.items() if name != missing})
    with pytest.raises(DataError, match=message):
        load_images("cells")


@pytest.mark.parametrize("content", ["{", "[]", '{"cells": {"colour": 1}}', '{"cells": 3}'])
def test_malformed_list_of_sets_is_named(tmp_path, monkeypatch, content):
    (tmp_path / "sets.json").write_text(content)
    monkeypatch.setenv("UPSHOT_IMAGES", str(tmp_path))
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "sets.json"))):
        describe("mnist")


def test_shipped_finds_studies_and_lists_where_it_looked():
    assert data.shipped("studies", "quickstart.toml").is_file()
    with pytest.raises(DataError, match=re.escape(str(STUDIES))):
        data.shipped("studies", "no-such-study.toml")


def test_packages_away_from_the_checkout_need_images_elsewhere(tmp_path):
    """What a job sees that runs from a copy of the code alone."""
    shutil.copytree(Path(data.__file__).parents[1], tmp_path / "models")
    code = "import models.data as d; print(d.__file__); print(d.describe('cells').num_examples)"
    ask = [sys.executable, "-c", code]
    bare = {"PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)}

    given_env = {**bare, "UPSHOT_IMAGES": str(STUDIES / "images")}
    told = subprocess.run(ask, env=given_env, cwd=tmp_path, capture_output=True, text=True)
    assert told.stdout.split() == [str(tmp_path / "models" / "data" / "__init__.py"), "648"]

    shutil.copytree(STUDIES / "images", tmp_path / "studies" / "images")
    beside = subprocess.run(ask, env=bare, cwd=tmp_path, capture_output=True, text=True)
    assert beside.stdout.split()[1:] == ["648"]


def test_torch_stays_unloaded():
    code = "import sys, models.data; models.data.describe('icons'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=STUDIES.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- image folders ----------------------------------------------------------------------------------------------------


def write_image(path, colour, size=(12, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if isinstance(colour, int) else "RGB", size, colour).save(path)


@pytest.fixture
def photos(tmp_path):
    """Five red and three blue squares of 12 pixels."""
    for i in range(5):
        write_image(tmp_path / "photos" / "red" / f"{i}.png", (200, 10, i))
    for i in range(3):
        write_image(tmp_path / "photos" / "blue" / f"{i}.webp", (0, i, 250))
    return tmp_path / "photos"


def test_folder_of_class_folders(photos):
    s = load_images(str(photos))

    assert s.classes == ("blue", "red")
    assert s.images_NHWC.shape == (8, 12, 12, 3)
    assert list(s.labels_N) == [0] * 3 + [1] * 5
    assert [tuple(image[0, 0]) for image in s.images_NHWC[3:]] == [(200, 10, i) for i in range(5)]
    info = describe(str(photos))
    assert (info.num_examples, info.num_classes, info.image_size, info.channels) == (8, 2, 12, 3)
    assert (info.num_train, info.num_test) == tuple(map(len, split(s))) == (6, 2)


def test_folder_with_a_part_to_validate_on(tmp_path):
    for i, part in enumerate(["train", "train", "train", "val"]):
        for label in ("no", "yes"):
            write_image(tmp_path / part / label / f"{i}.PNG", 10 * i)
    (tmp_path / "notes.txt").touch()
    s = load_images(str(tmp_path))

    train_idx, test_idx = split(s)
    assert split_rule(s) == "given"
    assert s.images_NHWC.shape == (8, 12, 12, 1)
    assert sorted(s.images_NHWC[train_idx][:, 0, 0, 0]) == [0, 0, 10, 10, 20, 20]
    assert list(s.images_NHWC[test_idx][:, 0, 0, 0]) == [30, 30]
    assert list(s.labels_N[test_idx]) == [0, 1]
    assert describe(str(tmp_path)).num_test == 2


def test_val_comes_before_test(tmp_path):
    for part, colour in (("train", 1), ("test", 2), ("val", 3)):
        for label in ("a", "b"):
            write_image(tmp_path / part / label / "x.png", colour)
    assert set(load_images(str(tmp_path)).images_NHWC[:, 0, 0, 0]) == {1, 3}


def test_test_alone_serves_as_the_test_part(tmp_path):
    for part, colour in (("train", 1), ("test", 2)):
        for label in ("a", "b"):
            write_image(tmp_path / part / label / "x.png", colour)
    s = load_images(str(tmp_path))
    assert list(s.images_NHWC[split(s)[1]][:, 0, 0, 0]) == [2, 2]


def test_short_side_is_resized_and_the_centre_cut_out(tmp_path):
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 15:25] = 255
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        Image.fromarray(wide).save(tmp_path / label / "wide.png")

    s = load_images(str(tmp_path), 5)

    assert s.images_NHWC.shape == (2, 5, 5, 3)
    assert s.images_NHWC.min() > 200


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_gray_modes_give_one_channel(tmp_path, mode):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        Image.new(mode, (4, 4)).save(tmp_path / label / "x.png")
    assert load_images(str(tmp_path)).images_NHWC.shape == (2, 4, 4, 1)
    assert describe(str(tmp_path)).channels == 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_other_modes_give_three_channels(tmp_path, mode):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        Image.new(mode, (4, 4)).save(tmp_path / label / ("x.jpg" if mode == "CMYK" else "x.png"))
    assert load_images(str(tmp_path)).images_NHWC.shape == (2, 4, 4, 3)
    assert describe(str(tmp_path)).channels == 3


def test_transparent_palettes_are_read(tmp_path):
    for label in ("a", "b"):
        write_image(tmp_path / label / "0.png", (1, 2, 3))
        palette = Image.new("P", (12, 12))
        palette.putpalette([9, 8, 7, 6, 5, 4])
        palette.save(tmp_path / label / "x.png", transparency=b"\x00\x80")
    assert tuple(load_images(str(tmp_path)).images_NHWC[1, 0, 0]) == (9, 8, 7)


def test_gray_images_among_coloured_ones_get_three_channels(photos):
    write_image(photos / "red" / "9.png", 77)
    assert tuple(load_images(str(photos)).images_NHWC[-1, 0, 0]) == (77, 77, 77)


def test_colour_is_never_dropped_in_silence(tmp_path):
    for label in ("a", "b"):
        write_image(tmp_path / label / "0.png", 77)
    write_image(tmp_path / "b" / "1.png", (1, 2, 3))
    with pytest.raises(DataError, match=r"1\.png: is in colour"):
        load_images(str(tmp_path))


def test_deep_images_are_scaled_not_clipped(photos):
    Image.fromarray(np.full((12, 12), 40_000, np.uint16)).save(photos / "red" / "deep.png")
    assert (load_images(str(photos)).images_NHWC[-1] == 40_000 >> 8).all()


def test_hidden_and_other_files_are_not_images(photos):
    for name in (".hidden.png", "notes.txt", "Thumbs.db"):
        (photos / "red" / name).write_text("x")
    (photos / ".git").mkdir()
    (photos / "__MACOSX").mkdir()
    assert describe(str(photos)).num_examples == 8


def test_missing_folder(tmp_path):
    for ask in (describe, load_images, load_labels):
        with pytest.raises(DataError, match=re.escape(f"{tmp_path}/nowhere: no such folder of images")):
            ask(f"{tmp_path}/nowhere")


def test_file_in_place_of_a_folder(photos):
    with pytest.raises(DataError, match="a file, not a folder"):
        describe(str(photos / "red" / "0.png"))


def test_folder_without_classes(tmp_path):
    with pytest.raises(DataError, match="has 0 class folders"):
        describe(str(tmp_path))


def test_folder_of_one_class(tmp_path):
    write_image(tmp_path / "only" / "x.png", 3)
    with pytest.raises(DataError, match="has 1 class folders, needs 2 or more"):
        describe(str(tmp_path))


def test_class_folder_without_images(photos):
    (photos / "green").mkdir()
    with pytest.raises(DataError, match=re.escape(f"{photos / 'green'}: a class folder without images")):
        load_images(str(photos))


def test_train_without_val_gets_a_hint(tmp_path):
    for part in ("train", "validation"):
        for label in ("a", "b"):
            write_image(tmp_path / part / label / "x.png", 1)
    with pytest.raises(DataError, match=r"train: a class folder without images .* train/ and val/"):
        describe(str(tmp_path))


def test_parts_with_other_classes(tmp_path):
    for path in ("train/a", "train/b", "train/c", "val/a", "val/b", "val/d"):
        write_image(tmp_path / path / "x.png", 1)
    with pytest.raises(DataError, match=r"must have the same classes; only one of them has c, d"):
        load_images(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n broken"])
def test_unreadable_image_is_named(photos, content):
    (photos / "red" / "3.png").write_bytes(content)
    with pytest.raises(DataError, match=re.escape(str(photos / "red" / "3.png")) + ": not a readable image"):
        load_images(str(photos))


def test_a_class_whose_first_image_is_corrupt_is_described_by_its_next(photos):
    for number in range(3):
        (photos / "red" / f"{number}.png").write_bytes(b"")
    assert describe(str(photos)).image_size == 12
    for path in (photos / "red").iterdir():
        path.write_bytes(b"")
    (photos / "new").mkdir()  # what is cached is asked for anew
    (photos / "new").rmdir()
    with pytest.raises(DataError, match=r"red/4\.png: not a readable image"):
        describe(str(photos))


def test_torn_image_is_named(photos):
    path = photos / "red" / "3.jpg"
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(DataError, match=re.escape(str(path))):
        load_images(str(photos), 12)


def test_images_of_different_sizes_need_an_image_size(photos):
    write_image(photos / "red" / "9.png", (1, 2, 3), size=(20, 10))
    with pytest.raises(DataError, match=r"9\.png is 20 x 10, .* 12 x 12: give image_size"):
        load_images(str(photos))
    assert load_images(str(photos), 8).images_NHWC.shape == (9, 8, 8, 3)


def test_folder_of_unequal_images_has_no_size_of_its_own(photos):
    write_image(photos / "red" / "0.png", (1, 2, 3), size=(20, 10))
    assert describe(str(photos)).image_size is None


def test_folder_below_the_home_folder(photos, monkeypatch):
    monkeypatch.setenv("HOME", str(photos.parent))
    assert describe("~/photos").num_examples == 8


def test_image_sets_are_label_sets():
    assert isinstance(load_images("cells"), ImageSet)
    assert isinstance(load_images("cells"), LabelSet)
