import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.files import append_record, read_records, write_atomically


def test_a_torn_last_line_is_counted_and_the_next_record_survives(tmp_path):
    path = tmp_path / "train.ndjson"
    append_record(path, {"step": 1})
    with path.open("ab") as file:
        file.write(b'{"step": 2, "loss"')  # the writer was killed here
    assert read_records(path).records == [{"step": 1}]
    assert read_records(path).num_torn == 1
    append_record(path, {"step": 3})
    assert [record["step"] for record in read_records(path).records] == [1, 3]


def test_a_missing_file_has_no_records(tmp_path):
    assert read_records(tmp_path / "none.ndjson").records == []


@given(st.lists(st.dictionaries(st.text(), st.none() | st.integers() | st.floats(allow_nan=False) | st.text())))
def test_records_come_back(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("records") / "r.ndjson"
    for record in records:
        append_record(path, record)
    assert read_records(path).records == records


def test_a_failed_write_leaves_the_old_content(tmp_path):
    path = tmp_path / "manifest.json"
    write_atomically(path, "old")
    path.with_name(f".manifest.json.{os.getpid()}.draft").mkdir()  # the draft cannot be opened
    with pytest.raises(OSError, match="draft"):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_two_processes_append_whole_lines(tmp_path):
    path = tmp_path / "attempts.ndjson"
    program = "import sys; from pathlib import Path; from orchestrator.files import append_record as a\n"
    program += "for i in range(500): a(Path(sys.argv[1]), {'who': sys.argv[2], 'i': i, 'pad': 'x' * 200})"
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path), who]) for who in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    read = read_records(path)
    assert read.num_torn == 0
    assert [[r["i"] for r in read.records if r["who"] == who] for who in "ab"] == [list(range(500))] * 2
