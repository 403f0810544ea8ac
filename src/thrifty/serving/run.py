"""Running the server until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from thrifty.serving import process_limits
from thrifty.serving.app import create_app
from thrifty.serving.model_shelf import ModelShelf
from thrifty.serving.settings import ServerError, ServerSettings
from thrifty.serving.waking import WakingServer

_LOG = logging.getLogger("thrifty.serving")

LAST_WORDS = 2  # seconds for what clients are told when their answers were ended


def serve(models: ModelShelf, listening: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; answers under way get `drain_seconds` to end. listening: told the URL.

    Raises ServerError where the address cannot be had, and what loading a model raises that has to be there.
    """
    settings = models.settings
    settings.check()
    app = create_app(models, failed=lambda: server.stop())
    server = Draining(app, settings.drain_seconds, models.end_all)
    run_server(server, settings, listening)
    if models.failure is not None:
        raise models.failure


class Draining(WakingServer):
    """Ends the answers that are not over in time itself, so that each client is told why.

    seconds: that answers under way get to end. end_all: ends those that are left then.
    """

    def __init__(self, app: ASGIApp, seconds: float, end_all: Callable[[], None]) -> None:
        patience = math.ceil(seconds) + LAST_WORDS
        super().__init__(
            uvicorn.Config(
                app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=patience
            )
        )
        self._seconds, self._end_all = seconds, end_all

    def stop(self) -> None:
        """Begin to end."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        ending = loop.call_later(self._seconds, self._end_all)
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()


def run_server(server: Draining, settings: ServerSettings, listening: Callable[[str], None] | None) -> None:
    """Listen and serve until a signal, or `server.stop`. listening: told the URL. Raises ServerError."""
    process_limits.prepare()
    with _bound(settings) as listener, _signals_are_an_end():
        if listening is not None:
            listening(_url(listener))
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            runner.run(server.serve(sockets=[listener]))


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's: it takes less of the processors from the engine for each piece of text. It knows no Windows, where
    asyncio's serves.
    """
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


@contextlib.contextmanager
def _signals_are_an_end() -> Iterator[None]:
    """uvicorn raises again what ended it; to end when told to is a success."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _bound(settings: ServerSettings) -> socket.socket:
    """A socket at the address. Raises ServerError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host.strip("[]"), settings.port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ServerError(
            f"cannot listen at {settings.host} port {settings.port}: {error}. Give another --port (0: any), or end "
            "what listens there"
        ) from error
    listener.listen(128)
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
