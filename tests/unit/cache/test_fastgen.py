"""FastGen against a slow, obvious version of the paper's equations (arXiv:2310.01801, §4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.cache.cache_driver import CLASSES, Driver, model_info, prompt
from tests.unit.cache.test_policy_formulas import softmax

from thrifty import registry
from thrifty.arrays import Floats
from thrifty.cache.policies.fastgen import FREQUENT, FULL, LOCAL, PUNCTUATION, RUNG, SPECIAL, Columns, causal_map
from thrifty.cache.pool import Cache
from thrifty.cache.sequence import SequenceCache
from thrifty.errors import RecipeError

MODEL = model_info(layers=2, heads=6, kv_heads=2)
LEVELS = {0.02: SPECIAL, 0.05: PUNCTUATION, 0.3: FREQUENT, 0.6: LOCAL, 0.95: FULL}
"""A recovery, and a candidate that some head takes for it on the prompts here."""


def compressed(tokens: list[int], **options: Any) -> SequenceCache:
    sequence = Cache(MODEL).create([registry.build("cache", {"technique": "fastgen"} | options)])
    Driver(MODEL).prefill(sequence, tokens)
    return sequence


def causal(layer: int, tokens: list[int]) -> Floats:
    """Attention probabilities [heads, tokens, tokens]."""
    query, key, _ = Driver(MODEL).rows(layer, tokens, 0)
    logits = np.einsum("nhd,shd->hns", query, np.repeat(key, MODEL.group, axis=1)) * MODEL.scale
    logits[:, np.triu(np.ones((len(tokens), len(tokens)), bool), 1)] = -np.inf
    return softmax(logits)


def slow_kept(
    candidate: int, tokens: list[int], held: list[int], score: dict[int, float], place: int, prompt_length: int
) -> set[int]:
    """Of the `held` positions, what a query at `place` finds under a candidate; `score`: cumulative attention."""
    if candidate == FULL:
        return set(held)
    kept = {slot for slot in held if tokens[slot] in CLASSES.special}
    if candidate >= PUNCTUATION:
        kept |= {slot for slot in held if tokens[slot] in CLASSES.punctuation}
    if candidate >= FREQUENT:
        count = int(0.3 * len(score))
        kept |= set(sorted(held, key=lambda slot: -score[slot])[:count])
    if candidate >= LOCAL:
        kept |= {slot for slot in held if slot >= place - int(0.3 * prompt_length)}
    return kept


def slow_choice(layer: int, head: int, tokens: list[int], recovery: float, profile: int, group: str) -> int:
    """Query by query and column by column."""
    maps = causal(layer, tokens)[head * MODEL.group : (head + 1) * MODEL.group]
    n = len(tokens)
    score = {slot: float(maps[:, :, slot].sum()) for slot in range(n)}
    rows = range(n - min(profile, n // 2), n)
    for candidate in range(FULL):
        found = []
        for one in maps:
            masses = []
            for row in rows:
                kept = slow_kept(candidate, tokens, list(range(n)), score, row, n) | {row}
                masses.append(sum(float(one[row, slot]) for slot in kept if slot <= row))
            found.append(sum(masses) / len(masses))
        if (min(found) if group == "min" else sum(found) / len(found)) >= recovery:
            return candidate
    return FULL


@pytest.mark.parametrize("group", ["min", "mean"])
@pytest.mark.parametrize("recovery", LEVELS)
def test_every_head_takes_the_first_candidate_that_recovers_it(recovery: float, group: str) -> None:
    tokens = prompt(150, seed=5)
    sequence = compressed(tokens, recovery=recovery, profile=70, group=group)
    taken = []
    for layer in range(2):
        expected = tuple(slow_choice(layer, head, tokens, recovery, 70, group) for head in range(2))
        assert sequence.stats(layer).notes[RUNG] == expected
        taken += expected
    assert LEVELS[recovery] in taken


def test_a_mean_over_the_group_may_recover_what_its_worst_head_does_not() -> None:
    tokens = prompt(150, seed=5)
    kept = {}
    for group in ("min", "mean"):
        levels = [compressed(tokens, recovery=step / 50, group=group) for step in range(22, 28)]
        kept[group] = [one.slots(layer, head) for one in levels for layer in range(2) for head in range(2)]
    assert all(mean <= least for mean, least in zip(kept["mean"], kept["min"], strict=True))
    assert kept["mean"] != kept["min"]


def slow_run(layer: int, head: int, tokens: list[int], n: int, recovery: float) -> list[int]:
    """Positions kept: row by row over what is kept, the head's policy applied at the prompt's end and every 64."""
    query, key, _ = Driver(MODEL).rows(layer, tokens, 0)
    own = slice(head * MODEL.group, (head + 1) * MODEL.group)
    candidate = slow_choice(layer, head, tokens[:n], recovery, 256, "min")
    held: list[int] = []
    score: dict[int, float] = {}
    for row in range(len(tokens)):
        held.append(row)
        score[row] = 0.0
        logits = (query[row, own] @ key[held, head].T) * MODEL.scale
        for slot, mass in zip(held, softmax(logits).sum(axis=0).tolist(), strict=True):
            score[slot] += mass
        if row + 1 >= n and (row + 1 - n) % 64 == 0:
            held = sorted(slow_kept(candidate, tokens, held, score, row + 1, n))
    return held


@pytest.mark.parametrize("recovery", LEVELS)
def test_decoding_keeps_to_the_policy(recovery: float) -> None:
    n, more = 150, prompt(128, seed=3)
    tokens = prompt(n, seed=5)
    sequence = compressed(tokens, recovery=recovery)
    for token in more:
        Driver(MODEL).step(sequence, [token])
    for layer in range(2):
        for head in range(2):
            found = sequence.view(layer).positions(head).tolist()
            assert found == slow_run(layer, head, tokens + more, n, recovery)


def test_the_policy_of_a_head_stays_with_its_sequence() -> None:
    """One policy object serves two sequences at once, and a fork goes on as its parent."""
    policy = registry.build("cache", {"technique": "fastgen", "recovery": 0.5})
    cache, driver = Cache(MODEL), Driver(MODEL)
    first, second = cache.create([policy]), cache.create([policy])
    driver.prefill(first, prompt(150, seed=5))
    notes = first.stats(0).notes[RUNG]
    driver.prefill(second, [0] * 100)
    assert second.stats(0).notes[RUNG] == (SPECIAL, SPECIAL), "a prompt of special tokens needs no more"
    assert first.stats(0).notes[RUNG] == notes == first.fork().stats(0).notes[RUNG]


def test_a_prompt_too_short_to_profile_is_kept() -> None:
    sequence = compressed([900], recovery=0.01)
    assert sequence.stats(0).notes[RUNG] == (FULL, FULL)
    for _ in range(130):
        Driver(MODEL).step(sequence, [901])
    assert sequence.slots(0) == 131


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), slots=st.integers(1, 40), rows=st.integers(1, 9), span=st.integers(0, 20))
def test_recovered_mass_is_one_minus_half_the_difference_to_the_map_of_what_is_kept(
    seed: int, slots: int, rows: int, span: int
) -> None:
    """Eq. 2's |A − softmax(QK_C)|, as half the sum over columns, and the mass on kept columns are one criterion."""
    generator = np.random.default_rng(seed)
    rows = min(rows, slots)
    model, places = model_info(heads=2, kv_heads=1), np.arange(slots - rows, slots)
    queries, keys = (generator.standard_normal(shape, np.float32) for shape in ((rows, 2, 16), (slots, 16)))
    bias = generator.standard_normal(slots, np.float32)
    columns = Columns(np.sort(generator.random((3, slots)) < 0.4, axis=0), np.arange(slots), span)
    seen = causal_map(model, queries, places, keys, columns.positions, bias)
    found = columns.recovered(seen, places)
    for candidate in range(FULL):
        distance = np.zeros(2)
        for row, place in enumerate(places.tolist()):
            kept = columns.kept(candidate, place).copy()
            kept[place] = True
            again = queries[row] @ keys.T * model.scale + bias
            again[:, ~kept] = -np.inf
            again[:, place + 1 :] = -np.inf
            distance += np.abs(seen[:, row] - softmax(again)).sum(axis=1) / 2
        assert np.allclose(found[candidate], rows - distance, atol=1e-4)
    assert (np.diff(found, axis=0) >= -1e-5).all(), "candidates grow"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"recovery": 0.0}, "recovery = 0.0"),
        ({"recovery": 1.1}, "recovery = 1.1"),
        ({"profile": 0}, "profile = 0"),
        ({"local": -0.1}, "local = -0.1"),
        ({"frequent": 1.5}, "frequent = 1.5"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        registry.build("cache", {"technique": "fastgen"} | options)
