"""
Tables for the terminal: cells of plain text, drawn by rich.

rich reads markup, links and emoji codes in a `str`; here every cell is a text without markup, made
visible, so that a host's words are only ever shown.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from deploy.foreign_text import visible

Style = Literal["green", "cyan", "yellow", "red", "dim"]
_ANY_WIDTH = 100_000  # columns


@dataclass(frozen=True, slots=True)
class Cell:
    """
    A cell with a colour.
    """

    text: str
    style: Style


@dataclass(slots=True)
class Grid:
    """
    A table.

    Attributes:
        notes: Lines below the table.
    """

    columns: Sequence[str]
    rows: list[tuple[str | Cell, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add_row(self, *cells: str | Cell) -> None:
        self.rows.append(cells)


def draw(grid: Grid, *, is_terminal: bool, encoding: str) -> str:
    """
    Return *grid* as text, as wide as its longest row, whole at any width of the terminal.

    Args:
        is_terminal: Draw with colours.
        encoding: Of the output; lines are drawn with characters that it has.
    """
    from rich.console import Console, RenderableType
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    def text(cell: str | Cell) -> Text:
        if isinstance(cell, Cell):
            return Text(visible(cell.text), style=cell.style)
        return Text(visible(cell))

    table = Table()
    for column in grid.columns:
        table.add_column(text(column))
    for row in grid.rows:
        table.add_row(*map(text, row))
    parts: list[RenderableType] = [table, *map(text, grid.notes)]
    wide = Console(file=_Text(encoding), width=_ANY_WIDTH, force_terminal=is_terminal)
    width = max(Measurement.get(wide, wide.options, part).maximum for part in parts)
    out = _Text(encoding)
    console = Console(file=out, width=max(1, width), force_terminal=is_terminal)
    for part in parts:
        console.print(part)
    return out.getvalue()


class _Text(io.StringIO):
    """
    Text in memory with the encoding of the output, so that rich draws lines it can show.
    """

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding
