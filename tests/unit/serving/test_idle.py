"""A server that nobody asks does next to nothing, and ends at once when it is told to."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import uvicorn
from tests.unit.serving.live import NAME, tiny_engine

from thrifty.serving.model_shelf import ModelShelf
from thrifty.serving.run import serve
from thrifty.serving.served_model import ModelSource
from thrifty.serving.settings import ServerSettings

pytestmark = pytest.mark.long


def test_it_does_not_look_again_and_again_whether_it_is_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[float] = []
    told: list[float] = []
    original = uvicorn.Server.on_tick

    async def on_tick(self: uvicorn.Server, counter: int) -> bool:
        looked.append(time.monotonic())
        return await original(self, counter)

    def end() -> None:
        told.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(uvicorn.Server, "on_tick", on_tick)
    shelf = ModelShelf(ServerSettings(port=0), [ModelSource(NAME, lambda fits: tiny_engine())], preload=True)
    serve(shelf, lambda url: threading.Timer(1.6, end).start())
    assert 2 <= len(looked) <= 4, "uvicorn's own would have looked sixteen times"
    assert looked[-1] - told[0] < 0.5
