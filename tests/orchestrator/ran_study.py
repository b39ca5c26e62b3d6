"""A study whose cells ran, written by hand as their jobs would have left it: many cells in a second."""

import time
from pathlib import Path
from typing import Any

import polars as pl

from evals.protocol import RESULT_SCHEMA
from orchestrator.files import append_record
from orchestrator.grid import cells
from orchestrator.store import Manifest, Store
from orchestrator.study import load_study
from orchestrator.tracking.journal import read_journal
from orchestrator.wanted import wanted_files
from slurm.cluster import load_profile
from tests.orchestrator.test_tracking import append, evaluate, training
from tests.wandb_server import Run, WandbServer

STUDY = """
name = "{name}"
[upstream]
dataset = "icons"
[grid]
family = "vit"
size = "pico"
patch_size = 8
fraction = 0.01
batch_size = 16
seed = {seeds}
[train]
checkpoints = 2
[downstream]
tasks = ["mnist"]
shots = [5]
draws = 1
upstream = false
[wandb]
mode = "offline"
{wandb}
"""
TOKEN = "a" * 12


class RanStudy:
    """So many cells, none of which has run yet; `ids` in the order of their seeds."""

    def __init__(self, folder: Path, number: int, *, name: str = "many", wandb: str = "") -> None:
        path = folder / f"{name}.toml"
        path.write_text(STUDY.format(name=name, seeds=list(range(number)), wandb=wandb))
        self.file = load_study(path)
        self.store = Store(folder / "runs" / name)
        self.store.write_study(self.file.text, load_profile("local"))
        found = cells(self.file.study, path)
        self.store.write_cells(found)
        self.ids = [cell.cell_id for cell in found]
        (self._wanted,) = wanted_files(self.file.study).results.values()
        tasks = [[cell_id] for cell_id in self.ids]
        manifest = Manifest(
            token=TOKEN, study=name, stage="train", executor="local", tasks=tasks, resources={}, submitted=1.0
        )
        self.store.write_manifest(manifest)

    @property
    def root(self) -> Path:
        return self.store.root

    def folder(self, cell_id: str) -> Path:
        return self.store.cell_folder(cell_id)

    def train(self, cell_id: str, first: int, last: int, **options: Any) -> None:
        """The cell takes these steps; its first ones start its attempt."""
        if not self.store.attempts(cell_id):
            self._record(cell_id, "start", host="node1", pid=1)
        append(self.folder(cell_id), training(first, last, **options))

    def end(self, cell_id: str, last: int, outcome: str = "done") -> None:
        """The cell's training ends at a checkpoint, which is judged."""
        checkpoint = self.store.checkpoints(cell_id) / f"step_{last:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "DONE").touch()
        self._record(cell_id, "end", outcome=outcome, seconds=2.0, step=last)
        self.judge(cell_id, last)

    def judge(self, cell_id: str, step: int, accuracy: float = 0.5) -> Path:
        """The checkpoint's evaluation is there."""
        path = evaluate(self.folder(cell_id), step, {0: [accuracy]})
        known = {**dict.fromkeys(RESULT_SCHEMA), "cell_id": cell_id, "step": step, "upstream_accuracy": 0.5}
        rows = [known | row for row in pl.read_parquet(path).to_dicts()]
        pl.DataFrame(rows, schema=RESULT_SCHEMA).write_parquet(path)
        return path.rename(path.with_name(self._wanted))

    def run(self, cell_id: str, last: int = 100, **options: Any) -> None:
        """The cell runs from its start to its end."""
        self.train(cell_id, 0, last, checkpoints=(last // 2, last), **options)
        self.end(cell_id, last)

    def _record(self, cell_id: str, event: str, **more: Any) -> None:
        common = {"time": time.time(), "event": event, "stage": "train", "attempt": 1, "token": TOKEN}
        append_record(self.folder(cell_id) / "attempts.ndjson", common | more)

    def differing(self, server: WandbServer) -> list[str]:
        """The cells whose history at W&B is not their journal, line by line."""
        return [cell_id for cell_id in self.ids if not self.is_told(cell_id, server.runs.get(cell_id))]

    def is_told(self, cell_id: str, run: Run | None) -> bool:
        rows = read_journal(self.folder(cell_id))
        if run is None or sorted(run.lines) != list(range(len(rows))):
            return False
        told = [{"step": r.step, "examples_seen": r.examples_seen, "_step": i, **r.values} for i, r in enumerate(rows)]
        kept = [{k: v for k, v in run.lines[i].items() if k == "_step" or k[0] != "_"} for i in range(len(rows))]
        return all(map(same, told, kept))


def same(told: dict[str, float], kept: dict[str, float]) -> bool:
    """Whether the names are the same and the values too; NaN is NaN."""
    return told.keys() == kept.keys() and all(kept[k] == v or (kept[k] != kept[k] and v != v) for k, v in told.items())


def damage(path: Path) -> None:
    """The evaluation cannot be read any more."""
    assert pl.read_parquet(path).height
    path.write_bytes(b"PAR1 torn")
