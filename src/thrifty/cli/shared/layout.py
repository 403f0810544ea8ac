"""Tables that fit the terminal: numbers stay whole, texts take a few lines, and columns that have no room are left out
and named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

LINES = 3  # that a row may take
NARROWEST = 8  # columns of a text that has no room at all
GAP = 2  # between two columns


@dataclass(frozen=True)
class Column:
    """A column of a table. number: its cells are never broken, and stand at the right; others are texts. rank: columns
    of a lower one are given room first.
    """

    name: str
    number: bool = True
    rank: int = 0


@dataclass(frozen=True)
class Layout:
    """Which columns are shown, as places in the given order, and how wide. omitted: names of those left out."""

    places: tuple[int, ...]
    widths: tuple[int, ...]
    omitted: tuple[str, ...]

    def height(self, row: Sequence[str]) -> int:
        """The lines that a row of all columns takes."""
        pairs = zip(self.places, self.widths, strict=True)
        return max((lines_of(row[place], width) for place, width in pairs), default=1)


def layout(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int, lines: int | None = LINES) -> Layout:
    """The columns that fit into `width`, no row taller than `lines` (None: as tall as its texts make it). The first
    column is always shown; of the others as many as fit, by their rank.
    """
    least = [_least(column, [row[place] for row in rows], width, lines) for place, column in enumerate(columns)]
    most = [_most(column, [row[place] for row in rows]) for place, column in enumerate(columns)]
    shown = {0: min(width, max(least[0], min(most[0], width // 4)))}
    for place in sorted(range(1, len(columns)), key=lambda place: (columns[place].rank, place)):
        if _total([*shown.values(), least[place]]) <= width:
            shown[place] = least[place]
    widths = dict(sorted(shown.items()))
    spare = width - _total(list(widths.values()))
    for place in widths:
        wider = min(spare, most[place] - widths[place])
        if wider > 0:
            widths[place] += wider
            spare -= wider
    omitted = tuple(column.name for place, column in enumerate(columns) if place not in widths and column.name)
    return Layout(tuple(widths), tuple(widths.values()), omitted)


def grid(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    fitted: Layout,
    title: str = "",
    styles: Sequence[str] = (),
) -> Table:
    """The table of a layout. styles: of the rows, one each, or none."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    named = any(columns[place].name for place in fitted.places)
    table = Table(
        title=Text(title) if title else None,
        title_justify="left",
        header_style="bold",
        show_header=named,
        box=SIMPLE_HEAD if named else None,
        show_edge=False,
        pad_edge=False,
        padding=(0, GAP - 1 if named else GAP, 0, 0),  # a header's box puts one more between columns
        width=_total(fitted.widths),
    )
    for place, width in zip(fitted.places, fitted.widths, strict=True):
        column = columns[place]
        table.add_column(
            column.name, justify="right" if column.number else "left", overflow="fold", no_wrap=False, width=width
        )
    for index, row in enumerate(rows):
        table.add_row(*(Text(row[place]) for place in fitted.places), style=styles[index] if styles else None)
    return table


def lines_of(text: str, width: int) -> int:
    """The lines that a text takes at a width, broken between words; a longer word is broken anywhere."""
    return sum(_paragraph_lines(paragraph, width) for paragraph in text.split("\n"))


def _paragraph_lines(text: str, width: int) -> int:
    from rich.cells import cell_len

    lines, filled = 1, 0
    for word in text.split():
        length = cell_len(word)
        if filled and filled + 1 + length <= width:
            filled += 1 + length
            continue
        lines += bool(filled)
        lines += max(0, -(-length // width) - 1)
        filled = length if length <= width else length % width or width
    return lines


def _least(column: Column, cells: Sequence[str], width: int, lines: int | None) -> int:
    """The least width of a column: of numbers the longest one, of texts what keeps each to `lines` lines and most words
    whole.
    """
    from rich.cells import cell_len

    head = max((cell_len(word) for word in column.name.split()), default=1)
    if column.number:
        return max(head, *(cell_len(cell) for cell in cells), 1)
    words = [cell_len(word) for cell in cells for word in cell.split()]
    least = max(min(head, width), min(max(words, default=1), max(NARROWEST, width // 3)))
    while lines is not None and least < width and any(lines_of(cell, least) > lines for cell in cells):
        least += 1
    return least


def _most(column: Column, cells: Sequence[str]) -> int:
    """The width at which nothing of a column is broken."""
    from rich.cells import cell_len

    return max((cell_len(line) for text in (column.name, *cells) for line in text.split("\n")), default=1)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)
