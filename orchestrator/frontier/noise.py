"""Evaluation noise: what the sizes of the test sets say about measured accuracies. Pure numpy.

Shape suffixes: N points, D draws, M points of a draw.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.frontier.law import fit_law

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class NumTest:
    """Numbers of test images (N each) behind the accuracies of every point."""

    us_N: "NDArray[np.int64]"
    ds_N: "NDArray[np.int64]"


def noisy(accuracy_DM: "Floats", num_DM: "NDArray[np.int64]", rng: np.random.Generator) -> "Floats":
    """Accuracies with normal noise of binomial variance, kept in [0, 1]."""
    # Seven digits are more than enough for noise, and drawn twice as fast.
    noise_DM = rng.standard_normal(accuracy_DM.shape, dtype=np.float32) * np.sqrt(
        accuracy_DM * (1.0 - accuracy_DM) / num_DM
    )
    noisy_DM: Floats = np.clip(accuracy_DM + noise_DM, 0.0, 1.0)
    return noisy_DM


def denoised(us_N: "Floats", ds_N: "Floats", sizes: NumTest) -> "Floats":
    """Downstream accuracies drawn towards the all-points law until their spread lacks the evaluation noise.

    The noise of a residual is the binomial variance downstream plus the squared slope of the law times that upstream.
    Where the residuals vary no more than that, all differences are noise.
    """
    law = fit_law(us_N, ds_N)
    if law is None:
        return ds_N
    fitted_N = law.predict(us_N)
    slope_N = law.k * law.alpha * np.maximum(1.0 - us_N, 1e-6) ** (law.alpha - 1.0)
    noise_N = ds_N * (1.0 - ds_N) / sizes.ds_N + slope_N**2 * us_N * (1.0 - us_N) / sizes.us_N
    residual_N = ds_N - fitted_N
    spread = float(residual_N.var())
    share = np.sqrt(max(0.0, 1.0 - float(noise_N.mean()) / spread)) if spread > 0 else 0.0
    mean = residual_N.mean()
    clean_N: Floats = np.clip(fitted_N + mean + share * (residual_N - mean), 0.0, 1.0)
    return clean_N
