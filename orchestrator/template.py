"""The study file that `upshot init` writes."""

from pathlib import Path

from models.errors import StudyError

TEMPLATE = """\
# A study: every combination in [grid] is one cell, trained once and judged on every downstream task.
# `upshot plan` shows what it comes to; nothing runs before `upshot submit`.
name = "my-study"

[upstream]
dataset = "icons"                  # a packaged set (`upshot tasks` lists the others), or a path: class folders
                                   # (images/CLASS/*.png), tar shards ("laion/train-{000000..000127}.tar"), or a
                                   # Hugging Face dataset on disk (parquet, save_to_disk)

[grid]                             # a list is an axis; write several [[grid]] tables to unite several grids
family = ["vit", "mixer", "resnet"]
size = ["pico", "nano", "micro"]   # `upshot models` lists the sizes, up to 10B
patch_size = 8                     # pixels, for ViT and Mixer; leave it out for the published patch
fraction = [0.1, 1.0]              # of the upstream images
epochs = 1
head_weight_decay = [0.03, 3.0]
seed = 0
# Also: classes, images (in all, in place of a fraction), batch_size, image_size, optimizer ("adamw", "sgd",
# "adafactor"), learning_rate, weight_decay, head_learning_rate, warmup, schedule ("cosine", "linear", "rsqrt"),
# clip_norm, label_smoothing, dropout, drop_path, flip, mixup, crop, augreg, ema, precision.

# Any timm model, in a [[grid]] table of its own: size = ["timm:convnext_tiny", "timm:resnetv2_50"]

# [[exclude]]                      # combinations to leave out
# family = "vit"
# size = "micro"

[train]
checkpoints = 2                    # a cell; evenly spaced, the last at the last step

[downstream]
tasks = ["mnist", "fashion", "hiragana", "patches"]
protocol = "ridge"                 # or a list, of which the first is reported on: ["ridge", "logistic", "linear"]
shots = [1, 5, 10, 25]             # images a class
draws = 3                          # of the shots, for an interval
# data = "/datasets"               # where public tasks lie: tasks = ["pets", "cifar100"] (`upshot tasks` lists them)
layers = "all"                     # or "last"
# upstream = "by_class"            # accuracy on the held-out upstream images by class too; or false
# keep_features = true             # protocols that are added later then need no pass through the model
checkpoints = "all"                # or "last"

[cluster]
profile = "local"                  # this machine; or a cluster profile: profile = "cluster.toml"

[wandb]
mode = "auto"                      # online where a W&B key is found, else offline; or "disabled"
project = "upshot"
"""


def write_template(path: Path) -> Path:
    """The path, once the template stands there.

    Raises:
        StudyError: something is there already; it is left as it is.
    """
    return write_study(path, TEMPLATE)


def write_study(path: Path, text: str) -> Path:
    """The path, once a study file of this text stands there.

    Raises:
        StudyError: something is there already, which is left as it is, or nothing can be written there.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise StudyError(f"{path}: is there already; give another path") from error
    except OSError as error:
        raise StudyError(f"{path}: cannot be written: {error.strerror}") from error
    return path
