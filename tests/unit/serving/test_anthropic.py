"""/v1/messages: Anthropic's API, by hand and through its own client."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit.serving.live import NAME, Live, chat_body, live, post

PATH = "/v1/messages"


def options(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Tell me of rivers."}]
    return {"model": NAME, "messages": messages, "max_tokens": 12, "temperature": 0} | fields


def events_of(server: Live, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
    answer = post(server, PATH, json=options(stream=True, **fields))
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def chat_text(server: Live, **fields: Any) -> str:
    answer = post(server, "/v1/chat/completions", json=chat_body(max_tokens=12, **fields))
    return str(answer.json()["choices"][0]["message"]["content"])


def test_a_message_answers_as_a_chat_does(server: Live) -> None:
    system = [{"type": "text", "text": "Be brief."}]
    answer = post(server, PATH, json=options(system=system)).json()
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me of rivers."}]
    assert answer["content"] == [{"type": "text", "text": chat_text(server, messages=messages)}]
    assert (answer["type"], answer["role"], answer["stop_reason"]) == ("message", "assistant", "max_tokens")
    used = answer["usage"]
    assert used["output_tokens"] == 12 and used["input_tokens"] + used["cache_read_input_tokens"] > 20


def test_the_events_come_in_anthropics_order(server: Live) -> None:
    events = events_of(server)
    assert all(name == data["type"] for name, data in events)
    names = [name for name, _ in events]
    assert names[:2] == ["message_start", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(names[2:-3]) == {"content_block_delta"}
    text = "".join(data["delta"]["text"] for name, data in events if name == "content_block_delta")
    assert text == post(server, PATH, json=options()).json()["content"][0]["text"]
    assert events[-2][1]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert events[-2][1]["usage"]["output_tokens"] == 12


def test_a_stop_sequence_is_told(server: Live) -> None:
    text = post(server, PATH, json=options()).json()["content"][0]["text"]
    stop = text[4:6]
    answer = post(server, PATH, json=options(stop_sequences=["never", stop])).json()
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", stop)
    assert answer["content"][0]["text"] == text[: text.index(stop)]
    assert events_of(server, stop_sequences=[stop])[-2][1]["delta"]["stop_sequence"] == stop


def test_tokens_are_counted_as_they_are_read(server: Live) -> None:
    body = options(system="Be brief.")
    used = post(server, PATH, json=body).json()["usage"]
    del body["max_tokens"], body["temperature"]
    counted = post(server, f"{PATH}/count_tokens", json=body).json()
    assert counted == {"input_tokens": used["input_tokens"] + used["cache_read_input_tokens"]}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tools": {}}, "tools"),
        ({"max_tokens": None}, "max_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.type"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages.0.content.0.type"),
        ({"system": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]}, "system.0.cache_control"),
    ],
)
def test_errors_have_anthropics_shape_and_name_the_field(server: Live, fields: dict[str, Any], named: str) -> None:
    answer = post(server, PATH, json=options(**fields))
    body = answer.json()
    assert answer.status_code == 400 and set(body) == {"type", "error", "request_id"}
    assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
    assert f"'{named}'" in body["error"]["message"]


def test_errors_that_arise_before_the_endpoint_have_that_shape_too() -> None:
    with live(api_keys=("secret",), body_bytes=1000) as running:
        told = post(running, PATH, json=options())
        assert (told.status_code, told.json()["error"]["type"]) == (401, "authentication_error")
        keyed = {"x-api-key": "secret"}
        assert post(running, PATH, json=options(), headers=keyed).status_code == 200
        other = post(running, PATH, json=options(model="other"), headers=keyed)
        assert (other.status_code, other.json()["error"]["type"]) == (404, "not_found_error")
        large = post(running, PATH, json=options(system="x" * 2000), headers=keyed)
        assert (large.status_code, large.json()["error"]["type"]) == (413, "request_too_large")


def test_anthropics_client_is_content(server: Live) -> None:
    anthropic = pytest.importorskip("anthropic", reason="anthropic is not installed: pip install anthropic")
    client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
    asked = options(extra_body={"temperature": 0})
    del asked["temperature"]
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        assert stream.get_final_message().stop_reason == whole.stop_reason == "max_tokens"
    assert client.messages.count_tokens(model=NAME, messages=asked["messages"]).input_tokens > 20
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**asked | {"model": "other"})
