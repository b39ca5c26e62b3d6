"""Shape suffixes: N examples, D features, E = D + 1 with the bias feature, C classes, R values of lambda."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifierCV

from evals import leave_one_out
from evals.fewshot import (
    BIAS,
    FIXED_LAMBDA,
    LAMBDAS,
    PUBLISHED_STD_OFFSET,
    FewShotError,
    ProbeError,
    Ridge,
    draw_shots,
    first_shots,
    fit_ridge,
    stack,
)
from evals.leave_one_out import TIE, leave_one_out_errors
from models.errors import UserError
from tests.evals.probing import probe

SEEDS = st.integers(0, 2**32 - 1)


def clusters(seed, *, shots, dim, num_classes, num_test=60, spread=2.0):
    """Shots and test images of noisy classes: (shots_ND, labels_N, test_ND, test_labels_N)."""
    rng = np.random.default_rng(seed)
    centres_CD = rng.normal(size=(num_classes, dim))
    labels_N = np.repeat(np.arange(num_classes), shots)
    test_labels_N = rng.integers(0, num_classes, num_test)
    shots_ND = centres_CD[labels_N] + spread * rng.normal(size=(len(labels_N), dim))
    test_ND = centres_CD[test_labels_N] + spread * rng.normal(size=(num_test, dim))
    return shots_ND, labels_N, test_ND, test_labels_N


@pytest.fixture(scope="module")
def digits():
    """(features_ND, labels_N) of real images; many pixels never change."""
    images = load_digits()
    return images.data.astype(np.float32), images.target.astype(np.int64)


def digit_shots(digits, shots, draw=0):
    features_ND, labels_N = digits
    index_N = draw_shots("digits", labels_N[:1000], classes=[str(c) for c in range(10)], shots=shots, draw=draw)
    return features_ND[index_N], labels_N[index_N], features_ND[1000:], labels_N[1000:]


# --- an independent reference: one example left out at a time, one lambda at a time -----------------------------------


def naive_design(features_ND, shots_ND):
    columns = []
    for feature in range(shots_ND.shape[1]):
        column = shots_ND[:, feature].astype(np.float64)
        mean = sum(column) / len(column)
        std = (sum((value - mean) ** 2 for value in column) / len(column)) ** 0.5
        if all(value == column[0] for value in column):
            mean, std = column[0], 1.0
        columns.append((features_ND[:, feature].astype(np.float64) - mean) / std)
    return np.stack([*columns, np.full(len(features_ND), 100.0)], axis=1)


def naive_weights(x_NE, y_NC, regularisation):
    return np.linalg.solve(x_NE.T @ x_NE + regularisation * np.eye(x_NE.shape[1]), x_NE.T @ y_NC)


def naive_loo_error(x_NE, y_NC, regularisation):
    errors = []
    for i in range(len(x_NE)):
        rest = [j for j in range(len(x_NE)) if j != i]
        errors.append((y_NC[i] - x_NE[i] @ naive_weights(x_NE[rest], y_NC[rest], regularisation)) ** 2)
    return np.mean(errors)


def naive_targets(labels_N, num_classes):
    return np.array([[1.0 if label == c else -1.0 for c in range(num_classes)] for label in labels_N])


@pytest.mark.parametrize(
    ("shots", "dim", "num_classes"),
    [(1, 6, 4), (2, 40, 3), (3, 8, 3), (3, 11, 4), (3, 12, 4), (8, 5, 3), (12, 1, 2), (5, 20, 5)],
)
def test_agrees_with_refitting_without_each_example(shots, dim, num_classes):
    shots_ND, labels_N, test_ND, _ = clusters(7, shots=shots, dim=dim, num_classes=num_classes)
    x_NE, y_NC = naive_design(shots_ND, shots_ND), naive_targets(labels_N, num_classes)
    expected_R = [naive_loo_error(x_NE, y_NC, regularisation) for regularisation in LAMBDAS]

    ridge = fit_ridge(shots_ND, labels_N, num_classes=num_classes)

    errors_R = leave_one_out_errors(x_NE, labels_N, num_classes, np.array(LAMBDAS))
    np.testing.assert_allclose(errors_R, expected_R, rtol=1e-6)
    assert ridge.regularisation == LAMBDAS[int(np.argmin(expected_R))]
    for regularisation in LAMBDAS:
        fixed = fit_ridge(shots_ND, labels_N, num_classes=num_classes, lambdas=(regularisation,))
        weights_EC = naive_weights(x_NE, y_NC, regularisation)
        np.testing.assert_allclose(fixed.weights_EC, weights_EC, rtol=1e-6, atol=1e-6 * np.abs(weights_EC).max())
        predictions_N = np.argmax(naive_design(test_ND, shots_ND) @ weights_EC, axis=1)
        np.testing.assert_array_equal(fixed.predict(test_ND), predictions_N)


@pytest.mark.parametrize("shots", [2, 5, 10, 25])
@pytest.mark.parametrize("draw", [0, 1])
def test_agrees_with_scikit_learn_on_real_images(digits, shots, draw):
    shots_ND, labels_N, test_ND, test_labels_N = digit_shots(digits, shots, draw)
    judge = RidgeClassifierCV(alphas=LAMBDAS, fit_intercept=False).fit(naive_design(shots_ND, shots_ND), labels_N)

    result = probe(shots_ND, labels_N, test_ND, test_labels_N, num_classes=10)

    assert result.regularisation == judge.alpha_
    expected_N = judge.predict(naive_design(test_ND, shots_ND))
    np.testing.assert_array_equal(result.predictions_N, expected_N)
    assert result.accuracy == np.mean(expected_N == test_labels_N) > 0.5


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(2, 6), st.integers(2, 25), st.integers(2, 5))
def test_agrees_with_scikit_learn_on_any_shape(seed, shots, dim, num_classes):
    shots_ND, labels_N, test_ND, _ = clusters(seed, shots=shots, dim=dim, num_classes=num_classes)
    judge = RidgeClassifierCV(alphas=LAMBDAS, fit_intercept=False).fit(naive_design(shots_ND, shots_ND), labels_N)
    ridge = fit_ridge(shots_ND, labels_N, num_classes=num_classes)
    assert ridge.regularisation == judge.alpha_
    np.testing.assert_array_equal(ridge.predict(test_ND), judge.predict(naive_design(test_ND, shots_ND)))


@pytest.mark.parametrize("shots", [1, 5, 25])
def test_the_fixed_lambda_is_the_published_probe(digits, shots):
    # big_vision adds 1e-5 to every standard deviation; constant pixels then weigh nothing either.
    shots_ND, labels_N, test_ND, test_labels_N = digit_shots(digits, shots)
    mean_D, std_D = shots_ND.mean(axis=0, dtype=np.float64), shots_ND.std(axis=0, dtype=np.float64) + 1e-5
    x_NE, test_NE = (np.pad((f - mean_D) / std_D, ((0, 0), (0, 1)), constant_values=100.0) for f in (shots_ND, test_ND))
    expected_N = np.argmax(test_NE @ naive_weights(x_NE, naive_targets(labels_N, 10), 1024.0), axis=1)

    result = probe(shots_ND, labels_N, test_ND, test_labels_N, num_classes=10, lambdas=(FIXED_LAMBDA,))

    assert result.regularisation == 1024.0
    np.testing.assert_array_equal(result.predictions_N, expected_N)


# --- the choice of lambda, where not every error is worked out --------------------------------------------------------


def reference_lambda(features_ND, labels_N, num_classes, lambdas=LAMBDAS):
    """The first of the smallest leave-one-out errors, all in float64 from a singular value decomposition."""
    x_NE, y_NC = naive_design(features_ND, features_ND), naive_targets(labels_N, num_classes)
    u_NK, s_K, _ = np.linalg.svd(x_NE, full_matrices=False)
    errors = []
    for regularisation in lambdas:
        shrink_K = s_K**2 / (s_K**2 + regularisation)
        residuals_NC = y_NC - u_NK @ (shrink_K[:, None] * (u_NK.T @ y_NC))
        errors.append(np.mean((residuals_NC / (1 - (u_NK**2 @ shrink_K))[:, None]) ** 2))
    return next(lam for lam, error in zip(lambdas, errors, strict=True) if error <= min(errors) * (1 + TIE))


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(2, 12), st.integers(2, 60), st.integers(2, 6), st.sampled_from([1e-6, 0.03, 0.3, 1, 3, 30]))
def test_the_choice_is_that_of_every_error_in_float64(seed, shots, dim, num_classes, spread):
    shots_ND, labels_N, _, _ = clusters(seed, shots=shots, dim=dim, num_classes=num_classes, spread=spread)
    decay_D = np.arange(1, dim + 1) ** -np.random.default_rng(seed).uniform(0, 6)
    mixed_ND = (shots_ND * decay_D) @ np.random.default_rng(seed).normal(size=(dim, dim))
    for features_ND in (shots_ND, mixed_ND):
        chosen = fit_ridge(features_ND, labels_N, num_classes=num_classes).regularisation
        if len(labels_N) > dim + 1 or spread >= 0.03:  # else both round the residuals of interpolation
            assert chosen == reference_lambda(features_ND, labels_N, num_classes)


@pytest.mark.parametrize("dim", [20, 64, 200])
def test_near_equal_errors_are_told_apart_in_float64(dim, monkeypatch):
    shots_ND, labels_N, _, _ = clusters(11, shots=20, dim=dim, num_classes=5, spread=4.0)
    near = reference_lambda(shots_ND, labels_N, 5)
    # So close to each other that float32 sees one error, yet farther apart than a tie.
    lambdas = tuple(near * (1 + 1e-5 * k) for k in range(6))
    exact = []
    in_float64 = leave_one_out._exact_errors
    monkeypatch.setattr(leave_one_out, "_exact_errors", lambda d, r: exact.append(len(r)) or in_float64(d, r))

    assert fit_ridge(shots_ND, labels_N, num_classes=5, lambdas=lambdas).regularisation == reference_lambda(
        shots_ND, labels_N, 5, lambdas
    )
    assert bool(exact) == (dim < 100)  # in the dual, nothing was float32


@pytest.mark.parametrize("dim", [9, 70])
def test_the_first_of_equal_lambdas_is_chosen(dim):
    shots_ND, labels_N, _, _ = clusters(2, shots=10, dim=dim, num_classes=4)
    best = fit_ridge(shots_ND, labels_N, num_classes=4).regularisation
    lambdas = (best / 64, best, best * (1 + 1e-14), best * (1 + 2e-14), best * 64)
    assert fit_ridge(shots_ND, labels_N, num_classes=4, lambdas=lambdas).regularisation == best


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_more_examples_than_features_that_all_but_interpolate(offset):
    # Duplicates of every example, almost: leverages near one half, residuals near nothing.
    shots_ND, labels_N, _, _ = clusters(4, shots=6, dim=40, num_classes=4, spread=0.01)
    twice_ND = np.repeat(shots_ND, 2, axis=0) + 1e-7 * np.random.default_rng(0).normal(size=(48, 40)) + offset
    ridge = fit_ridge(twice_ND, np.repeat(labels_N, 2), num_classes=4)
    assert ridge.regularisation == reference_lambda(twice_ND, np.repeat(labels_N, 2), 4)


def test_a_single_lambda_gives_the_weights_of_the_path(digits):
    for shots in (3, 20):
        shots_ND, labels_N, _, _ = digit_shots(digits, shots)
        chosen = fit_ridge(shots_ND, labels_N, num_classes=10)
        fixed = fit_ridge(shots_ND, labels_N, num_classes=10, lambdas=(chosen.regularisation,))
        np.testing.assert_allclose(fixed.weights_EC, chosen.weights_EC, rtol=1e-8, atol=1e-10)


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.integers(2, 30))
def test_unequal_classes_and_a_class_of_one_image(seed, dim):
    rng = np.random.default_rng(seed)
    labels_N = np.repeat(np.arange(4), [1, 3, 20, 9])
    features_ND = rng.normal(size=(4, dim))[labels_N] + rng.normal(size=(33, dim))
    judge = RidgeClassifierCV(alphas=LAMBDAS, fit_intercept=False).fit(naive_design(features_ND, features_ND), labels_N)
    assert fit_ridge(features_ND, labels_N, num_classes=4).regularisation == judge.alpha_


# --- the published probes ---------------------------------------------------------------------------------------------


def published_predictions(shots_ND, labels_N, test_ND, num_classes, regularisation):
    """arXiv 2110.02095's probe as a sentence: (X'X + lambda I) W = X'Y with std + 1e-5 and a bias feature of 100."""
    mean_D, std_D = np.mean(shots_ND, axis=0, dtype=np.float64), np.std(shots_ND, axis=0, dtype=np.float64) + 1e-5
    x_NE = np.column_stack([(shots_ND - mean_D) / std_D, np.full(len(shots_ND), 100.0)])
    test_NE = np.column_stack([(test_ND - mean_D) / std_D, np.full(len(test_ND), 100.0)])
    augmented_NE = np.vstack([x_NE, np.sqrt(regularisation) * np.eye(x_NE.shape[1])])
    targets_NC = np.vstack([2.0 * np.eye(num_classes)[labels_N] - 1.0, np.zeros((x_NE.shape[1], num_classes))])
    return np.argmax(test_NE @ np.linalg.lstsq(augmented_NE, targets_NC, rcond=None)[0], axis=1)


@pytest.mark.parametrize("shots", [1, 5, 25])
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_big_vision_is_its_published_formula(digits, shots, scale):
    shots_ND, labels_N, test_ND, _ = digit_shots(digits, shots)
    shots_ND, test_ND = shots_ND * np.float32(scale), test_ND * np.float32(scale)
    # Pixels that never change among the shots are left out: there the published formula divides rounding by 1e-5.
    varies_D = np.ptp(shots_ND, axis=0) > 0
    shots_ND, test_ND = shots_ND[:, varies_D], test_ND[:, varies_D]
    ridge = fit_ridge(shots_ND, labels_N, num_classes=10, lambdas=(FIXED_LAMBDA,), std_offset=PUBLISHED_STD_OFFSET)
    expected_N = published_predictions(shots_ND, labels_N, test_ND, 10, 1024.0)
    np.testing.assert_array_equal(ridge.predict(test_ND), expected_N)
    assert ridge.regularisation == 1024.0


def test_the_offset_of_the_standard_deviation_matters_for_small_features(digits):
    shots_ND, labels_N, test_ND, _ = digit_shots(digits, 5)
    small = [f * np.float32(1e-6) for f in (shots_ND, test_ND)]
    plain = fit_ridge(small[0], labels_N, num_classes=10, lambdas=(FIXED_LAMBDA,))
    offset = fit_ridge(small[0], labels_N, num_classes=10, lambdas=(FIXED_LAMBDA,), std_offset=1e-5)
    assert (plain.predict(small[1]) != offset.predict(small[1])).any()


def test_the_first_shots_are_the_first_of_each_class_in_order():
    labels_N = np.array([2, 0, 1, 1, 0, 2, 0, 1])
    assert first_shots("t", labels_N, classes=CLASSES, shots=2).tolist() == [1, 4, 2, 3, 0, 5]
    with pytest.raises(FewShotError, match="class 'cat' has 2 training images, 3 shots need 3"):
        first_shots("t", labels_N, classes=CLASSES, shots=3)


# --- many probes on one batch -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.integers(1, 30), st.integers(2, 5), st.integers(1, 4))
def test_stacked_probes_predict_as_each_does(seed, dim, num_classes, num_probes):
    ridges = []
    for p in range(num_probes):
        shots_ND, labels_N, test_ND, _ = clusters(seed + p, shots=3, dim=dim, num_classes=num_classes)
        ridges.append(fit_ridge(shots_ND + 10, labels_N, num_classes=num_classes))
    test_ND = (test_ND + 10).astype(np.float32)
    together_PN = stack(ridges).predict(test_ND)
    assert together_PN.dtype == np.int64
    np.testing.assert_array_equal(together_PN, [ridge.predict(test_ND) for ridge in ridges])


@pytest.mark.parametrize("batch_size", [1, 7, 500])
def test_test_order_and_batch_size_do_not_matter(digits, batch_size):
    ridges = []
    for shots in (1, 5, 10):
        shots_ND, labels_N, test_ND, _ = digit_shots(digits, shots)
        ridges.append(fit_ridge(shots_ND, labels_N, num_classes=10))
    expected_PN = np.stack([ridge.predict(test_ND) for ridge in ridges])
    order_N = np.random.default_rng(0).permutation(len(test_ND))
    batches = [order_N[start : start + batch_size] for start in range(0, len(order_N), batch_size)]
    found_PN = np.concatenate([stack(ridges).predict(test_ND[batch]) for batch in batches], axis=1)
    np.testing.assert_array_equal(found_PN, expected_PN[:, order_N])


def test_stacked_probes_keep_the_first_of_equal_scores():
    ones_ND, zeros_D = np.ones((8, 3)), np.zeros(3)
    ridge = Ridge(mean_D=zeros_D, inverse_std_D=zeros_D + 1, weights_EC=np.zeros((4, 4)), regularisation=1.0)
    np.testing.assert_array_equal(stack([ridge, ridge]).predict(ones_ND), np.zeros((2, 8)))


def test_float32_features_are_worked_in_float64():
    shots_ND, labels_N, _, _ = clusters(3, shots=4, dim=30, num_classes=3)
    offset_ND = (shots_ND + 1000).astype(np.float32)
    exact = fit_ridge(offset_ND.astype(np.float64), labels_N, num_classes=3)
    np.testing.assert_allclose(fit_ridge(offset_ND, labels_N, num_classes=3).weights_EC, exact.weights_EC, rtol=1e-12)


def test_accuracy_and_mean_class_accuracy():
    shots_ND, labels_N, _, _ = clusters(0, shots=5, dim=8, num_classes=3, spread=0.01)
    # Three test images of class 0, all right; one of class 1, wrong; none of class 2.
    result = probe(shots_ND, labels_N, shots_ND[[0, 1, 2, 10]], np.array([0, 0, 0, 1]), num_classes=3)
    assert result.accuracy == 0.75
    assert result.class_accuracy == 0.5
    assert result.reason is None


# --- what must not matter ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(2, 8), st.integers(2, 20), st.integers(2, 4))
def test_units_and_offsets_of_features_do_not_matter(seed, shots, dim, num_classes):
    shots_ND, labels_N, test_ND, _ = clusters(seed, shots=shots, dim=dim, num_classes=num_classes)
    rng = np.random.default_rng(seed)
    scale_D, offset_D = np.exp(rng.uniform(-9, 9, dim)) * rng.choice([-1, 1], dim), rng.normal(size=dim)
    plain = fit_ridge(shots_ND, labels_N, num_classes=num_classes)
    scaled = fit_ridge((shots_ND + offset_D) * scale_D, labels_N, num_classes=num_classes)
    assert plain.regularisation == scaled.regularisation
    np.testing.assert_array_equal(plain.predict(test_ND), scaled.predict((test_ND + offset_D) * scale_D))


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(2, 8), st.integers(2, 20), st.integers(2, 4))
def test_orders_do_not_matter(seed, shots, dim, num_classes):
    shots_ND, labels_N, test_ND, _ = clusters(seed, shots=shots, dim=dim, num_classes=num_classes)
    rng = np.random.default_rng(seed)
    examples, features, names = (rng.permutation(count) for count in (len(labels_N), dim, num_classes))
    plain = fit_ridge(shots_ND, labels_N, num_classes=num_classes)
    mixed = fit_ridge(shots_ND[examples][:, features], names[labels_N[examples]], num_classes=num_classes)
    assert plain.regularisation == mixed.regularisation
    np.testing.assert_array_equal(names[plain.predict(test_ND)], mixed.predict(test_ND[:, features]))


@pytest.mark.parametrize(
    "constant",
    [
        pytest.param(0.0, id="dead"),
        pytest.param(np.float32(0.1), id="no exact mean"),
        pytest.param(3e30, id="huge"),
        pytest.param(1e-42, id="subnormal"),
    ],
)
def test_constant_features_weigh_nothing(constant):
    shots_ND, labels_N, test_ND, _ = clusters(5, shots=7, dim=9, num_classes=3)
    plain = fit_ridge(shots_ND, labels_N, num_classes=3)
    padded = fit_ridge(np.insert(shots_ND, 4, constant, axis=1), labels_N, num_classes=3)
    assert padded.regularisation == plain.regularisation
    np.testing.assert_allclose(padded.weights_EC[4], 0, atol=1e-12)
    # It may well vary among the test images.
    padded_test_ND = np.insert(test_ND, 4, 1e30 * np.arange(len(test_ND)), axis=1)
    np.testing.assert_array_equal(padded.predict(padded_test_ND), plain.predict(test_ND))


def test_float32_rounding_is_not_a_feature():
    shots_ND, labels_N, _, _ = clusters(5, shots=7, dim=9, num_classes=3)
    noise_N = np.nextafter(np.float32(7), np.where(labels_N == 1, np.float32(8), np.float32(6)))
    ridge = fit_ridge(np.insert(shots_ND, 0, noise_N, axis=1), labels_N, num_classes=3)
    np.testing.assert_allclose(ridge.weights_EC[0], 0, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 1.0, -1e30])
def test_nothing_but_constant_features_is_a_reason(value):
    same_ND, labels_N = np.full((20, 3), value, dtype=np.float32), np.repeat(np.arange(4), 5)
    same_ND[::2] *= np.float32(1 + 1e-7)
    with pytest.raises(ProbeError, match="the features are the same for all 20 shots"):
        fit_ridge(same_ND, labels_N, num_classes=4)
    same_ND[7, 1] = value + max(1e-5, abs(value) * 1e-5)
    assert fit_ridge(same_ND, labels_N, num_classes=4).weights_EC[1].any()


def test_of_equal_lambdas_the_smallest_is_taken():
    """Each class has the same two images, so that no feature tells anything."""
    features_ND, labels_N = np.tile([[1.0], [2.0]], (4, 3)), np.repeat(np.arange(4), 2)
    assert fit_ridge(features_ND, labels_N, num_classes=4, lambdas=(1e15, 1e15 * (1 + 1e-12))).regularisation == 1e15


def assert_no_test_label_leak(judge):
    """Fails when what `judge` chooses or predicts depends on test labels."""
    for seed in range(5):
        shots_ND, labels_N, test_ND, test_labels_N = clusters(seed, shots=3, dim=12, num_classes=4)
        honest = judge(shots_ND, labels_N, test_ND, test_labels_N)
        shuffled_N = np.random.default_rng(seed).permutation(test_labels_N)
        shuffled = judge(shots_ND, labels_N, test_ND, shuffled_N)
        assert honest.regularisation == shuffled.regularisation
        np.testing.assert_array_equal(honest.predictions_N, shuffled.predictions_N)
        assert honest.accuracy != shuffled.accuracy  # the labels are used for this


def leaking_judge(shots_ND, labels_N, test_ND, test_labels_N):
    """Lambda by test accuracy, as in the scenic code."""
    tried = [
        probe(shots_ND, labels_N, test_ND, test_labels_N, num_classes=4, lambdas=(regularisation,))
        for regularisation in LAMBDAS
    ]
    return max(tried, key=lambda result: result.accuracy)


def test_test_labels_are_used_for_accuracy_only():
    assert_no_test_label_leak(lambda *data: probe(*data, num_classes=4))


def test_a_planted_test_label_leak_is_caught():
    with pytest.raises(AssertionError):
        assert_no_test_label_leak(leaking_judge)


# --- what has no number -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("where", "says"), [("shots", "1 of 12 shots"), ("test", "1 of 60 test images")])
def test_features_that_are_not_finite_give_a_reason_and_no_number(value, where, says):
    shots_ND, labels_N, test_ND, test_labels_N = clusters(1, shots=3, dim=5, num_classes=4)
    (shots_ND if where == "shots" else test_ND)[2, [0, 3]] = value
    result = probe(shots_ND, labels_N, test_ND, test_labels_N, num_classes=4)
    assert result.reason == f"{says} have features that are not finite"
    assert (result.accuracy, result.class_accuracy, result.regularisation, result.predictions_N) == (None,) * 4


def test_a_class_without_shots_gives_a_reason_and_no_number():
    shots_ND, labels_N, test_ND, test_labels_N = clusters(6, shots=6, dim=5, num_classes=4)
    kept_N = labels_N != 2
    with pytest.raises(ProbeError, match=r"1 of 4 classes have no shots \(the first is number 2\)"):
        fit_ridge(shots_ND[kept_N], labels_N[kept_N], num_classes=4)
    result = probe(shots_ND[kept_N], labels_N[kept_N], test_ND, test_labels_N, num_classes=4)
    assert (result.accuracy, result.predictions_N) == (None, None)
    assert "1 of 4 classes have no shots" in result.reason


def test_no_test_images_give_a_reason_and_no_number():
    shots_ND, labels_N, test_ND, test_labels_N = clusters(1, shots=3, dim=5, num_classes=4, num_test=0)
    result = probe(shots_ND, labels_N, test_ND, test_labels_N, num_classes=4)
    assert result.accuracy is None
    assert result.reason == "the task has no test images"


# --- draws ------------------------------------------------------------------------------------------------------------

CLASSES = ("ant", "bee", "cat")
POOL_N = np.array([0, 1, 2, 0, 1, 2, 0, 0, 1, 2, 2, 2, 1, 0])


def test_draws_are_those_of_stored_results():
    # A change here makes new evaluations incomparable with every stored one: raise evals.protocol.REVISION with it.
    assert draw_shots("mnist", POOL_N, classes=CLASSES, shots=2, draw=0).tolist() == [0, 3, 8, 4, 10, 9]
    assert draw_shots("mnist", POOL_N, classes=CLASSES, shots=2, draw=1).tolist() == [7, 0, 8, 4, 11, 10]
    assert draw_shots("textures", POOL_N, classes=CLASSES, shots=2, draw=0).tolist() == [13, 6, 8, 1, 2, 5]


@given(st.text(max_size=5), st.integers(0, 9), SEEDS, st.integers(1, 5), st.integers(1, 5))
def test_draws_hold_every_class_alike_and_are_nested(task, draw, seed, fewer, more):
    labels_N = np.random.default_rng(seed).permutation(np.repeat(np.arange(3), [5, 9, 30]))
    fewer, more = sorted((fewer, more))
    small, large = (draw_shots(task, labels_N, classes=CLASSES, shots=shots, draw=draw) for shots in (fewer, more))
    np.testing.assert_array_equal(np.bincount(labels_N[large]), [more] * 3)
    assert len(set(large.tolist())) == 3 * more
    assert set(small.tolist()) <= set(large.tolist())


def test_every_image_is_drawn_about_equally_often():
    drawn = np.concatenate([draw_shots("t", POOL_N, classes=CLASSES, shots=1, draw=d) for d in range(2000)])
    expected_N = 2000 / np.bincount(POOL_N)[POOL_N]
    # 5 standard deviations of a binomial
    np.testing.assert_array_less(np.abs(np.bincount(drawn, minlength=14) - expected_N), 5 * np.sqrt(expected_N))


def test_a_class_with_too_few_images_is_an_error_that_names_it():
    with pytest.raises(FewShotError, match=r"task 'pets': class 'bee' has 4 training images, 5 shots need 5") as caught:
        draw_shots("pets", POOL_N, classes=CLASSES, shots=5, draw=0)
    assert isinstance(caught.value, UserError)
    assert "at most 4 shots" in str(caught.value)


def test_a_class_without_images_is_an_error_that_names_it():
    with pytest.raises(FewShotError, match=r"task 'pets': class 'dog' has 0 training images"):
        draw_shots("pets", POOL_N, classes=(*CLASSES, "dog"), shots=1, draw=0)


def test_several_short_classes_are_counted():
    with pytest.raises(FewShotError, match=r"class 'bee' has 4 training images \(and 2 more classes have too few\)"):
        draw_shots("pets", POOL_N, classes=CLASSES, shots=9, draw=0)


def test_a_class_with_one_image_can_be_drawn_once():
    labels_N = np.array([0, 0, 1, 2, 2])
    assert 2 in draw_shots("t", labels_N, classes=CLASSES, shots=1, draw=0)
    with pytest.raises(FewShotError, match="class 'bee' has 1 training image"):
        draw_shots("t", labels_N, classes=CLASSES, shots=2, draw=0)


def test_one_shot_has_a_number():
    shots_ND, labels_N, test_ND, test_labels_N = clusters(2, shots=1, dim=16, num_classes=5, spread=0.1)
    result = probe(shots_ND, labels_N, test_ND, test_labels_N, num_classes=5)
    assert result.accuracy > 0.9
    assert result.regularisation in LAMBDAS


def test_the_bias_is_the_published_one():
    assert BIAS == 100.0
