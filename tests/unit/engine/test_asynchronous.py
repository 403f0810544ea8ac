from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from tests.tiny import text_tokens
from tests.unit.engine.corridor import random_adapter

from thrifty.decoding.sampling import Sampler
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.asynchronous import AsyncEngine
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import PromptError, ThriftyError
from thrifty.models.model import Model


def request(length: int = 40, maximum: int = 12, **options: Any) -> Request:
    return Request(
        prompt=text_tokens(length, length), sampling=SamplingParameters(max_tokens=maximum, ignore_eos=True), **options
    )


def run(model: Model, scenario: Callable[[AsyncEngine], Awaitable[None]], **options: Any) -> Engine:
    """A scenario against a running engine, which is left with nothing but its weights."""

    async def main() -> Engine:
        engine = Engine(model, prefix_tree=False, **options)
        async with AsyncEngine(engine) as running:
            await scenario(running)
        return engine

    engine = asyncio.run(asyncio.wait_for(main(), 60))
    ledger = engine.memory.ledger
    assert ledger.current == ledger.bytes_of("weights")
    return engine


async def idle(running: AsyncEngine) -> None:
    """Wait until nothing runs any more."""
    deadline = time.perf_counter() + 10
    while running.engine.busy:
        assert time.perf_counter() < deadline, "the request was not cancelled"
        await asyncio.sleep(0.005)


def test_many_consumers_get_what_each_would_alone(plain: Model, make_engine: Any) -> None:
    alone = [make_engine(plain).submit(request(n)).result().token_ids for n in (10, 70, 150)]

    async def scenario(running: AsyncEngine) -> None:
        results = await asyncio.gather(*(running.result(request(n)) for n in (10, 70, 150)))
        assert [result.token_ids for result in results] == alone
        tokens = [event.token async for event in running.stream(request(70))]
        assert tokens == alone[1]

    run(plain, scenario)


def test_a_consumer_that_goes_away_frees_its_memory(plain: Model) -> None:
    async def scenario(running: AsyncEngine) -> None:
        stream = running.stream(request(100, 3000))
        async for _ in stream:
            break
        await stream.aclose()
        await idle(running)
        assert running.engine.memory.ledger.bytes_of("cache") == 0
        task = asyncio.create_task(running.result(request(100, 3000)))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await idle(running)
        at_once = asyncio.create_task(running.result(request(100, 3000)))
        await asyncio.sleep(0)
        at_once.cancel()
        with pytest.raises(asyncio.CancelledError):
            await at_once
        await idle(running)

    run(plain, scenario)


def test_refusals_and_errors_reach_their_consumer_only(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from thrifty.cache.policies.kivi import Kivi

    def fail(*_: Any) -> None:
        raise ArithmeticError("a policy's bug")

    monkeypatch.setattr(Kivi, "after_prefill", fail)

    async def scenario(running: AsyncEngine) -> None:
        good = asyncio.create_task(running.result(request(50, 40)))
        with pytest.raises(PromptError, match="use at most 4095"):
            await running.result(request(4096))
        with pytest.raises(ArithmeticError, match="a policy's bug"):
            await running.result(request(100, cache=[{"technique": "kivi"}]))
        assert len((await good).token_ids) == 40

    run(plain, scenario)


def test_an_engine_that_fails_says_so_to_everyone(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(running: AsyncEngine) -> None:
        task = asyncio.create_task(running.result(request(50, 3000)))
        await asyncio.sleep(0.05)

        def fail() -> None:
            raise MemoryError("the machine is out of memory")

        monkeypatch.setattr(running.engine, "step", fail)
        with pytest.raises(ThriftyError, match="the engine stopped: the machine is out of memory"):
            await task
        with pytest.raises(ThriftyError, match="takes no requests: the machine is out of memory"):
            await running.result(request())

    run(plain, scenario)


def test_an_interrupt_inside_a_call_reaches_its_consumer_as_an_error(
    plain: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KeyboardInterrupt would stop the event loop, and an await without an answer would hang."""

    async def scenario(running: AsyncEngine) -> None:
        good = asyncio.create_task(running.result(request(50, 30)))
        await asyncio.sleep(0.05)
        check = running.engine.intake.check

        def interrupted(*_: Any) -> None:
            monkeypatch.setattr(running.engine.intake, "check", check)
            raise KeyboardInterrupt

        monkeypatch.setattr(running.engine.intake, "check", interrupted)
        with pytest.raises(ThriftyError, match="ended by KeyboardInterrupt in the middle of a step; submit it again"):
            await running.result(request())
        assert len((await good).token_ids) == 30

    run(plain, scenario)


def test_a_stream_that_is_dropped_is_ended(plain: Model) -> None:
    async def scenario(running: AsyncEngine) -> None:
        stream = running.stream(request(100, 3000))
        await anext(stream)
        del stream
        await idle(running)
        running.stream(request(100, 3000))  # never begun: nothing was submitted
        await asyncio.sleep(0.02)
        assert not running.engine.busy

    run(plain, scenario)


def test_closing_ends_what_runs(plain: Model) -> None:
    async def main() -> None:
        running = AsyncEngine(Engine(plain))
        task = asyncio.create_task(running.result(request(50, 3000)))
        await asyncio.sleep(0.05)
        await running.close()
        assert (await task).finish_reason == "cancelled"
        with pytest.raises(ThriftyError, match="it is closed"):
            await running.result(request())

    asyncio.run(asyncio.wait_for(main(), 60))


class Unforeseen(BaseException):
    """No Exception, like KeyboardInterrupt."""


@pytest.mark.parametrize("kind", [Unforeseen, SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_what_is_no_exception_ends_its_own_request_only(
    plain: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    alone = make_engine(plain).submit(request(50)).result().token_ids
    commit = Sampler.commit

    def raising(self: Sampler, token: int) -> None:
        if self.parameters.max_tokens == 9 and self.position == 4:
            raise kind("raised by a sampler")
        commit(self, token)

    monkeypatch.setattr(Sampler, "commit", raising)

    async def scenario(running: AsyncEngine) -> None:
        for _ in range(2):
            good = asyncio.create_task(running.result(request(50)))
            bad = [asyncio.create_task(running.result(request(30 + number, 9))) for number in range(3)]
            for task in bad:  # one after the other, step by step
                with pytest.raises(ThriftyError, match=f"ended by {kind.__name__} in the middle of a step"):
                    await task
            assert (await good).token_ids == alone

    run(plain, scenario)


def test_an_error_of_one_step_that_is_no_requests_is_survived(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(running: AsyncEngine) -> None:
        scheduler = running.engine._scheduler
        schedule, errors = scheduler.schedule, [MemoryError("for a moment")]

        def failing() -> Any:
            if errors:
                raise errors.pop()
            return schedule()

        monkeypatch.setattr(scheduler, "schedule", failing)
        assert len((await running.result(request())).token_ids) == 12

    run(plain, scenario)


def test_a_request_whose_event_loop_is_closed_ends(plain: Model) -> None:
    async def first_event(running: AsyncEngine) -> Any:
        stream = running.stream(request(50, 3000))
        await anext(stream)
        return stream

    engine = Engine(plain, prefix_tree=False)
    running = AsyncEngine(engine)
    loop = asyncio.new_event_loop()
    stream = loop.run_until_complete(first_event(running))
    loop.close()
    asyncio.run(idle(running))
    asyncio.run(running.close())
    del stream


def test_adapters_come_and_go_between_steps(packed: Model) -> None:
    adapter = random_adapter(packed, 4, 1)

    async def scenario(running: AsyncEngine) -> None:
        plain = (await running.result(request())).token_ids
        await running.add_adapter("a", adapter)
        with pytest.raises(PromptError, match="there is an adapter 'a' already"):
            await running.add_adapter("a", adapter)
        handle = await running.submit(request(maximum=200, adapter="a"))
        with pytest.raises(PromptError, match="1 sequences use the adapter 'a'"):
            await running.remove_adapter("a")
        assert (await handle.result()).token_ids[:12] != plain
        await running.remove_adapter("a")
        with pytest.raises(PromptError, match="there is no adapter 'a'"):
            await running.submit(request(adapter="a"))

    run(packed, scenario)


def test_texts_that_are_read_hold_no_answer_up(packed: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several at a time: a piece of the next one is always asked for while that of another is computed."""
    pieces: list[int] = []

    def endless(*_: Any) -> Iterator[list[Any]]:
        while True:
            time.sleep(0.002)
            pieces.append(len(pieces))
            yield []

    async def scenario(running: AsyncEngine) -> None:
        monkeypatch.setattr(running.engine, "prompt_logprobs", endless)
        texts = [asyncio.create_task(running.prompt_logprobs([1, 2])) for _ in range(3)]
        await asyncio.sleep(0.05)
        before = len(pieces)
        assert len((await running.result(request(40, 12))).token_ids) == 12
        assert len(pieces) - before < 40, "one between two steps"
        for task in texts:
            task.cancel()
        await asyncio.gather(*texts, return_exceptions=True)

    run(packed, scenario)


def test_a_request_without_room_waits_for_a_text_that_is_read(packed: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(packed, memory="6MB", chunk=128, prefix_tree=False)
    longest = engine.memory.longest((), 4096, 4096)
    asked, read = request(longest // 2, 5), engine.prompt_logprobs
    expected = engine.submit(asked).result().token_ids

    def held(*given: Any) -> Iterator[list[Any]]:
        """It stays at its first piece, with all of its memory."""
        with contextlib.closing(read(*given)) as parts:  # type: ignore[type-var]
            yield next(parts)
            while True:
                time.sleep(0.001)
                yield []

    async def main() -> None:
        async with AsyncEngine(engine) as running:
            monkeypatch.setattr(engine, "prompt_logprobs", held)
            text = asyncio.create_task(running.prompt_logprobs(text_tokens(longest - 100)))
            await asyncio.sleep(0.1)
            handle = await running.submit(asked)
            await asyncio.sleep(0.1)
            assert engine.usage().waiting == 1, "it is neither refused nor admitted"
            text.cancel()
            assert (await handle.result()).token_ids == expected

    asyncio.run(asyncio.wait_for(main(), 60))
