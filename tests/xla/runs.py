"""Small cells, trained in this process or another, and what they logged."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.checkpoint import finalised_steps, step_folder
from models.recipe import Recipe

NUM_STEPS = 7
MAIN_PYTHON = os.environ.get("UPSHOT_MAIN_PYTHON", sys.executable)  # of the environment without torch-xla

# Every number that changes from step to step is in one of them.
AXES: dict[str, dict[str, Any]] = {
    "vit": {"size": "dim16-depth1", "flip": True, "mixup": 0.2, "ema": 0.9, "clip_norm": 1.0, "label_smoothing": 0.1},
    "mixer": {"size": "dim16-depth1", "optimizer": "sgd", "learning_rate": 0.05, "schedule": "rsqrt", "mixup": 0.2},
    "resnet": {"size": "pico", "optimizer": "sgd", "learning_rate": 0.05, "ema": 0.9},
}

TRAIN = """
import json, sys
from pathlib import Path
from models.recipe import Recipe
from models.train import train
steps = [int(sys.argv[3])]
def log(record):
    print(json.dumps(record), flush=True)
    steps.append(record["step"])
stop = lambda: steps[-1] >= steps[0]
train(Recipe.model_validate_json(sys.argv[1]), Path(sys.argv[2]), num_checkpoints=2, log=log, should_stop=stop)
"""


def recipe(family: str = "vit", **axes: Any) -> Recipe:
    """A cell of seven steps."""
    common = {
        "family": family,
        "dataset": "icons",
        "image_size": 32,
        "patch_size": None if family == "resnet" else 8,
        "fraction": 0.01,
        "epochs": NUM_STEPS / 22,
        "batch_size": 32,
        "warmup": 0.5,
        "head_learning_rate": 1e-3,
        "head_weight_decay": 0.03,
    }
    return Recipe.model_validate(common | AXES[family] | axes)


def compiled() -> int:
    """How many programs torch-xla has compiled in this process."""
    from torch_xla.debug import metrics

    return int(metrics.counter_value("UncachedCompile") or 0)


@dataclass(frozen=True, slots=True)
class Trained:
    """A run's folder, its records, and how many programs had been compiled when each was logged."""

    folder: Path
    records: list[dict[str, Any]]
    compiled: list[int]

    def all(self, event: str, key: str) -> list[Any]:
        """The values of a key in the records of an event."""
        return [record[key] for record in self.records if record["event"] == event]

    def bytes(self) -> dict[str, bytes]:
        """The tensors of the last checkpoint, by file."""
        return {path.name: path.read_bytes() for path in last_checkpoint(self.folder)[0].glob("*.safetensors")}


def last_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a run's last checkpoint, and what was measured at it."""
    last = step_folder(folder, finalised_steps(folder)[-1])
    return last, json.loads((last / "metrics.json").read_text())


def run(wanted: Recipe, folder: Path, *, stop_after: int = NUM_STEPS, **options: Any) -> Trained:
    """Trained in this process, on what it finds; it is told to stop after so many steps."""
    from models.train import train

    done = Trained(folder, [], [])

    def log(record: dict[str, Any]) -> None:
        done.records.append(record)
        done.compiled.append(compiled())

    def stop() -> bool:
        return bool(done.records) and done.records[-1]["step"] >= stop_after

    train(wanted, folder, num_checkpoints=2, log=log, should_stop=stop, **options)
    return done


def run_in_main(wanted: Recipe, folder: Path, *, stop_after: int = NUM_STEPS) -> Trained:
    """Trained by the environment without torch-xla, on the CPU."""
    environment = {name: value for name, value in os.environ.items() if name != "PJRT_DEVICE"}
    command = [MAIN_PYTHON, "-c", TRAIN, wanted.model_dump_json(), str(folder), str(stop_after)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert records[0]["device"] == "cpu"
    return Trained(folder, records, [])
