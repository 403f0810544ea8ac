"""What a user types or pastes as one message."""

from __future__ import annotations

import importlib
import select
import sys

BLOCK = '"""'
PASTE_SECONDS = 0.05  # within which the next line of a pasted text is there


class Reader:
    """Messages from standard input: on a terminal a line, a pasted text, or lines between two marks; else a line, or
    lines between two marks.
    """

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty()
        if self.interactive:
            _start_editing()

    def read(self) -> str:
        """The next message, without surrounding blank space. Raises EOFError at the end of the input."""
        lines, ended = [input("> " if self.interactive else "")], False
        try:
            while self.interactive and input_waits():
                lines.append(input())
        except EOFError:  # Ctrl-D behind a text ends the text; the next one ends the input
            ended = True
        text = "\n".join(lines).strip()
        if not text.startswith(BLOCK):
            return text
        return text.removeprefix(BLOCK).strip() if ended else self._block(text)

    def _block(self, text: str) -> str:
        """Read on up to the closing mark, or the end of the input."""
        text = text.removeprefix(BLOCK)
        try:
            while not text.rstrip().endswith(BLOCK):
                text += "\n" + input("... " if self.interactive else "")
        except EOFError:
            return text.strip()
        return text.rstrip().removesuffix(BLOCK).strip()


def input_waits() -> bool:
    """Whether more has been typed or pasted on the terminal: a whole line, or part of one."""
    try:
        import termios
    except ImportError:  # not a system with POSIX terminals
        return False
    terminal = sys.stdin.fileno()
    settings = termios.tcgetattr(terminal)
    at_once = [*settings[:3], settings[3] & ~(termios.ICANON | termios.ECHO), *settings[4:]]
    try:
        termios.tcsetattr(terminal, termios.TCSANOW, at_once)
        return bool(select.select([terminal], [], [], PASTE_SECONDS)[0])
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, settings)


def _start_editing() -> None:
    """Give input() line editing, a history, and pasted texts in one piece where the library can."""
    try:
        readline = importlib.import_module("readline")
    except ImportError:
        return
    if "libedit" not in (readline.__doc__ or ""):
        readline.parse_and_bind("set enable-bracketed-paste on")
