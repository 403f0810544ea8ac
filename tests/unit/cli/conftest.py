"""Running the program in this process, as a shell would."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoint import write_checkpoint

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


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama on disk."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Converted forms go to a folder of the test run, and tables are as wide as where there is no terminal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COLUMNS", raising=False)  # workers of a parallel run have it: tables are as wide as without
        patch.setenv("THRIFTY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
