"""Knorm against norms that are summed up one by one."""

from __future__ import annotations

import math

import pytest
from tests.unit.cache.cache_driver import Driver, compressed, model_info, prompt

from thrifty import registry
from thrifty.cache.model_info import ModelInfo
from thrifty.errors import RecipeError


def smallest(model: ModelInfo, tokens: list[int], layer: int, head: int, count: int) -> list[int]:
    """The positions of the `count` keys of least norm, rising, by loops."""
    keys = Driver(model).rows(layer, tokens, 0)[1][:, head]
    norms = [math.sqrt(math.fsum(float(x) ** 2 for x in key)) for key in keys]
    return sorted(sorted(range(len(tokens)), key=lambda slot: norms[slot])[:count])


@pytest.mark.parametrize(("options", "count"), [({"capacity": 50}, 50), ({"keep": 0.25}, 50), ({"keep": 0.001}, 1)])
def test_the_keys_of_least_norm_stay(options: dict[str, float], count: int) -> None:
    model, tokens = model_info(heads=6, kv_heads=2), prompt(200)
    sequence = compressed(model, tokens, "knorm", **options)
    for layer in range(model.layers):
        for head in range(model.kv_heads):
            kept = sequence.view(layer).positions(head).tolist()
            assert kept == smallest(model, tokens, layer, head, count)


def test_short_prompts_are_left_alone_and_generated_tokens_stay() -> None:
    model = model_info()
    sequence = compressed(model, prompt(50), "knorm", capacity=50)
    for _ in range(130):
        Driver(model).step(sequence, [1])
    assert sequence.slots(0) == 180


@pytest.mark.parametrize(
    ("options", "message"),
    [({"keep": 0.0}, "use 0 < keep"), ({"capacity": 0}, "capacity ≥ 1"), ({"capacity": "budget"}, "use a number")],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        registry.build("cache", {"technique": "knorm"} | options)
