"""Budgets that differ by layer and head through the engine: alone = in a batch = in other chunks, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny import text_tokens
from tests.unit.engine.scored import score

from thrifty.arrays import Floats
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.models.model import Model

RECIPES: dict[str, list[dict[str, Any]]] = {
    "pyramidkv": [{"technique": "pyramidkv", "capacity": 90}],
    "headkv": [{"technique": "headkv", "capacity": 90}],
    "headkv + kivi": [{"technique": "headkv", "capacity": 90}, {"technique": "kivi", "bits": 2, "residual": 0}],
}


def logits(engine: Engine, cache: list[dict[str, Any]], others: list[dict[str, Any]] | None = None) -> list[Floats]:
    """Of every forced token after a prompt of 400, with another request beside it or without."""
    request = Request(prompt=text_tokens(400), forced=text_tokens(6, 3), cache=cache, logits=True, share_prefix=False)
    handle = engine.submit(request)
    if others is not None:
        engine.submit(Request(prompt=text_tokens(300, 5), forced=text_tokens(9, 6), cache=others, share_prefix=False))
    found = [event.logits.copy() for event in handle if event.logits is not None]
    while engine.busy:
        engine.step()
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_alone_in_a_batch_and_in_chunks(
    recipe: str, model: Model, make_engine: Callable[..., Engine], cache: Path
) -> None:
    score(model)
    engine = make_engine(model, prefix_tree=False, threads=1)
    alone = logits(engine, RECIPES[recipe])
    assert len(alone) == 6
    full = logits(engine, [])
    assert not np.array_equal(np.stack(alone[1:]), np.stack(full[1:])), "something was compressed"
    beside = logits(engine, RECIPES[recipe], RECIPES["pyramidkv"])
    chunked = logits(make_engine(model, prefix_tree=False, threads=1, chunk=128), RECIPES[recipe])
    for one, two, three in zip(alone, beside, chunked, strict=True):
        assert np.array_equal(one, two) and np.array_equal(one, three)
