"""KIVI: the paper's group and residual sizes, on pages of 64."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.cache.cache_driver import Driver, model_info, prompt, slow_groups

from thrifty import registry
from thrifty.cache.pool import Cache
from thrifty.cache.sequence import SequenceCache
from thrifty.errors import RecipeError

MODEL = model_info(layers=2, heads=6, kv_heads=2)


def compressed(n: int, **options: int) -> tuple[SequenceCache, list[int]]:
    tokens = prompt(n)
    sequence = Cache(MODEL).create([registry.build("cache", {"technique": "kivi"} | options)])
    Driver(MODEL).prefill(sequence, tokens)
    return sequence, tokens


@pytest.mark.parametrize("bits", [2, 4])
def test_groups_of_16(bits: int) -> None:
    sequence, tokens = compressed(300, bits=bits, group=16, residual=64)
    for layer in range(2):
        view = sequence.view(layer)
        _, key, value = Driver(MODEL).rows(layer, tokens, 0)
        assert view.stretches()[0].format == f"int{bits}g16" and view.stretches()[0].stop == 192
        for head in range(2):
            keys, values = view.keys(head), view.values(head)
            assert np.abs(keys[:192] - slow_groups(key[:192, head], bits, 0, 16)).max() < 1e-3
            assert np.abs(values[:192] - slow_groups(value[:192, head], bits, 1, 16)).max() < 1e-3
            assert np.abs(keys[:192] - slow_groups(key[:192, head], bits, 0, 32)).max() > 1e-2


@pytest.mark.parametrize("residual", [0, 32, 64, 128])
@pytest.mark.parametrize("step", [1, 3])
def test_the_newest_tokens_are_exact_whatever_the_residual(residual: int, step: int) -> None:
    """`residual` of them, and at most 127 more than its whole pages hold (the open page with them)."""
    sequence, _ = compressed(160, residual=residual)
    most = -(-residual // 64) * 64 + 127
    for token in range(0, 300, step):
        Driver(MODEL).step(sequence, [token] * step)
        stretches = sequence.view(1).stretches()
        coded = [one for one in stretches if one.quantised]
        assert stretches[: len(coded)] == coded
        exact = sequence.slots(1) - sum(one.stop - one.start for one in coded)
        assert residual <= exact <= most


def test_a_format_that_is_missing_is_refused() -> None:
    with pytest.raises(RecipeError, match="bits = 8, group = 16; use group 32, or group 16 with bits 2 or 4"):
        registry.build("cache", {"technique": "kivi", "bits": 8, "group": 16})
    with pytest.raises(RecipeError, match="option 'group'"):
        registry.build("cache", {"technique": "kivi", "group": 64})
