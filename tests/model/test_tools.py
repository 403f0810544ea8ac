"""Tools and forms of answers on a real model, through OpenAI's client."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from tests.conftest import model_path
from tests.json_schemas import fits, random_schema
from tests.unit.serving.live import NAME, Live, live

from thrifty.api import open_engine

pytest.importorskip("llguidance")
pytestmark = [pytest.mark.model, pytest.mark.timeout(900)]


def _tool(name: str, description: str, **properties: Any) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TEXT, INTEGER = {"type": "string"}, {"type": "integer"}
UNIT = {"enum": ["celsius", "fahrenheit"]}
TOOLS: list[Any] = [
    _tool("get_weather", "Current weather of a city", city=TEXT, unit=UNIT),
    _tool("add", "Add two integers", a=INTEGER, b=INTEGER),
    _tool("multiply", "Multiply two integers", a=INTEGER, b=INTEGER),
    _tool("send_email", "Send an email", to=TEXT, subject=TEXT),
    _tool("set_timer", "Start a timer", minutes=INTEGER),
]
QUESTIONS = {
    "get_weather": [f"What is the weather in {city}?" for city in ("Paris", "Rome", "Oslo", "Lima")],
    "add": [f"What is {a} plus {b}?" for a, b in ((12, 30), (7, 5), (100, 23), (41, 1))],
    "multiply": [f"Multiply {a} by {b}." for a, b in ((12, 3), (7, 5), (10, 23), (4, 11))],
    "send_email": [
        f"Send {name} an email about {what}." for name in ("ann@x.org", "bo@y.com") for what in ("rent", "tea")
    ],
    "set_timer": [f"Set a timer for {minutes} minutes." for minutes in (5, 10, 25, 90)],
}
ASKED = [(name, question) for name, questions in QUESTIONS.items() for question in questions]
SCHEMAS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    path = model_path("qwen2.5-coder-0.5b")
    with live(lambda: open_engine(path, context=4096, batch=8)) as running:
        yield running


def _asked(question: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": NAME, "messages": messages, "temperature": 0, "max_tokens": 200, **more}


def _fits(function: Any) -> bool:
    return fits(json.loads(function.arguments), SCHEMAS[function.name])


async def _all(server: Live, **more: Any) -> list[Any]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=600) as client:
        waiting = [client.chat.completions.create(**_asked(question, **more)) for _, question in ASKED]
        return await asyncio.gather(*waiting)


def test_every_required_call_is_json_of_its_schema_and_most_are_right(server: Live) -> None:
    answers = asyncio.run(_all(server, tools=TOOLS, tool_choice="required", parallel_tool_calls=False))
    calls = [answer.choices[0].message.tool_calls[0].function for answer in answers]
    assert all(map(_fits, calls))
    assert {answer.choices[0].finish_reason for answer in answers} == {"tool_calls"}
    right = sum(call.name == name for call, (name, _) in zip(calls, ASKED, strict=True))
    assert right >= 16, [(call.name, call.arguments) for call in calls]


def test_every_call_that_the_model_chooses_to_make_is_json_of_its_schema(server: Live) -> None:
    answers = asyncio.run(_all(server, tools=TOOLS))
    called = [answer.choices[0] for answer in answers if answer.choices[0].message.tool_calls]
    assert all(_fits(call.function) for choice in called for call in choice.message.tool_calls)
    assert len(called) >= 10, [answer.choices[0].message.content for answer in answers]


def test_a_stream_gives_the_same_call(server: Live) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=600)
    for name, question in ASKED[::5]:
        options = _asked(question, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
        whole = client.chat.completions.create(**options).choices[0].message.tool_calls[0].function
        with client.chat.completions.stream(**options) as stream:
            final = stream.get_final_completion()
        function = final.choices[0].message.tool_calls[0].function
        assert (function.name, function.arguments) == (whole.name, whole.arguments)
        assert final.choices[0].finish_reason == "tool_calls" and name in SCHEMAS


def test_a_result_is_answered(server: Live) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=600)
    options = _asked("What is the weather in Paris?", tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    message = client.chat.completions.create(**options).choices[0].message
    told = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": '{"temperature": 21, "sky": "sunny"}'}
    messages = [*options["messages"], message.model_dump(exclude_none=True), told]
    answer = client.chat.completions.create(**options | {"messages": messages, "tool_choice": "none"})
    assert "21" in answer.choices[0].message.content or "sunny" in answer.choices[0].message.content.lower()


def test_answers_fit_random_schemas(server: Live) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=600)
    source = random.Random(2)
    for _ in range(20):
        schema = random_schema(source, 2)
        form: Any = {"type": "json_schema", "json_schema": {"name": "made", "schema": schema}}
        answer = client.chat.completions.create(
            **_asked("Make something up as JSON.", response_format=form, max_tokens=400)
        )
        assert fits(json.loads(answer.choices[0].message.content), schema), (schema, answer)
