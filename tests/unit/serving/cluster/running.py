"""A cluster of two replicas in a process of its own, and what tests ask of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from tests.unit.serving.live import chat_body

ROOT = Path(__file__).parents[4]
PROGRAM = Path(__file__).with_name("cluster_program.py")


class Cluster:
    """A running cluster. url: of its front."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url

    def replicas(self) -> list[psutil.Process]:
        """The replicas' processes."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in family if "ServeReplica" in " ".join(_command(process))]

    def wait_for(self, replicas: int, seconds: float = 240) -> None:
        """Until so many replicas take requests."""
        until = time.monotonic() + seconds
        while True:
            answer = httpx.get(f"{self.url}/health", timeout=30)
            if answer.status_code == 200 and answer.json()["replicas"] >= replicas:
                return
            assert time.monotonic() < until, answer.text
            time.sleep(0.2)

    def metric(self, name: str) -> float:
        """A sample of the one model."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        return float(
            next(line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))).rpartition(" ")[2]
        )

    def signal(self, number: signal.Signals) -> None:
        """Tell the front."""
        self.process.send_signal(number)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@contextmanager
def cluster(pause: float, **settings: Any) -> Iterator[Cluster]:
    """Two replicas unless told otherwise. pause: milliseconds that every step takes more."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), json.dumps({"replicas": 2} | settings), str(pause)],
        stdout=subprocess.PIPE, stderr=None, text=True, env=environment,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        running = Cluster(process, process.stdout.readline().strip())
        running.wait_for(settings.get("replicas", 2))
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()


class Client(threading.Thread):
    """One chat completion, streamed or whole, and how it ended."""

    def __init__(self, url: str, content: str, tokens: int, stream: bool) -> None:
        super().__init__()
        self.chunks: list[dict[str, Any]] = []
        self.status: int | None = None
        self.is_done = False
        self.failure: Exception | None = None
        self._url, self._stream = url, stream
        self._body = chat_body(content, stream=stream, max_tokens=tokens, ignore_eos=True)
        self.start()

    def run(self) -> None:
        try:
            with httpx.stream("POST", f"{self._url}/v1/chat/completions", json=self._body, timeout=120) as answer:
                self.status = answer.status_code
                for line in answer.iter_lines():
                    self._read(line)
        except httpx.HTTPError as error:
            self.failure = error

    def _read(self, line: str) -> None:
        told = line.removeprefix("data: ")
        if told == "[DONE]":
            self.is_done = True
        elif told and not told.startswith(":"):
            self.chunks.append(json.loads(told))

    @property
    def text(self) -> str:
        """What was answered."""
        key = "delta" if self._stream else "message"
        return "".join(choice[key].get("content") or "" for chunk in self.chunks for choice in chunk.get("choices", []))

    @property
    def code(self) -> str | None:
        """Of the error that ended it."""
        error = self.chunks[-1].get("error") if self.chunks else None
        return None if error is None else error["code"]
