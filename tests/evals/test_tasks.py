import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from evals import tasks
from evals.tasks import MAX_TEST, names, public_names, task
from models.data import describe
from models.errors import DataError, UnknownNameError


def test_the_packaged_tasks():
    assert names() == (
        "mnist",
        "digits",
        "fashion",
        "hiragana",
        "katakana",
        "greek",
        "kanji_radical",
        "kanji",
        "noto_script",
        "patches",
        "landcover",
        "cells",
    )


@pytest.mark.parametrize("name", names())
def test_packaged_task_agrees_with_its_set(name):
    t, info = task(name), describe(name)
    assert (t.name, t.dataset) == (name, name)
    assert (t.title, t.source, t.licence) == (info.title, info.source, info.licence)
    assert t.num_classes == info.num_classes
    assert t.chance == pytest.approx(1 / info.num_classes)
    assert t.num_test <= MAX_TEST
    assert t.num_train + t.num_test <= info.num_examples


def test_most_tasks_serve_25_shots():
    assert sum(task(name).max_shots >= 26 for name in names()) >= 8


def test_unknown_task_names_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        task("mnst")
    assert "unknown task 'mnst'" in str(caught.value)
    assert "Did you mean 'mnist'?" in str(caught.value)
    assert "'./mnst'" in str(caught.value)


def test_upstream_set_is_no_task():
    with pytest.raises(UnknownNameError):
        task("icons")


@pytest.fixture
def shapes(tmp_path):
    """30 disks and 40 squares, as names of files go."""
    for label, num in (("disk", 30), ("square", 40)):
        (tmp_path / "shapes" / label).mkdir(parents=True)
        for i in range(num):
            Image.new("L", (8, 8), i).save(tmp_path / "shapes" / label / f"{i}.png")
    return tmp_path / "shapes"


def test_folder_is_a_task_by_its_path(shapes):
    t = task(str(shapes))

    assert (t.name, t.title, t.dataset) == (str(shapes), "shapes", str(shapes))
    assert (t.num_classes, t.chance, t.split_rule) == (2, 0.5, "images")
    # 30 x (1 - 26/30) = 4 disks, 40 x 0.133 = 5 squares; 26 disks stay
    assert (t.num_train, t.num_test, t.max_shots) == (61, 9, 26)


def test_folder_task_keeps_the_given_test_part(shapes):
    (shapes.parent / "parts").mkdir()
    shapes.rename(shapes.parent / "parts" / "train")
    for label in ("disk", "square"):
        (shapes.parent / "parts" / "val" / label).mkdir(parents=True)
        Image.new("L", (8, 8), 99).save(shapes.parent / "parts" / "val" / label / "v.png")

    t = task(str(shapes.parent / "parts"))

    assert (t.num_train, t.num_test, t.max_shots, t.split_rule) == (70, 2, 30, "given")


@pytest.mark.parametrize("num", [3, 20, 500])
def test_folder_tasks_test_on_a_tenth_to_a_half(tmp_path, num):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(num):
            (tmp_path / label / f"{i}.png").touch()
        Image.new("L", (8, 8)).save(tmp_path / label / "0.png")

    t = task(f"{tmp_path}/")

    assert {3: 2, 20: 4, 500: 500}[num] == t.num_test
    assert t.max_shots == {3: 2, 20: 18, 500: 250}[num]


def test_missing_folder_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        task(f"{tmp_path}/nowhere")


def test_listing_loads_no_torch():
    code = "import sys; from evals.tasks import *; [task(n) for n in names()]; print('torch' in sys.modules)"
    root = Path(tasks.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- public tasks -----------------------------------------------------------------------------------------------------

PAPER = (
    "imagenet cifar10 cifar100 pets cars caltech101 dtd uc_merced col_hist birds resisc45 eurosat clevr_count"
    " clevr_distance dmlab kitti_distance smallnorb_azimuth smallnorb_elevation svhn flowers sun397 patch_camelyon"
    " retinopathy dsprites_orientation dsprites_location"
)


def test_the_papers_tasks_are_there_and_more():
    assert set(PAPER.split()) < set(public_names())
    assert len(public_names()) == 34
    assert not set(public_names()) & set(names())
    assert sum(task(name).vtab for name in public_names()) == 19


@pytest.mark.parametrize("name", public_names())
def test_a_public_task_says_all_that_is_asked(name, tmp_path):
    t, published = task(name, tmp_path), tasks.definition(name)
    assert (t.kind, t.name, t.root) == ("public", name, tmp_path)
    assert t.chance == pytest.approx(1 / t.num_classes)
    assert t.num_train >= 2 * t.num_classes or name in ("sun397",)
    assert t.num_test > 0
    assert all((t.source, t.licence, t.split, t.title))
    assert published.url.startswith("http")
    assert t.split.startswith("published" if published.test_share is None else "drawn")
    if published.test_share is not None:
        assert t.num_test / (t.num_train + t.num_test) == pytest.approx(published.test_share, abs=0.001)


def test_the_root_is_that_of_the_environment_unless_one_is_given(tmp_path, monkeypatch):
    monkeypatch.delenv("UPSHOT_DATA", raising=False)
    assert task("pets").root is None
    monkeypatch.setenv("UPSHOT_DATA", str(tmp_path))
    assert task("pets").root == tmp_path
    assert task("pets", tmp_path / "other").root == tmp_path / "other"


def test_a_public_name_that_is_misspelt():
    with pytest.raises(UnknownNameError, match="Did you mean 'flowers'"):
        task("flower")
