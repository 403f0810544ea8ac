"""`thrifty.counterfactual`: factual answers, edited prompts, replaced tokens and observed texts over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.serving.live import NAME, Live, post

PATH, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPT = "The sea is wide, and deep."


def body(counterfactual: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    made = {"model": NAME, "prompt": PROMPT, "seed": 4, "ignore_eos": True, "max_tokens": 24} | fields
    return made | {"thrifty": {"counterfactual": {} if counterfactual is None else counterfactual}}


def tokens(server: Live, asked: dict[str, Any]) -> list[str]:
    answer = post(server, PATH, json=asked | {"logprobs": 0})
    assert answer.status_code == 200, answer.text
    told: list[str] = answer.json()["choices"][0]["logprobs"]["tokens"]
    return told


def refused(server: Live, asked: dict[str, Any], path: str = PATH) -> str:
    answer = post(server, path, json=asked)
    assert answer.status_code == 400, answer.text
    message: str = answer.json()["error"]["message"]
    return message


def test_a_factual_answer_is_the_same_again_and_not_that_of_plain_sampling(server: Live) -> None:
    factual = tokens(server, body())
    assert tokens(server, body()) == factual
    plain = body()
    del plain["thrifty"]
    assert tokens(server, plain) != factual


def test_a_token_is_replaced_and_the_rest_follows_by_the_same_noise(server: Live) -> None:
    factual = tokens(server, body())
    same = tokens(server, body({"replace": {"place": 5, "token": " "}, "answer": [65] * 8}))
    assert len(same) == 24
    ids = [97, 98, 99, 100, 101, 102]
    other = tokens(server, body({"answer": ids, "replace": {"place": 6, "token": "z"}}))
    assert other[:7] == list("abcdefz") and len(other) == 24
    drawn = tokens(server, body({"replace": {"place": 5, "token": "z"}}))
    assert drawn[:5] == factual[:5] and drawn[5] == "z" and len(drawn) == 24


def test_an_observed_text_comes_back_where_nothing_is_changed(server: Live) -> None:
    text = "Nobody drew this."
    asked = body({"hindsight": True, "answer": text}, max_tokens=len(text))
    assert "".join(tokens(server, asked)) == text
    moved = body({"hindsight": True, "answer": text, "prompt": PROMPT}, prompt="Other words", max_tokens=len(text))
    assert "".join(tokens(server, moved)) != text, "the posterior is that of the factual prompt"


def test_chat_takes_it_too(server: Live) -> None:
    chat = body({"replace": {"place": 3, "token": "z"}}) | {"messages": [{"role": "user", "content": "Hello"}]}
    del chat["prompt"]
    answer = post(server, CHAT, json=chat | {"logprobs": True})
    assert answer.status_code == 200, answer.text
    told = [entry["token"] for entry in answer.json()["choices"][0]["logprobs"]["content"]]
    factual = chat | {"thrifty": {"counterfactual": {}}, "logprobs": True}
    first = [entry["token"] for entry in post(server, CHAT, json=factual).json()["choices"][0]["logprobs"]["content"]]
    assert told[:3] == first[:3] and told[3] == "z" and len(told) == 24


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (body(seed=None), "needs the seed"),
        (body({"replace": {"place": 30, "token": 3}, "answer": [1, 2]}), "place = 30, but the answer has 2 tokens"),
        (body({"replace": {"place": 1, "token": "two"}}), "a text of 3 tokens"),
        (body({"replace": {"place": 1, "token": 3}}, n=2), "one answer is replayed at a time"),
        (body({"hindsight": True}), "give counterfactual.answer"),
        (body({"answer": "x"}), "does nothing without hindsight or replace"),
        (body({"prompt": "x"}), "do nothing without hindsight or replace"),
        (body({"hindsight": True, "answer": "x"}, temperature=0), "a greedy answer has no noise"),
        (body({"hindsight": True, "answer": "x"}, top_k=2), "cannot be drawn there"),
        (body({"replace": {"place": 30, "token": 3}}), "max_tokens = 24 ends before place 30"),
        (body({"replaced": {}}), "replaced"),
    ],
)
def test_mistakes_are_named(server: Live, asked: dict[str, Any], message: str) -> None:
    assert message in refused(server, asked)


def test_other_endpoints_refuse_it(server: Live) -> None:
    asked = {"model": NAME, "input": "Hello", "thrifty": {"counterfactual": {}}}
    assert "replays no answers" in refused(server, asked, "/v1/responses")
