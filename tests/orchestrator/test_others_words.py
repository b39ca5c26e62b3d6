"""Logs, messages and names are others' words: a terminal shows them and obeys none; in a pipe a log is raw."""

import subprocess

import pytest

from orchestrator.terminal import harmless
from slurm.cluster import local_profile
from tests.orchestrator.in_terminal import in_terminal
from tests.orchestrator.ledger import TRAIN
from tests.orchestrator.upshot_command import UPSHOT, upshot_json

TITLE, CLEAR, BIDI = "\x1b]0;owned\x07", "\x1b[2J\x1b[1;1H", "\u202e"
HOSTILE = f"{TITLE}title\n{CLEAR}cleared\nadmin{BIDI}gpj.exe\n\x9b31mC1\n"
SHOWN = r"""
\x1b]0;owned\x07title
\x1b[2J\x1b[1;1Hcleared
admin\u202egpj.exe
\x9b31mC1
"""
COLOURS, BAR = "\x1b[31mred\x1b[0m \x1b[8mhidden\x1b[0m", " 10%|#  |\r 50%|## |\x1b[K\r100%|###|\r"
LOG = f"{HOSTILE}{COLOURS}\n{BAR}\na\tb\r\n".encode() + b"\xff\n"


@pytest.fixture
def hostile(small, ledger):
    """A cell that failed with a hostile message and traceback, and whose log is hostile too."""
    small.store.write_study(small.file.text, local_profile())
    ledger.submit_both(small.cells[:1], executor="local", job_id=TRAIN)
    ledger.start(time=1.0)
    error = {"type": "KeyError", "message": HOSTILE, "traceback": f"Traceback:\n{HOSTILE}"}
    ledger.end("failed", time=2.0, error=error)
    log = small.store.log_path(small.cells[0].cell_id, "train", 1)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(LOG)
    return small


def indented(lines):
    return "\n".join(f"    {line}" for line in lines.strip().splitlines())


def assert_steers_nothing(shown):
    """Of what a terminal was sent, only colours are control sequences."""
    assert not [found for found in (TITLE, CLEAR, BIDI, "\x9b", "\x07", "\x1b[8m") if found in shown], shown


def test_a_log_on_a_terminal_is_shown_and_steers_nothing(hostile):
    code, shown = in_terminal([UPSHOT, "logs", hostile.cells[0].cell_id, hostile.store.root])
    assert code == 0
    assert_steers_nothing(shown)
    assert shown.endswith(SHOWN + "red hidden\n…100%|###|\na\tb\n�\n\n")


def test_a_log_in_a_pipe_is_byte_for_byte(hostile):
    words = [UPSHOT, "logs", hostile.cells[0].cell_id, hostile.store.root]
    said = subprocess.run(words, capture_output=True, check=True).stdout
    head, _, rest = said.partition(b"\n")
    assert head.startswith(b"==> ")
    assert rest == LOG + b"\n"
    (told,) = upshot_json(*words[1:])["logs"]
    assert told["text"] == LOG.decode(errors="replace"), "JSON is for programs"


def test_a_traceback_and_a_cause_steer_nothing(hostile):
    cell, root = hostile.cells[0].cell_id, hostile.store.root
    _, status = in_terminal([UPSHOT, "status", root, "-s", "FAILED"], columns=160)
    _, why = in_terminal([UPSHOT, "why", cell, root], columns=160)
    for shown in (status, why):
        assert_steers_nothing(shown)
        assert r"KeyError: \x1b]0;owned\x07title" in shown
    assert f"    Traceback:\n{indented(SHOWN)}" in why
    assert f"{indented(SHOWN)}\n    red hidden\n    …100%|###|\n    a\tb\n    �\n" in why


def test_names_and_errors_steer_nothing(tmp_path):
    (tmp_path / "t.csv").write_text(f"model,{TITLE}imagenet,pets,{CLEAR}x\na,.5,.6,1\nb,.6,.7,2\n")
    words = ["import", tmp_path / "t.csv", "--id", "model", "--downstream", "pets", "-o", tmp_path / "t.parquet"]
    code, shown = in_terminal([UPSHOT, *words, "--upstream", f"{TITLE}imagenet"])
    assert (code, r"upstream: \x1b]0;owned\x07imagenet" in shown) == (0, True), shown
    assert_steers_nothing(shown)
    code, shown = in_terminal([UPSHOT, *words, "--upstream", "elsewhere"])
    assert (code, r"\x1b]0;owned\x07imagenet" in shown) == (2, True), shown
    assert_steers_nothing(shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("名前 é ‍🎉", "名前 é ‍🎉"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", r"\x1b]8;;http://x\x1b\link\x1b]8;;\x1b" + "\\"),
        ("a\rb\x08c\x00", r"a\rb\x08c\x00"),
        ("\u2066x\u2069\u200f", r"\u2066x\u2069\u200f"),
        ("name\udcff", r"name\udcff"),
    ],
)
def test_what_steers_is_shown_escaped_and_nothing_else_changes(text, shown):
    assert harmless(text) == shown
