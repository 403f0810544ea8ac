"""Tools through OpenAI's client, for every format: required, named, automatic, streamed, refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from tests.json_schemas import fits
from tests.unit.serving.live import NAME, Live, live
from tests.unit.serving.tool_models import never_ending_bias, opening_bias, tool_engine

pytest.importorskip("llguidance")

KINDS = ("hermes", "mistral", "llama")
ADD = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "sign": {"enum": ["+", "-"]}},
    "required": ["a", "sign"],
    "additionalProperties": False,
}
FIND = {
    "type": "object",
    "properties": {"where": {"$ref": "#/$defs/place"}},
    "required": ["where"],
    "additionalProperties": False,
    "$defs": {"place": {"enum": ["north", "south"]}},
}
FOUND = {**FIND, "properties": {"where": {"enum": ["north", "south"]}}}
SCHEMAS: dict[str, dict[str, Any]] = {"add": ADD, "find.it": FOUND, "now": {"type": "object", "properties": {}}}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": ADD, "strict": True}},
    {"type": "function", "function": {"name": "find.it", "parameters": FIND}},
    {"type": "function", "function": {"name": "now"}},
]
HELLO: list[Any] = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module", params=KINDS)
def serving(request: pytest.FixtureRequest) -> Iterator[tuple[str, Live]]:
    with live(lambda: tool_engine(request.param)) as running:
        yield request.param, running


def client(server: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def ask(server: Live, **fields: Any) -> Any:
    options = {"messages": HELLO, "tools": TOOLS, "max_tokens": 400, "temperature": 0, **fields}
    return client(server).chat.completions.create(model=NAME, **options)


def check(call: Any, names: Any = SCHEMAS) -> None:
    assert call.type == "function" and call.id and call.function.name in names
    assert fits(json.loads(call.function.arguments), SCHEMAS[call.function.name])


def test_required_calls_fit_their_schema(serving: tuple[str, Live]) -> None:
    for seed in range(6):
        answer = ask(serving[1], tool_choice="required", temperature=1.0, seed=seed, parallel_tool_calls=False)
        (choice,) = answer.choices
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        assert len(choice.message.tool_calls) == 1
        check(choice.message.tool_calls[0])


def test_a_named_function_is_called_once(serving: tuple[str, Live]) -> None:
    for name in SCHEMAS:
        answer = ask(serving[1], tool_choice={"type": "function", "function": {"name": name}}, temperature=1.0, seed=1)
        (call,) = answer.choices[0].message.tool_calls
        check(call, [name])


def test_an_answer_that_opens_a_call_finishes_it(serving: tuple[str, Live]) -> None:
    kind, server = serving
    answer = ask(server, logit_bias=opening_bias(kind), parallel_tool_calls=False)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls", choice
    (call,) = choice.message.tool_calls
    check(call)


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_one_call_is_all_where_the_model_never_ends(serving: tuple[str, Live], choice: str) -> None:
    kind, server = serving
    bias = opening_bias(kind) | never_ending_bias(kind)
    more = {"tool_choice": choice, "logit_bias": bias, "max_tokens": 300}
    if kind == "hermes":  # the list of the one ends with a "]", and of the other there is never more than one
        (free,) = ask(server, **more).choices
        assert len(free.message.tool_calls) > 1
    (single,) = ask(server, parallel_tool_calls=False, **more).choices
    assert single.message.content is None and single.finish_reason == "tool_calls"
    (call,) = single.message.tool_calls
    check(call)


def test_an_answer_that_opens_none_is_text(serving: tuple[str, Live]) -> None:
    free = ask(serving[1], max_tokens=30)
    (choice,) = free.choices
    assert choice.message.tool_calls is None and choice.message.content
    assert choice.finish_reason in ("length", "stop")


def test_none_leaves_the_tools_out(hermes: Live) -> None:
    plain = client(hermes).chat.completions.create(model=NAME, messages=HELLO, max_tokens=30, temperature=0)
    none = ask(hermes, tool_choice="none", max_tokens=30)
    assert none.choices[0].message.content == plain.choices[0].message.content
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens


def test_a_stream_gives_the_same_calls(serving: tuple[str, Live]) -> None:
    options: dict[str, Any] = {"tool_choice": "required", "temperature": 1.0, "seed": 5, "n": 2, "max_tokens": 1000}
    whole = ask(serving[1], **options)
    calls: dict[tuple[int, int], list[Any]] = {}
    reasons: dict[int, str] = {}
    for chunk in ask(serving[1], stream=True, **options):
        for choice in chunk.choices:
            for call in choice.delta.tool_calls or ():
                if call.id:
                    calls[choice.index, call.index] = [call.function.name, ""]
                calls[choice.index, call.index][1] += call.function.arguments
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    for choice in whole.choices:
        assert reasons[choice.index] == choice.finish_reason
        own = [calls[key] for key in sorted(calls) if key[0] == choice.index]
        assert own == [[call.function.name, call.function.arguments] for call in choice.message.tool_calls]


def test_several_calls_of_one_answer(hermes: Live) -> None:
    seen, tokenizer = set(), hermes.service.model.require_tokenizer()
    (line,) = tokenizer.encode("\n")  # comes between two calls, or the answer ends
    for seed in range(4):
        answer = ask(hermes, tool_choice="required", temperature=1.5, seed=seed, max_tokens=2000, logit_bias={line: 8})
        calls = answer.choices[0].message.tool_calls
        seen.add(len(calls) > 1)
        for call in calls:
            check(call)
        assert len({call.id for call in calls}) == len(calls)
    assert True in seen


async def _streamed_text(server: Live) -> str:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as own:
        stream = await own.chat.completions.create(
            model=NAME, messages=HELLO, tools=TOOLS, max_tokens=30, temperature=0, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def test_text_of_a_stream_with_tools(serving: tuple[str, Live]) -> None:
    whole = ask(serving[1], max_tokens=30).choices[0].message.content
    assert asyncio.run(_streamed_text(serving[1])) == whole


def test_the_template_sees_tools_calls_and_results(hermes: Live) -> None:
    seen: list[Any] = []
    model = hermes.service.model
    encode = model.encode_chat
    model.encode_chat = lambda messages, **options: seen.append((messages, options)) or encode(messages, **options)
    try:
        call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "sign": "+"}'}}
        messages = [
            *HELLO,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "2"},
        ]
        assert ask(hermes, messages=messages, max_tokens=5).usage.prompt_tokens > 100
    finally:
        del model.encode_chat
    ((messages, options),) = seen
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1, "sign": "+"}
    assert messages[2] == {"role": "tool", "tool_call_id": "call_1", "content": "2"}
    assert options["tools"][0]["function"] == {"name": "add", "description": "Adds.", "parameters": ADD}
    assert options["tools"][2] == {"type": "function", "function": {"name": "now"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": None, "tool_choice": "auto"}, "tool_choice"),
        ({"tools": None, "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools"),
        ({"tools": [{"type": "retrieval"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a", "x": 1}}]}, "tools.0.function.x"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]},
            "tools.0.function.parameters",
        ),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"not": {}}}}]}, "tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "gone"}}}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"extra_body": {"functions": []}}, "functions"),
        ({"messages": [{"role": "tool", "content": "1"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "user", "content": "1", "tool_calls": []}]}, "messages.0.tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages.0.tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages.0.tool_calls.0"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "a", "arguments": "{"}}],
                    }
                ]
            },
            "messages.0.tool_calls.0.function.arguments",
        ),
    ],
)
def test_what_is_wrong_is_named(hermes: Live, fields: dict[str, Any], param: str) -> None:
    given = {name: openai.omit if value is None else value for name, value in fields.items()}
    with pytest.raises(openai.BadRequestError) as refused:
        ask(hermes, **given)
    assert refused.value.param == param


def test_a_template_without_tools_is_said() -> None:
    with live(lambda: tool_engine("plain")) as server, pytest.raises(openai.BadRequestError) as refused:
        ask(server)
    assert refused.value.param == "tools" and "hermes, mistral, llama" in str(refused.value)
