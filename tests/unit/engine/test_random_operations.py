"""A thousand random operations on an engine under pressure: its books always balance, and nothing is lost."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
from tests.tiny import text_tokens
from tests.unit.engine.corridor import own_rows, random_adapter

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Handle, Request
from thrifty.errors import BudgetError, PromptError, QueueFullError, RecipeError
from thrifty.models.model import Model

OPERATIONS = 1000
CACHES: tuple[list[dict[str, Any]], ...] = (
    [],
    [{"technique": "kivi", "bits": 2}],
    [{"technique": "streaming", "window": 64}],
    [{"technique": "snapkv", "keep": 0.5}],
    [{"technique": "h2o", "capacity": 60}],
)


def check(engine: Engine) -> None:
    """Invariants between steps: within the budget, arena and ledger agree, no reservation without a sequence."""
    ledger, cache = engine.memory.ledger, engine.memory.cache
    assert ledger.budget is not None
    assert ledger.current <= ledger.peak <= ledger.budget
    assert ledger.committed <= ledger.budget
    in_arena = sum(ledger.bytes_of(name) for name in ("cache", "tree", "scratch"))
    assert cache.tiers.arena.used == in_arena
    if not engine.busy:
        assert (ledger.bytes_of("cache"), ledger.bytes_of("scratch"), ledger.bytes_of("index")) == (0, 0, 0)
        assert ledger.committed == ledger.current


def random_request(chance: random.Random) -> Request:
    sampling = SamplingParameters(
        max_tokens=chance.choice((1, 20, 100, 200)),
        temperature=chance.choice((0.0, 1.0)),
        seed=chance.randint(0, 9),
        ignore_eos=True,
    )
    return Request(
        prompt=text_tokens(chance.choice((3, 64, 130, 200)), chance.randint(0, 2)),
        sampling=sampling,
        samples=chance.choice((1, 1, 1, 3)),
        cache=chance.choice(CACHES),
        share_prefix=chance.random() < 0.7,
    )


def more_than_tokens(engine: Engine, request: Request, chance: random.Random) -> Request:
    """The request with an adapter, an embedded piece, taps and steering, each at times."""
    prompt: list[Any] = list(request.prompt)
    if chance.random() < 0.5:
        positions = [place // 2 for place in range(len(prompt) - 2)]
        piece = own_rows(engine, prompt[2:], ("image", *prompt), positions=chance.choice((None, positions)))
        prompt = [*prompt[:2], piece]
    return dataclasses.replace(
        request,
        prompt=prompt,
        adapter=chance.choice((None, "a", "b")),
        taps=chance.choice(((), (1,))),
        steering=chance.choice(({}, {0: np.full(128, 0.5, np.float32)})),
    )


SEEDS = [(2, True), pytest.param(7, True, marks=pytest.mark.long), (3, False)]


@pytest.mark.parametrize(("seed", "plain"), SEEDS)
def test_random_operations_keep_the_books_in_order(packed: Model, make_engine: Any, seed: int, plain: bool) -> None:
    chance = random.Random(seed)
    adapters = {} if plain else {name: random_adapter(packed, 4, rank) for rank, name in enumerate("ab")}
    free = make_engine(packed, batch=8)
    room = free.memory.footprint((), 200, 330, 3).peak_bytes
    engine = make_engine(
        packed,
        batch=8,
        queue=6,
        memory=packed.nbytes + free.memory.workspace + room + sum(adapter.nbytes for adapter in adapters.values()),
        adapters=adapters,
        prefill_slice_ms=1e-6,  # a layer a step: no clock decides how many steps a prompt takes
    )
    handles: list[Handle] = []
    refused = 0
    for _ in range(OPERATIONS):
        action = chance.choices(("submit", "step", "cancel", "fork"), (2, 20, 1, 1))[0]
        try:
            if action == "submit":
                request = random_request(chance)
                handles.append(engine.submit(request if plain else more_than_tokens(engine, request, chance)))
            elif action == "step":
                engine.step()
            elif handles and action == "cancel":
                chance.choice(handles).cancel()
            elif handles:
                handles.append(chance.choice(handles).fork(SamplingParameters(max_tokens=20, temperature=1.0)))
        except (QueueFullError, PromptError, BudgetError, RecipeError):
            refused += 1
        check(engine)
    for handle in handles:
        handle.result()
    check(engine)
    assert not engine.busy
    assert all(handle.error is None for handle in handles)
    assert sum(len(sample.token_ids) for handle in handles for sample in handle.samples) > 1000
    assert sum(handle.usage.preemptions for handle in handles) > 0, "there was no pressure"
    assert refused > 0
    assert len(handles) > 30
