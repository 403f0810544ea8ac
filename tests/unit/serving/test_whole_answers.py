"""Several answers of one request that are waited for together."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, cast

import pytest

from thrifty.engine.answer import Event, Sample, Usage
from thrifty.engine.async_handle import AsyncHandle
from thrifty.errors import ThriftyError
from thrifty.serving.metrics import Metrics
from thrifty.serving.openai.completions import all_whole


class Asked:
    """A handle of an answer that never comes, or that fails. left: whether nobody waits any more."""

    def __init__(self, error: Exception | None) -> None:
        self.error, self.left = error, False
        self.usage, self.samples, self.identity = Usage(1), list[Sample](), ""

    async def __aenter__(self) -> Asked:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.left = True

    def __aiter__(self) -> Asked:
        return self

    async def __anext__(self) -> Event:
        if self.error is not None:
            raise self.error
        await asyncio.sleep(60)
        raise StopAsyncIteration


def test_where_one_fails_the_others_are_ended() -> None:
    async def run() -> None:
        handles: list[Any] = [Asked(None), Asked(ThriftyError("broken")), Asked(None)]
        with pytest.raises(ThriftyError, match="broken"):
            await all_whole(cast("list[AsyncHandle]", handles), Metrics("m"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert all(handle.left for handle in handles)

    asyncio.run(asyncio.wait_for(run(), 10))
