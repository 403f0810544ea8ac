"""The process around Thrifty's engine without a server: JSON lines in, JSON lines out.

    {"op": "load", "path": "model.gguf", "threads": 2}  → {"end_ids": [2]}
    {"op": "throughput", "how": "engine", "chats": 8, "prompt": 128, "tokens": 192, "seed": 1}  → {"tok_s": 350.0}
    {"op": "tokens", "system": "…", "user": "…"}  → {"tokens": 120}
    {"op": "first", "text": "Say something."}  → {"seconds": 0.02}

how: "engine", steps in a loop; "async", AsyncEngine with a task a chat, as the server has them.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import traceback
from typing import Any

from benchmarks.peer_engines.worker import random_prompts
from benchmarks.serving_comparison.rates import together

from thrifty.api import open_engine
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.asynchronous import AsyncEngine
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request


class EngineWorker:
    """Carries out one request after the other."""

    def __init__(self) -> None:
        self._path, self._threads = "", 1
        self._engine: Engine | None = None

    def answer(self, op: str, **request: Any) -> dict[str, Any]:
        """The reply to one request. Raises what the engine raises."""
        operations = {
            "load": self._load,
            "tokens": self._tokens,
            "throughput": self._throughput,
            "first": self._first,
        }
        return operations[op](**request)

    def _open(self) -> Engine:
        """An engine with the server's own number of sequences."""
        return open_engine(self._path, threads=self._threads, batch=16, prefix_tree=True)

    @property
    def engine(self) -> Engine:
        """The one that is stepped here."""
        if self._engine is None:
            self._engine = self._open()
        return self._engine

    def _load(self, path: str, threads: int) -> dict[str, Any]:
        self._path, self._threads = path, threads
        self._first("Say something about rivers.")
        return {"end_ids": sorted(self.engine.probe().end_ids)}

    def _tokens(self, system: str, user: str) -> dict[str, Any]:
        """Of a conversation through the template."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        return {"tokens": len(self.engine.model.encode_chat(messages))}

    def _throughput(self, how: str, chats: int, prompt: int, tokens: int, seed: int) -> dict[str, Any]:
        prompts = random_prompts(self.engine.model.config.vocabulary_size, prompt, chats, seed)
        sampling = SamplingParameters.of(greedy=True, max_tokens=tokens, ignore_eos=True)
        requests = [Request(prompt=ids, sampling=sampling) for ids in prompts]
        moments = self._stepped(requests) if how == "engine" else asyncio.run(self._asked(requests))
        return {"tok_s": together(moments)}

    def _stepped(self, requests: list[Request]) -> list[list[float]]:
        """When each token of each request came."""
        moments: dict[str, list[float]] = {request.identity: [] for request in requests}
        for request in requests:
            self.engine.submit(request, lambda event: None)
        while self.engine.busy:
            events = self.engine.step()
            now = time.perf_counter()
            for event in events:
                if event.token is not None:
                    moments[event.request].append(now)
        return list(moments.values())

    async def _asked(self, requests: list[Request]) -> list[list[float]]:
        async def one(request: Request) -> list[float]:
            return [time.perf_counter() async for event in running.stream(request) if event.token is not None]

        async with AsyncEngine(self._open()) as running:
            return list(await asyncio.gather(*map(one, requests)))

    def _first(self, text: str) -> dict[str, Any]:
        """From a conversation to its first token, the template included."""
        begin = time.perf_counter()
        prompt = self.engine.model.encode_chat([{"role": "user", "content": text}])
        sampling = SamplingParameters.of(greedy=True, max_tokens=2, ignore_eos=True)
        handle = self.engine.submit(Request(prompt=prompt, sampling=sampling), lambda event: None)
        while not handle.usage.generated_tokens:
            self.engine.step()
        seconds = time.perf_counter() - begin
        handle.cancel()
        return {"seconds": seconds}


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with replies
    worker = EngineWorker()
    for line in sys.stdin:
        try:
            reply = worker.answer(**json.loads(line))
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
