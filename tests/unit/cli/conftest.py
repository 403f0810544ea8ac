"""Running the program in this process, as a shell would."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from thrifty.cli.main import build


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """Standard error without the box and the line breaks that the terminal's width put in."""
        return " ".join(self.err.replace("│", " ").split())

    def json(self) -> Any:
        """The last line of standard output."""
        return json.loads(self.out.strip().splitlines()[-1])


@pytest.fixture
def thrifty(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Call it with the words of a command line."""

    def run(*words: object) -> Outcome:
        code: Any = 0
        try:
            build()(args=[str(word) for word in words], prog_name="thrifty")
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return Outcome(code or 0, captured.out, captured.err)

    return run
