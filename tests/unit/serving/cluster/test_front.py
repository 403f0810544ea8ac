"""The front before one replica of this process, without Ray: what a client sees of both together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from starlette.types import Message
from tests.unit.serving.live import NAME, chat_body, tiny_engine

from thrifty.engine.engine import Engine
from thrifty.kernels import dispatch
from thrifty.serving.cluster.calls import HttpCall
from thrifty.serving.cluster.front import Front
from thrifty.serving.cluster.replica import Replica
from thrifty.serving.errors import RequestError
from thrifty.serving.model_shelf import ModelShelf
from thrifty.serving.served_model import Fits, ModelSource
from thrifty.serving.settings import ServerError, ServerSettings

SETTINGS = ServerSettings(api_keys=("secret",))
KEY = {"Authorization": "Bearer secret"}


def shelf() -> ModelShelf:
    def opened(fits: Fits) -> Engine:
        return tiny_engine()

    return ModelShelf(SETTINGS, [ModelSource(NAME, opened)], preload=True)


class OneReplica:
    """What the front asks of a deployment, with a replica of this process."""

    name = NAME

    def __init__(self, failure: Exception | None = None) -> None:
        self.replica = Replica(shelf)
        self.ready = False
        self._failure = failure

    async def start(self) -> None:
        if self._failure is not None:
            raise self._failure
        await self.replica.reconfigure({})
        self.ready = True

    async def ask(self, call: HttpCall) -> AsyncGenerator[list[Message], None]:
        async for batch in self.replica.answer(call):
            yield batch

    async def metrics(self) -> dict[str, str]:
        return {"only": self.replica._models.instruments.text().decode()}

    async def running(self) -> int:
        return int(self.ready)

    def stop(self) -> None:
        self.ready = False


def asked(deployment: Any, use: Callable[[httpx.AsyncClient], Awaitable[None]]) -> Front:
    """Use a front from its start to its end."""
    failures: list[bool] = []
    front = Front(SETTINGS, deployment, retries=1, failed=lambda: failures.append(True))

    async def run() -> None:
        async with front.app.router.lifespan_context(front.app):
            transport = httpx.ASGITransport(front.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=KEY) as client:
                await use(client)
        if deployment.replica is not None:
            await deployment.replica.__del__()

    asyncio.run(run())
    assert bool(failures) is (front.failure is not None)
    return front


async def until_ready(client: httpx.AsyncClient) -> None:
    while (await client.get("/health")).status_code != 200:
        await asyncio.sleep(0.02)


@pytest.mark.skipif(dispatch.native() is None, reason="the native kernels are not built")
def test_a_client_sees_one_server() -> None:
    async def use(client: httpx.AsyncClient) -> None:
        loading = await client.post("/v1/chat/completions", json=chat_body())
        assert loading.status_code == 503 and loading.json()["error"]["code"] == "loading"
        await until_ready(client)
        whole = (await client.post("/v1/chat/completions", json=chat_body())).json()
        stream = (await client.post("/v1/chat/completions", json=chat_body(stream=True))).text
        assert whole["usage"]["completion_tokens"] == 8 and stream.endswith("data: [DONE]\n\n")
        refused = await client.post("/v1/chat/completions", json=chat_body(best_of=3))
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "best_of"
        refused = await client.post("/v1/messages", json={"model": NAME, "messages": [], "max_tokens": 3})
        assert refused.status_code == 400 and refused.json()["type"] == "error"
        assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == [NAME]
        assert (await client.get("/v1/models", headers={"Authorization": "Bearer x"})).status_code == 401
        assert (await client.get("/")).text.startswith("<!doctype html>")
        assert (await client.get("/health")).json() == {"status": "ok", "replicas": 1}
        told = (await client.get("/metrics")).text
        assert "thrifty:replicas 1.0" in told and f'vllm:prompt_tokens_total{{model_name="{NAME}"}}' in told

    asked(OneReplica(), use)


@pytest.mark.skipif(dispatch.native() is None, reason="the native kernels are not built")
def test_a_replica_measures_what_scaling_asks_for() -> None:
    deployment = OneReplica()

    async def use(client: httpx.AsyncClient) -> None:
        await until_ready(client)
        measured = await deployment.replica.record_autoscaling_stats()
        assert measured["waiting"] == 0 and 0 < measured["memory"] < 1
        await deployment.replica.check_health()
        for engine in deployment.replica._engines():
            engine._failure = RuntimeError("broken")
        with pytest.raises(RequestError):
            await deployment.replica.check_health()

    asked(deployment, use)


def test_replicas_that_cannot_be_started_end_the_server_with_the_reason() -> None:
    failure = ServerError("the replicas cannot be started: no such file")

    async def use(client: httpx.AsyncClient) -> None:
        await asyncio.sleep(0.05)
        assert (await client.get("/health")).status_code == 503

    assert asked(OneReplica(failure), use).failure is failure
