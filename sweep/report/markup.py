"""HTML from values, safe by construction: text is escaped unless it is `Html` already."""

from __future__ import annotations

import html
from collections.abc import Iterable

from sweep.results.wording import clean

VOID = {"meta", "br", "col"}
FOLD = 600  # characters of a text, beyond which it is folded away
MOST = 20_000  # characters of one text that a page carries


class Html(str):
    """Text that is markup, made by the functions of this module only."""


def el(tag: str, /, *children: str | None, **attributes: str | bool | None) -> Html:
    """An element. `class_` is class, `data_x` is data-x; None and False leave an attribute out."""
    said = "".join(
        f' {_attribute(key)}="{html.escape(value)}"' if isinstance(value, str) else f" {key}"
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    inner = "".join(text(child) for child in children if child is not None)
    return Html(f"<{tag}{said}>" if tag in VOID else f"<{tag}{said}>{inner}</{tag}>")


def text(child: str) -> Html:
    """A child as markup; anything a terminal or a browser would obey becomes visible."""
    return child if isinstance(child, Html) else Html(html.escape(clean(child, lines=True)))


def join(children: Iterable[str | None]) -> Html:
    """Children one after the other."""
    return Html("".join(text(child) for child in children if child is not None))


def foreign(words: str, class_: str = "foreign") -> Html:
    """A text from a model or from data: in its own direction, line ends kept, long ones folded."""
    shown = words if len(words) <= MOST else f"{words[:MOST]} …"
    if len(shown) <= FOLD:
        return el("div", shown, class_=class_, dir="auto")
    more = f"all {len(words):,} characters"
    if len(words) > MOST:
        more = f"the first {MOST:,} of {len(words):,} characters"
    head = el("div", f"{shown[: FOLD // 2]} …", class_=class_, dir="auto")
    whole = el("div", shown, class_=class_, dir="auto")
    return join([head, el("details", el("summary", more), whole)])


def table(heads: Iterable[str], rows: Iterable[Iterable[str]], class_: str | None = None) -> Html:
    """A table of ready cells (`td` or `th`), in a frame that scrolls on a phone."""
    head = el("thead", el("tr", *heads))
    body = el("tbody", *(el("tr", *cells) for cells in rows))
    return el("div", el("table", head, body, class_=class_), class_="scroll", tabindex="0")


def _attribute(key: str) -> str:
    return key.rstrip("_").replace("_", "-")
