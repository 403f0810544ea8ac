"""What the server refuses, with which status, and how it says so."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.unit.serving.live import NAME, Live, SlowEngine, chat_body, eventually, get, live, post, tiny_engine

from thrifty.serving.settings import ServerError, ServerSettings

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def locked() -> Iterator[Live]:
    """Needs a key, takes small bodies that come fast, and gives no recipes."""
    options: dict[str, Any] = {"api_keys": ("first", "second"), "request_recipes": False}
    with live(body_bytes=10_000, body_seconds=0.3, **options) as running:
        yield running


def told(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


def keyed(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    ("path", "fields", "param", "near"),
    [
        (CHAT, {"max_token": 3}, "max_token", "max_tokens"),
        (CHAT, {"stream_options": {"include_use": True}}, "stream_options.include_use", "include_usage"),
        (CHAT, {"response_format": {"type": "text", "json_schem": {}}}, "response_format.json_schem", "json_schema"),
        (CHAT, {"thrifty": {"cach": []}}, "thrifty.cach", "cache"),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "f", "parameter": {}}}]},
         "tools.0.function.parameter", "parameters"),
        (CHAT, {"structured_outputs": {"jsn": {}}}, "structured_outputs.jsn", "json"),
        (CHAT, {"messages": [{"role": "user", "contents": "a"}]}, "messages.0.contents", "content"),
        ("/v1/completions", {"ecko": True, "prompt": "a"}, "ecko", "echo"),
        ("/v1/embeddings", {"input": "a", "encoding": "float"}, "encoding", "encoding_format"),
        ("/v1/responses", {"input": "a", "max_tokens": 3}, "max_tokens", "max_output_tokens"),
    ],
)  # fmt: skip
def test_an_unknown_field_is_named_with_the_nearest_known_one(
    server: Live, path: str, fields: dict[str, Any], param: str, near: str
) -> None:
    body = chat_body() if path == CHAT else {"model": NAME}
    error = told(post(server, path, json=body | fields), 400)
    assert error["param"] == param and f"Did you mean '{near}'?" in error["message"], error


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"beam_width": 2}, "beam_width"),
        ({"tools": []}, "tools"),
        ({"audio": {}}, "audio"),
        ({"n": 0}, "n"),
        ({"n": 99}, "n"),
        ({"n": True}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"chunk": 1}}, "stream_options.chunk"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"Beam": 2}, "Beam"),
        ({"stop": 3}, "stop"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"thrifty": {"priority": 3}}, "thrifty.priority"),
    ],
)
def test_a_field_at_fault_is_named(server: Live, fields: dict[str, Any], param: str) -> None:
    error = told(post(server, CHAT, json=chat_body(**fields)), 400)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -1},
        {"top_p": 0},
        {"min_p": 2},
        {"max_tokens": 0},
        {"max_tokens": 10**9},
        {"max_tokens": 10**30},
        {"seed": -1},
        {"logprobs": True, "top_logprobs": 21},
        {"logit_bias": {"99999": 1}},
        {"stop_token_ids": [99999]},
        {"frequency_penalty": 1e999},
        {"temperature": 1e999},
        {"messages": [{"role": "user"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}
            ]
        },
        {"thrifty": {"cache": [{"technique": "nothing"}]}},
        {"thrifty": {"cache": [{"technique": "kivi", "bits": 77}]}},
        {"thrifty": {"cache_memory": "many"}},
        {"thrifty": {"cache_memory": 10}},
    ],
)
def test_a_value_out_of_range_is_a_400_with_a_message(server: Live, fields: dict[str, Any]) -> None:
    content = json.dumps(chat_body(**fields))
    told(post(server, CHAT, content=content, headers={"Content-Type": "application/json"}), 400)
    assert server.held() == 0


def test_a_prompt_beyond_the_context_names_both_numbers(server: Live) -> None:
    error = told(post(server, CHAT, json=chat_body("x" * 5000)), 400)
    assert "4096" in error["message"] and "5019" in error["message"]
    assert error["code"] == "context_length_exceeded"


def test_a_body_that_is_not_said_to_be_json_is_refused(server: Live) -> None:
    error = told(post(server, CHAT, content=json.dumps(chat_body()), headers={"Content-Type": "text/plain"}), 400)
    assert "Content-Type: application/json" in error["message"]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}, "content.0.type"),
        ({"role": "user", "content": [{"type": "text", "text": 3}]}, "content.0.text"),
        ({"role": "user", "content": None}, "content"),
        ({"role": "wizard", "content": "a"}, "role"),
        ({"role": "user", "content": "a", "weight": 0}, "weight"),
    ],
)
def test_a_message_at_fault_is_named(server: Live, message: dict[str, Any], param: str) -> None:
    body = chat_body(messages=[{"role": "user", "content": "a"}, message])
    assert told(post(server, CHAT, json=body), 400)["param"] == f"messages.1.{param}"


def test_parts_of_text_and_a_developer_are_a_text_and_a_system(server: Live) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    in_parts = chat_body(messages=[{"role": "developer", "content": "x"}, {"role": "user", "content": parts}])
    plain = chat_body(messages=[{"role": "system", "content": "x"}, {"role": "user", "content": "hello"}])
    texts = [post(server, CHAT, json=body).json()["choices"][0]["message"] for body in (in_parts, plain)]
    assert texts[0] == texts[1]


def test_what_is_not_there_is_404_and_a_wrong_method_405(server: Live) -> None:
    assert told(post(server, CHAT, json=chat_body(model="gpt-4")), 404)["code"] == "model_not_found"
    assert told(get(server, "/v1/nothing"), 404)["type"] == "not_found_error"
    assert told(get(server, "/v1/models/gpt-4"), 404)["param"] == "model"
    told(get(server, CHAT), 405)


def test_a_key_is_asked_for_everywhere_but_for_health(locked: Live) -> None:
    for path in ("/v1/models", "/metrics", "/version", "/openapi.json", "/nothing"):
        assert told(get(locked, path), 401)["code"] == "invalid_api_key"
        told(get(locked, path, headers=keyed("firs")), 401)
    told(post(locked, CHAT, json=chat_body()), 401)
    assert get(locked, "/health").status_code == 200
    assert post(locked, CHAT, json=chat_body(), headers=keyed("second")).status_code == 200
    assert post(locked, CHAT, json=chat_body(), headers={"x-api-key": "first"}).status_code == 200


def test_a_strange_key_is_a_401(locked: Live) -> None:
    told(get(locked, "/v1/models", headers={"Authorization": "Basic first"}), 401)
    told(get(locked, "/v1/models", headers={"Authorization": b"Bearer \xff\xfe\xe9"}), 401)


def test_pages_of_other_sites_are_refused(server: Live) -> None:
    error = told(post(server, CHAT, json=chat_body(), headers={"Origin": "https://evil.example"}), 403)
    assert error["code"] == "wrong_origin"
    assert told(get(server, "/version", headers={"Host": "evil.example"}), 403)["code"] == "wrong_host"
    own = {"Origin": server.url}
    assert post(server, CHAT, json=chat_body(), headers=own).status_code == 200
    assert "access-control-allow-origin" not in post(server, CHAT, json=chat_body(), headers=own).headers


def test_recipes_that_the_operator_turned_off_are_a_403(locked: Live) -> None:
    body = chat_body(thrifty={"cache": [{"technique": "kivi", "bits": 2}]})
    assert told(post(locked, CHAT, json=body, headers=keyed("first")), 403)["param"] == "thrifty.cache"


def test_a_large_body_is_a_413_told_or_not(locked: Live) -> None:
    body = json.dumps(chat_body("x" * 20_000)).encode()
    assert told(post(locked, CHAT, content=body, headers=keyed("first")), 413)["code"] == "body_too_large"
    parts = (body[first : first + 1000] for first in range(0, len(body), 1000))
    assert told(post(locked, CHAT, content=parts, headers=keyed("first")), 413)["code"] == "body_too_large"


def test_a_body_that_does_not_come_is_a_408(locked: Live) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", locked.port, timeout=5)
    connection.putrequest("POST", CHAT)
    for name, value in (keyed("first") | {"Content-Length": "500"}).items():
        connection.putheader(name, value)
    connection.endheaders()
    connection.send(b'{"model"')
    answer = connection.getresponse()
    assert answer.status == 408 and json.loads(answer.read())["error"]["code"] == "timeout"


def test_a_full_queue_is_a_429_that_says_when_to_come_again() -> None:
    with live(lambda: tiny_engine(SlowEngine, batch=1, queue=1)) as running:
        body = chat_body(max_tokens=80, ignore_eos=True)
        threads = [threading.Thread(target=post, args=(running, CHAT), kwargs={"json": body}) for _ in range(2)]
        threads[0].start()
        assert eventually(lambda: running.running() == 1)
        threads[1].start()
        assert eventually(lambda: running.running() == 2)
        answer = post(running, CHAT, json=body)
        error = told(answer, 429)
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        assert int(answer.headers["Retry-After"]) >= 1
        for thread in threads:
            thread.join()
        assert post(running, CHAT, json=chat_body()).status_code == 200


def test_until_the_model_is_loaded_everything_is_a_503() -> None:
    go = threading.Event()

    def late() -> Any:
        go.wait(20)
        return tiny_engine()

    with live(late, wait=False) as running:
        assert eventually(lambda: _answers(running), 5)
        answer = get(running, "/health")
        assert told(answer, 503)["code"] == "loading" and answer.headers["Retry-After"] == "1"
        assert told(post(running, CHAT, json=chat_body()), 503)["code"] == "loading"
        assert told(post(running, "/tokenize", json={"prompt": "a"}), 503)["code"] == "loading"
        assert get(running, "/metrics").status_code == 200
        assert get(running, "/v1/models").json()["data"][0]["id"] == NAME
        go.set()
        running.wait()
        assert get(running, "/health").json() == {"status": "ok"}


def _answers(running: Live) -> bool:
    try:
        socket.create_connection(("127.0.0.1", running.port), 1).close()
    except OSError:
        time.sleep(0.01)
        return False
    return True


def test_an_address_that_others_reach_needs_a_key_or_a_word() -> None:
    with pytest.raises(ServerError, match="no API key is set"):
        ServerSettings(host="0.0.0.0").check()
    ServerSettings(host="0.0.0.0", public=True).check()
    ServerSettings(host="0.0.0.0", api_keys=("key",)).check()
    with pytest.raises(ServerError, match="empty"):
        ServerSettings(api_keys=("",)).check()


@pytest.mark.parametrize("host", ["127.0.0.1:{port}/health?", "localhost/page/", "127.0.0.1/health#"])
def test_a_host_that_spells_another_path_opens_nothing(locked: Live, host: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", locked.port, timeout=5)
    connection.putrequest("GET", "/v1/models", skip_host=True)
    connection.putheader("Host", host.format(port=locked.port))
    connection.endheaders()
    assert connection.getresponse().status in (400, 401, 403)


def test_anthropics_clients_are_told_the_nearest_name_too(server: Live) -> None:
    answer = post(server, "/v1/messages", json=chat_body(stop_sequence=["a"]))
    assert answer.status_code == 400 and "Did you mean 'stop_sequences'?" in answer.json()["error"]["message"]
