"""Standard input and output of whatever encoding, and pipes that are closed early."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

from thrifty.errors import PromptError


def prepare() -> None:
    """Make the streams of this process take any text: what an output's encoding does not have becomes `?`, and input
    of another encoding is looked at where it is read (`text_of`). A stream that is closed is replaced by an empty one.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  # for good
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def flush() -> None:
    """Write out what is held back. Raises OSError where nobody reads it, or it has no room."""
    sys.stdout.flush()
    sys.stderr.flush()


def discard() -> None:
    """Send what is still held back nowhere, so that the end of the process does not fail on it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())


def text_of(text: str, what: str) -> str:
    """A text from the command line or standard input. Bytes that Python could not decode are taken as UTF-8.

    Raises PromptError that names `what` and the first byte that is not UTF-8.
    """
    if text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError as error:
        place = f"byte 0x{error.object[error.start]:02X} at position {error.start}"
    except UnicodeEncodeError as error:
        place = f"a lone surrogate at position {error.start}"
    raise PromptError(f"{what} is not UTF-8 text: {place}; convert it first, for example with `iconv -t UTF-8`")
