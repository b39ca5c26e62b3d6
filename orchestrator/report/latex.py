r"""A table as LaTeX that `\input` takes into a paper: booktabs rules, a caption, a label. Pure.

It fits the page of an article, which is the narrowest of the usual ones. Names hold anything, and none of it may act as
a command, end a row or join two columns.
"""

import datetime as dt
import itertools
import math
import re
from collections.abc import Iterable, Sequence

import polars as pl

PAGE_LINES = 48  # of footnotesize below a caption; a floating table does not go on on the next page
PAGE_POINTS = 345.0  # TeX points between the margins of an article
GAP_POINTS = 6.0  # between two columns
LETTER_POINTS, WIDE_POINTS = 4.4, 6.6  # of Computer Modern at footnotesize, rounded up
WIDE = re.compile(r"[A-Zmw%@&—–]|[^\x00-\u024f]")
LONG_TEXT = 30  # characters, from which on a column of text is set in lines of its own
LONG_POINTS = 114.0  # their width: 4 cm
LONG_LINE = 24  # characters of them, with what hyphenation leaves free
MOST_TEXT = 240  # characters of a text that are shown; CSV and parquet have it whole
ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    '"': r"\symbol{34}",  # a command of its own where babel sets German
    "-": "{-}",  # two of them would be one dash
    # After the end of a row these two would belong to it: "\\[2pt]", "\\*".
    "[": "{[}",
    "*": "{*}",
}


def latex(table: pl.DataFrame, name: str, caption: str) -> str:
    """The first rows and columns, as many as a page takes, as a floating table; its caption counts the others.

    Columns without any value, or with the same one in every row, are left out, and named in comments.

    Args:
        table: any columns.
        name: of the table's files; its label is `tab:NAME`.
        caption: a sentence.
    """
    empty = [column for column in table.columns if table.height and table[column].null_count() == table.height]
    same = [column for column in table.columns if column not in empty and _is_same(table[column])]
    told = [column for column in table.columns if column not in (*empty, *same)]
    kept = _first_columns(table.head(PAGE_LINES), told)
    shown, left = _first_rows(table, kept), [column for column in told if column not in kept]
    return "\n".join(
        [
            r"% \usepackage{booktabs}; characters that pdfLaTeX lacks need LuaLaTeX or XeLaTeX.",
            *_comment("Without a value, and left out", empty),
            *_comment("The same in every row", [f"{column} = {_text(table[column][0])}" for column in same]),
            *_comment("Beyond the width of a page", left),
            r"\begin{table}",
            rf"\centering\footnotesize\setlength{{\tabcolsep}}{{{GAP_POINTS / 2:g}pt}}",
            rf"\caption{{{escaped(caption + _further(table.height - shown.height, len(left), name))}}}",
            rf"\label{{tab:{name}}}",
            rf"\begin{{tabular}}{{{''.join(_alignment(shown[column]) for column in kept)}}}",
            r"\toprule",
            _row(_heading(shown[column]) for column in kept),
            r"\midrule",
            *(_row(map(escaped, row)) for row in zip(*(shown[column] for column in kept), strict=True)),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def escaped(value: object) -> str:
    """A value as LaTeX text; numbers with four digits and a true minus."""
    text = _text(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return text.replace("-", "$-$")
    return "".join(ESCAPES.get(character, character) for character in text)


def _text(value: object) -> str:
    """A value without line breaks, tabs and characters that nobody sees, which TeX refuses."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dt.datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    text = "".join(character if character.isprintable() else " " for character in str(value))
    return text if len(text) <= MOST_TEXT else f"{text[: MOST_TEXT - 1]}…"


def _is_same(column: pl.Series) -> bool:
    return column.len() > 1 and column.n_unique() == 1


def _first_rows(table: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """As many rows as a page has lines for."""
    shown = table.head(PAGE_LINES)
    long = [shown[name] for name in columns if _is_long(shown[name])]
    lines = [max(1, *(math.ceil(len(_text(text)) / LONG_LINE) for text in row)) for row in zip(*long, strict=True)]
    return shown.head(max(1, sum(until <= PAGE_LINES for until in itertools.accumulate(lines)))) if long else shown


def _first_columns(shown: pl.DataFrame, columns: Sequence[str]) -> list[str]:
    """As many columns as fit between the margins, one at least."""
    widths = itertools.accumulate(_points(shown[name]) + GAP_POINTS for name in columns)
    return list(columns[: max(1, sum(width <= PAGE_POINTS for width in widths))])


def _points(column: pl.Series) -> float:
    """About how wide a column is set, in TeX points."""
    values = [LONG_POINTS] if _is_long(column) else [_set_width(_text(value)) for value in column]
    return max([*values, *map(_set_width, _heading_lines(column))], default=0.0)


def _set_width(text: str) -> float:
    return sum(WIDE_POINTS if WIDE.match(character) else LETTER_POINTS for character in text)


def _further(rows: int, columns: int, name: str) -> str:
    """How much more there is than the table shows, as a sentence."""
    counts = [(rows, "row"), (columns, "column")]
    more = [f"{number:,} further {what}{'s' * (number > 1)}" for number, what in counts if number]
    return f" {' and '.join(more)} {'is' if rows + columns == 1 else 'are'} in {name}.csv." if more else ""


def _comment(what: str, names: Sequence[str]) -> list[str]:
    return [f"% {what}: {', '.join(map(_text, names))}"] if names else []


def _row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _heading(column: pl.Series) -> str:
    """The column's name; a long one in several lines, which end after underscores."""
    lines = [escaped(line) for line in _heading_lines(column)]
    side = "r" if _alignment(column) == "r" else "l"
    return lines[0] if len(lines) == 1 else rf"\shortstack[{side}]{{" + r"\\".join(lines) + "}"


def _heading_lines(column: pl.Series) -> list[str]:
    words = re.findall(r"[^_]*_|[^_]+", column.name) or [""]
    room = max([*(len(_text(value)) for value in column), *map(len, words)])
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1] + word) <= room:
            lines[-1] += word
        else:
            lines.append(word)
    return lines


def _alignment(column: pl.Series) -> str:
    if column.dtype.is_numeric():
        return "r"
    return "p{4cm}" if _is_long(column) else "l"


def _is_long(column: pl.Series) -> bool:
    return column.dtype == pl.String and any(len(value) > LONG_TEXT for value in column.drop_nulls())
