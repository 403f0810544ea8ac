"""The front's way to replicas, over replicas that are lists of messages: who begins again, who is told of an end."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.types import Message

from thrifty.errors import QueueFullError
from thrifty.serving.cluster import forwarding
from thrifty.serving.cluster.calls import HttpCall
from thrifty.serving.cluster.forwarding import Forwarding, ReplicaLost

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
ROLE: dict[str, Any] = {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
LOST = ReplicaLost("gone")


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "PAUSE", 0.0)


def head(status: int = 200, kind: bytes = b"text/event-stream; charset=utf-8") -> Message:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]}


def event(told: Any, more: bool = True) -> Message:
    body = told if isinstance(told, bytes) else b"data: " + json.dumps(told).encode() + b"\n\n"
    return {"type": "http.response.body", "body": body, "more_body": more}


def word(text: str) -> Message:
    return event({"choices": [{"delta": {"content": text}, "finish_reason": None}]})


DONE = [event(b"data: [DONE]\n\n"), event(b"", more=False)]
COMMENT = event(b": keep-alive\n\n")


class Replicas:
    """Answers the first request by the first list, and so on. An exception in a list is raised at its place."""

    def __init__(self, *answers: list[Message | Exception]) -> None:
        self.answers = list(answers)
        self.calls: list[HttpCall] = []
        self.closed = 0

    async def ask(self, call: HttpCall) -> AsyncGenerator[list[Message], None]:
        self.calls.append(call)
        try:
            for message in self.answers.pop(0):
                if isinstance(message, Exception):
                    raise message
                if message is FOREVER:
                    await asyncio.Event().wait()
                yield [message]
        finally:
            self.closed += 1


FOREVER: Message = {"type": "never"}


class Client:
    """One request. sent: what it was sent."""

    def __init__(self, path: str = CHAT, body: bytes = b"{}") -> None:
        self.sent: list[Message] = []
        self.gone = asyncio.Event()
        self._scope = {"type": "http", "method": "POST", "path": path, "headers": [], "state": {"secret": object()}}
        self._body: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive(self) -> Message:
        if self._body:
            return self._body.pop()
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def ask(self, app: Forwarding) -> None:
        await app(self._scope, self.receive, self.send)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.sent if message["type"] == "http.response.body"]


def asked(replicas: Replicas, path: str = CHAT, retries: int = 3) -> tuple[Client, Forwarding]:
    """One request to its end."""

    async def run() -> tuple[Client, Forwarding]:
        client, app = Client(path), Forwarding(replicas.ask, retries)
        await asyncio.wait_for(client.ask(app), 5)
        return client, app

    return asyncio.run(run())


def test_an_answer_passes_unchanged() -> None:
    answer: list[Any] = [head(), event(ROLE), word("a"), word("b"), *DONE]
    client, app = asked(Replicas(answer))
    assert client.sent == answer and (app.retried, app.lost) == (0, 0)


def test_a_whole_answer_passes_unchanged() -> None:
    answer: list[Any] = [head(400, b"application/json"), event(b"{}", more=False)]
    assert asked(Replicas(answer))[0].sent == answer


def test_a_request_that_had_not_begun_goes_to_another_replica() -> None:
    whole: list[Any] = [head(), event(ROLE), word("a"), *DONE]
    for before in ([], [head()], [head(), event(ROLE)]):
        replicas = Replicas([*before, LOST], whole)
        client, app = asked(replicas)
        assert client.sent == whole and app.retried == 1 and app.lost == 0
        assert replicas.calls[0] == replicas.calls[1]


def test_a_stream_that_was_kept_open_goes_on_from_another_replica() -> None:
    client, app = asked(Replicas([head(), event(ROLE), COMMENT, LOST], [head(), event(ROLE), word("a"), *DONE]))
    assert client.sent == [head(), COMMENT, event(ROLE), word("a"), *DONE] and app.retried == 1


@pytest.mark.parametrize(
    ("path", "sent", "expected"),
    [
        (CHAT, word("a"), b"data: "),
        (MESSAGES, event(b'event: content_block_delta\ndata: {"type": "content_block_delta"}\n\n'), b"event: error\n"),
        (
            RESPONSES,
            event(b'event: x\ndata: {"type": "response.output_text.delta", "sequence_number": 7}\n\n'),
            b"event: error\n",
        ),
    ],
)
def test_a_stream_that_had_begun_ends_with_an_error_of_its_endpoints_form(
    path: str, sent: Message, expected: bytes
) -> None:
    replicas = Replicas([head(), sent, LOST])
    client, app = asked(replicas, path)
    assert client.sent[1] == sent and (app.retried, app.lost) == (0, 1) and len(replicas.calls) == 1
    last = client.sent[-1]
    assert last["body"].startswith(expected) and not last["more_body"]
    told = json.loads(last["body"].partition(b"data: ")[2])
    details = told if path == RESPONSES else told["error"]
    assert "ask again" in details["message"]
    if path != MESSAGES:
        assert details["code"] == "replica_lost"
    if path == RESPONSES:
        assert told["sequence_number"] == 8


def test_a_request_that_no_replica_survives_is_a_503() -> None:
    client, app = asked(Replicas([LOST], [LOST], [head(), LOST]), retries=2)
    assert client.status == 503 and json.loads(client.bodies[0])["error"]["code"] == "replica_lost"
    assert (app.retried, app.lost) == (2, 1)


def test_a_refusal_after_a_stream_was_kept_open_is_an_event() -> None:
    refusal = json.dumps({"error": {"message": "full", "type": "x", "param": None, "code": "queue_full"}}).encode()
    client, _ = asked(Replicas([head(), COMMENT, LOST], [head(429, b"application/json"), event(refusal, more=False)]))
    assert client.sent[:2] == [head(), COMMENT] and len(client.sent) == 3
    assert json.loads(client.bodies[-1].removeprefix(b"data: "))["error"]["code"] == "queue_full"


def test_refusals_and_failures_of_the_way_are_answered() -> None:
    client, _ = asked(Replicas([QueueFullError("full", 2.5)]))
    assert client.status == 429 and (b"retry-after", b"3") in client.sent[0]["headers"]
    client, _ = asked(Replicas([RuntimeError("a secret path")]))
    assert client.status == 500 and b"secret" not in client.bodies[0]


def test_a_client_that_hangs_up_closes_its_replicas_answer() -> None:
    async def run() -> Replicas:
        replicas = Replicas([head(), word("a"), FOREVER])
        client = Client()
        asking = asyncio.create_task(client.ask(Forwarding(replicas.ask, 3)))
        while len(client.sent) < 2:
            await asyncio.sleep(0)
        client.gone.set()
        await asyncio.wait_for(asking, 5)
        assert client.sent == [head(), word("a")]
        return replicas

    assert asyncio.run(run()).closed == 1


@pytest.mark.parametrize("begun", [False, True])
def test_who_is_still_answered_when_the_server_stops_is_told(begun: bool) -> None:
    async def run() -> Client:
        before = [head(), word("a")] if begun else [head()]
        replicas, client = Replicas([*before, FOREVER]), Client()
        app = Forwarding(replicas.ask, 3)
        asking = asyncio.create_task(client.ask(app))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(asking), 0.05)
        app.end_all()
        await asyncio.wait_for(asking, 5)
        assert replicas.closed == 1
        return client

    client = asyncio.run(run())
    assert client.status == (200 if begun else 503)
    assert json.loads(client.bodies[-1].removeprefix(b"data: "))["error"]["code"] == "shutting_down"


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"text"', b"\xff", b"[" * 100_000])
def test_bodies_that_are_no_objects_are_left_to_the_replica(body: bytes) -> None:
    async def run() -> HttpCall:
        replicas = Replicas([head(), *DONE])
        await Client(body=body).ask(Forwarding(replicas.ask, 3))
        return replicas.calls[0]

    call = asyncio.run(run())
    assert call.body == body and call.blocks == [] and call.session is None
    assert "state" not in call.scope
