"""Tables and sentences on standard output: as wide as the terminal; where there is none, whole and a line each."""

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

GAP = 2
MIN_NAME, MIN_PROSE = 16, 12  # what columns that give way keep; an id of a cell is 16 wide, so it stays whole
ENDLESS = 100_000
CUT = "…"
DECORATION = re.compile(r"\x1b\[[0-9;:]*[mK]")  # colours, and erasing what is right of the cursor
BREAKS = re.compile(r"[\t-\r]+")
STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but for tab and new line, what turns the direction of writing, and what is no text at all."""


@dataclass(frozen=True, slots=True)
class _Column:
    """A column and whether it gives way: names lose their beginnings, prose its end, numbers nothing."""

    name: str
    values: Sequence[Text]
    kind: str

    @property
    def width(self) -> int:
        """Of everything in it."""
        return max(map(cell_len, (self.name, *(value.plain for value in self.values))))

    @property
    def least(self) -> int:
        """That it can do with."""
        if self.kind == "number":
            return self.width
        return min(self.width, max(MIN_NAME if self.kind == "name" else MIN_PROSE, cell_len(self.name)))


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Iterable[object]],
    *,
    num_names: int = 1,
    prose: Sequence[str] = (),
) -> None:
    """A table of which the columns of names and of prose give way where the width does not suffice.

    Names are cut at the front and stay distinct, prose is cut at its end. Where the other columns do not fit beside
    one another, some follow in a second table of the same rows.

    Args:
        title: the line above it.
        columns: their names.
        rows: values; a `Text` keeps its style, anything else is data and never markup.
        num_names: so many of the first columns are names.
        prose: the columns that are.
    """
    console, texts = _console(), [[_text(value) for value in row] for row in rows]
    console.print(Text(title, style="italic"))  # not the table's own, which would wrap at the table's width
    kinds = ["name" if i < num_names else "prose" if name in prose else "number" for i, name in enumerate(columns)]
    values = zip(*texts, strict=True)
    made = [_Column(*one) for one in zip(columns, values, kinds, strict=True)] if texts else []
    for block in _blocks(made, _width(console)):
        console.print(_table(block, _width(console)))


def print_sentence(text: str) -> None:
    """A sentence in lines as wide as the tables, of which no word is broken."""
    text, width = _in_a_line(text), _width(_console())
    print(textwrap.fill(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))


def print_plain(text: object, file: TextIO | None = None) -> None:
    """A text as it stands, but for what steers the terminal."""
    print(harmless(str(text)), file=file, flush=True)


def print_log(path: Path) -> None:
    """A log that somebody else wrote, below its name: its lines on a terminal, byte for byte in a pipe or a file."""
    print_plain(f"==> {path} <==")
    if sys.stdout.isatty():
        for line in log_lines(path):
            print(line)
    else:
        with path.open("rb") as log:
            shutil.copyfileobj(log, sys.stdout.buffer)
    print()


def log_lines(path: Path) -> Iterator[str]:
    """A log's lines, of which nothing steers the terminal; of a bar that drew over itself, the last state."""
    with path.open(encoding="utf-8", errors="replace", newline="\n") as log:
        for line in log:
            yield harmless(_last_drawn(DECORATION.sub("", line)))


def harmless(text: str) -> str:
    """Others' words, such as names, messages and logs: without colours, an escaped form of what steers the terminal."""
    return STEERING.sub(lambda found: ascii(found[0])[1:-1], DECORATION.sub("", text))


def si(value: float) -> str:
    """Three significant digits with a prefix: 8.31 M, 5.57 T, 1.2 E."""
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10**power:
            return f"{value / 10**power:.3g} {prefix}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """'40 s', '3 min', '5.2 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def hours_text(value: float) -> str:
    """'0.16', '41,270', '78.3 M': hundredths say nothing beside thousands."""
    return f"{value:,.2f}" if value < 1e3 else f"{value:,.0f}" if value < 1e6 else si(value)


def _console() -> Console:
    """That of standard output. What is no terminal has no width, unless $COLUMNS gives it one."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=ENDLESS)


def _width(console: Console) -> int:
    return max(20, console.width)


def _text(value: object) -> Text:
    return value if isinstance(value, Text) else Text(_in_a_line(str(value)))


def _in_a_line(text: str) -> str:
    return harmless(BREAKS.sub(" ", text))


def _last_drawn(line: str) -> str:
    """The line, or behind an ellipsis what was written last over its beginning."""
    pieces = [piece for piece in line.rstrip("\r\n").split("\r") if piece.strip()]
    return CUT + pieces[-1] if len(pieces) > 1 else "".join(pieces)


def _blocks(columns: Sequence[_Column], width: int) -> Iterator[list[_Column]]:
    """The columns as one table, or as many as are needed, each with the names in front."""
    names = [column for column in columns if column.kind == "name"]
    rest = columns[len(names) :]
    while rest:
        fitting = [i for i in range(1, len(rest) + 1) if _least([*names, *rest[:i]]) <= width]
        num = max(fitting, default=1)
        yield [*names, *rest[:num]]
        rest = rest[num:]


def _least(columns: Sequence[_Column]) -> int:
    return sum(column.least for column in columns) + GAP * (len(columns) - 1)


def _table(columns: Sequence[_Column], width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = []
    for column, wide in zip(columns, _widths(columns, width), strict=True):
        justify = "right" if column.kind == "number" else "left"
        table.add_column(Text(column.name), justify=justify, width=wide, no_wrap=True)  # type: ignore[arg-type]  # one of its literals
        shown.append(_cut(column, wide))
    for row in zip(*shown, strict=True):
        table.add_row(*row)
    return table


def _widths(columns: Sequence[_Column], width: int) -> list[int]:
    """Of each column. What gives way shares what the others leave, and none takes more than it needs."""
    room = width - GAP * (len(columns) - 1) - sum(c.width for c in columns if c.kind == "number")
    widths = [c.width for c in columns]
    giving = sorted((i for i, c in enumerate(columns) if c.kind != "number"), key=lambda i: columns[i].width)
    for num_left, i in zip(range(len(giving), 0, -1), giving, strict=True):
        widths[i] = min(columns[i].width, max(columns[i].least, room // num_left))
        room -= widths[i]
    return widths


def _cut(column: _Column, width: int) -> Sequence[Text]:
    if column.width <= width:
        return column.values
    plain = [value.plain for value in column.values]
    made = cut_names(plain, width) if column.kind == "name" else [_without_end(text, width) for text in plain]
    return [Text(text, value.style) for text, value in zip(made, column.values, strict=True)]


def cut_names(names: Sequence[str], width: int) -> list[str]:
    """The names in at most this width, each of which is still another's only if it was before.

    Long ones lose their beginnings, or their middles where the ends are the same. Where neither tells them apart,
    every one stays whole, in several lines.
    """
    different = dict.fromkeys(names)
    for head in range(width - 1):
        made = {name: _without_middle(name, head, width) for name in different}
        if len(set(made.values())) == len(different):
            return [made[name] for name in names]
    return [_folded(name, width) for name in names]


def _without_middle(name: str, head: int, width: int) -> str:
    if cell_len(name) <= width:
        return name
    front, back = "", ""
    for letter in name:
        if cell_len(front + letter) > head:
            break
        front += letter
    for letter in reversed(name):
        if cell_len(front + CUT + letter + back) > width:
            break
        back = letter + back
    return front + CUT + back


def _without_end(text: str, width: int) -> str:
    shown = Text(text)
    shown.truncate(width, overflow="ellipsis")
    return shown.plain


def _folded(name: str, width: int) -> str:
    """A name in lines of at most this width, each of which ends after punctuation where it can."""
    lines = [""]
    for part in re.findall(r"[^-_/. ]*[-_/. ]|[^-_/. ]+", name):
        for piece in textwrap.wrap(part, width, drop_whitespace=False) or [part]:
            if lines[-1] and cell_len(lines[-1]) + cell_len(piece.rstrip()) > width:
                lines.append("")
            lines[-1] += piece
    return "\n".join(lines)
