"""What requests may ask for beyond OpenAI's fields, and how many a key may have."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from tests.unit.serving.live import NAME, Live, SlowEngine, chat_body, eventually, get, live, post, tiny_engine

from thrifty.serving.settings import ServerError, ServerSettings

CHAT = "/v1/chat/completions"
KEYS = ("ann", "ben")


def keyed(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def asked(server: Live, **extensions: Any) -> httpx.Response:
    return post(server, CHAT, json=chat_body(thrifty=extensions))


@pytest.fixture(scope="module")
def limited() -> Iterator[Live]:
    techniques = ("kivi", "autoregressive", "prompt-lookup")
    with live(request_techniques=techniques, request_cache_memory=4_000_000, priority=5) as running:
        yield running


def test_techniques_that_the_operator_did_not_name_are_a_403(limited: Live) -> None:
    answer = asked(limited, cache=[{"technique": "kivi", "bits": 2}, {"technique": "snapkv"}])
    error = answer.json()["error"]
    assert answer.status_code == 403 and error["param"] == "thrifty.cache.1.technique" and "kivi" in error["message"]
    answer = asked(limited, decoding=[{"technique": "speculative", "draft": NAME}])
    assert answer.status_code == 403 and answer.json()["error"]["param"] == "thrifty.decoding.0.technique"
    assert asked(limited, cache=[{"technique": "kivi", "bits": 2}]).status_code == 200


def test_a_strategy_of_the_request_gives_the_same_answer(limited: Live) -> None:
    plain = asked(limited).json()["choices"][0]["message"]["content"]
    answer = asked(limited, decoding=[{"technique": "prompt-lookup"}])
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == plain
    answer = asked(limited, decoding=[{"technique": "prompt-lookup"}, {"technique": "autoregressive"}])
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "recipe"


def test_a_prompt_program_of_the_request_leaves_tokens_out_and_says_so(server: Live, limited: Live) -> None:
    program = {"technique": "gemfilter", "capacity": 48, "first": 2, "last": 16}
    whole = asked(server).json()["usage"]
    assert "kept_tokens" not in whole["thrifty"] and whole["prompt_tokens"] < 48
    body = chat_body(thrifty={"prompt": [program]}, messages=[{"role": "user", "content": "a long story " * 12}])
    usage = post(server, CHAT, json=body).json()["usage"]
    assert usage["prompt_tokens"] > 150 and usage["thrifty"]["kept_tokens"] == 48
    answer = asked(limited, prompt=[program])
    assert answer.status_code == 403 and answer.json()["error"]["param"] == "thrifty.prompt.0.technique"


def test_a_request_drafts_with_no_model_that_the_operator_did_not_name(server: Live) -> None:
    answer = asked(server, decoding=[{"technique": "speculative", "draft": "smollm2-135m"}])
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "recipe"


def test_the_operators_bound_on_a_cache_holds_for_every_request(limited: Live) -> None:
    answer = asked(limited, cache_memory="5MB")
    assert answer.status_code == 400 and "5 MB" in answer.json()["error"]["message"]
    assert "4 MB" in answer.json()["error"]["message"]
    assert asked(limited, cache_memory="3MB").status_code == 200
    body = chat_body("x" * 2500, max_tokens=1000, ignore_eos=True)
    answer = post(limited, CHAT, json=body)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "memory_budget"


@pytest.mark.parametrize("priority", [6, -6, 1001, -(10**30)])
def test_a_priority_beyond_the_limit_is_a_400(limited: Live, priority: int) -> None:
    answer = asked(limited, priority=priority)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "thrifty.priority"
    assert asked(limited, priority=-5).status_code == 200


def test_a_bound_on_a_keys_requests_needs_keys() -> None:
    with pytest.raises(ServerError, match="--key-requests"):
        ServerSettings(key_requests=2).check()
    ServerSettings(key_requests=2, api_keys=KEYS).check()


def test_a_key_has_so_many_requests_at_a_time_and_others_have_theirs() -> None:
    with live(lambda: tiny_engine(SlowEngine), api_keys=KEYS, key_requests=2) as running:
        body = chat_body(max_tokens=100, ignore_eos=True, stream=True)
        threads = [
            threading.Thread(target=post, args=(running, CHAT), kwargs={"json": body, "headers": keyed("ann")})
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        assert eventually(lambda: running.running() == 2, 10)
        answer = post(running, CHAT, json=chat_body(), headers=keyed("ann"))
        assert answer.status_code == 429 and answer.json()["error"]["code"] == "key_requests"
        assert "Retry-After" in answer.headers
        assert get(running, "/v1/models", headers=keyed("ann")).status_code == 200
        assert post(running, CHAT, json=chat_body(), headers=keyed("ben")).status_code == 200
        for thread in threads:
            thread.join()
        assert post(running, CHAT, json=chat_body(), headers=keyed("ann")).status_code == 200


def test_each_prompt_of_a_request_counts_for_its_key() -> None:
    with live(lambda: tiny_engine(SlowEngine), api_keys=KEYS, key_requests=3) as running:

        def complete(prompts: int, **fields: Any) -> httpx.Response:
            body = {"model": NAME, "prompt": ["ab"] * prompts, "max_tokens": 2} | fields
            return post(running, "/v1/completions", json=body, headers=keyed("ann"))

        answer = complete(4)
        assert answer.status_code == 400 and "4 prompts" in answer.text
        long = threading.Thread(target=complete, args=(2,), kwargs={"max_tokens": 100, "ignore_eos": True})
        long.start()
        assert eventually(lambda: running.running() == 2, 10)
        answer = complete(2)
        assert answer.status_code == 429 and answer.json()["error"]["code"] == "key_requests"
        assert complete(1).status_code == 200
        long.join()
        assert complete(3, prompt="x" * 5000).status_code == 400  # an error gives the claim back too
        assert complete(3).status_code == 200 and complete(3).status_code == 200


def test_a_key_that_sends_many_requests_does_not_hold_up_another() -> None:
    with live(lambda: tiny_engine(SlowEngine, batch=2, queue=30), api_keys=KEYS) as running:
        ended: list[str] = []

        def ask(key: str) -> None:
            body = chat_body(max_tokens=10, ignore_eos=True)
            assert post(running, CHAT, json=body, headers=keyed(key)).status_code == 200
            ended.append(key)

        many = [threading.Thread(target=ask, args=("ann",)) for _ in range(24)]
        for thread in many:
            thread.start()
        assert eventually(lambda: running.running() + len(ended) >= 24, 60)
        before = len(ended)
        few = [threading.Thread(target=ask, args=("ben",)) for _ in range(3)]
        for thread in few:
            thread.start()
        for thread in (*few, *many):
            thread.join()
        last = len(ended) - 1 - ended[::-1].index("ben")
        assert last - before < 14, "three of ben's among six or so of ann's, and those that ran before"


@pytest.mark.long
def test_who_shows_a_key_to_a_server_without_keys_gets_no_more_of_its_queue() -> None:
    with live(lambda: tiny_engine(SlowEngine, batch=1, queue=4)) as running, ThreadPoolExecutor(12) as pool:
        body = chat_body(max_tokens=60, ignore_eos=True)
        asking = [pool.submit(post, running, CHAT, json=body, headers=keyed(f"key {place}")) for place in range(12)]
        assert eventually(lambda: running.running() >= 4, 10)
        while not all(own.done() for own in asking):
            assert running.running() <= 4 + 1
        assert {answer.result().status_code for answer in asking} == {200, 429}


def test_a_key_that_no_client_can_send_is_refused() -> None:
    for key in ("schlüssel", " ann", "two\nlines"):
        with pytest.raises(ServerError, match="no client can send"):
            ServerSettings(api_keys=(key,)).check()


def test_a_higher_priority_goes_first() -> None:
    with live(lambda: tiny_engine(SlowEngine, batch=1), priority=1) as running:
        ended: list[int] = []

        def ask(priority: int) -> None:
            body = chat_body(max_tokens=12, ignore_eos=True, thrifty={"priority": priority})
            assert post(running, CHAT, json=body).status_code == 200
            ended.append(priority)

        low = [threading.Thread(target=ask, args=(0,)) for _ in range(6)]
        for thread in low:
            thread.start()
        assert eventually(lambda: running.running() == 6, 10)
        high = threading.Thread(target=ask, args=(1,))
        high.start()
        for thread in (*low, high):
            thread.join()
        assert ended.index(1) <= 3
