"""Requests against servers that answer as they are told to."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
from tests.unit.loadtest.scripted_server import CHUNKED, DONE, HEAD, Script, event, piece, refusal, scripted, usage

from thrifty.loadtest.api import Endpoint
from thrifty.loadtest.errors import LoadError
from thrifty.loadtest.exchange import Target, reply_of
from thrifty.loadtest.lengths import Lengths
from thrifty.loadtest.load import Load, Measured, send
from thrifty.loadtest.outcome import Outcome
from thrifty.loadtest.prompts import Prompt, Scale
from thrifty.loadtest.trials import Pace, Trials
from thrifty.loadtest.workload import Workload, weigh

ROLE = event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])


def ask(script: Script, kind: str = "chat") -> Outcome:
    """One request to a server of that script."""
    with scripted(script) as server:
        return asyncio.run(Endpoint(server.url, "m", kind).ask(Prompt("", "hello", 5, 8)))


def test_times_are_those_at_which_text_came() -> None:
    began = time.perf_counter()
    outcome = ask(
        lambda _: [
            (0, HEAD + ROLE),
            (0.1, piece("a")),
            (0.05, piece("b")),
            (0.15, piece("c")),
            (0, usage(9, 3, 4) + DONE),
        ]
    )
    spent = time.perf_counter() - began
    assert outcome.success and outcome.text == "abc"
    assert (outcome.prompt_tokens, outcome.output_tokens, outcome.cached_tokens) == (9, 3, 4)
    assert 0.1 <= outcome.ttft <= outcome.latency <= spent  # the role's chunk is no token
    assert outcome.itl[0] >= 0.04 and outcome.itl[1] >= 0.14 and len(outcome.itl) == 2
    assert outcome.tpot == pytest.approx((outcome.latency - outcome.ttft) / 2)


def test_without_a_usage_pieces_are_counted() -> None:
    outcome = ask(lambda _: [(0, HEAD + piece("a") + piece("b") + DONE)])
    assert (outcome.prompt_tokens, outcome.output_tokens) == (5, 2)


def test_texts_of_completions_thoughts_and_calls_are_text() -> None:
    texts = [event(choices=[{"index": 0, "text": "a"}]), event(choices=[{"index": 0, "text": "b"}]), DONE]
    assert ask(lambda _: [(0, HEAD + b"".join(texts))], "completions").text == "ab"
    call = event(choices=[{"delta": {"tool_calls": [{"function": {"arguments": "{}"}}]}}])
    thought = event(choices=[{"delta": {"reasoning_content": "hm"}}])
    assert ask(lambda _: [(0, HEAD + thought + call + DONE)]).text == "hm{}"


@pytest.mark.parametrize("cut", [1, 3, 7, 1000])
def test_chunks_and_events_may_be_cut_anywhere(cut: int) -> None:
    content = ROLE + piece("ä") + b": keep-alive\n\n" + piece("b").replace(b"\n", b"\r\n") + usage(3, 2) + DONE
    parts = [content[at : at + 11] for at in range(0, len(content), 11)]
    chunked = CHUNKED + b"".join(b"%x;note=1\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    outcome = ask(lambda _: [(0.0005, chunked[at : at + cut]) for at in range(0, len(chunked), cut)])
    assert outcome.success, outcome.error
    assert outcome.text == "äb" and outcome.output_tokens == 2


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (refusal(429, "the queue is full"), "HTTP 429: the queue is full"),
        (HEAD + piece("a"), r"ended without \[DONE\]"),
        (HEAD + DONE, "no text"),
        (HEAD + b"data: [1]\n\n" + DONE, "none of OpenAI's"),
        (HEAD + piece("a") + event(error={"message": "gone"}), "in the stream: gone"),
        (CHUNKED + b"5\r\nda", "before the last chunk"),
        (CHUNKED + b"zz\r\n", "a chunk's size"),
        (b"SMTP hello\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-", "in the head"),
        (b"", "in the head"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 999\r\n\r\nshort", "before the whole answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nx", "length is 'many'"),
        (b"HTTP/1.1 " + b"9" * 5000 + b" OK\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 \xb200 OK\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "in the head"),
        (CHUNKED + b"-10\r\nxx", "a chunk's size"),
        (CHUNKED + b"1_0\r\nxx", "a chunk's size"),
        (HEAD + b"data: " + b"[" * 100_000 + b"\n\n" + DONE, "none of OpenAI's"),
        (b"HTTP/1.1 500 No\r\n\r\n" + b"[" * 100_000, "HTTP 500"),
        (
            HEAD + piece("a") + event(choices=[], usage={"prompt_tokens": None, "completion_tokens": 1}) + DONE,
            "none of",
        ),
        (HEAD + piece("a") + event(choices=[], usage={"prompt_tokens": "3", "completion_tokens": 1}) + DONE, "none of"),
        (
            HEAD + piece("a") + event(choices=[], usage={"prompt_tokens": 1e999, "completion_tokens": 1}) + DONE,
            "none of",
        ),
        (HEAD + piece("a") + event(choices=[], usage={"prompt_tokens": 1, "completion_tokens": -1}) + DONE, "none of"),
    ],
)
def test_what_is_no_whole_answer_is_an_error_that_says_so(answer: bytes, said: str) -> None:
    outcome = ask(lambda _: [(0, answer)])
    assert not outcome.success
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(outcome.error)
    assert outcome.rejected == (outcome.status == 429)


def test_a_server_that_hangs_is_given_up_after_the_timeout() -> None:
    with scripted(lambda _: [(0, HEAD + piece("a")), (0.3, DONE)]) as server:
        outcome = asyncio.run(Endpoint(server.url, "m", timeout=0.1).ask(Prompt("", "hello", 5, 8)))
        assert outcome.error == "TimeoutError: no whole answer came within 0.1 s" and not outcome.success
        time.sleep(0.5)
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(LoadError, match="timeout"):
            Endpoint("h", "m", timeout=wrong)


def test_an_answer_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thrifty.loadtest.exchange.MOST", 1 << 20)
    assert "does not end" in ask(lambda _: [(0, HEAD), *[(0, piece("a" * 100_000))] * 40]).error


def test_what_other_servers_do_is_read_too() -> None:
    answer = HEAD + piece("a").replace(b"\n", b"\r\n") + piece("b") + b"data: [DONE]\n"
    before = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    for cut in range(len(HEAD) + 5, len(answer)):
        outcome = Outcome(0.0, 5)
        outcome.fill(reply_of([(0.1, before + answer[:cut]), (0.2, answer[cut:])]))
        assert outcome.success and outcome.text == "ab", (cut, outcome.error)


def test_nobody_who_listens_is_an_error_too() -> None:
    outcome = asyncio.run(Endpoint("127.0.0.1:9", "m").ask(Prompt("", "hello", 5, 8)))
    assert "Connect" in outcome.error and outcome.status is None


def test_the_url_may_name_the_api_and_what_is_none_is_refused() -> None:
    for url in ("http://h:1", "h:1", "http://h:1/v1", "http://h:1/v1/"):
        assert Target.of(url, "/v1/x") == Target("h", 1, "/v1/x", False)
    assert Target.of("https://[::1]/api/v1", "/v1/x") == Target("::1", 443, "/api/v1/x", True)
    for wrong in (
        "ftp://h",
        "http://",
        "http://h:port",
        "http://[::1",
        "http://h:0",
        "http://" + "a" * 70,
        "http://h/ä",
    ):
        with pytest.raises(LoadError, match="no server's URL"):
            Endpoint(wrong, "m")
    for key in ("two\nlines", "schlüssel"):
        with pytest.raises(LoadError, match="API key"):
            Endpoint("h:1", "m", key=key)
    with pytest.raises(LoadError, match="Did you mean 'chat'"):
        Endpoint("h:1", "m", "chatt")


def test_a_body_has_what_was_asked_for() -> None:
    prompt = Prompt("shared", "own", 5, 8)
    chat = Endpoint("h", "m", key="k", ignore_eos=True, extra={"max_tokens": 3, "top_p": 0.5}).body(prompt)
    assert [message["role"] for message in chat["messages"]] == ["system", "user"]
    assert chat["max_tokens"] == 3 and chat["top_p"] == 0.5 and chat["ignore_eos"] is True
    text = Endpoint("h", "m", "completions").body(prompt)
    assert text["prompt"] == "shared own" and "ignore_eos" not in text and text["stream_options"]["include_usage"]


def quick(body: dict[str, Any]) -> Sequence[tuple[float, bytes]]:
    """An answer of two tokens in 30 ms; a token of the prompt is a word, and ten beside."""
    words = sum(len(message["content"].split()) for message in body["messages"])
    return [(0, HEAD), (0.02, piece("a")), (0.01, piece("b") + usage(10 + words, 2) + DONE)]


def load(server_url: str, prompts: int, **options: Any) -> Measured:
    given = [Prompt("", f"prompt {place}", 2, 2) for place in range(prompts)]
    return asyncio.run(send(Load(given, **options), Endpoint(server_url, "m").ask))


def test_a_closed_loop_keeps_so_many_at_a_time() -> None:
    with scripted(quick) as server:
        measured = load(server.url, 12, concurrency=3)
        assert server.most == 3
    assert len(measured.outcomes) == 12 and all(outcome.success for outcome in measured.outcomes)
    assert measured.seconds >= 4 * 0.03 and not measured.cancelled


def test_an_open_loop_sends_at_its_times_whatever_is_under_way() -> None:
    times = [0.0, 0.05, 0.1, 0.15]
    with scripted(lambda _: [(0.8, HEAD + piece("a") + DONE)]) as server:
        measured = load(server.url, 4, times=times)
        assert server.most == 4
    starts = [outcome.start - measured.outcomes[0].start for outcome in measured.outcomes]
    assert all(time - 0.04 <= start <= time + 0.4 for time, start in zip(times, starts, strict=True))


def test_a_stopped_load_has_what_was_measured_and_hangs_up() -> None:
    def script(body: dict[str, Any]) -> Sequence[tuple[float, bytes]]:
        slow = body["messages"][0]["content"] != "prompt 0"
        return [(0, HEAD + piece("a")), *[(0.05, piece("b"))] * (60 if slow else 1), (0, DONE)]

    async def stopped(url: str) -> Measured:
        stop, over = asyncio.Event(), []

        def done() -> None:
            over.append(1)
            stop.set()

        given = [Prompt("", f"prompt {place}", 2, 2) for place in range(5)]
        return await send(Load(given, concurrency=2), Endpoint(url, "m").ask, done, stop)

    with scripted(script) as server:
        measured = asyncio.run(stopped(server.url))
        assert measured.cancelled and measured.seconds < 2
        assert measured.outcomes[0].success
        assert all(outcome.cancelled for outcome in measured.outcomes[1:])
        assert len(server.bodies) <= 3
        deadline = time.monotonic() + 5
        while not server.left and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.left >= 1


def test_prompts_have_the_tokens_and_the_beginnings_that_were_asked_for() -> None:
    workload = Workload(6, Lengths(100, 120), Lengths(2, 2), prefix_tokens=40, prefixes=2)
    with scripted(quick) as server:
        endpoint = Endpoint(server.url, "m")
        scale = asyncio.run(weigh(endpoint, workload))
        assert scale == Scale(pytest.approx(10), pytest.approx(1))
        prompts = workload.prompts(scale)
        measured = asyncio.run(send(Load(prompts, concurrency=2), endpoint.ask))
    assert all(
        abs(one.prompt_tokens - asked.tokens) <= 1 for one, asked in zip(measured.outcomes, prompts, strict=True)
    )
    assert all(len(prompt.shared.split()) == 40 for prompt in prompts)
    others = workload.prompts(scale, trial=1)
    assert {prompt.shared for prompt in prompts + others} <= {prompt.shared for prompt in prompts}
    assert not {prompt.text for prompt in prompts} & {prompt.text for prompt in others}
    assert workload.prompts(scale) == prompts
    with pytest.raises(LoadError, match="would share 100"):
        Workload(6, Lengths(100, 120), Lengths(2, 2), prefix_tokens=100)


def test_a_server_that_refuses_is_named_before_the_load() -> None:
    workload = Workload(1, Lengths(9, 9), Lengths(1, 1))
    said = pytest.raises(LoadError, match=r"does not answer 'm'.*no such model")
    with scripted(lambda _: [(0, refusal(404, "no such model"))]) as server, said:
        asyncio.run(weigh(Endpoint(server.url, "m"), workload))


def test_a_sweep_measures_the_capacity_and_rates_around_it() -> None:
    class Counted(nullcontext[Any]):
        def advance(self) -> None:
            pass

    async def swept(url: str) -> list[dict[str, Any]]:
        workload = Workload(4, Lengths(9, 9), Lengths(2, 2))
        trials = Trials(Endpoint(url, "m"), workload, Scale(), lambda what, total: Counted(Counted()), asyncio.Event())
        return await trials.sweep(Pace(concurrency=4), None, {"ttft": 5000})

    with scripted(quick) as server:
        runs = asyncio.run(swept(server.url))
        assert server.most >= 4
    assert runs[0]["request_rate"] == "inf" and runs[0]["max_concurrency"] == 4
    rates = [run["request_rate"] for run in runs[1:]]
    assert len(rates) == 7 and rates == sorted(rates)
    assert rates[4] == pytest.approx(runs[0]["request_throughput"], rel=0.01)
    assert all(run["completed"] == 4 and not math.isnan(run["p99_ttft_ms"]) for run in runs)
