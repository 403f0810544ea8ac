"""The hub is asked once, and what went wrong is one line that says what to do."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest

from thrifty.errors import DownloadError
from thrifty.models import hub


@dataclass
class Hub:
    """A hub of one answer. requests: the paths that it was asked for."""

    status: int = 200
    files: list[dict[str, Any]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    answer = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer.requests.append(self.path)
            body = json.dumps({"id": "someone/thing", "siblings": answer.files}).encode()
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    use(monkeypatch, tmp_path, f"http://127.0.0.1:{server.server_port}")
    yield answer
    server.shutdown()
    server.server_close()


def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, endpoint: str) -> None:
    """Another hub, and an empty local cache."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


def failure(action: Any) -> str:
    with pytest.raises(DownloadError) as error:
        action()
    return str(error.value)


@pytest.mark.parametrize("call", [hub.fetch, hub.fetch_config])
def test_without_a_network_it_is_one_line_at_once(
    call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    use(monkeypatch, tmp_path, "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "_local", lambda repository, file: hub._tried(repository, missing))
    start = time.monotonic()
    with caplog.at_level(logging.WARNING):
        message = failure(lambda: call("someone/thing"))
    assert time.monotonic() - start < hub.SECONDS_TO_ANSWER
    assert message.startswith("someone/thing is not in the hub's local cache, and the hub cannot be reached (")
    assert message.endswith("check the network, or give a folder or a GGUF file")
    assert "\n" not in message and caplog.text == ""


def missing(library: Any) -> str:
    raise FileNotFoundError("nothing is cached")


def test_an_embedded_model_asks_once_too(served: Hub, tmp_path: Path) -> None:
    served.status = 503
    message = failure(lambda: hub.download_file("someone/thing", "a.gguf", "0" * 64, tmp_path))
    assert "the hub cannot be reached" in message and len(served.requests) == 1


@pytest.mark.parametrize(("status", "expected"), [(404, "status 404"), (401, "status 401"), (503, "cannot be reached")])
def test_an_answer_that_is_none_is_asked_for_once(
    served: Hub, status: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.status = status
    monkeypatch.setattr(hub, "_local", lambda repository, file: hub._tried(repository, missing))
    message = failure(lambda: hub.fetch("someone/thing"))
    assert expected in message and len(served.requests) == 1
    if status != 503:
        assert "check the name; for a private or gated model ask for access and set HF_TOKEN" in message


def test_an_earlier_download_is_used_with_a_message(
    served: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served.status = 503
    monkeypatch.setattr(hub, "_local", lambda repository, file: tmp_path)
    with caplog.at_level(logging.WARNING):
        assert hub.fetch("someone/thing") == tmp_path
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("using what an earlier download left of someone/thing: the hub cannot be")


def test_of_several_files_in_the_local_cache_one_must_be_named(
    served: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served.status = 503
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    library: Any = SimpleNamespace(snapshot_download=lambda *_, **__: str(tmp_path))
    monkeypatch.setattr(hub, "_tried", lambda repository, action: action(library))
    assert "name one GGUF file as 'someone/thing:FILE.gguf'" in failure(lambda: hub.fetch("someone/thing"))


def test_the_files_and_their_hashes_come_with_one_question(served: Hub, tmp_path: Path) -> None:
    served.files = [
        {"rfilename": "README.md"},
        {"rfilename": "a.gguf", "lfs": {"sha256": "1" * 64, "size": 3, "pointerSize": 9}},
    ]
    assert hub._ask("someone/thing") == {"README.md": None, "a.gguf": "1" * 64}
    message = failure(lambda: hub.download_file("someone/thing", "a.gguf", "2" * 64, tmp_path))
    assert message == "someone/thing holds another version of a.gguf"
    assert len(served.requests) == 2


def test_a_hub_that_says_nothing_is_left_soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "SECONDS_TO_ANSWER", -0.9)  # and a second more for the answer to arrive
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: time.sleep(0.5))
    assert "the hub cannot be reached (no answer in time)" in failure(lambda: hub._ask("someone/thing"))
