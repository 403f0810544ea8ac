"""What a server costs beside its engine: throughput of a batch, and time to the first token."""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.comparison.processes import WorkerProcess
from benchmarks.serving_comparison.rates import moments_of, together
from benchmarks.serving_comparison.servers import ServerProcess

from thrifty.loadtest.load import Load, Measured, send
from thrifty.loadtest.prompts import WORDS, Prompt, Scale, words
from thrifty.loadtest.workload import PROBES

CHATS, PROMPT, TOKENS = 8, 64, 320  # short prompts, so that all decode together for long
FIRSTS = 15  # single requests of a round, for the time to the first token
COMMAND = (sys.executable, "-m", "benchmarks.serving_comparison.engine_worker")
TIMEOUT = 120.0


class EngineProcess:
    """The engine in a process of its own (see `engine_worker`). end_ids: tokens that end an answer."""

    def __init__(self, path: Path, threads: int) -> None:
        self._worker = WorkerProcess(threads, COMMAND)
        self.end_ids: list[int] = self.ask(op="load", path=str(path), threads=threads)["end_ids"]

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request; it runs until the answer is there."""
        return self._worker.ask(TIMEOUT, **request)

    def scale(self) -> Scale:
        """What words weigh in the tokens of this model, in a chat with a system prompt."""
        chance, counted = random.Random(0), []
        for count in PROBES:
            text = words(count, chance)
            tokens = self.ask(op="tokens", system=WORDS[0], user=text)["tokens"]
            counted.append((count + 1, tokens))
        return Scale.of(*counted)

    def sleep(self) -> None:
        """Stop it until the next one."""
        self._worker.sleep()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.close()


@dataclass(frozen=True)
class CostRound:
    """One round. number: of it, whose prompts no other has."""

    engine: EngineProcess
    server: ServerProcess
    number: int

    def measure(self) -> dict[str, Any]:
        """Tokens a second of all three, and milliseconds to the first token with the server and without."""
        shape = {"chats": CHATS, "prompt": PROMPT, "tokens": TOKENS}
        engine = self.engine.ask(op="throughput", how="engine", seed=2 * self.number, **shape)["tok_s"]
        asynchronous = self.engine.ask(op="throughput", how="async", seed=2 * self.number + 1, **shape)["tok_s"]
        self.engine.sleep()
        self.server.wake()
        measured = asyncio.run(self._batch())
        server = _rate(measured)
        self.server.sleep()
        alone, served = self._firsts()
        return {
            "engine": engine,
            "async": asynchronous,
            "server": server,
            "async_share": asynchronous / engine,
            "server_share": server / engine,
            "first_ms": 1e3 * alone,
            "added_ms": 1e3 * (served - alone),
        }

    async def _batch(self) -> Measured:
        """Chats at a time, whose prompts share nothing."""
        endpoint = replace(self.server.endpoint, kind="completions")
        prompts = [
            Prompt("", f"{self.number} {at} " + "river stone " * (PROMPT // 2), PROMPT, TOKENS) for at in range(CHATS)
        ]
        return await send(Load(prompts, concurrency=CHATS), endpoint.ask)

    def _firsts(self) -> tuple[float, float]:
        """Median seconds to the first token of the engine alone and of the server, one after the other."""
        alone, served = [], []
        for at in range(FIRSTS):
            text = f"Say something about river {self.number} and stone {at}."
            alone.append(self.engine.ask(op="first", text=text)["seconds"])
            self.engine.sleep()
            self.server.wake()
            outcome = asyncio.run(self.server.endpoint.ask(Prompt("", text, 20, 2)))
            self.server.sleep()
            if outcome.error:
                raise RuntimeError(outcome.error)
            served.append(outcome.ttft)
        return statistics.median(alone), statistics.median(served)


def _rate(measured: Measured) -> float:
    """Tokens a second while all chats run; a piece of text may be more than a token. Raises RuntimeError."""
    errors = [outcome.error for outcome in measured.outcomes if outcome.error]
    if errors:
        raise RuntimeError(errors[0])
    moments = [moments_of(outcome) for outcome in measured.outcomes]
    tokens = sum(outcome.output_tokens for outcome in measured.outcomes)
    return together(moments) * tokens / sum(map(len, moments))
