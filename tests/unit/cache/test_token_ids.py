"""Which token a slot holds, as policies are told: right after every edit. The oracle is the value, which no edit of a
token's own slot changes: the driver's values are told apart by token and position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from tests.unit.cache.cache_driver import Driver, model_info, prompt

from thrifty import registry
from thrifty.cache.editing.apply import apply_edits
from thrifty.cache.edits import Edits
from thrifty.cache.model_info import LayerInfo, TokenClasses
from thrifty.cache.policy import CachePolicy
from thrifty.cache.pool import Cache
from thrifty.cache.sequence import SequenceCache
from thrifty.cache.statistics import Statistics, Stats
from thrifty.cache.view import LayerView
from thrifty.cache.watching.token_ids import TokenIds

MODEL = model_info(windows=(None, 50, None), heads=4, kv_heads=2)
DRIVER = Driver(MODEL)
TOKENS = Statistics(tokens=True)
SMALL: dict[str, dict[str, Any]] = {
    "streaming": {"window": 60},
    "snapkv": {"window": 8, "keep": 0.3},
    "ada-kv": {"window": 8, "keep": 0.3},
    "h2o": {"capacity": 70},
    "fastgen": {"recovery": 0.6, "profile": 48},
}


def build(names: list[str]) -> list[CachePolicy]:
    return [registry.build("cache", {"technique": name} | SMALL.get(name, {})) for name in names]


def check(sequence: SequenceCache, tokens: list[int]) -> None:
    """Every sealed slot of the global layers is said to hold the token that its value belongs to."""
    assert sequence.length == len(tokens)
    driver = Driver(sequence.model)
    for layer in sequence.policy_layers:
        found = sequence.stats(layer).tokens
        assert found is not None
        _, _, values = driver.rows(layer, tokens, 0)
        for head, ids in enumerate(found):
            assert ids.dtype == np.int64 and len(ids) == sequence.slots(layer, head)
            held = sequence.view(layer).values(head)
            places = ((held[:, None] - values[None, :, head]) ** 2).sum(-1).argmin(axis=1)
            assert np.array_equal(held, values[places, head]), "the slots were edited beyond what this test can tell"
            assert ids[: len(held)].tolist() == [tokens[place] for place in places]
            rest = len(ids) - len(held)
            assert ids[len(held) :].tolist() == (tokens[-rest:] if rest else [])


def run(sequence: SequenceCache, tokens: list[int], generated: int, seed: int = 5) -> list[int]:
    """Prefill, then steps of three rows of which two are accepted; checked along the way."""
    driver = Driver(sequence.model)
    driver.prefill(sequence, tokens)
    check(sequence, tokens)
    more = prompt(generated + 1, seed)
    for start in range(0, generated, 2):
        driver.step(sequence, [*more[start : start + 2], 7], commit=2)
        tokens = tokens + more[start : start + 2]
        if start % 34 == 0:
            check(sequence, tokens)
    check(sequence, tokens)
    return tokens


@pytest.mark.parametrize(
    "names",
    [[], ["streaming"], ["snapkv"], ["ada-kv"], ["h2o"], ["fastgen"], ["streaming", "h2o"], ["snapkv", "fastgen"]],
    ids="+".join,
)
@pytest.mark.long
def test_tokens_follow_their_slots(names: list[str]) -> None:
    sequence = Cache(MODEL).create(build(names), collect=TOKENS)
    tokens = run(sequence, prompt(200), 150)
    fork = sequence.fork()
    for one, seed in ((sequence, 1), (fork, 2)):
        more = prompt(70, seed)
        for token in more:
            DRIVER.step(one, [token])
        check(one, tokens + more)


def test_tokens_of_a_prefix_hit_and_of_a_second_prompt() -> None:
    cache, tokens = Cache(MODEL), prompt(300)
    donor = cache.create(collect=Statistics(column_sums=True))
    DRIVER.prefill(donor, tokens[:192])
    cache.publish(donor, tokens)
    sequence = cache.create(build(["fastgen"]), tokens=tokens)
    assert sequence.hit == 192
    tokens = run(sequence, tokens, 100)
    tokens = tokens + prompt(90, 3)
    DRIVER.prefill(sequence, tokens)
    check(sequence, tokens)


@pytest.mark.parametrize("length", [290, 230, 150, 60])
def test_tokens_after_going_back(length: int) -> None:
    model = model_info(windows=(None, None), heads=4, kv_heads=2)
    sequence = Cache(model).create(build(["fastgen"]))
    tokens = run(sequence, prompt(200), 100)
    sequence.truncate(len(tokens) - length)
    check(sequence, tokens[:length])
    for token in prompt(80, 3):
        Driver(model).step(sequence, [token])
    check(sequence, tokens[:length] + prompt(80, 3))


def test_tokens_of_merged_shared_and_untold_slots() -> None:
    model = model_info()
    driver, sequence = Driver(model), Cache(model).create(collect=TOKENS)
    tokens = prompt(128)
    driver.prefill(sequence, tokens)
    groups = (np.array([3, 4, 9]), np.array([20, 21]))
    edits = Edits().merge(groups, np.zeros((2, 16), np.float32), np.zeros((2, 16), np.float32), layer=0, head=1)
    apply_edits(sequence, sequence.collector, edits, (0, 1))
    found = sequence.stats(0).tokens
    assert found is not None
    assert found[0].tolist() == tokens
    assert found[1].tolist() == [token for place, token in enumerate(tokens) if place not in (4, 9, 21)]
    apply_edits(sequence, sequence.collector, Edits().share(1, 0), (0, 1))
    shared = sequence.stats(1).tokens
    assert shared is not None and shared[1].tolist() == found[1].tolist()
    sequence.reserve(1)
    for layer in range(2):
        _, key, value = driver.rows(layer, [5], 128)
        sequence.append(layer, key, value)
    sequence.commit(1)
    untold = sequence.stats(0).tokens
    assert untold is not None and untold[0].tolist() == [*tokens, -1]
    assert Cache(model).create().stats(0).tokens is None, "nobody asked"


@dataclass(frozen=True, kw_only=True)
class Noting(CachePolicy):
    """Notes the prompt's length, and how often it was called since."""

    period: int = 8

    def after_prefill(self, layer: LayerInfo, kv: LayerView, stats: Stats) -> Edits:
        stats.notes["calls"] = (layer.length, 0)
        return Edits()

    def after_decode(self, layers: list[LayerView], stats: list[Stats]) -> Edits | None:
        for one in stats:
            length, calls = one.notes["calls"]
            one.notes["calls"] = (length, calls + 1)
        return None


def test_notes_live_with_the_sequence_and_its_forks() -> None:
    policy, cache = Noting(), Cache(MODEL)
    first, second = cache.create([policy]), cache.create([policy])
    DRIVER.prefill(first, prompt(40))
    DRIVER.prefill(second, prompt(50))
    for _ in range(16):
        DRIVER.step(first, [1])
    fork = first.fork()
    for _ in range(8):
        DRIVER.step(fork, [1])
    for sequence, notes in ((first, (40, 2)), (second, (50, 0)), (fork, (40, 3))):
        assert [sequence.stats(layer).notes["calls"] for layer in (0, 2)] == [notes, notes]


def test_bytes_are_those_of_the_history_and_of_edited_layers() -> None:
    ids = TokenIds()
    ids.remember(range(100), 0)
    assert ids.nbytes == 400
    ids.keep(0, [np.arange(100)] * 2, [100, 100])
    assert ids.nbytes == 400, "nothing went"
    ids.keep(0, [np.arange(10), np.arange(0, 100, 5)], [100, 100])
    assert ids.nbytes == 400 + 4 * 30
    cache = Cache(MODEL)
    told, untold = cache.create(collect=TOKENS), cache.create()
    for sequence in (untold, told):
        before = cache.ledger.bytes_of("index")
        sequence.remember(range(50))
        assert cache.ledger.bytes_of("index") - before == (200 if sequence is told else 0)
        sequence.free()
    assert cache.ledger.current == 0


def test_classes_are_told_token_by_token() -> None:
    classes = TokenClasses(special=frozenset({0, 7}), punctuation=frozenset({3, 9}))
    special, punctuation = classes.masks(np.array([-1, 0, 3, 7, 8, 9, 10, 4000]))
    assert special.tolist() == [False, True, False, True, False, False, False, False]
    assert punctuation.tolist() == [False, False, True, False, False, True, False, False]
    none, neither = TokenClasses().masks(np.array([-1, 0, 5]))
    assert not none.any() and not neither.any()
