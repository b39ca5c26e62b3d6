"""The results table: every wanted result file once, and none read twice."""

import os
import time
from dataclasses import replace

import polars as pl
import pytest

from evals.measures import MEASURES_SCHEMA
from evals.protocol import RESULT_SCHEMA, upstream_eval_id
from models.errors import DataError, UnknownNameError, UserError
from orchestrator import results
from orchestrator.reduce_job import submit_reduce
from orchestrator.reduced_tables import print_reduced
from orchestrator.results import SCHEMA, UPSTREAM_SCHEMA, collect
from orchestrator.session import Session
from slurm.cluster import local_profile
from slurm.failures import Cause
from tests.orchestrator.ledger import TRAIN


def write(ledger, cell, step, task, accuracy=0.5, draws=2, protocol="ridge", shots=5, lacking=()):
    """The result file of one evaluation, as a job leaves it."""
    cell_id = ledger.cells[cell].cell_id
    known = {
        "cell_id": cell_id,
        "step": step,
        "task": task,
        "shots": shots,
        "layer": 0,
        "last_layer": True,
        "upstream_accuracy": 0.4,
        "downstream_accuracy": accuracy,
        "protocol": protocol,
    }
    rows = [{**dict.fromkeys(RESULT_SCHEMA), **known, "draw": draw} for draw in reversed(range(draws))]
    folder = ledger.store.evals(cell_id, step)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{replace(ledger.study.protocols[0], name=protocol).eval_id(task)}.parquet"
    pl.DataFrame(rows, schema=RESULT_SCHEMA).drop(lacking).write_parquet(path)
    return path


def measure(ledger, cell, step, value, *, by_class=False):
    """The file of a checkpoint's upstream measures, as a job leaves it."""
    known = {"cell_id": ledger.cells[cell].cell_id, "step": step, "quantity": "margin", "value": value}
    folder = ledger.store.evals(known["cell_id"], step)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{upstream_eval_id(by_class=by_class)}.parquet"
    rows = [{**dict.fromkeys(MEASURES_SCHEMA), **known, "label": label} for label in ("sea", None)]
    pl.DataFrame(rows, schema=MEASURES_SCHEMA).write_parquet(path)
    return path


def asking(ledger, **changes):
    """The ledger's study with another choice of evaluations."""
    downstream = ledger.study.downstream.model_copy(update=changes)
    return ledger.study.model_copy(update={"downstream": downstream})


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

    def counted(path, kind):
        paths.append(path)
        return read(path, kind)

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


def test_drafts_that_vanish_meanwhile_are_not_missed(evaluated):
    folder = evaluated.store.evals(evaluated.cells[0].cell_id, 4)
    (folder / ".a-draft.tmp").symlink_to("gone")  # listed, and not there when it is looked at
    assert collect(evaluated.store, evaluated.study, evaluated.cells).collect().height


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


def test_rows_of_each_protocol_that_is_asked_for_are_collected(evaluated):
    write(evaluated, 0, 4, "mnist", protocol="linear", shots=None, draws=1)
    assert table(evaluated).height == 8
    both = collect(evaluated.store, asking(evaluated, protocol=["linear", "ridge"]), evaluated.cells).collect()
    assert both["protocol"].value_counts().sort("protocol").rows() == [("linear", 1), ("ridge", 8)]
    assert both.filter(protocol="linear")["shots"].to_list() == [None]
    assert both.equals(both.sort("cell_id", "step", "task", "protocol", "shots", "draw", "layer"))


def test_files_of_earlier_versions_have_nulls_in_the_columns_that_they_lack(evaluated):
    younger = ["downstream_class_accuracy", "downstream_duplicates"]
    before = table(evaluated)
    for cell, step in ((0, 2), (1, 4)):
        write(evaluated, cell, step, "mnist", lacking=younger)
    assert table(evaluated).equals(before)
    write(evaluated, 0, 2, "mnist", lacking=["downstream_accuracy"])
    with pytest.raises(DataError, match="downstream_accuracy"):
        table(evaluated)


def test_upstream_measures_are_a_table_of_their_own_that_only_what_changed_is_read_for(evaluated, monkeypatch):
    for cell, step, value in ((0, 2, 0.1), (0, 4, 0.2), (1, 2, 0.3)):
        measure(evaluated, cell, step, value)
    measure(evaluated, 0, 4, 9.9, by_class=True)  # which the study does not ask for
    table(evaluated)
    measures = pl.read_parquet(evaluated.store.measures_path)
    assert measures.schema == pl.Schema(UPSTREAM_SCHEMA)
    overall = measures.filter(pl.col("label").is_null())
    expected = {(evaluated.cells[c].cell_id, s, v) for c, s, v in ((0, 2, 0.1), (0, 4, 0.2), (1, 2, 0.3))}
    assert set(overall.select("cell_id", "step", "value").iter_rows()) == expected
    assert overall.filter("last_checkpoint")["value"].to_list() == [0.2]
    families = {cell.cell_id: cell.recipe.family for cell in evaluated.cells}
    assert all(families[cell_id] == family for cell_id, family in measures.select("cell_id", "family").iter_rows())
    paths = count_reads(monkeypatch)
    changed = measure(evaluated, 1, 2, 0.4)
    table(evaluated)
    assert paths == [changed]
    assert 0.4 in pl.read_parquet(evaluated.store.measures_path)["value"].to_list()


def test_the_study_s_first_protocol_counts_unless_another_is_named(evaluated, small):
    study = asking(evaluated, protocol=["linear", "ridge"])
    session = Session(replace(small.file, study=study), small.store, local_profile())
    evaluated.finalise(2, 4)
    assert session.reduced(draws=5)["protocol"] == "ridge", "the first one has no result yet"
    write(evaluated, 0, 4, "mnist", protocol="linear", shots=None, draws=1, accuracy=0.9)
    found = session.reduced(draws=5)
    assert (found["protocol"], [(task["task"], task["shots"]) for task in found["tasks"]]) == (
        "linear",
        [("mnist", None)],
    )
    named = session.reduced(draws=5, protocol="ridge")
    assert (named["protocol"], [task["shots"] for task in named["tasks"]]) == ("ridge", [5])
    assert "protocol linear" in found["tasks"][0]["method"]
    for wrong in ("ridge-fixed", "linaer"):
        with pytest.raises(UnknownNameError, match=f"unknown protocol '{wrong}' in study small .known: linear, ridge"):
            session.reduced(draws=5, protocol=wrong)
        with pytest.raises(UnknownNameError, match=wrong):
            submit_reduce(session, {"protocol": wrong, "seed": 0})
    with pytest.raises(UserError, match="this machine"):
        submit_reduce(session, {"protocol": "ridge", "seed": 0})
