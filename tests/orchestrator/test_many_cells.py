"""200 cells that are preempted, mirrored at random moments, by the real client to a server that is ill now and then."""

import gc
import json
import os
import random
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.grid import cells
from orchestrator.node import mirror_cell
from orchestrator.store import Store
from orchestrator.study import load_study
from orchestrator.tracking.curves import CURVES, read_curve
from orchestrator.tracking.journal import Row, advance, read_journal
from slurm.cluster import load_profile
from tests.orchestrator import test_tracking as tracked
from tests.orchestrator.preempted import CHECKPOINTS, EVERY, NUM_STEPS, Key, PreemptedCell, SteadyStore, submit
from tests.orchestrator.test_live import kept, told
from tests.orchestrator.test_tracking import cores_of
from tests.wandb_server import Run, WandbServer

_bare_machine, server = tracked._bare_machine, tracked.server

NUM_CELLS = 200
SHORT_S = 1.0  # what a mirror may wait for a server that is ill
STUDY = """
name = "many"
[upstream]
dataset = "icons"
[grid]
family = ["vit", "mixer"]
size = "pico"
patch_size = 8
learning_rate = [1e-4, 2e-4, 5e-4, 1e-3]
seed = {seeds}
[downstream]
tasks = ["mnist"]
shots = [5]
draws = 2
[wandb]
mode = "online"
"""
EVERY_ROW = {("train", step) for step in range(EVERY, NUM_STEPS + 1, EVERY)} | {("checkpoint", s) for s in CHECKPOINTS}


def store_of(folder: Path, num_cells: int) -> Store:
    path = folder / "many.toml"
    path.write_text(STUDY.format(seeds=list(range(num_cells // 8 or 1))))
    file = load_study(path)
    store = SteadyStore(folder / "runs" / "many")
    store.write_study(file.text, load_profile("local"))
    store.write_cells(cells(file.study, path))
    return store


# --- the journal, whatever happens when ------------------------------------------------------------------------------

HAPPENINGS = st.one_of(
    st.tuples(st.just("train"), st.integers(1, 6)),
    st.tuples(st.just("stop"), st.none()),
    st.tuples(st.just("kill"), st.booleans()),
    st.tuples(st.just("look"), st.none()),
)


@pytest.fixture(scope="module")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return store_of(tmp_path_factory.mktemp("journal"), 8)


@settings(max_examples=100)
@given(happenings=st.lists(HAPPENINGS, min_size=4, max_size=25), number=st.integers(0, 2**32))
@example(happenings=[("train", 4), ("kill", False), ("train", 1), ("look", None)], number=0)  # went further, unseen
def test_whatever_happens_when_the_journal_has_every_row_once_in_the_order_of_steps(
    small_store: Store, happenings: list[tuple[str, Any]], number: int
) -> None:
    cell = PreemptedCell(small_store, f"{number:016x}", random.Random(number))
    for path in [small_store.train_log(cell.cell_id), small_store.cell_folder(cell.cell_id) / "wandb.ndjson"]:
        path.unlink(missing_ok=True)
    before: list[Row] = []
    for what, how in [*happenings, ("train", NUM_STEPS), ("look", None)]:
        if what == "look":
            rows = look(cell)
            assert rows[: len(before)] == before
            before = rows
        elif not cell.is_trained:
            act = {"train": cell.train, "stop": lambda _: cell.stop(), "kill": lambda torn: cell.kill(torn=torn)}
            act[what](how)
    check_order(before)
    assert {(row.event, row.step) for row in before} == EVERY_ROW
    assert read_journal(small_store.cell_folder(cell.cell_id)) == before


def look(cell: PreemptedCell) -> list[Row]:
    folder = cell.store.cell_folder(cell.cell_id)
    folder.mkdir(parents=True, exist_ok=True)
    return advance(folder, read_curve(folder))


def check_order(rows: list[Row]) -> None:
    """Within an event steps rise, so none is repeated."""
    for event in {row.event for row in rows}:
        steps = [row.step for row in rows if row.event == event]
        assert steps == sorted(set(steps)), f"{event}: {steps}"


# --- 200 of them at W&B ----------------------------------------------------------------------------------------------


class Mirrored:
    """A cell and what W&B is to have of it: of each row what was newest when a mirror first saw it."""

    def __init__(self, cell: PreemptedCell) -> None:
        self.cell, self.folder = cell, cell.store.cell_folder(cell.cell_id)
        self.expected: dict[Key, dict[str, float]] = {}
        self.num_preempted = 0

    def go_on(self) -> bool:
        """Does one thing of the cell's life; whether there is more to come."""
        cell, chance = self.cell, self.cell.chance
        if cell.is_trained:
            judged = [step for step in CHECKPOINTS if step not in cell.results]
            if judged:
                cell.evaluate(judged[0])
            return len(judged) > 1
        if cell.is_running and chance.random() < 0.35 and self.num_preempted < 3:
            self.num_preempted += 1
            cell.stop() if chance.random() < 0.3 else cell.kill(torn=chance.random() < 0.5)
        else:
            cell.train(chance.randint(2, 6))
        return True

    def mirror(self, **options: Any) -> bool:
        """Whether W&B has the cell as it stands."""
        for (event, step), record in self.cell.records.items():
            if event in CURVES:
                values = {name: record[key] for key, name in CURVES[event].items() if key in record}
                self.expected.setdefault((event, step), values)
        for step, values in self.cell.results.items():
            self.expected.setdefault(("evaluation", step), values)
        outcome = "done" if self.cell.is_trained else "running"
        return mirror_cell(self.cell.store, self.cell.cell_id, outcome, **options).ok

    def check(self, run: Run) -> None:
        assert told(run) == kept(self.folder)  # no duplicate, no gap, nothing rewritten
        rows = read_journal(self.folder)
        check_order(rows)
        assert {(row.event, row.step): row.values for row in rows} == self.expected
        last = self.cell.records["checkpoint", NUM_STEPS]
        summary = {"upstream/accuracy": last["upstream_accuracy"], "upstream/loss": last["upstream_loss"]}
        summary |= {"attempts": self.cell.attempt, "outcome": "done", "flops": last["flops"], "params": 28_000}
        summary |= self.cell.results[NUM_STEPS]
        assert {key: run.summary.get(key) for key in summary} == summary
        assert (run.state, run.group, run.job_type) == ("finished", "many", "cell")


def ill(server: WandbServer, killed: list["subprocess.Popen[bytes]"]) -> list[Callable[[Mirrored], None]]:
    """What goes wrong at W&B, one thing after the other, while a cell is mirrored; notes the clients that it kills."""

    def answers(fault: Any, path: str = "/") -> Callable[[Mirrored], None]:
        def mirror(cell: Mirrored) -> None:
            cell.cell.train(2)
            server.fail(fault, path)
            assert not cell.mirror(timeout_s=SHORT_S)
            server.recover()

        return mirror

    def dies(cell: Mirrored) -> None:
        server.go_away()
        assert not cell.mirror(timeout_s=SHORT_S)
        server.come_back()

    def loses_its_client(cell: Mirrored) -> None:
        cell.cell.train(2)
        server.cut_off.clear()
        server.fail("half", "/file_stream")
        killing = threading.Thread(target=kill_the_client, daemon=True)
        killing.start()
        assert not cell.mirror(timeout_s=10 * SHORT_S)
        killing.join()
        server.recover()

    def kill_the_client() -> None:
        assert server.cut_off.wait(20)
        clients = cores_of(os.getpid())
        killed.extend(p for p in gc.get_objects() if type(p) is subprocess.Popen and p.pid in clients)
        for client in killed:
            client.kill()

    return [answers(429), answers(500), answers("hang"), answers("half", "/file_stream"), dies, loses_its_client]


def test_200_cells_that_are_preempted_are_at_wandb_once_and_wholly(tmp_path: Path, server: WandbServer) -> None:
    store, chance = store_of(tmp_path, NUM_CELLS), random.Random(7)
    made = [cell.cell_id for cell in store.cells()]
    assert len(made) == NUM_CELLS
    submit(store, made)
    everyone = [Mirrored(PreemptedCell(store, cell_id, random.Random(cell_id))) for cell_id in made]
    killed: list[subprocess.Popen[bytes]] = []
    troubles, living, turns = ill(server, killed), list(everyone), 0
    while living:
        cell, turns = chance.choice(living), turns + 1
        if not cell.go_on():
            living.remove(cell)
        if turns % 100 == 0 and troubles:
            troubles.pop(0)(next(c for c in living if not c.cell.is_trained))
        elif chance.random() < 0.1:
            assert cell.mirror()
    assert troubles == []
    assert len(killed) == 1
    for cell in everyone:
        assert cell.mirror()
    assert set(server.runs) == set(made)
    for cell in everyone:
        cell.check(server.runs[cell.cell.cell_id])
    preempted = Counter(cell.num_preempted for cell in everyone)
    assert sum(preempted[n] for n in (1, 2, 3)) > NUM_CELLS / 2
    assert sum(run.num_opened > 1 for run in server.runs.values()) > NUM_CELLS / 3, "many were to be gone on with"
    assert json.loads((everyone[0].folder / "mirror.json").read_text())["rows"] == len(everyone[0].expected)
    for client in killed:  # wandb does not wait for it
        client.wait()
