"""KVzip against full attention matrices and a sort, and the recipes that it works in."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.cache.cache_driver import Driver, model_info, prompt
from tests.unit.cache.test_policy_formulas import softmax

from thrifty import registry
from thrifty.arrays import Floats
from thrifty.cache.composition import check_order
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.policies.kvzip import FIRST, LATER, QUOTED, Kvzip, attention, best_heads, best_slots
from thrifty.cache.pool import Cache
from thrifty.cache.sequence import SequenceCache
from thrifty.errors import PromptError, RecipeError


def slow_attention(queries: Floats, keys: Floats, scale: float, softcap: float | None) -> Floats:
    """One softmax a query head and row, written out."""
    group, rows, _ = queries.shape
    slots = len(keys)
    found = np.zeros((group, rows, slots), np.float32)
    for one in range(group):
        for row in range(rows):
            sees = slots - rows + row + 1
            logits = np.array([queries[one, row] @ keys[slot] * scale for slot in range(sees)], np.float64)
            if softcap:
                logits = softcap * np.tanh(logits / softcap)
            found[one, row, :sees] = softmax(logits)
    return found


@settings(max_examples=30, deadline=None)
@given(
    group=st.integers(1, 3),
    rows=st.integers(1, 9),
    before=st.integers(0, 20),
    softcap=st.sampled_from([None, 5.0]),
    seed=st.integers(0, 1000),
)
def test_attention_is_the_softmax_that_it_says(
    group: int, rows: int, before: int, softcap: float | None, seed: int
) -> None:
    random = np.random.default_rng(seed)
    queries = 3 * random.standard_normal((group, rows, 8), np.float32)
    keys = random.standard_normal((before + rows, 8), np.float32)
    found = attention(queries, keys, 0.4, softcap)
    assert np.allclose(found, slow_attention(queries, keys, 0.4, softcap), atol=1e-6)


def expected_scores(driver: Driver, policy: Kvzip, tokens: list[int], layer: int, head: int) -> Floats:
    """Scores [tokens] of one head from whole attention matrices, chunk after chunk; infinite for sinks."""
    model, end = driver.model, len(tokens)
    part = slice(head * model.group, (head + 1) * model.group)
    scores = np.full(end, np.inf, np.float32)
    _, context, _ = driver.rows(layer, tokens, 0)
    for piece in policy.rehearsals(model, tokens, 0):
        query, own, _ = driver.rows(layer, piece.tokens, end)
        keys = np.concatenate((context[: policy.sinks, head], context[piece.start : piece.stop, head], own[:, head]))
        chances = slow_attention(query[:, part].swapaxes(0, 1), keys, model.scale, model.softcap)
        chances = chances[..., policy.sinks : policy.sinks + piece.stop - piece.start]
        by_row = chances.max(axis=0) if policy.group == "max" else chances.mean(axis=0)
        scores[piece.start : piece.stop] = by_row.max(axis=0)
    return scores


def prefilled(model: ModelInfo, policy: Kvzip, tokens: list[int]) -> SequenceCache:
    sequence = Cache(model).create([policy])
    Driver(model).prefill(sequence, tokens, chunk=48)
    return sequence


@pytest.mark.parametrize("group", ["max", "mean"])
@pytest.mark.parametrize("windows", [(None, None), (None, 40, None)])
def test_the_best_slots_of_all_layers_and_heads_stay(group: str, windows: tuple[int | None, ...]) -> None:
    model = model_info(windows=windows, heads=4, kv_heads=2)
    policy = registry.build("cache", {"technique": "kvzip", "keep": 0.25, "chunk": 70, "group": group})
    tokens = prompt(190, seed=3)
    sequence = prefilled(model, policy, tokens)
    pairs = []
    for layer in model.policy_layers:
        for head in range(model.kv_heads):
            scores = expected_scores(Driver(model), policy, tokens, layer, head)
            pairs += [(-float(scores[place]), layer, head, place) for place in range(policy.sinks, len(tokens))]
    number = math.floor(0.25 * len(pairs))
    chosen = sorted(pairs)[:number]
    assert sorted(pairs)[number][0] - chosen[-1][0] > 1e-6, "no tie at the border"
    for layer in model.policy_layers:
        for head in range(model.kv_heads):
            mine = sorted(place for _, one, other, place in chosen if (one, other) == (layer, head))
            assert sequence.view(layer).positions(head).tolist() == [*range(policy.sinks), *mine]


def test_the_best_heads_stay_whole_and_the_others_keep_sinks() -> None:
    model = model_info(layers=3, heads=4, kv_heads=2)
    policy = registry.build("cache", {"technique": "kvzip", "keep": 0.5, "chunk": 90, "level": "prompt-head"})
    tokens = prompt(150, seed=5)
    sequence = prefilled(model, policy, tokens)
    driver = Driver(model)
    best = {
        (layer, head): float(expected_scores(driver, policy, tokens, layer, head)[policy.sinks :].max())
        for layer in range(3)
        for head in range(2)
    }
    chosen = sorted(best, key=lambda place: -best[place])[:3]
    for layer, head in best:
        assert sequence.slots(layer, head) == (150 if (layer, head) in chosen else policy.sinks)


@pytest.mark.parametrize("windows", [(None,) * 3, (None, 40, None)])
def test_measured_heads_stay_whole_without_repeating(windows: tuple[int | None, ...]) -> None:
    model = model_info(windows=windows, heads=4, kv_heads=2)
    policy = registry.build("cache", {"technique": "kvzip", "keep": 0.5, "level": "head"})
    tokens = prompt(150, seed=5)
    assert policy.rehearsals(model, tokens, 0) == []
    sequence = prefilled(model, policy, tokens)
    measured = model.head_scores["kvzip"].reshape(len(model.policy_layers), 2, 2).max(axis=2)
    best = {(layer, head): measured[rank, head] for rank, layer in enumerate(model.policy_layers) for head in range(2)}
    chosen = sorted(best, key=lambda place: -best[place])[: len(best) // 2]
    for layer, head in best:
        assert sequence.slots(layer, head) == (150 if (layer, head) in chosen else policy.sinks)


def test_a_second_prompt_drops_in_measured_heads_what_was_said_between() -> None:
    """What was generated behind the first prompt is context of the second one."""
    model = model_info(layers=2)
    policy = registry.build("cache", {"technique": "kvzip", "keep": 0.5, "level": "head"})
    tokens = prompt(140)
    sequence = prefilled(model, policy, tokens)
    dropped = next(
        (layer, head) for layer in range(2) for head in range(2) if sequence.slots(layer, head) == policy.sinks
    )
    driver = Driver(model)
    for token in range(70):
        driver.step(sequence, [token])
    assert sequence.slots(*dropped) > policy.sinks + 60
    driver.prefill(sequence, [*range(sequence.length), *prompt(100, seed=3)])
    assert sequence.slots(*dropped) == policy.sinks


def test_without_measured_heads_the_command_is_named() -> None:
    bare = dataclasses.replace(model_info(), head_scores={})
    Cache(bare).create([Kvzip(level="prompt-head")]).free()
    with pytest.raises(RecipeError, match="'kvzip' needs the scores .*run `thrifty heads MODEL --kind kvzip` once"):
        Kvzip(level="head").check(bare)
    assert Kvzip(level="head").kind == "kvzip" and Kvzip().kind is None


def test_the_opening_of_the_chat_template_stays_whole() -> None:
    model = dataclasses.replace(model_info(), opening=lambda tokens: 37)
    tokens = prompt(190)
    policy = Kvzip(keep=0.2, chunk=70).for_prompt(model, tokens)
    assert policy == Kvzip(keep=0.2, chunk=70, sinks=37)
    assert Kvzip(opening=False).for_prompt(model, tokens).sinks == 4
    assert Kvzip(sinks=50).for_prompt(model, tokens).sinks == 50
    assert Kvzip().for_prompt(model_info(), tokens) == Kvzip()
    assert policy.rehearsals(model, tokens, 0)[0].start == 37
    sequence = prefilled(model, policy, tokens)
    counts = []
    for layer in range(model.layers):
        for head in range(model.kv_heads):
            positions = sequence.view(layer).positions(head).tolist()
            assert positions[:37] == list(range(37))
            counts.append(len(positions) - 37)
    assert sum(counts) == int(0.2 * len(counts) * (190 - 37)), "the share is of what comes behind it"
    assert sum(counts) / len(counts) + 37 <= policy.kept(190)


def test_values_stay_with_their_keys() -> None:
    model = model_info(layers=2)
    tokens = prompt(130)
    sequence = prefilled(model, Kvzip(keep=0.4, chunk=50), tokens)
    for layer in range(2):
        _, keys, values = Driver(model).rows(layer, tokens, 0)
        for head in range(2):
            view = sequence.view(layer)
            places = view.positions(head)
            assert np.array_equal(view.keys(head), keys[places, head])
            assert np.array_equal(view.values(head), values[places, head])


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    keep=st.floats(0.01, 1.0),
    distinct=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_exactly_the_number_asked_for_stays_and_ties_go_by_order(
    counts: list[int], keep: float, distinct: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    scores = [random.integers(0, distinct, count).astype(np.float32) for count in counts]
    for one in scores:
        one[0] = math.inf
    kept = best_slots(scores, keep)
    flat = np.concatenate(scores)
    judged = [place for place in range(len(flat)) if flat[place] < math.inf]
    chosen = sorted(judged, key=lambda place: (-float(flat[place]), place))[: math.floor(keep * len(judged))]
    expected = [place in chosen or flat[place] == math.inf for place in range(len(flat))]
    assert np.concatenate(kept).tolist() == expected
    assert [len(one) for one in kept] == counts


def test_of_equal_heads_the_first_stay() -> None:
    scores = [np.array([math.inf, 0.5, 0.1], np.float32) for _ in range(4)]
    assert [int(one.sum()) for one in best_heads(scores, 0.5)] == [3, 3, 1, 1]


def test_a_later_chunk_is_asked_for_by_the_end_of_the_one_before() -> None:
    model, tokens = model_info(), prompt(260)
    pieces = Kvzip(chunk=100).rehearsals(model, tokens, 0)
    assert [(piece.start, piece.stop) for piece in pieces] == [(4, 104), (104, 204), (204, 260)]
    assert pieces[0].tokens[2:] == tuple(tokens[4:104])
    assert pieces[1].tokens == (2000 + len(LATER), *tokens[104 - QUOTED : 104], 2001, *tokens[104:204])


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 300), chunk=st.integers(1, 120), sinks=st.integers(1, 40), first=st.integers(0, 200))
def test_pieces_repeat_every_token_once_in_order(n: int, chunk: int, sinks: int, first: int) -> None:
    """From the sinks, or the prompt before, chunk by chunk, behind its request and eight tokens of the last one."""
    tokens, begin = prompt(n), max(first, sinks)
    expected = []
    while begin < n:
        end = min(begin + chunk, n)
        quoted = tokens[max(0, begin - 8) : begin] if expected else []
        text = LATER if expected else FIRST
        expected.append((begin, end, (2000 + len(text), *quoted, 2001, *tokens[begin:end])))
        begin = end
    pieces = Kvzip(chunk=chunk, sinks=sinks).rehearsals(model_info(), tokens, first)
    assert [(piece.start, piece.stop, piece.tokens) for piece in pieces] == expected
    assert all(piece.sinks == sinks for piece in pieces)


def test_nothing_is_repeated_where_all_is_kept_or_all_are_sinks() -> None:
    model = model_info()
    assert Kvzip(keep=1.0).rehearsals(model, prompt(100), 0) == []
    assert Kvzip().rehearsals(model, prompt(4), 0) == []
    assert Kvzip().rehearsals(model_info(windows=(32, 32)), prompt(100), 0) == []


def test_chunks_shrink_where_the_context_ends() -> None:
    model = dataclasses.replace(model_info(), context=300)
    framing = QUOTED + 2
    pieces = Kvzip().rehearsals(model, prompt(200), 0)
    assert max(len(piece.tokens) for piece in pieces) <= 300 - 200
    assert pieces[0].stop - pieces[0].start == 300 - 200 - framing
    with pytest.raises(PromptError, match=f"at most {300 - framing - 64} tokens"):
        Kvzip().check_prompt(model, 300 - framing - 63)


def test_rehearsed_rows_do_not_stay() -> None:
    model = model_info(windows=(None, 50), heads=4, kv_heads=2)
    tokens = prompt(200)
    driver, cache = Driver(model), Cache(model)
    sequence = cache.create([Kvzip(keep=0.5, chunk=60)])
    plain = cache.create()
    driver.prefill(sequence, tokens)
    driver.prefill(plain, tokens)
    assert sequence.length == plain.length == 200
    step = driver.step(sequence, [7])
    assert np.allclose(step[1], driver.step(plain, [7])[1], atol=1e-5), "the windowed layer is as it was"
    sequence.free()
    plain.free()
    assert cache.ledger.current == 0


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["snapkv", "kvzip"], "put 'kvzip' first"),
        (["streaming", "kvzip"], "put 'kvzip' first"),
        (["kivi", "kvzip"], "put 'kvzip' "),
        (["kvzip", "h2o"], "'h2o' watches the prompt's attention, .* 'kvzip': keep one of them"),
        (["kvzip", "snapkv"], "keep one of them"),
    ],
)
def test_recipes_that_cannot_work_are_refused(names: list[str], match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        check_order([registry.build("cache", {"technique": name}) for name in names])


@pytest.mark.parametrize("options", [{"keep": 0.0}, {"keep": 1.1}, {"chunk": 0}, {"sinks": 0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(RecipeError, match=f"kvzip: .*{name} = {value}.*; use "):
        registry.build("cache", {"technique": "kvzip"} | options)


def test_the_steps_must_come_in_order() -> None:
    model, driver = model_info(), Driver(model_info())
    cache = Cache(model)
    sequence = cache.create([Kvzip(keep=0.5, chunk=30)])
    driver.step(sequence, prompt(64))
    with pytest.raises(PromptError, match="not rehearsed"):
        sequence.complete_prompt()
    run = sequence.begin_rehearsals(prompt(64))
    with pytest.raises(PromptError, match="cannot be forked"):
        sequence.fork()
    run.begin(run.pieces[0])
    with pytest.raises(PromptError, match="have had"):
        run.end()
    with pytest.raises(PromptError, match="not rehearsed"):
        sequence.complete_prompt()
    sequence.free()
    assert cache.ledger.current == 0
