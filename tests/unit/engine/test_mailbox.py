"""Events on their way from an engine's thread to their event loops."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque

import pytest
from tests.unit.engine.test_asynchronous import request

from thrifty.engine.answer import Event
from thrifty.engine.asynchronous import AsyncEngine
from thrifty.engine.engine import Engine
from thrifty.engine.mailbox import Mailbox, Outbox
from thrifty.models.model import Model


class Emptied(deque[Mailbox]):
    """As it looks to a thread while another one takes the last of it."""

    def __bool__(self) -> bool:
        return True


def test_two_threads_may_deliver_at_a_time() -> None:
    outbox = Outbox()
    outbox._news = Emptied()
    outbox.deliver()


def test_no_event_of_two_threads_is_left_behind() -> None:
    async def read() -> None:
        outbox = Outbox()
        mailboxes = [Mailbox(outbox) for _ in range(8)]
        count = 400

        def write(part: list[Mailbox]) -> None:
            for place in range(count):
                for mailbox in part:
                    mailbox.put(Event("", 0, place))
            for mailbox in part:
                mailbox.put(None)

        threads = [threading.Thread(target=write, args=(mailboxes[place::2],)) for place in range(2)]
        for thread in threads:
            thread.start()

        async def taken(mailbox: Mailbox) -> int:
            events = 0
            while True:
                await mailbox.arrival()
                while mailbox.events:
                    if mailbox.events.popleft() is None:
                        return events
                    events += 1

        assert await asyncio.gather(*map(taken, mailboxes)) == [count] * 8
        for thread in threads:
            thread.join()

    asyncio.run(asyncio.wait_for(read(), 20))


class FailsAtTheEnd(Engine):
    """Its close raises when all else is done."""

    def close(self) -> None:
        super().close()
        raise OSError("the disk is gone")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_readers_are_told_of_the_end_by_an_engine_whose_close_fails(
    plain: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        engine = FailsAtTheEnd(plain)
        running = AsyncEngine(engine)
        handle = await running.submit(request(40, 3000))
        monkeypatch.setattr(engine, "step", lambda: time.sleep(0.01))  # no more events: the reader waits

        async def last() -> Event:
            return [event async for event in handle][-1]

        reading = asyncio.create_task(last())
        await asyncio.sleep(0.1)
        await running.close()
        assert (await asyncio.wait_for(reading, 5)).finish_reason == "cancelled"

    asyncio.run(asyncio.wait_for(scenario(), 20))
