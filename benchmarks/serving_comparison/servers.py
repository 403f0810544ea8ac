"""Servers as programs of their own: started, asked, put to sleep while another one is measured, stopped."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.comparison.processes import WorkerError
from benchmarks.comparison.sleeping import SleepingProcess

from thrifty.loadtest.api import Endpoint
from thrifty.loadtest.prompts import Prompt

MODEL = "model"
"""What clients call it."""

START_SECONDS = 120.0


@dataclass(frozen=True)
class ServerKind:
    """How a server is started. words: its command line, with {port}. extra: fields of each request, so that it goes on
    past the end token. variables: of its environment.
    """

    name: str
    words: tuple[str, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)


def kinds(
    path: Path, threads: int, peers: str, ends: list[int], chats: int, context: int, more: str = ""
) -> dict[str, ServerKind]:
    """All that are known. peers: a Python that has the peers' packages. ends: tokens that end an answer. chats,
    context: how many at a time, and tokens of each. more: words for Thrifty's server.
    """
    count = str(threads)
    banned = {"logit_bias": {str(token): -100 for token in ends}}
    return {
        "thrifty": ServerKind(
            "thrifty",
            (
                sys.executable, "-m", "thrifty", "serve", str(path), "--name", MODEL, "--port", "{port}",
                "--threads", count, *more.split(),
            ),
            {"ignore_eos": True},
        ),
        "llama.cpp": ServerKind(
            "llama.cpp",
            (
                peers, "-m", "llama_cpp.server", "--model", str(path), "--model_alias", MODEL, "--port", "{port}",
                "--n_ctx", str(context), "--n_threads", count, "--n_threads_batch", count, "--logits_all", "false",
                "--flash_attn", "true", "--cache", "true", "--interrupt_requests", "false", "--verbose", "false",
            ),
            banned,
        ),
        "openvino": ServerKind(
            "openvino",
            (
                peers, "-m", "benchmarks.serving_comparison.openvino_server", str(path), "{port}", count, str(chats),
                str(context),
            ),
        ),
    }  # fmt: skip


class ServerProcess(SleepingProcess):
    """A running server."""

    def __init__(self, kind: ServerKind, threads: int) -> None:
        """Returns when it answers. Raises WorkerError where it does not, with the last words on its stderr."""
        self.kind = kind
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.endpoint = Endpoint(f"http://127.0.0.1:{port}", MODEL, extra=kind.extra)
        words = [word.format(port=port) if word == "{port}" else word for word in kind.words]
        super().__init__(words, threads, kind.variables)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        until, said = time.perf_counter() + START_SECONDS, ""
        while time.perf_counter() < until:
            if (code := self.process.poll()) is not None:
                raise WorkerError(f"{self.kind.name}'s server ended with {code}: {self.last_words()}")
            outcome = asyncio.run(self.endpoint.ask(Prompt("", "Say something about rivers.", 5, 8)))
            if outcome.success:
                return
            said = outcome.error
            time.sleep(0.2)
        raise WorkerError(
            f"{self.kind.name}'s server does not answer after {START_SECONDS:.0f} s: {said}; {self.last_words()}"
        )
