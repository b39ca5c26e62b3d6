"""What judging one checkpoint takes: images that are encoded, images that it is trained on further, features. Pure.

The work of fitting probes to features is left out: little beside large models, more than the passes of small ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evals.protocol import Protocol
from evals.schedule import SETTINGS
from evals.tasks import Task
from evals.tasks.draws import NUM_CHOOSE, NUM_FIT
from models import ladder
from models.data.parts import MAX_TEST
from orchestrator.images import Images
from orchestrator.study import Study

VTAB_IMAGES = NUM_FIT + NUM_CHOOSE
FEATURE_BYTES = 4
WEIGHT_BYTES = 8
COPIES = 2  # of the features in work: those of all images of a task, and those that a probe is fitted to
TIMM_WIDTH = 2048  # at least, of the features of a timm model, whose widths nobody measured


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationWork:
    """What judging one checkpoint takes.

    `num_encoded` images pass the model once, `num_trained` are trained on in steps of fine-tuning; `features_gb` is the
    most that features of training images and the probes that are fitted to them hold, of one task at a time.
    `batch_size` images are in a step of fine-tuning, 0 without one.
    """

    num_encoded: int
    num_trained: int
    features_gb: float
    batch_size: int

    def flops(self, arch: ladder.Architecture) -> float:
        """Of all passes together; a training step takes a forward pass and two of the same size backward."""
        return float(ladder.forward_flops(arch)) * self.num_encoded + float(ladder.train_flops(arch)) * self.num_trained


def evaluation_work(study: Study, arch: ladder.Architecture, images: Images) -> EvaluationWork:
    """What judging one checkpoint of this architecture takes, on all tasks and on the held-out upstream images."""
    works = [_task_work(images.task(name), study.protocols, arch) for name in study.downstream.tasks]
    measured = study.downstream.upstream
    upstream = min(images.upstream(study.upstream.dataset).num_test, MAX_TEST) if measured else 0
    return EvaluationWork(
        num_encoded=upstream + sum(work.num_encoded for work in works),
        num_trained=sum(work.num_trained for work in works),
        features_gb=max(work.features_gb for work in works),
        batch_size=max(work.batch_size for work in works),
    )


def _task_work(task: Task, protocols: Sequence[Protocol], arch: ladder.Architecture) -> EvaluationWork:
    """Training and test images are encoded once, whatever is fitted to them; a fine-tuned model encodes its own."""
    frozen = [p for p in protocols if p.method.kind != "finetune"]
    runs = [run for p in protocols if p not in frozen for run in _trainings(p, task)]
    by_layer = [_num_fitted(p, task) for p in frozen if p.layers == "all"]
    last = [_num_fitted(p, task) for p in frozen if p.layers == "last"]
    encoded = min(task.num_train, sum(_num_fitted(p, task) for p in _distinct(frozen)))
    num_features = max(by_layer, default=0) * (ladder.num_layers(arch) + 1) + max(last, default=0)
    probes = sum(_probe_bytes(p, task, arch) for p in frozen)
    return EvaluationWork(
        num_encoded=encoded + (task.num_test if frozen else 0) + sum(run.num_tested for run in runs),
        num_trained=sum(run.num_steps * run.batch_size for run in runs),
        features_gb=(COPIES * FEATURE_BYTES * num_features * feature_width(arch) + probes) / 1e9,
        batch_size=max((run.batch_size for run in runs), default=0),
    )


def _distinct(protocols: Sequence[Protocol]) -> list[Protocol]:
    """One protocol of each choice of training images: few-shot ones draw the same, but for those without chance."""
    return list({(p.method.training, p.draws, p.shots): p for p in protocols}.values())


def _probe_bytes(protocol: Protocol, task: Task, arch: ladder.Architecture) -> int:
    """Of the probes of all layers, shots and draws, which meet the test images together."""
    num_layers = ladder.num_layers(arch) + 1 if protocol.layers == "all" else 1
    if protocol.method.kind != "knn":
        num_probes = sum(1 for _ in protocol.combinations())
        return WEIGHT_BYTES * num_probes * num_layers * task.num_classes * (feature_width(arch) + 1)
    # A probe of neighbours holds the features of its shots; one of all images those that are there.
    held = sum(min(task.num_train, task.num_classes * (shots or 0)) for shots, _ in protocol.combinations())
    return FEATURE_BYTES * held * num_layers * feature_width(arch)


def _num_fitted(protocol: Protocol, task: Task) -> int:
    """At most how many training images a protocol looks at, over all draws."""
    if protocol.method.training == "all":
        return task.num_train
    if protocol.method.training == "vtab1k":
        return min(VTAB_IMAGES, task.num_train)
    return min(task.num_train, task.num_classes * max(protocol.shots) * protocol.draws)


@dataclass(frozen=True, slots=True)
class _Training:
    """One fine-tuning, and how many images the model is then tried on."""

    num_steps: int
    batch_size: int
    num_tested: int


def _trainings(protocol: Protocol, task: Task) -> list[_Training]:
    rule = SETTINGS[protocol.name]
    if protocol.shots:
        images = [shots * task.num_classes for shots in protocol.shots]
        once = [
            _Training(steps, min(rule.batch_size, num), task.num_test)
            for num in images
            for _, steps in rule.candidates(num)
        ]
        return once * protocol.draws
    num = min(VTAB_IMAGES, task.num_train)
    tried = rule.candidates(num)
    batch = min(rule.batch_size, num)
    longest = max(steps for _, steps in tried)
    return [
        *(_Training(steps, batch, NUM_CHOOSE) for _, steps in tried),
        _Training(longest, batch, task.num_test),
    ]


def feature_width(arch: ladder.Architecture) -> int:
    """At most how many features a layer has; of a timm model, about as many as its parameters let expect."""
    if arch.family == "resnet":
        return (arch.width << (len(arch.blocks) - 1)) * (4 if arch.bottleneck else 1)
    if arch.family == "timm":
        # A block of a transformer of width D has 12 D^2 parameters.
        return max(TIMM_WIDTH, math.isqrt(ladder.num_params(arch) // (12 * ladder.num_layers(arch))))
    return arch.width
