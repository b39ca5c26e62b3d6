"""LaTeX tables: read by a strict reader of their own, and typeset where LaTeX is installed."""

import datetime as dt
import re
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.report.latex import MOST_TEXT, PAGE_LINES, latex
from orchestrator.report.tables import CAPTIONS, write_table

HOSTILE = r"""\input{/etc/passwd} \\ & 100 % of $x_1^2$ #1 ~ {a} "b" 'c' `d` <e> | --- [2pt] * }"""
CHARACTERS = {
    r"\textbackslash{}": "\\",
    r"\textasciicircum{}": "^",
    r"\textasciitilde{}": "~",
    r"\textless{}": "<",
    r"\textgreater{}": ">",
    r"\textbar{}": "|",
    r"\textasciigrave{}": "`",
    r"\textquotesingle{}": "'",
    r"\symbol{34}": '"',
    "$-$": "-",
    **{f"\\{character}": character for character in "{}$&#%_"},
    **{f"{{{character}}}": character for character in "-[*"},
}
TOKEN = re.compile("|".join(map(re.escape, sorted(CHARACTERS, key=len, reverse=True))) + r"|[^\\{}$&#%_^~<>|`'\"\[*-]")


def read(text: str) -> str:
    """What LaTeX text says; anything but plain characters and the commands for single ones is refused."""
    said, at = [], 0
    while at < len(text):
        token = TOKEN.match(text, at)
        assert token, f"{text[at:]!r} would act"
        said.append(CHARACTERS.get(token[0], token[0]))
        at = token.end()
    return "".join(said)


def rows_of(source: str) -> tuple[str, str, list[list[str]]]:
    """The caption, the columns' alignment and the cells of a table, which has nothing else."""
    lines = [line for line in source.splitlines() if not line.startswith("%")]
    head, body, end = lines[:6], lines[6:-3], lines[-3:]
    assert head[0] == r"\begin{table}"
    assert [head[1], head[5]] == [r"\centering\footnotesize\setlength{\tabcolsep}{3pt}", r"\toprule"]
    assert end == [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    caption = re.fullmatch(r"\\caption\{(.*)\}", head[2])
    columns = re.fullmatch(r"\\begin\{tabular\}\{((?:[lr]|p\{4cm\})*)\}", head[4])
    assert caption
    assert columns
    assert re.fullmatch(r"\\label\{tab:\w+\}", head[3])
    assert body.pop(1) == r"\midrule"
    assert all(line.endswith(r" \\") for line in body)
    heading, *rows = [re.split(r"(?<!\\) & ", line.removesuffix(r" \\")) for line in body]
    cells = [["".join(map(read, lines_of(cell))) for cell in heading], *([read(cell) for cell in row] for row in rows)]
    return read(caption[1]), columns[1], cells


def lines_of(heading: str) -> list[str]:
    """The lines that a heading is set in."""
    stack = re.fullmatch(r"\\shortstack\[[lr]\]\{(.*)\}", heading)
    return stack[1].split(r"\\") if stack else [heading]


@settings(max_examples=60, deadline=None)
@example(text=HOSTILE, value=-1.25e-9)
@example(text="*", value=0.0)
@example(text="^.*$", value=0.0)
@example(text="_a__\\long_name_", value=0.0)
@given(
    text=st.text(max_size=30).filter(lambda text: text not in ("task", "accuracy", "b")),
    value=st.floats(-1e300, 1e300),
)
def test_any_text_is_set_as_it_reads(text: str, value: float) -> None:
    table = pl.DataFrame({"task": [text, "b"], "accuracy": [value, None], text or "x": [1, -2]}, strict=False)
    source = latex(table, "fits", text)
    caption, columns, cells = rows_of(source)
    plain = "".join(character if character.isprintable() else " " for character in text)
    number = len(re.sub(r"\{4cm\}", "", columns))
    assert number == 3 or (number == 2 and len(text) > 15)
    assert [cell.strip() for cell in cells[0]] == ["task", "accuracy", (plain.strip() if text else "x")][:number]
    assert caption == plain + ("" if number == 3 else " 1 further column is in fits.csv.")
    assert (f"% Beyond the width of a page: {plain}\n" in source) == (number == 2)
    assert cells[1][0] == plain
    assert float(cells[1][1]) == pytest.approx(value, rel=1e-3)
    assert cells[2] == ["b", "", "-2"][:number]


def test_what_a_page_does_not_take_is_counted_and_columns_that_say_nothing_are_left_out() -> None:
    number = PAGE_LINES + 1200
    wide = {f"column_number_{i}": range(i, number + i) for i in range(12)}
    table = pl.DataFrame({"cell_id": [f"c{i}" for i in range(number)], "none\nat all": None, "seed": 3, **wide})
    source = latex(table, "cells", "All cells.")
    caption, columns, cells = rows_of(source)
    assert caption == "All cells. 1,200 further rows and 4 further columns are in cells.csv."
    assert columns == "l" + "r" * 8
    assert cells[0] == ["cell_id", *list(wide)[:8]]
    assert [row[0] for row in cells[1:]] == [f"c{i}" for i in range(PAGE_LINES)]
    assert "% Without a value, and left out: none at all\n" in source
    assert "% The same in every row: seed = 3\n" in source
    assert (
        "% Beyond the width of a page: column_number_8, column_number_9, column_number_10, column_number_11\n" in source
    )
    assert r"\shortstack[r]{column\_\\number\_\\0}" in source


def test_long_text_has_lines_of_its_own_which_count() -> None:
    table = pl.DataFrame(
        {"verdict": [f"not identifiable: the hull has {i} vertices" for i in range(40)], "k": range(40)}
    )
    caption, columns, cells = rows_of(latex(table, "fits", ""))
    assert columns == "p{4cm}r"
    assert len(cells) - 1 == PAGE_LINES // 2
    assert caption == f" {40 - PAGE_LINES // 2} further rows are in fits.csv."
    (_, [text, _]) = rows_of(latex(pl.DataFrame({"error": ["x y" * 500], "k": [1]}), "fits", ""))[2]
    assert len(text) == MOST_TEXT
    assert text.endswith("…")


def test_numbers_and_times_are_short() -> None:
    row = {"loss": 0.123456, "flops": 3.98765e12, "on": [dt.datetime(2026, 11, 5, 7, 8, 9, 123456, dt.UTC)], "ok": True}
    assert rows_of(latex(pl.DataFrame(row), "cells", ""))[2][1] == [
        "0.1235",
        "3.988e+12",
        "2026-11-05 07:08:09",
        "True",
    ]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="LaTeX (pdflatex) is not installed")
def test_latex_sets_the_table(tmp_path: Path) -> None:
    hostile = {"task": [HOSTILE, "[b", "*c"] * 99, "accuracy": [0.5, -1e-9, None] * 99, "x & y_z": [1, 2, 3] * 99}
    wide = {f"number_{'W' * i}_{i}": [1e-12 * j + i for j in range(297)] for i in range(20)}
    for name, caption in CAPTIONS.items():
        write_table(pl.DataFrame({**hostile, **wide}), name, caption + HOSTILE, tmp_path)
    inputs = "".join(rf"\input{{{name}.tex}}\clearpage" for name in CAPTIONS)
    document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{inputs}\end{{document}}"
    (tmp_path / "paper.tex").write_text(document)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    for fault in ("Missing character", r"Overfull \hbox", "Float too large"):
        assert fault not in done.stdout
