"""The demo explains what it does: of the study that it runs, where it is of use, and no more than that."""

import re
import shlex

import pytest
from typer.main import get_command

from models.data import shipped
from orchestrator import demo
from orchestrator.cli import app
from orchestrator.study import load_study


@pytest.fixture
def told(small, monkeypatch, capsys):
    """What the demo prints when the small study stands for the quickstart study."""
    monkeypatch.setattr(demo, "shipped", lambda *_: small.path)
    assert demo.run_demo("local", small.runs).num_failed == 0
    return capsys.readouterr().out


def test_each_phase_and_every_column_is_explained(small, told):
    said = re.sub(r"\s+", " ", told)
    order = [
        "here 4 of them (2 of family x 2 of fraction)",
        "4 cells: 4 to submit",
        "trained on real images (icons)",
        "on 2 tasks it has never seen, with 1, 5 images a class, drawn 2 times",
        "done, running, pending and failed count cells",
        "4 done, 0 running, 0 pending, 0 failed",
        "4 cells ended after",
        '"vertices" are the cells on the upper hull',
        "cells vertices saturates at alpha k",
        "conflicts significant best error points",
        f"Report: {small.store.report_folder / 'index.html'}",
        "Look first at",
        "upshot init",
        "upshot plan",
        "upshot submit",
    ]
    places = [said.find(words) for words in order]
    assert -1 not in places, order[places.index(-1)]
    assert places == sorted(places)
    assert all(len(line) <= 80 or str(small.runs) in line or str(small.path) in line for line in told.splitlines())
    headings = {word for line in told.splitlines() if line.startswith("task ") for word in re.split(r"\s{2,}", line)}
    assert set(re.findall(r'"(\w[\w ]*)"', " ".join(demo.ANSWER))) - headings == {"not identifiable"}


def test_the_three_commands_exist():
    commands = [shlex.split(line, comments=True) for line in demo.OWN_DATA.splitlines()[1:]]
    assert [words[0] for words in commands] == ["upshot"] * 3
    assert {words[1] for words in commands} <= set(get_command(app).commands)


def test_the_quickstart_study_is_told_in_its_own_numbers():
    study = load_study(shipped("studies", "quickstart.toml")).study
    assert "here 36 of them (3 of family x 3 of size x 2 of fraction x 2 of head_weight_decay)" in demo.question(
        study, 36
    )
    assert "on 8 tasks it has never seen, with 1, 5, 10, 25 images a class, drawn 3 times" in demo.training(study)
