"""What commands print: tables and text on standard output, messages and progress on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def error(message: str) -> None:
    """One error message on standard error."""
    _say("Error", "bold red", message)


def warn(message: str) -> None:
    """One warning on standard error."""
    _say("Warning", "yellow", message)


def note(message: str) -> None:
    """A remark on standard error, so that standard output holds only the answer."""
    messages().print(message, style="dim", markup=False, highlight=False, soft_wrap=True)


def json_line(value: Any) -> None:
    """One line of JSON on standard output, with escapes where its encoding does not have a character."""
    line = json.dumps(value, ensure_ascii=False)
    try:
        line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        line = json.dumps(value)
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
    """A table on standard output: the first `left` columns start at the left, the others hold numbers."""
    from rich.table import Table

    grid = Table(title=title or None, title_justify="left", header_style="bold", show_header=any(columns))
    for index, column in enumerate(columns):
        grid.add_column(column, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    console().print(grid, markup=False)


def console() -> Console:
    """The console of standard output. As wide as the terminal; 160 columns where there is none."""
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False)


def messages() -> Console:
    """The console of standard error."""
    from rich.console import Console

    return Console(file=sys.stderr, width=None if sys.stderr.isatty() else 160, highlight=False)


def megabytes(count: float) -> str:
    """Bytes as decimal megabytes, such as `98.4 MB`."""
    return f"{count / 1e6:.1f} MB"


def _say(kind: str, style: str, message: str) -> None:
    from rich.text import Text

    messages().print(Text.assemble((f"{kind}: ", style), message), soft_wrap=True)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say on a terminal what is being waited for; silent elsewhere."""
    if not sys.stderr.isatty():
        yield
        return
    with messages().status(what, spinner="dots"):
        yield
