"""What every cache policy owes: it joins this list by being registered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from tests.unit.cache.cache_driver import Driver, model_info, prompt, same

from thrifty import registry
from thrifty.arrays import Floats
from thrifty.cache.edits import Edits
from thrifty.cache.model_info import LayerInfo, ModelInfo
from thrifty.cache.policy import CachePolicy
from thrifty.cache.pool import Cache
from thrifty.cache.sequence import SequenceCache
from thrifty.cache.statistics import Statistics, Stats
from thrifty.cache.traits import Traits
from thrifty.cache.view import LayerView

SMALL: dict[str, dict[str, Any]] = {
    "streaming": {"window": 60},
    "kivi": {"residual": 64},
    "snapkv": {"window": 8, "keep": 0.3},
    "ada-kv": {"window": 8, "keep": 0.3},
    "minikv": {"residual": 64},
    "fastgen": {"recovery": 0.6, "profile": 48},
    "pyramidkv": {"window": 8, "keep": 0.3},
    "headkv": {"window": 8, "keep": 0.3},
    "headkv-r2": {"window": 8, "capacity": 40, "beta": 1.01},
    "kvmerger": {"keep": 0.4, "first": 0, "last": 0},
    "kvzip": {"keep": 0.3, "chunk": 100},
    "knorm": {"keep": 0.3},
    "quest": {"budget": 96, "page": 32, "dense": 0},
}
"""Options that make a policy act on short prompts; a policy without an entry runs with its defaults."""

WIDE: dict[str, dict[str, Any]] = {
    "streaming": {"window": 200},
    "kivi": {"residual": 64},
    "snapkv": {"window": 8, "keep": 1.0},
    "ada-kv": {"window": 8, "keep": 1.0},
    "pyramidkv": {"window": 8, "keep": 1.0},
    "headkv": {"window": 8, "keep": 1.0},
    "headkv-r2": {"window": 8, "keep": 1.0},
    "h2o": {"capacity": 200},
    "minikv": {"heavy": 0.5, "recent": 0.5, "layers": "uniform"},
    "fastgen": {"recovery": 1.0, "profile": 8},
    "kvmerger": {"keep": 1.0},
    "kvzip": {"keep": 1.0, "chunk": 100},
    "knorm": {"keep": 1.0},
}
"""Options with which a prompt of 200 tokens is kept whole."""

SINGLE = [[name] for name in registry.names("cache")]
COMPOSED = [["snapkv", "kivi"], ["ada-kv", "kivi"], ["streaming", "kivi"], ["h2o", "kivi"], ["snapkv", "h2o"]]
COMPOSED += [["snapkv", "minikv"], ["ada-kv", "minikv"], ["minikv", "h2o"]]
COMPOSED += [["fastgen", "kivi"], ["snapkv", "fastgen"], ["fastgen", "h2o"], ["fastgen", "h2o", "kivi"]]
COMPOSED += [["pyramidkv", "kivi"], ["pyramidkv", "h2o"], ["pyramidkv", "ada-kv"]]
COMPOSED += [["headkv", "kivi"], ["headkv-r2", "h2o"]]
COMPOSED += [["kvmerger", "kivi"], ["snapkv", "kvmerger", "kivi"], ["kvmerger", "h2o"]]
COMPOSED += [["kvzip", "kivi"], ["knorm", "kivi"], ["snapkv", "knorm"]]
COMPOSED += [
    ["kivi", "headinfer"],
    ["snapkv", "headinfer"],
    ["ada-kv", "kivi", "headinfer"],
    ["streaming", "headinfer"],
]
COMPOSED += [["quest", "kivi"], ["ada-kv", "quest"], ["streaming", "quest"], ["kvzip", "quest"]]
SHAPES = {
    "grouped": model_info(layers=2, heads=4, kv_heads=2),
    "multi-query": model_info(layers=2, heads=3, kv_heads=1, format="bf16"),
    "windowed": model_info(windows=(None, 50, None), heads=6, kv_heads=3, format="bf16"),
}


def tier(names: list[str], quick: bool = True) -> list[Any]:
    """The mark of a case: `make unit` takes every technique and the first chains."""
    return [] if quick and names in SINGLE + COMPOSED[:4] else [pytest.mark.long]


def recipes() -> list[Any]:
    return [pytest.param(names, id="+".join(names), marks=tier(names)) for names in SINGLE + COMPOSED]


def recipes_in(shapes: Sequence[str]) -> list[Any]:
    """Each technique in every shape, each chain in the last of them; `make unit` takes the last one alone."""
    pairs = [(names, shape) for names in SINGLE for shape in shapes] + [(names, shapes[-1]) for names in COMPOSED]
    return [
        pytest.param(names, shape, id=f"{'+'.join(names)}-{shape}", marks=tier(names, shape == shapes[-1]))
        for names, shape in pairs
    ]


def build(names: list[str]) -> list[CachePolicy]:
    return [registry.build("cache", {"technique": name} | SMALL.get(name, {})) for name in names]


def run(
    model: ModelInfo, cache: Cache, names: list[str], tokens: list[int], chunk: int = 64, generated: int = 150
) -> tuple[SequenceCache, Floats]:
    """Prefill, then one token a step; returns the outputs of every step and layer."""
    driver = Driver(model)
    sequence = cache.create(build(names))
    driver.prefill(sequence, tokens, chunk)
    outputs = [np.stack(driver.step(sequence, tokens)) for tokens in steps(generated, seed=9)]
    return sequence, np.concatenate(outputs, axis=1)


def steps(count: int, seed: int) -> list[list[int]]:
    """Tokens in steps of 1 and 14 by turns: several rows of a sequence are accepted at once, as by drafting."""
    tokens, cut = prompt(count, seed), []
    while tokens:
        size = 1 if len(cut) % 2 else 14
        cut.append(tokens[:size])
        tokens = tokens[size:]
    return cut


@pytest.mark.parametrize(("names", "shape"), recipes_in(list(SHAPES)))
def test_chunked_prefill_equals_whole(names: list[str], shape: str) -> None:
    model = SHAPES[shape]
    _, whole = run(model, Cache(model, disk=True), names, prompt(300), chunk=300, generated=70)
    _, chunked = run(model, Cache(model, disk=True), names, prompt(300), chunk=128, generated=70)
    assert np.allclose(whole, chunked, atol=1e-5)


@pytest.mark.parametrize(("names", "shape"), recipes_in(list(SHAPES)))
def test_a_fork_goes_on_as_its_parent(names: list[str], shape: str) -> None:
    model = SHAPES[shape]
    driver, cache = Driver(model), Cache(model, disk=True)
    sequence, _ = run(model, cache, names, prompt(200), generated=50)
    fork = sequence.fork()
    for some in steps(140, seed=4):
        ours = np.stack(driver.step(sequence, some))
        assert np.array_equal(ours, np.stack(driver.step(fork, some)))
    same(sequence, fork)
    sequence.free()
    driver.step(fork, [1])
    fork.free()
    assert cache.ledger.current == 0 and cache.tiers.arena.used == 0


@pytest.mark.parametrize(("names", "shape"), recipes_in(list(SHAPES)))
def test_a_prefix_hit_equals_no_hit(names: list[str], shape: str) -> None:
    model = SHAPES[shape]
    driver, cache = Driver(model), Cache(model, disk=True)
    tokens = prompt(300)
    donor = cache.create(collect=Statistics(column_sums=True))
    driver.prefill(donor, tokens[:192])
    assert cache.publish(donor, tokens) == 3
    donor.free()
    hit = cache.create(build(names), tokens=tokens)
    assert hit.hit == hit.length == 192
    miss = cache.create(build(names))
    driver.prefill(hit, tokens)
    driver.prefill(miss, tokens)
    for some in steps(140, seed=4):
        ours = np.stack(driver.step(hit, some))
        assert np.allclose(ours, np.stack(driver.step(miss, some)), atol=1e-5)
    for layer in range(model.layers):
        for head in range(model.kv_heads):
            assert np.array_equal(hit.view(layer).positions(head), miss.view(layer).positions(head))


@pytest.mark.parametrize("names", recipes())
@pytest.mark.parametrize("n", [200, 130])
def test_a_prefix_hit_leaves_the_same_segments(names: list[str], n: int) -> None:
    """Also where nothing is evicted yet: what later edits find does not tell where the prompt came from."""
    model = model_info(layers=2)
    driver, cache, tokens = Driver(model), Cache(model, disk=True), prompt(n)
    donor = cache.create(collect=Statistics(column_sums=True))
    driver.prefill(donor, tokens[:128])
    cache.publish(donor, tokens)
    policies = [registry.build("cache", {"technique": name} | WIDE.get(name, {})) for name in names]
    hit, miss = cache.create(policies, tokens=tokens), cache.create(policies)
    assert hit.hit == (64 if n == 130 and hit.statistics.queries else 128) or hit.statistics.column_sums, "a hit"
    driver.prefill(hit, tokens)
    driver.prefill(miss, tokens)
    for layer in range(model.layers):
        for head in range(model.kv_heads):
            assert hit.view(layer).stretches(head) == miss.view(layer).stretches(head)
    same(hit, miss)


@pytest.mark.parametrize("names", recipes())
@pytest.mark.parametrize("n", [1, 2, 64, 65])
def test_short_prompts(names: list[str], n: int) -> None:
    model = SHAPES["windowed"]
    sequence, outputs = run(model, Cache(model, disk=True), names, prompt(n), generated=70)
    assert sequence.length == n + 70
    assert np.isfinite(outputs).all()


@pytest.mark.parametrize(("names", "shape"), recipes_in(["grouped", "windowed"]))
@pytest.mark.parametrize(("n", "generated"), [(1, 300), pytest.param(100, 200, marks=pytest.mark.long), (600, 80)])
def test_bytes_stay_within_the_footprint_and_are_given_back(
    names: list[str], shape: str, n: int, generated: int
) -> None:
    model = SHAPES[shape]
    cache, driver = Cache(model, disk=True), Driver(model)
    policies = build(names)
    sequence = cache.create(policies)
    driver.prefill(sequence, prompt(n), chunk=128)
    for some in [[], *steps(generated, seed=1)]:
        if some:
            driver.step(sequence, some)
        promised = cache.footprint(policies, n, sequence.length)
        assert cache.ledger.current <= promised.steady_bytes, f"at {sequence.length} tokens"
        assert cache.ledger.peak <= promised.peak_bytes, f"at {sequence.length} tokens"
        assert cache.tiers.arena.used == cache.ledger.current - cache.ledger.bytes_of("index")
    sequence.free()
    assert cache.ledger.current == 0 and cache.tiers.arena.used == 0


@pytest.mark.parametrize("names", recipes())
def test_admission_by_footprint_is_enough_to_run(names: list[str]) -> None:
    model = SHAPES["windowed"]
    policies = build(names)
    peak = Cache(model, disk=True).footprint(policies, 300, 400).peak_bytes
    cache, driver = Cache(model, memory=peak, disk=True), Driver(model)
    sequence = cache.create(policies, reservation=cache.reserve("request", peak))
    driver.prefill(sequence, prompt(300), chunk=128)
    for some in steps(100, seed=1):
        driver.step(sequence, some)
    assert cache.ledger.peak <= peak
    sequence.free()
    assert cache.ledger.committed == 0


@pytest.mark.parametrize("names", recipes())
def test_a_second_prompt_in_the_same_sequence(names: list[str]) -> None:
    model = SHAPES["grouped"]
    driver, cache = Driver(model), Cache(model, disk=True)
    sequence, _ = run(model, cache, names, prompt(200), generated=30)
    driver.prefill(sequence, [*range(sequence.length), *prompt(150, seed=2)])
    assert sequence.length == 380
    for some in steps(70, seed=4):
        assert np.isfinite(np.stack(driver.step(sequence, some))).all()
    sequence.free()
    assert cache.ledger.current == 0


@pytest.mark.parametrize("names", recipes())
def test_windowed_layers_are_left_alone(names: list[str]) -> None:
    model = SHAPES["windowed"]
    _, expected = run(model, Cache(model, disk=True), ["full"], prompt(300), generated=70)
    other, found = run(model, Cache(model, disk=True), names, prompt(300), generated=70)
    assert np.allclose(found[1], expected[1], atol=1e-5)
    assert other.slots(1) <= 50 + 2 * 64


def test_the_footprint_counts_what_a_policy_keeps_apart_whatever_it_calls_it() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Anchors(CachePolicy):
        """The first tokens, turned to the positions before the newest."""

        name = "anchors"
        first: int = 500
        newest: int = 64
        traits = Traits(uniform=True)

        @property
        def separate_slots(self) -> int:
            return self.first

        def after_prefill(self, layer: LayerInfo, kv: LayerView, stats: Stats) -> Edits:
            start = kv.count() - self.newest
            edits = Edits().drop(self.first, start, layer=layer.index).store(0, self.first, "", layer=layer.index)
            return edits.renumber(0, self.first, np.arange(start - self.first, start), layer=layer.index)

        def kept(self, prompt: int, generated: int = 0) -> int:
            return min(prompt, self.first + self.newest) + generated

    cache, policies = Cache(model_info(format="bf16", head_dim=64)), [Anchors()]
    sequence = cache.create(policies)
    Driver(cache.model).prefill(sequence, prompt(600), chunk=128)
    promised = cache.footprint(policies, 600, 600)
    assert cache.ledger.current <= promised.steady_bytes and cache.ledger.peak <= promised.peak_bytes
