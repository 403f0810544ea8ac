"""Every policy against a slow, obvious version of its paper's formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.unit.cache.cache_driver import Driver, attention, model_info, prompt, rotate, slow_groups

from thrifty import registry
from thrifty.arrays import Array, Floats, largest
from thrifty.cache.pool import Cache
from thrifty.cache.sequence import SequenceCache
from thrifty.errors import RecipeError
from thrifty.formats import kv as formats

MODEL = model_info(layers=2, heads=6, kv_heads=2)


def compressed(name: str, n: int, **options: Any) -> tuple[SequenceCache, list[int]]:
    tokens = prompt(n)
    sequence = Cache(MODEL).create([registry.build("cache", {"technique": name} | options)])
    Driver(MODEL).prefill(sequence, tokens)
    return sequence, tokens


def softmax(logits: Array) -> Array:
    """Along the last axis."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    found: Array = weights / weights.sum(axis=-1, keepdims=True)
    return found


def softmax_rows(layer: int, tokens: list[int], rows: slice) -> Floats:
    """Causal attention probabilities [heads, rows, tokens]."""
    query, key, _ = Driver(MODEL).rows(layer, tokens, 0)
    logits = np.einsum("nhd,shd->hns", query, np.repeat(key, MODEL.group, axis=1)) * MODEL.scale
    n = len(tokens)
    logits[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf
    return softmax(logits)[:, rows]


# --- SnapKV, Ada-KV ----------------------------------------------------------------------------------


def observation(layer: int, tokens: list[int], window: int, kernel: int, pooling: str, group: str) -> Floats:
    """[kv_heads, prefix]: summed, reduced over the group, pooled by loops."""
    n = len(tokens)
    sums = softmax_rows(layer, tokens, slice(n - window, n))[:, :, : n - window].sum(axis=1)
    by_group = sums.reshape(MODEL.kv_heads, MODEL.group, -1)
    score = {"mean": by_group.mean(1), "max": by_group.max(1), "sum": by_group.sum(1)}[group]
    pooled = np.zeros_like(score)
    for head in range(MODEL.kv_heads):
        for slot in range(n - window):
            near = score[head, max(0, slot - kernel // 2) : slot + kernel // 2 + 1]
            pooled[head, slot] = near.max() if pooling == "max" else near.sum() / kernel
    return pooled


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("group", ["mean", "max"])
@pytest.mark.parametrize("budget", [{"capacity": 50}, {"keep": 0.25}])
def test_snapkv(pooling: str, group: str, budget: dict[str, Any]) -> None:
    sequence, tokens = compressed("snapkv", 200, window=16, kernel=5, pooling=pooling, group=group, **budget)
    for layer in range(2):
        scores = observation(layer, tokens, 16, 5, pooling, group)
        for head in range(2):
            found = sequence.view(layer).positions(head)
            assert len(found) == 50 and found[-16:].tolist() == list(range(184, 200))
            best = np.sort(scores[head])[::-1][:34]
            assert scores[head][found[:-16]].sum() == pytest.approx(best.sum(), rel=1e-5)


def test_snapkv_leaves_short_prompts_alone_and_generated_tokens_stay() -> None:
    sequence, _ = compressed("snapkv", 100, window=16, capacity=100)
    assert sequence.slots(0) == 100
    sequence, _ = compressed("snapkv", 101, window=16, capacity=60)
    for _ in range(130):
        Driver(MODEL).step(sequence, [1])
    assert sequence.slots(0) == 60 + 130


@pytest.mark.parametrize("group", ["mean", "max"])
@pytest.mark.parametrize("floor_alpha", [0.2, 0.6])
@pytest.mark.parametrize(("n", "capacity"), [(200, 66), (90, 40)])
def test_ada_kv_shares_a_layers_budget_by_need(group: str, floor_alpha: float, n: int, capacity: int) -> None:
    options: dict[str, Any] = {"window": 16, "kernel": 5, "capacity": capacity}
    sequence, tokens = compressed("ada-kv", n, group=group, floor_alpha=floor_alpha, **options)
    budget = capacity - 16
    unequal = False
    for layer in range(2):
        scores = observation(layer, tokens, 16, 5, "max", group)
        best = largest(scores.reshape(-1), 2 * budget) // scores.shape[1]
        counts = [int((best == head).sum()) for head in range(2)]
        for head in range(2):
            expected = round((1 - floor_alpha) * counts[head] + int(floor_alpha * budget))
            assert sequence.slots(layer, head) == expected + 16
        unequal |= sequence.slots(layer, 0) != sequence.slots(layer, 1)
    assert unequal, "the heads of a layer hold different numbers of slots"


# --- H2O ---------------------------------------------------------------------------------------------


def slow_h2o(layer: int, head: int, tokens: list[int], n: int, budget: int, period: int) -> list[int]:
    """Positions kept: one row at a time over what is kept, evicting at the end of the prompt and every `period`."""
    query, key, _ = Driver(MODEL).rows(layer, tokens, 0)
    own = slice(head * MODEL.group, (head + 1) * MODEL.group)
    held: list[int] = []
    score: dict[int, float] = {}
    for row in range(len(tokens)):
        held.append(row)
        score[row] = 0.0
        logits = (query[row, own] @ key[held, head].T) * MODEL.scale
        for slot, mass in zip(held, softmax(logits).sum(axis=0).tolist(), strict=True):
            score[slot] += mass
        ends = row + 1 == n or (row + 1 > n and (row + 1 - n) % period == 0)
        if ends and len(held) > budget:
            recent = int(budget * 0.5)
            older = sorted(held[:-recent], key=lambda slot: -score[slot])[: budget - recent]
            held = sorted(older) + held[-recent:]
    return held


def test_h2o_at_prefill_and_while_decoding() -> None:
    n, generated = 150, 128
    sequence, tokens = compressed("h2o", n, capacity=40)
    for layer in range(2):
        for head in range(2):
            assert sequence.view(layer).positions(head).tolist() == slow_h2o(layer, head, tokens, n, 40, 64)
    more = prompt(generated, seed=3)
    for token in more:
        Driver(MODEL).step(sequence, [token])
    for layer in range(2):
        for head in range(2):
            expected = slow_h2o(layer, head, tokens + more, n, 40, 64)
            assert sequence.view(layer).positions(head).tolist() == expected


def test_h2o_budget_is_a_share_of_the_prompt() -> None:
    sequence, _ = compressed("h2o", 150, keep=0.2)
    assert sequence.slots(0) == 30


# --- StreamingLLM ------------------------------------------------------------------------------------


def slow_streaming(layer: int, tokens: list[int], held: list[int]) -> Floats:
    """The newest row's output with positions inside the cache: everything re-rotated to 0..len-1 (§3.2)."""
    query, key, value = Driver(MODEL).rows(layer, tokens, 0)
    there = np.array(held)
    plain = rotate(key[there], -there)
    keys = rotate(plain, np.arange(len(held)))
    last = np.array([len(tokens) - 1])
    own = rotate(rotate(query[-1:], -last), np.array([len(held) - 1]))
    return attention(MODEL, own, keys, value[there])


@pytest.mark.parametrize(("n", "generated"), [(300, 200), (90, 300), (2, 400)])
def test_streaming_equals_numbering_inside_the_cache(n: int, generated: int) -> None:
    sequence, tokens = compressed("streaming", n, sinks=4, window=100)
    driver, smallest, largest = Driver(MODEL), 10**6, 0
    for step, token in enumerate(prompt(generated, seed=3)):
        found = driver.step(sequence, [token])
        tokens.append(token)
        slots = sequence.slots(0)
        if slots < len(tokens):
            smallest, largest = min(smallest, slots - 4), max(largest, slots - 4)
        if step % 37 == 0 or step == generated - 1:
            held = [*range(min(4, slots)), *range(max(4, len(tokens) - slots + 4), len(tokens))]
            for layer in range(2):
                assert np.allclose(found[layer], slow_streaming(layer, tokens, held), atol=1e-4)
    assert 100 <= smallest <= largest <= 100 + 127, "the window moves by pages"


def test_streaming_drops_at_the_end_of_the_prompt() -> None:
    sequence, _ = compressed("streaming", 500, sinks=4, window=100)
    assert sequence.slots(0) == 104
    positions = sequence.view(0).positions(0).tolist()
    assert positions == list(range(396, 500)), "sinks stand right before the window"
    original, _ = compressed("streaming", 500, sinks=4, window=100, renumber=False)
    assert original.view(0).positions(0).tolist() == [*range(4), *range(400, 500)]


# --- KIVI --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4])
def test_kivi_quantises_keys_by_channel_and_values_by_token(bits: int) -> None:
    sequence, tokens = compressed("kivi", 300, bits=bits, residual=100)
    for layer in range(2):
        view = sequence.view(layer)
        _, key, value = Driver(MODEL).rows(layer, tokens, 0)
        formats_found = {(one.start, one.stop): one.format for one in view.stretches()}
        assert formats_found[(0, 192)] == f"int{bits}" and formats_found[(192, 256)] == "f32"
        for head in range(2):
            keys, values = view.keys(head), view.values(head)
            assert np.allclose(keys[:192], slow_groups(key[:192, head], bits, 0), atol=1e-3)
            assert np.allclose(values[:192], slow_groups(value[:192, head], bits, 1), atol=1e-3)
            assert np.array_equal(keys[192:], key[192:, head])


def test_kivi_streams_pages_out_of_the_residual() -> None:
    sequence, _ = compressed("kivi", 160, bits=2, residual=128)
    exact: list[int] = []
    for token in range(0, 400, 4):
        Driver(MODEL).step(sequence, [token] * 4)
        stretches = sequence.view(1).stretches()
        coded = sum(one.stop - one.start for one in stretches if one.quantised)
        exact.append(sequence.slots(1) - coded)
        assert [one.quantised for one in stretches] == sorted((one.quantised for one in stretches), reverse=True)
    assert min(exact[16:]) >= 128 and max(exact[16:]) <= 128 + 127
    pages = {span.segment for span in sequence.spans[0]} & {span.segment for span in sequence.spans[1]}
    assert any(segment.quantised for segment in pages), "a page of all layers is converted as one"


def test_kivi_takes_the_bytes_its_format_promises() -> None:
    sequence, _ = compressed("kivi", 640, bits=2, residual=64)
    coded = [segment for segment in sequence.segments() if segment.quantised]
    assert sum(one.tokens for one in coded) == 2 * 576
    for one in coded:
        need = 2 * formats.slab_bytes("int2", 576, 16)
        assert need <= one.nbytes < need + 4096


# --- options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"technique": "kivi", "bits": 3}, "bits"),
        ({"technique": "kivi", "residual": -1}, "residual = -1; use bits 2, 4 or 8 and residual ≥ 0"),
        ({"technique": "h2o", "keep": 0}, "use 0 < keep ≤ 1"),
        ({"technique": "snapkv", "kernel": 4}, "an odd kernel"),
        ({"technique": "snapkv", "keep": 1.5}, "use 0 < keep ≤ 1"),
        ({"technique": "ada-kv", "floor_alpha": 2}, "use 0 to 1"),
        ({"technique": "streaming", "window": 0}, "window ≥ 1"),
        ({"technique": "streaming", "windw": 9}, "Did you mean 'window'"),
    ],
)
def test_bad_options_are_refused_by_name(table: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        registry.build("cache", table)
