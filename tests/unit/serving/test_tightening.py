"""Stronger recipes for new requests while a server is short: when, which, what is told, and that it passes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.unit.serving.live import Live, chat_body, eventually, get, live, post, tiny_engine

from thrifty.engine.inspection import EnginePressure
from thrifty.errors import ThriftyError
from thrifty.serving.settings import ServerSettings
from thrifty.serving.tightening.ladder import Ladder
from thrifty.serving.tightening.level import Level

CHAT = "/v1/chat/completions"
MILD: dict[str, Any] = {"technique": "kivi", "bits": 4, "residual": 64}
STRONG: dict[str, Any] = {"technique": "streaming", "window": 64}
LADDER = Ladder(rungs=((MILD,), (STRONG,)), limit=2, free_share=0.2, wait_seconds=1.0)
FREE = EnginePressure(free=0.9, waiting_seconds=0.0, parked=0)
SHORT = EnginePressure(free=0.1, waiting_seconds=0.0, parked=0)
BETWEEN = EnginePressure(free=0.3, waiting_seconds=0.7, parked=0)
LONG = "tell me of the sea " * 12


def rungs(level: Level, *seen: tuple[EnginePressure, float]) -> list[int]:
    return [level.observe(pressure, now) for pressure, now in seen]


@pytest.mark.parametrize(
    "pressure",
    [
        SHORT,
        EnginePressure(0.9, 1.5, 0),
        EnginePressure(0.9, 0.0, 1),
        EnginePressure(None, 2.0, 0),
        EnginePressure(0.9, 0.0, 0, lacks_room=True),
    ],
)
def test_want_of_memory_a_long_wait_and_parked_sequences_are_short(pressure: EnginePressure) -> None:
    assert Level(LADDER).observe(pressure, 0.0) == 1


def test_it_rises_a_step_at_a_time_up_to_the_bound() -> None:
    level = Level(LADDER)
    assert rungs(level, (SHORT, 0), (SHORT, 1), (SHORT, 1.9), (SHORT, 2), (SHORT, 9)) == [1, 1, 1, 2, 2]
    bounded = Level(Ladder(rungs=LADDER.rungs, limit=1, free_share=0.2))
    assert rungs(bounded, (SHORT, 0), (SHORT, 50)) == [1, 1], "nothing stronger than the operator's bound"


def test_it_falls_a_step_after_a_while_in_which_nothing_was_short() -> None:
    level = Level(LADDER)
    rungs(level, (SHORT, 0), (SHORT, 2))
    assert rungs(level, (FREE, 3), (FREE, 17.9), (FREE, 18), (FREE, 32), (FREE, 33)) == [2, 2, 1, 1, 0]


def test_between_short_and_calm_it_stays_so_it_does_not_flap() -> None:
    level = Level(LADDER)
    level.observe(SHORT, 0)
    assert set(rungs(level, *((BETWEEN, now) for now in range(1, 100)))) == {1}
    swinging = [(FREE if now % 4 else SHORT, float(now)) for now in range(100, 200)]
    assert set(rungs(level, *swinging[8:])) == {2}, "what swings faster than the calm time counts as short"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rungs": ()}, "no recipe is given"),
        ({"limit": 0}, "--tighten-limit is 0.*give 1 to 2"),
        ({"limit": 3}, "--tighten-limit is 3"),
        ({"free_share": 1.0}, "--tighten-below is 1"),
        ({"wait_seconds": 0.0}, "--tighten-wait is 0"),
    ],
)
def test_a_ladder_that_cannot_be_is_said(change: dict[str, Any], told: str) -> None:
    options: dict[str, Any] = {"rungs": LADDER.rungs, "limit": 2} | change
    with pytest.raises(ThriftyError, match=told):
        ServerSettings(tighten=Ladder(**options)).check()


def under(server: Live, pressure: EnginePressure, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine tell this pressure."""
    monkeypatch.setattr(server.engine, "pressure", lambda: pressure)


def ask(server: Live, **fields: Any) -> tuple[str, str | None, dict[str, Any]]:
    """An answer's text, its header and what it cost."""
    answer = post(server, CHAT, json=chat_body(LONG, max_tokens=24, ignore_eos=True, **fields))
    assert answer.status_code == 200, answer.text
    document = answer.json()
    return document["choices"][0]["message"]["content"], answer.headers.get("thrifty-recipe"), document["usage"]


def test_new_requests_have_the_rung_and_are_told_so_until_it_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    ladder = Ladder(rungs=((STRONG,),), limit=1, free_share=0.2, settle_seconds=0.0, calm_seconds=0.3)
    with live(tighten=ladder) as server:
        plain, header, usage = ask(server)
        assert header is None and "recipe" not in usage["thrifty"]
        asked, header, usage = ask(server, thrifty={"cache": [STRONG]})
        assert header == usage["thrifty"]["recipe"] == "streaming(window=64)"
        under(server, SHORT, monkeypatch)
        assert ask(server)[:2] == (asked, "streaming(window=64)")
        stream = post(server, CHAT, json=chat_body(LONG, stream=True))
        assert stream.headers["thrifty-recipe"] == "streaming(window=64)"
        other = post(server, "/v1/messages", json=chat_body(LONG))
        assert other.headers["thrifty-recipe"] == "streaming(window=64)", other.text
        own = [{"technique": "kivi", "bits": 4}]
        assert ask(server, thrifty={"cache": own})[1] == "kivi(bits=4)", "a request's own recipe stays"
        assert ask(server, thrifty={"session": "a"})[1] is None, "so does a session's"
        metrics = get(server, "/metrics").text
        assert 'thrifty:tightened_requests_total{model_name="tiny",rung="1"} 3.0' in metrics
        assert 'thrifty:tighten_rung{model_name="tiny"} 1.0' in metrics
        under(server, FREE, monkeypatch)
        assert eventually(lambda: 'thrifty:tighten_rung{model_name="tiny"} 0.0' in get(server, "/metrics").text, 5)
        assert ask(server)[:2] == (plain, None)


def test_a_rung_that_does_not_do_for_a_request_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would leave its window to a budget that the request does not have."""
    ladder = Ladder(
        rungs=(({"technique": "streaming", "window": "budget"},),), limit=1, free_share=0.2, settle_seconds=0.0
    )
    with live(tighten=ladder) as server:
        under(server, SHORT, monkeypatch)
        assert ask(server)[1] is None
        assert "thrifty:tightened_requests_total{" not in get(server, "/metrics").text


def test_a_recipe_that_the_model_cannot_have_ends_the_start() -> None:
    ladder = Ladder(rungs=(({"technique": "kivi", "bits": 77},),), limit=1)
    with live(tighten=ladder, wait=False) as server:
        assert eventually(lambda: server.models.failure is not None, 10)
        assert "bits" in str(server.models.failure)


def _tight() -> int:
    """A budget that holds two or three of the requests."""
    engine = tiny_engine()
    try:
        probe = engine.probe()
        return probe.weights + probe.workspace + int(2.5 * engine.footprint((), 550, 800).peak_bytes)
    finally:
        engine.close()


@pytest.mark.long
def test_under_real_pressure_new_requests_shrink() -> None:
    """Each says what it says with the recipe that it was told."""
    prompts = [f"tell me of {place} things: {'z' * (300 + place * 37)}" for place in range(8)]
    ladder = Ladder(rungs=((STRONG,),), limit=1, free_share=0.6, settle_seconds=0.0, calm_seconds=60.0)

    def in_two_waves(server: Live) -> list[tuple[str, str | None, int]]:
        """The others come when two are under way."""

        def one(prompt: str) -> tuple[str, str | None, int]:
            answer = post(server, CHAT, json=chat_body(prompt, max_tokens=200, ignore_eos=True))
            document = answer.json()
            held = document["usage"]["thrifty"]["kv_bytes"]
            return document["choices"][0]["message"]["content"], answer.headers.get("thrifty-recipe"), held

        with ThreadPoolExecutor(len(prompts)) as pool:
            first = [pool.submit(one, prompt) for prompt in prompts[:3]]
            assert server.engine is not None
            assert eventually(lambda: server.engine.usage().active >= 2, 10)  # type: ignore[union-attr]
            return [future.result() for future in [*first, *(pool.submit(one, prompt) for prompt in prompts[3:])]]

    memory = _tight()
    with live(lambda: tiny_engine(memory=memory)) as server:
        answers = in_two_waves(server)
        assert {header for _, header, _ in answers} == {None}
    with live(lambda: tiny_engine(memory=memory), tighten=ladder) as server:
        tightened = in_two_waves(server)
    shrunk = [place for place, (_, header, _) in enumerate(tightened) if header == "streaming(window=64)"]
    assert len(shrunk) >= 2
    assert all(tightened[place][2] < answers[place][2] for place in shrunk), "each holds less than it would have"
    with live() as server:
        for prompt, (text, header, _) in zip(prompts, tightened, strict=True):
            cache = {"thrifty": {"cache": [STRONG]}} if header else {}
            again = post(server, CHAT, json=chat_body(prompt, max_tokens=200, ignore_eos=True, **cache))
            assert again.json()["choices"][0]["message"]["content"] == text


def test_what_an_engine_lacks_is_counted_without_what_gives_way() -> None:
    from thrifty.decoding.sampling_parameters import SamplingParameters
    from thrifty.engine.request import Request

    engine = tiny_engine(batch=1)
    try:
        sampling = SamplingParameters(max_tokens=400, ignore_eos=True)
        free = engine.pressure()
        assert free == EnginePressure(1.0, 0.0, 0)
        engine.submit(Request(prompt=list(range(200)), sampling=sampling)).result()
        assert engine.usage().tree > 0 and engine.pressure().free == 1.0, "the prefix tree gives way"
        handles = [engine.submit(Request(prompt=list(range(200)), sampling=sampling)) for _ in range(2)]
        engine.step()
        engine.step()
        busy = engine.pressure()
        assert busy.free is not None and busy.free < 1.0 and busy.waiting_seconds > 0 and busy.parked == 0
        for handle in handles:
            handle.cancel()
        assert engine.pressure() == free
    finally:
        engine.close()


def test_a_request_that_waits_for_memory_is_want_of_it_however_much_is_free() -> None:
    """Half of what the next one needs is free, far more than the share below which memory counts as short."""
    from thrifty.decoding.sampling_parameters import SamplingParameters
    from thrifty.engine.request import Request

    probe = tiny_engine()
    facts, need = probe.probe(), probe.footprint((), 550, 800).peak_bytes
    probe.close()
    engine = tiny_engine(memory=facts.weights + facts.workspace + int(1.3 * need), prefix_tree=False)
    try:
        sampling = SamplingParameters(max_tokens=250, ignore_eos=True)
        handles = [engine.submit(Request(prompt=[place] * 550, sampling=sampling)) for place in (1, 2)]
        while not handles[0].usage.generated_tokens:
            engine.step()
        engine.step()
        waits = engine.pressure()
        assert waits.lacks_room and waits.free is not None and waits.free > LADDER.free_share
        assert Level(LADDER).observe(waits, 0.0) == 1
        assert [len(handle.result().token_ids) for handle in handles] == [250, 250]
        assert not engine.pressure().lacks_room
    finally:
        engine.close()
