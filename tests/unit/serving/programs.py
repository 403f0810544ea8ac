"""Servers as programs of their own, and clients that read from them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from tests.unit.serving.live import chat_body

ROOT = Path(__file__).parents[3]
PROGRAM = Path(__file__).with_name("slow_program.py")


@contextmanager
def program(
    *words: object, before: Callable[[], None] | None = None, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The slow server, loaded, and its URL. before: called in the new process before it begins."""
    paths = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | paths | environment,
        preexec_fn=before,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, process.stderr.read() if process.stderr else ""
        wait_until_healthy(url)
        yield process, url
    finally:
        process.kill()
        process.communicate()


@contextmanager
def thrifty(*words: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The command line's own server."""
    process = subprocess.Popen(
        [sys.executable, "-m", "thrifty", "serve", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def url_of(process: subprocess.Popen[str]) -> str:
    """Where the command's server listens, once its model is loaded."""
    assert process.stderr is not None
    line = process.stderr.readline()
    url = next((word for word in line.split() if word.startswith("http")), "").removesuffix("/v1")
    assert url, line + process.stderr.read()
    wait_until_healthy(url)
    return url


def wait_until_healthy(url: str) -> None:
    """Until requests are taken."""
    until = time.monotonic() + 60
    while httpx.get(f"{url}/health").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.02)


class Reader(threading.Thread):
    """Reads a stream to its end, however that is."""

    def __init__(self, url: str, tokens: int) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.begun = threading.Event()
        self.error: Exception | None = None
        self._url, self._tokens = url, tokens

    def run(self) -> None:
        body = chat_body(stream=True, max_tokens=self._tokens, ignore_eos=True)
        try:
            with httpx.stream("POST", f"{self._url}/v1/chat/completions", json=body, timeout=30) as answer:
                for line in answer.iter_lines():
                    if line:
                        self.lines.append(line)
                        self.begun.set()
        except httpx.HTTPError as error:
            self.error = error

    def last(self) -> dict[str, Any]:
        """The last chunk before the end."""
        chunk: dict[str, Any] = json.loads(self.lines[-2].removeprefix("data: "))
        return chunk
