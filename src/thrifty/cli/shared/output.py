"""What commands print: tables and text on standard output, messages and progress on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from thrifty.cli.shared.layout import LINES, Column, grid, layout
from thrifty.cli.shared.ticker import Ticker, seconds

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

WIDTH = 160  # columns where there is no terminal
SPINNER = 2  # columns of a spinner and the gap behind it


def error(message: str) -> None:
    """One error message on standard error."""
    _say("Error", "bold red", message)


def failure(message: str, kind: str, as_json: bool) -> None:
    """An error message for people on standard error, or as a line of JSON on standard output."""
    if as_json:
        json_line({"error": message, "kind": kind})
    else:
        error(message)


def warn(message: str) -> None:
    """One warning on standard error."""
    _say("Warning", "yellow", message)


def note(message: str) -> None:
    """A remark on standard error, so that standard output holds only the answer."""
    from rich.text import Text

    _to_people(Text(message, style="dim"))


def say(text: str) -> None:
    """A sentence on standard output: broken between words where there is a width, else one line."""
    console().print(text, markup=False, soft_wrap=not (sys.stdout.isatty() or _asked_width()))


def json_line(value: Any) -> None:
    """One line of JSON on standard output, with escapes where its encoding does not have a character."""
    line = json.dumps(value, ensure_ascii=False)
    try:
        line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        line = json.dumps(value)
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def table(title: str, columns: Sequence[Column], rows: Sequence[Sequence[str]], lines: int | None = LINES) -> None:
    """A table on standard output, as `layout` makes it for the width there is; columns left out are named below it."""
    width = console().width
    fitted = layout(columns, rows, width, lines)
    console().print(grid(columns, rows, fitted, title))
    if fitted.omitted:
        console().print(left_out(fitted.omitted, width), style="dim", markup=False)


def card(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Names and what is to be said of each, on standard output."""
    table(title, (Column("", number=False), Column("", number=False)), rows, lines=None)


def left_out(names: Sequence[str], width: int) -> str:
    """What is said of columns that have no room."""
    return f"No room at {width} columns for: {', '.join(names)}. A wider terminal shows them, --json too."


def console() -> Console:
    """The console of standard output, see `width_of`."""
    from rich.console import Console

    return Console(file=sys.stdout, width=width_of(sys.stdout), highlight=False)


def messages() -> Console:
    """The console of standard error, see `width_of`."""
    from rich.console import Console

    return Console(file=sys.stderr, width=width_of(sys.stderr), highlight=False)


def width_of(stream: TextIO) -> int | None:
    """None for a terminal, whose own width counts; elsewhere the variable COLUMNS, or 160."""
    if stream.isatty():
        return None
    return _asked_width() or WIDTH


def _asked_width() -> int:
    """What the variable COLUMNS says, 0 where it says nothing."""
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdecimal() else 0


def megabytes(count: float) -> str:
    """Bytes as decimal megabytes, such as `98.4 MB`."""
    return f"{count / 1e6:.1f} MB"


def _say(kind: str, style: str, message: str) -> None:
    from rich.text import Text

    _to_people(Text.assemble((f"{kind}: ", style), message))


def _to_people(message: Text) -> None:
    """A message on standard error. Written as plain bytes of the stream, which a live view that is on the screen takes
    over and puts above itself; a second console would write across it.
    """
    console = messages()
    with console.capture() as captured:
        console.print(message, soft_wrap=not sys.stderr.isatty())
    sys.stderr.write(captured.get())
    sys.stderr.flush()


@contextmanager
def waiting(what: str) -> Iterator[Callable[[str], None]]:
    """Say what is being waited for: at once on a terminal, every few seconds elsewhere. Yields what changes it."""
    if not sys.stderr.isatty():
        said = [what]

        def say(text: str) -> None:
            said[0] = text

        with Ticker(lambda elapsed: f"{said[0]}: {seconds(elapsed)} so far", note):
            yield say
        return
    from rich.text import Text

    console = messages()
    room = console.width - SPINNER

    def line(text: str) -> Text:
        return Text(fitted(text, room))

    with console.status(line(what), spinner="dots") as status:
        yield lambda text: status.update(line(text))


def fitted(text: str, width: int) -> str:
    """The text on one line of `width` columns: one that is too long loses its middle, since its beginning says what is
    done and its end how far.
    """
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: max(0, width - 1 - tail)]}…{text[len(text) - tail :]}"
