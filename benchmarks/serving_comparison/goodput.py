"""Eight chats with a shared system prompt, for so many seconds: what a server answers in time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from benchmarks.serving_comparison.servers import ServerProcess

from thrifty.loadtest.figures import figures
from thrifty.loadtest.lengths import Lengths
from thrifty.loadtest.load import Load, Measured, send
from thrifty.loadtest.prompts import Scale
from thrifty.loadtest.workload import Workload

CHATS, PROMPT, SHARED, ANSWER = 8, 1024, 512, 128
CONTEXT = 2048  # tokens of a prompt and its answer, with room for a tokenizer of another mind
OBJECTIVES = {"ttft": 2000.0, "tpot": 60.0}
MOST = 2000  # requests; the time ends sooner


@dataclass(frozen=True)
class GoodputLoad:
    """One round of one server. number: of the round, whose prompts no other round has. scale: what words weigh; all
    servers get the same texts.
    """

    server: ServerProcess
    seconds: float
    number: int
    scale: Scale

    def measure(self) -> dict[str, Any]:
        """The figures, as `bench-serve` has them. Requests under way when the time is over do not count."""
        self.server.wake()
        try:
            measured = asyncio.run(self._run())
        finally:
            self.server.sleep()
        errors = sorted({one.error for one in measured.outcomes if one.error})
        if errors:
            raise RuntimeError(f"{self.server.kind.name}: {errors[0]}")
        return {key: value for key, value in figures(measured, OBJECTIVES).items() if key != "cancelled"}

    async def _run(self) -> Measured:
        workload = Workload(
            MOST, Lengths(PROMPT, PROMPT), Lengths(ANSWER, ANSWER), prefix_tokens=SHARED, seed=self.number
        )
        prompts = workload.prompts(self.scale)
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(self.seconds, stop.set)
        return await send(Load(prompts, concurrency=CHATS), self.server.endpoint.ask, stop=stop)
