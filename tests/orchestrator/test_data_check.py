"""`upshot data check`, `upshot tasks`, and plans of tasks whose images are on the nodes only."""

import json
from pathlib import Path

import pytest

from evals import tasks
from models.data import load_images
from models.errors import StudyError, UnknownNameError
from orchestrator.data_check import check_data
from orchestrator.study import load_study
from orchestrator.task_table import print_tasks, task_rows
from tests.evals.published import PARTED, Pictures, folders
from tests.models.stored_images import examples, write_folder, write_table
from tests.orchestrator.upshot_command import upshot, upshot_json

STUDY = """
name = "public"
[upstream]
dataset = "icons"
[grid]
family = "vit"
size = "pico"
patch_size = 8
fraction = 0.01
batch_size = 64
[downstream]
tasks = {tasks}
shots = [1]
draws = 1
{data}
[wandb]
mode = "disabled"
"""

NO_ROOT = {"UPSHOT_DATA": None}


@pytest.fixture(autouse=True)
def _no_root(monkeypatch):
    monkeypatch.delenv("UPSHOT_DATA", raising=False)


@pytest.fixture
def study(tmp_path):
    """Gives a function that writes a study of these tasks, whose root is ./sets."""

    def write(*names, data='data = "sets"'):
        path = tmp_path / "study.toml"
        path.write_text(STUDY.format(tasks=json.dumps(names), data=data))
        return path

    return write


def checked(path, **how):
    return {c.name: c for c in check_data(path, **{"every_duplicate": False, **how})}


def test_present_and_missing_images_are_told_apart(study, tmp_path):
    PARTED["retinopathy"](tmp_path / "sets")
    path = study("mnist", "retinopathy", "pets")

    found = checked(path)

    assert [found[name].is_whole for name in ("icons", "mnist", "retinopathy", "pets")] == [True, True, True, False]
    here = found["retinopathy"]
    assert (here.num_train, here.num_test, here.num_classes, here.num_duplicates) == (10, 5, 5, 0)
    assert here.folder == str(tmp_path / "sets" / "retinopathy")
    assert here.layout == "trainLabels.csv and retinopathy_solution.csv"
    assert "published: 46,032 to train on, 42,670 to test on" in here.notes
    assert (found["mnist"].layout, found["mnist"].num_test, found["mnist"].notes) == ("packaged", 1000, ())
    assert f"{tmp_path}/sets/oxford-iiit-pet" in found["pets"].error
    said = upshot("data", "check", path, code=1, env=NO_ROOT)
    assert "They are had at https://www.robots.ox.ac.uk" in " ".join(said.split())
    assert max(len(line) for line in said.splitlines() if "/" not in line) <= 80


def test_all_there_is_exit_code_0_and_json_has_every_field(study):
    found = upshot_json("data", "check", study("digits", "cells"), env=NO_ROOT)["images"]
    assert [(c["use"], c["name"], c["error"], c["num_duplicates"]) for c in found] == [
        ("upstream", "icons", None, None),
        ("task", "digits", None, 0),
        ("task", "cells", None, 0),
    ]


def test_duplicates_between_train_and_test_are_counted(study, tmp_path):
    found = examples(200)
    write_folder(tmp_path / "photos" / "train", found)
    write_folder(tmp_path / "photos" / "val", found[:7] + found[150:156])
    for label in {label for label, _ in found}:
        (tmp_path / "photos" / "val" / label).mkdir(exist_ok=True)
    for folder in (tmp_path / "photos" / "val").iterdir():
        if not any(folder.iterdir()):
            Pictures(load_images("landcover").images_NHWC[::-1]).write(folder / "other.png")
    here = checked(study("./photos"))[str(tmp_path / "photos")]
    assert here.num_duplicates == 13
    assert here.layout == "on disk"


def test_large_tasks_are_decoded_when_asked(study, tmp_path, monkeypatch):
    path = study(write_folder(tmp_path / "photos", examples(200)))
    monkeypatch.setattr("orchestrator.data_check.MAX_HASHED", 199)
    here = checked(path)[str(tmp_path / "photos")]
    assert here.num_duplicates is None
    assert any("not looked for among 200 images" in note for note in here.notes)
    assert checked(path, every_duplicate=True)[str(tmp_path / "photos")].num_duplicates == 0


def test_a_torn_image_is_broken_not_missing(study, tmp_path):
    folder = write_folder(tmp_path / "photos", examples(100))
    torn = sorted((tmp_path / "photos").glob("*/*.png"))[7]
    torn.write_bytes(torn.read_bytes()[:60])
    here = checked(study(folder))[folder]
    assert here.layout == "on disk"
    assert str(torn) in here.error


def test_paths_that_are_not_there_do_not_stop_the_check(study, tmp_path):
    found = checked(study("./nowhere", "./gone.csv", "digits").parent)
    assert "no such folder" in found[str(tmp_path / "nowhere")].error
    assert "no such CSV" in found[str(tmp_path / "gone.csv")].error
    assert found["digits"].is_whole


def test_classes_that_no_probe_can_learn_well_are_noted(study, tmp_path):
    one, *_ = dict(examples(900)).items()
    others = [(label, png) for label, png in examples(900) if label != one[0]]
    folder = write_folder(tmp_path / "photos", sorted([one, *others]))
    notes = checked(study(folder))[folder].notes
    assert f"classes with one training image, so 1 shot at most: 1 ({one[0]})" in notes
    assert "classes without test images: 1" in notes


def test_an_upstream_set_that_is_missing(study, tmp_path):
    path = study("digits")
    path.write_text(path.read_text().replace('"icons"', '"./shards"'))
    found = checked(path)
    assert "no such folder" in found[str(tmp_path / "shards")].error
    assert found["digits"].is_whole


def test_no_study_file(tmp_path):
    with pytest.raises(StudyError, match="there is no such study file"):
        check_data(tmp_path / "gone.toml", every_duplicate=False)


# --- plans ------------------------------------------------------------------------------------------------------------


def test_a_plan_needs_no_images_of_public_tasks_and_says_so(study, tmp_path):
    path = study("digits", "pets", "retinopathy")
    PARTED["retinopathy"](tmp_path / "sets")
    said = " ".join(upshot("plan", path, env=NO_ROOT).split())
    assert "1 cells: 1 to submit" in said
    assert f"images of pets are not below {tmp_path}/sets here: planned by their published numbers" in said
    assert "retinopathy" not in said
    assert tasks.absent(["digits", "pets", "retinopathy"], tmp_path / "sets") == ["pets"]
    assert tasks.absent(["digits", "pets", "retinopathy"], None) == ["pets", "retinopathy"]


def test_a_plan_says_what_will_be_null_for_want_of_images(study):
    path = study("digits", "cells", "mnist")
    asked = ("--set", "downstream.shots=[1,50]", "--set", 'downstream.protocol=["ridge","vtab1k-linear"]')
    said = " ".join(upshot("plan", path, *asked, env=NO_ROOT).split())
    most = tasks.task("cells").max_shots
    assert f"the most shots that every class serves: cells {most}; what takes more will be null" in said
    assert "vtab1k-linear will be null on digits, cells: they have fewer than 1,000 training images" in said
    assert "will be null" not in upshot("plan", path, env=NO_ROOT)


def test_the_root_is_seen_from_the_study_file(study, tmp_path):
    assert load_study(study("pets")).study.downstream.data == str(tmp_path / "sets")
    assert load_study(study("pets", data='data = "/datasets"')).study.downstream.data == "/datasets"


def test_a_csv_beside_the_study_is_a_task(study, tmp_path):
    found = examples(100)
    write_folder(tmp_path / "images", found)
    rows = [f"images/{label}/{number:06}.png,{label}" for number, (label, _) in enumerate(found)]
    (tmp_path / "some.csv").write_text("\n".join(["path,label", *rows]))
    write_table(tmp_path / "some.parquet", found, 50)
    path = study("some.csv", "./some.parquet")
    assert load_study(path).study.downstream.tasks == [str(tmp_path / "some.csv"), str(tmp_path / "some.parquet")]
    assert all(c.is_whole for c in checked(path).values())


# --- upshot tasks -----------------------------------------------------------------------------------------------------


def test_tasks_fit_80_columns_and_tell_which_are_here(tmp_path, capsys):
    folders(tmp_path / "eurosat" / "2750", ["AnnualCrop", "River"], Pictures())
    print_tasks(task_rows(data=tmp_path), str(tmp_path))
    said = capsys.readouterr().out
    assert max(len(line) for line in said.splitlines() if str(tmp_path) not in line) <= 80
    assert all(name in said for name in (*tasks.names(), *tasks.public_names()))
    rows = {line.split()[0]: line for line in said.splitlines() if line.strip()}
    assert rows["eurosat"].split() == ["eurosat", "10", "0.100", "21,600", "5,400", "yes", "yes"]
    assert rows["cars"].split() == ["cars", "196", "0.005", "8,144", "8,041"]


def test_a_named_task_tells_everything(tmp_path):
    said = " ".join(upshot("tasks", "pets", "--data", tmp_path, env=NO_ROOT).split())
    for part in ("CC BY-SA 4.0", "Parkhi et al.", "published: trainval.txt", "in VTAB-1k: yes", f"{tmp_path}/pets"):
        assert part in said


def test_json_has_every_field_of_every_task():
    rows = upshot_json("tasks", env=NO_ROOT)["tasks"]
    assert rows == task_rows()
    assert len(rows) == len(tasks.names()) + len(tasks.public_names())
    wanted = "name title num_classes chance num_train num_test split vtab source licence url present expected"
    assert all(set(wanted.split()) <= row.keys() for row in rows)
    assert {row["kind"] for row in rows} == {"packaged", "public"}


def test_a_task_that_is_misspelt():
    with pytest.raises(UnknownNameError, match="Did you mean 'pets'"):
        task_rows(["petz"])


def test_the_page_lists_every_public_task_as_it_is():
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
    listed = [line.split(" | ")[:3] for line in page.splitlines() if line.startswith("| `")]
    rows = {row["name"]: row for row in task_rows() if row["kind"] == "public"}
    assert listed == [[f"| `{name}`", row["title"], row["licence"]] for name, row in rows.items()]


def test_the_pages_example_is_a_study(study, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
    table = page.split("```toml\n")[1].split("```")[0]
    path = study("digits")
    path.write_text(path.read_text().split("[downstream]")[0] + table)
    found = {c.name: c.error for c in check_data(path, every_duplicate=False)}
    assert found["mnist"] is None
    assert "/datasets/oxford-iiit-pet" in found["pets"]
    assert set(found) == {
        "icons", "mnist", "pets", "clevr_count", f"{tmp_path}/birds", f"{tmp_path}/birds.csv", "/data/plankton/data"
    }  # fmt: skip
