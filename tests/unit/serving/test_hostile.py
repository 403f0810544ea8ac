"""Bodies that nobody sends by mistake: no 500, and no memory that stays."""

from __future__ import annotations

import json
import random
import socket
from typing import Any

import psutil
import pytest
from tests.unit.serving.live import Live, chat_body, eventually, live, post

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}


def fields(text: str) -> bytes:
    """A chat's body with these more fields, spelled as they are."""
    return b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2, ' + text.encode() + b"}"


def message(text: str) -> bytes:
    """A chat's body with this message."""
    return b'{"model": "tiny", "max_tokens": 2, "messages": [' + text.encode() + b"]}"


BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "bad UTF-8": b'{"model": "tiny", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "half a surrogate": message('{"role": "user", "content": "\\ud800"}'),
    "a surrogate in stop": fields('"stop": "\\udc00"'),
    "a surrogate as a field": b'{"\\ud800": 1}',
    "a surrogate as a model": b'{"model": "\\ud800", "messages": [{"role": "user", "content": "a"}]}',
    "UTF-16": '{"model": "tiny"}'.encode("utf-16"),
    "NUL": b"\x00" * 100,
    "deep lists": b'{"model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "deep content": message('{"role": "user", "content": ' + "[" * 500 + "]" * 500 + "}"),
    "long number": fields('"seed": ' + "9" * 6000),
    "large seed": fields('"seed": ' + "9" * 40),
    "NaN": fields('"temperature": NaN'),
    "NaN as a bias": fields('"logit_bias": {"3": NaN}'),
    "infinity": fields('"top_p": -Infinity'),
    "1e400": fields('"presence_penalty": 1e400'),
    "NaN in a template": fields('"chat_template_kwargs": {"a": NaN}'),
    "a bias of 5000 digits": fields('"logit_bias": {"' + "9" * 5000 + '": 1}'),
    "other digits as a bias": fields('"logit_bias": {"٣": 1}'),
    "twice a key": fields('"model": 3'),
    "content of a wrong type": message('{"role": "user", "content": {"a": 1}}'),
    "role of a wrong type": message('{"role": ["user"], "content": "a"}'),
    "a template's own names": fields('"chat_template_kwargs": {"messages": [], "add_generation_prompt": 3}'),
}


PATHS = (
    CHAT, "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/v1/embeddings",
    "/v1/rerank", "/tokenize", "/detokenize",
)  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_no_body_is_a_500(server: Live, name: str) -> None:
    for path in PATHS:
        answer = post(server, path, content=BODIES[name], headers=JSON)
        assert answer.status_code < 500, answer.text
        json.loads(answer.content)
    assert eventually(lambda: server.held() == 0)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/v1/responses", "/tokenize", "/detokenize"])
@pytest.mark.parametrize(
    "value", ["\ud800", "", [], [[]], [-1], [2**40], [10**30], [None], [True], {}, None, 1.5, "x\x00y"]
)
def test_no_prompt_is_a_500(server: Live, path: str, value: Any) -> None:
    name = {"/detokenize": "tokens", "/v1/embeddings": "input", "/v1/responses": "input"}.get(path, "prompt")
    content = json.dumps({"model": "tiny", name: value}).encode()
    answer = post(server, path, content=content, headers=JSON)
    assert answer.status_code < 500, answer.text


@pytest.mark.parametrize(
    "path", ["/v1/models/%ff%fe", "/v1/models/%00", "/%2e%2e/etc", "/v1/models/" + "x" * 5000, "/metrics?a=%ff"]
)
def test_no_path_is_a_500(server: Live, path: str) -> None:
    answer = server.client.get(server.url + path)
    assert answer.status_code < 500, answer.text


@pytest.mark.long
def test_ten_megabytes_of_prompt_are_refused_and_leave_nothing_behind(server: Live) -> None:
    body = json.dumps(chat_body("w" * (10 << 20))).encode()
    process = psutil.Process()
    assert post(server, CHAT, content=body, headers=JSON).status_code == 400
    before = process.memory_info().rss
    for _ in range(3):
        assert post(server, CHAT, content=body, headers=JSON).status_code == 400
    assert process.memory_info().rss - before < 200 << 20
    assert server.held() == 0


@pytest.mark.parametrize("path", PATHS[:-1])
def test_a_text_far_beyond_the_context_is_refused_by_its_beginning(
    server: Live, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    tokenizer = server.service.model.require_tokenizer()
    original = tokenizer.encode

    def encode(text: str, *options: Any, **more: Any) -> list[int]:
        encoded.append(len(text))
        return list(original(text, *options, **more))

    monkeypatch.setattr(tokenizer, "encode", encode)
    text = "v" * 2_000_000
    told = [{"role": "user", "content": text}]
    given: dict[str, Any] = {
        "/v1/messages": {"messages": told, "max_tokens": 3}, "/v1/messages/count_tokens": {"messages": told},
        CHAT: {"messages": told}, "/v1/responses": {"input": text}, "/v1/embeddings": {"input": text},
        "/v1/rerank": {"query": "a", "documents": [text]},
    }  # fmt: skip
    answer = post(server, path, json={"model": "tiny"} | given.get(path, {"prompt": text}))
    assert answer.status_code == 400 and "first 32768 of the prompt's 2000000" in answer.text
    assert max(encoded) == 32768


def test_what_is_too_long_only_together_is_refused_by_its_beginning(
    server: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    tokenizer = server.service.model.require_tokenizer()
    original = tokenizer.encode

    def encode(text: str, *options: Any, **more: Any) -> list[int]:
        encoded.append(len(text))
        return list(original(text, *options, **more))

    monkeypatch.setattr(tokenizer, "encode", encode)
    told = [{"role": "user", "content": "v" * 1000}] * 500
    for path, body in {CHAT: {}, "/v1/messages": {"max_tokens": 3}}.items():
        answer = post(server, path, json={"model": "tiny", "messages": told} | body)
        assert answer.status_code == 400 and "first 32768 of the prompt's 500000" in answer.text
    assert max(encoded) == 32768


LONG = "x" * 300_000


@pytest.mark.parametrize(
    "fields",
    [
        {LONG: 1}, {"messages": [{"role": "user", "content": "a", LONG: 1}]}, {"model": LONG},
        {"thrifty": {"cache": [{"technique": LONG}]}}, {"thrifty": {"cache": [{"technique": "kivi", LONG: 1}]}},
        {"thrifty": {"cache": [{"technique": "kivi", "bits": LONG}]}}, {"thrifty": {"decoding": [{"technique": LONG}]}},
    ],
)  # fmt: skip
def test_an_error_does_not_send_back_all_that_was_sent(server: Live, fields: dict[str, Any]) -> None:
    answer = post(server, CHAT, json=chat_body(**fields))
    assert answer.status_code in (400, 404) and len(answer.text) < 5000
    assert "xxx" in answer.json()["error"]["message"]


def test_a_wrong_name_of_megabytes_is_compared_by_its_beginning(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    def close(name: str, *_: Any, **options: Any) -> list[str]:
        compared.append(len(name))
        return []

    monkeypatch.setattr("thrifty.errors.difflib.get_close_matches", close)
    assert post(server, CHAT, json=chat_body(model="m" * 1_000_000)).status_code == 404
    tables = [{"technique": "t" * 1_000_000}]
    assert post(server, CHAT, json=chat_body(thrifty={"cache": tables})).status_code == 400
    assert len(compared) == 2 and max(compared) <= 1000


def test_uploads_that_break_off_are_forgotten(server: Live) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: 1000000\r\n\r\n".encode()
    for part in (
        b"",
        b"POST ",
        head[:40],
        head,
        head + b"{" * 5000,
        b"\x16\x03\x01\x00\xff" * 10,
        b"GET " + b"/" * 100_000,
    ):
        connection = socket.create_connection(("127.0.0.1", server.port), 5)
        connection.sendall(part)
        connection.close()
    assert post(server, CHAT, json=chat_body()).status_code == 200
    assert server.held() == 0


@pytest.mark.long
def test_random_changes_of_a_good_body_are_no_500(server: Live) -> None:
    random_ = random.Random(0)
    good = json.dumps(chat_body(top_p=0.5, stop=["a"], seed=3, logit_bias={"5": 1.5}, max_tokens=2)).encode()
    for _ in range(150):
        changed = bytearray(good)
        for _ in range(random_.randint(1, 4)):
            changed[random_.randrange(len(changed))] = random_.randrange(256)
        answer = post(server, CHAT, content=bytes(changed), headers=JSON)
        assert answer.status_code < 500, bytes(changed)
    assert eventually(lambda: server.held() == 0)


def test_many_slow_connections_do_not_keep_others_out() -> None:
    with live(body_seconds=0.5) as running:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\nContent-Length: 1000\r\n\r\n".encode()
        lorises = [socket.create_connection(("127.0.0.1", running.port), 5) for _ in range(100)]
        for loris in lorises:
            loris.sendall(head + b"{")
        assert post(running, CHAT, json=chat_body()).status_code == 200
        assert lorises[0].recv(100).startswith(b"HTTP/1.1 408")
        for loris in lorises:
            loris.close()
