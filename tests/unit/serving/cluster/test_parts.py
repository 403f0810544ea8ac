"""The parts of a cluster that need none: what a replica answers, merged metrics, scaling, the options."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from starlette.types import Message, Receive, Scope, Send

from thrifty.cli.shared import replicas as options
from thrifty.errors import MissingExtra
from thrifty.serving.cluster.calls import HttpCall, answered, carried
from thrifty.serving.cluster.deployment import reason, told_of
from thrifty.serving.cluster.merged_metrics import MergedMetrics, cluster_families, page
from thrifty.serving.cluster.scaling import policy, replicas_needed
from thrifty.serving.cluster.settings import ClusterSettings
from thrifty.serving.cluster.stream_events import is_keep_alive, is_opening
from thrifty.serving.settings import ServerError

CALL = HttpCall({"method": "POST", "path": "/", "headers": []}, b"body", [], None)


def batches(app: Any) -> list[list[Message]]:
    async def run() -> list[list[Message]]:
        return [batch async for batch in answered(app, CALL)]

    return asyncio.run(run())


def body(text: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": text, "more_body": more}


def test_messages_come_together_where_they_are_there_together_and_all_in_order() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["path"] == "/" and (await receive())["body"] == b"body"
        await send(body(b"1"))
        await send(body(b"2"))
        await asyncio.sleep(0.01)
        await send(body(b"3", more=False))

    assert batches(app) == [[body(b"1"), body(b"2")], [body(b"3", more=False)]]


def test_an_applications_error_comes_after_what_it_sent() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(body(b"1"))
        raise ValueError("broken")

    received = []

    async def run() -> None:
        async for batch in answered(app, CALL):
            received.extend(batch)

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(run())
    assert received == [body(b"1")]


def test_closing_the_answer_is_a_client_that_hangs_up() -> None:
    told: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(body(b"1"))
        told.append((await receive())["type"])

    async def run() -> None:
        async with contextlib.aclosing(answered(app, CALL)) as answer:
            async for _ in answer:
                break

    asyncio.run(run())
    assert told == ["http.disconnect"]


def test_an_application_that_does_not_hear_of_it_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thrifty.serving.cluster.calls.LAST_WORDS", 0.01)
    ended: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(body(b"1"))
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def run() -> None:
        async with contextlib.aclosing(answered(app, CALL)) as answer:
            async for _ in answer:
                break
        await asyncio.sleep(0.01)

    asyncio.run(run())
    assert ended == [True]


def test_a_scope_leaves_what_cannot_travel() -> None:
    assert carried({"type": "http", "path": "/", "app": object(), "state": {}}) == {"path": "/"}


def text(running: int, tokens: int, share: float) -> str:
    return (
        f'# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{{model_name="m"}} {running}\n'
        f'# TYPE vllm:generation_tokens_total counter\nvllm:generation_tokens_total{{model_name="m"}} {tokens}\n'
        f'# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{{model_name="m"}} {share}\n'
        f'# TYPE vllm:x_seconds histogram\nvllm:x_seconds_bucket{{le="1.0",model_name="m"}} {tokens}\n'
        f'vllm:x_seconds_bucket{{le="+Inf",model_name="m"}} {tokens + 1}\n'
        f'vllm:x_seconds_count{{model_name="m"}} {tokens + 1}\nvllm:x_seconds_sum{{model_name="m"}} 2.5\n'
    )


def shown(metrics: MergedMetrics) -> dict[str, float]:
    lines = [line for line in page(metrics.families()).decode().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_metrics_of_replicas_are_added_up_and_shares_averaged() -> None:
    metrics = MergedMetrics()
    metrics.update({"first": text(1, 10, 0.2), "second": text(2, 5, 0.6)})
    told = shown(metrics)
    assert told['vllm:num_requests_running{model_name="m"}'] == 3
    assert told['vllm:generation_tokens_total{model_name="m"}'] == 15
    assert told['vllm:kv_cache_usage_perc{model_name="m"}'] == pytest.approx(0.4)
    assert told['vllm:x_seconds_bucket{le="1.0",model_name="m"}'] == 15
    assert told['vllm:x_seconds_count{model_name="m"}'] == 17 and told['vllm:x_seconds_sum{model_name="m"}'] == 5


def test_no_counter_falls_when_a_replica_ends_and_its_gauges_go() -> None:
    metrics = MergedMetrics()
    metrics.update({"first": text(1, 10, 0.2), "second": text(2, 5, 0.6)})
    metrics.update({"second": text(0, 6, 0.5), "third": text(1, 1, 0.1)})
    told = shown(metrics)
    assert told['vllm:generation_tokens_total{model_name="m"}'] == 17
    assert told['vllm:num_requests_running{model_name="m"}'] == 1
    metrics.update({})
    told = shown(metrics)
    assert told['vllm:generation_tokens_total{model_name="m"}'] == 17
    assert 'vllm:num_requests_running{model_name="m"}' not in told


def test_the_fronts_own_metrics_are_told() -> None:
    lines = page(cluster_families(2, 3, 1)).decode().splitlines()
    assert {"thrifty:replicas 2.0", "thrifty:requests_retried_total 3.0", "thrifty:requests_lost_total 1.0"} < set(
        lines
    )


@pytest.mark.parametrize(
    ("running", "requests", "waiting", "memory", "needed"),
    [
        (1, 0, [0], [0.1], 1),
        (2, 33, [0, 0], [0.1, 0.1], 3),
        (4, 10, [0] * 4, [0.2] * 4, 1),
        (2, 10, [3, 0], [0.95, 0.95], 3),  # caches are full, and some wait for room
        (2, 10, [0, 0], [0.95, 0.95], 1),  # full of prefixes that nobody needs
        (3, 40, [], [], 3),
    ],
)
def test_replicas_by_requests_and_by_memory(
    running: int, requests: float, waiting: list[float], memory: list[float], needed: int
) -> None:
    assert replicas_needed(running, requests, 16, waiting, memory) == needed


def test_rays_question_is_answered_from_what_replicas_measure() -> None:
    context: Any = SimpleNamespace(
        current_num_replicas=2, target_num_replicas=2, total_num_requests=10.0,
        config=SimpleNamespace(get_target_ongoing_requests=lambda: 16),
        aggregated_metrics={"waiting": {"a": 2.0, "b": 0.0}, "memory": {"a": 0.9, "b": 0.9}},
    )  # fmt: skip
    assert policy(context) == (3, {})
    context.current_num_replicas = 0
    assert policy(context) == (2, {})


@pytest.mark.parametrize(
    ("event", "opens"),
    [
        (b'data: {"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n', True),
        (b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n', False),
        (b'data: {"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":"stop"}]}\n\n', False),
        (b'data: {"choices":[]}\n\n', False),
        (b"data: [DONE]\n\n", False),
        (b'event: message_start\ndata: {"type":"message_start"}\n\n', True),
        (b'data: {"type":"content_block_start","content_block":{"type":"text","text":""}}\n\n', True),
        (b'data: {"type":"content_block_start","content_block":{"type":"tool_use","name":"f"}}\n\n', False),
        (b'data: {"type":"response.created"}\n\n', True),
        (b'data: {"type":"response.output_item.added","item":{"type":"message","content":[]}}\n\n', True),
        (b'data: {"type":"response.output_item.added","item":{"type":"function_call","name":"f"}}\n\n', False),
        (b'data: {"type":"response.content_part.added","part":{"type":"output_text","text":""}}\n\n', True),
        (b'data: {"type":"response.output_text.delta","delta":"a"}\n\n', False),
        (b"nonsense", False),
    ],
)
def test_events_that_say_nothing_of_an_answer_are_known(event: bytes, opens: bool) -> None:
    assert is_opening(event) is opens and not is_keep_alive(event)


def test_comments_and_pings_keep_streams_open() -> None:
    assert is_keep_alive(b": keep-alive\n\n") and is_keep_alive(b'event: ping\ndata: {"type": "ping"}\n\n')


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"replicas": 0}, "--replicas"),
        ({"replicas": 3, "most_replicas": 2}, "--max-replicas"),
        ({"threads": 0}, "--threads"),
        ({"address": "ray://host:10001"}, "ray start"),
        ({"routing": "random"}, "round-robin"),
        ({"imbalance": 0.5}, "imbalance"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ServerError, match=named):
        ClusterSettings(**settings).check()


EACH: dict[str, Any] = {"threads": None, "memory": None, "batch": 4, "queue": 8}


def test_options_of_a_cluster_need_it() -> None:
    assert options.replicas_asked(False, None, None, None, **EACH) is None
    for index, name in enumerate(("--replicas", "--max-replicas", "--ray-address")):
        given: list[Any] = [None, None, None]
        given[index] = "auto" if index == 2 else 3
        with pytest.raises(typer.BadParameter, match=f"{name} .*--cluster"):
            options.replicas_asked(False, *given, **EACH)


def test_a_cluster_without_ray_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'thrifty-engine\[cluster\]'"):
        options.replicas_asked(True, None, None, None, **EACH)


def test_cores_are_divided_here_and_asked_for_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thrifty.extras.require", lambda *names: None)
    monkeypatch.setattr("os.cpu_count", lambda: 9)
    asked = options.replicas_asked(True, 4, None, None, **EACH)
    assert asked is not None and (asked.replicas, asked.threads, asked.batch) == (4, 2, 4)
    with pytest.raises(typer.BadParameter, match="--threads is missing"):
        options.replicas_asked(True, 4, None, "auto", **EACH)


def test_why_replicas_cannot_be_started_is_told_in_the_models_own_words() -> None:
    told = (
        "failed to start 3 times. Error:\nray::Replica\n  File x\nthrifty.errors.BudgetError: no token fits in 90 MB\n"
    )
    application = SimpleNamespace(
        message="Failed to update the deployments ['replica'].",
        deployments={"replica": SimpleNamespace(message=told)},
    )
    assert reason(told_of(application)) == "no token fits in 90 MB"
    application.deployments["replica"].message = ""
    assert reason(told_of(application)) == "Failed to update the deployments ['replica']."
    assert told_of(SimpleNamespace(message="", deployments={})) == ""
    assert reason("ValueError: other") == "ValueError: other" and reason("\n") == "Ray gives no reason"
