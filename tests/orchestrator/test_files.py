import errno
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.files import _take_back, append_record, read_records, write_atomically


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


def limited(program, num_bytes, path):
    """Runs a program that may make no file longer than that: its writes come back short, as on a full disk."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({num_bytes}, {num_bytes}))\n"
    imports = "import sys; from pathlib import Path; from orchestrator.files import *\npath = Path(sys.argv[1])\n"
    return subprocess.run(
        [sys.executable, "-c", imports + limit + program, str(path)], capture_output=True, text=True, check=False
    )


def test_a_failed_write_leaves_the_old_content(tmp_path):
    path = tmp_path / "manifest.json"
    write_atomically(path, "old")
    done = limited("write_atomically(path, 'new' * 1000)", 100, path)
    assert "File too large" in done.stderr
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("before", [b"", b'{"step":1}\n', b'{"step":1}\n{"torn'])
def test_a_record_that_does_not_fit_is_taken_back(tmp_path, before):
    path = tmp_path / "train.ndjson"
    path.write_bytes(before)
    done = limited("append_record(path, {'step': 2, 'pad': 'x' * 200})", len(before) + 50, path)
    assert "OSError: [Errno 28] a record was not written" in done.stderr
    assert str(path) in done.stderr
    assert path.read_bytes() == before
    append_record(path, {"step": 3})
    assert read_records(path).records[-1] == {"step": 3}


def test_a_record_of_another_process_is_not_taken_back_with_ones_own(tmp_path):
    path = tmp_path / "train.ndjson"
    mine = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    try:
        num_written = os.write(mine, b'{"half":')
        append_record(path, {"step": 1})
        _take_back(mine, num_written)
    finally:
        os.close(mine)
    assert read_records(path).records == [{"step": 1}]
    assert read_records(path).num_torn == 1


def test_a_link_is_replaced_and_never_written_through(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = tmp_path / "manifest.json"
    path.symlink_to(victim)
    write_atomically(path, "new")
    assert not path.is_symlink()
    assert path.read_text() == "new"
    assert victim.read_text() == "precious"


def test_no_record_is_added_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = tmp_path / "attempts.ndjson"
    path.symlink_to(victim)
    with pytest.raises(OSError, match=r"attempts\.ndjson") as raised:
        append_record(path, {"step": 1})
    assert raised.value.errno == errno.ELOOP
    assert victim.read_text() == "precious"


def test_two_processes_append_whole_lines(tmp_path):
    path = tmp_path / "attempts.ndjson"
    program = "import sys; from pathlib import Path; from orchestrator.files import append_record as a\n"
    program += "for i in range(500): a(Path(sys.argv[1]), {'who': sys.argv[2], 'i': i, 'pad': 'x' * 200})"
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path), who]) for who in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    read = read_records(path)
    assert read.num_torn == 0
    assert [[r["i"] for r in read.records if r["who"] == who] for who in "ab"] == [list(range(500))] * 2
