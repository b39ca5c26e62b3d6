"""Shape suffixes: N images, B images of a batch, H and W pixels, C channels or classes, D features."""

import copy

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from evals import training
from evals.fewshot import draw_shots
from evals.finetune import NO_CLASS, Finetuned, FinetunedHead, finetune, finetune_head
from evals.schedule import FineTune
from evals.training import CROPS, FLIPS, MIXUP, order, step_images
from models.build import build_model
from models.data import load_images, split
from models.errors import UserError
from models.ladder import architecture
from models.prepare import recipe_architecture
from models.recipe import Recipe
from models.train import load_model, train
from tests.evals.probing import extract_features

FAMILIES = ("vit", "mixer", "resnet")
SHORT = FineTune(learning_rates=(0.05,), num_steps=(20,))


class InMemory:
    """Images as a task has them; those that nobody may see raise."""

    def __init__(self, images_NHWC, labels_N, allowed_N=None):
        self.images_NHWC, self.labels_N = images_NHWC, labels_N
        self.allowed = None if allowed_N is None else set(allowed_N.tolist())

    def batches(self, index_N, batch_size):
        if self.allowed is not None:
            assert set(index_N.tolist()) <= self.allowed
        for start in range(0, len(index_N), batch_size):
            yield self.images_NHWC[index_N[start : start + batch_size]]


class Task:
    """A packaged set, its train and its test part."""

    def __init__(self, name):
        images = load_images(name, 32)
        train_N, test_N = split(images, test_share=0.5)
        self.train = InMemory(images.images_NHWC[train_N], images.labels_N[train_N])
        self.test = InMemory(images.images_NHWC[test_N[:600]], images.labels_N[test_N[:600]])
        self.name, self.classes = name, images.classes

    def shots(self, shots):
        return draw_shots(self.name, self.train.labels_N, classes=self.classes, shots=shots, draw=0)

    def accuracy(self, fitted):
        return float((fitted.predict_batch(self.test.images_NHWC) == self.test.labels_N).mean())

    def head_accuracy(self, model, fitted):
        features_ND = extract_features(model, self.test.images_NHWC, batch_size=128)[-1]
        return float((fitted.predict(features_ND) == self.test.labels_N).mean())


@pytest.fixture(scope="module")
def digits():
    return Task("digits")


@pytest.fixture(scope="module")
def patches():
    return Task("patches")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small MLP-Mixer that has seen 13,000 icons once."""
    recipe = Recipe(
        family="mixer",
        size="pico",
        dataset="icons",
        image_size=32,
        patch_size=8,
        fraction=0.3,
        batch_size=64,
        learning_rate=2e-3,
        head_learning_rate=2e-3,
        head_weight_decay=0.03,
    )
    folder, records = tmp_path_factory.mktemp("trained"), []
    result = train(recipe, folder, num_checkpoints=1, log=records.append)
    return load_model(recipe_architecture(recipe, 688))(folder / f"step_{result.step:08d}")


def fresh(family, seed=0, num_classes=7):
    torch.manual_seed(seed)
    a = architecture(
        family, "pico", image_size=32, num_classes=num_classes, patch_size=None if family == "resnet" else 8
    )
    return build_model(a)


def tune(model, task, index_N, settings=SHORT, *, seed=0, **options):
    return finetune(model, task.train, index_N, num_classes=len(task.classes), settings=settings, seed=seed, **options)


def reference_rate(step, num_steps, rate):
    """BiT-HyperRule's, written anew: warm-up over a fifth of the steps, decays at 30, 60 and 90 %."""
    warmup = num_steps // 5
    if step < warmup:
        return rate * step / warmup
    return rate / 10 ** np.searchsorted([0.3 * num_steps, 0.6 * num_steps, 0.9 * num_steps], step, side="right")


def reference_training(model, batches, num_classes, rate):
    """Plain SGD with momentum, gradient by gradient, on batches of (inputs, [(share, labels)])."""
    model = copy.deepcopy(model)
    model.reset_classifier(num_classes)
    for parameter in model.get_classifier().parameters():
        nn.init.zeros_(parameter)
    model.train()
    velocity = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for step, (x_BCHW, targets) in enumerate(batches):
        logits_BC = model(x_BCHW)
        loss = sum(
            -share * torch.log_softmax(logits_BC, 1)[torch.arange(len(y_B)), y_B].mean() for share, y_B in targets
        )
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
                velocity[name] = 0.9 * velocity[name] + gradient
                parameter -= reference_rate(step, len(batches), rate) * velocity[name]
    return model.eval()


def as_input(images_BHWC):
    x_BCHW = torch.from_numpy(images_BHWC.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    return x_BCHW.repeat(1, 3 // x_BCHW.shape[1], 1, 1)


def assert_same_weights(model, expected, atol):
    given, wanted = model.state_dict(), expected.state_dict()
    assert given.keys() == wanted.keys()
    for name, tensor in given.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=atol, msg=name)


def moved(model, other):
    """The furthest that a weight of the body went."""
    before, after = model.state_dict(), other.state_dict()
    return max(
        float((before[name] - after[name]).abs().max()) for name in before if before[name].shape == after[name].shape
    )


def same_bits(fitted, other):
    pairs = zip(fitted.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_trains_as_a_plain_loop_does(family, digits):
    model, index_N = fresh(family), digits.shots(3)
    fitted = tune(model, digits, index_N)
    place_SB = order(len(index_N), 512, 20, 0)
    assert place_SB.shape == (20, 30)
    batches = [
        (as_input(digits.train.images_NHWC[row_N]), [(1.0, torch.from_numpy(digits.train.labels_N[row_N]))])
        for row_N in index_N[place_SB]
    ]
    expected = reference_training(model, batches, 10, 0.05)
    assert moved(model, expected) > 1e-3
    assert_same_weights(fitted.model, expected, 1e-6)
    assert (fitted.regularisation, fitted.num_steps) == (0.05, 20)


def test_images_are_flipped_and_mixed_by_seed_and_step(patches):
    model, seed = fresh("vit"), 3
    index_N = np.resize(patches.shots(5), 20_000)  # a medium task: the rule mixes it
    settings = FineTune(learning_rates=(0.05,), num_steps=(8,), batch_size=16, flip=True, mixup=0.4)
    fitted = tune(model, patches, index_N, settings, seed=seed)
    batches = []
    for step, place_B in enumerate(order(20_000, 16, 8, seed)):
        images_BHWC, y_B = patches.train.images_NHWC[index_N[place_B]], patches.train.labels_N[index_N[place_B]]
        flipped_B = np.random.default_rng((seed, FLIPS, step)).random(16) < 0.5
        x_BCHW = as_input(np.where(flipped_B[:, None, None, None], images_BHWC[:, :, ::-1], images_BHWC))
        generator = np.random.default_rng((seed, MIXUP, step))
        partner_B, share = generator.permutation(16), generator.beta(0.4, 0.4)
        mixed_BCHW = share * x_BCHW + (1 - share) * x_BCHW[partner_B]
        targets = [(share, torch.from_numpy(y_B)), (1 - share, torch.from_numpy(y_B[partner_B]))]
        batches.append((mixed_BCHW, targets))
    assert_same_weights(fitted.model, reference_training(model, batches, 12, 0.05), 1e-6)


def test_a_crop_is_a_random_square_at_the_size_of_the_image(patches):
    settings, index_N = FineTune(crop=True), np.arange(40)
    order_SB = order(40, 512, 2, 5)
    steps = list(step_images(patches.train, index_N, order_SB, settings, 5))
    for step, images in enumerate(steps):
        generator = np.random.default_rng((5, CROPS, step))
        for image_HWC, place, (left, top) in zip(
            images.images_NHWC.numpy(), order_SB[step], generator.integers(0, 7, (40, 2)), strict=True
        ):
            whole = Image.fromarray(patches.train.images_NHWC[place].squeeze())
            square = whole.crop((left, top, left + 26, top + 26)).resize((32, 32), Image.Resampling.BILINEAR)
            # Pillow's cut while it resizes mixes a little of the pixels beyond into those on the edge.
            inner = np.s_[1:-1, 1:-1]
            np.testing.assert_array_equal(image_HWC.squeeze()[inner], np.asarray(square)[inner])
    assert not torch.equal(steps[0].images_NHWC, steps[1].images_NHWC)


@pytest.mark.parametrize(("num_images", "batch_size", "num_steps"), [(7, 512, 5), (7, 3, 9), (100, 64, 11), (5, 5, 1)])
def test_every_image_is_seen_equally_often(num_images, batch_size, num_steps):
    order_SB = order(num_images, batch_size, num_steps, 0)
    assert order_SB.shape == (num_steps, min(num_images, batch_size))
    counts_N = np.bincount(order_SB.ravel(), minlength=num_images)
    assert counts_N.max() - counts_N.min() <= 1
    assert not np.array_equal(order_SB, order(num_images, batch_size, num_steps, 1)) or num_images == 1


def dropped_out(digits):
    a = architecture("vit", "pico", image_size=32, num_classes=7, patch_size=8)
    torch.manual_seed(0)
    return build_model(a, dropout=0.3, drop_path=0.2)


@pytest.mark.parametrize("family", [*FAMILIES, "with dropout"])
def test_the_model_stays_as_it_is_to_the_bit(family, digits):
    model = dropped_out(digits) if family == "with dropout" else fresh(family)
    model.train()
    next(iter(model.children())).eval()
    next(model.parameters()).requires_grad_(False)
    modes = [module.training for module in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    fitted = tune(model, digits, digits.shots(2))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert model.num_classes == 7
    # The frozen parameter was trained all the same.
    assert not torch.equal(next(fitted.model.parameters()), next(model.parameters()))


@pytest.mark.parametrize("family", ["vit", "resnet", "with dropout"])
def test_the_same_seed_gives_the_same_bits(family, digits):
    model = dropped_out(digits) if family == "with dropout" else fresh(family)
    settings = FineTune(learning_rates=(0.05,), num_steps=(6,), batch_size=16, crop=True, flip=True)
    first = tune(model, digits, digits.shots(3), settings)
    torch.manual_seed(99)
    assert same_bits(first, tune(model, digits, digits.shots(3), settings))
    assert not same_bits(first, tune(model, digits, digits.shots(3), settings, seed=1))


def test_images_that_do_not_stay_in_memory_train_the_same_bits(digits, monkeypatch):
    model = fresh("vit")
    settings = FineTune(learning_rates=(0.05,), num_steps=(6,), batch_size=16)
    kept = tune(model, digits, digits.shots(3), settings)
    monkeypatch.setattr(training, "RESIDENT_BYTES", 0)
    assert same_bits(kept, tune(model, digits, digits.shots(3), settings))


@pytest.mark.parametrize("micro_batch", [7, 30])
def test_micro_batches_change_rounding_alone(micro_batch, digits):
    model, index_N = fresh("mixer"), digits.shots(3)
    pieces = tune(model, digits, index_N, micro_batch=micro_batch)
    assert pieces.batch_size == micro_batch
    assert_same_weights(pieces.model, tune(model, digits, index_N).model, 1e-6)


def test_predictions_do_not_depend_on_how_images_are_batched(digits, trained):
    fitted = tune(trained, digits, digits.shots(5))
    whole_N = fitted.predict_batch(digits.test.images_NHWC)
    assert whole_N.dtype == np.int64
    assert fitted.predict_batch(digits.test.images_NHWC[:0]).shape == (0,)
    for size in (1, 50, 77):
        pieces = [fitted.predict_batch(images) for images in digits.test.batches(np.arange(200), size)]
        np.testing.assert_array_equal(np.concatenate(pieces), whole_N[:200])
    with torch.no_grad():
        logits_NC = fitted.model(as_input(digits.test.images_NHWC))
    np.testing.assert_array_equal(whole_N, logits_NC.argmax(1).numpy())


def test_it_beats_chance_and_its_own_head(digits, patches, trained):
    settings = FineTune(learning_rates=(0.05,), num_steps=(100,))
    for task in (digits, patches):
        index_N = task.shots(10)
        whole = task.accuracy(tune(trained, task, index_N, settings))
        shots_ND = extract_features(trained, task.train.images_NHWC[index_N], batch_size=128)[-1]
        labels_N, num_classes = task.train.labels_N[index_N], len(task.classes)
        head = finetune_head(shots_ND, labels_N, num_classes=num_classes, settings=settings, seed=0)
        of_head = task.head_accuracy(trained, head)
        assert of_head > 2 / num_classes
        assert whole > of_head + 0.05


def test_a_head_is_trained_as_plain_sgd_in_float64_does(digits, trained):
    index_N = digits.shots(5)
    shots_ND = extract_features(trained, digits.train.images_NHWC[index_N], batch_size=128)[-1]
    labels_N = digits.train.labels_N[index_N]
    settings = FineTune(learning_rates=(0.05,), num_steps=(60,), batch_size=32)
    head = finetune_head(shots_ND, labels_N, num_classes=10, settings=settings, seed=4)
    x_NE = np.hstack([shots_ND, np.ones((50, 1))]).astype(np.float64)
    weights_EC, velocity_EC = np.zeros((x_NE.shape[1], 10)), 0.0
    for step, place_B in enumerate(order(50, 32, 60, 4)):
        scores_BC = np.exp(x_NE[place_B] @ weights_EC)
        error_BC = scores_BC / scores_BC.sum(1, keepdims=True) - np.eye(10)[labels_N[place_B]]
        velocity_EC = 0.9 * velocity_EC + x_NE[place_B].T @ error_BC / 32
        weights_EC = weights_EC - reference_rate(step, 60, 0.05) * velocity_EC
    assert np.abs(weights_EC).max() > 0.01
    np.testing.assert_allclose(head.weights_CD, weights_EC[:-1].T, atol=1e-5)
    np.testing.assert_allclose(head.bias_C, weights_EC[-1], atol=1e-5)
    assert (head.regularisation, head.num_steps) == (0.05, 60)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_on_features_is_a_model_whose_body_is_frozen(family, digits):
    model, index_N = fresh(family), digits.shots(3)
    shots_ND = extract_features(model, digits.train.images_NHWC[index_N], batch_size=128)[-1]
    generator = torch.get_rng_state()
    head = finetune_head(shots_ND, digits.train.labels_N[index_N], num_classes=10, settings=SHORT, seed=0)
    assert torch.equal(torch.get_rng_state(), generator)
    frozen = copy.deepcopy(model).requires_grad_(False).eval()
    frozen.reset_classifier(10)
    classifier = frozen.get_classifier()
    for parameter in classifier.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=1.0, momentum=0.9)
    for step, row_B in enumerate(index_N[order(30, 512, 20, 0)]):
        optimizer.param_groups[0]["lr"] = reference_rate(step, 20, 0.05)
        optimizer.zero_grad()
        y_B = torch.from_numpy(digits.train.labels_N[row_B])
        nn.functional.cross_entropy(frozen(as_input(digits.train.images_NHWC[row_B])), y_B).backward()
        optimizer.step()
    np.testing.assert_allclose(head.weights_CD, classifier.weight.detach(), atol=1e-5)
    test_ND = extract_features(model, digits.test.images_NHWC[:100], batch_size=128)[-1]
    expected_N = Finetuned(model=frozen, batch_size=100).predict_batch(digits.test.images_NHWC[:100])
    np.testing.assert_array_equal(head.predict(test_ND), expected_N)


def test_no_image_beyond_those_that_were_given_is_seen(digits, trained):
    """Test images are never given; training images that are not drawn change nothing either."""
    index_N, choose_N = np.split(digits.shots(8).reshape(10, 8), [5], axis=1)
    index_N, choose_N = index_N.ravel(), choose_N.ravel()
    settings = FineTune(learning_rates=(0.01, 0.05), num_steps=(10,))
    expected = tune(trained, digits, index_N, settings, choose_index_N=choose_N)
    seen_N = np.concatenate([index_N, choose_N])
    images_NHWC, labels_N = digits.train.images_NHWC.copy(), digits.train.labels_N.copy()
    others_N = np.setdiff1d(np.arange(len(labels_N)), seen_N)
    images_NHWC[others_N], labels_N[others_N] = 255, -1
    poisoned = InMemory(images_NHWC, labels_N, allowed_N=seen_N)
    given = finetune(trained, poisoned, index_N, num_classes=10, settings=settings, seed=0, choose_index_N=choose_N)
    assert same_bits(given, expected)
    assert given.regularisation == expected.regularisation


def test_the_setting_that_does_best_on_the_images_to_choose_on_is_trained_on_both_parts(digits, trained):
    shots_CK = digits.shots(10).reshape(10, 10)
    index_N, choose_N = shots_CK[:, :5].ravel(), shots_CK[:, 5:].ravel()
    rates, steps = (0.2, 0.0001, 1e6), (10, 20)  # the last one diverges
    settings = FineTune(learning_rates=rates, num_steps=steps)
    chosen = tune(trained, digits, index_N, settings, choose_index_N=choose_N)
    scores = {}
    for rate in sorted(rates):
        for num_steps in steps:
            one = FineTune(learning_rates=(rate,), num_steps=(num_steps,))
            fitted = tune(trained, digits, index_N, one)
            if fitted.reason is None:
                predicted_N = fitted.predict_batch(digits.train.images_NHWC[choose_N])
                scores[rate, num_steps] = int((predicted_N == digits.train.labels_N[choose_N]).sum())
    assert len(scores) < 6
    best = max(scores, key=scores.get)  # the first of equals
    assert (chosen.regularisation, chosen.num_steps) == best
    assert min(scores.values()) < scores[best]
    one = FineTune(learning_rates=best[:1], num_steps=best[1:])
    assert same_bits(chosen, tune(trained, digits, np.concatenate([index_N, choose_N]), one))


def test_with_one_setting_there_is_nothing_to_choose(digits, trained):
    index_N = digits.shots(4)
    chosen = tune(trained, digits, index_N[:30], choose_index_N=index_N[30:])
    assert same_bits(chosen, tune(trained, digits, index_N))


def test_settings_to_choose_among_need_images_to_choose_on(digits, trained):
    settings = FineTune(learning_rates=(0.1, 0.01), num_steps=(5,))
    with pytest.raises(UserError, match=r"2 settings .* no images to choose on"):
        tune(trained, digits, digits.shots(2), settings)
    with pytest.raises(UserError, match=r"2 settings .* no images to choose on"):
        finetune_head(np.eye(2, dtype=np.float32), np.array([0, 1]), num_classes=2, settings=settings, seed=0)


def test_a_class_without_images_gives_a_reason(digits, trained):
    index_N = digits.shots(4)
    without_3_N = index_N[digits.train.labels_N[index_N] != 3]
    fitted = tune(trained, digits, without_3_N)
    assert fitted.model is fitted.regularisation is None
    assert fitted.reason == "class 3 of 0 to 9 has no image to train on"
    # It need not be in both parts.
    assert tune(trained, digits, without_3_N, choose_index_N=index_N).reason is None
    labels_N = np.array([0, 2, 2])
    head = finetune_head(np.ones((3, 4), np.float32), labels_N, num_classes=5, settings=SHORT, seed=0)
    assert head.reason == "class 1 of 0 to 4 has no image to train on (nor have 2 more classes)"
    assert head.weights_CD is head.regularisation is None


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_are_not_finite_give_a_reason(family, digits):
    model = fresh(family)
    with torch.no_grad():
        list(model.parameters())[2].view(-1)[0] = torch.nan
    fitted = tune(model, digits, digits.shots(2))
    assert fitted.model is None
    assert fitted.reason == "fine-tuning diverged: the loss of step 1 of 20 is not finite (rate 0.05)"


def test_training_that_diverges_gives_a_reason(digits, trained):
    fast = FineTune(learning_rates=(1e6,), num_steps=(150,))
    fitted = tune(trained, digits, digits.shots(2), fast)
    assert fitted.model is None
    assert fitted.reason.startswith("fine-tuning diverged: the loss of step ")
    assert fitted.reason.endswith(" of 150 is not finite (rate 1e+06)")
    both = FineTune(learning_rates=(1e6, 1e7), num_steps=(20,))
    neither = tune(trained, digits, digits.shots(2), both, choose_index_N=digits.shots(3))
    assert "rate 1e+06" in neither.reason


def test_a_last_step_that_overflows_gives_a_reason():
    features_ND = 1e3 * np.eye(4, dtype=np.float32)
    settings = FineTune(learning_rates=(3e38,), num_steps=(1,))
    head = finetune_head(features_ND, np.arange(4), num_classes=4, settings=settings, seed=0)
    assert head.reason == "fine-tuning diverged: weights are not finite (rate 3e+38)"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_give_a_reason(value):
    features_ND = np.ones((4, 3), np.float32)
    features_ND[1, 2] = features_ND[3, 0] = value
    head = finetune_head(features_ND, np.array([0, 1, 0, 1]), num_classes=2, settings=SHORT, seed=0)
    assert head.reason == "2 of 4 training images have features that are not finite"


def test_features_that_tell_no_image_from_another_give_a_reason():
    head = finetune_head(np.ones((4, 3)), np.array([0, 1, 0, 1]), num_classes=2, settings=SHORT, seed=0)
    assert head.reason == "the features are the same for all 4 training images"


def test_scores_that_are_not_finite_are_no_class(digits):
    head = FinetunedHead(weights_CD=np.array([[1e38], [-1e38]], np.float32), bias_C=np.zeros(2, np.float32))
    features_ND = np.array([[1.0], [-1.0], [10.0], [np.nan]], np.float32)
    np.testing.assert_array_equal(head.predict(features_ND), [0, 1, NO_CLASS, NO_CLASS])
    fitted = tune(fresh("vit"), digits, digits.shots(2))
    with torch.no_grad():
        fitted.model.get_classifier().weight.fill_(3e38)
    np.testing.assert_array_equal(fitted.predict_batch(digits.test.images_NHWC[:5]), [NO_CLASS] * 5)


@pytest.mark.parametrize(
    ("name", "options"),
    [("deit_tiny_distilled_patch16_224", {"img_size": 32}), ("caformer_s18", {}), ("resnetv2_18", {})],
)
def test_heads_of_other_timm_models_learn(name, options, patches):
    """Two linear ones, an MLP and a convolution."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=5, **options)
    settings = FineTune(learning_rates=(0.01,), num_steps=(3,))
    fitted = tune(model, patches, patches.shots(1), settings)
    assert fitted.reason is None
    heads = fitted.model.get_classifier()
    for head in heads if isinstance(heads, tuple) else (heads,):
        dense = [module for module in head.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        assert len(dense[-1].weight) == 12
        assert all(module.weight.abs().max() > 0 for module in dense)
    assert fitted.predict_batch(patches.test.images_NHWC[:3]).shape == (3,)
