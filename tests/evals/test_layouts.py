"""Real images in the layouts of public tasks, written small and read back: labels, parts, pixels."""

import csv
import os
import pickle
import shutil
import sys
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest

from evals.datasets import load_task
from evals.tasks import absent, definition, find, open_source, public_names, task, vtab_split
from evals.tasks.layouts import PUBLISHED
from models.errors import DataError
from tests.evals.published import (
    KITTI_NEAREST,
    PARTED,
    Pictures,
    class_names,
    corrupted,
    dsprites,
    folders,
    grey,
    vtab_lists,
    write_lines,
)
from tests.models.stored_images import encoded
from tests.models.test_hugging_face import pq, table_of

DRAWN = {
    "uc_merced": ("UCMerced_LandUse/Images", ("agricultural", "z{:03}"), ".tif"),
    "col_hist": ("Kather_texture_2016_image_tiles_5000", ("01_TUMOR", "1{}_OTHER"), ".tif"),
    "resisc45": ("NWPU-RESISC45", ("airplane", "z{:03}"), ".jpg"),
    "eurosat": ("eurosat/2750", ("AnnualCrop", "z{:03}"), ".jpg"),
}


def read(images):
    """Every image of a part, in order, and a batch size that divides nothing."""
    return np.concatenate(list(images.batches(np.arange(len(images.labels_N)), 7)))


def hold(part, expected):
    """That a part has these labels and pixels, in this order."""
    assert list(part.labels_N) == [label for label, _ in expected]
    wanted = np.stack([image for _, image in expected])
    found = read(part)
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.broadcast_to(wanted, found.shape))


def test_every_kept_layout_is_tested_here():
    tested = {*PARTED, *DRAWN, "imagenet", "caltech101", "omniglot", "patch_camelyon", "kitti_distance"}
    assert tested | {"dsprites_orientation", "dsprites_location"} == set(PUBLISHED)


@pytest.mark.parametrize("name", PARTED)
def test_a_publishers_layout_comes_back_as_it_was_written(name, tmp_path):
    train, test = PARTED[name](tmp_path)

    data = load_task(name, root=tmp_path)

    hold(data.train, train)
    hold(data.test, test)
    assert len(data.classes) == definition(name).num_classes
    assert find(definition(name), tmp_path).layout in PUBLISHED[name]


@pytest.mark.parametrize("name", DRAWN)
def test_class_folders_of_a_publisher_are_parted_by_a_fixed_draw(name, tmp_path):
    folder, (first, form), suffix = DRAWN[name]
    names = [first, *(form.format(number) for number in range(definition(name).num_classes - 1))]
    expected = folders(tmp_path / folder, names, Pictures(), 10, suffix)

    data, again = load_task(name, 32, root=tmp_path), load_task(name, 32, root=tmp_path)

    share = definition(name).test_share
    assert set(Counter(data.test.labels_N.tolist()).values()) == {round(10 * share)}
    assert data.classes == tuple(names)
    pixels = [(label, image.tobytes()) for part in (data.train, data.test) for label, image in pairs(part)]
    assert sorted(pixels) == sorted((label, image.tobytes()) for label, image in expected)
    assert np.array_equal(read(data.test), read(again.test))


def pairs(part):
    return zip(part.labels_N.tolist(), read(part), strict=True)


def test_imagenet_is_train_and_val(tmp_path):
    names, pictures = class_names("imagenet", "n{:08}"), Pictures()
    train = folders(tmp_path / "imagenet" / "train", names, pictures, 1, ".JPEG")
    test = folders(tmp_path / "imagenet" / "val", names, pictures, 1, ".JPEG")
    data = load_task("imagenet", 32, root=tmp_path)
    hold(data.train, train)
    hold(data.test, test)


def test_caltech_has_30_training_images_of_each_class(tmp_path):
    names = ["accordion", *(f"z{number:03}" for number in range(101))]
    pictures = Pictures()
    folders(tmp_path / "101_ObjectCategories", names[:100], pictures, 31)
    folders(tmp_path / "101_ObjectCategories", names[100:], pictures, 34)
    data = load_task("caltech101", 32, root=tmp_path)
    assert set(np.bincount(data.train.labels_N)) == {30}
    assert np.bincount(data.test.labels_N).tolist() == [1] * 100 + [4] * 2
    again = load_task("caltech101", 32, root=tmp_path)
    assert np.array_equal(again.test.source_index_N, data.test.source_index_N)
    paths = data.test.source.stored.paths
    assert sorted(paths) == sorted((tmp_path / "101_ObjectCategories").glob("*/*.png"))
    assert [data.classes[label] for label in data.test.labels_N] == [
        paths[index].parent.name for index in data.test.source_index_N
    ]


def test_every_character_of_omniglot_is_a_class(tmp_path):
    pictures, num = Pictures(grey()), 0
    for part, alphabets, characters in (("background", 30, 32), ("evaluation", 20, 33)):
        for alphabet in range(alphabets):
            num += characters
            names = [f"character{c:02}" for c in range(1, characters + 1)]
            folders(tmp_path / "omniglot-py" / f"images_{part}" / f"{part}_{alphabet:02}", names, pictures, 2)
    names = [f"character{c:02}" for c in range(1, 1623 - num + 1)]
    folders(tmp_path / "omniglot-py" / "images_evaluation" / "Atemayar", names, pictures, 2)

    data = load_task("omniglot", 32, root=tmp_path)

    assert len(data.classes) == 1623
    assert data.classes[0] == "background_00/character01"
    assert np.bincount(data.train.labels_N).tolist() == np.bincount(data.test.labels_N).tolist() == [1] * 1623


@pytest.mark.parametrize("name", ["dsprites_orientation", "dsprites_location"])
def test_dsprites_come_bit_by_bit(name, tmp_path):
    images_NHWC, orientation, x = dsprites(tmp_path)
    classes = [o * 16 // 40 for o in orientation] if name == "dsprites_orientation" else [v // 2 for v in x]
    source = open_source(task(name, tmp_path))
    assert source.labels.labels_N.tolist() == classes
    assert np.array_equal(np.stack([source.image(i, 64) for i in range(80)]), images_NHWC)
    data = load_task(name, root=tmp_path)
    assert (len(data.train.labels_N), len(data.classes), data.test.square) == (80 - len(data.test.labels_N), 16, 64)


def test_dsprites_that_are_cut_short(tmp_path):
    dsprites(tmp_path)
    corrupted(tmp_path / "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz", "imgs.npy")
    with pytest.raises(DataError, match="cannot be read as that"):
        load_task("dsprites_location", root=tmp_path)


def write_kitti(root, num_drives=20, frames=10):
    """Drives of ten frames each, in a random order as KITTI has them."""
    base, pictures, nearest = root / "Kitti" / "raw", Pictures(), list(KITTI_NEAREST)
    order = np.random.RandomState(3).permutation(num_drives * frames)
    found = []
    for image, frame in enumerate(order):
        distance = nearest[frame % len(nearest)]
        lines = [
            "Pedestrian 0 0 0 0 0 0 0 0 0 0 1.0 1.0 2.5 0",
            "DontCare -1 -1 -10 0 0 0 0 -1 -1 -1 -1000 -1000 -1000 0",
        ]
        lines.append("Tram 0 0 0 0 0 0 0 0 0 0 0 0 1.5 0")
        lines += [
            f"{kind} 0 0 0 0 0 0 0 0 0 0 0 0 {distance + z} 0" for kind, z in (("Van", 9), ("Truck", 0)) if distance
        ]
        write_lines(base / "training" / "label_2" / f"{image:06}.txt", lines)
        found.append((KITTI_NEAREST[distance], pictures.write(base / "training" / "image_2" / f"{image:06}.png")))
    mapping = base / "devkit" / "mapping"
    write_lines(
        mapping / "train_mapping.txt",
        [f"2011_09_26 2011_09_26_drive_{f // frames:04}_sync {f % frames:010}" for f in range(num_drives * frames)],
    )
    (mapping / "train_rand.txt").write_text(",".join(str(frame + 1) for frame in order) + "\n")
    return found, order // frames


def test_kitti_keeps_drives_together(tmp_path):
    found, drive_N = write_kitti(tmp_path)
    source = open_source(task("kitti_distance", tmp_path))
    assert source.labels.labels_N.tolist() == [label for label, _ in found]
    assert np.array_equal(source.image(17, 32), found[17][1])
    data = load_task("kitti_distance", 32, root=tmp_path)
    train, test = (set(drive_N[part.source_index_N]) for part in (data.train, data.test))
    assert (len(test), train & test, len(train | test)) == (2, set(), 20)


def test_kitti_without_drives_is_refused(tmp_path):
    write_kitti(tmp_path)
    shutil.rmtree(tmp_path / "Kitti" / "raw" / "devkit")
    with pytest.raises(DataError, match=r"devkit_object\.zip"):
        load_task("kitti_distance", root=tmp_path)


def test_patch_camelyon_stays_in_its_files(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "pcam").mkdir()
    pictures, parts = Pictures(), []
    for name, num in (("train", 12), ("valid", 6), ("test", 8)):
        part = [(i % 2, np.kron(pictures.take(), np.ones((3, 3, 1), np.uint8)).astype(np.uint8)) for i in range(num)]
        parts.append(part)
        for what, values in (("x", [image for _, image in part]), ("y", [[[[c]]] for c, _ in part])):
            with h5py.File(tmp_path / "pcam" / f"camelyonpatch_level_2_split_{name}_{what}.h5", "w") as file:
                file[what] = np.array(values, dtype=np.uint8)
    data = load_task("patch_camelyon", root=tmp_path)
    hold(data.train, parts[0] + parts[1])
    hold(data.test, parts[2])


@pytest.mark.parametrize(("name", "module"), [("patch_camelyon", "h5py"), ("svhn", "scipy.io")])
def test_a_reader_that_is_not_installed_is_named(name, module, tmp_path, monkeypatch):
    for mark in PUBLISHED[name][0].marks:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / mark).touch()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=f"pip install {module.partition('.')[0]}"):
        load_task(name, root=tmp_path)


# --- what every task may lie in ---------------------------------------------------------------------------------------


def test_the_lists_of_vtab_keep_their_order(tmp_path):
    train, test = vtab_lists(tmp_path)
    data = load_task("svhn", 32, root=tmp_path)
    hold(data.train, train)
    hold(data.test, test)
    fit, choose = vtab_split("svhn", data.train.labels_N)
    assert np.array_equal(fit, np.arange(800))
    assert np.array_equal(choose, np.arange(800, 1000))


def write_tables(folder, sizes):
    """Tables of real digits under six labels, and their examples by part."""
    folder.mkdir(parents=True)
    examples, start = {}, 0
    for part, size in sizes.items():
        examples[part] = DIGITS[start : start + size]
        pq.write_table(table_of(examples[part], features={"label": SIX}), folder / f"{part}-00000-of-00001.parquet")
        start += size
    return examples


SIX = {"names": [str(c) for c in range(6)], "_type": "ClassLabel"}
DIGITS = [(encoded(image), c % 6) for c, image in enumerate(grey()[:600])]


def test_tables_are_tested_on_test_and_trained_on_train_and_validation(tmp_path):
    examples = write_tables(tmp_path / "dmlab", {"train": 60, "validation": 18, "test": 30})
    data = load_task("dmlab", 32, root=tmp_path)
    trained = [label for part in ("train", "validation") for _, label in examples[part]]
    assert data.train.labels_N.tolist() == trained
    assert data.test.labels_N.tolist() == [label for _, label in examples["test"]]
    assert np.array_equal(read(data.test)[..., :1], grey()[78:108])


def test_tables_of_clevr_are_tested_on_validation(tmp_path):
    examples = write_tables(tmp_path / "clevr_distance", {"train": 60, "validation": 18, "test": 30})
    data = load_task("clevr_distance", 32, root=tmp_path)
    assert data.train.labels_N.tolist() == [label for _, label in examples["train"]]
    assert np.array_equal(read(data.test)[..., :1], grey()[60:78])


def test_tables_without_their_test_part(tmp_path):
    write_tables(tmp_path / "dmlab", {"train": 60, "validation": 18})
    with pytest.raises(DataError, match="train and test are needed"):
        load_task("dmlab", root=tmp_path)


def test_tables_that_name_no_part(tmp_path):
    write_tables(tmp_path / "dmlab", {"data": 60})
    with pytest.raises(DataError, match="no table is named test"):
        load_task("dmlab", root=tmp_path)


def test_plain_class_folders_with_parts(tmp_path):
    names, pictures = [f"c{c}" for c in range(6)], Pictures()
    parts = {part: folders(tmp_path / "dmlab" / part, names, pictures, 2) for part in ("train", "val", "test")}
    data = load_task("dmlab", 32, root=tmp_path)
    hold(data.train, parts["train"] + parts["val"])
    hold(data.test, parts["test"])


def test_plain_class_folders_without_the_published_test_part_are_refused(tmp_path):
    folders(tmp_path / "dmlab", [f"c{c}" for c in range(6)], Pictures(), 2)
    with pytest.raises(DataError, match=r"put the images below train/ and test/"):
        load_task("dmlab", root=tmp_path)
    assert len(load_task(str(tmp_path / "dmlab"), 32).test.labels_N) == 6


def test_a_publishers_layout_goes_before_tables(tmp_path):
    PARTED["cifar10"](tmp_path)
    write_tables(tmp_path / "cifar10", {"train": 60, "test": 30})
    assert find(definition("cifar10"), tmp_path).folder == tmp_path / "cifar-10-batches-py"


# --- what is broken ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", public_names())
def test_missing_images_are_told_with_every_place_and_where_they_are_had(name, tmp_path):
    with pytest.raises(DataError) as caught:
        load_task(name, root=tmp_path)
    said = str(caught.value)
    assert said.startswith(f"task {name!r}: its images are not below {tmp_path}")
    assert f"{tmp_path / name}: parquet files" in said
    assert "http" in said


def test_without_a_root_the_ways_to_name_one_are_told(monkeypatch):
    monkeypatch.delenv("UPSHOT_DATA", raising=False)
    with pytest.raises(DataError, match=r"\[downstream\] of the study, or \$UPSHOT_DATA"):
        load_task("pets")


def test_the_root_of_the_environment(tmp_path, monkeypatch):
    _, test = PARTED["retinopathy"](tmp_path)
    monkeypatch.setenv("UPSHOT_DATA", str(tmp_path))
    hold(load_task("retinopathy", 32).test, test)


def test_a_listed_file_that_is_missing_is_named(tmp_path):
    PARTED["pets"](tmp_path)
    gone = tmp_path / "oxford-iiit-pet" / "images" / "class_0003_1.jpg"
    gone.unlink()
    with pytest.raises(DataError, match=rf"{gone.name} is not there \(1 of 74 listed files are missing\)"):
        load_task("pets", root=tmp_path)


def test_a_torn_test_image_is_named(tmp_path):
    PARTED["retinopathy"](tmp_path)
    torn = tmp_path / "retinopathy" / "test" / "Private1_right.jpeg"
    torn.write_bytes(torn.read_bytes()[:100])
    data = load_task("retinopathy", 32, root=tmp_path)
    with pytest.raises(DataError, match=r"Private1_right\.jpeg: not a readable image"):
        read(data.test)


def test_other_classes_than_the_tasks_are_refused(tmp_path):
    PARTED["pets"](tmp_path)
    lists = tmp_path / "oxford-iiit-pet" / "annotations"
    for name in ("trainval.txt", "test.txt"):
        path = lists / name
        path.write_text("\n".join(path.read_text().splitlines()[:5]))
    with pytest.raises(DataError, match=r"has 5 classes .* task 'pets' has 37"):
        load_task("pets", root=tmp_path)


def test_a_class_that_is_tested_but_not_trained_on_is_refused(tmp_path):
    PARTED["aircraft"](tmp_path)
    path = tmp_path / "fgvc-aircraft-2013b" / "data" / "images_variant_trainval.txt"
    path.write_text("\n".join(path.read_text().splitlines()[1:]))
    with pytest.raises(DataError, match="held-out part has 1 classes that the train part has not: Boeing 000-200"):
        load_task("aircraft", root=tmp_path)


@contextmanager
def another_user():
    """As somebody who owns nothing: root may read everything."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    PARTED["dtd"](tmp_path)
    (tmp_path / "dtd").chmod(0)
    try:
        with another_user():
            with pytest.raises(DataError, match="may not be read"):
                load_task("dtd", root=tmp_path)
            assert absent(["dtd"], tmp_path) == ["dtd"]
    finally:
        (tmp_path / "dtd").chmod(0o700)


def test_a_malformed_list_is_named(tmp_path):
    PARTED["birds"](tmp_path)
    (tmp_path / "CUB_200_2011" / "images.txt").write_text("1\n")
    with pytest.raises(DataError, match="CUB_200_2011: looks like the lists of CUB_200_2011, but cannot be read"):
        load_task("birds", root=tmp_path)


def test_a_test_list_of_gtsrb_without_classes_is_not_taken(tmp_path):
    PARTED["gtsrb"](tmp_path)
    (tmp_path / "gtsrb" / "GT-final_test.csv").unlink()
    with pytest.raises(DataError, match=r"GTSRB_Final_Test_GT\.zip"):
        load_task("gtsrb", root=tmp_path)


def test_a_compressed_matrix_of_smallnorb(tmp_path):
    PARTED["smallnorb_azimuth"](tmp_path)
    next((tmp_path / "smallnorb").glob("*training-dat.mat")).write_bytes(b"\x1f\x8b" + bytes(100))
    with pytest.raises(DataError, match="is it still compressed"):
        load_task("smallnorb_azimuth", root=tmp_path)


def test_a_broken_matlab_file(tmp_path):
    PARTED["svhn"](tmp_path)
    (tmp_path / "test_32x32.mat").write_bytes(b"no matrix" * 50)
    with pytest.raises(DataError, match=r"test_32x32\.mat: is no MATLAB file"):
        load_task("svhn", root=tmp_path)


class Harmful:
    """What an attacker would put in the place of CIFAR."""

    def __reduce__(self):
        return os.mkdir, ("harm-done",)


def test_a_pickle_that_would_run_code_does_not(tmp_path, monkeypatch):
    PARTED["cifar10"](tmp_path)
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps({"data": Harmful(), "labels": [0]})
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(content)
    with pytest.raises(DataError, match=r"data_batch_2: the pickle asks for .*mkdir: only numpy arrays are read"):
        load_task("cifar10", root=tmp_path)
    assert not (tmp_path / "harm-done").exists()


def test_a_pickle_that_is_cut_short(tmp_path):
    PARTED["cifar100"](tmp_path)
    path = tmp_path / "cifar-100-python" / "test"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="cifar-100-python"):
        load_task("cifar100", root=tmp_path)


@pytest.mark.parametrize(("labels", "told"), [([99], "99"), ([-1], "-1"), ([], "images and")])
def test_labels_that_no_class_has_are_refused(labels, told, tmp_path):
    """-1 would be the last class, and with a label too few all later ones would be those of other images."""
    PARTED["cifar10"](tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    found = pickle.loads(path.read_bytes(), encoding="latin1")
    found = {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}
    path.write_bytes(pickle.dumps(found | {"labels": [*found["labels"][:-1], *labels]}))
    with pytest.raises(DataError, match=f"cifar-10-batches-py.* {told}"):
        load_task("cifar10", root=tmp_path)


def test_a_retinopathy_table_without_its_column(tmp_path):
    PARTED["retinopathy"](tmp_path)
    with (tmp_path / "retinopathy" / "trainLabels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "grade"], ["0_left", 0]])
    with pytest.raises(DataError, match="level"):
        load_task("retinopathy", root=tmp_path)
