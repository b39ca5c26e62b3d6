"""What a person sees in a terminal, what a pipe gets, what a program gets, and what a shell completes."""

import csv
import io
import os
import shutil
import subprocess
import sys

import polars as pl
import pytest
from rich.cells import cell_len
from rich.progress import Progress

from orchestrator.bars import TimeLeft
from orchestrator.completion import STATUSES
from orchestrator.csv_columns import TABLES
from orchestrator.state import Status
from orchestrator.terminal import cut_names, hours_text, print_table
from slurm.cluster import local_profile
from slurm.failures import Cause
from tests.orchestrator.in_terminal import in_terminal, lines_of
from tests.orchestrator.ledger import TRAIN
from tests.orchestrator.upshot_command import UPSHOT, upshot, upshot_json

ESC = "\x1b"
LONG = "\x1b[31mKeyError\x1b[0m: " + "a long tale of what went wrong " * 8


@pytest.fixture
def failed(small, ledger):
    """Of four cells one is trained and judged, and one died of something with a long name and a colour in it."""
    small.store.write_study(small.file.text, local_profile())
    small.store.write_cells(small.cells)
    ledger.submit_both(small.cells[:2], executor="local", job_id=TRAIN)
    ledger.start(0, time=1.0)
    ledger.die(Cause.CODE_ERROR, 0, detail=LONG)
    ledger.trained(4, cell=1)
    ledger.evaluated(4, cell=1)
    return small


@pytest.fixture
def table(tmp_path):
    """A results table of tasks whose names are long and differ at their ends, or in their middles."""
    names = ["the_same_long_beginning/of_a_task_" + end for end in ("a", "b")]
    names += [f"a{middle}_and_the_same_long_end_of_a_name" for middle in ("x", "y")]
    rows = [
        {"cell_id": f"m{i}", "task": name, "upstream_accuracy": us, "downstream_accuracy": 0.8 - 0.5 * (1 - us) ** 3}
        for name in names
        for i, us in enumerate((0.1, 0.3, 0.5, 0.7, 0.9))
    ]
    path = tmp_path / "results.parquet"
    pl.DataFrame(rows).write_parquet(path)
    return path


# --- tables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [60, 160])
def test_nothing_is_wider_than_the_terminal(failed, table, columns):
    root = failed.store.root
    for words in (("status", root), ("status", root, "-s", "FAILED"), ("reduce", table)):
        code, shown = in_terminal([UPSHOT, *words], columns=columns)
        lines = [line for line in lines_of(shown) if not line.startswith("tensorboard --logdir")]
        assert code == (words[0] == "status"), shown
        assert len(lines) > 2
        assert max(map(cell_len, lines)) <= columns, words
    assert "…" not in shown or columns == 60


def test_a_cut_says_so_and_an_id_stays_whole(failed):
    _, shown = in_terminal([UPSHOT, "status", failed.store.root, "-s", "FAILED"], columns=70)
    (line,) = [line for line in lines_of(shown) if line.startswith(failed.cells[0].cell_id)]
    assert line.endswith("…")
    assert "KeyError" in line
    assert f"{ESC}[31m" not in shown, "a message does not colour the terminal"


def test_a_plan_of_thousands_of_cells_has_whole_numbers_at_60_columns(tmp_path):
    grid = "seed = [" + ",".join(map(str, range(1500))) + "]"
    text = f'name = "big"\n[upstream]\ndataset = "icons"\n[grid]\nfamily = "vit"\nsize = "10B"\n{grid}\n'
    (tmp_path / "study.toml").write_text(text + '[downstream]\ntasks = ["mnist"]\n')
    _, shown = in_terminal([UPSHOT, "plan"], columns=60, cwd=tmp_path)
    lines = lines_of(shown)
    assert max(map(cell_len, lines)) <= 60
    heads = [line for line in lines if line.startswith("model ")]
    assert len(heads) == 2, "the columns that do not fit follow in a second table"
    assert {"cells", "params", "FLOPs", "memory", "limit", "hours"} <= set(" ".join(heads).split())
    assert sum(line.startswith("vit 10B") for line in lines) == 2
    assert any("1500" in line for line in lines)


def test_off_a_terminal_values_are_whole_and_plain(failed, table):
    said = upshot("status", failed.store.root, "-s", "FAILED", code=1, env={"COLUMNS": None})
    assert "a long tale of what went wrong " * 7 in said
    said += upshot("reduce", table, env={"COLUMNS": None})
    assert "the_same_long_beginning/of_a_task_b" in said
    assert ESC not in said
    assert "…" not in said
    assert max(map(len, said.splitlines())) > 160, "a sentence is a line"
    assert "…" in upshot("status", failed.store.root, "-s", "FAILED", code=1), "COLUMNS gives a pipe its width"


def test_a_terminal_has_colours_unless_it_is_asked_for_none(failed):
    words = [UPSHOT, "status", failed.store.root]
    assert f"{ESC}[1;31m" in in_terminal(words)[1]
    without = in_terminal(words, env={**os.environ, "NO_COLOR": "1"})[1]
    assert "31m" not in without
    assert "failed" in without


@pytest.mark.parametrize(
    ("names", "width", "expected"),
    [
        (["short", "a/very/long/path/to/it"], 10, ["short", "…ath/to/it"]),
        (["abcdefghij_same", "xbcdefghij_same"], 8, ["a…j_same", "x…j_same"]),
        (["名前名前名前名前"], 7, ["…前名前"]),
    ],
)
def test_names_lose_their_beginnings_and_stay_distinct(names, width, expected):
    cut = cut_names(names, width)
    assert cut == expected
    assert max(map(cell_len, cut)) <= width


def test_names_that_differ_in_the_middle_alone_stay_whole_in_lines():
    names = [f"{'a' * 30}{letter}{'z' * 30}" for letter in "pq"]
    cut = cut_names(names, 20)
    assert [text.replace("\n", "") for text in cut] == names
    assert max(len(line) for text in cut for line in text.splitlines()) <= 20


def test_an_empty_table_is_its_title(capsys):
    print_table("nothing", ("a", "b"), [])
    assert capsys.readouterr().out == "nothing\n"


@pytest.mark.parametrize(("value", "text"), [(0.163, "0.16"), (41270.4, "41,270"), (78_300_889, "78.3 M")])
def test_hours_are_as_exact_as_they_are_worth(value, text):
    assert hours_text(value) == text


# --- for programs --------------------------------------------------------------------------------------------------


def rows_of(said):
    return list(csv.DictReader(io.StringIO(said)))


def test_csv_has_its_columns_and_says_what_json_says(failed, table, tmp_path):
    root, cell = failed.store.root, failed.cells[0].cell_id
    (tmp_path / "published.csv").write_text("model,imagenet,pets\na,.5,.6\nb,.6,.7\n")
    imported = ("import", tmp_path / "published.csv", "--id", "model", "--upstream", "imagenet", "--downstream", "pets")
    commands = {
        "plan": (("plan", root), 0),
        "submit": (("submit", root, "--dry-run"), 0),
        "status": (("status", root), 1),
        "why": (("why", cell, root), 0),
        "clean": (("clean", root, "--dry-run"), 0),
        "import": ((*imported, "-o", tmp_path / "new.parquet"), 0),
        "reduce": (("reduce", table, "--draws", "5"), 0),
        "models": (("models", "vit"), 0),
        "tasks": (("tasks", "mnist", "pets"), 0),
        "doctor": (("doctor", "--profile", "local"), 0),
        "data check": (("data", "check", root), 0),
    }
    for name, (words, code) in commands.items():
        found, rows = upshot_json(*words, code=code), rows_of(upshot(*words, "--csv", code=code))
        table_of = TABLES[name]
        told = found[table_of.rows] if table_of.rows else [found]
        assert len(rows) == len(told), name
        assert all(list(row) == list(table_of.columns) for row in rows)
        for path in table_of.columns:
            first = path.split(".")[0]
            assert name in ("why", "submit") or all(first in row for row in told), (name, path)
    assert rows_of(upshot("status", root, "--csv", code=1))[0]["cause_name"] == "code-error"
    assert rows_of(upshot("why", cell, root, "--csv"))[-1]["event"] == "death"
    assert {row["task"] for row in rows_of(upshot("reduce", table, "--csv"))} == set(
        pl.read_parquet(table)["task"].unique()
    )


def test_json_and_csv_exclude_one_another_before_anything_is_done(failed):
    for words in (("--json", "--csv"), ("--csv", "--json")):
        assert "exclude one another" in upshot("cancel", failed.store.root, "-y", *words, code=2)
    assert not failed.store.is_cancelled


def test_json_is_alone_on_standard_output(failed):
    done = subprocess.run(
        [UPSHOT, "retry", failed.store.root, "-s", "BLOCKED", "--json"], capture_output=True, text=True, check=True
    )
    assert done.stdout == '{\n "cells": [],\n "halted": null\n}\n'


def test_logs_are_json_too(failed):
    found = upshot_json("logs", failed.cells[3].cell_id, failed.store.root)
    assert found == {"cell_id": failed.cells[3].cell_id, "logs": []}
    assert "has printed nothing" in upshot("logs", failed.cells[3].cell_id, failed.store.root)


def test_a_reader_that_stops_early_is_no_error():
    done = subprocess.run(
        ["bash", "-c", f"{UPSHOT} models --csv | head -1"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("family,size")
    assert done.stderr == ""


# --- bars ----------------------------------------------------------------------------------------------------------


def test_the_time_left_is_what_the_done_part_took():
    now = 0.0
    with Progress(TimeLeft(), get_time=lambda: now, disable=True) as progress:
        line = progress.add_task("cells", total=40)
        assert str(TimeLeft().render(progress.tasks[0])) == "–"
        now = 30.0
        progress.update(line, completed=10)
        assert str(TimeLeft().render(progress.tasks[0])) == "2 min left"


def test_a_bar_is_for_terminals_and_goes_away(table):
    code, shown = in_terminal([UPSHOT, "reduce", table, "--draws", "50"])
    assert code == 0
    assert "fitting tasks" in shown
    assert "left" in shown
    assert "fitting tasks" not in "".join(lines_of(shown)[-3:])
    assert shown.rfind(f"{ESC}[?25h") > shown.rfind(f"{ESC}[?25l"), "the cursor is there again"
    assert "fitting tasks" not in upshot("reduce", table, "--draws", "50")


def test_ctrl_c_leaves_the_terminal_as_it_was(table):
    code, shown = in_terminal([UPSHOT, "reduce", table, "--draws", "100000"], keys=[("fitting tasks", b"\x03")])
    assert code not in (0, 1, 2)
    assert "Traceback" not in shown
    assert shown.rfind(f"{ESC}[?25h") > shown.rfind(f"{ESC}[?25l")


# --- completion ----------------------------------------------------------------------------------------------------

BASH = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _upshot_completion upshot; printf '%s\\n' "${COMPREPLY[@]}"
"""
FISH = "source $argv[1]; complete -C (string join -- ' ' $argv[2..])"


@pytest.fixture
def on_path(monkeypatch, failed):
    """`upshot` is a command here, and the study's runs are where it looks for them."""
    monkeypatch.setenv("PATH", f"{UPSHOT.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("UPSHOT_RUNS", str(failed.runs))
    monkeypatch.chdir(failed.path.parent)
    return failed


def script(shell, folder):
    """The script that upshot prints for a shell, in a file."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} is installed")
    variables = {**os.environ, "_UPSHOT_COMPLETE": f"source_{shell}"}
    printed = subprocess.run([UPSHOT], env=variables, capture_output=True, text=True, check=True)
    path = folder / f"upshot.{shell}"
    path.write_text(printed.stdout)
    return path


def offered(shell, folder, *words):
    """What bash or fish offers for the last word."""
    path = script(shell, folder)
    start = [shell, "-c", BASH, shell] if shell == "bash" else [shell, "-c", FISH]
    done = subprocess.run([*start, path, *map(str, words)], capture_output=True, text=True, check=True)
    return [line.split("\t")[0] for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_bash_and_fish_complete_all_that_can_be_named(on_path, shell, tmp_path):
    def complete(*words):
        return offered(shell, tmp_path, "upshot", *words)

    cell = on_path.cells[0].cell_id
    assert complete("stat") == ["status"]
    assert {"--json", "--csv", "--cause"} <= set(complete("status", "--"))
    assert complete("plan", "sm") == ["small.toml"]
    assert complete("plan", "runs/") == ["runs/small"]
    assert complete("status", "small.toml", "-s", "FA") == ["FAILED"]
    assert complete("retry", "small.toml", "--cause", "code") == ["code-error"]
    assert set(complete("status", "small.toml", "fam")) == {"family=vit", "family=resnet"}
    assert complete("status", "small.toml", cell[:6]) == [cell]
    assert cell in complete("why", cell[:1]) or complete("why", cell[:1]) == []


def test_bash_takes_the_equals_sign_for_a_word(on_path, tmp_path):
    assert set(offered("bash", tmp_path, "upshot", "status", "small.toml", "family", "=")) == {"vit", "resnet"}
    assert offered("bash", tmp_path, "upshot", "status", "small.toml", "family", "=", "re") == ["resnet"]


def test_zsh_completes_at_the_press_of_tab(on_path, tmp_path):
    path = script("zsh", tmp_path)
    start = f"PS1='go''> '; autoload -Uz compinit; compinit -u -d {tmp_path}/dump; source {path}\n".encode()
    keys = [
        ("first> ", start),
        ("go> ", b"upshot stat\t"),
        ("status", b"small.toml -s fai\t"),
        ("failed", b"family=re\t"),
        ("family=resnet", b"\x15exit\n"),
    ]
    code, _ = in_terminal(["zsh", "-f", "-i"], keys=keys, env={**os.environ, "PS1": "first> "})
    assert code == 0


def test_completion_knows_every_status_and_loads_nothing_heavy(on_path):
    assert set(STATUSES) == {status.upper() for status in Status}
    program = (
        "import sys\nsys.argv = ['upshot']\nfrom orchestrator.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(*[name for name in ('torch', 'polars', 'numpy') if name in sys.modules], file=sys.stderr)"
    )
    variables = {"_UPSHOT_COMPLETE": "complete_bash", "COMP_WORDS": "upshot status small.toml f", "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **variables}, capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_installing_writes_what_the_shell_reads(on_path, shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} is installed")
    # More than one command, or the shell would give its place to upshot, which asks its parent who it is.
    command = "upshot --install-completion; exit $status" if shell == "fish" else "upshot --install-completion; exit $?"
    done = subprocess.run(
        [shell, "-c", command], env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file() and "upshot" in path.name)
    assert f"complete_{shell}" in written
