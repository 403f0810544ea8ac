"""What a server does when its surroundings fail: kills, full disks, lost files, no descriptors."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.checkpoint import write_checkpoint
from tests.tiny import BOS
from tests.unit.serving.live import NAME, chat_body, get, live, post, tiny_engine
from tests.unit.serving.programs import Reader, program, thrifty, url_of, wait_until_healthy

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.request import Request

CHAT = "/v1/chat/completions"
PROMPTS = [f"tell me of {place} things: {'z' * (300 + place * 37)}" for place in range(6)]


def ask(url: str, content: str = "hello", **fields: Any) -> str:
    answer = httpx.post(url + CHAT, json=chat_body(content, ignore_eos=True, **fields), timeout=60)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def alone(tokens: int) -> list[str]:
    """What an engine answers to each of the prompts."""
    engine = tiny_engine()
    try:
        sampling = SamplingParameters(max_tokens=tokens, ignore_eos=True)
        prompts = [[BOS, *f"user: {prompt}\nassistant: ".encode()] for prompt in PROMPTS]
        return [engine.submit(Request(prompt=prompt, sampling=sampling)).result().text for prompt in prompts]
    finally:
        engine.close()


def full_disk(*_: Any) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("disk", ["works", "is full"])
def test_under_pressure_all_are_answered_as_alone_whether_the_disk_is_full_or_not(
    disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, preempted = alone(250), 0.0
    with live(lambda: tiny_engine(memory=_tight())) as running:
        if disk == "is full":
            monkeypatch.setattr("thrifty.storage.disk.os.pwrite", full_disk)
        with ThreadPoolExecutor(6) as pool:
            answers = pool.map(
                lambda prompt: post(running, CHAT, json=chat_body(prompt, max_tokens=250, ignore_eos=True)), PROMPTS
            )
            texts = [answer.json()["choices"][0]["message"]["content"] for answer in answers]
        for line in get(running, "/metrics").text.splitlines():
            if line.startswith("vllm:num_preemptions_total"):
                preempted = float(line.split()[-1])
        assert running.running() == 0 and running.held() == 0
    assert texts == expected
    assert preempted > 0, "there was no pressure"


def _tight() -> int:
    """A budget that holds two or three of the requests."""
    engine = tiny_engine()
    try:
        probe = engine.probe()
        return probe.weights + probe.workspace + int(2.5 * engine.footprint((), 550, 800).peak_bytes)
    finally:
        engine.close()


@pytest.mark.long
def test_after_a_kill_the_port_is_free_and_nothing_is_left_on_the_disk(tmp_path: Path) -> None:
    with program(1, 5, TMPDIR=str(tmp_path)) as (process, url):
        expected = ask(url)
        port = url.rpartition(":")[2]
        reader = Reader(url, 500)
        reader.start()
        reader.begun.wait(10)
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
        reader.join(10)
        assert reader.lines[-1] != "data: [DONE]", "a stream that was cut off does not look whole"
        assert list(tmp_path.iterdir()) == []
    with program(1, 5, port, TMPDIR=str(tmp_path)) as (_, again):
        assert again == url and ask(again) == expected


@pytest.mark.long
def test_two_servers_do_not_share_a_port() -> None:
    with program(1, 5) as (first, url):
        with pytest.raises(AssertionError, match="another --port"), program(1, 5, url.rpartition(":")[2]):
            pass
        assert first.poll() is None and ask(url)


@pytest.mark.long
def test_without_descriptors_it_waits_and_goes_on() -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    with program(1, 1, before=few) as (process, url):
        expected, port = ask(url), int(url.rpartition(":")[2])
        connections = []
        for _ in range(100):
            with contextlib.suppress(OSError):
                connections.append(socket.create_connection(("127.0.0.1", port), 1))
        time.sleep(0.5)
        assert process.poll() is None
        for connection in connections:
            connection.close()
        until = time.monotonic() + 10
        while True:
            with contextlib.suppress(httpx.HTTPError):
                assert ask(url) == expected
                break
            assert time.monotonic() < until, "it answers again once descriptors are free"
        assert process.poll() is None


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tiny")


def complete(url: str) -> str:
    answer = httpx.post(
        f"{url}/v1/completions", json={"model": NAME, "prompt": "Hello", "max_tokens": 8, "temperature": 0}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


@pytest.mark.long
def test_a_model_whose_files_are_removed_is_served_on_and_missed_at_the_next_start(
    checkpoint: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    words = (checkpoint, "--name", NAME, "--port", 0, "--threads", 1)
    with thrifty(*words, THRIFTY_CACHE=str(cache)) as process:
        url = url_of(process)
        expected = complete(url)
        shutil.rmtree(checkpoint)
        shutil.rmtree(cache)
        assert complete(url) == expected
        wait_until_healthy(url)
    with thrifty(*words, THRIFTY_CACHE=str(cache)) as process:
        _, told = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in told and str(checkpoint) in told


@pytest.mark.long
def test_a_converted_copy_that_is_cut_ends_the_program_with_its_reason_and_is_made_anew(
    checkpoint: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    words = (checkpoint, "--name", NAME, "--port", 0, "--threads", 1)
    with thrifty(*words, THRIFTY_CACHE=str(cache)) as process:
        url = url_of(process)
        expected = complete(url)
        (weights,) = cache.rglob("weights.bin")
        os.truncate(weights, 4096)
        with pytest.raises(httpx.HTTPError):
            complete(url)
        assert process.wait(20) == -signal.SIGBUS
        assert process.stderr is not None and "Bus error" in process.stderr.read()
    with thrifty(*words, THRIFTY_CACHE=str(cache)) as process:
        assert complete(url_of(process)) == expected
