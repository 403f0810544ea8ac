"""The verbs of edits: alone, composed, and on quantised slots; a merging technique loads the interface."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from tests.unit.cache.cache_driver import Driver, attention, contents, model_info, noise, prompt, rope

from thrifty import registry
from thrifty.arrays import Floats, Integers, softmax
from thrifty.cache.composition import check_order
from thrifty.cache.editing.apply import apply_edits
from thrifty.cache.editing.renumbering import rotate_again
from thrifty.cache.edits import Edits
from thrifty.cache.model_info import LayerInfo, ModelInfo
from thrifty.cache.policy import CachePolicy
from thrifty.cache.pool import Cache
from thrifty.cache.sequence import SequenceCache
from thrifty.cache.statistics import Statistics, Stats
from thrifty.cache.traits import Traits
from thrifty.cache.view import LayerView
from thrifty.errors import RecipeError

ONE = np.ones((1, 16), np.float32)


def filled(model: ModelInfo, n: int, cache: Cache | None = None) -> tuple[SequenceCache, list[int]]:
    tokens = prompt(n)
    sequence = (cache or Cache(model, disk=True)).create()
    Driver(model).prefill(sequence, tokens)
    return sequence, tokens


def probe(sequence: SequenceCache, token: int = 5) -> Floats:
    return np.stack(Driver(sequence.model).step(sequence, [token]))


def test_keep_gathers_each_heads_own_slots() -> None:
    model = model_info()
    sequence, _ = filled(model, 192)
    before = contents(sequence)
    chosen = [np.array([0, 3, 70, 190]), np.arange(10, 100)]
    apply_edits(sequence, sequence.collector, Edits().keep(chosen, layer=1), (0, 1))
    for head in range(2):
        for old, new in zip(before[1][head], contents(sequence)[1][head], strict=True):
            assert np.array_equal(old[chosen[head]], new)
        assert np.array_equal(contents(sequence)[0][head][0], before[0][head][0]), "layer 0 is as it was"
    assert sequence.slots(1, 0) == 4 and sequence.slots(1, 1) == 90 and sequence.length == 192


def test_keep_attends_to_what_is_kept_only() -> None:
    model = model_info()
    sequence, tokens = filled(model, 128)
    kept = np.arange(0, 128, 3)
    apply_edits(sequence, sequence.collector, Edits().keep(kept), (0, 1))
    found = probe(sequence)
    for layer in range(2):
        query, key, value = Driver(model).rows(layer, [*tokens, 5], 0)
        rest = np.concatenate((kept, np.array([128])))
        assert np.allclose(found[layer], attention(model, query[-1:], key[rest], value[rest]), atol=1e-5)


@pytest.mark.parametrize("bad", [[3, 2], [0, 0], [-1], [128]])
def test_slots_that_do_not_exist_are_refused(bad: list[int]) -> None:
    sequence, _ = filled(model_info(), 128)
    with pytest.raises(RecipeError, match="sorted, unique and below 128"):
        apply_edits(sequence, sequence.collector, Edits().keep(np.array(bad)), (0, 1))


def test_verbs_compose_in_their_order() -> None:
    model = model_info()
    cache = Cache(model, disk=True)
    sequence, _ = filled(model, 256, cache)
    before = contents(sequence)
    edits = Edits().keep(np.arange(0, 256, 2))
    edits.merge([np.array([4, 5, 9])], ONE, 2 * ONE, layer=0, head=1)
    edits.store(0, 64, "int8").move(0, 64, "disk")
    apply_edits(sequence, sequence.collector, edits, (0, 1))
    view = sequence.view(0)
    assert [view.count(head) for head in range(2)] == [128, 126]
    assert view.stretches(1)[0].tier == "disk"
    assert view.stretches(1)[0].format == "int8" and view.stretches(1)[-1].format == "f32"
    assert np.allclose(view.values(1)[4], 2.0, atol=0.02)
    assert np.allclose(view.keys(0), before[0][0][0][::2], atol=0.05)
    assert np.array_equal(view.positions(1)[:8], np.array([0, 2, 4, 6, 8, 12, 14, 16]))
    probe(sequence)
    apply_edits(sequence, sequence.collector, Edits().move(0, None, "memory"), (0, 1))
    assert {stretch.tier for stretch in sequence.view(0).stretches(1)} == {"memory"}
    sequence.free()
    assert cache.ledger.current == 0 and cache.tiers.disk is not None and cache.tiers.disk.used == 0


def test_moving_a_shared_page_to_disk_leaves_the_other_holder_alone() -> None:
    model = model_info()
    cache = Cache(model, disk=True)
    sequence, _ = filled(model, 128, cache)
    fork = sequence.fork()
    expected = probe(fork)
    apply_edits(sequence, sequence.collector, Edits().move(0, None, "disk"), (0, 1))
    assert all(segment.tier == "memory" for segment in fork.segments())
    assert {stretch.tier for stretch in sequence.view(0).stretches()} == {"disk"}
    assert np.array_equal(probe(sequence), expected)


def test_select_attends_to_a_subset_and_deletes_nothing() -> None:
    model = model_info()
    sequence, tokens = filled(model, 128)
    plain = sequence.fork()
    chosen = [np.array([0, 5, 64]), np.arange(100, 128)]
    apply_edits(sequence, sequence.collector, Edits().select(chosen, layer=0), (0, 1))
    found = probe(sequence)[0]
    query, key, value = Driver(model).rows(0, [*tokens, 5], 0)
    for head in range(2):
        rest = np.concatenate((chosen[head], np.array([128])))
        expected = attention(model, query[-1:], key[rest], value[rest])
        assert np.allclose(found[:, 2 * head : 2 * head + 2], expected[:, 2 * head : 2 * head + 2], atol=1e-5)
    apply_edits(sequence, sequence.collector, Edits().select(None, layer=0), (0, 1))
    probe(plain)
    assert np.array_equal(probe(sequence), probe(plain)), "the next step sees everything again"


def test_share_reads_another_layers_slots_and_frees_its_own() -> None:
    model = model_info()
    cache = Cache(model)
    sequence, tokens = filled(model, 128, cache)
    apply_edits(sequence, sequence.collector, Edits().keep(np.arange(64, 128), layer=0).share(1, 0), (0, 1))
    found = probe(sequence)[1]
    query, own_key, own_value = Driver(model).rows(1, [*tokens, 5], 0)
    _, key, value = Driver(model).rows(0, tokens, 0)
    key, value = np.concatenate((key[64:], own_key[-1:])), np.concatenate((value[64:], own_value[-1:]))
    assert np.allclose(found, attention(model, query[-1:], key, value), atol=1e-5)
    sequence.free()
    assert cache.ledger.current == 0


def test_shared_slots_bring_their_column_sums() -> None:
    sequence = Cache(model_info()).create(collect=Statistics(column_sums=True, decode=True))
    Driver(model_info()).prefill(sequence, prompt(192))
    apply_edits(sequence, sequence.collector, Edits().store(0, 128, "int8").keep(np.arange(0, 192, 3), layer=0), (0, 1))
    apply_edits(sequence, sequence.collector, Edits().share(1, 0), (0, 1))
    mine, theirs = sequence.stats(1).column_sums, sequence.stats(0).column_sums
    assert mine is not None and theirs is not None
    assert all(one.shape == (2, 64) and np.array_equal(one, other) for one, other in zip(mine, theirs, strict=True))


def test_evicting_quantised_slots_never_requantises() -> None:
    model = model_info()
    cache = Cache(model)
    sequence, _ = filled(model, 256, cache)
    apply_edits(sequence, sequence.collector, Edits().store(0, None, "int4"), (0, 1))
    codes = contents(sequence)
    held = cache.tiers.arena.used
    first = [np.arange(1, 256, 2), np.arange(0, 256, 5)]
    apply_edits(sequence, sequence.collector, Edits().keep(first, layer=0), (0, 1))
    second = [np.arange(40, 128), np.arange(30, 52)]
    apply_edits(sequence, sequence.collector, Edits().keep(second, layer=0), (0, 1))
    for head in range(2):
        kept = first[head][second[head]]
        for old, new in zip(codes[0][head], contents(sequence)[0][head], strict=True):
            assert np.array_equal(old[kept], new)
    found = probe(sequence)[0]
    query, own_key, own_value = Driver(model).rows(0, [5], 256)
    for head in range(2):
        keys, values, _ = contents(sequence)[0][head]
        own = slice(2 * head, 2 * head + 2)
        group = model_info(heads=2, kv_heads=1)
        key = np.concatenate((keys, own_key[:, head]))[:, None]
        value = np.concatenate((values, own_value[:, head]))[:, None]
        assert np.allclose(found[:, own], attention(group, query[:, own], key, value), atol=1e-5)
    sequence.seal_tail()
    apply_edits(sequence, sequence.collector, Edits().keep([np.array([3])] * 2, layer=0), (0, 1))
    apply_edits(sequence, sequence.collector, Edits().keep([np.array([3])] * 2, layer=1), (0, 1))
    assert cache.tiers.arena.used < held / 2, "pages without a kept slot are given back"
    sequence.free()
    assert cache.ledger.current == 0


def test_rotating_again_equals_rotating_once() -> None:
    model = model_info(head_dim=32)
    plain = noise(1, 3, 9, 32)

    def turned(positions: Integers) -> Floats:
        cos, sin = rope(32, 0, positions)
        first, second = plain[..., :16], plain[..., 16:]
        return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)

    before, after = np.arange(100, 109), np.arange(4000, 4009)
    assert np.allclose(rotate_again(model, 0, turned(before), before, after), turned(after), atol=1e-4)


def test_renumbering_many_times_is_as_exact_as_once() -> None:
    model = model_info(format="bf16")
    sequence, _ = filled(model, 128)
    once = sequence.fork()
    for first in range(500, 3000, 50):
        apply_edits(sequence, sequence.collector, Edits().renumber(0, 4, np.arange(first, first + 4)), (0, 1))
    apply_edits(once, once.collector, Edits().renumber(0, 4, np.arange(2950, 2954)), (0, 1))
    for head in range(2):
        assert np.array_equal(sequence.view(1).keys(head), once.view(1).keys(head))
        assert sequence.view(1).positions(head)[:5].tolist() == [2950, 2951, 2952, 2953, 4]


@dataclass(frozen=True, kw_only=True)
class PairMerge(CachePolicy):
    """Adjacent pairs become their mean, with a bias of log 2: softmax mass is kept where the two keys agree."""

    traits = Traits(exact=True)

    def after_prefill(self, layer: LayerInfo, kv: LayerView, stats: Stats) -> Edits:
        edits = Edits()
        for head in range(kv.kv_heads):
            pairs = kv.count(head) // 2
            keys = kv.keys(head)[: 2 * pairs].reshape(pairs, 2, -1).mean(axis=1)
            values = kv.values(head)[: 2 * pairs].reshape(pairs, 2, -1).mean(axis=1)
            groups = list(np.arange(2 * pairs).reshape(pairs, 2))
            edits.merge(groups, keys, values, layer=layer.index, head=head, bias=np.full(pairs, np.log(2), np.float32))
        return edits

    def kept(self, prompt: int, generated: int = 0) -> int:
        return prompt - prompt // 2 + generated


PairMerge.name = "pair-merge"


@pytest.mark.parametrize("then_quantise", [False, True])
def test_a_merging_technique(then_quantise: bool) -> None:
    model = model_info()
    cache = Cache(model)
    policies: list[CachePolicy] = [PairMerge()]
    if then_quantise:
        policies.append(registry.build("cache", {"technique": "kivi", "bits": 8, "residual": 0}))
    sequence, driver, tokens = cache.create(policies), Driver(model), prompt(201)
    driver.prefill(sequence, tokens)
    assert sequence.slots(0) == 101 and sequence.length == 201
    found = probe(sequence)[0]
    query, key, value = driver.rows(0, [*tokens, 5], 0)
    pairs = np.concatenate((key[:200].reshape(100, 2, 2, 16).mean(1), key[200:]))
    values = np.concatenate((value[:200].reshape(100, 2, 2, 16).mean(1), value[200:]))
    logits = np.einsum("hd,shd->hs", query[-1], np.repeat(pairs, 2, axis=1)) * model.scale
    logits[:, :100] += np.log(2)
    expected = np.einsum("hs,shd->hd", softmax(logits), np.repeat(values, 2, axis=1))
    assert np.allclose(found[0], expected, atol=2e-2 if then_quantise else 1e-5)
    promised = cache.footprint(policies, 201, 202)
    assert cache.ledger.current <= promised.steady_bytes + sequence.model.kv_heads * 2 * 256 * 4
    sequence.free()
    assert cache.ledger.current == 0


def test_merging_sums_the_statistics() -> None:
    model = model_info()
    cache = Cache(model)
    sequence = cache.create(collect=Statistics(column_sums=True))
    Driver(model).prefill(sequence, prompt(128))
    before = [one.copy() for one in sequence.stats(0).column_sums or []]
    edits = Edits().merge([np.array([3, 8])], ONE, ONE, layer=0, head=0)
    apply_edits(sequence, sequence.collector, edits, (0, 1))
    after = sequence.stats(0).column_sums or []
    assert np.allclose(after[0][:, 3], before[0][:, 3] + before[0][:, 8])
    assert after[0].shape[1] == 127 and np.array_equal(after[1], before[1])
    assert np.allclose(after[0].sum(), before[0].sum())


def test_orders_that_cannot_work_are_refused() -> None:
    kivi, snapkv = (registry.build("cache", {"technique": name}) for name in ("kivi", "snapkv"))
    check_order([snapkv, kivi])
    with pytest.raises(RecipeError, match="put 'snapkv' before 'kivi'"):
        check_order([kivi, snapkv])
    with pytest.raises(RecipeError, match="both quantise"):
        Cache(model_info()).create([kivi, kivi])
    sequence = Cache(model_info()).create()
    Driver(model_info()).prefill(sequence, prompt(64))
    apply_edits(sequence, sequence.collector, Edits().store(0, None, "int4"), (0, 1))
    edits = Edits().merge([np.array([3, 8])], ONE, ONE, layer=0, head=0)
    with pytest.raises(RecipeError, match="put the merging technique before the quantising one"):
        apply_edits(sequence, sequence.collector, edits, (0, 1))
