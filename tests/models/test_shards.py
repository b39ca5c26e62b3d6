"""Real images in real tar files, written by Python's own `tarfile`."""

import gzip
import io
import json
import os
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.data import describe, kept, load_images, load_labels, open_stored, split, subset
from models.data.indexing import write_index
from models.data.part_files import expand_braces, part
from models.data.parts import draw_parts
from models.data.samples import open_shard
from models.data.stored import Recent
from models.data.tar import TarFile
from models.errors import DataError
from tests.models.encoded import CLASSES, encoded, members_of, write_shards, write_tar

BLOCK = 512
PNG = encoded()[0][0]


def read_all(s):
    return [s.read(index) for index in range(sum(s.shard_sizes))]


def classes_file(folder):
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


@pytest.fixture
def flat(tmp_path):
    """Twelve shards of 20 examples, in one folder, with a list of the classes."""
    write_shards(tmp_path / "cells")
    return classes_file(tmp_path / "cells")


def refusal(dataset, ask=lambda dataset: read_all(open_stored(dataset))):
    with pytest.raises(DataError) as caught:
        ask(str(dataset))
    return str(caught.value)


# --- tar files --------------------------------------------------------------------------------------------------------

NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=300).filter(
    lambda name: len(name.encode()) < 900 and not name.endswith("/")
)


@settings(deadline=None)
@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=8),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_members_are_those_that_python_finds(tmp_path_factory, members, form):
    path = write_tar(tmp_path_factory.mktemp("tar") / "x.tar", members, form)
    file = TarFile(path)
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar.getmembers()]
    assert [(m.name, m.offset, m.size) for m in file.members() if m.name.rstrip("/")] == expected
    assert [file.read(m.offset, m.size) for m in file.members()] == [content for _, content in members]


def test_long_paths_of_the_oldest_format(tmp_path):
    name = "a" * 90 + "/" + "b" * 80 + ".png"
    path = write_tar(tmp_path / "x.tar", [(name, b"1")], tarfile.USTAR_FORMAT)
    assert [m.name for m in TarFile(path).members()] == [name]


def test_folders_links_and_hidden_files_are_no_examples(tmp_path):
    image, _ = encoded()[0]
    (tmp_path / "a").mkdir()
    for name in ("a/1.png", "a/._1.png", "a/1.cls"):
        (tmp_path / name).write_bytes(image if name.endswith("png") else b"3")
    (tmp_path / "a" / "2.png").symlink_to("1.png")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "a", "./a")
    shard = open_shard(tmp_path / "x.tar")
    assert [(s.image.name, s.label) for s in shard.samples] == [("./a/1.png", 3)]
    assert shard.image(0) == image


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_tar(tmp_path_factory.mktemp("whole") / "whole.tar", members_of(encoded()[:6])).read_bytes()


def end_of_data(content):
    """Where the last member with its padding ends; what follows are the end mark and padding."""
    return len(content.rstrip(b"\0")) // BLOCK * BLOCK + BLOCK


def test_a_shard_that_is_cut_anywhere_is_an_error_never_fewer_images(tmp_path, whole):
    """`tarfile` itself reads most of these without a word."""
    end = end_of_data(whole)
    path = tmp_path / "cut.tar"
    for length in [*range(1, end, 97), *range(BLOCK, end + BLOCK, BLOCK), end - 1, end + 1, end + BLOCK - 1]:
        path.write_bytes(whole[:length])
        if length >= end + BLOCK:
            assert len(open_shard(path).samples) == 6
            continue
        with pytest.raises(DataError, match=re.escape(str(path)) + ": is (cut short|no tar file)"):
            open_shard(path)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (BLOCK + 100, "is cut short in the data of 000000.png"),
        (2 * BLOCK + 100, "is cut short in a header, after 000000.png"),
        (2 * BLOCK, "is cut short before its end mark, after 000000.png"),
        (0, "is an empty file"),
    ],
)
def test_a_cut_is_told_with_its_place(tmp_path, whole, length, message):
    path = tmp_path / "cut.tar"
    path.write_bytes(whole[:length])
    with pytest.raises(DataError, match=f"cut.tar: {message}"):
        open_shard(path)


def test_a_damaged_header_is_told(tmp_path, whole):
    content = bytearray(whole)
    content[2 * BLOCK + 10] ^= 1
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged after 000000\.png: no tar header at byte 1024"):
        open_shard(tmp_path / "x.tar")


@given(st.binary(max_size=2000))
def test_other_bytes_are_no_tar_file(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "other.tar"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"other\.tar: "):
        open_shard(path)


def test_sparse_files_are_refused(tmp_path):
    with (tmp_path / "1.png").open("wb") as file:
        file.truncate(2**20)
    os.system(f"cd {tmp_path} && tar --sparse -cf gnu.tar 1.png && tar --sparse --format=posix -cf posix.tar 1.png")
    for name in ("gnu.tar", "posix.tar"):
        with pytest.raises(DataError, match=f"{name}: .*sparse"):
            open_shard(tmp_path / name)


def test_a_file_that_shrinks_while_it_is_in_use(flat):
    s = open_stored(str(flat))
    s.read(0)
    path = flat / "00000.tar"
    os.truncate(path, 3000)
    with pytest.raises(DataError, match=r"00000\.tar: 000019\.png: the file was cut short while it was in use"):
        s.read(19)


# --- examples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cls", "name", "json"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_examples_are_read_as_they_were_written(tmp_path, kind, suffix):
    examples = write_shards(tmp_path, kind=kind, suffix=suffix)
    s = open_stored(str(classes_file(tmp_path)))
    assert s.classes == CLASSES
    assert s.shard_sizes == (20,) * 12
    assert read_all(s) == examples
    assert Image.open(io.BytesIO(s.read(7)[0])).size == (32, 32)
    assert s.place(37) == f"{tmp_path}/00001.tar: 000037.{suffix}"


def test_threads_may_read_at_once_more_shards_than_are_kept_open(flat, monkeypatch):
    monkeypatch.setattr("models.data.shards.MOST_OPEN", 3)
    examples = encoded()[:240]
    s = open_stored(str(flat))
    order = np.random.RandomState(1).permutation(240).tolist() * 2
    before = len(list(Path("/proc/self/fd").iterdir()))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(s.read, order)) == [examples[index] for index in order]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 4  # three, and the listing itself


def test_a_broken_shard_is_read_once_and_what_the_disk_may_answer_later_again(flat):
    opened = []

    def make(path):
        opened.append(path)
        if path == "stale":
            raise OSError(116, "Stale file handle")
        return open_shard(path)

    broken = flat / "00003.tar"
    os.truncate(broken, 3000)
    keep = Recent(make, 2)
    for path, error in ((broken, DataError), ("stale", OSError)) * 2:
        with pytest.raises(error):
            keep(path)
    assert opened == [broken, "stale", "stale"]


def test_json_without_a_label_and_text_beside_it(tmp_path):
    about = b'{"cls": "dunn/jasp", "url": 1}'
    write_tar(tmp_path / "a.tar", [("1.jpg", PNG), ("1.txt", b"a cell"), ("1.json", about)])
    assert open_shard(tmp_path / "a.tar").samples[0].label == "dunn/jasp"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a/1.cls", b"0")], "a/1: has no image (.jpg, .jpeg, .png, .webp); its extensions are: cls"),
        ([("1.png", PNG), ("1.jpg", PNG)], "1: has two images or more; its extensions are: png, jpg"),
        ([("1.png", PNG), ("1.png", PNG)], "1: has two members of one name: 1.png, 1.png"),
        ([("1.png", PNG), ("2.png", PNG), ("1.cls", b"0")], "1: two examples have this key"),
        ([("1.png", PNG), ("1.json", b"{")], "1.json: no JSON"),
        ([("1.png", PNG), ("1.json", b'{"label": [1, 2]}')], "1.json: a label is a number or a name, not [1, 2]"),
        ([("1.png", PNG), ("1.json", b'{"label": true}')], "1.json: a label is a number or a name, not True"),
        ([], "holds no examples"),
    ],
)
def test_malformed_shards_are_named_with_their_key(tmp_path, members, message):
    write_tar(tmp_path / "x.tar", members)
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/x.tar: {message}")):
        open_shard(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "has no label (.cls, or .json with 'label')"),
        (b"", "has no label"),
        (b"6", "has the label 6, but there are 6 classes, numbered from 0"),
        (b"-1", "has the label -1, but there are 6 classes"),
        (b"a horse", "has the label 'a horse', which is none of the 6 classes"),
    ],
)
def test_labels_that_are_none_are_named_with_their_image(flat, label, message):
    extra = [("9.png", PNG)] + ([("9.cls", label)] if label is not None else [])
    write_tar(flat / "00003.tar", [*members_of(encoded()[:19]), *extra])
    s = open_stored(str(flat))
    with pytest.raises(DataError, match=re.escape(f"{flat}/00003.tar: 9.png: {message}")):
        s.read(79)
    assert "00003.tar: 9.png: has " in refusal(flat, write_index)


# --- which shards -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train/{:03d}.tar", "val/{:03d}.tar"),
        ("train/{:03d}.tar", "test/{:03d}.tar"),
        ("imagenet-train-{:06d}.tar", "imagenet-val-{:06d}.tar"),
        ("imagenet1k-train-{:04d}.tar", "imagenet1k-validation-{:02d}.tar"),
        ("data/train_{}.tar", "data/test_{}.tar"),
    ],
)
def test_parts_by_the_names_of_files_and_folders(tmp_path, train, test):
    write_shards(tmp_path, train, num=3)
    write_shards(tmp_path, test, num=1, start=60)
    s = open_stored(str(classes_file(tmp_path)))
    assert read_all(s) == encoded()[:80]
    assert s.held_out_shards == {3}
    info = describe(str(tmp_path))
    assert (info.num_examples, info.num_train, info.num_test) == (80, 60, 20)
    assert (info.num_classes, info.image_size, info.channels) == (6, 32, 1)


def test_val_comes_before_test(tmp_path):
    for number, name in enumerate(("train", "test", "val")):
        write_shards(tmp_path, name + "/{}.tar", num=2, start=40 * number)
    s = open_stored(str(classes_file(tmp_path)))
    assert read_all(s) == encoded()[:40] + encoded()[80:120]


def test_whole_shards_are_held_out_where_no_name_says_which(flat):
    s = open_stored(str(flat))
    assert len(s.held_out_shards) == 1
    assert (describe(str(flat)).num_train, describe(str(flat)).num_test) == (220, 20)


def test_patterns(tmp_path):
    for name, start in (("train", 0), ("extra", 100), ("val", 200)):
        write_shards(tmp_path, name + "-{:06d}.tar", num=5, start=start)
    classes_file(tmp_path)
    assert read_all(open_stored(f"{tmp_path}/train-{{000000..000004}}.tar")) == encoded()[:100]
    s = open_stored(f"{tmp_path}/{{train,val}}-00000[01].tar")
    assert read_all(s) == encoded()[:40] + encoded()[200:240]
    assert s.held_out_shards == {2, 3}
    assert describe(f"{tmp_path}/{{train,val}}-*.tar").num_test == 100


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("a-{x,y}-{0..1}.tar", ["a-x-0.tar", "a-x-1.tar", "a-y-0.tar", "a-y-1.tar"]),
    ],
)
def test_braces(pattern, names):
    assert expand_braces(pattern) == names


@pytest.mark.parametrize("pattern", ["{}", "{a}", "{1..}", "{9..1}"])
def test_braces_that_list_nothing(pattern):
    with pytest.raises(DataError, match=re.escape(pattern)):
        expand_braces(pattern)


def test_part_of_a_name():
    named = {
        "a/imagenet-train-000001.tar": "train",
        "a/TEST_1.tar": "test",
        "train/0001.tar": "train",
        "validation/train-001.tar": "train",
        "a/latest-contest.tar": None,
        "a/train-val-01.tar": None,
        "train/x-val-test.tar": "train",
        "test_of_mine/0001.tar": None,
    }
    assert {name: part(Path(name)) for name in named} == named


@pytest.mark.parametrize(
    ("names", "asked", "message"),
    [
        (("train-0.tar", "more-0.tar"), "", "more-0.tar does not say whether it is for training, as train-0.tar does"),
        (("val-0.tar", "test-0.tar"), "", "only files of test and val, none to train on"),
        (("train-0.tar",), "/train-{0..4}.tar", "4 of its 5 files are not there: {}/train-1.tar, "),
        (("train-0.tar",), "/no-*.tar", "no file has a name like this"),
        (("train-0.tar",), "/train-{0,0}.tar", "names {}/train-0.tar twice"),
        (("train-0.tar",), "/other.tar", "no such file or folder"),
        (("train-0.tar",), "", "no shard is held out by its name (val-, test-), and 1 are too few"),
    ],
)
def test_shards_that_make_no_set(tmp_path, names, asked, message):
    for name in names:
        write_shards(tmp_path, name, num=1)
    assert message.format(tmp_path) in refusal(f"{classes_file(tmp_path)}{asked}")


def test_compressed_shards_are_refused_with_a_hint(tmp_path):
    path = write_shards(tmp_path, num=1) and tmp_path / "00000.tar"
    for name in ("00000.tar.gz", "00000.tgz"):
        (tmp_path / name).write_bytes(gzip.compress(path.read_bytes()))
        assert f"{name}: is compressed as a whole" in refusal(tmp_path, describe)
        assert f"{name}: is compressed as a whole" in refusal(tmp_path / name, describe)
        (tmp_path / name).unlink()
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert "00000.tar: is compressed with gzip" in refusal(tmp_path, write_index)


def test_unreadable_shards_are_named(flat):
    (flat / "00003.tar").unlink()
    (flat / "00003.tar").mkdir()
    assert f"{flat}/00003.tar: is no file" in refusal(flat)
    (flat / "00003.tar").rmdir()
    (flat / "00003.tar").symlink_to("nowhere.tar")
    assert f"{flat}/00003.tar: no such file" in refusal(flat)


# --- sizes and classes ------------------------------------------------------------------------------------------------


def test_sizes_come_from_files_without_opening_a_shard(flat):
    (flat / "sizes.json").write_text(json.dumps({f"{i:05d}.tar": 20 for i in range(11)}))
    (flat / "00011_stats.json").write_text(json.dumps({"count": 30, "successes": 20}))
    for i in range(1, 12):
        (flat / f"{i:05d}.tar").write_bytes(b"")
    info = describe(str(flat))  # looks at the first images alone
    assert (info.num_examples, info.num_train, info.image_size) == (240, 220, 32)


def test_sizes_beside_the_shards_of_a_part(tmp_path):
    for name in ("train", "val"):
        write_shards(tmp_path, name + "/{}.tar", num=2)
        (tmp_path / name / "sizes.json").write_text('{"0.tar": 20, "1.tar": 20}')
    (tmp_path / "train" / "1.tar").write_bytes(b"")
    assert describe(str(classes_file(tmp_path))).num_examples == 80


def test_another_number_than_the_sizes_say(flat):
    (flat / "sizes.json").write_text(json.dumps({f"{i:05d}.tar": 20 + (i == 3) for i in range(12)}))
    s = open_stored(str(flat))
    s.read(59)
    with pytest.raises(DataError, match=r"00003\.tar: holds 20 examples, not 21 as its sizes"):
        s.read(60)
    assert s.place(60) == f"{flat}/00003.tar: 000060.png" or "example 0" in s.place(60)
    assert "00003.tar: holds 20 examples, not 21" in refusal(flat, write_index)
    listed = json.loads((flat / "sizes.json").read_text())
    assert listed == {f"{i:05d}.tar": 20 + (i == 3) for i in range(12)}


@pytest.mark.parametrize("content", ["[", "[]", '{"00000.tar": "20"}', '{"00000.tar": 0}', '{"00000.tar": true}'])
def test_malformed_sizes(flat, content):
    (flat / "sizes.json").write_text(content)
    assert f"{flat}/sizes.json: " in refusal(flat, describe)


def test_malformed_stats(flat):
    (flat / "00000_stats.json").write_text("{}")
    assert "00000_stats.json: has no number 'successes'" in refusal(flat, describe)


def test_a_shard_that_is_listed_but_gone(flat):
    write_index(str(flat))
    (flat / "00005.tar").unlink()
    assert f"{flat}/00005.tar: is not there, but {flat}/sizes.json lists it" in refusal(flat, describe)


def test_many_shards_of_unknown_sizes_are_not_read_just_to_count(tmp_path):
    write_shards(tmp_path, num=33, size=1)
    classes_file(tmp_path)
    message = refusal(tmp_path, describe)
    assert "how many examples 33 of its 33 shards hold is not known" in message
    assert f"`upshot data index '{tmp_path}'`" in message
    write_index(str(tmp_path))
    assert describe(str(tmp_path)).num_examples == 33


def test_classes_that_nothing_tells(flat):
    (flat / "classes.txt").unlink()
    for ask in (describe, lambda dataset: open_stored(dataset).read(0)):
        assert f"{flat}: the classes are not known: list them in {flat}/classes.txt" in refusal(flat, ask)


@pytest.mark.parametrize("name", ["classes.txt", "classnames.txt", "classes.json"])
def test_lists_of_classes(flat, name):
    (flat / "classes.txt").unlink()
    names = ["b c", "a", "ß", "1", "2", "3"]
    (flat / name).write_text(json.dumps(names) if name.endswith("json") else "\n".join(names) + "\n")
    assert open_stored(str(flat)).classes == tuple(names)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("classes.txt", "a\nb\na\n", "lists 'a' twice"),
        ("classes.txt", "a\n", "lists fewer than 2 classes"),
        ("classes.json", '{"a": 0}', "should be a list of names"),
        ("classes.json", "[", "no JSON"),
    ],
)
def test_malformed_lists_of_classes(flat, name, content, message):
    (flat / "classes.txt").unlink()
    (flat / name).write_text(content)
    assert f"{flat}/{name}: {message}" in refusal(flat, describe)


# --- the index --------------------------------------------------------------------------------------------------------


def test_labels_are_known_once_they_are_listed(flat):
    s = open_stored(str(flat))
    assert s.labels_N is None
    assert s.held_out_N is None
    before, held_out = describe(str(flat)), s.held_out_shards

    done = write_index(str(flat))

    assert (done.num_shards, done.num_read, done.num_examples, done.classes) == (12, 12, 240, CLASSES)
    s = open_stored(str(flat))
    assert s.labels_N.tolist() == [label for _, label in encoded()[:240]]
    assert s.held_out_shards == held_out  # the parts are what they were
    assert describe(str(flat)) == before
    assert s.held_out_N.sum() == 20
    assert read_all(s) == encoded()[:240]
    assert json.loads((flat / "sizes.json").read_text()) == {f"{i:05d}.tar": 20 for i in range(12)}
    assert pq.read_table(flat / "labels.parquet").column_names == ["shard", "label"]


def test_shares_of_classes_and_images_need_the_list_and_fractions_are_the_same_before_and_after(flat):
    whole = {"fraction": 1.0, "classes": 1.0, "images": None, "seed": 0}
    assert kept(str(flat), **whole) == (220, 6)
    half = list(draw_parts(open_stored(str(flat)), whole | {"fraction": 0.5}).train.indices())
    assert kept(str(flat), **whole | {"fraction": 0.5}) == (len(half), 6)
    for change in ({"classes": 0.5}, {"images": 50}):
        assert "`upshot data index`" in refusal(flat, lambda dataset, c=change: kept(dataset, **whole | c))
    write_index(str(flat))
    kept.cache_clear()
    labels = load_labels(str(flat))
    assert list(draw_parts(open_stored(str(flat)), whole | {"fraction": 0.5}).train.indices()) == half
    of_few = draw_parts(open_stored(str(flat)), whole | {"fraction": 0.5, "classes": 0.5})
    assert set(of_few.train.indices()) == {i for i in half if labels.labels_N[i] in of_few.classes}
    assert kept(str(flat), **whole | {"fraction": 0.5, "classes": 0.5}) == (len(of_few.train.indices()), 3)
    few, seeds = (0.03, 0.1, 0.9), range(5)
    for change in [{"classes": c, "fraction": f, "seed": s} for c in few for f in few for s in seeds]:
        part = draw_parts(open_stored(str(flat)), whole | change)
        assert kept(str(flat), **whole | change) == (len(part.train.indices()), len(part.classes))
    for change in ({"classes": 0.5}, {"images": 50}):
        idx = subset(labels.labels_N, split(labels)[0], **whole | change)
        assert kept(str(flat), **whole | change) == (len(idx), len(np.unique(labels.labels_N[idx])))


def test_an_index_names_classes_by_what_the_labels_are(tmp_path):
    write_shards(tmp_path / "names", kind="name")
    write_shards(tmp_path / "numbers", kind="cls")
    assert write_index(str(tmp_path / "names")).classes == CLASSES  # which are sorted
    assert write_index(str(tmp_path / "numbers")).classes == tuple("012345")
    for name in ("names", "numbers"):
        assert read_all(open_stored(str(tmp_path / name))) == encoded()[:240]
    classes_file(tmp_path / "numbers")
    assert open_stored(str(tmp_path / "numbers")).classes == CLASSES  # numbers may get names afterwards


def test_an_index_is_not_gone_on_with_once_classes_have_other_numbers(tmp_path):
    write_shards(tmp_path, kind="name")
    (tmp_path / "00011.tar").rename(tmp_path / "later")
    write_index(str(tmp_path))
    before = (tmp_path / "labels.parquet").read_bytes()
    (tmp_path / "later").rename(tmp_path / "00011.tar")
    (tmp_path / "classes.txt").write_text("\n".join(reversed(CLASSES)))
    assert "its list of classes and labels.parquet differ" in refusal(tmp_path, write_index)
    assert (tmp_path / "labels.parquet").read_bytes() == before


def test_an_index_is_of_tar_files_and_lies_in_a_folder(flat, tmp_path):
    other = tmp_path / "notes.txt"
    other.write_text("no tar")
    assert "it should end in .tar" in refusal(other, write_index)
    assert "cannot be written to" in refusal(flat, lambda dataset: write_index(dataset, other))
    assert not list(tmp_path.glob("*.json"))


def test_indexing_again_reads_what_is_new_alone(tmp_path):
    examples = sorted(encoded()[:240], key=lambda example: -example[1])  # so that names come in another order
    for shard in range(10):
        part_of_them = examples[24 * shard : 24 * shard + 24]
        write_tar(tmp_path / f"{shard}.tar", members_of(part_of_them, 24 * shard, kind="name"))
    for shard in range(5, 10):
        (tmp_path / f"{shard}.tar").rename(tmp_path / f"{shard}.tar.part")
    assert write_index(str(tmp_path)).num_read == 5
    for shard in range(5, 10):
        (tmp_path / f"{shard}.tar.part").rename(tmp_path / f"{shard}.tar")
    assert write_index(str(tmp_path)).num_read == 5
    bytes_written = [(tmp_path / name).read_bytes() for name in ("sizes.json", "labels.parquet")]
    assert write_index(str(tmp_path)).num_read == 0
    assert bytes_written == [(tmp_path / name).read_bytes() for name in ("sizes.json", "labels.parquet")]
    assert pq.read_table(tmp_path / "labels.parquet")["label"].to_pylist() == [label for _, label in examples]


def test_an_index_that_was_stopped_is_gone_on_with(flat, monkeypatch):
    monkeypatch.setattr("models.data.indexing.SAVE_AFTER_S", 0.0)
    monkeypatch.setattr("models.data.indexing.SAVE_SHARE", 0)

    def stop(done, of):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_index(str(flat), progress=stop)
    assert write_index(str(flat)).num_read == 5
    assert open_stored(str(flat)).labels_N.tolist() == [label for _, label in encoded()[:240]]
    assert not [path for path in flat.iterdir() if path.name.startswith(".")]


def test_broken_shards_are_all_named_and_the_others_kept(flat):
    for shard in (2, 9):
        path = flat / f"{shard:05d}.tar"
        path.write_bytes(path.read_bytes()[:5000])
    message = refusal(flat, write_index)
    assert message.startswith("2 of 12 shards cannot be used, the others are in the index:")
    assert f"{flat}/00002.tar: is cut short" in message
    assert f"{flat}/00009.tar: is cut short" in message
    assert len(json.loads((flat / "sizes.json").read_text())) == 10
    assert open_stored(f"{flat}/0000[013-8].tar").labels_N is not None


def test_an_index_elsewhere_is_a_set_of_its_own(flat, tmp_path):
    inside = tmp_path / "index"
    flat.chmod(0o500)
    done = write_index(str(flat / "0000*.tar"), inside)
    assert write_index(f"{flat}/000{{10..11}}.tar", inside).num_read == 2
    flat.chmod(0o700)
    assert done.folder == inside
    s = open_stored(str(inside))
    assert s.classes == CLASSES
    assert read_all(s) == encoded()[:240]
    assert s.labels_N.tolist() == [label for _, label in encoded()[:240]]
    assert not (flat / "sizes.json").exists()
    (flat / "00003.tar").unlink()
    assert f"{flat}/00003.tar: is not there, but {inside}/sizes.json lists it" in refusal(inside)


def test_shards_without_labels_get_sizes_alone(tmp_path):
    write_shards(tmp_path, kind=None)
    done = write_index(str(tmp_path))
    assert (done.classes, done.num_examples) == ((), 240)
    assert write_index(str(tmp_path)).num_read == 0
    assert open_stored(str(tmp_path)).labels_N is None
    assert "the classes are not known" in refusal(tmp_path, describe)


def test_one_shard_without_labels_leaves_them_unknown(flat):
    write_tar(flat / "00005.tar", members_of(encoded()[100:120], 100, kind=None))
    assert write_index(str(flat)).classes == CLASSES
    s = open_stored(str(flat))
    assert s.labels_N is None
    with pytest.raises(DataError, match=r"00005\.tar: 000107\.png: has no label"):
        s.read(107)


@pytest.mark.parametrize("label", [b"a name", b"-2"])
def test_labels_are_all_names_or_all_numbers(flat, label):
    (flat / "classes.txt").unlink()
    write_tar(flat / "00005.tar", [("7.png", PNG), ("7.cls", label)])
    assert "00005.tar: 7.png: has the label" in refusal(flat, write_index)


def test_a_shard_that_changed_since_it_was_listed(flat):
    write_index(str(flat))
    examples = encoded()[:20]
    write_tar(flat / "00000.tar", members_of([(image, (label + 1) % 6) for image, label in examples]))
    s = open_stored(str(flat))
    assert s.read(0)[1] == (examples[0][1] + 1) % 6
    assert s.labels_N is not None
    message = refusal(flat, lambda _: s.read(0))
    assert f"{flat}/00000.tar: 000000.png: its label is {CLASSES[(examples[0][1] + 1) % 6]!r}, not what" in message


def test_other_classes_than_the_index(flat):
    (flat / "classes.txt").unlink()
    write_shards(flat, kind="name")
    write_index(str(flat))
    (flat / "classes.txt").write_text("\n".join(reversed(CLASSES)))
    assert f"{flat}: its list of classes and labels.parquet differ: remove labels.parquet" in refusal(flat, describe)


@pytest.mark.parametrize("content", [b"", b"PAR1 is no parquet PAR1", "other"])
def test_a_file_that_is_no_index(flat, content):
    write_index(str(flat))
    if content == "other":
        pq.write_table(pq.read_table(flat / "labels.parquet").drop("shard").replace_schema_metadata(), flat / "x")
        (flat / "x").rename(flat / "labels.parquet")
    else:
        (flat / "labels.parquet").write_bytes(content)
    for ask in (write_index, lambda dataset: open_stored(dataset).labels_N, describe):
        assert f"{flat}/labels.parquet: is not what `upshot data index` writes" in refusal(flat, ask)


def test_a_held_out_part_of_other_classes(tmp_path):
    by_class = sorted(encoded(), key=lambda example: example[1])
    write_tar(tmp_path / "train" / "0.tar", members_of(by_class[:400], kind="name"))
    write_tar(tmp_path / "val" / "0.tar", members_of(by_class[400:], kind="name"))
    write_index(str(tmp_path))
    message = refusal(tmp_path, load_labels)
    assert "the held-out part has" in message
    assert CLASSES[5] in message


def test_shards_are_not_loaded_whole(flat):
    assert "read image by image" in refusal(flat, load_images)
