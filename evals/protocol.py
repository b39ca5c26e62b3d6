"""What an evaluation is: its protocol, its id, and the columns of its rows.

No torch here: the login node reads these to see which evaluations a study still lacks.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final, Literal, get_args

import polars as pl

from models.errors import UnknownNameError, UserError

Layers = Literal["all", "last"]

Training = Literal["shots", "all", "vtab1k"]
"""Which training images a protocol fits to: some draws of a few of every class, all of them, or VTAB-1k's 800 and 200
(arXiv 1910.04867), of which the 200 choose."""

Kind = Literal["ridge", "logistic", "knn", "head", "finetune"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What a protocol's name stands for.

    `sentence` goes into the results' `method` column. A `fixed_draw` leaves nothing to chance, so there is one draw;
    of methods that are dear for every layer there are the pre-logits features alone (`last_layer`).
    """

    kind: Kind
    training: Training
    sentence: str
    fixed_draw: bool = False
    last_layer: bool = False


_RIDGE: Final = "ridge on frozen float32 features, standardised by the shots, bias feature 100, targets -1/+1; "
_LOGISTIC: Final = "multinomial logistic regression with an L2 penalty on frozen float32 features, standardised; "
_KNN: Final = "k nearest neighbours by cosine similarity of frozen float32 features, votes weighted by exp(s / 0.07); "
_FINETUNE: Final = "by the BiT-HyperRule (arXiv 1912.11370): SGD, momentum 0.9, no weight decay, from a head of zeros; "
_LOO: Final = "lambda from 2^-10..2^19 by leave-one-out squared error on the shots, the smallest on ties"

PROTOCOLS: Final[dict[str, Method]] = {
    "ridge": Method(kind="ridge", training="shots", sentence=_RIDGE + _LOO),
    "ridge-fixed": Method(kind="ridge", training="shots", sentence=_RIDGE + "lambda 2^10"),
    "big_vision": Method(
        kind="ridge",
        training="shots",
        sentence=_RIDGE + "1e-5 added to standard deviations, lambda 2^10, as in big_vision's fewshot_lsr.py",
    ),
    "scenic": Method(
        kind="ridge",
        training="shots",
        fixed_draw=True,
        sentence=_RIDGE
        + "1e-5 added to standard deviations, the first images of each class, as in scenic's fewshot_utils.py; "
        + _LOO
        + " (scenic chooses it on test accuracies)",
    ),
    "logistic": Method(
        kind="logistic",
        training="shots",
        last_layer=True,
        sentence=_LOGISTIC + "penalty by cross-validation on the shots",
    ),
    "knn": Method(kind="knn", training="shots", sentence=_KNN + "k of 1, 3, 5, 10, 20 by leave-one-out on the shots"),
    "finetune": Method(
        kind="finetune", training="shots", last_layer=True, sentence="all weights trained " + _FINETUNE + "500 steps"
    ),
    "finetune-head": Method(
        kind="head", training="shots", last_layer=True, sentence="the head alone trained " + _FINETUNE + "500 steps"
    ),
    "linear": Method(
        kind="logistic",
        training="all",
        fixed_draw=True,
        last_layer=True,
        sentence=_LOGISTIC + "all training images, penalty by a tenth of them that is held out",
    ),
    "knn-all": Method(
        kind="knn",
        training="all",
        fixed_draw=True,
        last_layer=True,
        sentence=_KNN + "all training images, k of 1, 3, 5, 10, 20 by leave-one-out",
    ),
    "vtab1k-linear": Method(
        kind="logistic",
        training="vtab1k",
        fixed_draw=True,
        last_layer=True,
        sentence=_LOGISTIC + "1,000 training images, penalty by the 200 of VTAB-1k",
    ),
    "vtab1k-finetune": Method(
        kind="finetune",
        training="vtab1k",
        fixed_draw=True,
        last_layer=True,
        sentence="all weights trained "
        + _FINETUNE
        + "1,000 training images, learning rate and steps by the 200 of VTAB-1k",
    ),
}
"""Protocols by name."""

REVISION: Final = 1
"""Raised when a protocol's numbers change, so that files of the old method are not taken for the new one's."""

RESULT_SCHEMA: Final[dict[str, type[pl.DataType]]] = {
    "cell_id": pl.String,
    "params": pl.Int64,
    "flops": pl.Float64,
    "step": pl.Int64,
    "examples_seen": pl.Int64,
    "upstream_accuracy": pl.Float64,
    "upstream_loss": pl.Float64,
    "upstream_num_test": pl.Int64,
    "upstream_num_classes": pl.Int64,
    "task": pl.String,
    "protocol": pl.String,
    "shots": pl.Int64,
    "draw": pl.Int64,
    "layer": pl.Int64,
    "num_layers": pl.Int64,
    "last_layer": pl.Boolean,
    "regularisation": pl.Float64,
    "downstream_accuracy": pl.Float64,
    "downstream_class_accuracy": pl.Float64,
    "downstream_num_test": pl.Int64,
    "downstream_duplicates": pl.Int64,
    "method": pl.String,
    "reason": pl.String,
}
"""The measured columns, in order. `layer` counts from 0; the last one, `num_layers` - 1, is the pre-logits features.

`shots` is null where a protocol fits to all training images or to VTAB-1k's. `regularisation` is what was chosen on
training images: lambda, the penalty, k, or the learning rate. `downstream_class_accuracy` is the mean over the classes
that have test images; `downstream_duplicates` counts the test images whose pixels are those of a training image that
the probe was fitted to.
"""

UPSTREAM_REVISION: Final = 1
"""As `REVISION`, of the upstream measures (`evals.measures`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How a checkpoint is judged on a task.

    Args:
        name: a key of `PROTOCOLS`.
        shots: images a class; kept ascending and without repeats, so that the order they were given in does not matter.
            Protocols that fit to other training images have none.
        draws: how many times the shots are drawn; one where nothing is left to chance.
        layers: every probed layer, or the pre-logits features alone, as all there are of some protocols.

    Raises:
        UnknownNameError: no protocol has that name.
        UserError: no shots, or a count that is not a positive whole number, or other layers.
    """

    name: str = "ridge"
    shots: tuple[int, ...] = (1, 5, 10, 25)
    draws: int = 3
    layers: Layers = "all"

    def __post_init__(self) -> None:
        if self.name not in PROTOCOLS:
            raise UnknownNameError("protocol", self.name, PROTOCOLS)
        takes_shots = self.method.training == "shots"
        if takes_shots and (not self.shots or not all(_is_count(shot) for shot in self.shots)):
            raise UserError(f"shots: {list(self.shots)!r} given, one or more whole numbers from 1 up needed")
        if not _is_count(self.draws):
            raise UserError(f"draws: {self.draws!r} given, a whole number from 1 up needed")
        if self.layers not in get_args(Layers):
            raise UserError(f"layers: {self.layers!r} given, 'all' or 'last' needed")
        object.__setattr__(self, "shots", tuple(sorted(set(self.shots))) if takes_shots else ())
        object.__setattr__(self, "draws", 1 if self.method.fixed_draw else self.draws)
        object.__setattr__(self, "layers", "last" if self.method.last_layer else self.layers)

    @property
    def method(self) -> Method:
        """What it does."""
        return PROTOCOLS[self.name]

    def combinations(self) -> Iterator[tuple[int | None, int]]:
        """(shots, draw) of every probe of a layer; shots are None where there are none."""
        return product(self.shots or (None,), range(self.draws))

    def eval_id(self, task: str) -> str:
        """12 hexadecimal digits that depend on the task's name, on every field, and on `REVISION`."""
        identity = {
            "revision": REVISION,
            "task": task,
            "protocol": self.name,
            "shots": self.shots,
            "draws": self.draws,
            "layers": self.layers,
        }
        return _digest(identity)


def upstream_eval_id(*, by_class: bool) -> str:
    """The name, without its suffix, of the parquet file that holds the upstream measures of a checkpoint."""
    return f"upstream-{_digest({'revision': UPSTREAM_REVISION, 'by_class': by_class})}"


def _digest(identity: dict[str, object]) -> str:
    content = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _is_count(value: object) -> bool:
    # bool is an int, and numpy's integers have no JSON: only plain integers have stable bytes.
    return type(value) is int and value >= 1
