"""What an engine tells of itself, and prompts that are looked at and forgotten."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from tests.tiny import text_tokens

from thrifty.cache.edits import Edits
from thrifty.cache.model_info import LayerInfo, ModelInfo
from thrifty.cache.policy import CachePolicy
from thrifty.cache.statistics import Statistics, Stats
from thrifty.cache.view import LayerView
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import BudgetError, KernelError, PromptError
from thrifty.kernels import dispatch
from thrifty.models.model import Model

MakeEngine = Callable[..., Engine]


@dataclass(frozen=True, kw_only=True)
class Looking(CachePolicy):
    """Notes the shape of what it is shown, and keeps everything."""

    seen: list[tuple[int, int, tuple[int, ...]]]

    name = "looking"

    def wants(self, model: ModelInfo) -> Statistics:
        return Statistics(queries=5)

    def after_prefill(self, layer: LayerInfo, kv: LayerView, stats: Stats) -> Edits:
        assert stats.queries is not None
        self.seen.append((layer.index, kv.kv_heads, stats.queries.shape))
        return Edits()


def request(length: int, maximum: int = 4) -> Request:
    return Request(prompt=text_tokens(length, length), sampling=SamplingParameters(max_tokens=maximum, ignore_eos=True))


def test_the_facts_of_an_engine(model: Model, make_engine: MakeEngine) -> None:
    engine = make_engine(model, memory="60MB", context=900)
    facts = engine.probe()
    assert facts.runner == engine.runner.name and facts.native is (facts.runner == "native")
    assert facts.context == 900 and facts.budget == 60_000_000
    assert facts.weights == model.nbytes and facts.workspace > 0
    assert facts.end_ids == frozenset(model.tokenizer.eos_ids)
    assert facts.threads == dispatch.threads()
    assert facts.cache_model.heads == model.config.heads
    assert make_engine(model).probe().budget is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        facts.context = 1  # type: ignore[misc]


def test_usage_is_the_ledger_by_category(model: Model, make_engine: MakeEngine) -> None:
    engine = make_engine(model, prefix_tree=False)
    empty = engine.usage()
    assert (empty.waiting, empty.active, empty.parked) == (0, 0, 0)
    assert empty.bytes_of("weights") == model.nbytes and empty.bytes_of("cache") == 0 == empty.bytes_of("nothing")
    handle, other = engine.submit(request(300)), engine.submit(request(200))
    assert engine.usage().waiting == 2
    while not handle.usage.generated_tokens:
        engine.step()
    running = engine.usage()
    assert (running.active, running.waiting) == (1, 1) and running.bytes_of("cache") > 0
    assert running.current == sum(held.current for held in running.categories.values())
    assert running.steady == running.current - running.bytes_of("workspace") - running.bytes_of("scratch")
    assert running.peak >= running.current > empty.current
    handle.result()
    other.result()
    after = engine.usage()
    assert after.peak >= running.peak and after.bytes_of("cache") == 0
    engine.reset_peak()
    assert engine.usage().peak == after.current


def test_a_profile_is_of_native_code(plain: Model, packed: Model, make_engine: MakeEngine) -> None:
    with pytest.raises(KernelError, match="only the native plan can be profiled; this model runs as reference"):
        make_engine(plain).profile()
    if dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    engine = make_engine(packed)
    with engine.profile() as seconds:
        engine.submit(request(40)).result()
    assert sum(seconds.values()) > 0


def test_footprints_bound_what_requests_take(model: Model, make_engine: MakeEngine) -> None:
    engine = make_engine(model, prefix_tree=False)
    alone = engine.footprint((), 200, 210)
    both = engine.footprint((), 200, 210, sequences=2)
    assert both.steady_bytes == 2 * alone.steady_bytes
    assert engine.cache_footprint((), 200, 210).steady_bytes < alone.steady_bytes
    before = engine.usage().current
    handle = engine.submit(request(200, 10))
    handle.result()
    assert engine.usage().peak - before <= alone.peak_bytes


@pytest.mark.parametrize("length", [6, 300])
def test_a_looked_at_prompt_is_answered_as_any_and_leaves_nothing(
    model: Model, length: int, make_engine: MakeEngine
) -> None:
    engine = make_engine(model, prefix_tree=False)
    tokens, before = text_tokens(length, 3), engine.usage().current
    policy = Looking(seen=[])
    said = engine.watch_prompt(tokens, policy, scored=3)
    assert len(said) == 3
    greedy = SamplingParameters(max_tokens=1)
    for place, token in enumerate(said):
        prompt = tokens[: len(tokens) - 2 + place]
        assert engine.submit(Request(prompt=prompt, sampling=greedy)).result().token_ids == [token]
    layers = list(engine.probe().cache_model.policy_layers)
    assert [layer for layer, *_ in policy.seen] == layers
    config = model.config
    assert {shape for *_, shape in policy.seen} == {(5, config.heads, config.head_dim)}
    assert engine.usage().current == before


def test_it_waits_for_nobody_and_disturbs_nobody(packed: Model, make_engine: MakeEngine) -> None:
    """In the middle of another's answer."""
    engine = make_engine(packed, prefix_tree=False)
    alone = engine.submit(request(300, 12)).result().token_ids
    handle = engine.submit(request(300, 12))
    while handle.usage.generated_tokens < 3:
        engine.step()
    engine.watch_prompt(text_tokens(200, 9), Looking(seen=[]))
    assert handle.result().token_ids == alone


def test_what_fails_is_given_back(model: Model, make_engine: MakeEngine) -> None:
    class Failing(Looking):
        def after_prefill(self, layer: LayerInfo, kv: LayerView, stats: Stats) -> Edits:
            raise ValueError("not today")

    engine = make_engine(model, prefix_tree=False, memory=model.nbytes + (8 << 20))
    before = engine.usage().current
    with pytest.raises(ValueError, match="not today"):
        engine.watch_prompt(text_tokens(300, 1), Failing(seen=[]))
    assert engine.submit(request(100)).result().token_ids and engine.usage().current == before
    with pytest.raises(PromptError, match="outside this model's vocabulary"):
        engine.watch_prompt([10**6], Looking(seen=[]))
    with pytest.raises(BudgetError, match="a prompt that is looked at"):
        engine.watch_prompt(text_tokens(4000, 1), Looking(seen=[]))
    assert engine.usage().current == before


def test_options_are_told(packed: Model, make_engine: MakeEngine) -> None:
    facts: Any = make_engine(packed, native=False).probe()
    assert not facts.native and facts.reason == "native code was turned off"
