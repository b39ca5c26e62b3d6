"""One model on one task: all protocols, layers, shot counts and draws for one forward pass an image.

The training images that some protocol fits to are encoded once and every probe is fitted. Then the test images pass
through the model once, in order; each probe predicts on each batch, and only hits by class are kept, so a task may have
millions of test images. Fine-tuned copies of the model see training and test images by themselves.

Shape suffixes: N images, B images of a batch, F images that a probe is fitted to, D features, C classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evals.datasets import Hashes, Pixels, TaskData, pixel_hashes
from evals.encoding import Encoder
from evals.feature_rows import FeatureRows
from evals.fewshot import Integers
from evals.finetune import finetune
from evals.fits import Fit, fits_of
from evals.probes import LayerProbes, Score, hits
from evals.protocol import Protocol
from evals.schedule import SETTINGS


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """How well a probe does on test images, or why that is not known: then every other number is None.

    `class_accuracy` is the mean over the classes that have test images. `duplicates` are the test images whose pixels
    are, at the model's resolution, those of an image that the probe was fitted to.
    """

    accuracy: float | None = None
    class_accuracy: float | None = None
    regularisation: float | None = None
    duplicates: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Probed:
    """A probe: what it is fitted to, and on which layer."""

    fit: Fit
    layer: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judge:
    """What encodes images, and those of a task, whose name decides the draws."""

    encoder: Encoder
    data: TaskData
    task: str

    def results(self, protocols: Sequence[Protocol]) -> Mapping[Probed, Judged]:
        """Of every probe, in the order of protocols, shots, draws and layers.

        Raises:
            DataError: an image that cannot be read.
        """
        labels_N, classes = self.data.train.labels_N, self.data.classes
        fits = [fit for protocol in protocols for fit in fits_of(self.task, labels_N, classes, protocol)]
        found: dict[Probed, Judged] = {}
        for fit in fits:
            reason = fit.reason if len(self.data.test.labels_N) else f"task {self.task!r} has no test images"
            if reason:
                found |= dict.fromkeys(self._probed(fit), Judged(reason=reason))
        todo = [fit for fit in fits if Probed(fit, self.encoder.num_layers - 1) not in found]
        found |= self._frozen([fit for fit in todo if fit.protocol.method.kind != "finetune"])
        for fit in todo:
            if fit.protocol.method.kind == "finetune":
                found[Probed(fit, self.encoder.num_layers - 1)] = self._finetuned(fit)
        return {probed: found[probed] for fit in fits for probed in self._probed(fit)}

    def _layers(self, fit: Fit) -> range:
        return range(0 if fit.protocol.layers == "all" else self.encoder.num_layers - 1, self.encoder.num_layers)

    def _probed(self, fit: Fit) -> list[Probed]:
        return [Probed(fit, layer) for layer in self._layers(fit)]

    # --- frozen features ---------------------------------------------------------------------------------------------

    def _frozen(self, fits: Sequence[Fit]) -> dict[Probed, Judged]:
        if not fits:
            return {}
        rows, hashes_N = self._training_features(fits)
        probes = {layer: LayerProbes(len(self.data.classes)) for layer in rows.layers}
        for fit in fits:
            for layer in self._layers(fit):
                probes[layer].fit(fit, rows.of(layer, fit.index_F), self.data.train.labels_N[fit.index_F])
        del rows  # the test images take their room
        duplicates = _Duplicates({fit: hashes_N[fit.index_F] for fit in fits})
        self._see_test_images(probes, duplicates)
        return {
            Probed(fit, layer): self._judged(score, duplicates.counts[fit])
            for layer, of_layer in probes.items()
            for fit, score in of_layer.scores().items()
        }

    def _training_features(self, fits: Sequence[Fit]) -> tuple[FeatureRows, Hashes]:
        """Features of the images in use, and the hash of each of these at its place among all training images."""
        used_N = np.unique(np.concatenate([fit.index_F for fit in fits]))
        wanted = {self.encoder.num_layers - 1: used_N}
        of_all_layers = [fit.index_F for fit in fits if fit.protocol.layers == "all"]
        if of_all_layers:
            early_N = np.unique(np.concatenate(of_all_layers))
            wanted = dict.fromkeys(range(self.encoder.num_layers - 1), early_N) | wanted
        rows = FeatureRows(wanted)
        hashes_N = np.zeros(len(self.data.train.labels_N), dtype=np.uint64)
        for batch in self.encoder.batches("train", self.data.train, used_N, rows.layers):
            hashes_N[batch.index_B] = batch.hashes_B
            rows.take(batch.index_B, batch.features)
        return rows, hashes_N

    def _see_test_images(self, probes: Mapping[int, LayerProbes], duplicates: "_Duplicates") -> None:
        labels_N = self.data.test.labels_N
        for of_layer in probes.values():
            of_layer.ready()
        for batch in self.encoder.batches("test", self.data.test, np.arange(len(labels_N)), list(probes)):
            duplicates.see(batch.hashes_B)
            for layer, features_BD in batch.features.items():
                probes[layer].see(features_BD, labels_N[batch.index_B])

    # --- fine-tuning -------------------------------------------------------------------------------------------------

    def _finetuned(self, fit: Fit) -> Judged:
        fitted_to, chosen_on = fit.index_F, None
        if fit.chooses_F is not None:
            fitted_to, chosen_on = fit.index_F[~fit.chooses_F], fit.index_F[fit.chooses_F]
        tuned = finetune(
            self.encoder.model(),
            self.data.train,
            fitted_to,
            num_classes=len(self.data.classes),
            settings=SETTINGS[fit.protocol.name],
            seed=fit.draw,
            choose_index_N=chosen_on,
            micro_batch=self.encoder.batch_size,
            to_input=self.encoder.to_input,
        )
        train_hashes = [
            pixel_hashes(images) for images in self.data.train.batches(fit.index_F, self.encoder.batch_size)
        ]
        duplicates = _Duplicates({fit: np.concatenate(train_hashes)})
        hits_C = np.zeros(len(self.data.classes), dtype=np.int64)
        for labels_B, images_BHWC in self._test_batches():
            duplicates.see(pixel_hashes(images_BHWC))
            if tuned.reason is None:
                hits_C += hits(tuned.predict_batch(images_BHWC), labels_B, len(hits_C))
        score = Score(hits_C=hits_C, regularisation=tuned.regularisation, reason=tuned.reason)
        return self._judged(score, duplicates.counts[fit])

    def _test_batches(self) -> Iterator[tuple[Integers, Pixels]]:
        labels_N = self.data.test.labels_N
        start = 0
        for images_BHWC in self.data.test.batches(np.arange(len(labels_N)), self.encoder.batch_size):
            yield labels_N[start : start + len(images_BHWC)], images_BHWC
            start += len(images_BHWC)

    def _judged(self, score: Score, duplicates: int) -> Judged:
        if score.reason is not None:
            return Judged(reason=score.reason, duplicates=duplicates)
        counts_C = np.bincount(self.data.test.labels_N, minlength=len(self.data.classes))
        there_C = counts_C > 0
        return Judged(
            accuracy=float(score.hits_C.sum() / counts_C.sum()),
            class_accuracy=float(np.mean(score.hits_C[there_C] / counts_C[there_C])),
            regularisation=score.regularisation,
            duplicates=duplicates,
        )


class _Duplicates:
    """How many test images are, pixel by pixel, among those that a probe was fitted to."""

    def __init__(self, hashes: Mapping[Fit, Hashes]) -> None:
        self._hashes = hashes
        self._all = np.unique(np.concatenate(list(hashes.values())))
        self.counts = dict.fromkeys(hashes, 0)

    def see(self, hashes_B: Hashes) -> None:
        """Counts a batch of test images."""
        suspects = hashes_B[np.isin(hashes_B, self._all)]
        for fit, hashes_F in self._hashes.items() if len(suspects) else ():
            self.counts[fit] += int(np.isin(suspects, hashes_F).sum())
