"""How long and how fast a model is fine-tuned: BiT-HyperRule, and the choice of VTAB-1k.

No torch here: plans count these steps on login nodes.
"""

import math
from dataclasses import dataclass
from itertools import product
from typing import Final

from models.errors import UserError

MEDIUM_FROM: Final = 20_000
LARGE_FROM: Final = 500_000
"""Training images from which BiT-HyperRule calls a task medium or large; it calls fewer than 20,000 small."""

MAX_WARMUP: Final = 500
"""Steps. With a fifth of the steps where that is less, it gives the three warm-ups of the authors' code: 100 of 500,
500 of 10,000 and 500 of 20,000."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTune:
    """How a model is fine-tuned; the defaults are BiT-HyperRule (arXiv 1912.11370, section 3.3) without its views.

    SGD with momentum 0.9 and no weight decay. The learning rate rises linearly from 0, as in the authors' code, and
    falls by a factor of 10 at 30, 60 and 90 % of the steps, as in the paper; that code does so at 40, 60 and 80 % of
    the 500 steps of small tasks.

    Args:
        learning_rates: one, or several to choose among.
        num_steps: the same; none is what the rule has for the number of training images: 500, 10,000 or 20,000.
        batch_size: images a step. A task with fewer has them all, once, in every step, at the same rate: the paper's
            code fills the batch with repetitions, whose mean gradient is the same but for their numbers.
        mixup: the alpha of MixUp for medium and large tasks; small ones have none.
        crop: whether a random square is seen at the model's resolution, of 4/5 of an image's side (160 to 128 pixels),
            from 96 pixels on 6/7 (448 to 384). Test images are seen whole, as published.
        flip: whether half of the images, drawn anew in each step, are seen from the other side, left for right.

    Both views are left out unless asked for. The rule has them for every task but those whose labels they would
    change: positions, distances, orientations, and characters, which packaged tasks are full of.

    Raises:
        UserError: a rate, a number of steps or a batch size that is not positive, or a negative alpha.
    """

    learning_rates: tuple[float, ...] = (0.003,)
    num_steps: tuple[int, ...] = ()
    batch_size: int = 512
    mixup: float = 0.1
    crop: bool = False
    flip: bool = False

    def __post_init__(self) -> None:
        if not self.learning_rates or not all(0 < rate < math.inf for rate in self.learning_rates):
            raise UserError(f"learning_rates: {self.learning_rates!r} given, one or more positive numbers needed")
        if not all(_is_count(steps) for steps in self.num_steps):
            raise UserError(f"num_steps: {self.num_steps!r} given, whole numbers from 1 up needed, or none")
        if not _is_count(self.batch_size):
            raise UserError(f"batch_size: {self.batch_size!r} given, a whole number from 1 up needed")
        if not 0 <= self.mixup < math.inf:
            raise UserError(f"mixup: {self.mixup!r} given, 0 or a positive number needed")

    def candidates(self, num_images: int) -> list[tuple[float, int]]:
        """(learning rate, number of steps) of every way to train on so many images; the gentlest come first."""
        return sorted(product(self.learning_rates, self.num_steps or (published_steps(num_images),)))

    def mixup_alpha(self, num_images: int) -> float:
        """MixUp's alpha for so many training images; 0 mixes nothing."""
        return self.mixup if num_images >= MEDIUM_FROM else 0.0


def published_steps(num_images: int) -> int:
    """The steps of BiT-HyperRule for so many training images."""
    if num_images < MEDIUM_FROM:
        return 500
    return 10_000 if num_images < LARGE_FROM else 20_000


def rate_factor(step: int, num_steps: int) -> float:
    """What multiplies the learning rate at `step` (0-based) of so many."""
    num_warmup = min(MAX_WARMUP, num_steps // 5)
    if step < num_warmup:
        return step / num_warmup
    return 0.1 ** sum(10 * step >= tenths * num_steps for tenths in (3, 6, 9))


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


BIT_HYPERRULE: Final = FineTune()

VTAB_1K: Final = FineTune(learning_rates=(0.003, 0.01, 0.03, 0.1), num_steps=(500, 2500))
"""What is chosen among on 200 of 1,000 images: from BiT-HyperRule's setting up to the rates (0.01 and 0.1) and the
shorter of the two schedules (2,500 and 10,000 steps) of VTAB's own small sweep, arXiv 1910.04867."""

SETTINGS: Final = {"finetune": BIT_HYPERRULE, "finetune-head": BIT_HYPERRULE, "vtab1k-finetune": VTAB_1K}
"""By protocol."""
