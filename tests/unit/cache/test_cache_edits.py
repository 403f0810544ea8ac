"""The verbs of edits: alone, composed, and on quantised slots; a merging technique loads the interface."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from tests.unit.cache.cache_driver import Driver, attention, contents, model_info, prompt, rope

from thrifty import registry
from thrifty.cache.carry import carry_out
from thrifty.cache.composition import check_order
from thrifty.cache.edits import Edits
from thrifty.cache.model_info import LayerInfo, ModelInfo
from thrifty.cache.policy import CachePolicy
from thrifty.cache.pool import Cache
from thrifty.cache.rotation import rotate_again
from thrifty.cache.sequence import SequenceCache
from thrifty.cache.statistics import Statistics, Stats
from thrifty.cache.view import LayerView
from thrifty.errors import RecipeError


def filled(model: ModelInfo, n: int, cache: Cache | None = None) -> tuple[SequenceCache, list[int]]:
    tokens = prompt(n)
    sequence = (cache or Cache(model, disk=True)).create()
    Driver(model).prefill(sequence, tokens)
    return sequence, tokens


def probe(sequence: SequenceCache, token: int = 5) -> torch.Tensor:
    return torch.stack(Driver(sequence.model).step(sequence, [token]))


def test_keep_gathers_each_heads_own_slots() -> None:
    model = model_info()
    sequence, _ = filled(model, 192)
    before = contents(sequence)
    chosen = [torch.tensor([0, 3, 70, 190]), torch.arange(10, 100)]
    carry_out(sequence, Edits().keep(chosen, layer=1), (0, 1))
    for head in range(2):
        for old, new in zip(before[1][head], contents(sequence)[1][head], strict=True):
            assert torch.equal(old[chosen[head]], new)
        assert torch.equal(contents(sequence)[0][head][0], before[0][head][0]), "layer 0 is as it was"
    assert sequence.slots(1, 0) == 4 and sequence.slots(1, 1) == 90 and sequence.length == 192


def test_keep_attends_to_what_is_kept_only() -> None:
    model = model_info()
    sequence, tokens = filled(model, 128)
    kept = torch.arange(0, 128, 3)
    carry_out(sequence, Edits().keep(kept), (0, 1))
    found = probe(sequence)
    for layer in range(2):
        query, key, value = Driver(model).rows(layer, [*tokens, 5], 0)
        rest = torch.cat((kept, torch.tensor([128])))
        assert torch.allclose(found[layer], attention(model, query[-1:], key[rest], value[rest]), atol=1e-5)


@pytest.mark.parametrize("bad", [[3, 2], [0, 0], [-1], [128]])
def test_slots_that_do_not_exist_are_refused(bad: list[int]) -> None:
    sequence, _ = filled(model_info(), 128)
    with pytest.raises(RecipeError, match="sorted, unique and below 128"):
        carry_out(sequence, Edits().keep(torch.tensor(bad)), (0, 1))


def test_verbs_compose_in_their_order() -> None:
    model = model_info()
    cache = Cache(model, disk=True)
    sequence, _ = filled(model, 256, cache)
    before = contents(sequence)
    edits = Edits().keep(torch.arange(0, 256, 2))
    edits.merge([torch.tensor([4, 5, 9])], torch.ones(1, 16), torch.full((1, 16), 2.0), layer=0, head=1)
    edits.store(0, 64, "int8").move(0, 64, "disk")
    carry_out(sequence, edits, (0, 1))
    view = sequence.view(0)
    assert [view.count(head) for head in range(2)] == [128, 126]
    assert view.stretches(1)[0].tier == "disk"
    assert view.stretches(1)[0].format == "int8" and view.stretches(1)[-1].format == "f32"
    assert torch.allclose(view.values(1)[4], torch.full((16,), 2.0), atol=0.02)
    assert torch.allclose(view.keys(0), before[0][0][0][::2], atol=0.05)
    assert torch.equal(view.positions(1)[:8], torch.tensor([0, 2, 4, 6, 8, 12, 14, 16]))
    probe(sequence)
    carry_out(sequence, Edits().move(0, None, "memory"), (0, 1))
    assert {stretch.tier for stretch in sequence.view(0).stretches(1)} == {"memory"}
    sequence.free()
    assert cache.ledger.current == 0 and cache.tiers.disk is not None and cache.tiers.disk.used == 0


def test_moving_a_shared_page_to_disk_leaves_the_other_holder_alone() -> None:
    model = model_info()
    cache = Cache(model, disk=True)
    sequence, _ = filled(model, 128, cache)
    fork = sequence.fork()
    expected = probe(fork)
    carry_out(sequence, Edits().move(0, None, "disk"), (0, 1))
    assert all(segment.tier == "memory" for segment in fork.segments())
    assert {stretch.tier for stretch in sequence.view(0).stretches()} == {"disk"}
    assert torch.equal(probe(sequence), expected)


def test_select_attends_to_a_subset_and_deletes_nothing() -> None:
    model = model_info()
    sequence, tokens = filled(model, 128)
    plain = sequence.fork()
    chosen = [torch.tensor([0, 5, 64]), torch.arange(100, 128)]
    carry_out(sequence, Edits().select(chosen, layer=0), (0, 1))
    found = probe(sequence)[0]
    query, key, value = Driver(model).rows(0, [*tokens, 5], 0)
    for head in range(2):
        rest = torch.cat((chosen[head], torch.tensor([128])))
        expected = attention(model, query[-1:], key[rest], value[rest])
        assert torch.allclose(found[:, 2 * head : 2 * head + 2], expected[:, 2 * head : 2 * head + 2], atol=1e-5)
    carry_out(sequence, Edits().select(None, layer=0), (0, 1))
    probe(plain)
    assert torch.equal(probe(sequence), probe(plain)), "the next step sees everything again"


def test_share_reads_another_layers_slots_and_frees_its_own() -> None:
    model = model_info()
    cache = Cache(model)
    sequence, tokens = filled(model, 128, cache)
    carry_out(sequence, Edits().keep(torch.arange(64, 128), layer=0).share(1, 0), (0, 1))
    found = probe(sequence)[1]
    query, own_key, own_value = Driver(model).rows(1, [*tokens, 5], 0)
    _, key, value = Driver(model).rows(0, tokens, 0)
    key, value = torch.cat((key[64:], own_key[-1:])), torch.cat((value[64:], own_value[-1:]))
    assert torch.allclose(found, attention(model, query[-1:], key, value), atol=1e-5)
    sequence.free()
    assert cache.ledger.current == 0


def test_evicting_quantised_slots_never_requantises() -> None:
    model = model_info()
    cache = Cache(model)
    sequence, _ = filled(model, 256, cache)
    carry_out(sequence, Edits().store(0, None, "int4"), (0, 1))
    codes = contents(sequence)
    held = cache.tiers.arena.used
    first = [torch.arange(1, 256, 2), torch.arange(0, 256, 5)]
    carry_out(sequence, Edits().keep(first, layer=0), (0, 1))
    second = [torch.arange(40, 128), torch.arange(30, 52)]
    carry_out(sequence, Edits().keep(second, layer=0), (0, 1))
    for head in range(2):
        kept = first[head][second[head]]
        for old, new in zip(codes[0][head], contents(sequence)[0][head], strict=True):
            assert torch.equal(old[kept], new)
    found = probe(sequence)[0]
    query, own_key, own_value = Driver(model).rows(0, [5], 256)
    for head in range(2):
        keys, values, _ = contents(sequence)[0][head]
        own = slice(2 * head, 2 * head + 2)
        group = model_info(heads=2, kv_heads=1)
        key = torch.cat((keys, own_key[:, head]))[:, None]
        value = torch.cat((values, own_value[:, head]))[:, None]
        assert torch.allclose(found[:, own], attention(group, query[:, own], key, value), atol=1e-5)
    sequence.seal_tail()
    carry_out(sequence, Edits().keep([torch.tensor([3])] * 2, layer=0), (0, 1))
    carry_out(sequence, Edits().keep([torch.tensor([3])] * 2, layer=1), (0, 1))
    assert cache.tiers.arena.used < held / 2, "pages without a kept slot are given back"
    sequence.free()
    assert cache.ledger.current == 0


def test_rotating_again_equals_rotating_once() -> None:
    model = model_info(head_dim=32)
    plain = torch.randn(3, 9, 32)

    def turned(positions: torch.Tensor) -> torch.Tensor:
        cos, sin = rope(32, 0, positions)
        first, second = plain[..., :16], plain[..., 16:]
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    before, after = torch.arange(100, 109), torch.arange(4000, 4009)
    assert torch.allclose(rotate_again(model, 0, turned(before), before, after), turned(after), atol=1e-4)


def test_renumbering_many_times_is_as_exact_as_once() -> None:
    model = model_info(format="bf16")
    sequence, _ = filled(model, 128)
    once = sequence.fork()
    for first in range(500, 3000, 50):
        carry_out(sequence, Edits().renumber(0, 4, torch.arange(first, first + 4)), (0, 1))
    carry_out(once, Edits().renumber(0, 4, torch.arange(2950, 2954)), (0, 1))
    for head in range(2):
        assert torch.equal(sequence.view(1).keys(head), once.view(1).keys(head))
        assert sequence.view(1).positions(head)[:5].tolist() == [2950, 2951, 2952, 2953, 4]


@dataclass(frozen=True, kw_only=True)
class PairMerge(CachePolicy):
    """Adjacent pairs become their mean, with a bias of log 2: softmax mass is kept where the two keys agree."""

    exact = True

    def after_prefill(self, layer: LayerInfo, kv: LayerView, stats: Stats) -> Edits:
        edits = Edits()
        for head in range(kv.kv_heads):
            pairs = kv.count(head) // 2
            keys = kv.keys(head)[: 2 * pairs].view(pairs, 2, -1).mean(dim=1)
            values = kv.values(head)[: 2 * pairs].view(pairs, 2, -1).mean(dim=1)
            groups = list(torch.arange(2 * pairs).view(pairs, 2))
            edits.merge(groups, keys, values, layer=layer.index, head=head, bias=torch.full((pairs,), 2.0).log())
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
    pairs = torch.cat((key[:200].view(100, 2, 2, 16).mean(1), key[200:]))
    values = torch.cat((value[:200].view(100, 2, 2, 16).mean(1), value[200:]))
    logits = torch.einsum("hd,shd->hs", query[-1], pairs.repeat_interleave(2, dim=1)) * model.scale
    logits[:, :100] += torch.tensor(2.0).log()
    expected = torch.einsum("hs,shd->hd", logits.softmax(dim=-1), values.repeat_interleave(2, dim=1))
    assert torch.allclose(found[0], expected, atol=2e-2 if then_quantise else 1e-5)
    promised = cache.footprint(policies, 201, 202)
    assert cache.ledger.current <= promised.steady_bytes + sequence.model.kv_heads * 2 * 256 * 4
    sequence.free()
    assert cache.ledger.current == 0


def test_merging_sums_the_statistics() -> None:
    model = model_info()
    cache = Cache(model)
    sequence = cache.create(collect=Statistics(column_sums=True))
    Driver(model).prefill(sequence, prompt(128))
    before = [one.clone() for one in sequence.stats(0).column_sums or []]
    edits = Edits().merge([torch.tensor([3, 8])], torch.ones(1, 16), torch.ones(1, 16), layer=0, head=0)
    carry_out(sequence, edits, (0, 1))
    after = sequence.stats(0).column_sums or []
    assert torch.allclose(after[0][:, 3], before[0][:, 3] + before[0][:, 8])
    assert after[0].shape[1] == 127 and torch.equal(after[1], before[1])
    assert torch.allclose(after[0].sum(), before[0].sum())


def test_orders_that_cannot_work_are_refused() -> None:
    kivi, snapkv = (registry.build("cache", {"technique": name}) for name in ("kivi", "snapkv"))
    check_order([snapkv, kivi])
    with pytest.raises(RecipeError, match="put 'snapkv' before 'kivi'"):
        check_order([kivi, snapkv])
    with pytest.raises(RecipeError, match="both quantise"):
        Cache(model_info()).create([kivi, kivi])
    sequence = Cache(model_info()).create()
    Driver(model_info()).prefill(sequence, prompt(64))
    carry_out(sequence, Edits().store(0, None, "int4"), (0, 1))
    edits = Edits().merge([torch.tensor([3, 8])], torch.ones(1, 16), torch.ones(1, 16), layer=0, head=0)
    with pytest.raises(RecipeError, match="put the merging technique before the quantising one"):
        carry_out(sequence, edits, (0, 1))
