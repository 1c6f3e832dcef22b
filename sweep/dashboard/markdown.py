"""Markdown in which no text of a user, a model or a data set is anything but text.

Such text stands in code: there neither HTML nor links nor formulas mean anything, wherever and
however the note is rendered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from sweep.results.wording import clean

WORD = 40  # characters of a word, after which a line may break: a long one widens the page
LIMIT = 200  # characters of a text within a line


def code(text: object, limit: int = LIMIT) -> str:
    """A text within a line."""
    shown = clean(str(text).strip().replace("\n", " ↵ "), limit=limit) or "–"
    shown = re.sub(rf"\S{{{WORD}}}(?=\S)", "\\g<0>\u200b", shown)
    fence = "`" * (_backticks(shown) + 1)
    pad = " " if "`" in (shown[0], shown[-1]) else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def block(text: object, language: str = "") -> str:
    """Lines of text, whole."""
    shown = clean(text, lines=True).strip("\n")
    fence = "`" * max(3, _backticks(shown) + 1)
    return f"{fence}{language}\n{shown}\n{fence}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells that are Markdown already; nothing where there are no rows."""
    lines = [_row(row) for row in rows]
    return "\n".join([_row(header), _row(["---"] * len(header)), *lines]) if lines else ""


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _backticks(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
