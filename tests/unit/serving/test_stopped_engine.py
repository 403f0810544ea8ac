"""An engine that an error stopped: its requests are told, and the next one gets a new engine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.unit.serving.live import SlowEngine, chat_body, eventually, get, live, post, tiny_engine

from thrifty.engine.engine import Engine
from thrifty.errors import BudgetError

CHAT = "/v1/chat/completions"


class Breaking(SlowEngine):
    """Every step fails once it is told so."""

    broken = False

    def step(self) -> list[object]:
        if self.broken:
            raise RuntimeError("the secret of this engine")
        return super().step()


def test_an_engine_that_could_not_be_opened_again_is_tried_with_every_request() -> None:
    opened: list[Engine] = []
    errors: list[Exception] = []

    def make() -> Engine:
        if errors:
            raise errors.pop()
        opened.append(tiny_engine(Breaking))
        return opened[-1]

    with live(make) as running:
        expected = post(running, CHAT, json=chat_body()).json()["choices"]
        opened[0].broken = True  # type: ignore[attr-defined]
        assert post(running, CHAT, json=chat_body()).status_code == 500
        errors += [OSError("too many files"), BudgetError("no memory")]
        for _ in range(2):
            answer = post(running, CHAT, json=chat_body())
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "load_failed"
            assert get(running, "/health").status_code == 503
        assert post(running, CHAT, json=chat_body()).json()["choices"] == expected
        assert get(running, "/health").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_stopped_engine_is_opened_again_for_the_next_request(stream: bool) -> None:
    opened: list[Engine] = []

    def make() -> Engine:
        opened.append(tiny_engine(Breaking))
        return opened[-1]

    with live(make) as running, ThreadPoolExecutor(4) as pool:
        expected = post(running, CHAT, json=chat_body()).json()["choices"]
        body = chat_body(max_tokens=2000, ignore_eos=True, stream=stream)
        under_way = [pool.submit(post, running, CHAT, json=body) for _ in range(2)]
        assert eventually(lambda: running.running() == 2, 10)
        opened[0].broken = True  # type: ignore[attr-defined]
        for answer in under_way:
            told = answer.result()
            assert told.status_code == (200 if stream else 500) and "secret" not in told.text
            assert '"code":"ThriftyError"' in told.text.replace(": ", ":")
        assert get(running, "/health").status_code == 503
        assert post(running, CHAT, json=chat_body()).json()["choices"] == expected
        assert len(opened) == 2 and get(running, "/health").status_code == 200
