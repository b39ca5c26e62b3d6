"""The results table: every wanted result file once, and none read twice."""

import os
import time

import polars as pl
import pytest

from evals.protocol import RESULT_SCHEMA
from models.errors import DataError
from orchestrator import results
from orchestrator.reduced_tables import print_reduced
from orchestrator.results import SCHEMA, collect
from orchestrator.session import Session
from slurm.cluster import local_profile
from slurm.failures import Cause
from tests.orchestrator.ledger import TRAIN


def write(ledger, cell, step, task, accuracy=0.5, draws=2):
    """The result file of one evaluation, as a job leaves it."""
    cell_id = ledger.cells[cell].cell_id
    known = {
        "cell_id": cell_id,
        "step": step,
        "task": task,
        "shots": 5,
        "layer": 0,
        "last_layer": True,
        "upstream_accuracy": 0.4,
        "downstream_accuracy": accuracy,
        "protocol": "ridge",
    }
    rows = [{**dict.fromkeys(RESULT_SCHEMA), **known, "draw": draw} for draw in reversed(range(draws))]
    folder = ledger.store.evals(cell_id, step)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{ledger.study.protocol.eval_id(task)}.parquet"
    pl.DataFrame(rows, schema=RESULT_SCHEMA).write_parquet(path)
    return path


@pytest.fixture
def evaluated(ledger):
    """Two cells of the study, of which the first has ended its training at step 4."""
    ledger.submit_both()
    ledger.start()
    ended = {
        "event": "end",
        "stage": "train",
        "outcome": "done",
        "attempt": 1,
        "token": TRAIN,
        "seconds": 1.0,
        "step": 4,
    }
    ledger.store.record_attempt(ledger.cells[0].cell_id, **ended)
    for cell in (0, 1):
        for step in (2, 4):
            write(ledger, cell, step, "mnist")
    return ledger


def table(ledger):
    return collect(ledger.store, ledger.study, ledger.cells).collect()


def count_reads(monkeypatch):
    read, paths = results._read, []

    def counted(path):
        paths.append(path)
        return read(path)

    monkeypatch.setattr(results, "_read", counted)
    return paths


def test_the_table_has_every_row_in_order_with_its_cell_s_axes(evaluated):
    found = table(evaluated)
    assert found.schema == pl.Schema(SCHEMA)
    assert found.height == 8
    assert found.equals(found.sort("cell_id", "step", "task", "shots", "draw", "layer"))
    families = {cell.cell_id: cell.recipe.family for cell in evaluated.cells}
    assert all(families[cell_id] == family for cell_id, family in found.select("cell_id", "family").iter_rows())
    assert pl.read_parquet(evaluated.store.results_path).equals(found)


def test_without_results_it_is_empty(ledger):
    assert table(ledger).is_empty()
    assert table(ledger).schema == pl.Schema(SCHEMA)


def test_a_result_file_is_read_once(evaluated, monkeypatch):
    paths = count_reads(monkeypatch)
    first = table(evaluated)
    assert len(paths) == 4
    assert table(evaluated).equals(first)
    assert len(paths) == 4


def test_only_what_changed_is_read_again(evaluated, monkeypatch):
    table(evaluated)
    paths = count_reads(monkeypatch)
    changed = write(evaluated, 1, 4, "mnist", accuracy=0.75)
    found = table(evaluated)
    assert {path.parents[2].name for path in paths} == {evaluated.cells[1].cell_id}
    assert found.filter(pl.col("downstream_accuracy") == 0.75).height == 2
    changed.unlink()
    assert table(evaluated).height == 6


def test_parts_that_another_collection_may_be_reading_stay_for_an_hour(evaluated):
    def parts():
        return set(evaluated.store.results_path.with_name("parts").iterdir())

    table(evaluated)
    before = parts()
    write(evaluated, 1, 4, "mnist", accuracy=0.75)
    table(evaluated)
    assert before < parts()
    (unused,) = (part for part in before if part.name.startswith(evaluated.cells[1].cell_id[:2]))
    os.utime(unused, (time.time() - 3601,) * 2)
    table(evaluated)
    assert unused not in parts()
    for part in parts():
        os.utime(part, (time.time() - 36000,) * 2)
    table(evaluated)
    assert len(parts()) == len({cell.cell_id[:2] for cell in evaluated.cells[:2]}), "what is used is young again"


def test_what_the_study_no_longer_asks_for_is_left_out(evaluated):
    write(evaluated, 0, 4, "cells")
    assert table(evaluated).height == 8


def test_a_damaged_result_file_is_named_and_the_table_stays(evaluated):
    before = table(evaluated)
    path = write(evaluated, 0, 2, "mnist")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=path.name):
        table(evaluated)
    assert pl.read_parquet(evaluated.store.results_path).equals(before)
    path.unlink()
    assert table(evaluated).height == 6


def test_an_answer_over_a_half_finished_study_says_so(evaluated, small, capsys):
    session = Session(small.file, small.store, local_profile())
    evaluated.finalise(2, 4)
    evaluated.run("failed", 3)
    evaluated.die(Cause.CODE_ERROR, 3)
    found = session.reduced(draws=5)
    assert found["study"]["finished"] is False
    assert found["study"]["cells"] == len(small.cells)
    assert found["study"]["failed"] == {"code-error": 1}
    assert all("so far: 1 of 4 cells" in task["verdict"] for task in found["tasks"])
    print_reduced(found)
    assert "Not finished: of 4 cells" in capsys.readouterr().out
