"""The two endpoints of OpenAI's API that a load test can use, and the requests it sends them."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from thrifty.errors import nearest
from thrifty.loadtest.errors import LoadError
from thrifty.loadtest.exchange import BrokenExchange, Target, exchange
from thrifty.loadtest.outcome import Outcome
from thrifty.loadtest.prompts import Prompt

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


@dataclass(frozen=True)
class Endpoint:
    """Where and how requests are sent. kind: "chat", where a shared beginning is a system message, or "completions".

    extra: further fields of each body, which override its own. key: an API key. timeout: seconds in which an answer
    must have come whole.
    """

    url: str
    model: str
    kind: str = "chat"
    key: str | None = None
    temperature: float = 0.0
    ignore_eos: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 3600.0

    def __post_init__(self) -> None:
        if self.kind not in PATHS:
            raise LoadError(f"endpoint is {self.kind!r}; use chat or completions. {nearest(self.kind, PATHS)}")
        if self.key is not None and not (self.key.isascii() and self.key.isprintable()):
            raise LoadError("the API key has characters that no header takes; use printable ones of ASCII")
        if not 0 < self.timeout < math.inf:
            raise LoadError(f"timeout is {self.timeout:g} s; it must be a number above 0")
        Target.of(self.url, "")

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """What is sent for a prompt: streamed, with its usage at the end."""
        body: dict[str, Any] = {
            "model": self.model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": self.temperature,
            "max_tokens": prompt.answer,
        }
        if self.ignore_eos:
            body["ignore_eos"] = True
        if self.kind == "chat":
            system = [{"role": "system", "content": prompt.shared}] if prompt.shared else []
            body["messages"] = [*system, {"role": "user", "content": prompt.text}]
        else:
            body["prompt"] = f"{prompt.shared} {prompt.text}".strip()
        return body | dict(self.extra)

    async def ask(self, prompt: Prompt) -> Outcome:
        """Send one request and wait for its end. Every failure but a cancelled task is in the outcome."""
        target = Target.of(self.url, PATHS[self.kind])
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        content = json.dumps(self.body(prompt)).encode()
        outcome = Outcome(time.perf_counter(), prompt.tokens)
        try:
            async with asyncio.timeout(self.timeout):
                outcome.fill(await exchange(target, headers, content))
        except BrokenExchange as error:
            outcome.error = str(error)
        except OSError as error:
            late = isinstance(error, TimeoutError) and error.errno is None  # no error of the system: `timeout`
            told = f"no whole answer came within {self.timeout:g} s" if late else error
            outcome.error = f"{type(error).__name__}: {told}"
        return outcome
