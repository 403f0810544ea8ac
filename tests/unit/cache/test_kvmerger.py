"""KVMerger against a slow, obvious version of the paper's steps (arXiv 2407.08454, section 4)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.cache.cache_driver import Driver, attention, model_info, prompt
from tests.unit.cache.test_policy_formulas import MODEL, compressed, softmax_rows

from thrifty import registry
from thrifty.arrays import Floats
from thrifty.cache.edits import Edits, Groups
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.policies.kvmerger import merged, protected
from thrifty.cache.pool import Cache
from thrifty.cache.sequence import SequenceCache
from thrifty.errors import RecipeError

ENDS: dict[str, Any] = {"first": 0, "last": 0}
SIGMA = 5.0


def build(**options: Any) -> Any:
    return registry.build("cache", {"technique": "kvmerger"} | options)


def slow_sets(keys: Floats, fixed: set[int], threshold: float) -> list[list[int]]:
    """Merging sets: from the last key to the first, a key joins the set of the next one while they are alike."""
    sets: list[list[int]] = []
    current = [len(keys) - 1]
    for slot in range(len(keys) - 2, -1, -1):
        one, other = keys[slot], keys[slot + 1]
        cosine = float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
        if cosine > threshold and slot not in fixed and slot + 1 not in fixed:
            current.insert(0, slot)
            continue
        sets.insert(0, current)
        current = [slot]
    return [one for one in [current, *sets] if one]


def slow_slot(
    keys: Floats, values: Floats, scores: Floats, members: list[int], mass: str, sigma: float | None = SIGMA
) -> tuple[Any, ...]:
    """One set's key, value and logit bias. sigma: None: distances to the pivot, summed, over √2·n."""
    if len(members) == 1:
        return keys[members[0]], values[members[0]], 0.0
    pivot = max(members, key=lambda slot: (float(scores[slot]), -slot))
    far = [float(np.linalg.norm(keys[pivot] - keys[slot])) for slot in members]
    width = sum(far) / (math.sqrt(2) * len(members)) if sigma is None else sigma
    kernel = [math.exp(-(distance**2) / (2 * width**2)) if width else 1.0 for distance in far]
    weights = [one / sum(kernel) for one in kernel]
    key = sum((weight * keys[slot] for weight, slot in zip(weights, members, strict=True)), np.zeros(()))
    value = sum((weight * values[slot] for weight, slot in zip(weights, members, strict=True)), np.zeros(()))
    if mass == "published":
        return key, value * len(members), 0.0
    return key, value, math.log(len(members))


def slow_head(
    keys: Floats, values: Floats, scores: Floats, sets: list[list[int]], mass: str, sigma: float | None = SIGMA
) -> list[Floats]:
    """All slots of one head: keys, values, biases."""
    slots = [slow_slot(keys, values, scores, members, mass, sigma) for members in sets]
    return [np.stack(part) for part in zip(*slots, strict=True)]


def sums_of(layer: int, tokens: list[int]) -> Floats:
    """[kv_heads, tokens]: attention columns summed over queries and the group."""
    n = len(tokens)
    return softmax_rows(layer, tokens, slice(0, n)).sum(axis=1).reshape(MODEL.kv_heads, MODEL.group, n).sum(axis=1)


def fixed_slots(scores: Floats, recent: int, heavy: int) -> set[int]:
    n = len(scores)
    best = sorted(range(n - recent), key=lambda slot: -float(scores[slot]))[:heavy]
    return set(best) | set(range(n - recent, n))


@pytest.mark.parametrize("mass", ["bias", "published"])
@pytest.mark.parametrize("threshold", [0.75, 0.1, -0.2])
@pytest.mark.parametrize("sigma", [SIGMA, None])
def test_a_threshold_merges_as_published(mass: str, threshold: float, sigma: float | None) -> None:
    sequence, tokens = compressed("kvmerger", 200, threshold=threshold, mass=mass, sigma=sigma, **ENDS)
    for layer in range(2):
        view, sums = sequence.view(layer), sums_of(layer, tokens)
        _, key, value = Driver(MODEL).rows(layer, tokens, 0)
        for head in range(MODEL.kv_heads):
            fixed = fixed_slots(sums[head], int(0.17 * 200), int(0.12 * 200))
            sets = slow_sets(key[:, head], fixed, threshold)
            keys, values, bias = slow_head(key[:, head], value[:, head], sums[head], sets, mass, sigma)
            assert view.positions(head).tolist() == [one[0] for one in sets]
            assert np.allclose(view.keys(head), keys, atol=1e-5)
            assert np.allclose(view.values(head), values, atol=1e-4)
            assert np.allclose(view.bias(head), bias, atol=1e-6)
            assert threshold > 0 or len(sets) < 170, "something was merged"


@pytest.mark.parametrize("keep", [0.5, 0.35, 0.8])
def test_a_budget_is_met_by_one_threshold_a_layer(keep: float) -> None:
    """The pairs of both heads, the most similar first, until the budget is met."""
    sequence, tokens = compressed("kvmerger", 200, keep=keep, **ENDS)
    recent, heavy = {0.5: (34, 24), 0.35: (16, 4), 0.8: (54, 38)}[keep]
    for layer in range(2):
        assert sum(sequence.sealed_counts(layer)) == 2 * int(keep * 200)
        _, key, _ = Driver(MODEL).rows(layer, tokens, 0)
        sums = sums_of(layer, tokens)
        pairs = []
        for head in range(2):
            fixed = fixed_slots(sums[head], recent, heavy)
            for slot in range(199):
                if slot not in fixed and slot + 1 not in fixed:
                    pairs.append((cosine(key[slot, head], key[slot + 1, head]), head, slot))
        joined = {(head, slot) for _, head, slot in sorted(pairs, reverse=True)[: 2 * (200 - int(keep * 200))]}
        for head in range(2):
            firsts = [slot for slot in range(200) if (head, slot - 1) not in joined]
            assert sequence.view(layer).positions(head).tolist() == firsts


def cosine(one: Floats, other: Floats) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def test_the_papers_bound_merges_alike_neighbours_by_default() -> None:
    """Keys that wander: neighbours are alike, so that 0.75 merges long runs, and breaks them where they turn."""
    model = model_info(layers=4, heads=2, kv_heads=2)
    random, n = np.random.default_rng(5), 120
    key = np.cumsum(random.standard_normal((n, 2, 16), np.float32), axis=0) / 4 + 1
    value, sums = random.standard_normal((n, 2, 16), np.float32), random.random((2, 1, n), np.float32)
    sequence = Cache(model).create([build()])
    for layer in range(4):
        sequence.begin_layer(layer, n)
        sequence.append(layer, key, value)
        sequence.observe(layer, None, list(sums))
        sequence.seal_layer(layer)
    sequence.commit(n)
    for layer in range(4):
        view = sequence.view(layer)
        for head in range(2):
            fixed = fixed_slots(sums[head, 0], int(0.17 * n), int(0.12 * n))
            sets = slow_sets(key[:, head], fixed, 0.75) if layer == 2 else [[slot] for slot in range(n)]
            keys, values, bias = slow_head(key[:, head], value[:, head], sums[head, 0], sets, "published", None)
            assert view.positions(head).tolist() == [members[0] for members in sets]
            assert np.allclose(view.keys(head), keys, atol=1e-4) and np.allclose(view.values(head), values, atol=1e-3)
            assert not view.bias(head).any() and not any(bias)
            if layer == 2:
                assert 2 < len(sets) < 0.7 * n and max(map(len, sets)) > 3, "runs of several lengths"


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40),
    seed=st.integers(0, 1000),
    mass=st.sampled_from(["bias", "published"]),
    ties=st.booleans(),
    sigma=st.sampled_from([SIGMA, None]),
)
def test_runs_of_any_shape(n: int, seed: int, mass: str, ties: bool, sigma: float | None) -> None:
    random = np.random.default_rng(seed)
    keys, values = (random.standard_normal((n, width), np.float32) for width in (6, 4))
    scores, links = random.random(n, np.float32), random.random(n - 1) > 0.5
    scores = scores.round(1) if ties else scores
    groups, key, value, bias = merged(keys, values, np.zeros(n, np.float32), scores, links, sigma, mass)
    sets = [[0]]
    for slot in range(1, n):
        if links[slot - 1]:
            sets[-1].append(slot)
        else:
            sets.append([slot])
    sets = [one for one in sets if len(one) > 1]
    assert [one.tolist() for one in np.split(groups.members, np.cumsum(groups.sizes)[:-1]) if len(one)] == sets
    if sets:
        expected = slow_head(keys, values, scores, sets, mass, sigma)
        assert np.allclose(key, expected[0], atol=1e-5) and np.allclose(value, expected[1], atol=1e-5)
        assert (bias is None) == (mass == "published")
        assert bias is None or np.allclose(bias, expected[2], atol=1e-6)


def test_what_was_merged_before_weighs_as_much_as_it_stood_for() -> None:
    random = np.random.default_rng(0)
    keys, links = random.standard_normal((4, 6), np.float32), np.array([True, False, True])
    bias = np.log(np.array([3.0, 1.0, 1.0, 1.0], np.float32))
    _, _, _, again = merged(keys, keys, bias, random.random(4, np.float32), links, SIGMA, "bias")
    assert again is not None and np.allclose(np.exp(again), [4.0, 2.0])


def test_equal_keys_merge_without_loss_under_the_bias_alone() -> None:
    """The correction is exact where the keys of a set agree; the published one leaves the softmax's sum short."""
    model = model_info(layers=1, heads=2, kv_heads=2)
    outputs = {}
    query = np.random.default_rng(3).standard_normal((1, 2, 16), np.float32)
    for mass in ("full", "bias", "published"):
        key, value = _repeated(model, 120, 4)
        sequence = Cache(model).create([] if mass == "full" else [build(mass=mass, threshold=0.99, **ENDS)])
        if mass == "full":
            sequence.reserve(120)
            sequence.append(0, key, value)
        else:
            sequence.begin_layer(0, 120)
            sequence.append(0, key, value)
            sequence.observe(0, None, [np.random.default_rng(4).random((1, 120), np.float32) for _ in range(2)])
            sequence.seal_layer(0)
        sequence.commit(120)
        sequence.reserve(1)
        sequence.append(0, key[-1:], value[-1:])
        outputs[mass] = sequence.attend(0, query)
    assert np.allclose(outputs["bias"], outputs["full"], atol=1e-5)
    assert not np.allclose(outputs["published"], outputs["full"], atol=1e-2)


def _repeated(model: ModelInfo, n: int, times: int) -> tuple[Floats, Floats]:
    """Keys and values [n, kv_heads, d] in runs of equal ones."""
    random, shape = np.random.default_rng(1), (n // times, model.kv_heads, model.head_dim)
    key, value = (random.standard_normal(shape, np.float32) for _ in range(2))
    return np.repeat(key, times, axis=0), np.repeat(value, times, axis=0)


def test_layers_at_the_ends_stay_and_the_others_keep_less() -> None:
    model = model_info(layers=6, heads=4, kv_heads=2)
    policy = build(keep=0.7)
    assert policy.merged_layers(model) == (2, 3, 4)
    sequence = Cache(model).create([policy])
    Driver(model).prefill(sequence, prompt(200))
    counts = [sum(sequence.sealed_counts(layer)) / 2 for layer in range(6)]
    assert counts[:2] == [200, 200] and counts[5] == 200
    assert counts[2] == counts[3] == counts[4] == 80, "0.7 · 6 layers less the 3 whole ones, on 3 layers"
    assert sum(counts) / 6 <= policy.kept(200)


def test_windowed_layers_do_not_count_as_first_or_last() -> None:
    model = model_info(windows=(64, None, 64, None, None, None), heads=4, kv_heads=2)
    assert build(first=1, last=1).merged_layers(model) == (3, 4)


def test_statistics_of_a_merged_slot_are_those_of_its_tokens() -> None:
    sequence, tokens = compressed_with_sums()
    for layer in range(2):
        expected = softmax_rows(layer, tokens, slice(0, 200)).sum(axis=1)
        for head, found in enumerate(sequence.stats(layer).column_sums or []):
            firsts = sequence.view(layer).positions(head)
            own = expected[head * MODEL.group : (head + 1) * MODEL.group]
            summed = [part.sum(axis=1) for part in np.split(own, firsts[1:], axis=1)]
            assert np.allclose(found, np.stack(summed, axis=1), atol=1e-3)


def compressed_with_sums() -> tuple[SequenceCache, list[int]]:
    tokens = prompt(200)
    later = registry.build("cache", {"technique": "h2o", "keep": 1.0})  # goes on with the sums
    sequence = Cache(MODEL).create([build(keep=0.5, **ENDS), later])
    Driver(MODEL).prefill(sequence, tokens)
    return sequence, tokens


def test_a_prompt_of_one_token_and_of_one_kind() -> None:
    sequence, _ = compressed("kvmerger", 1, **ENDS)
    assert sequence.slots(0) == 1
    whole, _ = compressed("kvmerger", 200, keep=1.0, **ENDS)
    assert whole.slots(0) == 200


def test_protected_slots() -> None:
    scores = np.array([5.0, 1.0, 4.0, 3.0, 9.0, 9.0], np.float32)
    assert protected(scores, 2, 2).tolist() == [True, False, True, False, True, True]
    assert protected(scores, 0, 0).tolist() == [False] * 6
    assert protected(scores, 6, 9).tolist() == [True] * 6


def test_groups_of_an_edit() -> None:
    groups = Groups.of([np.array([4, 5, 9]), np.array([1, 2])])
    assert groups.firsts.tolist() == [4, 1] and groups.owners.tolist() == [0, 0, 0, 1, 1]
    assert len(Groups.of([])) == 0 and len(Groups.of([]).firsts) == 0
    assert Edits().merge([], np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32), layer=0, head=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0}, "keep = 0.0, threshold = None; use 0 < keep ≤ 1"),
        ({"threshold": 1.5}, "-1 ≤ threshold ≤ 1"),
        ({"sigma": 0}, "sigma = 0.0, first = 2, last = 1; use sigma > 0"),
        ({"first": -1}, "first ≥ 0"),
        ({"keep": 0.5, "recent": 0.3, "heavy": 0.2}, "shares ≥ 0 with recent \\+ 2 · heavy ≤ keep"),
        ({"keep": 0.5, "threshold": 0.7}, "one follows from the other; use keep"),
        ({"mass": "none"}, "mass"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(**options)


def test_a_budget_that_whole_layers_exceed_is_refused_with_one_that_fits() -> None:
    with pytest.raises(RecipeError, match="keep = 0.5 of 4 layers cannot be met .* use keep above 0.75"):
        Cache(model_info(layers=4)).create([build(keep=0.5)])


def test_attention_over_merged_slots_is_attention_over_their_tensors() -> None:
    sequence, tokens = compressed("kvmerger", 150, keep=0.5, mass="published", **ENDS)
    found = Driver(MODEL).step(sequence, [7])
    for layer in range(2):
        view = sequence.view(layer)
        query, key, value = Driver(MODEL).rows(layer, [*tokens, 7], 0)
        for head in range(MODEL.kv_heads):
            part = slice(head * MODEL.group, (head + 1) * MODEL.group)
            keys = np.concatenate((view.keys(head), key[-1:, head]))[:, None]
            values = np.concatenate((view.values(head), value[-1:, head]))[:, None]
            one = model_info(heads=MODEL.group, kv_heads=1)
            assert np.allclose(found[layer][:, part], attention(one, query[-1:, part], keys, values), atol=1e-5)
