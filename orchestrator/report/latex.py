r"""A table as LaTeX that `\input` takes into a paper: booktabs rules, a caption, a label. Pure.

Names hold anything, and none of it may act as a command, end a row or join two columns.
"""

import polars as pl

LATEX_ROWS = 50  # a floating table with more rows leaves its page
LONG_TEXT = 30  # characters, from which on a column of text is set in lines of its own
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
    """The first rows as a floating table, and in its caption how many more there are.

    Columns without any value are left out, and named in a comment.

    Args:
        table: any columns.
        name: of the table's files; its label is `tab:NAME`.
        caption: a sentence.
    """
    shown = table.head(LATEX_ROWS)
    kept = [column for column in table.columns if shown[column].null_count() < shown.height or not shown.height]
    empty = [column for column in table.columns if column not in kept]
    more = table.height - shown.height
    rest = f" {more:,} further rows are in {name}.csv." if more else ""
    return "\n".join(
        [
            r"% \usepackage{booktabs}; characters that pdfLaTeX lacks need LuaLaTeX or XeLaTeX.",
            *([f"% Without a value, and left out: {', '.join(map(_one_line, empty))}"] if empty else []),
            r"\begin{table}",
            r"\centering\footnotesize",
            rf"\caption{{{escaped(caption + rest)}}}",
            rf"\label{{tab:{name}}}",
            rf"\begin{{tabular}}{{{''.join(_alignment(shown[column]) for column in kept)}}}",
            r"\toprule",
            _row(kept),
            r"\midrule",
            *map(_row, zip(*(shown[column] for column in kept), strict=True)),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def escaped(value: object) -> str:
    """A value as LaTeX text; numbers with six digits and a true minus."""
    if value is None:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        return text.replace("-", "$-$")
    return "".join(ESCAPES.get(character, character) for character in _one_line(str(value)))


def _row(values: "tuple[object, ...] | list[str]") -> str:
    return " & ".join(escaped(value) for value in values) + r" \\"


def _alignment(column: pl.Series) -> str:
    if column.dtype.is_numeric():
        return "r"
    longest = column.cast(pl.String).str.len_chars().max() if column.dtype == pl.String else 0
    return "p{4cm}" if isinstance(longest, int) and longest > LONG_TEXT else "l"


def _one_line(text: str) -> str:
    """Text without line breaks, tabs and characters that nobody sees, which TeX refuses."""
    return "".join(character if character.isprintable() else " " for character in text)
