"""Crops and RandAugment: views that are functions of (seed, step, place)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.augment import draw_batch
from models.data import load_images
from models.data.augmentations import DRAWS_OF_A_CROP, OPERATIONS, crop_box, rand_augmented
from models.recipe import AUGREG, Axes, Recipe
from models.train import train
from models.upstream import load_upstream
from tests.models.stored_images import examples, write_folder
from tests.models.test_upstream import batches, equal, final_bytes

PHOTOS_NHWC = load_images("landcover").images_NHWC[::700]
ICONS_NHWC = load_images("cells").images_NHWC[::100]


def axes(**given):
    return Axes.model_validate({"family": "vit", "size": "pico"} | given)


def draws(seed=0):
    return np.random.default_rng(seed).random(DRAWS_OF_A_CROP)


@given(st.integers(1, 500), st.integers(1, 500), st.floats(0.01, 1), st.integers(0, 2**32 - 1))
def test_a_crop_lies_in_its_image_and_has_the_area_and_shape_that_were_asked_for(width, height, least, seed):
    left, top, right, bottom = crop_box(width, height, least, draws(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    w, h = right - left, bottom - top
    if (w, h) != (width, height):
        assert w * h >= least * width * height - (w + h) / 2 - 0.25
        assert (w - 0.5) / (h + 0.5) <= 4 / 3
        assert (w + 0.5) / (h - 0.5) >= 3 / 4


def test_crops_are_everywhere_of_all_areas_and_of_both_shapes():
    boxes = np.array([crop_box(300, 200, 0.1, draws(seed)) for seed in range(2000)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area = w * h / 60_000
    assert 0.1 <= area.min() < 0.11
    assert area.max() > 0.8
    small = area < 0.3
    assert (w > h)[small].mean() == pytest.approx(0.5, abs=0.06)
    assert (boxes[:, 0] / np.maximum(1, 300 - w))[small].mean() == pytest.approx(0.5, abs=0.05)
    assert (boxes[:, 1] / np.maximum(1, 200 - h))[small].mean() == pytest.approx(0.5, abs=0.05)


def operated(which, magnitude, image_HWC, more=(0.9, 0.5, 0.5)):
    draws_LK = np.array([[(which + 0.5) / len(OPERATIONS), *more]])
    return rand_augmented(image_HWC, draws_LK, magnitude)


@pytest.mark.parametrize("images_NHWC", [PHOTOS_NHWC, ICONS_NHWC], ids=["colour", "gray"])
@pytest.mark.parametrize("magnitude", [0, 10, 15, 20])
def test_every_operation_gives_an_image_of_the_same_form(images_NHWC, magnitude):
    for which in range(len(OPERATIONS)):
        for image_HWC in images_NHWC[:3]:
            found = operated(which, magnitude, image_HWC)
            assert (found.shape, found.dtype) == (image_HWC.shape, np.uint8)


def test_operations_do_what_their_papers_say():
    image_HWC = PHOTOS_NHWC[0]
    side = image_HWC.shape[1]
    invert, rotate, posterize, solarize, brightness, shift, cut_out, add = (
        lambda magnitude, more=(0.9, 0.5, 0.5), which=which: operated(which, magnitude, image_HWC, more)
        for which in (2, 3, 4, 5, 8, 12, 14, 15)
    )
    assert np.array_equal(invert(10), 255 - image_HWC)
    turned = np.asarray(Image.fromarray(image_HWC).rotate(60, fillcolor=(128, 128, 128)))
    assert np.array_equal(rotate(20), turned)
    assert not np.array_equal(rotate(20, (0.1, 0.5, 0.5)), turned)
    assert np.array_equal(posterize(15), image_HWC & 0b11111100)
    assert np.array_equal(posterize(20), image_HWC)
    assert np.array_equal(posterize(0), image_HWC & 0b10000000)
    assert np.array_equal(solarize(10), image_HWC)
    assert np.array_equal(solarize(0), 255 - image_HWC)
    assert np.array_equal(brightness(5), image_HWC)
    assert np.array_equal(add(0), image_HWC)
    assert add(10)[image_HWC < 128].min() >= 110
    by = round(100 / 224 * side)
    assert np.array_equal(shift(10)[:, :-by], image_HWC[:, by:])
    assert (shift(10)[:, -by:] == 128).all()
    hole = (cut_out(20) != image_HWC).any(2) | (image_HWC == 128).all(2)
    assert hole.sum() == pytest.approx((2 * int(80 / 224 * side)) ** 2, rel=0.1)


def test_augreg_settings_are_those_of_the_paper():
    assert {name: tuple(setting) for name, setting in AUGREG.items()} == {
        "none": (0, 0, 0.0),
        "light1": (2, 0, 0.0),
        "light2": (2, 10, 0.2),
        "medium1": (2, 15, 0.2),
        "medium2": (2, 15, 0.5),
        "strong1": (2, 20, 0.5),
        "strong2": (2, 20, 0.8),
    }
    mixed = draw_batch(np.arange(32), axes(augreg="medium2"), 3)
    alone = draw_batch(np.arange(32), axes(mixup=0.5), 3)
    assert np.array_equal(mixed.partner_B, alone.partner_B)
    assert (mixed.share, alone.views) == (alone.share, None)
    assert draw_batch(np.arange(32), axes(augreg="light1"), 3).partner_B is None


def test_two_ways_to_ask_for_mixup_are_refused():
    with pytest.raises(ValueError, match=r"augreg 'light2' has a mixup of its own \(0\.2\): leave mixup at 0"):
        axes(augreg="light2", mixup=0.2)


def test_operations_and_crops_are_drawn_anew_for_every_place_and_step():
    views = [draw_batch(np.arange(512), axes(augreg="strong1", crop=0.3), step).views for step in range(2)]
    drawn_L = [(view.operations_BLK[..., 0] * len(OPERATIONS)).astype(int) for view in views]
    assert np.bincount(drawn_L[0].ravel()).min() > 30
    assert (drawn_L[0] == drawn_L[1]).mean() < 0.2
    assert len({tuple(row) for row in views[0].crop_BK}) == 512


def packaged(**more):
    common = {
        "family": "vit", "size": "pico", "dataset": "landcover", "image_size": 16, "patch_size": 8, "fraction": 0.05,
        "batch_size": 32, "head_learning_rate": 1e-3, "head_weight_decay": 0,
    }  # fmt: skip
    return Recipe.model_validate(common | more)


@pytest.mark.parametrize(
    "more", [{"crop": 0.3}, {"augreg": "light2"}, {"crop": 0.3, "augreg": "strong2", "flip": True}]
)
def test_packaged_sets_are_augmented_and_what_stays_is_seen_as_without(tmp_path, more):
    changed, plain = batches(packaged(**more)), batches(packaged())
    assert not any((x == y).all() for (x, _), (y, _) in zip(changed, plain, strict=True))
    assert equal([(y,) for _, y in changed], [(y,) for _, y in plain])
    train(packaged(**more), tmp_path / "whole", num_checkpoints=1, log=lambda _: None)
    train(packaged(**more), tmp_path / "again", num_checkpoints=1, log=lambda _: None)
    assert final_bytes(tmp_path / "whole") == final_bytes(tmp_path / "again")


def test_whole_crops_and_no_operations_change_nothing():
    """An image as large as the model's, of which all is seen, is the image."""
    wanted = packaged(crop=1.0, image_size=32)
    data = load_upstream(wanted)
    image_HWC = np.empty(data.train.image_shape, np.uint8)
    views = draw_batch(np.arange(1), wanted, 0).views
    views.crop_BK[:, 1:-2:2] = 0.5  # as wide as high
    label = data.train.read(7, 0, views, image_HWC)
    plain = load_upstream(packaged(image_size=32))
    assert np.array_equal(image_HWC, plain.train.images_NHWC[7].numpy())
    assert label == plain.train.labels_N[7]


@pytest.mark.parametrize("more", [{"crop": 0.3}, {"augreg": "light2"}])
def test_a_folder_is_augmented_alike_whether_it_is_kept_or_not(tmp_path, monkeypatch, more):
    folder = write_folder(tmp_path / "photos", examples(80))
    wanted = packaged(dataset=folder, fraction=1.0, epochs=2, **more)
    kept = batches(wanted, range(5))
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1")
    assert equal(kept, batches(wanted, range(5)))
