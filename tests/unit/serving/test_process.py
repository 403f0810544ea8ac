"""The server as a program: how it starts, and how it ends."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest
from tests.checkpoint import write_checkpoint
from tests.unit.serving.live import chat_body
from tests.unit.serving.programs import Reader, program, thrifty, url_of

pytestmark = pytest.mark.long


def test_an_answer_under_way_is_ended_in_peace_when_the_server_is_told_to_stop() -> None:
    with program(20, 10) as (process, url):
        reader = Reader(url, 60)
        reader.start()
        reader.begun.wait(10)
        process.send_signal(signal.SIGTERM)
        reader.join()
        assert process.wait(10) == 0
    assert reader.error is None and reader.lines[-1] == "data: [DONE]"
    assert reader.last()["choices"][0]["finish_reason"] == "length"


def test_an_answer_that_takes_longer_is_ended_within_the_time_and_says_so() -> None:
    with program(1, 20) as (process, url):
        reader = Reader(url, 3000)
        reader.start()
        reader.begun.wait(10)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        reader.join()
        assert process.wait(10) == 0
        assert 0.5 < time.monotonic() - began < 4
    assert reader.error is None
    error = json.loads(reader.lines[-1].removeprefix("data: "))["error"]
    assert error["code"] == "shutting_down" and error["type"] == "server_error"


def test_a_whole_answer_that_takes_longer_is_a_503() -> None:
    with program(1, 20) as (process, url):
        threading.Timer(0.7, process.send_signal, (signal.SIGTERM,)).start()
        body = chat_body(max_tokens=3000, ignore_eos=True)
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)
        assert process.wait(10) == 0
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "shutting_down"


def test_nobody_new_is_let_in_while_it_drains() -> None:
    with program(5, 20) as (process, url):
        reader = Reader(url, 100)
        reader.start()
        reader.begun.wait(10)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
        reader.join()
    assert reader.lines[-1] == "data: [DONE]"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("serving") / "tiny")


def test_a_model_that_cannot_be_loaded_ends_the_program(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with thrifty(tmp_path, "--port", 0) as process:
        _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in told and "model.safetensors" in told


def test_a_port_that_is_taken_is_said(checkpoint: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with thrifty(checkpoint, "--port", taken.getsockname()[1]) as process:
            _, told = process.communicate(timeout=60)
    assert process.returncode == 1 and "--port" in told and "Traceback" not in told


def test_a_public_address_without_a_key_is_refused(checkpoint: Path) -> None:
    with thrifty(checkpoint, "--host", "0.0.0.0", "--port", 0) as process:
        _, told = process.communicate(timeout=60)
    assert process.returncode == 1 and "--api-key" in told and "Traceback" not in told


def test_the_command_serves_a_checkpoint_and_ends_on_ctrl_c(checkpoint: Path) -> None:
    with thrifty(checkpoint, "--port", 0, "--threads", 1, THRIFTY_API_KEY="secret") as process:
        url = url_of(process)
        assert httpx.get(f"{url}/v1/models").status_code == 401
        headers = {"Authorization": "Bearer secret"}
        (model,) = httpx.get(f"{url}/v1/models", headers=headers).json()["data"]
        body = {"model": model["id"], "prompt": "Hello", "max_tokens": 4}
        answer = httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
