"""LangChain, LlamaIndex and litellm over the server."""

from __future__ import annotations

import json
from typing import Any

import pydantic
import pytest
from tests.clients.conftest import Served
from tests.clients.test_openai_package import RAIN, TOOL, Colour

QUESTION = "What is the weather in Paris, in celsius?"


class get_weather(pydantic.BaseModel):
    """The weather of a city now."""

    city: str
    unit: str


@pytest.fixture(scope="module")
def chat(server: Served) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(
        model=server.model, base_url=server.openai, api_key=server.key, temperature=0, max_tokens=60, timeout=280
    )


def test_langchains_chat(chat: Any) -> None:
    whole = chat.invoke("Say hello.")
    assert whole.content and whole.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.content for chunk in chat.stream("Say hello.")) == whole.content


def test_langchains_tools_and_structured_output(chat: Any) -> None:
    answer = chat.bind_tools([get_weather], tool_choice="any").invoke(QUESTION)
    (call,) = answer.tool_calls
    assert call["name"] == "get_weather" and call["args"]["city"] == "Paris"
    assert isinstance(chat.with_structured_output(Colour).invoke("Which colour has the sky?"), Colour)


def test_langchains_responses(server: Served) -> None:
    from langchain_openai import ChatOpenAI

    own = ChatOpenAI(
        model=server.model, base_url=server.openai, api_key=server.key, use_responses_api=True, max_tokens=60,
        temperature=0, timeout=280,
    )  # fmt: skip
    assert own.invoke("Say hello.").text
    (call,) = own.bind_tools([get_weather], tool_choice="any").invoke(QUESTION).tool_calls
    assert call["args"]["city"] == "Paris"


def test_langchains_embeddings(server: Served) -> None:
    from langchain_openai import OpenAIEmbeddings

    own = OpenAIEmbeddings(
        model=server.model, base_url=server.openai, api_key=server.key, check_embedding_ctx_length=False
    )
    one, two = own.embed_documents(["red", "blue"])
    assert len(one) == len(two) and one != two


def test_langchains_anthropic_chat(server: Served) -> None:
    from langchain_anthropic import ChatAnthropic

    own = ChatAnthropic(model=server.model, base_url=server.url, api_key=server.key, max_tokens=60, timeout=280)
    assert own.invoke("Say hello.").content
    calls = own.bind_tools([get_weather], tool_choice="any").invoke(QUESTION).tool_calls  # at temperature 1
    assert calls and all(call["name"] == "get_weather" and set(call["args"]) == {"city", "unit"} for call in calls)


def test_llama_index(server: Served) -> None:
    from llama_index.core.llms import ChatMessage
    from llama_index.core.tools import FunctionTool
    from llama_index.llms.openai_like import OpenAILike

    def weather(city: str, unit: str) -> str:
        """The weather of a city now."""
        return f"17 {unit} in {city}"

    own = OpenAILike(
        model=server.model, api_base=server.openai, api_key=server.key, is_chat_model=True, max_tokens=60,
        is_function_calling_model=True, temperature=0, context_window=8192, timeout=280,
    )  # fmt: skip
    hello = [ChatMessage(role="user", content="Say hello.")]
    whole = own.chat(hello).message.content
    assert whole and "".join(part.delta or "" for part in own.stream_chat(hello)) == whole
    tool = FunctionTool.from_defaults(fn=weather)
    answer = own.chat_with_tools([tool], QUESTION, tool_required=True)
    (call,) = own.get_tool_calls_from_response(answer)
    assert call.tool_kwargs["city"] == "Paris"


def test_litellm(server: Served) -> None:
    import litellm

    asked: Any = {"model": f"openai/{server.model}", "api_base": server.openai, "api_key": server.key, "timeout": 280}
    asked |= {"messages": [RAIN], "temperature": 0, "max_tokens": 60}
    whole = litellm.completion(**asked).choices[0].message.content
    parts = litellm.completion(**asked, stream=True)
    assert whole and "".join(chunk.choices[0].delta.content or "" for chunk in parts) == whole
    (call,) = litellm.completion(**asked, tools=[TOOL], tool_choice="required").choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"] == "Paris"


def test_litellms_anthropic_route(server: Served) -> None:
    import litellm

    answer = litellm.completion(
        model=f"anthropic/{server.model}", api_base=server.url, api_key=server.key, messages=[RAIN], max_tokens=16,
        timeout=280,
    )  # fmt: skip
    assert answer.choices[0].message.content
