"""LaTeX tables: read by a strict reader of their own, and typeset where LaTeX is installed."""

import re
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.report.latex import LATEX_ROWS, latex
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
    assert [head[1], head[5]] == [r"\centering\footnotesize", r"\toprule"]
    assert end == [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    caption = re.fullmatch(r"\\caption\{(.*)\}", head[2])
    columns = re.fullmatch(r"\\begin\{tabular\}\{((?:[lr]|p\{4cm\})*)\}", head[4])
    assert caption
    assert columns
    assert re.fullmatch(r"\\label\{tab:\w+\}", head[3])
    assert body.pop(1) == r"\midrule"
    cells = [[read(cell) for cell in re.split(r"(?<!\\) & ", line.removesuffix(r" \\"))] for line in body]
    assert all(line.endswith(r" \\") for line in body)
    return read(caption[1]), columns[1], cells


@settings(max_examples=60, deadline=None)
@example(text=HOSTILE, value=-1.25e-9)
@example(text="*", value=0.0)
@example(text="^.*$", value=0.0)
@given(
    text=st.text(max_size=30).filter(lambda text: text not in ("task", "accuracy")),
    value=st.floats(allow_nan=False, allow_infinity=False),
)
def test_any_text_is_set_as_it_reads(text: str, value: float) -> None:
    table = pl.DataFrame({"task": [text, "b"], "accuracy": [value, None], text or "x": [1, -2]}, strict=False)
    caption, columns, cells = rows_of(latex(table, "fits", text))
    plain = "".join(character if character.isprintable() else " " for character in text)
    assert caption == plain
    assert len(re.sub(r"\{4cm\}", "", columns)) == table.width
    assert [cell.strip() for cell in cells[0]] == ["task", "accuracy", (plain.strip() if text else "x")]
    assert cells[1][0] == plain
    assert float(cells[1][1]) == pytest.approx(value, rel=1e-5)
    assert cells[2] == ["b", "", "-2"]


def test_long_tables_are_cut_and_columns_without_values_left_out() -> None:
    table = pl.DataFrame({"cell_id": [f"c{i}" for i in range(LATEX_ROWS + 1200)], "none\nat all": None})
    source = latex(table, "cells", "All cells.")
    caption, columns, cells = rows_of(source)
    assert caption == "All cells. 1,200 further rows are in cells.csv."
    assert columns == "l"
    assert [row[0] for row in cells] == ["cell_id", *(f"c{i}" for i in range(LATEX_ROWS))]
    assert "% Without a value, and left out: none at all\n" in source


def test_long_text_has_lines_of_its_own() -> None:
    table = pl.DataFrame({"verdict": ["not identifiable: the hull has 2 vertices"], "k": [1.0]})
    assert rows_of(latex(table, "fits", ""))[1] == "p{4cm}r"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="LaTeX (pdflatex) is not installed")
def test_latex_sets_the_table(tmp_path: Path) -> None:
    table = pl.DataFrame({"task": [HOSTILE, "[b", "*c"], "accuracy": [0.5, -1e-9, None], "x & y": [1, 2, 3]})
    for name, caption in CAPTIONS.items():
        write_table(table, name, caption + HOSTILE, tmp_path)
    inputs = "".join(rf"\input{{{name}.tex}}" for name in CAPTIONS)
    document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{inputs}\end{{document}}"
    (tmp_path / "paper.tex").write_text(document)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    assert "Missing character" not in done.stdout
