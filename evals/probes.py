"""The probes of one layer: fitted on frozen features by their protocols, and what each gets right on test images.

Shape suffixes: B images of a batch, F images that a probe is fitted to, D features, P probes, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from typing import Protocol as Shape

import numpy as np

from evals.fewshot import (
    FIXED_LAMBDA,
    LAMBDAS,
    PUBLISHED_STD_OFFSET,
    Features,
    Integers,
    ProbeError,
    Ridge,
    fit_ridge,
    stack,
)
from evals.finetune import finetune_head
from evals.fits import Fit
from evals.knn import fit_knn
from evals.logistic import Logistic, fit_logistic
from evals.schedule import SETTINGS


class Probe(Shape):
    """What was fitted."""

    @property
    def regularisation(self) -> float | None:
        """What was chosen: lambda, the penalty, k."""
        ...

    def predict(self, features_BD: Features) -> Integers:
        """Classes [B]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Score:
    """What a probe got right, by class, of test images; a `reason` where there is no probe."""

    hits_C: Integers
    regularisation: float | None = None
    reason: str | None = None


def hits(predicted_B: Integers, labels_B: Integers, num_classes: int) -> Integers:
    """How many of each class [C] were predicted rightly."""
    return np.bincount(labels_B[predicted_B == labels_B], minlength=num_classes)


def _ridge(lambdas: Sequence[float], std_offset: float | None) -> Callable[[Fit, Features, Integers, int], Probe]:
    def fit_it(_: Fit, features_FD: Features, labels_F: Integers, num_classes: int) -> Ridge:
        return fit_ridge(features_FD, labels_F, num_classes=num_classes, lambdas=lambdas, std_offset=std_offset)

    return fit_it


def _logistic(fit: Fit, features_FD: Features, labels_F: Integers, num_classes: int) -> Logistic:
    """VTAB-1k draws without regard to classes: one that it leaves out is never predicted.

    Nor is a penalty chosen by images of a class that none of the others has.
    """
    present_C, compact_F = np.unique(labels_F, return_inverse=True)
    held_out = None
    if fit.chooses_F is not None:
        held_out = np.flatnonzero(fit.chooses_F & np.isin(labels_F, labels_F[~fit.chooses_F]))
    found = fit_logistic(features_FD, compact_F, num_classes=len(present_C), held_out=held_out)
    weights_DC, bias_C = np.zeros((features_FD.shape[1], num_classes)), np.full(num_classes, -np.inf)
    weights_DC[:, present_C], bias_C[present_C] = found.linear()
    return replace(found, weights_DC=weights_DC, bias_C=bias_C)


def _head(fit: Fit, features_FD: Features, labels_F: Integers, num_classes: int) -> Probe:
    head = finetune_head(
        features_FD, labels_F, num_classes=num_classes, settings=SETTINGS[fit.protocol.name], seed=fit.draw
    )
    if head.reason is not None:
        raise ProbeError(head.reason)
    return head


def _knn(_: Fit, features_FD: Features, labels_F: Integers, num_classes: int) -> Probe:
    return fit_knn(features_FD, labels_F, num_classes=num_classes)


_FIT: Final[Mapping[str, Callable[[Fit, Features, Integers, int], Probe]]] = {
    "ridge": _ridge(LAMBDAS, None),
    "ridge-fixed": _ridge((FIXED_LAMBDA,), None),
    "big_vision": _ridge((FIXED_LAMBDA,), PUBLISHED_STD_OFFSET),
    "scenic": _ridge(LAMBDAS, PUBLISHED_STD_OFFSET),
    "logistic": _logistic,
    "linear": _logistic,
    "vtab1k-linear": _logistic,
    "finetune-head": _head,
    "knn": _knn,
    "knn-all": _knn,
}


class LayerProbes:
    """Every probe of one layer, and what each got right so far."""

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self._reasons: dict[Fit, str] = {}
        self._probes: dict[Fit, Probe] = {}
        self._num_bad = self._num_seen = 0

    def fit(self, fit: Fit, features_FD: Features, labels_F: Integers) -> None:
        """Fits one more; what the data does not allow becomes its reason."""
        try:
            self._probes[fit] = _FIT[fit.protocol.name](fit, features_FD, labels_F, self._num_classes)
        except ProbeError as error:
            self._reasons[fit] = str(error)

    def ready(self) -> None:
        """Puts linear probes side by side, so that a batch meets them in one product; none is fitted after that.

        Their own weights are not held any more: those of all layers and draws may be gigabytes.
        """
        linear = {fit: probe for fit, probe in self._probes.items() if isinstance(probe, Ridge | Logistic)}
        others = {fit: probe for fit, probe in self._probes.items() if fit not in linear}
        self._stacked = stack(list(linear.values())) if linear else None
        self._others = list(others.values())
        self._chosen = {fit: probe.regularisation for fit, probe in (linear | others).items()}
        self._hits_PC = np.zeros((len(self._chosen), self._num_classes), dtype=np.int64)
        self._probes.clear()

    def see(self, features_BD: Features, labels_B: Integers) -> None:
        """Counts what each probe gets right of a batch of test images."""
        finite_B = np.asarray(np.isfinite(features_BD).all(axis=1))
        self._num_seen += len(finite_B)
        if not finite_B.all():
            self._num_bad += int((~finite_B).sum())
            features_BD = np.where(finite_B[:, None], features_BD, 0)  # the layer has no result any more
        predicted = [self._stacked.predict(features_BD)] if self._stacked is not None else []
        predicted += [probe.predict(features_BD)[None] for probe in self._others]
        for hits_C, predicted_B in zip(self._hits_PC, (row for rows in predicted for row in rows), strict=True):
            hits_C += hits(predicted_B, labels_B, self._num_classes)

    def scores(self) -> dict[Fit, Score]:
        """Of every probe that was to be fitted."""
        bad = f"{self._num_bad} of {self._num_seen} test images have features that are not finite"
        reasons = self._reasons | (dict.fromkeys(self._chosen, bad) if self._num_bad else {})
        none_C = np.zeros(self._num_classes, dtype=np.int64)
        fitted = dict(zip(self._chosen, self._hits_PC, strict=True))
        found = {fit: Score(hits_C=none_C, reason=reason) for fit, reason in reasons.items()}
        return found | {
            fit: Score(hits_C=hits_C, regularisation=self._chosen[fit])
            for fit, hits_C in fitted.items()
            if fit not in reasons
        }
