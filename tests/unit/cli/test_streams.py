"""Text from outside in any encoding, and streams that take any text."""

from __future__ import annotations

import io
import sys

import pytest

from thrifty.cli.shared import output, streams
from thrifty.errors import PromptError


def stream(encoding: str, errors: str = "strict") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)


def test_bytes_that_python_did_not_decode_are_taken_as_utf_8() -> None:
    assert streams.text_of("é".encode().decode("ascii", "surrogateescape"), "x") == "é"
    assert streams.text_of("café 😀", "x") == "café 😀"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("caf\udce9", "byte 0xE9 at position 3"),
        ("é\udcff", "byte 0xFF at position 2"),
        ("a\ud800", "a lone surrogate at position 1"),
    ],
)
def test_text_that_is_not_utf_8_is_refused_with_its_place(text: str, place: str) -> None:
    with pytest.raises(PromptError, match=f"the prompt is not UTF-8 text: {place}; convert it first"):
        streams.text_of(text, "the prompt")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_prepared_streams_take_any_text(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream(encoding))
    streams.prepare()
    for written in (sys.stdout, sys.stderr):
        written.write("ok é 😀 \udce9 ok")
        written.flush()
        assert written.buffer.getvalue().startswith(b"ok ") and written.buffer.getvalue().endswith(b" ok")  # type: ignore[attr-defined]
    output.json_line({"text": "é😀"})
    sys.stdin.buffer.write(b"\xff\xc3\xa9")
    sys.stdin.buffer.seek(0)
    assert sys.stdin.read()


def test_json_is_escaped_where_the_encoding_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding, expected in (("ascii", b'"\\u00e9"\n'), ("utf-8", '"é"\n'.encode())):
        monkeypatch.setattr(sys, "stdout", stream(encoding))
        output.json_line("é")
        assert sys.stdout.buffer.getvalue() == expected  # type: ignore[attr-defined]


def test_closed_streams_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    streams.prepare()
    sys.stdout.write("nowhere")
    assert sys.stdin.read() == ""
    for opened in (sys.stdin, sys.stdout, sys.stderr):
        opened.close()
