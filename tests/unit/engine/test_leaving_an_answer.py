"""Every way to leave an answer ends its request and frees its bytes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
from tests.tiny import text_tokens

from thrifty import Engine, Thrifty
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.request import Request
from thrifty.models.model import Model

LONG: dict[str, Any] = {"max_tokens": 3000, "ignore_eos": True}


@pytest.fixture
def thrifty(plain: Model) -> Iterator[Thrifty]:
    with Thrifty(plain, prefix_tree=False) as opened:
        yield opened


def nothing_runs(engine: Engine) -> bool:
    """No request, no bytes but weights and workspace."""
    ledger = engine.memory.ledger
    held = sum(ledger.bytes_of(name) for name in ("cache", "scratch", "index"))
    return not engine.busy and held == 0 and ledger.committed == ledger.current


def leave_by_break(thrifty: Thrifty) -> None:
    for _ in thrifty.generate("hello", stream=True, **LONG):
        break


def leave_a_chat(thrifty: Thrifty) -> None:
    for _ in thrifty.chat("hello", stream=True, **LONG):
        break


def leave_by_an_error(thrifty: Thrifty) -> None:
    with suppress(ZeroDivisionError):
        for _ in thrifty.generate("hello", stream=True, **LONG):
            raise ZeroDivisionError


def leave_by_closing(thrifty: Thrifty) -> None:
    stream = thrifty.generate("hello", stream=True, **LONG)
    next(stream)
    stream.close()
    stream.close()
    assert list(stream) == [], "a closed stream has no more pieces"


def leave_before_the_beginning(thrifty: Thrifty) -> None:
    thrifty.generate("hello", stream=True, **LONG)


def leave_but_hold_its_handle(thrifty: Thrifty) -> None:
    stream = thrifty.generate("hello", stream=True, **LONG)
    handle = stream.handle
    next(stream)
    del stream
    assert handle.samples[0].finish_reason == "cancelled", "the stream owned it"


def leave_a_context(thrifty: Thrifty) -> None:
    with thrifty.generate("hello", stream=True, **LONG) as stream:
        next(stream)


def leave_a_closing(thrifty: Thrifty) -> None:
    with suppress(KeyError), closing(thrifty.generate("hello", stream=True, **LONG)) as stream:
        next(stream)
        raise KeyError


def leave_the_text_of_a_handle(thrifty: Thrifty) -> None:
    for _ in thrifty.submit("hello", **LONG).text():
        break


def leave_the_tokens_of_a_handle(thrifty: Thrifty) -> None:
    tokens = thrifty.submit("hello", **LONG).tokens()
    del tokens


def leave_the_events_of_a_handle(thrifty: Thrifty) -> None:
    next(iter(thrifty.submit("hello", samples=2, temperature=1.0, **LONG)))


def leave_the_context_of_a_handle(thrifty: Thrifty) -> None:
    with thrifty.submit("hello", **LONG) as handle:
        next(iter(handle))
    assert handle.samples[0].finish_reason == "cancelled"


def leave_in_another_thread(thrifty: Thrifty) -> None:
    streams = [thrifty.generate("hello", stream=True, **LONG)]
    next(streams[0])
    thread = threading.Thread(target=streams.clear)
    thread.start()
    thread.join()


def leave_inside_a_step(thrifty: Thrifty) -> None:
    """A listener drops the last reference, as a collection of garbage might: it is ended with the step."""
    streams = [thrifty.generate("hello", stream=True, **LONG)]
    request = Request(prompt=text_tokens(20), sampling=SamplingParameters(max_tokens=3, ignore_eos=True))
    handle = thrifty.engine.submit(request, lambda event: streams.clear())
    assert len(handle.result().token_ids) == 3


WAYS = [value for name, value in list(globals().items()) if name.startswith("leave_")]


@pytest.mark.parametrize("leave", WAYS)
def test_leaving_ends_the_request(thrifty: Thrifty, leave: Callable[[Thrifty], None]) -> None:
    whole = thrifty.generate("other", max_tokens=5, ignore_eos=True).token_ids
    leave(thrifty)
    assert nothing_runs(thrifty.engine)
    assert thrifty.generate("other", max_tokens=5, ignore_eos=True).token_ids == whole


@pytest.mark.parametrize(
    "wait",
    [
        lambda thrifty: thrifty.generate("hello", **LONG),
        lambda thrifty: thrifty.generate(["hello", "other"], **LONG),
        lambda thrifty: thrifty.chat("hello", **LONG),
        lambda thrifty: thrifty.submit("hello", **LONG).result(),
        lambda thrifty: list(thrifty.generate("hello", stream=True, **LONG)),
    ],
    ids=["generate", "list", "chat", "result", "stream"],
)
def test_an_interrupt_ends_the_request(thrifty: Thrifty, wait: Callable[[Thrifty], Any]) -> None:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            wait(thrifty)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert nothing_runs(thrifty.engine)


def test_who_holds_the_handle_reads_on(thrifty: Thrifty) -> None:
    whole = thrifty.generate("hello", max_tokens=30, ignore_eos=True)
    handle = thrifty.submit("hello", max_tokens=30, ignore_eos=True)
    for _ in handle.text():
        break
    for event in handle:
        assert event.token is not None
        break
    assert thrifty.engine.busy
    assert handle.result().token_ids == whole.token_ids
    stream = thrifty.generate("hello", max_tokens=30, ignore_eos=True, stream=True)
    assert next(stream) + "".join(stream) == whole.text
    assert stream.handle.usage.generated_tokens == 30


def test_a_request_that_nobody_reads_comes_out_of_the_steps(plain: Model, make_engine: Any) -> None:
    engine = make_engine(plain)
    engine.submit(Request(prompt=text_tokens(20), sampling=SamplingParameters(max_tokens=4, ignore_eos=True)))
    events = []
    while engine.busy:
        events += engine.step()
    assert [event.finish_reason for event in events] == [None, None, None, "length"]
