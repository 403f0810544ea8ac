"""Several models in one server: loaded when they are asked for, and let go inside one memory."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from tests.tiny import tiny_model
from tests.unit.serving.live import Shelf, SlowEngine, chat_body, eventually, get, post, shelf

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import CheckpointError
from thrifty.serving.errors import RequestError
from thrifty.serving.model_shelf import ModelShelf
from thrifty.serving.served_model import Fits, ModelSource
from thrifty.serving.settings import ServerSettings

CHAT = "/v1/chat/completions"
MEMORY = 24_000_000


class Loads:
    """Opens tiny models that differ, and counts how often."""

    def __init__(self, kind: type[Engine] = Engine, memory: int | None = MEMORY) -> None:
        self.counts: dict[str, int] = {}
        self.engines: dict[str, Engine] = {}
        self.models: list[weakref.ref[Any]] = []
        self.hold: threading.Event | None = None
        self.error: Exception | None = None
        self._kind, self._memory = kind, memory

    def source(self, name: str, seed: int) -> ModelSource:
        def opened(fits: Fits) -> Engine:
            self.counts[name] = self.counts.get(name, 0) + 1
            if self.hold is not None:
                self.hold.wait(20)
            if self.error is not None:
                raise self.error
            model = tiny_model(packed=True, seed=seed)
            fits(model.nbytes)
            engine = self._kind(model, memory=self._memory, threads=1, batch=8)
            self.models.append(weakref.ref(model))
            self.engines[name] = engine
            return engine

        return ModelSource(name, opened)


@contextmanager
def serving(
    loads: Loads, names: Sequence[str] = "abc", memory: int | None = MEMORY, **settings: Any
) -> Iterator[Shelf]:
    sources = [loads.source(name, seed) for seed, name in enumerate(names)]
    with shelf(sources, MEMORY, **{"model_room": 4_000_000, **settings}) as running:
        yield running


def ask(server: Shelf, name: str, **fields: Any) -> str:
    answer = post(server, CHAT, json=chat_body(**{"model": name, "max_tokens": 24, "ignore_eos": True, **fields}))
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == name
    return str(answer.json()["choices"][0]["message"]["content"])


def loaded(server: Shelf) -> dict[str, bool]:
    return {entry["id"]: entry["loaded"] for entry in get(server, "/v1/models").json()["data"]}


def test_a_model_is_loaded_when_it_is_first_asked_for() -> None:
    loads = Loads()
    with serving(loads) as server:
        assert get(server, "/health").status_code == 200
        assert loaded(server) == {"a": False, "b": False, "c": False} and not loads.counts
        first, second = ask(server, "a"), ask(server, "b")
        assert first != second and ask(server, "a") == first
        assert loaded(server) == {"a": True, "b": True, "c": False} and loads.counts == {"a": 1, "b": 1}
        entry = get(server, "/v1/models/a").json()
        assert entry["max_model_len"] == 4096
        text = get(server, "/metrics").text
    assert 'vllm:generation_tokens_total{model_name="a"} 48.0' in text
    assert (
        'vllm:num_requests_running{model_name="b"} 0.0' in text and 'num_requests_running{model_name="c"}' not in text
    )


def test_many_requests_load_a_model_once_and_all_are_answered_as_alone() -> None:
    loads = Loads()
    loads.hold = threading.Event()
    with serving(loads) as server, ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(ask, server, "abc"[place % 3]) for place in range(12)]
        assert eventually(lambda: len(loads.counts) == 1, 10)
        time.sleep(0.1)
        assert len(loads.counts) == 1, "one after the other"
        loads.hold.set()
        texts = [answer.result() for answer in answers]
        assert loads.counts == {"a": 1, "b": 1, "c": 1}
        assert texts[:3] * 4 == texts and len(set(texts)) == 3


def test_an_unknown_model_is_a_404_with_the_nearest_name() -> None:
    loads = Loads()
    with serving(loads, ["smollm", "qwen"]) as server:
        answer = post(server, CHAT, json=chat_body(model="smolm"))
        assert answer.status_code == 404 and "Did you mean 'smollm'?" in answer.json()["error"]["message"]
        assert post(server, "/tokenize", json={"prompt": "a"}).status_code == 400
        assert not loads.counts


def test_the_memory_of_all_is_one_and_the_least_recently_used_is_let_go() -> None:
    loads = Loads()
    with serving(loads, model_room=9_000_000) as server:
        texts = {name: ask(server, name) for name in "ab"}
        budgets = [loads.engines[name].probe().budget for name in "ab"]
        assert sum(budgets) <= MEMORY and min(budgets) > MEMORY / 3
        ask(server, "a")
        texts["c"] = ask(server, "c")
        assert loaded(server) == {"a": True, "b": False, "c": True}
        assert eventually(lambda: loads.engines["b"]._closed, 10)
        del loads.engines["b"]
        gc.collect()
        assert loads.models[1]() is None, "its weights are gone"
        assert {name: ask(server, name) for name in "abc"} == texts
        assert loads.counts == {"a": 1, "b": 2, "c": 2}


def test_a_model_in_use_is_not_let_go_and_the_refusal_names_it() -> None:
    loads = Loads(SlowEngine)
    with serving(loads, "ab", model_room=16_000_000) as server:
        body = chat_body(model="a", max_tokens=150, ignore_eos=True, stream=True)
        with server.client.stream("POST", server.url + CHAT, json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            answer = post(server, CHAT, json=chat_body(model="b"))
            error = answer.json()["error"]
            assert answer.status_code == 503 and error["code"] == "no_memory" and "'a' (1)" in error["message"]
            assert int(answer.headers["Retry-After"]) >= 1
            assert get(server, "/health").status_code == 200
            assert sum('"content":' in line for line in lines) > 0
        assert eventually(lambda: loads.engines["a"].usage().active == 0, 10)
        ask(server, "b")
        assert loaded(server) == {"a": False, "b": True}


def test_a_request_that_would_wait_too_long_is_told_to_come_again() -> None:
    loads = Loads()
    loads.hold = threading.Event()
    with serving(loads, load_seconds=0.1) as server:
        answer = post(server, CHAT, json=chat_body(model="a"))
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "loading"
        assert "Retry-After" in answer.headers
        loads.hold.set()
        assert eventually(lambda: loaded(server)["a"], 5)
        ask(server, "a")


def test_a_model_that_cannot_be_loaded_is_a_503_and_the_next_request_tries_again() -> None:
    loads = Loads()
    loads.error = CheckpointError("/secret/place is damaged")
    with serving(loads) as server:
        answer = post(server, CHAT, json=chat_body(model="a"))
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "load_failed"
        assert "secret" not in answer.text
        loads.error = None
        ask(server, "a")
        assert loads.counts == {"a": 2}


def test_a_busy_model_gives_nothing_that_its_request_needs() -> None:
    loads = Loads(SlowEngine)
    with serving(loads, "ab") as server:
        expected = ask(server, "a", max_tokens=200)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(ask, server, "a", max_tokens=200)
            assert eventually(lambda: loads.engines["a"].usage().active == 1, 10)
            ask(server, "b")
            assert sum(engine.probe().budget or 0 for engine in loads.engines.values()) <= MEMORY
            assert running.result() == expected


def test_a_model_takes_no_request_before_its_share_of_the_memory_is_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        models = ModelShelf(ServerSettings(model_room=4_000_000), [Loads().source("a", 0)], memory=MEMORY)
        release = asyncio.Event()

        async def make_good(*_: object) -> None:
            await release.wait()
            raise RequestError("there is no memory", 503, code="no_memory")

        monkeypatch.setattr(models._shares, "make_good", make_good)
        first = asyncio.create_task(models.get("a"))
        while not models.named("a").ready:
            await asyncio.sleep(0.01)
        second = asyncio.create_task(models.get("a"))
        await asyncio.sleep(0.05)
        assert not second.done()
        release.set()
        for task in (first, second):
            with pytest.raises(RequestError, match="there is no memory"):
                await task
        await models.close()

    asyncio.run(run())


def test_a_stopped_engine_holds_no_memory_that_another_model_needs() -> None:
    async def run() -> None:
        loads = Loads()
        sources = [loads.source("a", 0), loads.source("b", 1)]
        models = ModelShelf(ServerSettings(model_room=4_000_000), sources, memory=MEMORY)
        served = (await models.get("a")).served
        served.engine._failure = RuntimeError("broken")
        assert served.stopped
        await models.get("b")
        assert not served.stopped and not served.ready
        assert models.named("b").engine.probe().budget == MEMORY
        await models.get("a")
        assert loads.counts == {"a": 2, "b": 1}
        await models.close()

    asyncio.run(run())


def test_who_waits_for_a_model_is_told_that_the_server_stops_and_none_is_loaded_any_more() -> None:
    async def run() -> None:
        loads = Loads()
        loads.hold = threading.Event()
        models = ModelShelf(ServerSettings(), [loads.source("a", 0)], memory=MEMORY)
        waiting = asyncio.create_task(models.get("a"))
        await asyncio.sleep(0.05)
        models.end_all()
        with pytest.raises(RequestError, match="shutting down") as refused:
            await waiting
        assert refused.value.status == 503
        loads.hold.set()
        await models.close()
        assert loads.counts == {"a": 1} and not loads.engines

    asyncio.run(run())


@pytest.mark.parametrize("error", [OSError("/secret/place cannot be read"), RuntimeError("secret")])
def test_whatever_ends_a_loading_is_a_503(error: Exception) -> None:
    loads = Loads()
    loads.error = error
    with serving(loads) as server:
        answer = post(server, CHAT, json=chat_body(model="a"))
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "load_failed"
        assert "secret" not in answer.text


def test_a_look_at_sessions_loads_no_model() -> None:
    loads = Loads()
    with serving(loads) as server:
        assert get(server, "/v1/sessions?model=a").json()["data"] == []
        assert server.client.delete(server.url + "/v1/sessions/x?model=a").status_code == 404
        assert get(server, "/v1/sessions?model=z").status_code == 404
        assert not loads.counts


def test_nobody_is_told_that_a_model_is_loaded_when_the_server_stops() -> None:
    async def run() -> None:
        models = ModelShelf(ServerSettings(), [Loads().source("a", 0)])
        await models.get("a")
        await models.close()
        for call in (models.get("a"), models.get(None)):
            with pytest.raises(RequestError, match="shutting down") as refused:
                await call
            assert (refused.value.status, refused.value.code) == (503, "shutting_down")
        with pytest.raises(RequestError, match="shutting down"):
            models.check_ready()

    asyncio.run(run())


def test_the_budget_of_a_running_engine_changes_and_answers_do_not() -> None:
    def answer(change: Callable[[Engine], None]) -> list[int]:
        engine = Engine(tiny_model(packed=True), memory=MEMORY, threads=1)
        try:
            sampling = SamplingParameters(max_tokens=200, ignore_eos=True)
            handles = [engine.submit(Request(prompt=[65 + k] * 300, sampling=sampling)) for k in range(3)]
            for _ in range(40):
                engine.step()
            change(engine)
            return [token for handle in handles for token in handle.result().token_ids]
        finally:
            engine.close()

    def smaller(engine: Engine) -> None:
        least = engine.resize_memory(1)
        assert engine.probe().weights < least < MEMORY and engine.usage().current <= least
        assert engine.resize_memory(least + 1_000_000) == least + 1_000_000

    assert answer(smaller) == answer(lambda engine: None)
