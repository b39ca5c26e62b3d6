"""HTML that cannot be broken by data: everything is escaped unless it is `Markup` already."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal


class Markup(str):
    """Text that is HTML."""

    __slots__ = ()


VOID = ("br", "input", "meta")  # elements without content or an end


def escape(value: object) -> Markup:
    """A value as HTML text; `Markup` stays as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def element(tag: str, /, *children: object, **attributes: object) -> Markup:
    """An HTML element; `class_` is `class`, underscores are hyphens, an attribute of None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{written}>" if tag in VOID else f"<{tag}{written}>{join(children)}</{tag}>")


def join(parts: Iterable[object]) -> Markup:
    """Parts one after the other."""
    return Markup("".join(escape(part) for part in parts))


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its heading, and whether it holds numbers (to the right) or text that stays on one line."""

    heading: object
    kind: Literal["text", "line", "number"] = "text"


def table(columns: Sequence[Column], rows: Iterable[Sequence[object]], caption: str) -> Markup:
    """A table under its caption that scrolls sideways where the page is narrow; the first column heads its row."""
    head = element("tr", *(element("th", c.heading, scope="col", class_=_class(c)) for c in columns))
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", cell, class_=_class(c)) for cell, c in zip(row[1:], columns[1:], strict=True)),
        )
        for row in rows
    ]
    inner = element("table", element("thead", head), element("tbody", *body), aria_label=caption)
    # Outside the table, so that it does not scroll away; what scrolls must be reachable by keyboard.
    return join([element("p", caption, class_="caption"), element("div", inner, class_="scroll", tabindex="0")])


def bar(share: float, text: str) -> Markup:
    """A number with a bar behind it, as long as `share` of its cell."""
    style = f"background-size:{max(0.0, min(1.0, share)) * 100:.1f}% 100%"
    return element("span", text, class_="bar", style=style)


def _class(column: Column) -> str | None:
    return None if column.kind == "text" else column.kind
