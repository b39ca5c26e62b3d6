"""Shape suffixes: N training images, B test images, D features, C classes."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from evals import logistic
from evals.fewshot import ProbeError, fit_ridge, stack
from evals.logistic import PENALTIES, fit_logistic, folds

SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def digits():
    """(features_ND, labels_N) of real images; many pixels never change."""
    images = load_digits()
    return images.data.astype(np.float32), images.target.astype(np.int64)


def clusters(seed, *, counts=(6, 6, 6), dim=8, num_test=60):
    rng = np.random.default_rng(seed)
    centres_CD = rng.normal(size=(len(counts), dim))
    labels_N = np.repeat(np.arange(len(counts)), counts)
    test_labels_B = rng.integers(0, len(counts), num_test)
    features_ND, test_BD = (
        (centres_CD[labels] + 1.5 * rng.normal(size=(len(labels), dim))).astype(np.float32)
        for labels in (labels_N, test_labels_B)
    )
    return features_ND, labels_N, test_BD, test_labels_B


def standardised(features_ND, training_ND):
    mean_D, std_D = np.mean(training_ND, axis=0, dtype=np.float64), np.std(training_ND, axis=0, dtype=np.float64)
    return (features_ND - mean_D) / np.where(std_D == 0, 1, std_D)


def judge(x_ND, labels_N, penalty):
    """scikit-learn's at the same penalty."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations
        return LogisticRegression(C=1 / (penalty * len(labels_N)), tol=1e-10, max_iter=100_000).fit(x_ND, labels_N)


def objective(x_ND, labels_N, weights_CD, bias_C, penalty):
    scores_NC = x_ND @ weights_CD.T + bias_C
    log_probability_NC = (
        scores_NC - np.log(np.exp(scores_NC - scores_NC.max(axis=1, keepdims=True)).sum(axis=1))[:, None]
    )
    log_probability_NC -= scores_NC.max(axis=1, keepdims=True)
    return -np.mean(log_probability_NC[np.arange(len(labels_N)), labels_N]) + penalty / 2 * np.sum(weights_CD**2)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_agrees_with_scikit_learn_on_real_images(digits, penalty):
    features_ND, labels_N = digits[0][:400], digits[1][:400]
    x_ND = standardised(features_ND, features_ND)
    expected = judge(x_ND, labels_N, penalty)
    loss = objective(x_ND, labels_N, expected.coef_, expected.intercept_, penalty)

    probe = fit_logistic(features_ND, labels_N, num_classes=10, penalties=(penalty,))

    assert probe.loss == pytest.approx(loss, rel=1e-6, abs=1e-6)
    assert probe.regularisation == penalty
    test_ND = standardised(digits[0][400:], features_ND)
    np.testing.assert_array_equal(probe.predict(digits[0][400:]), expected.predict(test_ND))


@settings(max_examples=25)
@given(SEEDS, st.lists(st.integers(1, 12), min_size=3, max_size=4), st.integers(1, 15), st.sampled_from(PENALTIES[1:]))
def test_agrees_with_scikit_learn_on_any_shape(seed, counts, dim, penalty):
    features_ND, labels_N, _, _ = clusters(seed, counts=counts, dim=dim)
    x_ND = standardised(features_ND, features_ND)
    expected = judge(x_ND, labels_N, penalty)
    probe = fit_logistic(features_ND, labels_N, num_classes=len(counts), penalties=(penalty,))
    loss = objective(x_ND, labels_N, expected.coef_, expected.intercept_, penalty)
    assert probe.loss == pytest.approx(loss, rel=1e-6, abs=1e-6)


# --- the penalty ------------------------------------------------------------------------------------------------------


def reference_penalty(features_ND, labels_N, parts, penalties):
    """The largest penalty of the smallest cross-entropy over the parts, each (training, held out)."""
    x_ND = standardised(features_ND, features_ND)
    losses = []
    for penalty in penalties:
        fits = [(judge(x_ND[train], labels_N[train], penalty), held_out) for train, held_out in parts]
        losses.append(
            sum(
                log_loss(labels_N[out], fit.predict_proba(x_ND[out]), labels=fit.classes_, normalize=False)
                for fit, out in fits
            )
        )
    return max(p for p, loss in zip(penalties, losses, strict=True) if loss <= min(losses) * (1 + 1e-9))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_penalty_is_chosen_by_stratified_folds(seed):
    features_ND, labels_N, _, _ = clusters(seed, counts=(10, 12, 15), dim=6)
    fold_N = np.concatenate([np.arange(count) % 5 for count in (10, 12, 15)])
    parts = [(np.flatnonzero(fold_N != f), np.flatnonzero(fold_N == f)) for f in range(5)]
    penalties = (10.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.001)
    expected = reference_penalty(features_ND, labels_N, parts, penalties)
    assert fit_logistic(features_ND, labels_N, num_classes=3, penalties=penalties).regularisation == expected
    assert expected not in (10.0, 0.001)


def test_the_penalty_is_chosen_on_what_is_held_out_and_the_fit_is_to_all(digits):
    features_ND, labels_N = digits[0][:200], digits[1][:200]
    held_out = np.arange(3, 200, 5)
    parts = [(np.setdiff1d(np.arange(200), held_out), held_out)]
    probe = fit_logistic(features_ND, labels_N, num_classes=10, held_out=held_out)
    assert probe.regularisation == reference_penalty(features_ND, labels_N, parts, PENALTIES)
    refitted = fit_logistic(features_ND, labels_N, num_classes=10, penalties=(probe.regularisation,))
    assert probe.loss == pytest.approx(refitted.loss, abs=1e-9)


def test_folds_hold_every_class_alike():
    labels_N = np.random.default_rng(0).permutation(np.repeat(np.arange(3), [5, 12, 26]))
    for c, count in enumerate([5, 12, 26]):
        per_fold = np.bincount(folds(labels_N)[labels_N == c], minlength=5)
        assert (per_fold.sum(), np.ptp(per_fold) <= 1) == (count, True)
    # Three of the smallest class make three folds; a class of one image is in none.
    assert folds(np.array([0, 0, 0, 1, 1, 1, 1, 2])).tolist() == [0, 1, 2, 0, 1, 2, 0, -1]
    assert folds(np.array([2, 0, 1])).tolist() == [-1, -1, -1]


def test_one_shot_has_the_penalty_of_scikit_learns_default():
    features_ND, labels_N, test_BD, _ = clusters(3, counts=(1, 1, 1, 1))
    probe = fit_logistic(features_ND, labels_N, num_classes=4)
    assert probe.regularisation == 1 / 4
    default = LogisticRegression(tol=1e-10, max_iter=10_000).fit(standardised(features_ND, features_ND), labels_N)
    np.testing.assert_array_equal(probe.predict(test_BD), default.predict(standardised(test_BD, features_ND)))


def test_unequal_classes_and_a_class_of_one_image():
    features_ND, labels_N, test_BD, _ = clusters(5, counts=(1, 4, 30))
    probe = fit_logistic(features_ND, labels_N, num_classes=3)
    expected = judge(standardised(features_ND, features_ND), labels_N, probe.regularisation)
    np.testing.assert_array_equal(probe.predict(test_BD), expected.predict(standardised(test_BD, features_ND)))


def test_features_that_are_nearly_the_same_converge_at_a_small_penalty(digits, monkeypatch):
    """As those of networks are. A quasi-Newton method without a preconditioner takes several times these passes."""
    monkeypatch.setattr(logistic, "MAX_PASSES", 1000)
    mix_DD = np.random.default_rng(0).normal(size=(64, 64))
    shared_N = digits[0] @ mix_DD[0]
    features_ND = (0.03 * digits[0] @ mix_DD + shared_N[:, None]).astype(np.float64)[:300]
    labels_N, penalty = digits[1][:300], 1e-4
    found = fit_logistic(features_ND, labels_N, num_classes=10, penalties=(penalty,))
    x_ND = standardised(features_ND, features_ND)
    std_D = features_ND.std(axis=0)
    weights_DC = found.weights_DC * std_D[:, None]
    scores_NC = x_ND @ weights_DC + found.bias_C + features_ND.mean(axis=0) @ found.weights_DC
    probability_NC = np.exp(scores_NC - scores_NC.max(axis=1, keepdims=True))
    probability_NC /= probability_NC.sum(axis=1, keepdims=True)
    residuals_NC = probability_NC - np.eye(10)[labels_N]
    assert np.abs(x_ND.T @ residuals_NC / 300 + penalty * weights_DC).max() < 2 * logistic.GRADIENT


@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1.0])
def test_fewer_images_than_features(digits, penalty):
    """Then the principal axes are fewer than the features."""
    features_ND, labels_N = digits[0][:30], digits[1][:30]
    found = fit_logistic(features_ND, labels_N, num_classes=10, penalties=(penalty,))
    x_ND = standardised(features_ND, features_ND)
    expected = judge(x_ND, labels_N, penalty)
    best = objective(x_ND, labels_N, expected.coef_, expected.intercept_, penalty)
    assert found.loss == pytest.approx(best, abs=1e-7)
    np.testing.assert_array_equal(
        found.predict(digits[0][30:400]), expected.predict(standardised(digits[0][30:400], features_ND))
    )


# --- what must not matter ---------------------------------------------------------------------------------------------


def test_features_in_a_file_are_read_chunk_by_chunk(digits, tmp_path, monkeypatch):
    in_memory = fit_logistic(digits[0][:300], digits[1][:300], num_classes=10, penalties=(0.1, 0.01))
    stored_ND = np.memmap(tmp_path / "features", dtype=np.float32, mode="w+", shape=(300, 64))
    stored_ND[:] = digits[0][:300]
    monkeypatch.setattr(logistic, "CACHED_BYTES", 0)
    monkeypatch.setattr(logistic, "CHUNK_BYTES", 8 * 85 * 70)  # 70 images
    monkeypatch.setattr(logistic, "ROWS", 110)
    in_file = fit_logistic(stored_ND, digits[1][:300], num_classes=10, penalties=(0.1, 0.01))
    assert in_file.regularisation == in_memory.regularisation
    assert in_file.loss == pytest.approx(in_memory.loss, abs=1e-9)
    np.testing.assert_array_equal(in_file.predict(digits[0]), in_memory.predict(digits[0]))


@settings(max_examples=8)
@given(SEEDS)
def test_units_and_offsets_of_features_do_not_matter(seed):
    features_ND, labels_N, test_BD, _ = clusters(seed)
    rng = np.random.default_rng(seed)
    scale_D, offset_D = np.exp(rng.uniform(-9, 9, 8)), rng.normal(size=8)
    plain = fit_logistic(features_ND.astype(np.float64), labels_N, num_classes=3, penalties=(1.0, 0.1))
    other = fit_logistic((features_ND + offset_D) * scale_D, labels_N, num_classes=3, penalties=(1.0, 0.1))
    assert plain.regularisation == other.regularisation
    assert plain.loss == pytest.approx(other.loss, abs=1e-8)
    np.testing.assert_array_equal(plain.predict(test_BD), other.predict((test_BD + offset_D) * scale_D))


@pytest.mark.parametrize("batch_size", [1, 9, 300])
def test_test_order_and_batch_size_do_not_matter(digits, batch_size):
    """Also beside a ridge, stacked: all linear probes meet one product."""
    features_ND, labels_N = digits
    probe = fit_logistic(features_ND[:200], labels_N[:200], num_classes=10, penalties=(0.01,))
    ridge = fit_ridge(features_ND[:200], labels_N[:200], num_classes=10)
    order_B = 300 + np.random.default_rng(0).permutation(300)
    batches = [order_B[start : start + batch_size] for start in range(0, 300, batch_size)]
    found_PB = np.concatenate([stack([probe, ridge]).predict(features_ND[batch]) for batch in batches], axis=1)
    expected_PB = np.stack([p.predict(features_ND[300:600])[order_B - 300] for p in (probe, ridge)])
    np.testing.assert_array_equal(found_PB, expected_PB)


def test_constant_features_weigh_nothing():
    features_ND, labels_N, test_BD, _ = clusters(2)
    padded = fit_logistic(np.insert(features_ND, 3, 0.1, axis=1), labels_N, num_classes=3, penalties=(0.1,))
    plain = fit_logistic(features_ND, labels_N, num_classes=3, penalties=(0.1,))
    np.testing.assert_array_equal(padded.weights_DC[3], 0)
    varying_BD = np.insert(test_BD, 3, 1e30 * np.arange(len(test_BD)), axis=1)
    np.testing.assert_array_equal(padded.predict(varying_BD), plain.predict(test_BD))


# --- what has no number -----------------------------------------------------------------------------------------------


def test_a_fit_that_does_not_converge_is_a_reason(digits, monkeypatch):
    monkeypatch.setattr(logistic, "MAX_PASSES", 3)
    with pytest.raises(ProbeError, match=r"did not converge at penalty 0\.01"):
        fit_logistic(digits[0][:100], digits[1][:100], num_classes=10, penalties=(0.01,))


def test_nothing_but_constant_features_is_a_reason():
    features_ND, labels_N, _, _ = clusters(1)
    with pytest.raises(ProbeError, match="the features are the same for all 18 training images"):
        fit_logistic(np.full_like(features_ND, 0.1), labels_N, num_classes=3)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_features_that_are_not_finite_are_a_reason(value):
    features_ND, labels_N, _, _ = clusters(1)
    features_ND[[3, 5], 2] = value
    with pytest.raises(ProbeError, match="2 of 18 training images have features that are not finite"):
        fit_logistic(features_ND, labels_N, num_classes=3)


def test_a_class_without_images_is_a_reason():
    features_ND, labels_N, _, _ = clusters(1)
    with pytest.raises(ProbeError, match="1 of 4 classes have no training images"):
        fit_logistic(features_ND, labels_N, num_classes=4)


def test_a_class_that_is_held_out_whole_is_a_reason():
    features_ND, labels_N, _, _ = clusters(1)
    with pytest.raises(ProbeError, match="1 of 3 classes have no training image that is not held out"):
        fit_logistic(features_ND, labels_N, num_classes=3, held_out=np.flatnonzero(labels_N == 1))


# --- no test label reaches the penalty --------------------------------------------------------------------------------


def assert_no_test_label_leak(fit_and_predict):
    for seed in range(3):
        features_ND, labels_N, test_BD, test_labels_B = clusters(seed, dim=4)
        shuffled_B = np.random.default_rng(seed).permutation(test_labels_B)
        penalty, guesses_B = fit_and_predict(features_ND, labels_N, test_BD, test_labels_B)
        other, other_guesses_B = fit_and_predict(features_ND, labels_N, test_BD, shuffled_B)
        assert penalty == other
        np.testing.assert_array_equal(guesses_B, other_guesses_B)


def honest(features_ND, labels_N, test_BD, _):
    probe = fit_logistic(features_ND, labels_N, num_classes=3)
    return probe.regularisation, probe.predict(test_BD)


def leaking(features_ND, labels_N, test_BD, test_labels_B):
    """The penalty by test accuracy."""
    probes = [fit_logistic(features_ND, labels_N, num_classes=3, penalties=(penalty,)) for penalty in PENALTIES]
    best = max(probes, key=lambda probe: np.mean(probe.predict(test_BD) == test_labels_B))
    return best.regularisation, best.predict(test_BD)


def test_test_labels_choose_nothing():
    assert_no_test_label_leak(honest)


def test_a_planted_leak_is_caught():
    with pytest.raises(AssertionError):
        assert_no_test_label_leak(leaking)
