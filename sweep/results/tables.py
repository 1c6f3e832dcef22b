"""Tables that fit their width: what matters least goes first, and nothing wraps by accident."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

FLEXIBLE_MIN = 12  # cells below which a flexible column says nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column. `rank` 0 stays, the highest goes first; a flexible one takes what is left."""

    header: str
    cells: Sequence[Text]
    rank: int = 0
    right: bool = False
    flexible: bool = False

    @property
    def least(self) -> int:
        """Cells below which the column must not shrink."""
        return min(self.natural, max(FLEXIBLE_MIN, cell_len(self.header)) if self.flexible else 999)

    @property
    def natural(self) -> int:
        """Cells that show everything."""
        widest = max((cell_len(cell.plain) for cell in self.cells), default=0)
        return max(cell_len(self.header), widest)


def fit(columns: Sequence[Column], width: int) -> Table:
    """A table of at most `width` cells: first narrower gaps, then fewer columns."""
    kept = [c for c in columns if any(cell.plain for cell in c.cells) or c.rank == 0]
    while _least(kept, 1) > width and any(c.rank for c in kept):
        worst = max(c.rank for c in kept)
        kept = [c for c in kept if c.rank != worst]
    return _table(kept, width, gap=2 if _least(kept, 2) <= width else 1)


def fits(columns: Sequence[Column], width: int, rank: int = 0) -> bool:
    """Whether the columns up to a rank have room."""
    return _least([c for c in columns if c.rank <= rank], 1) <= width


def _least(columns: Sequence[Column], gap: int) -> int:
    return sum(c.least for c in columns) + gap * max(0, len(columns) - 1)


def _table(columns: Sequence[Column], width: int, gap: int) -> Table:
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="dim")
    spare = max(0, width - _least(columns, gap))
    for column in columns:
        cells = min(column.natural, column.least + spare)
        spare -= cells - column.least
        justify: JustifyMethod = "right" if column.right else "left"
        header = Text(column.header)
        table.add_column(header, justify=justify, width=cells, no_wrap=True, overflow="ellipsis")
    for row in zip(*(c.cells for c in columns), strict=True):
        table.add_row(*row)
    return table
