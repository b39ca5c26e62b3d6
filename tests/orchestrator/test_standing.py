"""What `upshot status` says of W&B and TensorBoard."""

import json
import os
from pathlib import Path

import pytest

from orchestrator import tracking
from orchestrator.files import append_record
from orchestrator.study import load_study
from orchestrator.submissions import Task
from orchestrator.tables import print_sentence, wandb_lines
from orchestrator.tracking import standing
from orchestrator.tracking.wandb_run import note
from tests.orchestrator.ledger import EVALUATE, TRAIN
from tests.orchestrator.test_cli import local_profile
from tests.orchestrator.upshot_command import upshot, upshot_json

NOW = 1_000_000.0
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _bare_machine(tmp_path, monkeypatch):
    """Nobody has set up wandb here."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


@pytest.fixture
def study(small):
    """The small study, mirrored online."""
    return load_study(small.path, ['wandb.mode="online"']).study


@pytest.fixture
def ended(ledger):
    """Four cells that were trained and judged an hour ago, each with its training log and its journal."""
    ledger.submit_both()
    for cell in range(4):
        ledger.trained(4, cell=cell)
        ledger.evaluated(4, cell=cell)
        for name in ("train.ndjson", "wandb.ndjson"):
            append_record(folder(ledger, cell) / name, {"event": "train"})
        for path in [*files(ledger, cell), *(folder(ledger, cell) / "evals").iterdir()]:
            touch(path, -3600)
    return ledger


def folder(ledger, cell=0) -> Path:
    return ledger.store.cell_folder(ledger.cells[cell].cell_id)


def files(ledger, cell):
    return [folder(ledger, cell) / name for name in ("train.ndjson", "wandb.ndjson")]


def touch(path, seconds) -> None:
    """Changed so many seconds after NOW."""
    os.utime(path, (NOW + seconds, NOW + seconds))


def mirror(ledger, cell=0, seconds=-1800, **changes) -> None:
    """A mirror of the cell, so many seconds after NOW, left this note."""
    note(folder(ledger, cell), **{"ok": True, "mode": "online", "error": None, "rows": 1, "outcome": "done", **changes})
    path = folder(ledger, cell) / "mirror.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "time": NOW + seconds}))
    touch(path, seconds)


def look(ledger, study, tasks=None, now=NOW):
    states = [ledger.state(tasks, cell) for cell in range(4)]
    return tracking.mirrored(ledger.store, study, states, now)


def numbers(found):
    return found.num_ran, found.num_current, found.num_behind, found.num_offline, found.num_never


def test_cells_that_ran_are_counted_by_what_wandb_has_of_them(ended, study):
    mirror(ended, 0)
    mirror(ended, 1, seconds=-4000)
    mirror(ended, 2, mode="offline")
    found = look(ended, study)
    assert numbers(found) == (4, 1, 1, 1, 1)
    assert found.trouble is None
    assert wandb_lines(found) == [
        "W&B online: 1 of 4 cells that ran are up to date, 1 behind, 1 wait as offline runs, 1 not mirrored:"
        " `upshot sync` mends that"
    ]


def test_the_documented_lines_are_what_is_printed(capsys):
    error = "no W&B key for https://api.wandb.ai: `wandb login` keeps one, or set WANDB_API_KEY"
    trouble = standing.Trouble(error=error, time=0.0, num_cells=10)
    counts = {"num_ran": 200, "num_current": 188, "num_behind": 10, "num_offline": 0, "num_never": 2}
    for line in wandb_lines(tracking.Mirrored(mode="online", **counts, trouble=trouble)):
        print_sentence(line)
    printed = capsys.readouterr().out
    assert f"```\n{printed}tensorboard --logdir " in (ROOT / "docs" / "tracking.md").read_text()


def test_all_are_up_to_date(ended, study):
    for cell in range(4):
        mirror(ended, cell)
    assert wandb_lines(look(ended, study)) == ["W&B online: all 4 cells that ran are up to date"]


def test_offline_runs_that_wait_are_no_trouble(ended, study):
    for cell in range(4):
        mirror(ended, cell, mode="offline")
    (line,) = wandb_lines(look(ended, study))
    assert line.endswith(": 4 cells that ran wait in their folders: `upshot sync` tells W&B")


@pytest.mark.parametrize("name", ["train.ndjson", "wandb.ndjson", "evals/step_00000004"])
def test_a_cell_is_behind_once_anything_of_it_is_newer(ended, study, name):
    mirror(ended)
    assert numbers(look(ended, study))[1:3] == (1, 0)
    touch(folder(ended) / name, -1799)
    assert numbers(look(ended, study))[1:3] == (0, 1)


@pytest.mark.parametrize("changes", [{"ok": False, "error": "x"}, {"outcome": "running"}, {"outcome": "failed"}])
def test_a_cell_is_behind_whose_end_was_not_told(ended, study, changes):
    mirror(ended, **changes)
    assert numbers(look(ended, study)) == (4, 0, 1, 0, 3)


def test_a_checkpoint_that_is_half_judged_has_nothing_to_be_told_yet(ended, study):
    mirror(ended)
    ended.finalise(8)
    ended.evaluated(8, tasks=("mnist",))
    ended.run("failed", token=EVALUATE)
    step = folder(ended) / "evals" / "step_00000008"
    touch(step, -60)
    mirror(ended, outcome="failed")
    assert numbers(look(ended, study))[1:3] == (1, 0)
    ended.evaluated(8)
    touch(step, -60)
    mirror(ended)
    assert numbers(look(ended, study))[1:3] == (0, 1)


def test_a_cell_that_trains_may_be_some_minutes_ahead(ledger, study):
    ledger.submit_both()
    tasks = {(TRAIN, cell): Task("running") for cell in range(4)}
    for cell in range(4):
        ledger.start(cell, time=NOW - (10 if cell == 3 else 4000))
        append_record(folder(ledger, cell) / "train.ndjson", {"event": "train"})
        touch(folder(ledger, cell) / "train.ndjson", -1)
    mirror(ledger, 0, seconds=-standing.LAG_S, outcome="running")
    mirror(ledger, 1, seconds=-standing.LAG_S - 2, outcome="running")
    # The third was never mirrored; the fourth began just now, and is not due.
    assert numbers(look(ledger, study, tasks)) == (3, 1, 1, 0, 1)


def test_the_newest_trouble_is_told_with_the_number_of_its_cells(ended, study):
    for cell in (0, 1):
        run = ended.cells[cell].cell_id
        mirror(ended, cell, ok=False, error=f"W&B has a run {run} of another study", seconds=-10)
    mirror(ended, 2, ok=False, error="W&B did not answer within 30 s", seconds=-20)
    found = look(ended, study)
    assert found.trouble is not None
    assert (found.trouble.error, found.trouble.num_cells) == ("W&B has a run CELL of another study", 2)
    assert wandb_lines(found)[1] == "W&B trouble, the newest of 2 cells: W&B has a run CELL of another study"


def test_an_offline_mirror_that_failed_left_nothing(ended, study):
    mirror(ended, ok=False, mode="offline", error="OSError: disk full")
    found = look(ended, study)
    assert numbers(found) == (4, 0, 0, 0, 4)
    assert found.trouble is not None


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"ok": true}', '{"ok": "yes", "mode": 1, "time": "never"}'])
def test_a_note_that_is_damaged_counts_as_none(ended, study, text):
    (folder(ended) / "mirror.json").write_text(text)
    assert numbers(look(ended, study)) == (4, 0, 0, 0, 4)


def test_a_note_that_is_a_link_or_a_pipe_is_not_followed(ended, study, tmp_path):
    mirror(ended, 1)
    (folder(ended) / "mirror.json").symlink_to(folder(ended, 1) / "mirror.json")
    os.mkfifo(folder(ended, 2) / "mirror.json")
    assert numbers(look(ended, study)) == (4, 1, 0, 0, 3)


def test_a_study_that_is_not_mirrored_says_so_until_somebody_does(ended, small):
    assert wandb_lines(look(ended, small.file.study)) == ["W&B: disabled"]
    mirror(ended)
    assert wandb_lines(look(ended, small.file.study))[0].startswith("W&B disabled: 1 of 4 cells")


def test_before_anything_ran(ledger, study):
    assert wandb_lines(look(ledger, study)) == ["W&B online: no cell has run yet"]


def test_a_mode_that_wandb_does_not_know_is_said_and_nothing_else_is_lost(ended, small, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "on-line")
    found = look(ended, load_study(small.path, ['wandb.mode="auto"']).study)
    assert found.mode == "unknown"
    assert "'on-line'" in wandb_lines(found)[1]


def test_status_prints_it_in_80_columns_and_as_json(ended, small):
    small.store.write_study(small.path.read_text().replace('"disabled"', '"online"'), local_profile())
    for token in (m.token for m in small.store.manifests()):
        ended.change(token, executor="local")
    mirror(ended)
    error = "no W&B key for https://api.wandb.ai: `wandb login` keeps one, or set WANDB_API_KEY"
    mirror(ended, 1, ok=False, error=error, seconds=-5)
    said = upshot("status", "--runs", "runs", "small.toml", cwd=small.path.parent).splitlines()
    assert max(map(len, said)) <= 80
    assert " ".join(" ".join(said).split()).count("W&B online: 1 of 4 cells that ran are up to date, 1 behind") == 1
    assert error in " ".join(" ".join(said).split())
    assert said[-1] == "tensorboard --logdir runs/small/cells"

    printed = upshot_json("status", small.store.root)
    assert printed["tensorboard"] == str(small.store.root / "cells")
    assert printed["wandb"] == {
        "mode": "online",
        "num_ran": 4,
        "num_current": 1,
        "num_behind": 1,
        "num_offline": 0,
        "num_never": 2,
        "trouble": {"error": error, "time": NOW - 5, "num_cells": 1},
    }
