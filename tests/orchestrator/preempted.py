"""Cells that are trained, preempted and judged in their folders alone, by the product's writers: nothing computes."""

import json
import random
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import polars as pl

from evals.measures import MEASURES_SCHEMA
from evals.protocol import RESULT_SCHEMA
from orchestrator.files import append_record
from orchestrator.store import Manifest, Store
from orchestrator.study import Study
from orchestrator.wanted import wanted_files

NUM_STEPS, EVERY, CHECKPOINTS, BATCH_SIZE = 60, 5, (30, 60), 64
TOKEN = "a" * 12
Key = tuple[str, int]
"""The event and the step of a record."""


def submit(store: Store, cell_ids: list[str]) -> None:
    """Writes the submission that all attempts name."""
    resources = {"accelerators": 1, "num_nodes": 1, "partition": "gpu"}
    common: dict[str, Any] = {"study": store.study().name, "executor": "slurm", "submitted": 0.0, "job_id": "1"}
    store.write_manifest(
        Manifest(token=TOKEN, stage="train", tasks=[[i] for i in cell_ids], resources=resources, **common)
    )


class SteadyStore(Store):
    """A study that nobody edits: it is read once, not twice a mirror."""

    @cache  # noqa: B019 - it lives as long as its test
    def study(self) -> Study:
        return super().study()


@dataclass(slots=True)
class PreemptedCell:
    """A cell that is trained attempt by attempt. Every attempt measures numbers of its own, so that none is mistaken.

    It stands at `step`, and goes on from `saved` when it dies. `records` are the newest of each event and step;
    `results` the metrics that each judged checkpoint comes to.
    """

    store: Store
    cell_id: str
    chance: random.Random
    attempt: int = 0
    step: int = 0
    saved: int = 0
    records: dict[Key, dict[str, Any]] = field(default_factory=dict)
    results: dict[int, dict[str, float]] = field(default_factory=dict)
    is_running: bool = False
    clock: float = 1e9

    @property
    def is_trained(self) -> bool:
        return ("checkpoint", NUM_STEPS) in self.records and self.step == NUM_STEPS

    def train(self, num_records: int) -> None:
        """Trains on, for that many training records at most, in a new attempt where the last one has ended."""
        if not self.is_running:
            self._start()
        for _ in range(num_records):
            if self.step < NUM_STEPS:
                self._take_steps()
                if self.step in CHECKPOINTS:
                    self._save()
        if self.is_trained:
            self._end("done")

    def stop(self) -> None:
        """The attempt is told to stop, and leaves a checkpoint to go on from where it is."""
        if self.is_running:
            self.saved = self.step
            self._end("interrupted")

    def kill(self, *, torn: bool) -> None:
        """The attempt dies without a word, in the middle of a line where that is `torn`, or of saving a checkpoint."""
        if not self.is_running:
            return
        if torn:
            with self.store.train_log(self.cell_id).open("a") as file:
                file.write(json.dumps({"event": "train", "step": self.step + EVERY})[: self.chance.randint(1, 20)])
        elif self.step + EVERY in CHECKPOINTS:
            self._take_steps()
        self.is_running, self.step = False, self.saved

    def evaluate(self, step: int) -> None:
        """Judges a checkpoint: a file for every task and protocol, and the upstream measures."""
        wanted = wanted_files(self.store.study())
        values = self.results.setdefault(step, {})
        for (task, protocol), name in wanted.results.items():
            rows = self._result_rows(step, task, protocol, values)
            self._write(step, name, pl.DataFrame(rows, schema=RESULT_SCHEMA))
        assert wanted.measures is not None
        values["upstream/margin_mean"] = self.chance.random()
        row = {
            "cell_id": self.cell_id,
            "step": step,
            "quantity": "margin_mean",
            "value": values["upstream/margin_mean"],
        }
        self._write(step, wanted.measures, pl.DataFrame([row], schema=MEASURES_SCHEMA))

    def _start(self) -> None:
        self.attempt, self.is_running = self.attempt + 1, True
        self._note("start", job=f"1_{self.attempt}", host="node1", pid=1)
        self._log({"event": "start", "step": self.step, "num_steps": NUM_STEPS, "params": 28_000})

    def _end(self, outcome: str) -> None:
        self.is_running = False
        self._note("end", outcome=outcome, step=self.step, seconds=1.0)

    def _note(self, event: str, **more: Any) -> None:
        self.store.record_attempt(self.cell_id, event=event, stage="train", attempt=self.attempt, token=TOKEN, **more)

    def _take_steps(self) -> None:
        self.step += EVERY
        measured = {"train_loss": self.chance.random(), "images_per_second": 1000 * self.chance.random()}
        self._log({"event": "train", **self._where(), **measured, "learning_rate": 1e-3})

    def _save(self) -> None:
        folder = self.store.checkpoints(self.cell_id) / f"step_{self.step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "DONE").touch()
        measured = {"upstream_accuracy": self.chance.random(), "upstream_loss": self.chance.random()}
        self._log({"event": "checkpoint", **self._where(), **measured, "params": 28_000, "flops": 1e6 * self.step})
        self.saved = self.step

    def _where(self) -> dict[str, int]:
        return {"step": self.step, "examples_seen": self.step * BATCH_SIZE}

    def _log(self, record: dict[str, Any]) -> None:
        self.clock += 1.0
        append_record(self.store.train_log(self.cell_id), {"time": self.clock, **record})
        self.records[record["event"], record["step"]] = record

    def _result_rows(self, step: int, task: str, protocol: str, values: dict[str, float]) -> list[dict[str, Any]]:
        """Two draws at each of three layers; what they come to goes into `values`."""
        rows = []
        for shots in self.store.study().downstream.shots:
            accuracy = {layer: [self.chance.random() for _ in range(2)] for layer in range(3)}
            means = {layer: sum(draws) / 2 for layer, draws in accuracy.items()}
            prefix = f"downstream/{task}/{shots}shot" + ("" if protocol == "ridge" else f"/{protocol}")
            values[f"{prefix}/accuracy"] = means[2]
            values[f"{prefix}/best_layer"] = max(means, key=lambda layer: means[layer])
            rows += [
                {"cell_id": self.cell_id, "step": step, "task": task, "protocol": protocol, "shots": shots}
                | {"draw": draw, "layer": layer, "num_layers": 3, "last_layer": layer == 2}
                | {"downstream_accuracy": value}
                for layer, draws in accuracy.items()
                for draw, value in enumerate(draws)
            ]
        return rows

    def _write(self, step: int, name: str, table: pl.DataFrame) -> None:
        folder = self.store.evals(self.cell_id, step)
        folder.mkdir(parents=True, exist_ok=True)
        table.write_parquet(folder / name)
