import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from models.augment import StepImages, draw_batch
from models.build import build_model
from models.data.order import epoch_order
from models.device import Device
from models.prepare import recipe_architecture
from models.recipe import Axes, Recipe
from models.step import micro_batches
from models.train import train
from models.upstream import load_upstream

CPU = Device(torch.device("cpu"))
INDEX_B = np.random.default_rng(1).permutation(200)[:64]
IMAGES_NHWC = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), np.uint8)
INPUTS_NCHW = np.repeat(IMAGES_NHWC.transpose(0, 3, 1, 2) / 127.5 - 1, 3, axis=1)


def axes(**given):
    return Axes.model_validate({"family": "vit", "size": "pico"} | given)


def seen(batch, place_P=np.arange(64)):  # noqa: B008  # nobody changes it
    return taken(batch, torch.from_numpy(IMAGES_NHWC)).inputs(place_P, CPU).numpy()


def taken(batch, images_NHWC):
    return StepImages(batch=batch, images_NHWC=images_NHWC, labels_N=torch.zeros(200), row_B=batch.position_B)


def test_a_batch_that_nothing_is_done_to_is_its_images():
    assert seen(draw_batch(INDEX_B, axes(), 0)) == pytest.approx(INPUTS_NCHW[INDEX_B], abs=1e-6)


def test_half_of_the_images_are_flipped_left_for_right_and_others_in_every_step():
    flipped_SB = []
    for step in range(50):
        found = seen(draw_batch(INDEX_B, axes(flip=True), step))
        upright, mirrored = (
            np.isclose(found, expected, atol=1e-6).all((1, 2, 3))
            for expected in (INPUTS_NCHW[INDEX_B], INPUTS_NCHW[INDEX_B][..., ::-1])
        )
        assert (upright ^ mirrored).all()
        flipped_SB.append(mirrored)
    assert 0.45 < np.mean(flipped_SB) < 0.55
    assert 0.2 < np.mean(flipped_SB, axis=0).min() < np.mean(flipped_SB, axis=0).max() < 0.8


def test_images_are_mixed_with_their_partners_by_one_share():
    shares = []
    for step in range(200):
        batch = draw_batch(INDEX_B, axes(mixup=0.2), step)
        assert sorted(batch.partner_B) == list(range(64))
        of_partners = INPUTS_NCHW[INDEX_B][batch.partner_B]
        expected = batch.share * INPUTS_NCHW[INDEX_B] + (1 - batch.share) * of_partners
        assert np.allclose(seen(batch), expected, atol=1e-5)
        shares.append(batch.share)
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)).
    assert np.mean(shares) == pytest.approx(0.5, abs=0.1)
    assert np.var(shares) == pytest.approx(1 / (4 * 1.4), rel=0.2)


@given(st.integers(1, 5), st.integers(1, 40))
def test_a_batch_is_the_same_however_it_is_split(size, at_most):
    batch = draw_batch(INDEX_B, axes(flip=True, mixup=0.8), 3)
    places = [
        place_P
        for rank in range(size)
        for place_P in micro_batches(np.arange(64), rank=rank, size=size, at_most=at_most)
    ]
    assert np.array_equal(np.concatenate([seen(batch, place_P) for place_P in places]), seen(batch))


def test_another_seed_or_step_draws_otherwise_and_the_same_draws_the_same():
    places = [(0, 0), (0, 1), (1, 0)]
    found = [seen(draw_batch(INDEX_B, axes(flip=True, mixup=1.0, seed=seed), step)) for seed, step in places]
    assert len({images.tobytes() for images in found}) == 3
    assert np.array_equal(found[0], seen(draw_batch(INDEX_B, axes(flip=True, mixup=1.0), 0)))


@pytest.mark.parametrize("micro_batch", [None, 5])
def test_the_loss_is_that_of_the_mixed_labels(tmp_path, micro_batch):
    wanted = Recipe.model_validate(
        {
            "family": "vit",
            "size": "pico",
            "dataset": "icons",
            "image_size": 32,
            "patch_size": 8,
            "fraction": 0.02,
            "batch_size": 32,
            "epochs": 0.01,
            "head_learning_rate": 1e-3,
            "head_weight_decay": 0,
            "mixup": 0.8,
            "label_smoothing": 0.1,
        }
    )
    records = []
    train(wanted, tmp_path, num_checkpoints=1, log=records.append, micro_batch=micro_batch)
    data = load_upstream(wanted)
    index_B = epoch_order(len(data.train.labels_N), seed=0, epoch=0)[:32]
    batch = draw_batch(index_B, wanted, 0)
    torch.manual_seed(wanted.seed)
    model = build_model(recipe_architecture(wanted, data.num_classes)).train()
    logits_BC = model(taken(batch, data.train.images_NHWC).inputs(np.arange(32), CPU))
    one_hot_BC = functional.one_hot(data.train.labels_N[torch.from_numpy(index_B)], data.num_classes)
    target_BC = batch.share * one_hot_BC + (1 - batch.share) * one_hot_BC[torch.from_numpy(batch.partner_B)]
    smooth_BC = 0.9 * target_BC + 0.1 / data.num_classes
    expected = -(smooth_BC * logits_BC.log_softmax(1)).sum(1).mean()
    assert records[1]["train_loss"] == pytest.approx(float(expected.detach()), rel=1e-5)
