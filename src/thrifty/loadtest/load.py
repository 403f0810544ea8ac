"""Sending the load: open loop at given times, or closed loop with so many requests at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from thrifty.loadtest.outcome import Outcome
from thrifty.loadtest.prompts import Prompt

Ask = Callable[[Prompt], Awaitable[Outcome]]


@dataclass(frozen=True)
class Load:
    """What is sent. times: seconds after the start, ascending, one a prompt; None: a prompt as soon as there is room
    for it. concurrency: most requests at a time; None: no bound. With both, a request waits for room after its time, as
    with vLLM's --max-concurrency.
    """

    prompts: Sequence[Prompt]
    times: Sequence[float] | None = None
    concurrency: int | None = None


@dataclass
class Measured:
    """What came of a load: an outcome for each request that was sent, in the order of the prompts. seconds: until the
    last one ended. cancelled: whether it was stopped before all were sent and ended.
    """

    outcomes: list[Outcome]
    seconds: float
    cancelled: bool = False


async def send(
    load: Load, ask: Ask, done: Callable[[], None] = lambda: None, stop: asyncio.Event | None = None
) -> Measured:
    """Send all and wait for the answers. done: called after each. stop: once it is set nothing more is sent, what is
    under way is cancelled, and what was measured until then is returned.
    """
    room = asyncio.Semaphore(load.concurrency or max(1, len(load.prompts)))
    began = time.perf_counter()
    outcomes: dict[int, Outcome] = {}

    async def one(place: int, prompt: Prompt) -> None:
        try:
            sent = time.perf_counter()
            try:
                outcomes[place] = await ask(prompt)
            except asyncio.CancelledError:
                outcomes[place] = Outcome(sent, prompt.tokens, cancelled=True)
                raise
            done()
        finally:
            room.release()

    tasks: list[asyncio.Task[None]] = []

    async def feed() -> None:
        for place, prompt in enumerate(load.prompts):
            if load.times is not None:
                await asyncio.sleep(max(0.0, began + load.times[place] - time.perf_counter()))
            await room.acquire()
            tasks.append(asyncio.create_task(one(place, prompt)))
        await asyncio.gather(*tasks)

    feeding = asyncio.create_task(feed())
    stopped = asyncio.create_task(stop.wait()) if stop is not None else None
    try:
        await asyncio.wait([task for task in (feeding, stopped) if task], return_when=asyncio.FIRST_COMPLETED)
        cancelled = not feeding.done()
        if not cancelled:
            feeding.result()
    finally:
        for task in (feeding, stopped, *tasks):
            if task is not None:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    seconds = time.perf_counter() - began
    return Measured([outcomes[place] for place in sorted(outcomes)], seconds, cancelled)
