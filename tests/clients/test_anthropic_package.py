"""The `anthropic` package: messages, streams, tools."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest
from tests.clients.conftest import Served
from tests.clients.test_openai_package import ABOUT, RAIN, WEATHER

TOOLS: Any = [{"name": "get_weather", "description": ABOUT, "input_schema": WEATHER}]


@pytest.fixture(scope="module")
def client(server: Served) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=server.key, max_retries=0, timeout=280)


def asked(server: Served, **fields: Any) -> dict[str, Any]:
    hello = [{"role": "user", "content": "Say hello."}]
    return {"model": server.model, "messages": hello, "max_tokens": 16, "extra_body": {"temperature": 0}} | fields


def test_a_message_whole_and_streamed(server: Served, client: anthropic.Anthropic) -> None:
    whole = client.messages.create(**asked(server, system="Be brief."))
    with client.messages.stream(**asked(server, system="Be brief.")) as stream:
        text = "".join(stream.text_stream)
    assert text and text == whole.content[0].text
    assert client.messages.count_tokens(model=server.model, messages=[RAIN]).input_tokens > 5


def test_a_tool_is_used_and_its_result_read(server: Served, client: anthropic.Anthropic) -> None:
    fields = {"messages": [RAIN], "tools": TOOLS, "tool_choice": {"type": "any"}, "max_tokens": 80}
    with client.messages.stream(**asked(server, **fields)) as stream:
        first = stream.get_final_message()
    (use,) = first.content
    assert first.stop_reason == "tool_use" and use.input == {"city": "Paris", "unit": "celsius"}
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "17 degrees, rain"}
    spoken = [RAIN, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    fields |= {"messages": spoken, "tool_choice": {"type": "none"}}
    assert "17" in client.messages.create(**asked(server, **fields)).content[0].text


def test_errors_are_the_clients_own(server: Served, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**asked(server, model="gone"))
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=server.url, api_key="wrong").messages.create(**asked(server))
