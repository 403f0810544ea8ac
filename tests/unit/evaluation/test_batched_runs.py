"""Measurements that run together: what each sees is what it would see alone, and an error ends all of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from tests.tiny import tiny_model

from thrifty.api import open_engine
from thrifty.engine.engine import Engine
from thrifty.errors import ThriftyError
from thrifty.evaluation import tasks
from thrifty.evaluation.batched_runs import run_batched
from thrifty.evaluation.forcing import force

CACHE = [{"technique": "snapkv", "keep": 0.5, "window": 16}]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    made = open_engine(tiny_model(packed=True), threads=1, prefix_tree=False)
    yield made
    made.close()


def prompts(count: int) -> list[list[int]]:
    chance = np.random.default_rng(3)
    return [chance.integers(1, 90, 60 + 40 * place).tolist() for place in range(count)]


def forced(engine: Any, prompt: list[int], steps: int) -> list[Any]:
    return [step.logits for step in force(engine, prompt, prompt[:steps], CACHE, logits=True)]


def test_results_are_those_of_runs_alone_to_the_bit(engine: Engine) -> None:
    jobs = [partial(forced, prompt=prompt, steps=5 + place) for place, prompt in enumerate(prompts(6))]
    together = dict(run_batched(engine, jobs, width=3))
    assert sorted(together) == list(range(6))
    for place, job in enumerate(jobs):
        for ours, alone in zip(together[place], job(engine), strict=True):
            assert np.array_equal(ours, alone)
    assert not engine.busy


def test_forked_questions_are_answered_as_alone(engine: Engine) -> None:
    task = tasks.load("multi-request", length=300, requests=3)
    items = task.items(engine.model.require_tokenizer(), 4, 0)
    jobs = [partial(task.run, item=item, cache=CACHE) for item in items]
    together = dict(run_batched(engine, jobs))
    for place, item in enumerate(items):
        alone = task.run(engine, item, CACHE)
        assert (together[place].output, together[place].details) == (alone.output, alone.details)


def test_a_step_serves_all_who_wait(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    drive = Engine.drive

    def counted(self: Engine, handle: Any, together: bool = False) -> None:
        steps.append(handle)
        drive(self, handle, together)

    monkeypatch.setattr(Engine, "drive", counted)
    same = prompts(1)[0]
    list(run_batched(engine, [partial(forced, prompt=same, steps=20)] * 4))
    together = len(steps)
    steps.clear()
    forced(engine, same, 20)
    assert together < 2 * len(steps), "four runs took not even twice the steps of one"


def test_the_first_error_ends_all_and_nothing_is_left(engine: Engine) -> None:
    def failing(own: Any) -> None:
        forced(own, prompts(1)[0], 2)
        raise ValueError("planted")

    before = threading.active_count()
    with pytest.raises(ValueError, match="planted"):
        list(run_batched(engine, [partial(forced, prompt=prompt, steps=30) for prompt in prompts(3)] + [failing]))
    assert not engine.busy and threading.active_count() == before


def test_leaving_the_loop_ends_what_runs(engine: Engine) -> None:
    runs = run_batched(
        engine, [partial(forced, prompt=prompt, steps=3 + 20 * n) for n, prompt in enumerate(prompts(4))]
    )
    next(iter(runs))
    runs.close()  # type: ignore[attr-defined]
    assert not engine.busy


def test_an_error_of_the_engine_reaches_the_caller(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    jobs = [partial(forced, prompt=prompt, steps=3) for prompt in prompts(2)]
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "drive", broken)
        with pytest.raises(KeyboardInterrupt):
            list(run_batched(engine, jobs))
    assert not engine.busy
    assert len(dict(run_batched(engine, jobs))) == 2


def test_what_a_measurement_left_unread_cannot_be_read_after_it(engine: Engine) -> None:
    def leaving(own: Any) -> Iterator[Any]:
        return force(own, prompts(1)[0], prompts(1)[0][:3], CACHE, logits=True)

    runs = run_batched(engine, [leaving, partial(forced, prompt=prompts(1)[0], steps=20)])
    _, left = next(iter(runs))
    with pytest.raises(ThriftyError, match="outside its thread"):
        list(left)
    assert len(dict(runs)[1]) == 20
    assert not engine.busy


def test_a_thread_that_cannot_start_ends_all(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refused(self: threading.Thread) -> None:
        if self.name == "measurement 1":
            raise RuntimeError("can't start new thread")
        start(self)

    before = threading.active_count()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        with pytest.raises(RuntimeError, match="can't start"):
            list(run_batched(engine, [partial(forced, prompt=prompt, steps=3) for prompt in prompts(2)]))
    assert not engine.busy and threading.active_count() == before
