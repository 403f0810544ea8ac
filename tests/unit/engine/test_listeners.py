"""Listeners: what they may do, and that one that fails harms its own request only."""

from __future__ import annotations

from typing import Any

import pytest
from tests.tiny import text_tokens

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Event, Handle, Request
from thrifty.errors import ThriftyError
from thrifty.models.model import Model


def request(number: int, **options: Any) -> Request:
    sampling = SamplingParameters(max_tokens=12, ignore_eos=True)
    return Request(prompt=text_tokens(40 + number, number), sampling=sampling, **options)


class Failing:
    """Raises at one of its calls, and counts them."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.at, self.error, self.calls = at, error, 0

    def __call__(self, event: Event | None) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise self.error


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("at", [1, 4, 12])
def test_a_listener_that_raises_ends_its_own_request(packed: Model, make_engine: Any, at: int, samples: int) -> None:
    alone = make_engine(packed).submit(request(1)).result().token_ids
    engine, listener = make_engine(packed), Failing(at, ValueError("a consumer's bug"))
    handle = engine.submit(request(0, samples=samples), listener)
    neighbour = engine.submit(request(1))
    assert neighbour.result().token_ids == alone
    assert handle.error is listener.error
    assert listener.calls == at, "it is not called again"
    assert "error" in [sample.finish_reason for sample in handle.samples] or at * samples >= 12
    assert not engine.busy
    with pytest.raises(ValueError, match="a consumer's bug"):
        handle.result()


def test_one_that_fails_at_the_very_end_tells_its_error(packed: Model, make_engine: Any) -> None:
    engine, listener = make_engine(packed), Failing(13, ValueError("after the last event"))
    handle = engine.submit(request(0), listener)
    while engine.busy:
        engine.step()
    assert (handle.samples[0].finish_reason, handle.error) == ("length", listener.error)


def test_an_interrupt_in_a_listener_is_raised_when_all_is_published(packed: Model, make_engine: Any) -> None:
    engine, listener = make_engine(packed), Failing(3, KeyboardInterrupt())
    handle = engine.submit(request(0), listener)
    neighbour = engine.submit(request(1))
    alone = make_engine(packed).submit(request(1)).result().token_ids
    with pytest.raises(KeyboardInterrupt):
        while engine.busy:
            engine.step()
    assert neighbour.result().token_ids == alone
    assert isinstance(handle.error, ThriftyError) and handle.error.__cause__ is listener.error
    assert "ended by KeyboardInterrupt in the middle of a step; submit it again" in str(handle.error)


def test_a_listener_may_cancel_submit_and_fork_but_not_step(packed: Model, make_engine: Any) -> None:
    engine: Engine = make_engine(packed)
    alone = make_engine(packed).submit(request(2)).result().token_ids
    others: list[Handle] = []
    errors: list[str] = []
    told: list[Event | None] = []

    def listener(event: Event | None) -> None:
        told.append(event)
        if len(told) == 4:
            others.append(engine.submit(request(2)))
            others.append(handle.fork())
            try:
                engine.step()
            except ThriftyError as error:
                errors.append(str(error))
            handle.cancel()

    handle = engine.submit(request(0), listener)
    while engine.busy:
        engine.step()
    assert errors == ["a listener called Engine.step: a step is under way, its events come after these"]
    assert [one and one.finish_reason for one in told] == [None] * 4 + ["cancelled", None]
    assert others[0].result().token_ids == alone
    assert len(others[1].result().token_ids) == 8
