"""What a cell trains: every choice that changes its weights, validated, without torch."""

from typing import Annotated, Final, Literal, NamedTuple, Self, TypedDict

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Schedule = Literal["cosine", "linear", "rsqrt"]
AugReg = Literal["none", "light1", "light2", "medium1", "medium2", "strong1", "strong2"]


class Augmentation(NamedTuple):
    """RandAugment's number of operations and their magnitude, and mixup's alpha."""

    num_operations: int
    magnitude: int
    mixup: float


AUGREG: Final[dict[AugReg, Augmentation]] = {
    "none": Augmentation(0, 0, 0.0),
    "light1": Augmentation(2, 0, 0.0),
    "light2": Augmentation(2, 10, 0.2),
    "medium1": Augmentation(2, 15, 0.2),
    "medium2": Augmentation(2, 15, 0.5),
    "strong1": Augmentation(2, 20, 0.5),
    "strong2": Augmentation(2, 20, 0.8),
}
"""The settings of arXiv 2106.10270, section 3.3. A magnitude of 0 still changes images: some operations have none."""

# A cooldown over a fifth of the steps reaches what a cosine does (arXiv 2405.18392, section 4).
RSQRT_COOLDOWN = 0.2


class Axes(BaseModel):
    """The axes of a study's grid; one value of each makes a cell.

    Learning rates and weight decays are those of the optimiser's groups: the head (the upstream classifier)
    has its own, as in arXiv 2110.02095 section 4; where it is not given it follows the body.
    Defaults never change: `orchestrator.identity` leaves them out of a cell's hash.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)

    family: Literal["vit", "mixer", "resnet", "timm"]
    """Of family "timm", a size is the name that timm gives one of its models: convnext_tiny."""
    size: str
    """A named size, as `upshot models` lists them, or a free one such as dim192-depth6."""
    fraction: Share = 1.0
    """Share of the upstream training images, the same share of every class."""
    classes: Share = 1.0
    """Share of the upstream classes."""
    images: Count | None = None
    """Training images in all, in place of a fraction. With several `classes` this is the diversity axis: the same
    number of images is spread over more or fewer classes, so that each class has fewer or more."""
    epochs: Positive = 1.0
    """Passes over the training images; parts of one too."""
    batch_size: Count = 128
    """Images a step."""
    image_size: Annotated[int, Field(ge=8)] | None = None
    """Pixels; the packaged set's own size, or 224 for image folders, when it is not given."""
    patch_size: Count | None = None
    """Pixels; the published patch of the size when it is not given. ResNets have none, timm models their own."""
    optimizer: Literal["adamw", "sgd", "adafactor"] = "adamw"
    """"adafactor" keeps a quarter of the state of AdamW, for sizes whose state fills the memory."""
    learning_rate: Positive = 1e-3
    """The highest that it is in the run."""
    weight_decay: NonNegative = 0.03
    """Of weight matrices and filters; biases, norms and embeddings have none."""
    head_learning_rate: Positive | None = None
    """Of the upstream classifier; `learning_rate` when it is not given."""
    head_weight_decay: NonNegative | None = None
    """Of the upstream classifier; `weight_decay` when it is not given."""
    warmup: NonNegative = 0.1
    """How long the learning rate rises linearly: a share of the steps. With "rsqrt" it is a number of epochs, so that
    runs of any length begin alike."""
    schedule: Schedule = "cosine"
    """How it falls from there: to zero along half a cosine, along a line, or as the reciprocal square root of the steps
    with a line to zero over the last fifth (docs/training.md)."""
    clip_norm: NonNegative = 0.0
    """The most that the norm of all gradients may be in a step; longer ones are scaled down to it. 0 clips nothing."""
    label_smoothing: Rate = 0.0
    """The share of a label that is spread evenly over all classes."""
    dropout: Rate = 0.0
    """Of activations: in a ViT after the position embeddings and the blocks' dense layers, but not of queries, keys
    and values (arXiv 2010.11929, appendix B.1), in a Mixer after those of its MLPs, in a ResNet before the head."""
    drop_path: Rate = 0.0
    """Stochastic depth (arXiv 1603.09382): the share of images that skip a branch of the last block; it rises linearly
    from none in the first one."""
    flip: Annotated[bool, Strict()] = False
    """Half of the images of each step, drawn anew, are seen from the other side, left for right."""
    mixup: NonNegative = 0.0
    """Each image and its label are mixed with another of the batch by a share from Beta(mixup, mixup); 0 mixes nothing
    (arXiv 1710.09412). The training loss is then that of the mixed labels."""
    crop: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Each step sees a random part of an image, of this share of its area at least and 3/4 to 4/3 as wide as high, at
    the model's resolution (an inception crop); at 0 the centre, of all of its height or width."""
    augreg: AugReg = "none"
    """RandAugment and mixup together, in the strengths of arXiv 2106.10270 (docs/data.md); `mixup` is then left at
    0."""
    ema: Rate = 0.0
    """Decay of an average of the weights over the steps: the average is what is measured, upstream and downstream;
    0 for none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What forward and backward passes are computed in; weights are float32."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Draws the first weights, the order of the images, and which of them a fraction keeps."""

    @model_validator(mode="after")
    def _check_mixup(self) -> Self:
        if self.mixup and self.augreg != "none":
            raise ValueError(
                f"augreg {self.augreg!r} has a mixup of its own ({AUGREG[self.augreg].mixup}): leave mixup at 0"
            )
        return self


class Subset(TypedDict):
    """What draws a part of the upstream training images."""

    fraction: float
    classes: float
    images: int | None
    seed: int


class Recipe(Axes):
    """A cell's axes with the upstream data they are trained on, nothing left to a default.

    Raises:
        ValueError: a value that `orchestrator.grid.resolve` should have filled in is missing.
    """

    dataset: str
    image_size: Annotated[int, Field(ge=8)]
    head_learning_rate: Positive
    head_weight_decay: NonNegative

    @model_validator(mode="after")
    def _check_patch(self) -> Self:
        if (self.patch_size is None) != (self.family in ("resnet", "timm")):
            raise ValueError("patch_size belongs to ViT and MLP-Mixer, and only to them")
        return self

    @model_validator(mode="after")
    def _check_warmup(self) -> Self:
        if self.schedule != "rsqrt" and self.warmup >= 1:
            raise ValueError(
                f'warmup is {self.warmup:g}: with schedule "{self.schedule}" it is a share of the steps, below 1'
                ' (with "rsqrt" it is a number of epochs)'
            )
        return self

    @property
    def subset(self) -> "Subset":
        """Which of the upstream training images, as `models.data.subset` takes it."""
        return {"fraction": self.fraction, "classes": self.classes, "images": self.images, "seed": self.seed}


def num_steps(num_images: int, *, batch_size: int, epochs: float) -> tuple[int, int]:
    """(steps in all, images a step): whole batches only, and at least one step.

    A training set smaller than a batch is one batch.
    """
    batch = min(batch_size, num_images)
    per_epoch = num_images // batch
    return max(1, round(per_epoch * epochs)), batch


def num_warmup_steps(recipe: Axes, *, num_steps: int, steps_an_epoch: int) -> int:
    """The steps over which the learning rate rises."""
    return round(recipe.warmup * (steps_an_epoch if recipe.schedule == "rsqrt" else num_steps))


def cooldown_start(num_steps: int) -> int:
    """The steps that a run with "rsqrt" has in common with longer ones: those before its cooldown."""
    return num_steps - max(1, round(RSQRT_COOLDOWN * num_steps))


def checkpoint_steps(total: int, count: int) -> tuple[int, ...]:
    """At most `count` distinct steps, evenly spaced, ending with `total`."""
    return tuple(sorted({max(1, round(total * (i + 1) / count)) for i in range(count)}))
