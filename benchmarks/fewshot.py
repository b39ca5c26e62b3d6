"""One ridge probe with lambda by leave-one-out, beside scikit-learn and beside one eigendecomposition of D x D.

    python -m benchmarks.fewshot [--threads 1] [--runs 5]

100 classes, 768 float32 features, 1, 5, 10 and 25 shots, 30 values of lambda: one (layer, shots, draw) of each shot
count a run, all rivals in turn on the same features, and medians over the runs. A study has 12 layers x 5 draws of
each; "all" is the sum over the shot counts. The rivals standardise and add the bias feature as we do.

- `RidgeClassifierCV`: scikit-learn, the same 30 lambdas, the same design; its lambda has to be ours.
- `D x D`: X'X, its eigendecomposition, one lambda, in float64 numpy; it chooses no lambda. `30 solves` adds the weights
  for each of the 30 lambdas, as big_vision works them out one by one; it does not choose either.
- `min(N, D)`: `D x D` on the smaller of X'X and X X', as big_vision's code does it.

`fixed` is ours with one lambda given, the like of `D x D`: it needs no decomposition.

What each part of ours saves is shown by leaving it out: `no bounds` works out all 30 errors, `no float32` does all
products in float64.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

NUM_CLASSES, NUM_FEATURES, SHOTS = 100, 768, (1, 5, 10, 25)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != str(options.threads):  # numpy reads it when it is loaded
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.fewshot", *sys.argv[1:]])
    run(options.runs, options.threads)


def run(runs: int, threads: int) -> None:
    cases = {shots: features(shots) for shots in SHOTS}
    for case in cases.values():
        warm_up_and_compare(*case)
    taken = [{name: [timed(call, *cases[s]) for s in SHOTS] for name, call in CALLS.items()} for _ in range(runs)]
    print(f"milliseconds for one probe, medians of {runs}, {threads} thread(s); in brackets: as a multiple of ours")
    print(f"{'':18}" + "".join(f"{f'{shots} shots':>18}" for shots in SHOTS) + f"{'all':>18}")
    for name in CALLS:
        cells = [cell([r[name][i] for r in taken], [r["ours"][i] for r in taken]) for i in range(len(SHOTS))]
        print(f"{name:18}" + "".join(cells) + cell([sum(r[name]) for r in taken], [sum(r["ours"]) for r in taken]))


def cell(theirs: list[float], ours: list[float]) -> str:
    ratio = statistics.median(a / b for a, b in zip(theirs, ours, strict=True))
    return f"{f'{1000 * statistics.median(theirs):.1f} ({ratio:.2f})':>18}"


def features(shots: int) -> tuple[Any, Any]:
    """Noisy classes whose features are correlated, with variances that fall off as those of real networks do."""
    import numpy as np

    rng = np.random.default_rng(shots)
    labels_N = np.repeat(np.arange(NUM_CLASSES), shots)
    directions_DD = np.linalg.qr(rng.normal(size=(NUM_FEATURES, NUM_FEATURES)))[0]
    centres_CD = 0.5 * np.random.default_rng(0).normal(size=(NUM_CLASSES, NUM_FEATURES))
    latent_ND = centres_CD[labels_N] + rng.normal(size=(len(labels_N), NUM_FEATURES))
    scale_D = np.arange(1, NUM_FEATURES + 1) ** -0.5
    return ((latent_ND * scale_D) @ directions_DD).astype(np.float32), labels_N


def timed(call: Callable[..., object], features_ND: Any, labels_N: Any) -> float:
    began = time.perf_counter()
    call(features_ND, labels_N)
    return time.perf_counter() - began


def warm_up_and_compare(features_ND: Any, labels_N: Any) -> None:
    """Every variant chooses the lambda of scikit-learn and predicts the same of other images."""
    import numpy as np

    judge, test_ND = scikit_learn(features_ND, labels_N), features(7)[0]
    test_NE = design(test_ND, features_ND)
    for variant in (ours, no_bounds, no_float32):
        ridge = variant(features_ND, labels_N)
        assert ridge.regularisation == judge.alpha_, f"lambda {ridge.regularisation}, not {judge.alpha_}"
        np.testing.assert_array_equal(ridge.predict(test_ND), judge.predict(test_NE))
    test_scores = [test_NE @ rival(features_ND, labels_N) for rival in (large_gram, small_gram)]
    for scores_BC in test_scores:
        np.testing.assert_array_equal(fixed(features_ND, labels_N).predict(test_ND), scores_BC.argmax(axis=1))


def ours(features_ND: Any, labels_N: Any) -> Any:
    from evals.fewshot import fit_ridge

    return fit_ridge(features_ND, labels_N, num_classes=NUM_CLASSES)


def fixed(features_ND: Any, labels_N: Any) -> Any:
    from evals.fewshot import FIXED_LAMBDA, fit_ridge

    return fit_ridge(features_ND, labels_N, num_classes=NUM_CLASSES, lambdas=(FIXED_LAMBDA,))


def no_bounds(features_ND: Any, labels_N: Any) -> Any:
    """Every error is worked out, as float32 has it; those that are then close in float64."""
    from evals import leave_one_out

    with mock.patch.object(leave_one_out._Bounds, "below", lambda self, *_: 0 * self.sums_R):
        return ours(features_ND, labels_N)


def no_float32(features_ND: Any, labels_N: Any) -> Any:
    from evals import leave_one_out

    with mock.patch.object(leave_one_out, "_in_float32", leave_one_out._in_float64):
        return ours(features_ND, labels_N)


def design(features_ND: Any, shots_ND: Any) -> Any:
    import numpy as np

    shots_ND = shots_ND.astype(np.float64)
    z_ND = (features_ND - shots_ND.mean(axis=0)) / shots_ND.std(axis=0)
    return np.pad(z_ND, ((0, 0), (0, 1)), constant_values=100.0)


def targets(labels_N: Any) -> Any:
    import numpy as np

    return 2.0 * np.eye(NUM_CLASSES)[labels_N] - 1.0


def scikit_learn(features_ND: Any, labels_N: Any) -> Any:
    from sklearn.linear_model import RidgeClassifierCV

    from evals.fewshot import LAMBDAS

    return RidgeClassifierCV(alphas=LAMBDAS, fit_intercept=False).fit(design(features_ND, features_ND), labels_N)


def large_gram(features_ND: Any, labels_N: Any) -> Any:
    import numpy as np

    x_NE, y_NC = design(features_ND, features_ND), targets(labels_N)
    eigenvalues_E, v_EE = np.linalg.eigh(x_NE.T @ x_NE)
    return v_EE @ ((v_EE.T @ (x_NE.T @ y_NC)) / (eigenvalues_E + 1024.0)[:, None])


def thirty_solves(features_ND: Any, labels_N: Any) -> Any:
    """The weights of every lambda, the last of which come back."""
    import numpy as np

    from evals.fewshot import LAMBDAS

    x_NE, y_NC = design(features_ND, features_ND), targets(labels_N)
    eigenvalues_E, v_EE = np.linalg.eigh(x_NE.T @ x_NE)
    projected_EC = v_EE.T @ (x_NE.T @ y_NC)
    weights_EC = projected_EC
    for regularisation in LAMBDAS:
        weights_EC = (v_EE / (eigenvalues_E + regularisation)) @ projected_EC
    return weights_EC


def small_gram(features_ND: Any, labels_N: Any) -> Any:
    import numpy as np

    x_NE, y_NC = design(features_ND, features_ND), targets(labels_N)
    if len(x_NE) >= x_NE.shape[1]:
        return large_gram(features_ND, labels_N)
    eigenvalues_N, u_NN = np.linalg.eigh(x_NE @ x_NE.T)
    return (x_NE.T @ u_NN) @ ((u_NN.T @ y_NC) / (eigenvalues_N + 1024.0)[:, None])


CALLS: dict[str, Callable[..., object]] = {
    "ours": ours,
    "fixed": fixed,
    "no bounds": no_bounds,
    "no float32": no_float32,
    "D x D": large_gram,
    "D x D, 30 solves": thirty_solves,
    "min(N, D)": small_gram,
    "RidgeClassifierCV": scikit_learn,
}

if __name__ == "__main__":
    main()
