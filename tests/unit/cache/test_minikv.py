"""MiniKV against a slow version of its selection, its pyramid and its codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.unit.cache.cache_driver import Driver, model_info, prompt, slow_groups
from tests.unit.cache.test_policy_formulas import softmax

from thrifty import registry
from thrifty.arrays import Floats
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.policies.minikv import Minikv
from thrifty.cache.pool import Cache
from thrifty.cache.sequence import SequenceCache
from thrifty.errors import RecipeError
from thrifty.formats import kv

MODEL = model_info(windows=(None, 50, None, None), heads=6, kv_heads=2)
GLOBAL = (0, 2, 3)


def compressed(n: int, model: ModelInfo = MODEL, **options: Any) -> tuple[SequenceCache, list[int]]:
    tokens = prompt(n)
    sequence = Cache(model).create([registry.build("cache", {"technique": "minikv"} | options)])
    Driver(model).prefill(sequence, tokens)
    return sequence, tokens


def slow_sums(layer: int, tokens: list[int], group: str) -> Floats:
    """[kv_heads, n]: each key's attention probability, summed over all queries row by row, reduced over the group."""
    query, key, _ = Driver(MODEL).rows(layer, tokens, 0)
    sums = np.zeros((MODEL.heads, len(tokens)), np.float32)
    for head in range(MODEL.heads):
        for row in range(len(tokens)):
            logits = key[: row + 1, head // MODEL.group] @ query[row, head] * MODEL.scale
            sums[head, : row + 1] += softmax(logits)
    by_group = sums.reshape(MODEL.kv_heads, MODEL.group, -1)
    return by_group.sum(1) if group == "sum" else by_group.max(1)


def slow_choice(sums: Floats, heavy: int, recent: int) -> set[int]:
    """The newest `recent`, and the `heavy` best of the older."""
    n = len(sums)
    older = sorted(range(n - recent), key=lambda slot: -float(sums[slot]))
    return {*older[:heavy], *range(n - recent, n)}


@pytest.mark.parametrize("group", ["sum", "max"])
@pytest.mark.parametrize(("layers", "shares"), [("uniform", (0.25, 0.25, 0.25)), ("pyramid", (13 / 28, 0.25, 1 / 28))])
def test_what_is_kept(group: str, layers: str, shares: tuple[float, ...]) -> None:
    """δ = 7, α = 1/4: 2α − α/δ = 13/28 in the first global layer, α/δ = 1/28 in the last."""
    n = 230
    sequence, tokens = compressed(n, layers=layers, group=group)
    for layer, share in zip(GLOBAL, shares, strict=True):
        sums = slow_sums(layer, tokens, group)
        for head in range(MODEL.kv_heads):
            found = sequence.view(layer).positions(head).tolist()
            assert found == sorted(slow_choice(sums[head], int(share * n), int(0.25 * n)))


def test_what_is_kept_lies_in_two_bits_by_groups_of_16_kept_tokens() -> None:
    sequence, tokens = compressed(300)
    for layer in GLOBAL:
        view = sequence.view(layer)
        assert [one.format for one in view.stretches()] == ["int2g16"]
        _, key, value = Driver(MODEL).rows(layer, tokens, 0)
        for head in range(2):
            kept = view.positions(head)
            assert len(kept) % 16, "a last group of fewer is part of the test"
            assert np.abs(view.keys(head) - slow_groups(key[kept, head], 2, 0, 16)).max() < 1e-3
            assert np.abs(view.values(head) - slow_groups(value[kept, head], 2, 1, 16)).max() < 1e-3


@pytest.mark.long
@pytest.mark.parametrize("residual", [64, 128])
def test_generated_tokens_become_codes_all_at_once(residual: int) -> None:
    sequence, _ = compressed(300, residual=residual)
    before = sequence.slots(0)
    for made in range(1, 3 * residual + 40):
        Driver(MODEL).step(sequence, [made])
        stretches = sequence.view(3).stretches()
        coded = sum(one.stop - one.start for one in stretches if one.quantised)
        assert sequence.slots(0) == before + made, "nothing is evicted"
        assert sequence.slots(3) - coded == made % residual
    pages = {id(span.segment) for span in sequence.spans[0]} & {id(span.segment) for span in sequence.spans[3]}
    assert pages, "a page of all layers is converted as one"


def test_bytes_are_those_of_four_bits_a_number_of_half_the_tokens() -> None:
    model = model_info(layers=4, heads=4, kv_heads=2, head_dim=64, format="bf16")
    sequence, _ = compressed(2048, model)
    full = 2048 * 4 * 2 * 64 * 2 * 2
    codes = [segment for segment in sequence.segments() if segment.quantised]
    held = sum(one.nbytes - one.index_bytes for one in codes)
    assert 0.5 * full / 4 <= held <= 0.5 * full / 4 + 4 * (2 * kv.slab_bytes("int2g16", 64, 64) + 4096)
    assert sum(one.nbytes for one in sequence.segments()) == pytest.approx(held, rel=0.1), "nothing stays exact"


def test_bounds_are_those_of_the_mean_and_of_the_widest_layer() -> None:
    policy = Minikv()
    for n in (1, 2, 64, 300, 1000):
        sequence, _ = compressed(n)
        counts = [sequence.slots(layer) for layer in GLOBAL]
        assert sum(counts) / 3 <= policy.kept(n) <= n
        assert max(counts) <= policy.kept_in_layer(n) <= n
    assert policy.kept(1000) <= 501 and policy.kept_in_layer(1000) <= 250 + 465


def test_a_second_prompt_leaves_codes_alone() -> None:
    sequence, _ = compressed(300)
    first = [sequence.view(0).positions(head) for head in range(2)]
    Driver(MODEL).prefill(sequence, [*range(300), *prompt(200, seed=2)])
    for head in range(2):
        found = sequence.view(0).positions(head)
        assert np.array_equal(found[: len(first[head])], first[head])
        assert len(found) == len(first[head]) + int(13 / 28 * 200) + 50


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"heavy": 1.5}, "heavy = 1.5, recent = 0.25; use shares of 0 to 1"),
        ({"heavy": 0, "recent": 0}, "that are not both 0"),
        ({"delta": 0.5}, "delta = 0.5; use 1 .all layers alike. or more"),
        ({"residual": 100}, "residual = 100; use a positive multiple of 64"),
        ({"bits": 8}, "use subchannel 32 with 8 bits"),
        ({"subchannel": 64}, "option 'subchannel'"),
    ],
)
def test_bad_options_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        registry.build("cache", {"technique": "minikv"} | table)
