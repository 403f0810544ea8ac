"""The handle of an asynchronous engine: events, usage, cancelling; and the chats that a server encodes."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.tiny import BOS, tiny_model
from tests.unit.engine.test_asynchronous import idle, request, run

from thrifty.engine.async_handle import AsyncHandle
from thrifty.engine.asynchronous import AsyncEngine
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import PromptError, TemplateError, ThriftyError
from thrifty.models.model import Model

Scenario = Callable[[AsyncEngine], Awaitable[None]]


def test_events_usage_and_result_are_those_of_a_synchronous_handle(plain: Model, make_engine: Any) -> None:
    alone = make_engine(plain).submit(request(70)).result()

    async def scenario(running: AsyncEngine) -> None:
        handle = await running.submit(request(70))
        assert not handle.finished and handle.usage.prompt_tokens == 70 and handle.samples[0].finish_reason is None
        events = [event async for event in handle]
        assert {event.request for event in events} == {handle.identity}
        assert [event.token for event in events] == alone.token_ids
        assert handle.finished and handle.error is None and handle.samples[0].text == alone.text
        usage = handle.usage
        assert (usage.prompt_tokens, usage.cached_tokens, usage.generated_tokens) == (70, 0, 12)
        assert usage.queued_seconds >= 0 and usage.prefill_seconds > 0 and usage.decode_seconds > 0
        assert [event async for event in handle] == []
        assert (await handle.result()).token_ids == alone.token_ids
        await handle.result()

    run(plain, scenario)


def test_a_streamed_answer_tells_what_a_prefix_gave(packed: Model) -> None:
    async def main() -> tuple[int, int]:
        async with AsyncEngine(Engine(packed)) as running:
            for _ in range(2):
                handle = await running.submit(request(300))
                async for _ in handle:
                    pass
            return handle.usage.cached_tokens, (await running.usage()).tree

    cached, tree = asyncio.run(asyncio.wait_for(main(), 60))
    assert cached == 256 and tree > 0


def test_cancelling_ends_it_with_what_it_had(plain: Model) -> None:
    async def scenario(running: AsyncEngine) -> None:
        handle = await running.submit(request(50, 3000))
        assert (await anext(handle)).token is not None
        handle.cancel()
        rest = [event async for event in handle]
        assert rest[-1].finish_reason == "cancelled" and handle.finished
        assert 1 <= len((await handle.result()).token_ids) < 3000
        handle.cancel()
        await idle(running)
        assert (await running.usage()).bytes_of("cache") == 0

    run(plain, scenario)


def test_leaving_a_loop_leaves_it_and_the_context_or_dropping_it_ends_it(plain: Model) -> None:
    async def scenario(running: AsyncEngine) -> None:
        async with await running.submit(request(50, 3000)) as handle:
            async for _ in handle:
                break
            assert not handle.finished
            assert (await anext(handle)).token is not None
        await idle(running)
        assert handle.finished
        dropped: AsyncHandle | None = await running.submit(request(50, 3000))
        assert dropped is not None and (await anext(dropped)).token is not None
        dropped = None
        gc.collect()
        await idle(running)

    run(plain, scenario)


def test_a_task_that_is_cancelled_while_it_waits_cancels_its_request(plain: Model) -> None:
    async def scenario(running: AsyncEngine) -> None:
        handle = await running.submit(request(50, 3000))
        waiting = asyncio.create_task(handle.result())
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await idle(running)
        submitting = asyncio.create_task(running.submit(request(50, 3000)))
        await asyncio.sleep(0)
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submitting
        await idle(running)

    run(plain, scenario)


def test_errors_are_raised_where_they_belong(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from thrifty.cache.policies.kivi import Kivi

    def fail(*_: Any) -> None:
        raise ArithmeticError("a policy's bug")

    monkeypatch.setattr(Kivi, "after_prefill", fail)

    async def scenario(running: AsyncEngine) -> None:
        with pytest.raises(PromptError, match="use at most 4095"):
            await running.submit(request(4096))
        handle = await running.submit(request(100, cache=[{"technique": "kivi"}]))
        seen = []
        with pytest.raises(ArithmeticError, match="a policy's bug"):
            async for event in handle:
                seen.append(event)
        assert seen[-1].finish_reason == "error" and isinstance(handle.error, ArithmeticError)
        with pytest.raises(ArithmeticError):
            await handle.result()

    run(plain, scenario)


def test_a_handle_of_an_engine_that_closed_or_failed(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise MemoryError("out of memory")

    async def main(failure: bool) -> None:
        running = AsyncEngine(Engine(plain))
        handle = await running.submit(request(50, 3000))
        if failure:
            monkeypatch.setattr(running.engine, "step", fail)
            with pytest.raises(ThriftyError, match="the engine stopped: out of memory"):
                await handle.result()
        else:
            await running.close()
            assert (await handle.result()).finish_reason == "cancelled"
        with pytest.raises(ThriftyError, match="the engine takes no requests"):
            await running.submit(request())
        handle.cancel()

    for failure in (False, True):
        asyncio.run(asyncio.wait_for(main(failure), 60))


def test_one_object_is_enough_for_a_chat(plain: Model, make_engine: Any) -> None:
    messages = [{"role": "user", "content": "hi"}]

    async def scenario(running: AsyncEngine) -> None:
        prompt = await running.encode_chat(messages)
        assert prompt == [BOS, *b"user: hi\nassistant: "] == plain.encode_chat(messages)
        assert await running.encode("hi") == list(b"hi")
        with pytest.raises(PromptError, match="the prompt is empty"):
            await running.encode("")
        with pytest.raises(PromptError, match="template_arguments = 3 \\(int\\) is no mapping"):
            await running.encode_chat(messages, template_arguments=3)
        handle = await running.submit(Request(prompt=prompt, sampling=request().sampling))
        assert (await handle.result()).token_ids == make_engine(plain).submit(
            Request(prompt=prompt, sampling=request().sampling)
        ).result().token_ids
        facts = running.probe()
        assert facts.context == 4096 and facts.runner == running.engine.probe().runner

    run(plain, scenario)


def test_conversations_are_encoded_side_by_side() -> None:
    """By a real template in Jinja's sandbox: several threads use one at once, and the event loop goes on."""
    tokenizers = pytest.importorskip("tokenizers")
    from thrifty.models.tokens.settings import TokenizerSettings
    from thrifty.models.tokens.tokenizer import Tokenizer

    words = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={chr(code): code for code in range(32, 127)}, merges=[]))
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{{ tools|length if tools else '' }}"
    words.decoder = tokenizers.decoders.Fuse()
    settings = TokenizerSettings(chat_template=template, vocabulary_size=272)
    model = tiny_model()
    model.tokenizer = Tokenizer(words.to_str(), settings)

    async def scenario(running: AsyncEngine) -> None:
        chats = [[{"role": "user", "content": f"{number} " * 50}] for number in range(16)]
        tools = [{"type": "function", "function": {"name": "f", "parameters": json.loads("{}")}}]
        at_once = await asyncio.gather(*(running.encode_chat(chat, tools=tools) for chat in chats))
        assert at_once == [model.encode_chat(chat, tools=tools) for chat in chats]
        assert model.tokenizer.decode(at_once[3]).replace(" ", "").startswith("[user]3")
        with pytest.raises(TemplateError, match="takes no 'documents'"):
            await running.encode_chat(chats[0], documents=[{"text": "x"}])

    run(model, scenario)


def test_batches_are_all_events_and_silence_is_told(plain: Model, make_engine: Any) -> None:
    alone = make_engine(plain).submit(request(70)).result()

    async def scenario(running: AsyncEngine) -> None:
        handle = await running.submit(request(70))
        batches = [batch async for batch in handle.batches(30)]
        assert all(batches) and [event.token for batch in batches for event in batch] == alone.token_ids
        assert [batch async for batch in handle.batches(30)] == []
        assert (await handle.result()).token_ids == alone.token_ids

        handle = await running.submit(request(70))
        while not handle.finished:  # nobody reads: all events are there at once
            await asyncio.sleep(0.01)
        (batch,) = [batch async for batch in handle.batches(30)]
        assert len(batch) == len(alone.token_ids)

    run(plain, scenario)


def test_a_silent_engine_gives_empty_batches_and_goes_on(plain: Model) -> None:
    async def scenario(running: AsyncEngine) -> None:
        paused = threading.Event()
        handle = await running.submit(request(70))
        running._order(lambda: paused.wait(10))  # the engine's thread does nothing until it is let
        silences, tokens = 0, 0
        async for batch in handle.batches(0.02):
            tokens += len(batch)
            silences += not batch
            if silences == 3:
                paused.set()
        assert silences >= 3 and tokens == 12

    run(plain, scenario)


def test_a_step_wakes_a_loop_once_for_all_its_requests(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(running: AsyncEngine) -> None:
        woken: list[int] = []
        loop = asyncio.get_running_loop()
        call = loop.call_soon_threadsafe
        handles = [await running.submit(request(20)) for _ in range(4)]

        def counted(callback: Any, *arguments: Any, **more: Any) -> Any:
            if callback.__name__ == "_wake":
                woken.append(len(arguments[0]))
            return call(callback, *arguments, **more)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        results = await asyncio.gather(*(handle.result() for handle in handles))
        assert sum(len(result.token_ids) for result in results) == 48
        # The first may be over before the last is submitted: how many share a step depends on the machine.
        assert max(woken) > 1 and len(woken) < 48

    run(plain, scenario)


def test_usage_has_the_most_that_the_caches_of_a_request_held(plain: Model, make_engine: Any) -> None:
    engine = make_engine(plain)
    whole = engine.submit(request(200)).result().usage
    again = engine.submit(request(200)).result().usage
    bound = engine.cache_footprint((), 200, 212).peak_bytes
    assert again.cached_tokens > 0 and 0 < again.kv_bytes < whole.kv_bytes <= 2 * bound
    handle = engine.submit(request(200))
    engine.step()
    handle.cancel()
    assert handle.usage.kv_bytes > 0
