"""/v1/responses: OpenAI's Responses API."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.serving.live import NAME, Live, chat_body, post

PATH = "/v1/responses"
openai = pytest.importorskip("openai", reason="openai is not installed: pip install openai")


@pytest.fixture(scope="module")
def client(server: Live) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def options(**fields: Any) -> dict[str, Any]:
    return {"model": NAME, "input": "Tell me of rivers.", "temperature": 0, "max_output_tokens": 12} | fields


def test_a_response_answers_as_a_chat_does(server: Live, client: Any) -> None:
    answer = client.responses.create(**options(instructions="Be brief."))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me of rivers."}]
    chat = post(server, "/v1/chat/completions", json=chat_body(messages=messages, max_tokens=12)).json()
    assert answer.output_text == chat["choices"][0]["message"]["content"]
    assert (answer.object, answer.status, answer.store) == ("response", "incomplete", False)
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage.output_tokens == 12 and answer.usage.input_tokens == chat["usage"]["prompt_tokens"]


def test_an_answer_goes_back_in_as_it_came(client: Any) -> None:
    first = client.responses.create(**options())
    spoken = [
        {"role": "user", "content": [{"type": "input_text", "text": "Tell me of rivers."}]},
        *[item.model_dump() for item in first.output],
        {"role": "user", "content": "And of seas?"},
    ]
    again = client.responses.create(**options(input=spoken))
    assert again.usage.input_tokens > first.usage.input_tokens + 12


def test_the_events_are_those_of_openai_and_end_with_the_whole(client: Any) -> None:
    events = list(client.responses.create(**options(stream=True)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text == client.responses.create(**options()).output_text


def test_the_clients_own_stream_gathers_it(client: Any) -> None:
    with client.responses.stream(**options(temperature=1, max_output_tokens=3000)) as stream:
        parts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.status == "completed" and final.output_text == "".join(parts)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "mcp"}]}, "tools.0.type"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"truncation": "auto"}, "truncation"),
        ({"input": []}, "input"),
        ({"input": [{"type": "computer_call", "name": "f"}]}, "input.0.type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0.type"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named(server: Live, fields: dict[str, Any], param: str) -> None:
    answer = post(server, PATH, json=options(**fields))
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text
