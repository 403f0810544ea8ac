"""Signals wait while something must be done whole, and none is lost."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from tests.tiny import text_tokens

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine import uninterrupted as uninterrupted_module
from thrifty.engine.request import Handle, Request
from thrifty.engine.turn import Turn
from thrifty.engine.uninterrupted import HELD, Uninterrupted
from thrifty.models.model import Model


class Alarm(Exception):
    """What the test's handlers raise."""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[list[int]]:
    """SIGALRM and SIGUSR1 raise; what arrived is listed. The handlers of before come back."""
    arrived: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        raise Alarm(number)

    before = {number: signal.signal(number, handler) for number in (signal.SIGALRM, signal.SIGUSR1)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield arrived
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, old in before.items():
        signal.signal(number, old)


def installed() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in HELD}


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    for _ in range(1000):  # handlers run between lines: here at the latest
        pass


def test_a_signal_comes_when_all_is_done(handlers: list[int]) -> None:
    before, done = installed(), []
    uninterrupted = Uninterrupted()
    with pytest.raises(Alarm), uninterrupted:
        send(signal.SIGALRM)
        assert not handlers
        with uninterrupted:
            send(signal.SIGALRM)
        done.append(True)
    assert done and handlers == [signal.SIGALRM] * 2
    assert installed() == before
    with uninterrupted:
        pass
    assert handlers == [signal.SIGALRM] * 2, "each signal is told once"


def test_several_signals_are_all_told_and_the_first_is_raised(handlers: list[int]) -> None:
    before = installed()
    with pytest.raises(KeyboardInterrupt), Uninterrupted():
        send(signal.SIGINT)
        send(signal.SIGUSR1)
        send(signal.SIGALRM)
    assert handlers == [signal.SIGUSR1, signal.SIGALRM]
    assert installed() == before


def test_contexts_nest_in_one_another(handlers: list[int]) -> None:
    before, outer, inner = installed(), Uninterrupted(), Uninterrupted()
    with pytest.raises(Alarm), outer:
        with inner:
            send(signal.SIGALRM)
        assert not handlers, "the outer one holds it on"
    assert handlers and installed() == before


def test_an_error_inside_leaves_the_handlers_as_they_were() -> None:
    before = installed()
    with pytest.raises(ZeroDivisionError), Uninterrupted():
        raise ZeroDivisionError
    assert installed() == before
    with Uninterrupted():
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN, "a handler that was exchanged inside stays"


def test_other_threads_leave_signals_alone() -> None:
    before, seen = installed(), []

    def run() -> None:
        with Uninterrupted():
            seen.append(installed())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_finaliser_inside_the_bookkeeping_changes_nothing(
    handlers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector of garbage may enter the context at any line of its own code."""
    before, outer, lookup = installed(), Uninterrupted(), uninterrupted_module._signal.getsignal

    def collecting(number: int) -> Any:
        with outer:
            pass
        return lookup(number)

    with monkeypatch.context() as patch, pytest.raises(Alarm):
        patch.setattr(uninterrupted_module._signal, "getsignal", collecting)
        with outer:
            send(signal.SIGALRM)
            assert not handlers
    assert handlers == [signal.SIGALRM] and installed() == before


def test_a_handler_that_was_found_inside_and_put_back_outside_still_works(handlers: list[int]) -> None:
    """As a debugger does that is entered in a listener."""
    uninterrupted = Uninterrupted()
    with uninterrupted:
        found = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, found)
    with pytest.raises(Alarm), uninterrupted:
        send(signal.SIGALRM)
    signal.signal(signal.SIGALRM, found)
    with pytest.raises(Alarm):
        send(signal.SIGALRM)
    assert handlers == [signal.SIGALRM] * 2


def test_who_waits_for_another_threads_turn_can_be_interrupted() -> None:
    turn, taken, leave = Turn(lambda answer: None), threading.Event(), threading.Event()

    def hold() -> None:
        with turn:
            taken.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()

    def take() -> None:
        with turn:
            pass

    try:
        assert interrupted(0.02, take)
        assert thread.is_alive(), "the other thread has it on"
    finally:
        leave.set()
        thread.join()
    take()


def interrupted(after: float, call: Callable[[], Any]) -> bool:
    """Whether a call was left by an alarm that goes off after so many seconds."""
    signal.setitimer(signal.ITIMER_REAL, after)
    try:
        call()
    except Alarm:
        return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return False


def wait(handle: Handle) -> None:
    for _ in handle:
        pass


@pytest.mark.long
def test_alarms_at_any_moment_harm_nobody(packed: Model, make_engine: Any) -> None:
    """Requests are cut short while a neighbour decodes: it answers as alone, and so does the next."""
    caches: list[list[dict[str, Any]] | None] = [None, [{"technique": "kivi", "bits": 4}], [{"technique": "kvzip"}]]
    sampling = SamplingParameters(max_tokens=40, ignore_eos=True)
    requests = [Request(prompt=text_tokens(150 + 7 * n, n), sampling=sampling, cache=caches[n]) for n in range(3)]
    alone = [make_engine(packed, prefix_tree=False).submit(request).result().token_ids for request in requests]
    engine, chance, cut = make_engine(packed), random.Random(4), 0
    for turn in range(24):
        neighbour = engine.submit(requests[turn % 3])
        handles: list[Handle] = []

        def call(number: int = turn // 3 % 3, handles: list[Handle] = handles) -> None:
            handles.append(engine.submit(requests[number]))
            wait(handles[0])

        cut += interrupted(1e-4 + 0.03 * chance.random(), call)
        for handle in handles:
            handle.cancel()
        assert neighbour.result().token_ids == alone[turn % 3]
        assert engine.describe()["queues"] == {"waiting": 0, "active": 0, "parked": 0}
        engine.memory.cache.tree.clear()
        ledger = engine.memory.ledger
        assert [ledger.bytes_of(name) for name in ("cache", "tree", "scratch", "index")] == [0] * 4
    assert cut > 5
