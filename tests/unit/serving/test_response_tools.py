"""/v1/responses: tools and structured output, through OpenAI's own client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pydantic
import pytest
from tests.json_schemas import fits
from tests.unit.serving.live import NAME, Live
from tests.unit.serving.test_tool_calls import ADD, FIND, SCHEMAS

pytest.importorskip("llguidance")

TOOLS: list[Any] = [
    {"type": "function", "name": "add", "description": "Adds.", "parameters": ADD, "strict": True},
    {"type": "function", "name": "find.it", "parameters": FIND, "strict": None},
    {"type": "function", "name": "now"},
]


CALL = {"type": "function_call", "call_id": "1", "name": "now", "arguments": "{}"}


class Sum(pydantic.BaseModel):
    """What a structured answer holds."""

    first: bool
    second: bool | None = None


def client(server: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def options(**fields: Any) -> Any:
    return {"model": NAME, "input": "hello", "tools": TOOLS, "temperature": 0, "max_output_tokens": 400} | fields


def check(call: Any) -> None:
    assert call.type == "function_call" and call.status == "completed"
    assert fits(json.loads(call.arguments), SCHEMAS[call.name])


def test_required_calls_are_items_that_fit_their_schema(any_server: Live) -> None:
    answer = client(any_server).responses.create(**options(tool_choice="required", parallel_tool_calls=False))
    (call,) = answer.output
    check(call)
    assert answer.status == "completed" and answer.output_text == ""
    assert answer.tool_choice == "required" and answer.parallel_tool_calls is False
    assert [(tool.name, tool.parameters) for tool in answer.tools] == [("add", ADD), ("find.it", FIND), ("now", None)]


def test_a_named_function_is_called_once(hermes: Live) -> None:
    choice = {"type": "function", "name": "find.it"}
    answer = client(hermes).responses.create(**options(tool_choice=choice))
    (call,) = answer.output
    check(call)
    assert call.name == "find.it" and answer.tool_choice.name == "find.it"


def test_an_answer_without_a_call_is_a_message(any_server: Live) -> None:
    free = client(any_server).responses.create(**options(max_output_tokens=30))
    (message,) = free.output
    assert message.type == "message" and free.output_text
    plain = client(any_server).responses.create(**options(max_output_tokens=30, tool_choice="none"))
    without = client(any_server).responses.create(**options(max_output_tokens=30, tools=[]))
    assert plain.output_text == without.output_text and plain.usage.input_tokens == without.usage.input_tokens


def test_the_events_of_calls_end_with_the_whole(any_server: Live) -> None:
    asked = options(tool_choice="required", temperature=1.0, top_p=0.9, max_output_tokens=1500)
    events = list(client(any_server).responses.create(**asked, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    final = events[-1].response
    assert events[-1].type in ("response.completed", "response.incomplete") and final.output
    for place, call in enumerate(final.output):
        own = [event for event in events if getattr(event, "output_index", None) == place]
        assert own[0].type == "response.output_item.added" and own[0].item.arguments == ""
        assert own[0].item.call_id == call.call_id and own[0].item.name == call.name
        deltas = [event for event in own if event.type == "response.function_call_arguments.delta"]
        assert {event.item_id for event in deltas} == {call.id}
        done, last = own[-2:]
        assert "".join(event.delta for event in deltas) == call.arguments == done.arguments
        assert done.type == "response.function_call_arguments.done" and last.item == call
    assert len({call.id for call in final.output}) == len(final.output)


def test_a_call_that_the_limit_cuts_is_incomplete(hermes: Live) -> None:
    choice = {"type": "function", "name": "add"}
    whole = client(hermes).responses.create(**options(tool_choice=choice))
    limit = whole.usage.output_tokens - 20
    cut = client(hermes).responses.create(**options(tool_choice=choice, max_output_tokens=limit))
    assert cut.status == "incomplete" and cut.output[0].status == "incomplete"
    assert whole.output[0].arguments.startswith(cut.output[0].arguments)


def test_calls_and_outputs_go_back_to_the_template(hermes: Live) -> None:
    seen: list[Any] = []
    model = hermes.service.model
    encode = model.encode_chat
    model.encode_chat = lambda messages, **more: seen.append((messages, more)) or encode(messages, **more)
    try:
        first = client(hermes).responses.create(**options(tool_choice="required", max_output_tokens=1000))
        results = [
            {"type": "function_call_output", "call_id": call.call_id, "output": f"result {place}"}
            for place, call in enumerate(first.output)
        ]
        items = [{"role": "user", "content": "hello"}, *[item.model_dump() for item in first.output], *results]
        client(hermes).responses.create(**options(input=items, max_output_tokens=5))
    finally:
        del model.encode_chat
    messages, more = seen[1]
    assert [message["role"] for message in messages] == ["user", "assistant"] + ["tool"] * len(results)
    calls = messages[1]["tool_calls"]
    assert [call["id"] for call in calls] == [call.call_id for call in first.output]
    assert calls[0]["function"]["arguments"] == json.loads(first.output[0].arguments)
    assert messages[2] == {"role": "tool", "tool_call_id": calls[0]["id"], "content": "result 0"}
    assert more["tools"][0]["function"] == {"name": "add", "description": "Adds.", "parameters": ADD}
    assert more["tools"][2]["function"] == {"name": "now"}


def test_a_message_and_its_calls_are_one_message_of_the_template(hermes: Live) -> None:
    from thrifty.serving.openai.responses.input_items import conversation

    call = {"type": "function_call", "call_id": "c1", "name": "now", "arguments": "{}"}
    said = {"role": "assistant", "content": [{"type": "output_text", "text": "Wait."}]}
    output = {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "noon"}]}
    told = conversation([{"role": "user", "content": "when?"}, said, call, output])
    assert [message["role"] for message in told] == ["user", "assistant", "tool"]
    assert told[1]["content"] == "Wait." and told[1]["tool_calls"][0]["function"] == {"name": "now", "arguments": {}}
    assert told[2]["content"] == "noon"


def test_a_structured_answer_is_parsed_by_the_client(hermes: Live) -> None:
    asked = options(tools=openai.omit, temperature=1.0)
    answer = client(hermes).responses.parse(**asked, text_format=Sum)
    assert isinstance(answer.output_parsed, Sum) and answer.text.format.type == "json_schema"
    with client(hermes).responses.stream(**asked, text_format=Sum) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Sum)


def test_any_json_object(hermes: Live) -> None:
    asked = options(tools=openai.omit, text={"format": {"type": "json_object"}}, max_output_tokens=1000)
    answer = client(hermes).responses.create(**asked)
    assert answer.output_text.startswith("{")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "name": "a", "parameters": {"type": "array"}}]}, "tools.0.parameters"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "gone"}}, "tool_choice"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "text", "name": "a"}}}, "text.format.name"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"input": [{"type": "reasoning"}]}, "input.0.type"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input.0.call_id"),
        ({"input": [CALL | {"arguments": "{"}]}, "input.0.arguments"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": "2"}]}, "input.0.call_id"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(hermes: Live, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client(hermes).responses.create(**options(**fields))
    assert refused.value.param == param
