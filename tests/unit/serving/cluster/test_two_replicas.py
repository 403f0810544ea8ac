"""Two replicas on this machine through Ray: clients see one server, also while replicas end and begin."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'thrifty-engine[cluster]'")

from openai import BadRequestError, NotFoundError, OpenAI
from tests.unit.serving.cluster.running import Client, Cluster, cluster
from tests.unit.serving.live import NAME, chat_body, eventually, live, post

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def two() -> Iterator[Cluster]:
    with cluster(pause=10) as running:
        yield running


@pytest.fixture
def client(two: Cluster) -> OpenAI:
    two.wait_for(2)
    return OpenAI(base_url=f"{two.url}/v1", api_key="none", max_retries=0)


def alone(content: str, tokens: int) -> str:
    """The greedy answer of one server."""
    with live() as server:
        body = chat_body(content, max_tokens=tokens, ignore_eos=True)
        return str(post(server, "/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"])


def test_openais_client_works_as_with_one_server(client: OpenAI) -> None:
    messages = [{"role": "user", "content": "hello"}]
    whole = client.chat.completions.create(model=NAME, messages=messages, temperature=0, max_tokens=8)  # type: ignore[call-overload]
    chunks = list(
        client.chat.completions.create(  # type: ignore[call-overload]
            model=NAME, messages=messages, temperature=0, max_tokens=8, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert whole.choices[0].message.content == alone("hello", 8)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == alone("hello", 8)
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].usage.completion_tokens == 8
    assert len(client.embeddings.create(model=NAME, input=["one", "two"]).data) == 2
    assert client.completions.create(model=NAME, prompt="a", max_tokens=3).usage.completion_tokens == 3  # type: ignore[union-attr]
    events = list(client.responses.create(model=NAME, input="hello", max_output_tokens=16, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [model.id for model in client.models.list()] == [NAME]


def test_errors_are_those_of_one_server(client: OpenAI, two: Cluster) -> None:
    messages = [{"role": "user", "content": "hello"}]
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(model=NAME, messages=messages, extra_body={"best_of": 3})  # type: ignore[call-overload]
    assert refused.value.param == "best_of"
    with pytest.raises(NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=messages)  # type: ignore[call-overload]
    assert missing.value.code == "model_not_found"
    answer = httpx.post(f"{two.url}/v1/messages", json={"model": NAME, "messages": [], "max_tokens": 3}, timeout=30)
    assert answer.status_code == 400 and answer.json()["type"] == "error"
    assert httpx.post(f"{two.url}/v1/chat/completions", content=b"{", timeout=30).status_code == 400
    assert httpx.get(f"{two.url}/", timeout=30).text.startswith("<!doctype html>")
    assert "/v1/chat/completions" in httpx.get(f"{two.url}/openapi.json", timeout=30).json()["paths"]


def test_sessions_are_listed_and_dropped_wherever_they_lie(two: Cluster) -> None:
    two.wait_for(2)
    names = [f"chat {number}" for number in range(4)]
    for name in names:
        body = chat_body(name, max_tokens=4, thrifty={"session": name, "cache": [{"technique": "streaming"}]})
        assert httpx.post(f"{two.url}/v1/chat/completions", json=body, timeout=30).status_code == 200
    for _ in range(3):
        listed = httpx.get(f"{two.url}/v1/sessions", timeout=30).json()["data"]
        assert [session["id"] for session in listed] == names
    for name in names:
        assert httpx.delete(f"{two.url}/v1/sessions/{name}", timeout=30).status_code == 200
    assert httpx.get(f"{two.url}/v1/sessions", timeout=30).json()["data"] == []


def test_the_next_turn_of_a_conversation_finds_its_prefix_again(two: Cluster) -> None:
    two.wait_for(2)
    for topic in ("first", "second", "third"):
        body = chat_body(f"{topic} " * 100, max_tokens=4)
        for turn in range(2):
            used = httpx.post(f"{two.url}/v1/chat/completions", json=body, timeout=30).json()["usage"]
            assert (used["prompt_tokens_details"]["cached_tokens"] > 256) is (turn > 0)


def test_a_client_that_hangs_up_ends_its_request(two: Cluster) -> None:
    two.wait_for(2)
    body = chat_body(stream=True, max_tokens=3000, ignore_eos=True)
    with httpx.stream("POST", f"{two.url}/v1/chat/completions", json=body, timeout=30) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert eventually(lambda: two.metric("vllm:num_requests_running") == 1, 3)
    assert eventually(lambda: two.metric("vllm:num_requests_running") == 0, 3)


def test_kill_9_loses_nothing_that_had_not_begun_and_ends_the_rest_with_an_error(two: Cluster) -> None:
    two.wait_for(2)
    expected = alone("hello", 150)
    clients = [Client(two.url, "hello", 150, stream=number % 2 == 0) for number in range(14)]
    assert eventually(lambda: sum(bool(client.text) for client in clients[::2]) >= 4, 20)
    victim = two.replicas()[0]
    victim.kill()
    for client in clients:
        client.join()
    assert not [client.failure for client in clients if client.failure]
    ended = [client for client in clients if client.code == "replica_lost"]
    for client in clients:
        assert client.status == 200
        if client in ended:
            assert client.text and expected.startswith(client.text) and not client.is_done
        else:
            assert client.text == expected
    assert ended and all(client in clients[::2] for client in ended), "whole answers begin when they are done"
    assert two.metric("thrifty:requests_retried_total") >= 1
    assert two.metric("thrifty:requests_lost_total") == len(ended)
    two.wait_for(2)
    assert victim.pid not in [replica.pid for replica in two.replicas()]


def test_a_rolling_restart_refuses_nobody(two: Cluster) -> None:
    two.wait_for(2)
    before = {replica.pid for replica in two.replicas()}
    answers, is_over = [], threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            body = chat_body("hello", max_tokens=20)
            answers.append(httpx.post(f"{two.url}/v1/chat/completions", json=body, timeout=60).status_code)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    two.signal(signal.SIGHUP)
    assert eventually(lambda: not before & {replica.pid for replica in two.replicas()}, 120)
    two.wait_for(2)
    is_over.set()
    for thread in threads:
        thread.join()
    assert len(answers) > 10 and set(answers) == {200}


def test_a_full_cluster_refuses_with_429_and_answers_all_that_it_took(two: Cluster) -> None:
    two.wait_for(2)
    clients = [Client(two.url, "hello", 60, stream=False) for _ in range(60)]
    for client in clients:
        client.join()
    statuses = [client.status for client in clients]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 24, "two replicas hold four running and eight waiting requests each"
    assert {client.code for client in clients if client.status == 429} == {"queue_full"}


def test_sigterm_ends_answers_in_peace_and_leaves_no_process_behind() -> None:
    with cluster(pause=10, replicas=1) as running:
        client = Client(running.url, "hello", 150, stream=True)
        assert eventually(lambda: bool(client.text), 20)
        processes = [running.process.pid, *(replica.pid for replica in running.replicas())]
        running.signal(signal.SIGTERM)
        client.join()
        assert client.is_done
        assert running.process.wait(60) == 0
        time.sleep(1)
        assert not [replica for replica in processes[1:] if _lives(replica)]


def _lives(process: int) -> bool:
    import psutil

    return psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE
