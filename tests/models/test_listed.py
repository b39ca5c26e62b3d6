"""Real images listed by a CSV."""

import os

import numpy as np
import pytest

from models.data import listed
from models.data.pixels import decode
from models.errors import DataError
from tests.models.encoded import CLASSES, encoded

ROWS = [(f"images/{number:03}.png", CLASSES[label]) for number, (_, label) in enumerate(encoded()[:60])]


@pytest.fixture
def written(tmp_path):
    """Gives a function that writes rows of cells as a CSV beside their images."""
    (tmp_path / "images").mkdir()
    for (name, _), (image, _) in zip(ROWS, encoded(), strict=False):
        (tmp_path / name).write_bytes(image)

    def write(rows, header="path,label"):
        (tmp_path / "cells.csv").write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
        return str(tmp_path / "cells.csv")

    return write


def test_rows_keep_their_order_and_classes_are_sorted(written):
    s = listed.open_csv(written(ROWS))
    assert s.classes == tuple(sorted({label for _, label in ROWS}))
    assert [s.classes[label] for label in s.labels_N] == [label for _, label in ROWS]
    assert [s.read(index)[0] for index in range(60)] == [image for image, _ in encoded()[:60]]
    assert s.held_out_N is None


def test_split_says_what_is_for_the_test(written):
    rows = [(*row, "test" if number % 3 == 0 else "train") for number, row in enumerate(ROWS)]
    csv = written(rows, "path,label,split")
    assert listed.open_csv(csv).held_out_N.tolist() == [number % 3 == 0 for number in range(60)]
    assert (listed.info(csv).num_train, listed.info(csv).num_test) == (40, 20)


def test_info_follows_the_file(written):
    csv = written(ROWS)
    assert (listed.info(csv).num_examples, listed.info(csv).image_size) == (60, 32)
    written(ROWS[:50])
    os.utime(csv, ns=(1, 1))
    assert listed.info(csv).num_examples == 50


def test_absolute_paths_and_further_columns_are_fine(written, tmp_path):
    rows = [("extra", label, str(tmp_path / path)) for path, label in ROWS]
    s = listed.open_csv(written(rows, "note,label,path"))
    assert decode(s.read(7)[0], 32).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("header", "rows", "said"),
    [
        ("file,label", ROWS, r"has no column 'path' \(it has: file, label\)"),
        ("path,lable", ROWS, "has no column 'label' .* Did you mean 'lable'"),
        ("path,label,split", [(*ROWS[0], "train"), (*ROWS[1], "val")], "line 3 has split 'val' .known: train, test"),
        ("path,label,split", [(*ROWS[0], "train"), (*ROWS[1], "")], "line 3 has no split"),
        ("path,label", [ROWS[0], (ROWS[1][0], "")], "line 3 has no label"),
        ("path,label", [*ROWS, ROWS[4]], r"images/004\.png stands there more than once \(lines 6, 62\)"),
        ("path,label", [*ROWS, ("images/gone.png", CLASSES[0])], r"gone\.png is not there \(1 of 61 listed files"),
        ("path,label", [(path, "cell") for path, _ in ROWS], "one class only"),
        ("path,label", [], "has no rows"),
    ],
)
def test_what_is_wrong_is_named(header, rows, said, written):
    with pytest.raises(DataError, match=said):
        listed.open_csv(written(rows, header))


@pytest.mark.parametrize(("part", "lacking"), [("train", "test"), ("test", "train")])
def test_a_split_that_says_the_same_of_all_is_refused(part, lacking, written):
    with pytest.raises(DataError, match=f"cells.csv: lists no image to {lacking} on"):
        listed.open_csv(written([(*row, part) for row in ROWS], "path,label,split"))


def test_a_class_of_the_test_only_is_refused(written):
    rows = [(path, label, "train" if label != ROWS[0][1] else "test") for path, label in ROWS]
    with pytest.raises(DataError, match=f"1 classes that the train part has not: {ROWS[0][1]}"):
        listed.open_csv(written(rows, "path,label,split"))


def test_a_folder_in_the_place_of_an_image_is_named(written):
    s = listed.open_csv(written([*ROWS, ("images", CLASSES[0])]))
    with pytest.raises(DataError, match=r"images: cannot be read \(Is a directory\)"):
        s.read(60)


def test_no_such_file(tmp_path):
    with pytest.raises(DataError, match=r"gone\.csv: no such CSV of images"):
        listed.open_csv(str(tmp_path / "gone.csv"))


@pytest.mark.parametrize(("train", "test", "said"), [([], None, "to train on"), ([0], [], "to test on")])
def test_a_list_without_images(train, test, said, tmp_path):
    some = [listed.Listed(tmp_path / "x.png", 0)]
    with pytest.raises(DataError, match=said):
        listed.file_set("set", ("a", "b"), some * len(train), None if test is None else some * len(test))


def test_labels_are_numbers_by_class(written):
    s = listed.open_csv(written(ROWS))
    assert s.labels_N.dtype == np.int64
    assert s.place(3).endswith("images/003.png")
