"""/v1/messages: tools, by hand and through Anthropic's own client."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.json_schemas import fits
from tests.unit.serving.live import NAME, Live, post
from tests.unit.serving.test_tool_calls import ADD, FIND, SCHEMAS

from thrifty.serving.anthropic.conversation import conversation

pytest.importorskip("llguidance")
anthropic = pytest.importorskip("anthropic", reason="anthropic is not installed: pip install anthropic")

PATH = "/v1/messages"
TOOLS: list[Any] = [
    {"name": "add", "description": "Adds.", "input_schema": ADD},
    {"name": "find.it", "input_schema": FIND, "type": "custom"},
    {"name": "now", "input_schema": {"type": "object", "properties": {}, "additionalProperties": False}},
]
HELLO = {"role": "user", "content": "hello"}


def client(server: Live) -> Any:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


def options(**fields: Any) -> dict[str, Any]:
    sampling = {"temperature": fields.pop("temperature", 0)}
    return {"model": NAME, "messages": [HELLO], "tools": TOOLS, "max_tokens": 400, "extra_body": sampling} | fields


def test_any_calls_a_tool_whose_input_fits_its_schema(any_server: Live) -> None:
    for seed in range(3):
        choice = {"type": "any", "disable_parallel_tool_use": True}
        message = client(any_server).messages.create(**options(tool_choice=choice, temperature=0.1 * seed))
        (use,) = message.content
        assert (use.type, message.stop_reason) == ("tool_use", "tool_use") and use.id
        assert fits(use.input, SCHEMAS[use.name])


def test_a_named_tool_is_used_once(hermes: Live) -> None:
    message = client(hermes).messages.create(**options(tool_choice={"type": "tool", "name": "find.it"}))
    (use,) = message.content
    assert use.name == "find.it" and fits(use.input, SCHEMAS["find.it"])


def test_auto_may_answer_with_text_and_none_leaves_the_tools_out(hermes: Live) -> None:
    free = client(hermes).messages.create(**options(max_tokens=30))
    assert [block.type for block in free.content] == ["text"]
    none = client(hermes).messages.create(**options(max_tokens=30, tool_choice={"type": "none"}))
    plain = client(hermes).messages.create(**options(max_tokens=30, tools=[]))
    assert none.content == plain.content
    counted = [
        client(hermes).messages.count_tokens(model=NAME, messages=[HELLO], tools=tools).input_tokens
        for tools in ([], TOOLS)
    ]
    used = plain.usage.input_tokens + plain.usage.cache_read_input_tokens
    assert counted[0] == used and counted[1] > used + 50


def test_the_stream_of_uses_gathers_to_the_whole(any_server: Live) -> None:
    asked = options(tool_choice={"type": "any"}, temperature=1.0, max_tokens=1500)
    with client(any_server).messages.stream(**asked) as stream:
        events = [event for event in stream if event.type.startswith(("content_block", "message_"))]
        final = stream.get_final_message()
    uses = [block for block in final.content if block.type == "tool_use"]
    assert uses and final.stop_reason in ("tool_use", "max_tokens")
    whole = uses if final.stop_reason == "tool_use" else uses[:-1]
    assert all(fits(use.input, SCHEMAS[use.name]) for use in whole)
    starts = [event.index for event in events if event.type == "content_block_start"]
    stops = [event.index for event in events if event.type == "content_block_stop"]
    assert starts == stops == list(range(len(final.content)))
    parts = [event.delta.partial_json for event in events if event.type == "content_block_delta" and event.index == 0]
    assert json.loads("".join(parts)) == uses[0].input


def test_a_use_that_the_limit_cuts_says_so(hermes: Live) -> None:
    choice = {"type": "tool", "name": "add"}
    whole = client(hermes).messages.create(**options(tool_choice=choice))
    cut = client(hermes).messages.create(**options(tool_choice=choice, max_tokens=whole.usage.output_tokens - 20))
    assert cut.stop_reason == "max_tokens" and cut.content[0].input == {}


def test_uses_and_results_go_back_as_they_came(hermes: Live) -> None:
    first = client(hermes).messages.create(**options(tool_choice={"type": "tool", "name": "add"}))
    result = {"type": "tool_result", "tool_use_id": first.content[0].id, "content": "2"}
    messages = [HELLO, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    again = client(hermes).messages.create(**options(messages=messages, max_tokens=5))
    assert again.usage.input_tokens + again.usage.cache_read_input_tokens > first.usage.input_tokens


def test_a_conversation_with_tools_is_what_a_template_reads() -> None:
    use = {"type": "tool_use", "id": "1", "name": "add", "input": {"a": 1}}
    other = {"type": "tool_use", "id": "2", "name": "now", "input": {}}
    results = [
        {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "2"}], "is_error": False},
        {"type": "tool_result", "tool_use_id": "2", "content": "no clock", "is_error": True},
        {"type": "text", "text": "So?"},
    ]
    said = [{"type": "text", "text": "Let me see."}, use, other]
    told = conversation([HELLO, {"role": "assistant", "content": said}, {"role": "user", "content": results}])
    calls = [
        {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}},
        {"id": "2", "type": "function", "function": {"name": "now", "arguments": {}}},
    ]
    assert told == [
        HELLO,
        {"role": "assistant", "content": "Let me see.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "2"},
        {"role": "tool", "tool_call_id": "2", "content": "Error: no clock"},
        {"role": "user", "content": "So?"},
    ]


def blocks(role: str, *given: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(given)}, HELLO]}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0.type"),
        ({"tools": [TOOLS[2] | {"cache_control": {"type": "ephemeral"}}]}, "tools.0.cache_control"),
        ({"tools": [{"name": "a"}]}, "tools.0.input_schema"),
        ({"tools": [], "tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool", "name": "gone"}}, "gone"),
        (blocks("user", {"type": "tool_use", "id": "1", "name": "a", "input": {}}), "messages.0.content.0.type"),
        (blocks("assistant", {"type": "tool_use", "id": "1", "name": "a", "input": "x"}), "messages.0.content.0.input"),
        (blocks("user", {"type": "tool_result", "tool_use_id": "1"}), "messages.0.content.0.tool_use_id"),
        (blocks("user", {"type": "tool_result", "tool_use_id": "1", "x": 1}), "messages.0.content.0.x"),
        (blocks("user", {"type": "text", "text": "a"}, {"type": "tool_result"}), "messages.0.content.1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(hermes: Live, fields: dict[str, Any], named: str) -> None:
    body = {"model": NAME, "messages": [HELLO], "tools": TOOLS, "max_tokens": 5} | fields
    answer = post(hermes, PATH, json=body)
    assert answer.status_code == 400 and named in answer.json()["error"]["message"], answer.text
