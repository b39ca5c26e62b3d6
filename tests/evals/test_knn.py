"""Shape suffixes: N training images, B test images, D features, C classes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from evals import knn
from evals.fewshot import ProbeError
from evals.knn import KS, TEMPERATURE, fit_knn

SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def digits():
    images = load_digits()
    return images.data.astype(np.float32), images.target.astype(np.int64)


def judge(k):
    return KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / TEMPERATURE)
    )


def clusters(seed, *, counts=(6, 6, 6), dim=8, num_test=40):
    rng = np.random.default_rng(seed)
    centres_CD = rng.normal(size=(len(counts), dim))
    labels_N = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    test_labels_B = rng.integers(0, len(counts), num_test)
    features_ND, test_BD = (
        (centres_CD[labels] + rng.normal(size=(len(labels), dim))).astype(np.float32)
        for labels in (labels_N, test_labels_B)
    )
    return features_ND, labels_N, test_BD, test_labels_B


@pytest.mark.parametrize("k", KS)
def test_agrees_with_scikit_learn_on_real_images(digits, k):
    features_ND, labels_N = digits
    probe = fit_knn(features_ND[:600], labels_N[:600], num_classes=10, ks=(k,))
    expected_B = judge(k).fit(features_ND[:600], labels_N[:600]).predict(features_ND[600:])
    np.testing.assert_array_equal(probe.predict(features_ND[600:]), expected_B)
    assert probe.regularisation == k
    assert np.mean(expected_B == labels_N[600:]) > 0.9


@settings(max_examples=40)
@given(SEEDS, st.lists(st.integers(2, 9), min_size=2, max_size=4), st.integers(2, 20), st.sampled_from([1, 2, 4]))
def test_agrees_with_scikit_learn_on_any_shape(seed, counts, dim, k):
    features_ND, labels_N, test_BD, _ = clusters(seed, counts=counts, dim=dim)
    expected_B = judge(k).fit(features_ND, labels_N).predict(test_BD)
    probe = fit_knn(features_ND, labels_N, num_classes=len(counts), ks=(k,))
    np.testing.assert_array_equal(probe.predict(test_BD), expected_B)


def test_k_has_the_highest_accuracy_with_each_image_left_out(digits):
    features_ND, labels_N = digits[0][:70], digits[1][:70]
    probe = fit_knn(features_ND, labels_N, num_classes=10)
    expected = [cross_val_score(judge(k), features_ND, labels_N, cv=LeaveOneOut()).mean() for k in KS]
    np.testing.assert_allclose(probe.loo_accuracy_K, expected)
    assert probe.k == KS[int(np.argmax(expected))]


def test_the_smallest_of_equally_good_k_is_chosen():
    # One image a class: whatever is left out cannot be guessed.
    features_ND, labels_N, _, _ = clusters(0, counts=(1, 1, 1, 1))
    probe = fit_knn(features_ND, labels_N, num_classes=4, ks=(3, 1, 20))
    np.testing.assert_array_equal(probe.loo_accuracy_K, [0, 0, 0])
    assert probe.k == 1
    np.testing.assert_array_equal(probe.predict(features_ND), labels_N)


def test_copies_of_an_image_do_not_count_as_itself():
    # More copies than neighbours are looked at, so that an image is not even among its own.
    features_ND = np.repeat(np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32), 30, axis=0)
    labels_N = np.repeat([0, 1], 30)
    probe = fit_knn(features_ND, labels_N, num_classes=2)
    np.testing.assert_array_equal(probe.loo_accuracy_K, np.ones(5))


def test_of_equal_similarities_the_earlier_image_is_nearer(monkeypatch):
    monkeypatch.setattr(knn, "CHUNK", 4)
    features_ND = np.tile(np.array([1.0, 2.0, 2.0], dtype=np.float32), (20, 1))
    features_ND[-1] = 0.0
    labels_N = np.r_[3, 1, 2, 0, np.arange(16) % 4]
    for k, expected in ((1, 3), (2, 1), (3, 1), (4, 0)):  # of equal votes, the first class wins
        assert fit_knn(features_ND, labels_N, num_classes=4, ks=(k,)).predict(features_ND[:1]).tolist() == [expected]


@pytest.mark.parametrize(("queries", "chunk"), [(1, 7), (5, 64), (256, 100)])
def test_chunks_do_not_matter(digits, monkeypatch, queries, chunk):
    features_ND, labels_N = digits
    whole = fit_knn(features_ND[:400], labels_N[:400], num_classes=10)
    expected_B = whole.predict(features_ND[400:700])
    monkeypatch.setattr(knn, "QUERIES", queries)
    monkeypatch.setattr(knn, "CHUNK", chunk)
    chunked = fit_knn(features_ND[:400], labels_N[:400], num_classes=10)
    np.testing.assert_array_equal(chunked.loo_accuracy_K, whole.loo_accuracy_K)
    np.testing.assert_array_equal(chunked.predict(features_ND[400:700]), expected_B)


@pytest.mark.parametrize("batch_size", [1, 9, 300])
def test_test_order_and_batch_size_do_not_matter(digits, batch_size):
    features_ND, labels_N = digits
    probe = fit_knn(features_ND[:400], labels_N[:400], num_classes=10)
    expected_B = probe.predict(features_ND[400:700])
    order_B = np.random.default_rng(0).permutation(300)
    batches = [order_B[start : start + batch_size] for start in range(0, 300, batch_size)]
    found_B = np.concatenate([probe.predict(features_ND[400:700][batch]) for batch in batches])
    np.testing.assert_array_equal(found_B, expected_B[order_B])


@settings(max_examples=30)
@given(SEEDS, st.floats(1e-20, 1e20))
def test_the_length_of_features_does_not_matter(seed, scale):
    features_ND, labels_N, test_BD, _ = clusters(seed)
    plain = fit_knn(features_ND, labels_N, num_classes=3)
    scaled = fit_knn(features_ND * np.float32(scale), labels_N, num_classes=3)
    assert plain.k == scaled.k
    np.testing.assert_array_equal(plain.predict(test_BD), scaled.predict(test_BD * np.float32(scale)))


def test_features_in_a_file_are_read_chunk_by_chunk(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(knn, "CHUNK", 50)
    stored_ND = np.memmap(tmp_path / "features", dtype=np.float32, mode="w+", shape=(400, 64))
    stored_ND[:] = digits[0][:400]
    in_file = fit_knn(stored_ND, digits[1][:400], num_classes=10)
    in_memory = fit_knn(digits[0][:400], digits[1][:400], num_classes=10)
    assert in_file.features_ND is stored_ND
    np.testing.assert_array_equal(in_file.predict(digits[0][400:500]), in_memory.predict(digits[0][400:500]))


def test_many_training_images_are_left_out_evenly(digits, monkeypatch):
    monkeypatch.setattr(knn, "MAX_QUERIES", 20)
    features_ND, labels_N = digits[0][:500], digits[1][:500]
    probe = fit_knn(features_ND, labels_N, num_classes=10, ks=(1, 5))
    queries = np.unique(np.linspace(0, 499, 20).astype(int))
    for k, accuracy in zip((1, 5), probe.loo_accuracy_K, strict=True):
        rest = [np.delete(np.arange(500), q) for q in queries]
        guesses = [
            judge(k).fit(features_ND[r], labels_N[r]).predict(features_ND[[q]])[0]
            for r, q in zip(rest, queries, strict=True)
        ]
        assert accuracy == np.mean(guesses == labels_N[queries])


def test_a_class_of_one_image_has_a_number_and_constant_features_have_none():
    features_ND, labels_N, test_BD, _ = clusters(1, counts=(1, 12, 30))
    assert set(fit_knn(features_ND, labels_N, num_classes=3).predict(test_BD)) <= {0, 1, 2}
    nothing_ND = np.zeros_like(features_ND)
    with pytest.raises(ProbeError, match="the features are the same for all 43 training images"):
        fit_knn(nothing_ND, labels_N, num_classes=3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_a_reason(value):
    features_ND, labels_N, _, _ = clusters(1)
    features_ND[3, 2] = value
    with pytest.raises(ProbeError, match="1 of 18 training images have features that are not finite"):
        fit_knn(features_ND, labels_N, num_classes=3)


def test_a_class_without_images_is_a_reason():
    features_ND, labels_N, _, _ = clusters(1)
    with pytest.raises(ProbeError, match="1 of 4 classes have no training images"):
        fit_knn(features_ND, labels_N, num_classes=4)


# --- no test label reaches k ------------------------------------------------------------------------------------------


def assert_no_test_label_leak(fit_and_predict):
    for seed in range(6):
        features_ND, labels_N, test_BD, test_labels_B = clusters(seed, counts=(7, 7, 7), dim=4)
        shuffled_B = np.random.default_rng(seed).permutation(test_labels_B)
        k, guesses_B = fit_and_predict(features_ND, labels_N, test_BD, test_labels_B)
        other_k, other_guesses_B = fit_and_predict(features_ND, labels_N, test_BD, shuffled_B)
        assert k == other_k
        np.testing.assert_array_equal(guesses_B, other_guesses_B)


def honest(features_ND, labels_N, test_BD, _):
    probe = fit_knn(features_ND, labels_N, num_classes=3)
    return probe.k, probe.predict(test_BD)


def leaking(features_ND, labels_N, test_BD, test_labels_B):
    """k by test accuracy."""
    probes = [fit_knn(features_ND, labels_N, num_classes=3, ks=(k,)) for k in KS]
    best = max(probes, key=lambda probe: np.mean(probe.predict(test_BD) == test_labels_B))
    return best.k, best.predict(test_BD)


def test_test_labels_choose_nothing():
    assert_no_test_label_leak(honest)


def test_a_planted_leak_is_caught():
    with pytest.raises(AssertionError):
        assert_no_test_label_leak(leaking)
