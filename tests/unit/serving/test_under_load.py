"""Clients that hang up, read slowly, wait long, or come all at once."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.tiny import BOS
from tests.unit.serving.live import NAME, Live, chat_body, eventually, get, live, post, tiny_engine

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.request import Request

CHAT = "/v1/chat/completions"
LONG: dict[str, Any] = {"max_tokens": 3000, "ignore_eos": True}


def raw(server: Live, body: dict[str, Any], path: str = CHAT) -> socket.socket:
    """A connection on which a request was sent, and of which nothing was read."""
    connection = socket.create_connection(("127.0.0.1", server.port), 5)
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_client_that_hangs_up_frees_its_memory_within_a_second(slow_server: Live, stream: bool, path: str) -> None:
    body = chat_body(stream=stream, **LONG)
    if path != CHAT:
        del body["messages"]
        body |= {"prompt": "hello"}
    connection = raw(slow_server, body, path)
    assert eventually(lambda: slow_server.running() == 1 and slow_server.held() > 0)
    if stream:
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    connection.close()
    assert eventually(lambda: slow_server.running() == 0 and slow_server.held() == 0)


def test_a_client_that_hangs_up_before_its_first_token_is_forgotten_too(slow_server: Live) -> None:
    connections = [raw(slow_server, chat_body("y" * 900, n=4, stream=True, **LONG)) for _ in range(6)]
    for connection in connections:
        connection.close()
    assert eventually(lambda: slow_server.running() == 0 and slow_server.held() == 0, 2)


def test_a_slow_reader_does_not_stall_others(server: Live) -> None:
    body = chat_body(stream=True, logprobs=True, top_logprobs=20, n=8, max_tokens=1500, ignore_eos=True)
    stalled = raw(server, body)
    stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    began = time.monotonic()
    assert post(server, CHAT, json=chat_body(max_tokens=64, ignore_eos=True)).json()["usage"]["completion_tokens"] == 64
    assert time.monotonic() - began < 10
    stalled.close()
    assert eventually(lambda: server.running() == 0 and server.held() == 0, 3)


def test_a_silent_stream_is_kept_open_by_comments(slow_server: Live) -> None:
    assert slow_server.engine is not None
    slow_server.engine.pause = 0.2  # type: ignore[attr-defined]
    try:
        body = chat_body(stream=True, max_tokens=3, ignore_eos=True)
        with slow_server.client.stream("POST", slow_server.url + CHAT, json=body) as answer:
            lines = [line for line in answer.iter_lines() if line]
    finally:
        slow_server.engine.pause = 0.01  # type: ignore[attr-defined]
    assert lines.count(": keep-alive") >= 3
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: ") or line == ": keep-alive" for line in lines)


def test_sixteen_at_once_are_answered_as_the_engine_alone_does(server: Live) -> None:
    prompts = [f"tell me of {place} things: {'z' * (place * 37)}" for place in range(16)]
    engine = tiny_engine()
    try:
        expected = [
            engine.submit(
                Request(
                    prompt=[BOS, *f"user: {prompt}\nassistant: ".encode()],
                    sampling=SamplingParameters(max_tokens=48, ignore_eos=True),
                )
            ).result().text
            for prompt in prompts
        ]  # fmt: skip
    finally:
        engine.close()

    def ask(prompt: str) -> str:
        answer = post(server, CHAT, json=chat_body(prompt, max_tokens=48, ignore_eos=True))
        return str(answer.json()["choices"][0]["message"]["content"])

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, prompts)) == expected


def test_prefixes_are_shared_within_a_key_and_never_across() -> None:
    with live(api_keys=("ann", "ben")) as running:
        body = chat_body("p" * 700)

        def cached(key: str) -> int:
            answer = post(running, CHAT, json=body, headers={"Authorization": f"Bearer {key}"})
            return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

        assert [cached("ann"), cached("ben")] == [0, 0]
        assert cached("ann") > 500 and cached("ben") > 500


def test_a_recipe_of_the_request_is_used_and_its_bound_holds(server: Live) -> None:
    content, recipe = "r" * 500 + " and so on", [{"technique": "kivi", "bits": 2}]
    body = chat_body(content, max_tokens=64, ignore_eos=True)
    plain = post(server, CHAT, json=body).json()["choices"][0]["message"]["content"]
    answer = post(server, CHAT, json=body | {"thrifty": {"cache": recipe, "cache_memory": "8MB"}})
    engine = tiny_engine()
    prompt = [BOS, *f"user: {content}\nassistant: ".encode()]
    sampling = SamplingParameters(max_tokens=64, ignore_eos=True)
    expected = engine.submit(Request(prompt=prompt, sampling=sampling, cache=recipe)).result().text
    engine.close()
    assert answer.json()["choices"][0]["message"]["content"] == expected != plain
    error = post(server, CHAT, json=body | {"thrifty": {"cache_memory": "1KB"}})
    assert error.status_code == 400 and error.json()["error"]["code"] == "memory_budget"


def test_tokens_are_counted_while_they_come(slow_server: Live) -> None:
    body = chat_body(stream=True, max_tokens=200, ignore_eos=True)

    def generated() -> float:
        lines = get(slow_server, "/metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith("vllm:generation_tokens_total"))

    before = generated()
    connection = raw(slow_server, body)
    assert eventually(lambda: 0 < generated() - before < 150)
    connection.close()
    assert eventually(lambda: slow_server.running() == 0)


def test_metrics_count_what_was_served() -> None:
    with live() as running:
        post(running, CHAT, json=chat_body(max_tokens=10, ignore_eos=True))
        post(running, CHAT, json=chat_body(max_tokens=10, ignore_eos=True, stream=True))
        text = get(running, "/metrics").text
    values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line[0] != "#"}
    label = f'{{model_name="{NAME}"}}'
    assert values[f"vllm:generation_tokens_total{label}"] == 20
    assert values[f"vllm:time_to_first_token_seconds_count{label}"] == 2
    assert values[f"vllm:inter_token_latency_seconds_count{label}"] == 18
    assert values[f"vllm:num_requests_running{label}"] == 0
    assert values[f'vllm:request_success_total{{finished_reason="length",model_name="{NAME}"}}'] == 2
    assert 0 < values[f"vllm:kv_cache_usage_perc{label}"] < 1
    assert values[f"vllm:request_generation_tokens_sum{label}"] == 20
    assert values[f"vllm:request_decode_time_seconds_count{label}"] == 2
    assert values[f"vllm:request_inference_time_seconds_sum{label}"] == pytest.approx(
        values[f"vllm:request_prefill_time_seconds_sum{label}"] + values[f"vllm:request_decode_time_seconds_sum{label}"]
    )
    tiers = {tier: values[f'thrifty:tier_bytes{{model_name="{NAME}",tier="{tier}"}}'] for tier in ("memory", "disk")}
    assert tiers["memory"] > 0 and tiers["disk"] == 0


def test_text_of_several_threads_is_never_mixed(slow_server: Live) -> None:
    texts: dict[str, list[str]] = {"A": [], "B": []}

    def ask(letter: str) -> None:
        bias = {"logit_bias": {str(ord(letter)): 100}, "max_tokens": 20}
        for _ in range(3):
            answer = post(slow_server, CHAT, json=chat_body(**bias))
            texts[letter].append(answer.json()["choices"][0]["message"]["content"])

    threads = [threading.Thread(target=ask, args=(letter,)) for letter in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(text == letter * 20 for letter, own in texts.items() for text in own)


@pytest.mark.parametrize("stream", [False, True])
def test_the_usage_tells_what_a_request_held_and_how_fast_it_was(server: Live, stream: bool) -> None:
    body = chat_body("u" * 300, max_tokens=20, ignore_eos=True, stream=stream)
    if stream:
        answer = post(server, CHAT, json=body | {"stream_options": {"include_usage": True}})
        usage = json.loads(answer.text.split("data: ")[-2])["usage"]
    else:
        usage = post(server, CHAT, json=body).json()["usage"]
    cost = usage["thrifty"]
    assert cost["decode_tokens_per_second"] > 0 and cost["prefill_seconds"] > 0
    assert server.engine is not None
    bound = server.engine.cache_footprint((), usage["prompt_tokens"], usage["total_tokens"]).peak_bytes
    assert 0 < cost["kv_bytes"] <= bound
