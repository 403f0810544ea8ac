"""Tools, items, blocks and headers that nobody sends by mistake: no 500, and no memory that stays."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from tests.unit.serving.live import NAME, Live, eventually, live, post
from tests.unit.serving.tool_models import tool_engine

pytest.importorskip("llguidance")

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
HELLO = {"role": "user", "content": "hello"}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(lambda: tool_engine("hermes")) as running:
        yield running


@pytest.fixture(scope="module")
def held(server: Live) -> int:
    """Bytes that stay once the first grammar was compiled: what the vocabulary's tokens are in bytes."""
    assert post(server, CHAT, json=bodies({})[CHAT] | {"model": NAME}).status_code == 200
    return server.held()


def nested(depth: int) -> dict[str, Any]:
    """A schema of objects in objects."""
    schema: dict[str, Any] = {"type": "object", "properties": {}}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


SCHEMAS: dict[str, Any] = {
    "deep": nested(100),
    "deeper than parsers go": nested(400),
    "itself": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "a reference to nothing": {"type": "object", "properties": {"a": {"$ref": "#/$defs/gone"}}},
    "a reference to a file": {"type": "object", "properties": {"a": {"$ref": "file:///etc/passwd"}}},
    "a hungry pattern": {"type": "object", "properties": {"a": {"type": "string", "pattern": "(a{1,999}){1,999}"}}},
    "a broken pattern": {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}},
    "many properties": {"type": "object", "properties": {f"p{place}": {"type": "string"} for place in range(300)}},
    "a long enum": {"type": "object", "properties": {"a": {"enum": [str(place) for place in range(1000)]}}},
    "properties of a wrong type": {"type": "object", "properties": 3},
    "required of a wrong type": {"type": "object", "properties": {}, "required": "a"},
    "huge bounds": {"type": "object", "properties": {"a": {"type": "string", "maxLength": 10**30}}},
    "an impossible range": {"type": "object", "properties": {"a": {"type": "integer", "minimum": 2, "maximum": 1}}},
    "keywords of the grammar's own": {"type": "object", "x-guidance": {"whitespace_pattern": "("}, "properties": {}},
}


def bodies(schema: Any) -> dict[str, dict[str, Any]]:
    """The same tool for each endpoint that takes tools."""
    function = {"name": "f", "parameters": schema}
    return {
        CHAT: {"messages": [HELLO], "max_tokens": 2, "tools": [{"type": "function", "function": function}]},
        RESPONSES: {"input": "hello", "max_output_tokens": 2, "tools": [{"type": "function", **function}]},
        MESSAGES: {"messages": [HELLO], "max_tokens": 2, "tools": [{"name": "f", "input_schema": schema}]},
    }


@pytest.mark.parametrize("name", SCHEMAS)
def test_no_schema_of_a_tool_is_a_500(server: Live, held: int, name: str) -> None:
    for path, body in bodies(SCHEMAS[name]).items():
        answer = post(server, path, json=body | {"model": NAME})
        assert answer.status_code < 500, (path, answer.text)
    assert eventually(lambda: server.held() == held)


def test_tools_are_counted_without_a_grammar_and_without_a_500(server: Live) -> None:
    for name in ("deep", "deeper than parsers go"):
        body = bodies(SCHEMAS[name])[MESSAGES] | {"model": NAME}
        del body["max_tokens"]
        answer = post(server, f"{MESSAGES}/count_tokens", json=body)
        assert answer.status_code == (200 if name == "deep" else 400), answer.text


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_tools_that_are_longer_than_the_context_are_refused_at_once(
    server: Live, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = server.service.engine
    tokenizer = server.service.model.require_tokenizer()
    encoded: list[int] = []
    original = tokenizer.encode

    def encode(text: str, *options: Any, **more: Any) -> list[int]:
        encoded.append(len(text))
        return list(original(text, *options, **more))

    async def compile(grammar: object) -> None:
        raise AssertionError("a grammar was compiled")

    monkeypatch.setattr(tokenizer, "encode", encode)
    monkeypatch.setattr(engine, "compile", compile)
    for size in (5_000, 2_000_000):
        schema = {"type": "object", "properties": {}, "description": "v" * size}
        answer = post(server, path, json=bodies(schema)[path] | {"model": NAME})
        assert answer.status_code == 400 and "the context holds 4096" in answer.text
    assert max(encoded) == 32768


WRONG = [None, 3, "x", [], [[]], {}, [None], [3], [{}], [{"type": None}], {"type": "function"}, [{"type": []}]]
FIELDS = [
    (RESPONSES, "tools"), (RESPONSES, "tool_choice"), (RESPONSES, "text"), (RESPONSES, "input"),
    (MESSAGES, "tools"), (MESSAGES, "tool_choice"), (MESSAGES, "messages"), (CHAT, "tools"), (CHAT, "tool_choice"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "field"), FIELDS)
def test_no_value_of_a_field_is_a_500(server: Live, path: str, field: str) -> None:
    good = bodies(nested(1))[path] | {"model": NAME}
    for value in WRONG:
        answer = post(server, path, json=good | {field: value})
        assert answer.status_code < 500, (value, answer.text)


def mutated(value: Any, source: random.Random) -> Any:
    """The value with some of its parts replaced."""
    if source.random() < 0.015:
        return source.choice(WRONG)
    if isinstance(value, dict):
        return {name: mutated(own, source) for name, own in value.items() if source.random() > 0.01}
    if isinstance(value, list):
        return [mutated(own, source) for own in value for _ in range(source.choice((0, 2, *(1,) * 40)))]
    return value


@pytest.mark.long
def test_random_changes_of_conversations_with_tools_are_no_500(server: Live, held: int) -> None:
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"a": {}}'}
    output = {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "2"}]}
    use = {"type": "tool_use", "id": "1", "name": "f", "input": {"a": {}}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "2"}], "is_error": True}
    spoken = {
        RESPONSES: {"input": [HELLO, call, output], "tool_choice": {"type": "function", "name": "f"}},
        MESSAGES: {
            "messages": [HELLO, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}],
            "tool_choice": {"type": "tool", "name": "f"},
        },
    }
    source = random.Random(0)
    taken = 0
    for path, more in spoken.items():
        for _ in range(60):
            good = bodies(nested(1))[path] | more
            body = {name: mutated(value, source) for name, value in good.items()} | {"model": NAME}
            answer = post(server, path, json=body)
            assert answer.status_code < 500, (body, answer.text)
            taken += answer.status_code == 200
    assert 5 < taken < 115
    assert eventually(lambda: server.held() == held)


@pytest.mark.long
def test_ten_megabytes_in_a_tool_leave_nothing_behind(server: Live, held: int) -> None:
    process, text = psutil.Process(), "w" * (10 << 20)
    schema = {"type": "object", "properties": {"a": {"type": "string", "description": text}}}
    for round_ in range(3):
        for path, body in bodies(schema).items():
            assert post(server, path, json=body | {"model": NAME}).status_code == 400
        if round_ == 0:
            before = process.memory_info().rss
    assert process.memory_info().rss - before < 200 << 20
    assert eventually(lambda: server.held() == held)


HEADERS = {
    "many": "".join(f"X-{place}: a\r\n" for place in range(2000)),
    "a long one": f"X-Long: {'a' * 200_000}\r\n",
    "no UTF-8": "X-Bytes: \udcff\udcfe\r\nAuthorization: Bearer \udcff\r\n",
    "two lengths": "Content-Length: 5\r\nContent-Length: 6\r\n",
    "a negative length": "Content-Length: -1\r\n",
    "a length of no digits": "Content-Length: 0x10\r\n",
    "two codings": "Transfer-Encoding: chunked, chunked\r\nContent-Length: 3\r\n",
    "a type of nothing": "Content-Type: \r\nContent-Length: 0\r\n",
    "an origin of nothing": "Origin: null\r\nContent-Length: 0\r\n",
}


@pytest.mark.parametrize("name", HEADERS)
def test_no_header_is_a_500(server: Live, name: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n{HEADERS[name]}Connection: close\r\n\r\n"
        try:
            connection.sendall(head.encode(errors="surrogateescape"))
            told = connection.recv(1000)
        except (ConnectionError, TimeoutError):
            told = b""  # hung up on
    assert told == b"" or told.split()[1].startswith(b"4"), told
    body = json.dumps(bodies({})[CHAT] | {"model": NAME}).encode()
    answer = post(server, CHAT, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
