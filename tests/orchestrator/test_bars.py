"""The bars of long work, each on a real terminal of 80 columns: they are shown, fit, go away, and tear nothing."""

import json
import shlex

import polars as pl
import pytest
import timm
import torch

from tests.models.stored_images import examples, write_shards
from tests.orchestrator.in_terminal import ESCAPES, in_terminal, screen
from tests.orchestrator.own_server import own_server
from tests.orchestrator.ran_study import RanStudy
from tests.orchestrator.upshot_command import UPSHOT, upshot

HEAVY = "━"


@pytest.fixture
def server(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    with own_server(home, monkeypatch) as started:
        yield started


@pytest.fixture
def study(tmp_path):
    """Two cells that ran, of which one left a state to resume from."""
    made = RanStudy(tmp_path, 2)
    for cell_id in made.ids:
        made.run(cell_id)
    made.left_over = made.store.checkpoints(made.ids[0]) / "resume" / "step_00000003"
    made.left_over.mkdir(parents=True)
    return made


@pytest.fixture
def table(tmp_path):
    """A published table."""
    path = tmp_path / "published.csv"
    path.write_text("model,imagenet,pets,cars,size\na,.5,.6,.3,1\nb,.6,.7,.4,2\n")
    return path


def importing(table):
    named = ["--id", "model", "--upstream", "imagenet", "--downstream", "pets,cars"]
    return ["import", table, *named, "-o", table.with_suffix(".parquet")]


def looked_at(words, cwd=None):
    """(what was drawn, the lines that are left) of a command with a bar, after all that holds for every one."""
    code, shown = in_terminal([UPSHOT, *words], cwd=cwd)
    assert code == 0, shown
    drawn = [line for line in ESCAPES.sub("\r", shown.replace("\n", "\r")).split("\r") if line]
    left = screen(shown, 80)
    assert left.pop() == "", "the cursor is at the beginning of a line"
    assert not [line for line in left if HEAVY in line or not line], left
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l"), "the cursor is there again"
    return "".join(drawn), left


def test_import(table):
    drawn, left = looked_at(importing(table))
    for stage in ("reading tables", "joining axes", "joining tasks", "writing the table"):
        assert f"{stage} {HEAVY}" in drawn, stage
    assert left == upshot(*importing(table)).splitlines()


def test_a_program_gets_json_and_a_person_the_bar(table):
    words = shlex.join(map(str, [UPSHOT, *importing(table), "--json"]))
    code, shown = in_terminal(["sh", "-c", f"{words} > {table.parent}/said.json"])
    assert (code, screen(shown, 80)) == (0, [""])
    assert "joining tasks" in shown
    assert json.loads((table.parent / "said.json").read_text())["rows"] == 4
    said = upshot(*importing(table))
    assert HEAVY not in said
    assert "\x1b" not in said


def test_collect_and_clean(study):
    drawn, left = looked_at(["collect", study.root])
    assert f"looking at cells {HEAVY}" in drawn
    assert f"reading results {HEAVY}" in drawn
    assert "".join(left) == f"2 rows of 2 cells in {study.store.results_path}"
    drawn, left = looked_at(["clean", study.root, "-y"])
    assert f"removing {HEAVY}" in drawn
    assert (left[0], left[-1]) == ("What finished cells no longer need", "freed 0.0 MB")
    assert not study.left_over.exists()


def test_data_index(tmp_path):
    write_shards(tmp_path / "shards", examples(60), 6)
    drawn, left = looked_at(["data", "index", "shards"], cwd=tmp_path)
    assert f"reading shards {HEAVY}" in drawn
    assert "0/6 –" in drawn
    assert left[0] == "60 examples of 11 classes in 6 shards; 6 shards were read"


def test_sync_and_collect_from_wandb(study, server, tmp_path):
    drawn, left = looked_at(["sync", study.root, "--jobs", "2"])
    for stage in ("cells to W&B", "reading results", "fitting tasks"):
        assert f"{stage} {HEAVY}" in drawn, stage
    assert left == ["2 cells mirrored (26 rows)"]
    drawn, left = looked_at(["collect", "--from", f"wandb:{server.entity}/upshot", "-o", "back.parquet"], cwd=tmp_path)
    assert f"reading runs {HEAVY}" in drawn
    assert "2 rows of 2 cells in back.parquet" in left
    assert "study many: the results table that it logged, with every draw, layer and" in left, "no word is broken"


def test_evaluate(tmp_path):
    torch.save(timm.create_model("test_vit", num_classes=10, img_size=32).state_dict(), tmp_path / "vit.pth")
    words = ["evaluate", "--timm", "test_vit", "--checkpoint", "vit.pth", "--image-size", "32", "--upstream", "digits"]
    words += ["--task", "digits", "--shots", "1", "--draws", "1", "--layers", "last"]
    drawn, left = looked_at(words, cwd=tmp_path)
    assert f"measuring upstream {HEAVY}" in drawn
    assert f"judging tasks {HEAVY}" in drawn
    assert left[0] == "1 rows of test_vit in evaluated.parquet"
    assert pl.read_parquet(tmp_path / "evaluated.parquet")["upstream_num_test"].item() > 100
