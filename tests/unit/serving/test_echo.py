"""`echo`: the prompt comes back with what the model thinks of it, as programs that score texts ask for it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.tiny import tiny_model
from tests.unit.serving.live import NAME, Live, post, shelf

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.serving.openai import echo
from thrifty.serving.served_model import Fits, ModelSource

openai = pytest.importorskip("openai", reason="openai is not installed: pip install openai")
PATH = "/v1/completions"
TEXT = "The sea is wide, and grün."


def body(prompt: Any = TEXT, **fields: Any) -> dict[str, Any]:
    return {"model": NAME, "prompt": prompt, "echo": True, "temperature": 0, "ignore_eos": True} | fields


def told(server: Live, **fields: Any) -> dict[str, Any]:
    answer = post(server, PATH, json=body(**fields))
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def forced(tokens: list[int], alternatives: int = 0) -> list[float]:
    """Log-probabilities of the tokens behind the first, each forced."""
    engine = Engine(tiny_model(packed=True), threads=1)
    try:
        request = Request(prompt=tokens[:1], forced=tokens[1:], sampling=SamplingParameters(logprobs=alternatives))
        return [entry.logprob for entry in engine.submit(request).result().logprobs]
    finally:
        engine.close()


def test_the_prompt_stands_in_front_of_the_same_answer(server: Live) -> None:
    plain = post(server, PATH, json=body(max_tokens=6) | {"echo": False}).json()
    (choice,) = told(server, max_tokens=6)["choices"]
    assert choice["text"] == TEXT + plain["choices"][0]["text"] and choice["logprobs"] is None


def test_its_tokens_have_the_log_probabilities_of_forced_ones(server: Live) -> None:
    tokens = list(TEXT.encode())
    document = told(server, max_tokens=3, logprobs=2)
    logprobs, usage = document["choices"][0]["logprobs"], document["usage"]
    assert all(len(values) == len(tokens) + 3 for values in logprobs.values())
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert logprobs["token_logprobs"][1 : len(tokens)] == forced(tokens)
    for text, own, top in list(
        zip(*(logprobs[name] for name in ("tokens", "token_logprobs", "top_logprobs")), strict=True)
    )[1:]:
        assert max(top.values()) >= own >= -9999 and text in top and len(top) <= 3, "the token itself is among them"
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(tokens), 3)


def test_offsets_are_where_tokens_begin_in_the_text(server: Live) -> None:
    (choice,) = told(server, max_tokens=4, logprobs=0)["choices"]
    offsets = choice["logprobs"]["text_offset"]
    half = TEXT.encode().index("ü".encode())
    assert offsets[: half + 1] == list(range(half + 1)), "a token is a byte"
    assert offsets[half + 1 : half + 3] == [half, half + 1], "two bytes are one character"
    assert offsets[len(TEXT.encode())] == len(TEXT), "the answer goes on behind the prompt"


def test_what_lm_eval_adds_up_is_the_log_likelihood_of_a_continuation(server: Live) -> None:
    """As its `local-completions` asks and reads: one token is answered and left out."""
    context, rest = list(b"The sea is "), list(b"wide and deep")
    document = told(server, prompt=[*context, *rest], max_tokens=1, logprobs=1, seed=1234)
    logprobs = document["choices"][0]["logprobs"]
    assert sum(logprobs["token_logprobs"][len(context) : -1]) == pytest.approx(
        sum(forced([*context, *rest])[len(context) - 1 :])
    )
    greedy = [
        own == max(top.values())
        for own, top in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True)
    ]
    assert greedy[-1] and not all(greedy), "the answered token is the best one, a text's tokens are not all"


def test_nothing_is_said_where_nothing_is_asked_for(server: Live) -> None:
    document = told(server, prompt=[TEXT, "x"], max_tokens=0, logprobs=1)
    first, second = document["choices"]
    assert (first["text"], first["finish_reason"], second["index"], second["text"]) == (TEXT, "length", 1, "x")
    assert first["logprobs"]["token_logprobs"][1:] == forced(list(TEXT.encode()))
    assert second["logprobs"]["token_logprobs"] == [None]
    assert document["usage"]["completion_tokens"] == 0
    assert document["usage"]["prompt_tokens"] == document["usage"]["total_tokens"] == len(TEXT.encode()) + 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"max_tokens": 0, "stream": True}, "stream"), ({"logprobs": 21}, None), ({"echo": 1}, "echo")],
)
def test_what_cannot_be_asked_for_is_a_400(server: Live, fields: dict[str, Any], param: str | None) -> None:
    answer = post(server, PATH, json=body(**fields))
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
    assert post(server, PATH, json=body(max_tokens=0) | {"echo": False}).status_code == 400


def test_a_stream_begins_with_the_prompt(server: Live) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    options: dict[str, Any] = {"echo": True, "logprobs": 1, "temperature": 0, "extra_body": {"ignore_eos": True}}
    whole = client.completions.create(model=NAME, prompt=TEXT, max_tokens=5, n=2, **options)
    chunks = list(client.completions.create(model=NAME, prompt=TEXT, max_tokens=5, n=2, stream=True, **options))
    assert [chunk.choices[0].text for chunk in chunks[:2]] == [TEXT, TEXT]
    for choice in whole.choices:
        parts = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        joined = [value for part in parts if part.logprobs for value in part.logprobs.token_logprobs]
        assert joined == choice.logprobs.token_logprobs
        offsets = [value for part in parts if part.logprobs for value in part.logprobs.text_offset]
        read = len(TEXT.encode()) + 1
        assert offsets[:read] == choice.logprobs.text_offset[:read]


def test_answers_begin_with_what_was_read_to_score_them(server: Live) -> None:
    prompt = "s" * 300
    assert (
        told(server, prompt=prompt, max_tokens=1, logprobs=0)["usage"]["prompt_tokens_details"]["cached_tokens"] > 250
    )


def test_adapters_score_nothing(tmp_path: Any) -> None:
    from tests.lora_files import write_lora
    from tests.unit.serving.test_lora_adapters import adapter

    def opened(fits: Fits) -> Engine:
        return Engine(tiny_model(packed=True), threads=1)

    write_lora(tmp_path, adapter(0), rank=4, alpha=2.0)
    with shelf([ModelSource("tiny", opened, {"sql": tmp_path})]) as running:
        refused = post(running, PATH, json=body(model="tiny:sql", logprobs=1, max_tokens=1))
        assert refused.status_code == 400 and "ask 'tiny' instead" in refused.json()["error"]["message"]
        assert post(running, PATH, json=body(model="tiny:sql", max_tokens=1)).status_code == 200


@pytest.mark.parametrize("fields", [{"max_tokens": 0}, {"max_tokens": 1, "logprobs": 1}])
def test_more_than_the_operator_grants_is_refused_before_a_prompt_is_read(
    server: Live, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    """A body of some bytes with n = 10**9 would else have an answer of a terabyte."""

    def unasked(*_: Any) -> None:
        raise AssertionError("the prompt was read")

    monkeypatch.setattr(server.engine, "prompt_logprobs", unasked)
    wishes: list[tuple[dict[str, Any], str]] = [({"n": 17}, "n"), ({"thrifty": {"priority": 1}}, "thrifty")]
    for wish, param in wishes:
        answer = post(server, PATH, json=body(**fields, **wish))
        assert answer.status_code == 400, answer.text[:200]
        assert answer.json()["error"]["param"].startswith(param)


def test_an_answer_that_would_hold_too_many_log_probabilities_is_a_400(
    server: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = len(TEXT.encode())
    monkeypatch.setattr(echo, "MOST_LOGPROBS", 6 * tokens)
    assert told(server, max_tokens=0, logprobs=2, n=2)["choices"][1]["logprobs"] is not None
    assert told(server, prompt=[TEXT] * 7, max_tokens=0)["choices"][6]["text"] == TEXT, "without logprobs none are held"
    refused: list[dict[str, Any]] = [{"logprobs": 6}, {"logprobs": 2, "n": 3}, {"logprobs": 0, "prompt": [TEXT] * 7}]
    for fields in refused:
        answer = post(server, PATH, json=body(max_tokens=1, **fields))
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "logprobs", answer.text[:200]
        assert f"it may hold {6 * tokens}" in answer.json()["error"]["message"]


def test_extensions_of_an_answer_are_refused_where_there_is_none(server: Live) -> None:
    wishes: list[dict[str, Any]] = [{"session": "a"}, {"cache": []}, {"cache_memory": "3MB"}]
    for wish in wishes:
        answer = post(server, PATH, json=body(max_tokens=0, thrifty=wish))
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "thrifty"
    assert post(server, PATH, json=body(max_tokens=0, thrifty={"session": None})).status_code == 200
