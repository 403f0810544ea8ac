"""The server through OpenAI's own client: whole and streamed, sync and async."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.unit.serving.live import NAME, Live

openai = pytest.importorskip("openai", reason="openai is not installed: pip install openai")

MESSAGES: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me of rivers."}]


@pytest.fixture(scope="module")
def client(server: Live) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def greedy(**options: Any) -> dict[str, Any]:
    return {
        "model": NAME,
        "messages": MESSAGES,
        "temperature": 0,
        "max_tokens": 24,
        "extra_body": {"ignore_eos": True},
    } | options


def streamed(client: Any, **options: Any) -> list[Any]:
    return list(client.chat.completions.create(stream=True, **greedy(**options)))


def test_models_are_listed(client: Any) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == (NAME, "model", "thrifty")
    assert client.models.retrieve(NAME).id == NAME


def test_a_chat_has_the_fields_of_openai(client: Any) -> None:
    answer = client.chat.completions.create(**greedy())
    (choice,) = answer.choices
    assert (answer.object, choice.index, choice.message.role, choice.finish_reason) == (
        "chat.completion",
        0,
        "assistant",
        "length",
    )
    assert choice.message.content and answer.id.startswith("chatcmpl-") and answer.system_fingerprint
    assert answer.usage.completion_tokens == 24
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 24


def test_a_stream_says_the_same_with_the_role_first_and_a_reason_last(client: Any) -> None:
    chunks = streamed(client)
    whole = client.chat.completions.create(**greedy()).choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_ends_with_its_usage_only_where_it_was_asked_for(client: Any) -> None:
    assert all(chunk.usage is None and chunk.choices for chunk in streamed(client))
    chunks = streamed(client, stream_options={"include_usage": True})
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 24


def test_every_chunk_has_its_usage_where_that_was_asked_for(client: Any) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = streamed(client, stream_options=options)
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 24
    text = client.completions.create(model=NAME, prompt="abc", max_tokens=6, stream=True, stream_options=options)
    assert all(chunk.usage.prompt_tokens == 3 for chunk in text)
    with pytest.raises(openai.BadRequestError) as refused:
        streamed(client, stream_options={"continuous_usage_stats": True})
    assert refused.value.param == "stream_options"


def test_a_repeated_prompt_says_how_much_of_it_was_cached(client: Any) -> None:
    messages = [{"role": "user", "content": "x" * 700}]
    first = client.chat.completions.create(**greedy(messages=messages)).usage
    again = client.chat.completions.create(**greedy(messages=messages)).usage
    assert first.prompt_tokens_details.cached_tokens < 128 <= again.prompt_tokens_details.cached_tokens


def test_several_answers_have_their_own_streams_and_a_seed_repeats_them(client: Any) -> None:
    options = greedy(n=3, temperature=1.0, seed=7)
    texts = [choice.message.content for choice in client.chat.completions.create(**options).choices]
    assert len(set(texts)) == 3
    parts = {0: "", 1: "", 2: ""}
    for chunk in streamed(client, n=3, temperature=1.0, seed=7):
        for choice in chunk.choices:
            parts[choice.index] += choice.delta.content or ""
    assert list(parts.values()) == texts
    other = client.chat.completions.create(**greedy(temperature=1.0, seed=8)).choices[0].message.content
    assert other not in texts


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(client: Any) -> None:
    whole = client.chat.completions.create(**greedy()).choices[0].message.content
    stop = whole[8:11]
    choice = client.chat.completions.create(**greedy(stop=[stop])).choices[0]
    assert (choice.message.content, choice.finish_reason) == (whole[: whole.index(stop)], "stop")
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed(client, stop=stop))
    assert text == choice.message.content


def test_logprobs_of_a_chat_are_of_its_tokens(client: Any) -> None:
    options = {"logprobs": True, "top_logprobs": 3}
    content = client.chat.completions.create(**greedy(**options)).choices[0].logprobs.content
    assert len(content) == 24
    assert all(len(entry.top_logprobs) == 3 and entry.logprob <= 0 for entry in content)
    assert all(entry.top_logprobs[0].logprob == pytest.approx(entry.logprob) for entry in content)
    chunks = [
        entry
        for chunk in streamed(client, **options)
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert [entry.token for entry in chunks] == [entry.token for entry in content]


def test_a_bias_decides_the_token(client: Any) -> None:
    answer = client.chat.completions.create(**greedy(logit_bias={str(ord("Q")): 100}, max_tokens=5))
    assert answer.choices[0].message.content == "QQQQQ"


def test_text_completions_take_texts_and_tokens(client: Any) -> None:
    options: dict[str, Any] = {"model": NAME, "temperature": 0, "max_tokens": 6, "extra_body": {"ignore_eos": True}}
    text = client.completions.create(prompt="abc", **options)
    ids = client.completions.create(prompt=[97, 98, 99], **options)
    assert text.choices[0].text == ids.choices[0].text
    both = client.completions.create(prompt=["abc", "zyx"], n=2, **options)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert both.choices[0].text == text.choices[0].text
    assert both.usage.completion_tokens == 24
    parts = client.completions.create(prompt="abc", stream=True, **options)
    assert "".join(chunk.choices[0].text for chunk in parts) == text.choices[0].text


def test_text_completions_tell_logprobs_and_offsets(client: Any) -> None:
    answer = client.completions.create(model=NAME, prompt="abc", temperature=0, max_tokens=6, logprobs=2)
    (choice,) = answer.choices
    logprobs = choice.logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset)
    assert logprobs.text_offset[0] == 0 and all(1 <= len(top) <= 2 for top in logprobs.top_logprobs)


def test_many_at_once_through_the_async_client(server: Live, client: Any) -> None:
    asked = [[{"role": "user", "content": f"question {place}"}] for place in range(12)]

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as own:

            async def one(place: int) -> str:
                if place % 2:
                    answer = await own.chat.completions.create(**greedy(messages=asked[place]))
                    return str(answer.choices[0].message.content)
                stream = await own.chat.completions.create(stream=True, **greedy(messages=asked[place]))
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(one(place) for place in range(12)))

    together = asyncio.run(ask())
    alone = [client.chat.completions.create(**greedy(messages=own)).choices[0].message.content for own in asked]
    assert together == alone


def test_errors_are_those_that_the_client_knows(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(**greedy(model="other"))
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(**greedy(extra_body={"beam_width": 3}))
    assert unknown.value.param == "beam_width" and unknown.value.type == "invalid_request_error"
