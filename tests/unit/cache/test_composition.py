"""Techniques in a row: what a chain leaves, and what attention reads from it, equals each step by hand on arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from tests.unit.cache.cache_driver import Driver, model_info, prompt
from tests.unit.cache.test_cache_native import native_prefill, native_step
from tests.unit.cache.test_kvmerger import slow_head
from tests.unit.cache.test_policy_formulas import slow_groups
from tests.unit.kernels.native_pages import using

from thrifty import registry
from thrifty.arrays import BFLOAT16, Floats, largest, softmax
from thrifty.cache.composition import check_order
from thrifty.cache.edits import Edits
from thrifty.cache.model_info import LayerInfo, ModelInfo
from thrifty.cache.policy import CachePolicy
from thrifty.cache.pool import Cache
from thrifty.cache.sequence import SequenceCache
from thrifty.cache.statistics import Stats
from thrifty.cache.view import LayerView
from thrifty.errors import RecipeError
from thrifty.kernels import dispatch

MODEL = model_info(layers=2, heads=4, kv_heads=2, head_dim=64, format="bf16")
TOKENS, GENERATED = 420, 40
RESIDUAL = 64
OPTIONS: dict[str, dict[str, Any]] = {
    "snapkv": {"window": 16, "kernel": 5, "keep": 0.7, "group": "mean"},
    "kvmerger": {"keep": 0.5, "first": 0, "last": 0, "sigma": 5.0},
    "kivi": {"residual": RESIDUAL},
}
CHAINS = [["kvmerger", "kivi"], ["snapkv", "kvmerger", "kivi"], ["kvmerger", "snapkv", "kivi"]]
PATHS = [
    "reference",
    pytest.param("native", marks=pytest.mark.skipif(dispatch.native() is None, reason="native code is not built")),
]


@pytest.fixture(autouse=True)
def single_products() -> Iterator[None]:
    """fp32 products natively: AVX-512 rounds queries to bf16."""
    if dispatch.native() is None:
        yield
        return
    with using("avx2"):
        yield


def build(names: list[str], bits: int, mass: str = "bias") -> list[CachePolicy]:
    extra: dict[str, dict[str, Any]] = {"kivi": {"bits": bits}, "kvmerger": {"mass": mass}}
    tables = [{"technique": name} | OPTIONS[name] | extra.get(name, {}) for name in names]
    return [registry.build("cache", table) for table in tables]


# --- by hand -----------------------------------------------------------------------------------------


@dataclass
class Slots:
    """One head's slots: keys, values [n, d], bias [n], column sums [n]."""

    keys: Floats
    values: Floats
    bias: Floats
    sums: Floats


def rounded(x: Floats) -> Floats:
    """fp32 → bf16 → fp32."""
    return x.astype(BFLOAT16).astype(np.float32)


def whole(layer: int, tokens: list[int]) -> list[Slots]:
    """Every head before anything is done."""
    query, key, value = Driver(MODEL).rows(layer, tokens, 0)
    key, value, n = rounded(key), rounded(value), len(tokens)
    logits = query.swapaxes(0, 1) @ np.repeat(key, MODEL.group, 1).transpose(1, 2, 0) * MODEL.scale
    logits[:, np.triu(np.ones((n, n), np.bool_), 1)] = -np.inf
    sums = softmax(logits).sum(1).reshape(MODEL.kv_heads, MODEL.group, n).sum(1)
    zero = np.zeros(n, np.float32)
    return [Slots(key[:, head], value[:, head], zero, sums[head]) for head in range(MODEL.kv_heads)]


def snapkv_by_hand(heads: list[Slots], layer: int, tokens: list[int]) -> list[Slots]:
    query = Driver(MODEL).rows(layer, tokens, 0)[0][-16:]
    kept = []
    for head, one in enumerate(heads):
        n, score = len(one.keys), np.zeros(len(one.keys) - 16, np.float32)
        for row in range(16):
            for member in range(MODEL.group):
                seen = n - 15 + row
                logits = one.keys[:seen] @ query[row, head * MODEL.group + member] * MODEL.scale + one.bias[:seen]
                score += softmax(logits)[: n - 16] / MODEL.group
        pooled = np.stack([score[max(0, slot - 2) : slot + 3].max() for slot in range(n - 16)])
        best = sorted(largest(pooled, int(0.7 * n) - 16).tolist())
        place = np.array([*best, *range(n - 16, n)])
        kept.append(Slots(one.keys[place], one.values[place], one.bias[place], one.sums[place]))
    return kept


def kvmerger_by_hand(heads: list[Slots], mass: str) -> list[Slots]:
    pairs = []
    for head, one in enumerate(heads):
        n = len(one.keys)
        recent, heavy = int(0.17 * n + 1e-6), int(0.12 * n + 1e-6)
        fixed = {*range(n - recent, n), *largest(one.sums[: n - recent], heavy).tolist()}
        for slot in range(n - 1):
            if slot not in fixed and slot + 1 not in fixed:
                left, right = one.keys[slot], one.keys[slot + 1]
                cosine = left @ right / (np.linalg.norm(left) * np.linalg.norm(right))
                pairs.append((float(cosine), head, slot))
    merges = sum(len(one.keys) - int(0.5 * len(one.keys)) for one in heads)
    joined = {(head, slot) for _, head, slot in sorted(pairs, reverse=True)[:merges]}
    result = []
    for head, one in enumerate(heads):
        sets = [[0]]
        for slot in range(1, len(one.keys)):
            if (head, slot - 1) in joined:
                sets[-1].append(slot)
            else:
                sets.append([slot])
        keys, values, bias = slow_head(one.keys, one.values, one.sums, sets, mass)
        sums = np.stack([one.sums[part].sum() for part in sets])
        result.append(Slots(rounded(keys), rounded(values), bias, sums))
    return result


def kivi_by_hand(heads: list[Slots], bits: int) -> list[Slots]:
    result = []
    for one in heads:
        border = max(0, len(one.keys) - RESIDUAL) // 64 * 64
        keys = np.concatenate((slow_groups(one.keys[:border], bits, 0), one.keys[border:]))
        values = np.concatenate((slow_groups(one.values[:border], bits, 1), one.values[border:]))
        result.append(Slots(keys, values, one.bias, one.sums))
    return result


def by_hand(names: list[str], layer: int, tokens: list[int], bits: int, mass: str) -> list[Slots]:
    heads = whole(layer, tokens)
    for name in names:
        if name == "snapkv":
            heads = snapkv_by_hand(heads, layer, tokens)
        elif name == "kvmerger":
            heads = kvmerger_by_hand(heads, mass)
        else:
            heads = kivi_by_hand(heads, bits)
    return heads


def answer_by_hand(heads: list[Slots], layer: int, tokens: list[int], start: int) -> Floats:
    """The newest row's output [heads, d] over the compressed prompt and the exact tokens from `start` on."""
    query, key, value = Driver(MODEL).rows(layer, tokens, 0)
    out = []
    for head in range(MODEL.heads):
        one, own = heads[head // MODEL.group], head // MODEL.group
        keys = np.concatenate((one.keys, rounded(key[start:, own])))
        values = np.concatenate((one.values, rounded(value[start:, own])))
        bias = np.concatenate((one.bias, np.zeros(len(tokens) - start, np.float32)))
        out.append(softmax(keys @ query[-1, head] * MODEL.scale + bias) @ values)
    return np.stack(out)


# --- by the cache ------------------------------------------------------------------------------------


def prefilled(names: list[str], path: str, tokens: list[int], bits: int, mass: str = "bias") -> SequenceCache:
    sequence = Cache(MODEL).create(build(names, bits, mass))
    if path == "reference":
        Driver(MODEL).prefill(sequence, tokens)
        return sequence
    native_prefill(sequence, tokens)
    return sequence


def nearly(found: Floats, expected: Floats, step: float) -> None:
    """Equal but for single numbers on the border between two codes."""
    assert found.shape == expected.shape
    off = np.abs(found - expected)
    assert float((off > 0.02).mean()) < 0.005 and float(off.max()) <= step, f"off by up to {off.max()}"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("names", CHAINS, ids="+".join)
def test_a_chain_equals_its_steps_by_hand(names: list[str], bits: int, path: str) -> None:
    tokens = prompt(TOKENS)
    sequence = prefilled(names, path, tokens, bits)
    expected = [by_hand(names, layer, tokens, bits, "bias") for layer in range(MODEL.layers)]
    step = 8 / (2**bits - 1)
    for layer in range(MODEL.layers):
        view = sequence.view(layer)
        for head, one in enumerate(expected[layer]):
            nearly(view.keys(head), one.keys, step)
            nearly(view.values(head), one.values, step)
            assert np.allclose(view.bias(head), one.bias, atol=1e-5)
            coded = sum(part.stop - part.start for part in view.stretches(head) if part.quantised)
            assert coded >= 64 and float(one.bias[:coded].max()) > 0.5, "merged slots lie in pages of codes"
    more = prompt(GENERATED, seed=3)
    for place in range(GENERATED):
        found = (Driver(MODEL).step if path == "reference" else native_step)(sequence, more[place : place + 1])
        for layer in range(MODEL.layers) if place in (0, GENERATED - 1) else ():
            wanted = answer_by_hand(expected[layer], layer, [*tokens, *more[: place + 1]], TOKENS)
            assert np.allclose(found[layer][0], wanted, atol=0.02), f"layer {layer}, step {place}"


@pytest.mark.parametrize("path", PATHS)
def test_the_published_values_survive_the_chain_too(path: str) -> None:
    tokens = prompt(TOKENS)
    sequence = prefilled(["kvmerger", "kivi"], path, tokens, 4, "published")
    for head, one in enumerate(by_hand(["kvmerger", "kivi"], 0, tokens, 4, "published")):
        nearly(sequence.view(0).values(head), one.values, 3.0)
        assert not sequence.view(0).bias(head).any()


@pytest.mark.parametrize("path", PATHS)
def test_a_long_answer_ages_into_codes_and_keeps_the_prompts_biases(path: str) -> None:
    tokens = prompt(TOKENS)
    sequence = prefilled(["kvmerger", "kivi"], path, tokens, 4)
    before = [[sequence.view(layer).bias(head) for head in range(2)] for layer in range(2)]
    more = prompt(300, seed=3)
    for first in range(0, 300, 15):
        (Driver(MODEL).step if path == "reference" else native_step)(sequence, more[first : first + 15])
    for layer in range(MODEL.layers):
        for head in range(MODEL.kv_heads):
            view = sequence.view(layer)
            assert np.array_equal(view.bias(head)[: len(before[layer][head])], before[layer][head])
            assert not view.bias(head)[len(before[layer][head]) :].any()
            exact = sum(part.stop - part.start for part in view.stretches(head) if not part.quantised)
            assert exact <= RESIDUAL + 2 * 64


@pytest.mark.parametrize("names", CHAINS, ids="+".join)
@pytest.mark.parametrize("model", [MODEL, model_info(layers=3, heads=6, kv_heads=3, head_dim=64)], ids=["bf16", "f32"])
def test_the_ledger_stays_within_the_footprint_of_a_chain(names: list[str], model: ModelInfo) -> None:
    for n in (130, 500):
        cache, policies = Cache(model), build(names, 2)
        sequence = cache.create(policies)
        Driver(model).prefill(sequence, prompt(n), chunk=128)
        for first in range(0, 140, 10):
            Driver(model).step(sequence, prompt(140, seed=2)[first : first + 10])
            promised = cache.footprint(policies, n, sequence.length)
            assert cache.ledger.current <= promised.steady_bytes and cache.ledger.peak <= promised.peak_bytes


def test_a_window_slides_in_every_layer_by_what_it_holds() -> None:
    """Layers that hold different numbers of slots: each lets go of its own oldest pages."""

    @dataclass(frozen=True, kw_only=True)
    class Slope(CachePolicy):
        name = "slope"

        def after_prefill(self, layer: LayerInfo, kv: LayerView, stats: Stats) -> Edits:
            return Edits().keep(np.arange(0, kv.count(), 1 + layer.index), layer=layer.index)

    window = registry.build("cache", {"technique": "streaming", "window": 256})
    sequence = Cache(MODEL).create([Slope(), window])
    Driver(MODEL).prefill(sequence, prompt(500))
    assert [sequence.slots(layer) for layer in range(2)] == [260, 250]
    more = prompt(700, seed=2)
    for first in range(0, 700, 10):
        found = Driver(MODEL).step(sequence, more[first : first + 10])
        assert all(np.isfinite(one).all() for one in found)
    for layer in range(2):
        assert 260 <= sequence.slots(layer) <= 260 + 127
        newest = sequence.view(layer).positions(0)
        assert np.array_equal(newest[-128:], np.arange(int(newest[-1]) - 127, int(newest[-1]) + 1))
        sinks = sequence.view(layer).positions(0)[:5]
        assert sinks.tolist() == list(range(sinks[0], sinks[0] + 5)), "numbered right before the window"


def test_orders_that_cannot_work_are_refused_by_name() -> None:
    pairs = [("kivi", "kvmerger"), ("kivi", "snapkv"), ("kivi", "streaming")]
    for early, late in [*pairs, ("kvmerger", "streaming"), ("ada-kv", "streaming")]:
        options = [OPTIONS.get(name, {}) for name in (early, late)]
        chain = [
            registry.build("cache", {"technique": name} | own) for name, own in zip((early, late), options, strict=True)
        ]
        with pytest.raises(RecipeError, match=f"put '{late}' before '{early}'"):
            check_order(chain)
        check_order(chain[::-1])
