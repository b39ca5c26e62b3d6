"""Real images in tables as `datasets` writes them: the same layout and schema metadata, by pyarrow alone.

The layouts were read off files of `datasets` 5.2: its `to_parquet`, `save_to_disk` and `DatasetDict.save_to_disk`.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.data import describe, kept, load_images, load_labels, open_stored, split
from models.data.parts import draw_parts
from models.errors import DataError
from tests.models.encoded import CLASSES, encoded

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CLASS_LABEL = {"names": list(CLASSES), "_type": "ClassLabel"}


def table_of(examples, *, image="image", label="label", features=None, columns=None):
    """The table of some examples; `columns` are further ones."""
    images = pa.array([{"bytes": content, "path": None} for content, _ in examples], IMAGE)
    found = {image: images, label: pa.array([number for _, number in examples], pa.int64()), **(columns or {})}
    info = {"info": {"features": {image: {"_type": "Image"}, label: CLASS_LABEL} if features is None else features}}
    return pa.table(found).replace_schema_metadata({"huggingface": json.dumps(info)})


def write_hub(folder, *, num_train=3, size=50, validation="validation", row_group_size=20, **how):
    """`data/train-00000-of-00003.parquet` and so on, as a set lies on the hub."""
    (folder / "data").mkdir(parents=True)
    examples = encoded()[: (num_train + bool(validation)) * size]
    for number in range(num_train):
        path = folder / "data" / f"train-{number:05d}-of-{num_train:05d}.parquet"
        pq.write_table(table_of(examples[number * size :][:size], **how), path, row_group_size=row_group_size)
    if validation:
        path = folder / "data" / f"{validation}-00000-of-00001.parquet"
        pq.write_table(table_of(examples[num_train * size :], **how), path, row_group_size=row_group_size)
    return examples


def write_saved(folder, examples, num=2, batch=30):
    """What `Dataset.save_to_disk` leaves: Arrow streams and two JSON files."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{num:05d}.arrow" for number in range(num)]
    for name, part in zip(names, np.array_split(np.arange(len(examples)), num), strict=True):
        table = table_of([examples[i] for i in part])
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=batch)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {"label": CLASS_LABEL}}))


def read_all(s):
    return [s.read(index) for index in range(sum(s.shard_sizes))]


def refusal(dataset, ask=lambda dataset: read_all(open_stored(dataset))):
    with pytest.raises(DataError) as caught:
        ask(str(dataset))
    return str(caught.value)


# --- parquet ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("validation", ["validation", "test", "val"])
def test_parquet_as_on_the_hub(tmp_path, validation):
    examples = write_hub(tmp_path, validation=validation)
    for dataset in (tmp_path, tmp_path / "data", f"{tmp_path}/data/*.parquet"):
        s = open_stored(str(dataset))
        assert s.classes == CLASSES
        assert s.shard_sizes == (20, 20, 10) * 4
        assert s.labels_N.tolist() == [label for _, label in examples]
        assert s.held_out_shards == {9, 10, 11}
        assert np.flatnonzero(s.held_out_N).tolist() == list(range(150, 200))
        assert read_all(s) == examples
        assert s.place(75) == f"{tmp_path}/data/train-00001-of-00003.parquet: row 25"
        info = describe(str(dataset))
        assert (info.num_examples, info.num_train, info.num_test) == (200, 150, 50)
        assert (info.num_classes, info.image_size, info.channels) == (6, 32, 1)


def test_parquet_in_folders_of_parts(tmp_path):
    for part, start in (("train", 0), ("validation", 60)):
        (tmp_path / part).mkdir()
        pq.write_table(table_of(encoded()[start : start + 60]), tmp_path / part / "0000.parquet")
    s = open_stored(str(tmp_path))
    assert read_all(s) == encoded()[:120]
    assert s.held_out_shards == {1}


def test_a_set_without_a_test_part_is_split_by_classes(tmp_path):
    write_hub(tmp_path, validation=None)
    s = open_stored(str(tmp_path))
    assert s.held_out_shards == frozenset()
    assert s.held_out_N is None
    train_idx, test_idx = split(load_labels(str(tmp_path)))
    assert (describe(str(tmp_path)).num_train, describe(str(tmp_path)).num_test) == (len(train_idx), len(test_idx))
    assert len(test_idx) == pytest.approx(15, abs=3)
    assert kept(str(tmp_path), fraction=1.0, classes=0.5, images=30, seed=1) == (30, 3)


def test_few_row_groups_are_kept_where_they_are_large(tmp_path, monkeypatch):
    examples = write_hub(tmp_path)
    monkeypatch.setattr("models.data.hugging_face.ROOM_BYTES", 50_000)
    s = open_stored(str(tmp_path))
    assert 1 <= s.most_open <= 8
    assert read_all(s) == examples


def test_threads_may_read_at_once(tmp_path, monkeypatch):
    examples = write_hub(tmp_path / "hub")
    write_saved(tmp_path / "saved", examples)
    monkeypatch.setattr("models.data.hugging_face.MOST_OPEN", 2)
    order = np.random.RandomState(0).permutation(200).tolist()
    for name in ("hub", "saved"):
        s = open_stored(str(tmp_path / name))
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(s.read, order)) == [examples[index] for index in order]


def test_files_that_are_missing_of_how_many_there_are(tmp_path):
    write_hub(tmp_path)
    (tmp_path / "data" / "train-00001-of-00003.parquet").unlink()
    assert "train-00000-of-00003.parquet: is one of 3 files, of which 2 are there" in refusal(tmp_path, describe)
    assert describe(f"{tmp_path}/data/*-0000[02]-*.parquet").num_train == 100  # asked for


# --- columns ----------------------------------------------------------------------------------------------------------


def write_table(path, table):
    pq.write_table(table, path)
    return str(path)


def test_columns_of_cifar_100(tmp_path):
    examples = encoded()[:100]
    coarse = pa.array([label // 3 for _, label in examples])
    features = {"fine_label": CLASS_LABEL, "coarse_label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    table = table_of(examples, image="img", label="fine_label", features=features, columns={"coarse_label": coarse})
    s = open_stored(write_table(tmp_path / "x.parquet", table))
    assert (s.classes, read_all(s)) == (CLASSES, examples)


def test_plain_binary_and_the_only_numbers(tmp_path):
    examples = encoded()[:100]
    table = pa.table({"pixels": [image for image, _ in examples], "kind": [label for _, label in examples]})
    s = open_stored(write_table(tmp_path / "x.parquet", table))
    assert (s.classes, read_all(s)) == (tuple("012345"), examples)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_labels_that_are_names(tmp_path, kind):
    examples = encoded()[:100]
    names = pa.array([CLASSES[label] for _, label in examples]).cast(kind)
    table = pa.table({"image": [image for image, _ in examples], "label": names})
    s = open_stored(write_table(tmp_path / "x.parquet", table))
    assert (s.classes, read_all(s)) == (CLASSES, examples)


def test_labels_that_are_names_in_one_file_and_numbers_in_another(tmp_path):
    for part, labels in (("train", [0, 1]), ("test", ["a", "b"])):
        pq.write_table(pa.table({"image": [b"1", b"1"], "label": labels}), tmp_path / f"{part}.parquet")
    assert "test.parquet: labels are names in some files and numbers in others" in refusal(tmp_path, describe)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [b"1"], "text": ["a"]}, "which column is the label? none can be"),
        ({"image": [b"1"], "a": [1], "b": [1]}, "which column is the label? several could be, a, b"),
        ({"label": [1], "url": ["http"]}, "which column is the image? none can be"),
        ({"label": [1], "left": [b"1"], "right": [b"1"]}, "which column is the image? several could be, left, right"),
        ({"image": [b"1"], "label": [0.5]}, "which column is the label? none can be"),
        ({"image": [b"1"], "label": [[1, 2]]}, "which column is the label? none can be"),
    ],
)
def test_columns_that_cannot_be_told(tmp_path, columns, message):
    path = write_table(tmp_path / "x.parquet", pa.table(columns))
    said = refusal(path, describe)
    assert f"{path}: {message}" in said
    assert "Columns: " + ", ".join(f"{f.name} ({f.type})" for f in pq.read_schema(path)) in said


# --- rows -------------------------------------------------------------------------------------------------------------


def changed(tmp_path, column, row, value):
    """A hub set whose second file has another value in a row."""
    write_hub(tmp_path)
    path = tmp_path / "data" / "train-00001-of-00003.parquet"
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[row] = value
    at = table.schema.get_field_index(column)
    table = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
    pq.write_table(table, path, row_group_size=20)
    return path


@pytest.mark.parametrize("value", [None, {"bytes": None, "path": "cat.jpg"}, {"bytes": b"", "path": None}])
def test_rows_without_an_image(tmp_path, value):
    path = changed(tmp_path, "image", 33, value)
    s = open_stored(str(tmp_path))
    with pytest.raises(DataError, match="row 33 has no image"):
        s.read(83)
    assert refusal(tmp_path) == f"{path}: row 33 has no image in column 'image'" + (
        ", only the path cat.jpg: save the set with its images embedded" if value and value["path"] else ""
    )
    assert s.read(82) == encoded()[82]


def test_rows_without_a_label(tmp_path):
    path = changed(tmp_path, "label", 33, None)
    assert f"{path}: row 33 has no label in column 'label'" in refusal(tmp_path)


@pytest.mark.parametrize(("value", "hint"), [(-1, " (is this an unlabelled part?)"), (6, "")])
def test_labels_that_are_no_class(tmp_path, value, hint):
    path = changed(tmp_path, "label", 33, value)
    message = f"{path}: row 33: its label in column 'label' is {value}{hint}, but there are 6 classes"
    assert message in refusal(tmp_path)


def test_parts_of_other_classes(tmp_path):
    write_hub(tmp_path)
    path = tmp_path / "data" / "validation-00000-of-00001.parquet"
    features = {"label": {"names": [*CLASSES[:-1], "a horse"], "_type": "ClassLabel"}}
    pq.write_table(table_of(encoded()[150:], features=features), path)
    message = refusal(tmp_path, describe)
    assert f"{path} and {tmp_path}/data/train-00000-of-00003.parquet must have the same" in message
    assert f"only one of them has a horse, {CLASSES[-1]}" in message


def test_a_held_out_part_of_classes_that_are_not_trained(tmp_path):
    by_class = sorted(encoded(), key=lambda example: example[1])
    for part, examples in (("train", by_class[:400]), ("test", by_class[400:])):
        pq.write_table(table_of(examples), tmp_path / f"{part}.parquet")
    assert "the held-out part has" in refusal(tmp_path, describe)
    assert CLASSES[5] in refusal(tmp_path, load_labels)


def test_a_table_of_one_class_or_of_no_rows(tmp_path):
    one = [(image, 2) for image, _ in encoded()[:9]]
    assert "one class only" in refusal(write_table(tmp_path / "one.parquet", table_of(one)), describe)
    assert "its tables have no rows" in refusal(write_table(tmp_path / "none.parquet", table_of([])), describe)


# --- broken files -----------------------------------------------------------------------------------------------------


def test_a_class_without_an_image_is_none_of_the_plan_nor_of_the_training(tmp_path):
    numbered_from_1 = pa.array([label + 1 for _, label in encoded()[:200]])
    table = pa.table({"image": [content for content, _ in encoded()[:200]], "label": numbered_from_1})
    pq.write_table(table, tmp_path / "all.parquet", row_group_size=20)
    whole = {"fraction": 1.0, "classes": 1.0, "images": None, "seed": 0}
    drawn = draw_parts(open_stored(str(tmp_path)), whole)
    assert len(drawn.classes) == describe(str(tmp_path)).num_classes == len(CLASSES)
    assert kept(str(tmp_path), **whole) == (len(drawn.train.indices()), len(CLASSES))


def test_numbers_that_are_none_of_classes_are_refused(tmp_path):
    """The only whole numbers of a table may be anything; there is not memory for so many names."""
    table = pa.table({"image": [content for content, _ in encoded()[:20]], "id": range(10**11, 10**11 + 20)})
    pq.write_table(table, tmp_path / "all.parquet")
    message = refusal(tmp_path, describe)
    assert message.startswith(f"{tmp_path}/all.parquet: row 19: column 'id' holds 100000000019, but there are 20 rows")


@pytest.mark.parametrize("length", [0, 3, 1000, -1])
def test_parquet_that_is_cut_short(tmp_path, length):
    write_hub(tmp_path)
    path = tmp_path / "data" / "train-00001-of-00003.parquet"
    path.write_bytes(path.read_bytes()[:length])
    assert f"{path}: is damaged or cut short" in refusal(tmp_path, describe)


def test_parquet_with_damaged_data(tmp_path):
    write_hub(tmp_path, num_train=1, validation=None, size=200)
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    content = bytearray(path.read_bytes())
    content[4:40] = bytes(36)  # the first page's header
    path.write_bytes(content)
    assert f"{path}: is damaged or cut short" in refusal(tmp_path)


def test_a_pattern_without_files_and_other_folders(tmp_path):
    assert "no file has a name like this" in refusal(f"{tmp_path}/*.parquet", describe)
    assert "has 0 class folders" in refusal(tmp_path)
    write_hub(tmp_path)
    assert "read image by image" in refusal(tmp_path, load_images)


# --- what save_to_disk writes -----------------------------------------------------------------------------------------


def test_a_saved_dataset(tmp_path):
    write_saved(tmp_path / "one", encoded()[:200])
    s = open_stored(str(tmp_path / "one"))
    assert (s.classes, s.shard_sizes, s.held_out_shards) == (CLASSES, (100, 100), frozenset())
    assert s.labels_N.tolist() == [label for _, label in encoded()[:200]]
    assert read_all(s) == encoded()[:200]
    assert s.place(130) == f"{tmp_path}/one/data-00001-of-00002.arrow: row 30"
    assert describe(str(tmp_path / "one")).num_train == len(split(load_labels(str(tmp_path / "one")))[0])


def test_a_saved_dictionary_of_datasets(tmp_path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    write_saved(tmp_path / "train", encoded()[:150], num=3)
    write_saved(tmp_path / "validation", encoded()[150:200], num=1)
    s = open_stored(str(tmp_path))
    assert (s.shard_sizes, s.held_out_shards) == ((50, 50, 50, 50), {3})
    assert read_all(s) == encoded()[:200]
    assert (describe(str(tmp_path)).num_train, describe(str(tmp_path)).num_test) == (150, 50)


@pytest.mark.parametrize("cut", ["everything", "in a batch", "between batches", "the end mark"])
def test_a_stream_that_is_cut_short_is_an_error_never_fewer_images(tmp_path, cut):
    """pyarrow itself takes the end of a file for the end of the stream."""
    write_saved(tmp_path / "one", encoded()[:200])
    path = tmp_path / "one" / "data-00000-of-00002.arrow"
    content = path.read_bytes()
    source = pa.BufferReader(content)
    pa.ipc.open_stream(source).read_next_batch()
    first_end = source.tell()
    length = {"everything": 0, "in a batch": first_end - 9, "between batches": first_end, "the end mark": -8}[cut]
    path.write_bytes(content[:length])
    assert f"{path}: is " in refusal(tmp_path / "one", describe)


def test_a_saved_dataset_that_lacks_a_file(tmp_path):
    write_saved(tmp_path / "one", encoded()[:200])
    (tmp_path / "one" / "data-00001-of-00002.arrow").unlink()
    assert "data-00001-of-00002.arrow: is not there, but" in refusal(tmp_path / "one", describe)


@pytest.mark.parametrize(("name", "content"), [("state.json", "{"), ("state.json", "{}"), ("dataset_dict.json", "[]")])
def test_malformed_lists_of_files(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert f"{tmp_path}/{name}: is not what save_to_disk writes" in refusal(tmp_path, describe)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert f"{tmp_path}/train/state.json: is not what save_to_disk writes" in refusal(tmp_path, describe)


def test_a_plan_knows_what_row_groups_take_that_stay_open(tmp_path):
    """Encoded images of a hundred row groups and more stay in memory."""
    examples = [(image + bytes(200_000), label) for image, label in encoded()[:200]]
    pq.write_table(table_of(examples), tmp_path / "all.parquet", row_group_size=4, compression="none")
    planned_gb, s = describe(str(tmp_path)).held_gb, open_stored(str(tmp_path))
    before = pa.total_allocated_bytes()
    read_all(s)
    assert planned_gb / 2 < (pa.total_allocated_bytes() - before) / 1e9 < 2 * planned_gb
