"""The journal of a cell, and which runs at W&B are its own."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import tracking
from orchestrator.grid import cells
from orchestrator.store import Manifest, Store
from orchestrator.tracking import opening
from orchestrator.tracking.curves import read_curve
from orchestrator.tracking.journal import JOURNAL, Row, advance, digest, read_journal
from orchestrator.tracking.transaction_log import num_rows_kept
from tests.orchestrator import test_tracking as tracked
from tests.orchestrator.conftest import SmallStudy
from tests.orchestrator.test_tracking import CELL_ID, CONFIG, append, evaluate, mirror, sync, training
from tests.wandb_server import WandbServer

_bare_machine, server, cell = tracked._bare_machine, tracked.server, tracked.cell

A, B = "0" * 12 + ".parquet", f"{1:012x}.parquet"
"""The names of the first and the second file that `evaluate` writes."""


def advanced(cell: Path, *wanted: str) -> list[Row]:
    return advance(cell, read_curve(cell), frozenset(wanted))


def judged(rows: list[Row]) -> list[tuple[int, dict[str, float]]]:
    return [(row.examples_seen, row.values) for row in rows if row.event == "evaluation"]


# --- the journal -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_told_once_all_its_evaluations_are_there(cell: Path) -> None:
    append(cell, training(0, 20, checkpoints=(10, 20)))
    evaluate(cell, 10, {0: [0.1], 1: [0.3]})
    assert judged(advanced(cell, A, B)) == []
    evaluate(cell, 10, {0: [0.2]}, task="digits")
    both = {
        "downstream/mnist/5shot/accuracy": 0.3,
        "downstream/mnist/5shot/best_layer": 1.0,
        "downstream/digits/5shot/accuracy": 0.2,
    }
    assert judged(advanced(cell, A, B)) == [(160, both)]
    assert judged(advanced(cell, A, B)) == [(160, both)]


def test_a_late_protocol_adds_a_line_with_its_metrics_alone(cell: Path) -> None:
    append(cell, training(0, 10, checkpoints=(10,)))
    evaluate(cell, 10, {0: [0.1]})
    before = advanced(cell, A)
    append(cell, training(10, 20, checkpoints=(20,)))
    evaluate(cell, 10, {0: [0.2]}, protocol="knn")
    evaluate(cell, 10, {0: [0.9]})  # mnist by ridge again: what was told stays
    rows = advanced(cell, A, B)
    assert rows[: len(before)] == before
    assert judged(rows[len(before) :]) == [(160, {"downstream/mnist/5shot/knn/accuracy": 0.2})]
    assert advanced(cell, A, B) == rows


def test_a_folder_that_somebody_put_aside_is_no_checkpoint(cell: Path) -> None:
    append(cell, training(0, 20, checkpoints=(10, 20)))
    evaluate(cell, 10, {0: [0.5]})
    for name in ("step_00000020.bak", "step_old", "step_old2"):
        shutil.copytree(cell / "evals" / "step_00000010", cell / "evals" / name)
    assert judged(advanced(cell)) == [(160, {"downstream/mnist/5shot/accuracy": 0.5})]


def test_a_null_is_told_when_it_gets_a_value(cell: Path) -> None:
    append(cell, training(0, 10, checkpoints=(10,)))
    path = evaluate(cell, 10, {0: [None]})
    assert judged(advanced(cell)) == []
    path.unlink()
    evaluate(cell, 10, {0: [0.5]})
    assert judged(advanced(cell)) == [(160, {"downstream/mnist/5shot/accuracy": 0.5})]


def test_losses_that_are_no_numbers_and_odd_names_are_kept(cell: Path) -> None:
    append(cell, [{"event": "train", "step": 1, "examples_seen": 16, "time": 1.0, "train_loss": math.nan}])
    append(cell, training(0, 10, checkpoints=(10,)))
    evaluate(cell, 10, {0: [0.5]}, task='süß/"x" .\n*')
    advanced(cell)
    rows = read_journal(cell)
    assert math.isnan(rows[0].values["train/loss"])
    assert judged(rows) == [(160, {'downstream/süß/"x" .\n*/5shot/accuracy': 0.5})]


def test_a_line_that_was_torn_never_counted(cell: Path) -> None:
    append(cell, training(0, 30))
    rows = advanced(cell)
    path = cell / JOURNAL
    path.write_bytes(path.read_bytes()[:-20])
    assert read_journal(cell) == rows[:2]
    assert advanced(cell) == rows
    assert advanced(cell) == rows


def test_a_journal_that_is_lost_is_made_anew_from_the_files(cell: Path) -> None:
    append(cell, training(0, 80, checkpoints=(50,)) + training(50, 100, checkpoints=(100,), salt=0.25))
    evaluate(cell, 50, {0: [0.5]})
    rows = advanced(cell)
    (cell / JOURNAL).unlink()
    assert advanced(cell) == rows


@given(
    keys=st.lists(st.tuples(st.sampled_from(["train", "checkpoint"]), st.integers(1, 6)), max_size=20),
    stops=st.lists(st.integers(0, 20), max_size=4),
)
def test_however_often_it_is_brought_up_to_date_each_step_stands_once(
    tmp_path_factory: pytest.TempPathFactory, keys: list[tuple[str, int]], stops: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("cell")
    records = [{"event": e, "step": s, "examples_seen": s, "time": i, "train_loss": i} for i, (e, s) in enumerate(keys)]
    done, before = 0, list[Row]()
    for stop in [*sorted(stops), len(records)]:
        append(folder, records[done:stop])
        done = max(done, stop)
        rows = advanced(folder)
        assert rows[: len(before)] == before
        before = rows
    assert sorted((row.event, row.step) for row in before) == sorted(set(keys))
    assert read_journal(folder) == before


def test_a_digest_tells_journals_apart(cell: Path) -> None:
    append(cell, training(0, 30))
    rows = advanced(cell)
    assert digest(rows) == digest(read_journal(cell))
    assert len({digest(rows), digest(rows[:2]), digest(rows[::-1]), digest([])}) == 4


def test_a_transaction_log_tells_how_many_rows_it_holds(cell: Path) -> None:
    append(cell, training(0, 3000))  # more than a block of 32 KiB
    folder = mirror(cell, "offline").folder
    assert folder is not None
    path = folder / f"run-{CELL_ID}.wandb"
    data = path.read_bytes()
    assert len(data) > 100_000
    assert num_rows_kept(path) == 300
    for size, expected in ((len(data) - 1, 0), (32 * 1024, 0), (3, 0), (0, 0)):
        path.write_bytes(data[:size])
        assert num_rows_kept(path) == expected
    path.write_bytes(data[:6] + b"\x01" + data[7:])  # of a later version
    assert num_rows_kept(path) is None


# --- whose run it is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"config": {**CONFIG, "family": "mixer"}}, "family is 'vit' there and 'mixer' here"),
        ({"config": {**CONFIG, "cell_id": "f" * 16}}, "cell_id"),
        ({"study": "other"}, "study is 'limits' there and 'other' here"),
    ],
)
def test_a_run_with_another_configuration_is_refused_and_left_as_it_is(
    cell: Path, server: WandbServer, changes: dict[str, Any], said: str
) -> None:
    append(cell, training(0, 30))
    assert mirror(cell, config={"cell_id": CELL_ID, **CONFIG}).ok
    run = server.runs[CELL_ID]
    before = (run.num_opened, run.group, dict(run.config), dict(run.summary), dict(run.lines), run.state)
    append(cell, training(30, 50))
    result = mirror(cell, **changes)
    assert not result.ok
    assert said in str(result.error)
    assert "wandb.project" in str(result.error)
    assert (run.num_opened, run.group, run.config, run.summary, run.lines, run.state) == before


def test_a_history_that_was_told_from_another_journal_is_refused(cell: Path, server: WandbServer) -> None:
    append(cell, training(0, 30, checkpoints=(10,)))
    mirror(cell, outcome="running")
    evaluate(cell, 10, {0: [0.5]})
    mirror(cell, outcome="running")
    append(cell, training(30, 60))
    (cell / JOURNAL).unlink()  # made anew, the evaluation would come after the steps that followed it
    result = mirror(cell)
    assert not result.ok
    assert "5 rows" in str(result.error)
    assert len(server.runs[CELL_ID].lines) == 5


def test_a_run_with_more_rows_than_the_journal_is_left_as_it_is(cell: Path, server: WandbServer) -> None:
    append(cell, training(0, 100))
    mirror(cell)
    run = server.runs[CELL_ID]
    before = (run.num_opened, dict(run.config), dict(run.summary), dict(run.lines), run.state)
    (cell / "train.ndjson").unlink()
    (cell / JOURNAL).unlink()
    append(cell, training(0, 50, salt=1.0))
    assert "10 records" in str(mirror(cell, outcome="running").error)
    append(cell, training(50, 150, salt=1.0))  # now there are more lines than rows, and yet they are others
    assert "10 rows" in str(mirror(cell).error)
    assert (run.num_opened, run.config, run.summary, run.lines, run.state) == before


def test_rows_that_wandb_counts_while_a_run_is_opened_are_not_told_again(cell: Path, server: WandbServer) -> None:
    append(cell, training(0, 100))
    mirror(cell, outcome="running")
    append(cell, training(100, 150))
    server.count_late(7, 7, until="UpsertBucket")  # the second answer to a client that goes on
    assert mirror(cell).ok
    run = server.runs[CELL_ID]
    assert [row["step"] for row in run.history] == list(range(10, 151, 10))
    assert (run.num_rewritten, run.state) == (0, "finished")


def test_a_run_whose_rows_wandb_has_not_counted_is_told_nothing(
    cell: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(cell, training(0, 100))
    mirror(cell, outcome="running")
    append(cell, training(100, 150))
    monkeypatch.setattr(opening, "PAUSES_S", (0.0,))
    server.count_late(7, 10)
    assert "has not counted" in str(mirror(cell).error)
    assert (len(server.runs[CELL_ID].lines), server.runs[CELL_ID].state) == (10, "preempted")
    server.count_late(7, 7, until="Run")
    assert mirror(cell).ok
    assert [row["step"] for row in server.runs[CELL_ID].history] == list(range(10, 151, 10))


def test_tags_that_somebody_gave_a_run_stay(cell: Path, server: WandbServer) -> None:
    append(cell, training(0, 30))
    mirror(cell, tags=["size=S"], outcome="running")
    server.runs[CELL_ID].tags.append("figure 3")
    mirror(cell, tags=["size=S", "family=vit"])
    assert server.runs[CELL_ID].tags == ["size=S", "family=vit", "figure 3"]


def test_a_journal_made_anew_that_is_the_same_goes_on(cell: Path, server: WandbServer) -> None:
    append(cell, training(0, 30, checkpoints=(10,)))
    mirror(cell, outcome="running")
    (cell / JOURNAL).unlink()
    append(cell, training(30, 60))
    assert (mirror(cell).ok, len(server.runs[CELL_ID].lines)) == (True, 7)


def test_a_checkpoint_that_is_judged_late_changes_nothing_of_the_newest_in_the_summary(
    cell: Path, server: WandbServer
) -> None:
    append(cell, training(0, 100, checkpoints=(50, 100)))
    evaluate(cell, 100, {0: [0.5]})
    mirror(cell)
    before = server.runs[CELL_ID].summary
    evaluate(cell, 50, {0: [0.1]})
    rows = [{"quantity": "top5", "layer": None, "label": None, "value": 0.9}]
    measures = cell / "evals" / "step_00000050" / "upstream-0.parquet"
    pl.DataFrame(rows, schema_overrides={"layer": pl.Int64, "label": pl.String}).write_parquet(measures)
    mirror(cell)
    run = server.runs[CELL_ID]
    assert run.history[-1] == {"step": 50, "examples_seen": 800, "downstream/mnist/5shot/accuracy": 0.1} | {
        "upstream/top5": 0.9
    }
    shown = {key: value for key, value in run.summary.items() if not key.startswith("_")}
    assert shown == {key: value for key, value in before.items() if not key.startswith("_")}
    assert (shown["step"], shown["examples_seen"]) == (100, 1600)


def test_how_a_mirror_went_stands_in_the_cells_folder(cell: Path, server: WandbServer) -> None:
    append(cell, training(0, 30))
    mirror(cell)
    note = json.loads((cell / "mirror.json").read_text())
    assert {key: note[key] for key in ("ok", "mode", "error", "rows")} == {
        "ok": True,
        "mode": "online",
        "error": None,
        "rows": 3,
    }
    os.environ.pop("WANDB_API_KEY")
    mirror(cell)
    note = json.loads((cell / "mirror.json").read_text())
    assert (note["ok"], note["rows"]) == (False, None)
    assert "no W&B key" in note["error"]


def test_odd_names_reach_wandb_online_and_offline(cell: Path, server: WandbServer) -> None:
    append(cell, training(0, 10, checkpoints=(10,)))
    evaluate(cell, 10, {0: [0.5]}, task="süß/x.y *")
    result = mirror(cell, "offline")
    assert result.folder is not None
    sync(result.folder)
    offline = server.runs.pop(CELL_ID)
    mirror(cell)
    name = "downstream/süß/x.y */5shot/accuracy"
    for run in (offline, server.runs[CELL_ID]):
        assert run.curve(name) == [(160, 0.5)]
        assert run.summary[name] == 0.5


# --- what is shown beside the curves ---------------------------------------------------------------------------------


def test_a_cell_is_described_by_its_axes_jobs_and_costs(tmp_path: Path) -> None:
    small = SmallStudy(tmp_path)
    store: Store = small.store
    store.write_study(small.path.read_text(), tracked_profile())
    store.write_cells(cells(small.file.study, small.path))
    cell_id = small.cells[0].cell_id
    asked = {"accelerators": 4, "num_nodes": 2, "partition": "gpu"}
    manifest = {"study": "small", "executor": "slurm", "tasks": [[cell_id]], "resources": asked, "submitted": 0.0}
    store.write_manifest(Manifest(token="t", stage="train", **manifest))
    one = {"stage": "train", "token": "t"}
    start = {"event": "start", "attempt": 1, "job": "7_0", **one}
    store.record_attempt(cell_id, **{**start, "time": 1000.0})
    append(store.cell_folder(cell_id), [{"time": 2800.0, "event": "train", "step": 1, "examples_seen": 64}])
    store.record_attempt(cell_id, **{**start, "attempt": 2, "job": "8_0", "time": 8200.0})
    end = {"event": "end", "attempt": 2, "seconds": 3600.0, "outcome": "done"}
    store.record_attempt(cell_id, **end, **one)
    done = store.checkpoints(cell_id) / "step_00000010"
    done.mkdir(parents=True)
    (done / "DONE").touch()

    found = tracking.describe(store, cell_id)

    assert (found.config["accelerators"], found.config["num_nodes"], found.config["partition"]) == (8, 2, "gpu")
    assert found.config["jobs"] == ["7_0", "8_0"]
    assert found.config["cell_id"] == cell_id
    assert found.config["fraction"] == small.cells[0].recipe.fraction
    assert found.tags == [f"family={small.cells[0].recipe.family}", f"fraction={small.cells[0].recipe.fraction}"]
    assert (
        found.summary
        == {
            "gpu_hours": 8 * 1.5,  # the first one was killed after half an hour
            "attempts": 2,
            "checkpoint": f"cells/{cell_id[:2]}/{cell_id}/checkpoints/step_00000010",
            "cause": None,
        }
    )
    assert len(found.wanted) == 3  # two tasks, and the upstream images


def tracked_profile() -> Any:
    from slurm.cluster import load_profile

    return load_profile("local")
