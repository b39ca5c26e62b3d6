"""A study of one's own images, told of after they are gone: what plans know of them lies in the study folder."""

import shutil
from pathlib import Path

import pytest

from models.errors import DataError, UserError
from models.recipe import Recipe
from orchestrator.files import append_record
from orchestrator.images import ON_DISK, ImagesOnDisk, read_recorded, recorded
from orchestrator.session import open_submitted
from orchestrator.store import Store
from tests.models.stored_images import examples, write_folder, write_shards, write_table
from tests.orchestrator.upshot_command import upshot, upshot_json

pytestmark = pytest.mark.xdist_group("images")  # what its tests share is made once

STUDY = """
name = "own"
[upstream]
dataset = "./photos"
[grid]
family = "vit"
size = "pico"
image_size = 32
patch_size = 8
fraction = [0.5, 1.0]
classes = 0.5
epochs = 1
batch_size = 16
[downstream]
tasks = ["./photos", "patches"]
shots = [1]
draws = 1
[wandb]
mode = "disabled"
"""
TOLD = ("status", "reduce")  # by --json


class OwnStudy:
    """Two cells of a folder of photographs, which is a task too, submitted and run to the end."""

    def __init__(self, folder):
        self.photos, self.path, self.runs = folder / "photos", folder / "own.toml", folder / "runs"
        write_folder(self.photos, examples(240))
        self.path.write_text(STUDY)
        upshot("submit", self.path, "--runs", self.runs)
        upshot("watch", self.path, "--runs", self.runs)
        self.store = Store(self.runs / "own")
        self.cells = self.store.cells()
        self.plan = open_submitted(self.store.root, self.runs).observe().plan
        self.told = {command: upshot_json(command, self.store.root) for command in TOLD}
        self.photos.rename(folder / "archive")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return OwnStudy(tmp_path_factory.mktemp("own"))


def test_what_ran_is_told_without_the_images(own):
    assert {command: upshot_json(command, own.store.root) for command in TOLD} == own.told
    assert "2 done" in upshot("status", own.path, "--runs", own.runs)
    assert "2 done" in upshot("watch", own.path, "--runs", own.runs)
    assert "nothing; it is done" in upshot("why", own.cells[0].cell_id, own.store.root)
    assert upshot("report", own.store.root).strip() == str(own.store.root / "report" / "index.html")
    upshot("clean", own.store.root, "--yes")


def test_the_plan_is_as_it_was_while_the_images_were_there(own):
    session = open_submitted(own.store.root, own.runs)
    assert session.observe().plan.to_json()["cells"] == own.plan.to_json()["cells"]
    assert len({planned.flops for planned in own.plan.cells}) == 2


def test_a_copy_of_the_study_elsewhere_is_told_alike(own, tmp_path):
    copy = shutil.copytree(own.store.root, tmp_path / "elsewhere" / "own")
    assert upshot_json("reduce", copy) == own.told["reduce"]
    assert upshot("report", copy).strip() == str(copy / "report" / "index.html")


@pytest.mark.parametrize("command", ["submit", "retry"])
def test_new_work_is_refused_before_anything_is_written(own, tmp_path, command):
    copy = shutil.copytree(own.store.root, tmp_path / "own")
    store, cell_id = Store(copy), own.cells[0].cell_id
    if command == "submit":
        next(store.evals(cell_id, store.finalised_steps(cell_id)[-1]).glob("*.parquet")).unlink()
    else:
        failed = {"outcome": "failed", "seconds": 1.0, "error": {"type": "E", "message": "no", "traceback": ""}}
        *others, end = store.attempts(cell_id)
        (store.cell_folder(cell_id) / "attempts.ndjson").unlink()
        for event in (*others, end | failed):
            append_record(store.cell_folder(cell_id) / "attempts.ndjson", event)
        shutil.rmtree(store.cell_folder(cell_id) / "evals")
    before = files_of(copy)
    assert f"nothing can be submitted without the study's images: {own.photos}" in upshot(
        command, copy, "--yes", code=2
    )
    assert files_of(copy) == before


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_study_file_whose_images_are_gone_is_not_submitted(own):
    assert str(own.photos) in upshot("submit", own.path, "--runs", own.runs, "--set", "name=other", code=2)
    assert not (own.runs / "other").exists()


FORMS = {
    "class folders": lambda folder: write_folder(folder / "set", examples(60)),
    "tar shards": lambda folder: write_shards(folder / "set", examples(60), 3),
    "a table": lambda folder: write_table(folder / "set.parquet", examples(60), 20),
    "a CSV": lambda folder: write_csv(folder / "set.csv", examples(60)),
}


def write_csv(path, found):
    write_folder(path.with_suffix(""), found)
    rows = [f"{file.relative_to(path.parent)},{file.parent.name}" for file in path.parent.rglob("*.png")]
    path.write_text("\n".join(["path,label", *rows]))
    return str(path)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_images_is_known_as_it_lay(form, tmp_path):
    name = FORMS[form](tmp_path)
    if form == "tar shards":
        upshot("data", "index", name)
    dataset = "icons" if form == "a CSV" else name
    axes = {
        "family": "vit",
        "size": "pico",
        "patch_size": 8,
        "image_size": 64,
        "head_learning_rate": 1e-3,
        "head_weight_decay": 0.03,
    }
    recipes = [Recipe(**axes, dataset=dataset, classes=classes, seed=2) for classes in (0.5, 1.0)]
    path = tmp_path / "images.json"
    path.write_text(recorded(ON_DISK, dataset, [name, "mnist"], recipes))
    kept, there = read_recorded(path), facts(ON_DISK, dataset, [name, "mnist"], recipes)
    (tmp_path / Path(name).name).rename(tmp_path / "gone")
    with pytest.raises(UserError):
        facts(ImagesOnDisk(), dataset, [name], recipes)
    assert facts(kept, dataset, [name, "mnist"], recipes) == there


def facts(images, dataset, names, recipes):
    return images.upstream(dataset), [images.kept(recipe) for recipe in recipes], [images.task(name) for name in names]


def test_packaged_sets_and_public_tasks_leave_no_record(tmp_path):
    assert recorded(ON_DISK, "icons", ["mnist", "pets"], []) is None
    assert read_recorded(tmp_path / "images.json") is ON_DISK


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tasks": {"a": {"odd": 1}}, "upstreams": {}, "parts": []}'])
def test_a_damaged_record_is_told_with_what_mends_it(text, tmp_path):
    (tmp_path / "images.json").write_text(text)
    with pytest.raises(DataError, match=r"images\.json: .* \(delete it, and the images themselves are asked\)"):
        read_recorded(tmp_path / "images.json")
