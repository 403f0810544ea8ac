"""The `openai` package: chats, streams, tools, structured output, embeddings, responses; sync and async."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import openai
import pydantic
import pytest
from tests.clients.conftest import Served

ASKED: Any = [{"role": "user", "content": "Write hello world in Python."}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
ABOUT = "The weather of a city now."
TOOL: Any = {"type": "function", "function": {"name": "get_weather", "description": ABOUT, "parameters": WEATHER}}
FLAT_TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "description": ABOUT,
    "parameters": WEATHER,
    "strict": True,
}
RAIN: Any = {"role": "user", "content": "What is the weather in Paris, in celsius?"}


class Colour(pydantic.BaseModel):
    """What a structured answer holds."""

    name: Literal["red", "green", "blue"]
    warm: bool


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.openai, api_key=server.key, max_retries=0, timeout=280)


def test_a_chat_whole_and_streamed(server: Served, client: openai.OpenAI) -> None:
    asked: Any = {"model": server.model, "messages": ASKED, "temperature": 0, "max_tokens": 16}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text and text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage or chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [model.id for model in client.models.list()] == [server.model]


def test_the_async_client_asks_for_several_at_once(server: Served) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.openai, api_key=server.key, max_retries=0, timeout=280) as own:

            async def streamed() -> str:
                stream = await own.chat.completions.create(
                    model=server.model, messages=ASKED, temperature=0, max_tokens=8, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(streamed() for _ in range(3)))

    texts = asyncio.run(ask())
    assert texts[0] and len(set(texts)) == 1


def test_a_tool_is_called_and_its_result_read(server: Served, client: openai.OpenAI) -> None:
    asked: Any = {"model": server.model, "tools": [TOOL], "temperature": 0, "max_tokens": 80}
    first = client.chat.completions.create(messages=[RAIN], tool_choice="required", **asked)
    (call,) = first.choices[0].message.tool_calls or []
    assert json.loads(call.function.arguments) == {"city": "Paris", "unit": "celsius"}
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "17 degrees, rain"}
    spoken: Any = [RAIN, first.choices[0].message, result]
    second = client.chat.completions.create(messages=spoken, tool_choice="none", **asked)
    assert "17" in (second.choices[0].message.content or "")


def test_a_stream_of_a_tool_call_is_gathered_by_the_client(server: Served, client: openai.OpenAI) -> None:
    asked: Any = {"model": server.model, "tools": [TOOL], "temperature": 0, "max_tokens": 80}
    with client.chat.completions.stream(messages=[RAIN], tool_choice="required", **asked) as stream:
        kinds = {event.type for event in stream}
        message = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.delta" in kinds
    assert json.loads(message.tool_calls[0].function.arguments)["city"] == "Paris"


def test_a_structured_answer_is_parsed(server: Served, client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Which colour has the sky?"}]
    asked: Any = {"model": server.model, "messages": messages, "temperature": 0, "max_tokens": 60}
    answer = client.chat.completions.parse(**asked, response_format=Colour)
    assert isinstance(answer.choices[0].message.parsed, Colour)


def test_embeddings_tell_likes_from_unlikes(server: Served, client: openai.OpenAI) -> None:
    texts = ["def add(a, b): return a + b", "def sum(x, y): return x + y", "A recipe of onion soup with cheese."]
    answer = client.embeddings.create(model=server.model, input=texts)
    one, like, other = (entry.embedding for entry in answer.data)
    dot = [sum(a * b for a, b in zip(one, vector, strict=True)) for vector in (one, like, other)]
    assert abs(dot[0] - 1) < 1e-3 and dot[1] > dot[2]


def test_text_completions(server: Served, client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=server.model, prompt="def fib(n):\n", max_tokens=8, temperature=0, logprobs=2
    )
    assert answer.choices[0].text and answer.choices[0].logprobs is not None


def test_a_response_whole_and_streamed(server: Served, client: openai.OpenAI) -> None:
    asked: Any = {"model": server.model, "input": "Say hello.", "temperature": 0, "max_output_tokens": 16}
    whole = client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert whole.output_text and whole.output_text == text == final.output_text


def test_a_tool_of_responses_is_called_and_its_result_read(server: Served, client: openai.OpenAI) -> None:
    asked: Any = {"model": server.model, "tools": [FLAT_TOOL], "temperature": 0, "max_output_tokens": 80}
    with client.responses.stream(input=[RAIN], tool_choice="required", **asked) as stream:
        for _ in stream:
            pass
        first = stream.get_final_response()
    (call,) = first.output
    assert call.type == "function_call" and json.loads(call.arguments)["city"] == "Paris"
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "17 degrees, rain"}
    second = client.responses.create(input=[RAIN, call, result], tool_choice="none", **asked)
    assert "17" in second.output_text


def test_a_structured_response_is_parsed(server: Served, client: openai.OpenAI) -> None:
    answer = client.responses.parse(
        model=server.model, input="Which colour has the sky?", text_format=Colour, temperature=0, max_output_tokens=60
    )
    assert isinstance(answer.output_parsed, Colour)


def test_errors_are_the_clients_own(server: Served, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gone", messages=ASKED)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=server.model, messages=ASKED, temperature=-1)
    assert "temperature" in str(refused.value)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=server.openai, api_key="wrong").models.list()
