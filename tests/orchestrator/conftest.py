from pathlib import Path

import pytest

from orchestrator.grid import cells
from orchestrator.store import Store
from orchestrator.study import load_study
from tests.orchestrator.ledger import Ledger
from tests.orchestrator.scheduler_answers import Scheduler

SMALL_STUDY = """
name = "small"
[upstream]
dataset = "icons"
[grid]
family = ["vit", "resnet"]
size = "pico"
patch_size = 8
fraction = [0.01, 0.02]
batch_size = 64
[train]
checkpoints = 2
[downstream]
tasks = ["mnist", "patches"]
shots = [1, 5]
draws = 2
[wandb]
mode = "disabled"
"""


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch):
    """Off a terminal nothing has a width unless COLUMNS gives it one: tests look at what 80 columns show."""
    monkeypatch.setenv("COLUMNS", "80")


class SmallStudy:
    """Four cells that train in a second each."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "small.toml"
        self.path.write_text(SMALL_STUDY)
        self.runs = folder / "runs"
        self.store = Store(self.runs / "small")
        self.file = load_study(self.path)
        self.cells = cells(self.file.study, self.path)


@pytest.fixture(autouse=True)
def _runs_of_its_own(tmp_path, monkeypatch):
    """No test looks at the studies that were run here."""
    monkeypatch.setenv("UPSHOT_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def small(tmp_path):
    return SmallStudy(tmp_path)


@pytest.fixture
def ledger(small):
    """The small study's folder, to be written into."""
    return Ledger(small.store, small.file.study, small.cells)


@pytest.fixture
def scheduler(monkeypatch):
    """Answers in place of Slurm's commands."""
    return Scheduler(monkeypatch)
