"""The two endpoints of OpenAI's API that a load test can use, and the requests it sends them."""

from __future__ import annotations

import json
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

    extra: further fields of each body, which override its own. key: an API key.
    """

    url: str
    model: str
    kind: str = "chat"
    key: str | None = None
    temperature: float = 0.0
    ignore_eos: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in PATHS:
            raise LoadError(f"endpoint is {self.kind!r}; use chat or completions. {nearest(self.kind, PATHS)}")
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
            outcome.fill(await exchange(target, headers, content))
        except BrokenExchange as error:
            outcome.error = str(error)
        except OSError as error:
            outcome.error = f"{type(error).__name__}: {error}"
        return outcome
