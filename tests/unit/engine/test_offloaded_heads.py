"""Requests whose caches lie on disk and are read head group by head group: the same answers as in memory, in batches,
with drafts, in sessions, under pressure and when they are cancelled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.tiny import text_tokens

from thrifty import registry
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import BudgetError, StorageError
from thrifty.kernels import dispatch
from thrifty.models.model import Model

Tables = list[dict[str, Any]]
HEADINFER: Tables = [{"technique": "headinfer"}]
KIVI: Tables = [{"technique": "kivi", "residual": 64}]
SAMPLING = SamplingParameters(max_tokens=150, ignore_eos=True)


def request(prompt: list[int], cache: Tables, **options: Any) -> Request:
    return Request(prompt=prompt, sampling=SAMPLING, cache=cache, **options)


def answer(engine: Engine, prompt: list[int], cache: Tables, **options: Any) -> list[int]:
    tokens: list[int] = engine.submit(request(prompt, cache, **options)).result().token_ids
    return tokens


@pytest.mark.parametrize("before", [[], KIVI], ids=["full", "kivi"])
def test_answers_are_those_of_a_cache_in_memory(model: Model, make_engine: Any, before: Tables) -> None:
    engine, prompt = make_engine(model, prefix_tree=False), text_tokens(300, 3)
    expected = answer(engine, prompt, before)
    assert answer(engine, prompt, [*before, *HEADINFER]) == expected
    usage = engine.usage()
    assert usage.disk == 0 and usage.disk_written > 0 and usage.disk_read > 0


def test_a_batch_of_unlike_recipes(packed: Model, make_engine: Any) -> None:
    engine = make_engine(packed, prefix_tree=False)
    recipes = [HEADINFER, [], [{"technique": "headinfer", "heads": 2}], [*KIVI, *HEADINFER], KIVI]
    prompts = [text_tokens(200 + 50 * place, place) for place in range(len(recipes))]
    alone = [answer(engine, prompt, recipe) for prompt, recipe in zip(prompts, recipes, strict=True)]
    handles = [engine.submit(request(prompt, recipe)) for prompt, recipe in zip(prompts, recipes, strict=True)]
    assert [handle.result().token_ids for handle in handles] == alone


@pytest.mark.parametrize("strategy", [{"technique": "prompt-lookup"}])
def test_drafts_change_no_answer(packed: Model, make_engine: Any, strategy: dict[str, Any]) -> None:
    engine, prompt = make_engine(packed, prefix_tree=False), text_tokens(60, 4) * 6
    plain = answer(engine, prompt, [])
    assert answer(engine, prompt, HEADINFER, decoding=[strategy]) == plain


def test_samples_of_one_request_share_what_lies_on_disk(packed: Model, make_engine: Any) -> None:
    engine, prompt = make_engine(packed, prefix_tree=False), text_tokens(300, 5)
    sampling = SamplingParameters(max_tokens=100, ignore_eos=True, temperature=1.0, seed=3)
    said = {}
    for name, cache in (("memory", []), ("disk", HEADINFER)):
        result = engine.submit(Request(prompt=prompt, sampling=sampling, cache=cache, samples=3)).result()
        said[name] = [sample.token_ids for sample in result.samples]
    assert said["disk"] == said["memory"] and engine.usage().disk == 0


def test_a_prefix_hit_and_a_session_go_on_from_the_disk(packed: Model, make_engine: Any) -> None:
    engine, prompt = make_engine(packed), text_tokens(300, 6)
    said = {}
    for name, cache in (("memory", []), ("disk", HEADINFER)):
        first = answer(engine, prompt, cache, session=name)
        second = [*prompt, *first, *text_tokens(70, 8)]
        said[name] = [first, answer(engine, second, cache, session=name)]
    assert said["disk"] == said["memory"]


def test_a_session_goes_through_a_file(packed: Model, make_engine: Any, tmp_path: Path) -> None:
    engine, prompt = make_engine(packed, prefix_tree=False), text_tokens(300, 6)
    first = answer(engine, prompt, HEADINFER, session="kept")
    engine.sessions.save("kept", tmp_path)
    second = [*prompt, *first, *text_tokens(70, 8)]
    expected = answer(engine, second, HEADINFER, session="kept")
    other = make_engine(packed, prefix_tree=False)
    other.sessions.restore("kept", tmp_path)
    assert answer(other, second, HEADINFER, session="kept") == expected
    assert other.usage().disk_written > 0


def test_who_is_cancelled_leaves_nothing_on_disk(packed: Model, make_engine: Any) -> None:
    engine = make_engine(packed, prefix_tree=False)
    handles = [engine.submit(request(text_tokens(300, seed), HEADINFER)) for seed in range(3)]
    for handle in handles[:2]:
        next(iter(handle))
    for handle in handles:
        handle.cancel()
    while engine.busy:
        engine.step()
    assert engine.usage().disk == 0 and engine.usage().bytes_of("cache") == 0


@pytest.mark.skipif(dispatch.native() is None, reason="the native kernels are not built")
def test_a_budget_that_the_full_cache_does_not_fit(packed: Model, make_engine: Any) -> None:
    """What is promised is what two groups of heads take, so that a long prompt is admitted and answered as ever."""
    prompt = text_tokens(900, 7)
    free = make_engine(packed, prefix_tree=False)
    expected = answer(free, prompt, [])
    policies = [registry.build("cache", table) for table in HEADINFER]
    full, ours = (free.footprint(own, 900, 1050).peak_bytes for own in ([], policies))
    assert ours < full
    room = free.usage().bytes_of("weights") + free.probe().workspace + (ours + full) // 2
    small = make_engine(packed, prefix_tree=False, memory=room)
    with pytest.raises(BudgetError):
        answer(small, prompt, [])
    assert answer(small, prompt, HEADINFER) == expected


def test_a_full_disk_ends_its_request_and_no_other(packed: Model, make_engine: Any) -> None:
    engine = make_engine(packed, prefix_tree=False)
    engine.memory.cache.tiers.disk.capacity = 1
    engine.memory.cache.tiers.disk._extents.size = 4096
    engine.memory.cache.tiers.disk.reclaim([])
    ours, other = engine.submit(request(text_tokens(300, 1), HEADINFER)), engine.submit(request(text_tokens(90, 2), []))
    with pytest.raises(StorageError, match="the disk tier is full"):
        ours.result()
    assert len(other.result().token_ids) == 150
