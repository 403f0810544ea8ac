"""A server in a thread of the test's own process, on a free port, over a tiny model."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from tests.tiny import tiny_model

from thrifty.engine.engine import Engine
from thrifty.serving.app import create_app
from thrifty.serving.model_shelf import ModelShelf
from thrifty.serving.served_model import Fits, ModelSource
from thrifty.serving.service import Service
from thrifty.serving.settings import ServerSettings

NAME = "tiny"


class SlowEngine(Engine):
    """An engine whose every step takes so many seconds more: an answer that lasts as long as a test needs."""

    pause = 0.01

    def step(self) -> list[Any]:
        time.sleep(self.pause)
        return super().step()


class Shelf:
    """A running server over some models. url: without a path."""

    def __init__(self, models: ModelShelf) -> None:
        self.models = models
        self.settings = models.settings
        app = create_app(models, failed=lambda: setattr(self.server, "should_exit", True))
        self.server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
        )
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(128)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(verify=False, timeout=30, limits=httpx.Limits(max_connections=100))
        self._thread = threading.Thread(target=lambda: self.server.run(sockets=[self._socket]), daemon=True)

    def start(self) -> None:
        """Let it run; returns as soon as it listens."""
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self.server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._socket.close()
        self.client.close()


class Live(Shelf):
    """A running server over one model. engine: the one behind it, once it is loaded."""

    def __init__(self, settings: ServerSettings, make: Callable[[], Engine]) -> None:
        self.engine: Engine | None = None

        def opened(fits: Fits) -> Engine:
            self.engine = make()
            return self.engine

        super().__init__(ModelShelf(settings, [ModelSource(NAME, opened)], preload=True))

    @property
    def service(self) -> Service:
        """The only model's."""
        return self.models.named(NAME)

    def wait(self) -> None:
        """Until the model is loaded."""
        until = time.monotonic() + 30
        while not self.service.ready:
            assert time.monotonic() < until, "the server did not load its model"
            time.sleep(0.005)

    def held(self) -> int:
        """Bytes that requests hold: all but weights, workspace, the prefix tree, and grammars, which are kept for the
        next request that has them.
        """
        assert self.engine is not None
        usage = self.engine.usage()
        kept = sum(usage.bytes_of(owner) for owner in ("weights", "workspace", "grammars"))
        return usage.current - kept - usage.tree

    def running(self) -> int:
        """Sequences that wait or are computed."""
        assert self.engine is not None
        usage = self.engine.usage()
        return usage.active + usage.waiting + usage.parked


def tiny_engine(kind: type[Engine] = Engine, **options: Any) -> Engine:
    """An engine over a packed tiny model."""
    return kind(tiny_model(packed=True), **{"memory": "64MB", "threads": 1, "batch": 16, **options})


@contextmanager
def live(make: Callable[[], Engine] = tiny_engine, wait: bool = True, **settings: Any) -> Iterator[Live]:
    """A server that is stopped at the end."""
    server = Live(ServerSettings(**settings), make)
    server.start()
    try:
        if wait:
            server.wait()
        yield server
    finally:
        server.stop()


@contextmanager
def shelf(sources: Sequence[ModelSource], memory: int | None = None, **settings: Any) -> Iterator[Shelf]:
    """A server over several models that is stopped at the end."""
    server = Shelf(ModelShelf(ServerSettings(**settings), sources, memory=memory))
    server.start()
    try:
        yield server
    finally:
        server.stop()


def eventually(holds: Callable[[], bool], seconds: float = 1.0) -> bool:
    """Whether it comes to hold within so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.01)
    return holds()


def chat_body(content: str = "hello", **fields: Any) -> dict[str, Any]:
    """A chat completion's body; greedy and short unless told otherwise."""
    body = {"model": NAME, "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 8}
    return body | fields


def post(server: Shelf, path: str, **options: Any) -> httpx.Response:
    """One request."""
    return server.client.post(server.url + path, **options)


def get(server: Shelf, path: str, **options: Any) -> httpx.Response:
    """One request without a body."""
    return server.client.get(server.url + path, **options)
